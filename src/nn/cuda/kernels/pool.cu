// Max pooling.

// Position in a plane of the largest value under the window of output (y, x): the first of equals; NaN wins.
__device__ __forceinline__ int winner(const T *xs, int y, int x, int height, int width, int kernel, int stride, int padding) {
    int top = max(y * stride - padding, 0), bottom = min(y * stride - padding + kernel, height);
    int left = max(x * stride - padding, 0), right = min(x * stride - padding + kernel, width);
    int best = top * width + left;
    float largest = -INFINITY;
    for (int row = top; row < bottom; row++)
        for (int column = left; column < right; column++) {
            float x = get(xs[row * width + column]);
            if (x > largest || x != x) {
                largest = x;
                best = row * width + column;
            }
        }
    return best;
}

extern "C" __global__ void max_pool(const T *xs, T *out, int count, int height, int width, int out_height, int out_width,
                                    int kernel, int stride, int padding) {
    int i = index();
    if (i >= count)
        return;
    xs += (size_t)(i / (out_width * out_height)) * height * width;
    out[i] = xs[winner(xs, i / out_width % out_height, i % out_width, height, width, kernel, stride, padding)];
}

// A thread for each input: the sum over windows that it wins.
extern "C" __global__ void max_pool_gradient(const T *xs, const T *gradient, T *out, int count, int height, int width,
                                             int out_height, int out_width, int kernel, int stride, int padding) {
    int i = index();
    if (i >= count)
        return;
    int x = i % width, y = i / width % height, plane = i / (width * height);
    xs += (size_t)plane * height * width;
    gradient += (size_t)plane * out_height * out_width;
    int first_row = max(0, (y + padding - kernel) / stride), last_row = min(out_height - 1, (y + padding) / stride);
    int first = max(0, (x + padding - kernel) / stride), last = min(out_width - 1, (x + padding) / stride);
    float sum = 0;
    for (int row = first_row; row <= last_row; row++)
        for (int column = first; column <= last; column++)
            if (winner(xs, row, column, height, width, kernel, stride, padding) == y * width + x)
                sum += get(gradient[row * out_width + column]);
    put(out + i, sum);
}
