// Activations and softmax.

enum Kind { GELU, QUICK_GELU, SILU, RELU, RELU6, SIGMOID };

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// Distribution function of the standard normal.
__device__ __forceinline__ float cumulative(float x) { return 0.5f * erfcf(-0.70710678f * x); }

__device__ __forceinline__ float density(float x) { return 0.3989422804f * expf(-0.5f * x * x); }

__device__ __forceinline__ float value(int kind, float x) {
    switch (kind) {
    case GELU: return x * cumulative(x);
    case QUICK_GELU: return x * sigmoid(1.702f * x);
    case SILU: return x * sigmoid(x);
    case RELU: return x < 0 ? 0 : x; // NaN stays NaN
    case SIGMOID: return sigmoid(x);
    default: return x < 0 ? 0 : x > 6 ? 6 : x;
    }
}

__device__ __forceinline__ float slope(int kind, float x) {
    float s;
    switch (kind) {
    case GELU: return cumulative(x) + x * density(x);
    case QUICK_GELU: s = sigmoid(1.702f * x); return s + 1.702f * x * s * (1 - s);
    case SILU: s = sigmoid(x); return s + x * s * (1 - s);
    case RELU: return x > 0 ? 1 : 0;
    case SIGMOID: s = sigmoid(x); return s * (1 - s);
    default: return x > 0 && x < 6 ? 1 : 0;
    }
}

extern "C" __global__ void activation(const T *xs, T *out, int count, int kind) {
    int i = index();
    if (i < count)
        put(out + i, value(kind, get(xs[i])));
}

extern "C" __global__ void activation_gradient(const T *xs, const T *gradient, T *out, int count, int kind) {
    int i = index();
    if (i < count)
        put(out + i, get(gradient[i]) * slope(kind, get(xs[i])));
}

// xs (rows, 2·width) → out (rows, width): first half · gelu(second half). count = rows · width.
extern "C" __global__ void geglu(const T *xs, T *out, int count, int width) {
    int i = index();
    if (i >= count)
        return;
    const T *h = xs + i + i / width * width;
    put(out + i, get(h[0]) * value(GELU, get(h[width])));
}

extern "C" __global__ void geglu_gradient(const T *xs, const T *gradient, T *out, int count, int width) {
    int i = index();
    if (i >= count)
        return;
    int at = i + i / width * width;
    float h = get(xs[at]), gate = get(xs[at + width]), g = get(gradient[i]);
    put(out + at, g * value(GELU, gate));
    put(out + at + width, g * h * slope(GELU, gate));
}

// Softmax of rows of `width` values, a warp for each row.
extern "C" __global__ void softmax(const T *xs, T *out, int rows, int width) {
    int row = index() / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    xs += (size_t)row * width;
    out += (size_t)row * width;
    float largest = -INFINITY, sum = 0;
    for (int i = lane; i < width; i += 32)
        largest = fmaxf(largest, get(xs[i]));
    largest = warp_max(largest);
    for (int i = lane; i < width; i += 32)
        sum += expf(get(xs[i]) - largest);
    float scale = 1 / warp_sum(sum);
    for (int i = lane; i < width; i += 32)
        put(out + i, expf(get(xs[i]) - largest) * scale);
}

// From the probabilities that `softmax` gave: p · (g − Σ p·g).
extern "C" __global__ void softmax_gradient(const T *probabilities, const T *gradient, T *out, int rows, int width) {
    int row = index() / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    probabilities += (size_t)row * width;
    gradient += (size_t)row * width;
    out += (size_t)row * width;
    float mean = 0;
    for (int i = lane; i < width; i += 32)
        mean += get(probabilities[i]) * get(gradient[i]);
    mean = warp_sum(mean);
    for (int i = lane; i < width; i += 32)
        put(out + i, get(probabilities[i]) * (get(gradient[i]) - mean));
}
