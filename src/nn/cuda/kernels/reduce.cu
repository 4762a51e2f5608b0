// Sums, and biases added to results.

// Sums of columns of xs (rows, width), `per_share` rows together: shares (grid.y, width). Add them with `column_totals`.
extern "C" __global__ void column_shares(const T *xs, float *shares, int rows, int width, int per_share) {
    int column = index(), start = blockIdx.y * per_share;
    if (column >= width)
        return;
    float sum = 0;
    for (int row = start; row < min(rows, start + per_share); row++)
        sum += get(xs[(size_t)row * width + column]);
    shares[blockIdx.y * width + column] = sum;
}

// Sums of the columns of xs (rows, width).
extern "C" __global__ void column_totals(const float *xs, float *out, int rows, int width) {
    int column = index();
    if (column >= width)
        return;
    float sum = 0;
    for (int row = 0; row < rows; row++)
        sum += xs[row * width + column];
    out[column] = sum;
}

// Sum of each plane of `size` values, a block for each plane.
extern "C" __global__ void plane_sums(const T *xs, float *out, int size) {
    float sum = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        sum += get(xs[(size_t)blockIdx.x * size + i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        out[blockIdx.x] = sum;
}

// out[i] += bias[i / size % channels]
extern "C" __global__ void add_bias(T *out, const float *bias, int count, int size, int channels) {
    int i = index();
    if (i < count)
        put(out + i, get(out[i]) + bias[i / size % channels]);
}
