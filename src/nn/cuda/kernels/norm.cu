// Layer, group and batch normalisation. Weights, biases and statistics are f32.

// Mean and 1/√(variance + eps) of a row, by the 32 threads of a warp.
__device__ __forceinline__ void row_statistics(const T *xs, int width, float eps, float *mean, float *scale) {
    int lane = threadIdx.x % 32;
    float sum = 0, squares = 0;
    for (int i = lane; i < width; i += 32)
        sum += get(xs[i]);
    *mean = warp_sum(sum) / width;
    for (int i = lane; i < width; i += 32) {
        float x = get(xs[i]) - *mean;
        squares += x * x;
    }
    *scale = 1 / sqrtf(warp_sum(squares) / width + eps);
}

// Layer norm of rows of `width` values, a warp for each row.
extern "C" __global__ void layer_norm(const T *xs, const float *weight, const float *bias, T *out, int rows, int width,
                                      float eps) {
    int row = index() / 32;
    if (row >= rows)
        return;
    xs += (size_t)row * width;
    out += (size_t)row * width;
    float mean, scale;
    row_statistics(xs, width, eps, &mean, &scale);
    for (int i = threadIdx.x % 32; i < width; i += 32)
        put(out + i, (get(xs[i]) - mean) * scale * weight[i] + bias[i]);
}

// Gradient of the inputs; keeps mean and scale of every row in `stats` (rows, 2).
extern "C" __global__ void layer_norm_gradient(const T *xs, const float *weight, const T *gradient, float *stats, T *out,
                                               int rows, int width, float eps) {
    int row = index() / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    xs += (size_t)row * width;
    gradient += (size_t)row * width;
    out += (size_t)row * width;
    float mean, scale, shift = 0, along = 0;
    row_statistics(xs, width, eps, &mean, &scale);
    for (int i = lane; i < width; i += 32) {
        float g = get(gradient[i]) * weight[i];
        shift += g;
        along += g * (get(xs[i]) - mean) * scale;
    }
    shift = warp_sum(shift) / width;
    along = warp_sum(along) / width;
    for (int i = lane; i < width; i += 32) {
        float normed = (get(xs[i]) - mean) * scale;
        put(out + i, scale * (get(gradient[i]) * weight[i] - shift - normed * along));
    }
    if (lane == 0) {
        stats[2 * row] = mean;
        stats[2 * row + 1] = scale;
    }
}

// Σ g·normed and Σ g over `per_share` rows, column by column: shares (grid.y, 2, width). Add them with `column_totals`.
extern "C" __global__ void layer_norm_shares(const T *xs, const T *gradient, const float *stats, float *shares, int rows,
                                             int width, int per_share) {
    int column = index(), start = blockIdx.y * per_share;
    if (column >= width)
        return;
    float products = 0, sum = 0;
    for (int row = start; row < min(rows, start + per_share); row++) {
        size_t at = (size_t)row * width + column;
        float g = get(gradient[at]);
        products += g * (get(xs[at]) - stats[2 * row]) * stats[2 * row + 1];
        sum += g;
    }
    shares[(2 * blockIdx.y) * width + column] = products;
    shares[(2 * blockIdx.y + 1) * width + column] = sum;
}

// Mean and Σ (x − mean)² of each plane of `size` values, a block for each plane: moments (planes, 2).
extern "C" __global__ void plane_moments(const T *xs, float *moments, int size) {
    xs += (size_t)blockIdx.x * size;
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        sum += get(xs[i]);
    float mean = block_sum(sum) / size;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float x = get(xs[i]) - mean;
        squares += x * x;
    }
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        moments[2 * blockIdx.x] = mean;
        moments[2 * blockIdx.x + 1] = squares;
    }
}

// A set is what shares its statistics: a group of one image (set_count = groups of all images, stride 1, `planes` = channels
// of a group, which lie together), or a channel of all images (set_count = stride = channels, `planes` = images).
__device__ __forceinline__ int plane_of(int set, int i, int planes, int stride) {
    return stride == 1 ? set * planes + i : i * stride + set;
}

