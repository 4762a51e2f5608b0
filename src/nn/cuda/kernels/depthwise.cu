// Convolutions in which every input channel has its own kernels: weight (channels · multiplier, 1, kernel_height,
// kernel_width).

// `bias` holds one value for each output channel. A thread for each output.
extern "C" __global__ void depthwise(const T *xs, const T *weight, const float *bias, T *out, int count, int channels,
                                     int multiplier, int height, int width, int kernel_height, int kernel_width, int out_height,
                                     int out_width, int stride, int padding, int dilation) {
    int i = index();
    if (i >= count)
        return;
    int x = i % out_width, y = i / out_width % out_height, plane = i / (out_width * out_height);
    int channel = plane % (channels * multiplier);
    xs += (size_t)(plane / multiplier) * height * width;
    weight += channel * kernel_height * kernel_width;
    float sum = bias[channel];
    for (int ky = 0; ky < kernel_height; ky++) {
        int row = y * stride + ky * dilation - padding;
        if (row < 0 || row >= height)
            continue;
        for (int kx = 0; kx < kernel_width; kx++) {
            int column = x * stride + kx * dilation - padding;
            if (column >= 0 && column < width)
                sum += get(weight[ky * kernel_width + kx]) * get(xs[row * width + column]);
        }
    }
    put(out + i, sum);
}

// Position of the output whose tap at distance `reach` from its start lies on `position`, or -1.
__device__ __forceinline__ int target(int position, int reach, int stride, int size) {
    int distance = position - reach;
    return distance >= 0 && distance % stride == 0 && distance / stride < size ? distance / stride : -1;
}

// A thread for each input, which collects what the outputs took from it.
extern "C" __global__ void depthwise_input_gradient(const T *weight, const T *gradient, T *out, int count, int channels,
                                                    int multiplier, int height, int width, int kernel_height,
                                                    int kernel_width, int out_height, int out_width, int stride,
                                                    int padding, int dilation) {
    int i = index();
    if (i >= count)
        return;
    int x = i % width, y = i / width % height, plane = i / (width * height);
    float sum = 0;
    for (int output = plane * multiplier; output < (plane + 1) * multiplier; output++) {
        const T *g = gradient + (size_t)output * out_height * out_width;
        const T *w = weight + output % (channels * multiplier) * kernel_height * kernel_width;
        for (int ky = 0; ky < kernel_height; ky++) {
            int row = target(y + padding, ky * dilation, stride, out_height);
            if (row < 0)
                continue;
            for (int kx = 0; kx < kernel_width; kx++) {
                int column = target(x + padding, kx * dilation, stride, out_width);
                if (column >= 0)
                    sum += get(w[ky * kernel_width + kx]) * get(g[row * out_width + column]);
            }
        }
    }
    put(out + i, sum);
}

// A block for each weight: blockIdx.x = output channel · taps + tap.
extern "C" __global__ void depthwise_weight_gradient(const T *xs, const T *gradient, T *out, int batch, int channels,
                                                     int multiplier, int height, int width, int kernel_height,
                                                     int kernel_width, int out_height, int out_width, int stride,
                                                     int padding, int dilation) {
    int tap = blockIdx.x % (kernel_height * kernel_width), channel = blockIdx.x / (kernel_height * kernel_width);
    int dy = tap / kernel_width * dilation - padding, dx = tap % kernel_width * dilation - padding;
    int size = out_height * out_width;
    float sum = 0;
    for (int image = 0; image < batch; image++) {
        const T *x = xs + ((size_t)image * channels + channel / multiplier) * height * width;
        const T *g = gradient + ((size_t)image * channels * multiplier + channel) * size;
        for (int i = threadIdx.x; i < size; i += blockDim.x) {
            int row = i / out_width * stride + dy, column = i % out_width * stride + dx;
            if (row >= 0 && row < height && column >= 0 && column < width)
                sum += get(x[row * width + column]) * get(g[i]);
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        put(out + blockIdx.x, sum);
}
