// What all kernels share. The sources are compiled at run time, once for each type T that tensors are stored in; arithmetic
// is always f32. They use nothing but the language, so the tests can compile them for the processor as well. No kernel
// uses atomics: results have the same bits in every run.

#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

// The upper half of a float.
struct bf16 {
    unsigned short bits;
};

__device__ __forceinline__ float get(float x) { return x; }

__device__ __forceinline__ float get(bf16 x) { return __uint_as_float((unsigned int)x.bits << 16); }

__device__ __forceinline__ void put(float *to, float x) { *to = x; }

// Rounds to the nearest, ties to even; NaN stays NaN.
__device__ __forceinline__ void put(bf16 *to, float x) {
    unsigned int bits = __float_as_uint(x);
    to->bits = x != x ? 0x7fc0 : (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Index of this thread in a grid that has at least one thread for each value.
__device__ __forceinline__ int index() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Sum over the 32 threads of a warp; every one gets it.
__device__ __forceinline__ float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, offset));
    return x;
}

// Sum over a block of at most 1024 threads, a multiple of 32; every thread gets it. All threads must call it.
__device__ __forceinline__ float block_sum(float x) {
    __shared__ float sums[32];
    int warp = threadIdx.x / 32, warps = blockDim.x / 32;
    x = warp_sum(x);
    __syncthreads(); // the sums of an earlier call were read
    if (threadIdx.x % 32 == 0)
        sums[warp] = x;
    __syncthreads();
    x = 0;
    for (int i = 0; i < warps; i++)
        x += sums[i];
    return x;
}
