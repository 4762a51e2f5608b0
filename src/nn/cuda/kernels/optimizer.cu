// Updates of parameters in place. Parameters, moments and gradients are f32.

// Σ x² of blocks: shares[start + blockIdx.x].
extern "C" __global__ void square_shares(const float *xs, float *shares, int start, int count) {
    float sum = 0;
    for (int i = index(); i < count; i += gridDim.x * blockDim.x)
        sum += xs[i] * xs[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        shares[start + blockIdx.x] = sum;
}

// norm[0] = root of the sum of shares, norm[1] = the factor that clips it to `limit`: min(1, limit / (norm + 1e-6)), or 1
// when the limit is 0. One block.
extern "C" __global__ void clip(const float *shares, float *norm, int count, float limit) {
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x)
        sum += shares[i];
    sum = sqrtf(block_sum(sum));
    if (threadIdx.x == 0) {
        norm[0] = sum;
        norm[1] = limit > 0 ? fminf(1.f, limit / (sum + 1e-6f)) : 1.f;
    }
}

// One AdamW step; `moments` holds the first and then the second one.
extern "C" __global__ void adamw(float *parameter, float *moments, const float *gradient, const float *norm, int count,
                                 float keep, float beta1, float one_minus_beta1, float beta2, float one_minus_beta2,
                                 float root_correction2, float epsilon, float step_size) {
    int i = index();
    if (i >= count)
        return;
    float g = gradient[i] * norm[1];
    float m = moments[i] * beta1 + g * one_minus_beta1;
    float v = moments[count + i] * beta2 + g * g * one_minus_beta2;
    moments[i] = m;
    moments[count + i] = v;
    parameter[i] = parameter[i] * keep - step_size * m / (sqrtf(v) / root_correction2 + epsilon);
}

// average ← decay · average + (1 − decay) · latest
extern "C" __global__ void running_average(float *average, const float *latest, int count, float decay, float one_minus_decay) {
    int i = index();
    if (i < count)
        average[i] = average[i] * decay + latest[i] * one_minus_decay;
}
