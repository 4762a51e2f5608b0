// Losses, averaged over all values or masks' points; f32 like the gradient that comes back. Partial sums of blocks are added
// in order by one thread.

// Weighted cross-entropy of logits (images, classes, size): keeps log Σ exp of every pixel and the sum of every block.
// Labels ≥ classes are ignored: they add nothing and count in the mean.
extern "C" __global__ void cross_entropy(const T *logits, const unsigned int *labels, const float *weights, float *log_sums,
                                         float *shares, int pixels, int classes, int size) {
    int pixel = index();
    float loss = 0;
    if (pixel < pixels) {
        const T *xs = logits + (size_t)(pixel / size) * classes * size + pixel % size;
        float largest = -INFINITY, sum = 0;
        for (int k = 0; k < classes; k++)
            largest = fmaxf(largest, get(xs[(size_t)k * size]));
        for (int k = 0; k < classes; k++)
            sum += expf(get(xs[(size_t)k * size]) - largest);
        float log_sum = largest + logf(sum);
        log_sums[pixel] = log_sum;
        // A weight of 0 hides infinite losses.
        if (labels[pixel] < classes && weights[pixel] != 0)
            loss = weights[pixel] * (log_sum - get(xs[(size_t)labels[pixel] * size]));
    }
    loss = block_sum(loss);
    if (threadIdx.x == 0)
        shares[blockIdx.x] = loss;
}

// The loss is a single value, so its gradient is too.
extern "C" __global__ void cross_entropy_gradient(const T *logits, const unsigned int *labels, const float *weights,
                                                  const float *log_sums, const float *gradient, T *out, int count, int classes,
                                                  int size, int pixels) {
    int i = index();
    if (i >= count)
        return;
    int k = i / size % classes, pixel = i / (size * classes) * size + i % size;
    float factor = *gradient / pixels, weight = labels[pixel] < classes ? weights[pixel] : 0;
    float p = expf(get(logits[i]) - log_sums[pixel]) - (labels[pixel] == k ? 1 : 0);
    put(out + i, p * factor * weight);
}

// Sum of (x − y)² of every block.
extern "C" __global__ void squared_error(const T *xs, const T *ys, float *shares, int count) {
    float sum = 0;
    for (int i = index(); i < count; i += gridDim.x * blockDim.x) {
        float distance = get(xs[i]) - get(ys[i]);
        sum += distance * distance;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        shares[blockIdx.x] = sum;
}

// For xs; for ys turn the arguments round.
extern "C" __global__ void squared_error_gradient(const T *xs, const T *ys, const float *gradient, T *out, int count) {
    int i = index();
    if (i < count)
        put(out + i, 2 * *gradient / count * (get(xs[i]) - get(ys[i])));
}

// Sum of the shares over `divisor`. One block.
extern "C" __global__ void mean_of_shares(const float *shares, float *out, int shares_count, float divisor) {
    float sum = 0;
    for (int i = threadIdx.x; i < shares_count; i += blockDim.x)
        sum += shares[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        *out = sum / divisor;
}

struct MaskSums {
    float cross_entropy, overlap, size;
};

// Sums over the `points` of one mask. All threads of the block must call it.
__device__ __forceinline__ MaskSums mask_sums(const T *logits, const float *targets, int points) {
    MaskSums sums = {0, 0, 0};
    for (int i = threadIdx.x; i < points; i += blockDim.x) {
        float x = get(logits[i]), t = targets[i], s = 1 / (1 + expf(-x));
        sums.cross_entropy += fmaxf(x, 0.f) + log1pf(expf(-fabsf(x))) - x * t;
        sums.overlap += s * t;
        sums.size += s + t;
    }
    sums.cross_entropy = block_sum(sums.cross_entropy);
    sums.overlap = block_sum(sums.overlap);
    sums.size = block_sum(sums.size);
    return sums;
}

// Mean binary cross-entropy and Dice loss of each mask's points: logits and targets (masks, points) → out (masks, 2). A block
// for each mask.
extern "C" __global__ void mask_losses(const T *logits, const float *targets, float *out, int points) {
    size_t first = (size_t)blockIdx.x * points;
    MaskSums sums = mask_sums(logits + first, targets + first, points);
    if (threadIdx.x == 0) {
        out[2 * blockIdx.x] = sums.cross_entropy / points;
        out[2 * blockIdx.x + 1] = 1 - (2 * sums.overlap + 1) / (sums.size + 1);
    }
}

// gradient (masks, 2) → out (masks, points)
extern "C" __global__ void mask_losses_gradient(const T *logits, const float *targets, const float *gradient, T *out, int points) {
    size_t first = (size_t)blockIdx.x * points;
    MaskSums sums = mask_sums(logits + first, targets + first, points);
    float for_cross_entropy = gradient[2 * blockIdx.x] / points, for_dice = gradient[2 * blockIdx.x + 1];
    float above = 2 * sums.overlap + 1, below = sums.size + 1;
    for (int i = threadIdx.x; i < points; i += blockDim.x) {
        float t = targets[first + i], s = 1 / (1 + expf(-get(logits[first + i])));
        // d dice / ds
        float slope = -2 * t / below + above / (below * below);
        put(out + first + i, for_cross_entropy * (s - t) + for_dice * slope * s * (1 - s));
    }
}