// Mean and variance of each set from the moments of its planes.
//
// Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances".
extern "C" __global__ void combine_moments(const float *moments, float *mean_out, float *variance_out, int sets, int planes,
                                           int stride, int size) {
    int set = index();
    if (set >= sets)
        return;
    float mean = 0, squares = 0;
    for (int i = 0; i < planes; i++) {
        int plane = plane_of(set, i, planes, stride);
        float distance = moments[2 * plane] - mean;
        mean += distance / (i + 1);
        squares += moments[2 * plane + 1] + distance * distance * size * i / (i + 1);
    }
    mean_out[set] = mean;
    variance_out[set] = squares / ((float)planes * size);
}

__device__ __forceinline__ int set_of(int plane, int planes, int stride) {
    return stride == 1 ? plane / planes : plane % stride;
}

__device__ __forceinline__ float silu(float x) { return x / (1 + expf(-x)); }

__device__ __forceinline__ float silu_slope(float x) {
    float s = 1 / (1 + expf(-x));
    return s + x * s * (1 - s);
}

// (x − mean)/√(variance + eps) · weight + bias, then SiLU if asked for.
extern "C" __global__ void plane_norm(const T *xs, const float *mean, const float *variance, const float *weight,
                                      const float *bias, T *out, int count, int size, int channels, int planes, int stride,
                                      float eps, int with_silu) {
    int i = index();
    if (i >= count)
        return;
    int plane = i / size, set = set_of(plane, planes, stride), channel = plane % channels;
    float y = (get(xs[i]) - mean[set]) / sqrtf(variance[set] + eps) * weight[channel] + bias[channel];
    put(out + i, with_silu ? silu(y) : y);
}

// The gradient that arrives before SiLU, given that behind it.
__device__ __forceinline__ float before_silu(float g, float normed, float weight, float bias, int with_silu) {
    return with_silu ? g * silu_slope(normed * weight + bias) : g;
}

// Σ g·normed and Σ g of each plane, a block for each plane: sums (images, 2, channels).
extern "C" __global__ void plane_norm_sums(const T *xs, const T *gradient, const float *mean, const float *variance,
                                           const float *weight, const float *bias, float *sums, int size, int channels,
                                           int planes, int stride, float eps, int with_silu) {
    int plane = blockIdx.x, set = set_of(plane, planes, stride), channel = plane % channels;
    xs += (size_t)plane * size;
    gradient += (size_t)plane * size;
    float scale = 1 / sqrtf(variance[set] + eps), products = 0, sum = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        float normed = (get(xs[i]) - mean[set]) * scale;
        float g = before_silu(get(gradient[i]), normed, weight[channel], bias[channel], with_silu);
        products += g * normed;
        sum += g;
    }
    products = block_sum(products);
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        sums[plane + plane / channels * channels] = products;
        sums[plane + plane / channels * channels + channels] = sum;
    }
}

// Means over each set of weight·g·normed and weight·g: means (sets, 2).
extern "C" __global__ void plane_norm_means(const float *sums, const float *weight, float *means, int sets, int size,
                                            int channels, int planes, int stride) {
    int set = index();
    if (set >= sets)
        return;
    float along = 0, shift = 0;
    for (int i = 0; i < planes; i++) {
        int plane = plane_of(set, i, planes, stride);
        int at = plane + plane / channels * channels;
        along += weight[plane % channels] * sums[at];
        shift += weight[plane % channels] * sums[at + channels];
    }
    means[2 * set] = along / ((float)planes * size);
    means[2 * set + 1] = shift / ((float)planes * size);
}

// Gradient of the inputs; with `of_set` the statistics are those of the inputs, so that it flows through them too.
extern "C" __global__ void plane_norm_gradient(const T *xs, const T *gradient, const float *mean, const float *variance,
                                               const float *weight, const float *bias, const float *means, T *out, int count,
                                               int size, int channels, int planes, int stride, float eps, int with_silu,
                                               int of_set) {
    int i = index();
    if (i >= count)
        return;
    int plane = i / size, set = set_of(plane, planes, stride), channel = plane % channels;
    float scale = 1 / sqrtf(variance[set] + eps), normed = (get(xs[i]) - mean[set]) * scale;
    float g = before_silu(get(gradient[i]), normed, weight[channel], bias[channel], with_silu) * weight[channel];
    if (of_set)
        g -= means[2 * set + 1] + normed * means[2 * set];
    put(out + i, scale * g);
}
