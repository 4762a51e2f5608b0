// Bilinear and nearest resizing of maps.

// One target position of an axis comes from (1 − share) · source[low] + share · source[high].
struct Tap {
    int low, high;
    float share;
};

enum Mode { NEAREST, BILINEAR, ALIGNED };

__device__ __forceinline__ Tap tap(int target, int from, float scale, int mode) {
    Tap t;
    if (mode == NEAREST) {
        t.low = t.high = min((int)(target * scale), from - 1);
        t.share = 0;
        return t;
    }
    float source = mode == ALIGNED ? target * scale : fmaxf((target + 0.5f) * scale - 0.5f, 0.f);
    t.low = min((int)source, from - 1);
    t.high = min(t.low + 1, from - 1);
    t.share = fminf(fmaxf(source - t.low, 0.f), 1.f);
    return t;
}

// `rows` rows from `first` on of every map's result. A thread for each output.
extern "C" __global__ void resize(const T *xs, T *out, int count, int height, int width, int first, int rows, int out_width,
                                  float row_scale, float column_scale, int mode) {
    int i = index();
    if (i >= count)
        return;
    Tap row = tap(first + i / out_width % rows, height, row_scale, mode), column = tap(i % out_width, width, column_scale, mode);
    xs += (size_t)(i / (out_width * rows)) * height * width;
    const T *low = xs + row.low * width, *high = xs + row.high * width;
    float a = (1 - column.share) * get(low[column.low]) + column.share * get(low[column.high]);
    float b = (1 - column.share) * get(high[column.low]) + column.share * get(high[column.high]);
    put(out + i, (1 - row.share) * a + row.share * b);
}

// What the targets of one axis took from position `source`: Σ share · gradient[target · step]. Only targets near
// source / scale can have; a wide margin covers rounding.
template <typename G>
__device__ __forceinline__ float collect(const G *gradient, int step, int source, int from, int to, float scale, int mode) {
    float inverse = scale > 0 ? 1 / scale : (float)to;
    int first = max(0, (int)((source - 2) * inverse) - 2), last = min(to - 1, (int)((source + 2) * inverse) + 2);
    float sum = 0;
    for (int target = first; target <= last; target++) {
        Tap t = tap(target, from, scale, mode);
        float share = (t.low == source ? 1 - t.share : 0) + (t.high == source ? t.share : 0);
        if (share != 0)
            sum += share * get(gradient[(size_t)target * step]);
    }
    return sum;
}

// First the columns: gradient (rows, out_width) → out (rows, width). count = rows · width.
extern "C" __global__ void resize_gradient_columns(const T *gradient, float *out, int count, int width, int out_width,
                                                   float scale, int mode) {
    int i = index();
    if (i < count)
        out[i] = collect(gradient + (size_t)(i / width) * out_width, 1, i % width, width, out_width, scale, mode);
}

// Then the rows: gradient (planes, out_height, width) → out (planes, height, width).
extern "C" __global__ void resize_gradient_rows(const float *gradient, T *out, int count, int width, int height,
                                                int out_height, float scale, int mode) {
    int i = index();
    if (i >= count)
        return;
    int column = i % width, row = i / width % height, plane = i / (width * height);
    const float *from = gradient + (size_t)plane * out_height * width + column;
    put(out + i, collect(from, width, row, height, out_height, scale, mode));
}
