// Values of maps between their pixels, zero outside: multi-scale deformable attention, and samples at points. The gradient
// of a map goes to the pixels around every sample. A block owns SPAN pixels and goes over all samples in order, so that no
// atomics are needed.

#define SPAN 256 // as many as threads
#define DIMS 32  // a warp
#define GROUP 8  // loads on their way at once

// The four pixels around a point: their indices in the map, −1 outside of it, and their weights.
struct Corners {
    int at[4];
    float weight[4];
    float y, x; // position between the pixels, 0…1
};

// Pixel centres lie at whole numbers.
__device__ __forceinline__ Corners corners(float x, float y, int height, int width) {
    float left = floorf(x), top = floorf(y);
    Corners c;
    c.x = x - left;
    c.y = y - top;
    // Far points stay outside when they become integers; what is not a number stays so in the weights.
    int column = left == left ? (int)fminf(fmaxf(left, -2.f), (float)width) : 0;
    int row = top == top ? (int)fminf(fmaxf(top, -2.f), (float)height) : 0;
    for (int i = 0; i < 4; i++) {
        int r = row + i / 2, k = column + i % 2;
        c.at[i] = r >= 0 && r < height && k >= 0 && k < width ? r * width + k : -1;
        c.weight[i] = (i / 2 ? c.y : 1 - c.y) * (i % 2 ? c.x : 1 - c.x);
    }
    return c;
}

// Around (x, y) of the unit square, whose corners are those of the map's outer pixels, moved by pixels.
__device__ __forceinline__ Corners corners_of(const float *unit, float x, float y, int height, int width) {
    return corners(unit[0] * width - 0.5f + x, unit[1] * height - 0.5f + y, height, width);
}

// Samples of a block's threads that touch its pixels.
struct Hits {
    int sample[SPAN];
    int at[4][SPAN]; // among the pixels of the block, or outside of 0…SPAN − 1
    float weight[4][SPAN];
};

// Lists the samples that touch the pixels from `start` on, in the order of threads. All threads must call it; those without
// a sample give one with all corners outside. Returns how many there are.
__device__ __forceinline__ int list_hits(Hits &hits, const Corners &c, int start, int sample, float factor) {
    __shared__ unsigned int votes[SPAN / 32];
    int warp = threadIdx.x / 32, place = 0, count = 0;
    bool hit = false;
    for (int i = 0; i < 4; i++)
        hit = hit || (c.at[i] >= start && c.at[i] < start + SPAN);
    unsigned int own = __ballot_sync(0xffffffffu, hit);
    __syncthreads(); // the hits of an earlier call were read
    votes[warp] = own;
    __syncthreads();
    for (int i = 0; i < SPAN / 32; i++) {
        place += i < warp ? __popc(votes[i]) : 0;
        count += __popc(votes[i]);
    }
    if (hit) {
        place += __popc(own & ((1u << (threadIdx.x % 32)) - 1));
        hits.sample[place] = sample;
        for (int i = 0; i < 4; i++) {
            hits.at[i][place] = c.at[i] - start;
            hits.weight[i][place] = c.weight[i] * factor;
        }
    }
    __syncthreads();
    return count;
}

__device__ __forceinline__ Corners nowhere() {
    Corners c = {{-1, -1, -1, -1}, {0, 0, 0, 0}, 0, 0};
    return c;
}

// Multi-scale deformable attention: value (images, tokens, heads, dim), offsets (images, queries, heads, levels, points, 2),
// weights (images, queries, heads, levels, points), references (queries, 2). `shapes` holds height, width and first token
// of every level. A thread for each value of out (images, queries, heads, dim).
extern "C" __global__ void deformable(const T *value, const float *offsets, const float *weights, const float *references,
                                      const unsigned int *shapes, T *out, int count, int tokens, int queries, int heads, int dim,
                                      int levels, int points) {
    int i = index();
    if (i >= count)
        return;
    int d = i % dim, head = i / dim % heads, row = i / dim / heads;
    size_t first = (size_t)(i / dim) * levels * points;
    float sum = 0;
    for (int s = 0; s < levels * points; s++) {
        const unsigned int *shape = shapes + 3 * (s / points);
        const float *offset = offsets + 2 * (first + s);
        Corners c = corners_of(references + 2 * (row % queries), offset[0], offset[1], shape[0], shape[1]);
        size_t level = (size_t)(row / queries) * tokens + shape[2];
        for (int k = 0; k < 4; k++)
            if (c.at[k] >= 0)
                sum += c.weight[k] * weights[first + s] * get(value[((level + c.at[k]) * heads + head) * dim + d]);
    }
    put(out + i, sum);
}

// Its gradients for offsets and weights, a warp for each of `count` samples.
extern "C" __global__ void deformable_slopes(const T *value, const float *offsets, const float *weights,
                                             const float *references, const unsigned int *shapes, const T *gradient,
                                             float *for_offsets, float *for_weights, int count, int tokens, int queries,
                                             int heads, int dim, int levels, int points) {
    int sample = index() / 32, lane = threadIdx.x % 32;
    if (sample >= count)
        return;
    int owner = sample / (levels * points); // a head of a query of an image
    int head = owner % heads, row = owner / heads;
    const unsigned int *shape = shapes + 3 * (sample / points % levels);
    const float *offset = offsets + 2 * (size_t)sample;
    Corners c = corners_of(references + 2 * (row % queries), offset[0], offset[1], shape[0], shape[1]);
    size_t level = (size_t)(row / queries) * tokens + shape[2];
    float products[4];
    for (int k = 0; k < 4; k++) {
        float sum = 0;
        if (c.at[k] >= 0)
            for (int d = lane; d < dim; d += 32)
                sum += get(gradient[(size_t)owner * dim + d]) * get(value[((level + c.at[k]) * heads + head) * dim + d]);
        products[k] = warp_sum(sum);
    }
    if (lane != 0)
        return;
    float blend = 0;
    for (int k = 0; k < 4; k++)
        blend += products[k] * c.weight[k];
    for_weights[sample] = blend;
    float along_x = (1 - c.y) * (products[1] - products[0]) + c.y * (products[3] - products[2]);
    float along_y = (1 - c.x) * (products[2] - products[0]) + c.x * (products[3] - products[1]);
    for_offsets[2 * (size_t)sample] = weights[sample] * along_x;
    for_offsets[2 * (size_t)sample + 1] = weights[sample] * along_y;
}

// Its gradient for the values of one level. A block for SPAN tokens and DIMS dimensions (both in grid.x, `spans` of tokens)
// of a head of an image (grid.y). Each warp owns every eighth token, and a lane one dimension of them.
extern "C" __global__ void deformable_value_gradient(const float *offsets, const float *weights, const float *references,
                                                     const unsigned int *shapes, const T *gradient, T *out, int level, int spans,
                                                     int tokens, int queries, int heads, int dim, int levels, int points) {
    __shared__ Hits hits;
    __shared__ float sums[SPAN][DIMS];
    int image = blockIdx.y / heads, head = blockIdx.y % heads;
    int start = blockIdx.x % spans * SPAN, d = blockIdx.x / spans * DIMS + threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned int *shape = shapes + 3 * level;
    int height = shape[0], width = shape[1];
    for (int i = warp; i < SPAN; i += SPAN / 32)
        sums[i][threadIdx.x % 32] = 0;
    for (int first = 0; first < queries * points; first += SPAN) {
        int sample = first + threadIdx.x, query = sample / points;
        Corners c = nowhere();
        float weight = 0;
        if (sample < queries * points) {
            size_t at = ((((size_t)image * queries + query) * heads + head) * levels + level) * points + sample % points;
            c = corners_of(references + 2 * query, offsets[2 * at], offsets[2 * at + 1], height, width);
            weight = weights[at];
        }
        int count = list_hits(hits, c, start, query, weight);
        for (int i = 0; i < count; i += GROUP) {
            float g[GROUP];
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                size_t row = ((size_t)image * queries + hits.sample[min(i + j, count - 1)]) * heads + head;
                g[j] = d < dim ? get(gradient[row * dim + d]) : 0;
            }
#pragma unroll
            for (int j = 0; j < GROUP; j++)
                for (int k = 0; i + j < count && k < 4; k++) {
                    int token = hits.at[k][i + j];
                    if (token >= 0 && token < SPAN && token % (SPAN / 32) == warp)
                        sums[token][threadIdx.x % 32] += hits.weight[k][i + j] * g[j];
                }
        }
    }
    size_t first = (size_t)image * tokens + shape[2] + start;
    for (int i = warp; i < SPAN; i += SPAN / 32)
        if (start + i < height * width && d < dim)
            put(out + ((first + i) * heads + head) * dim + d, sums[i][threadIdx.x % 32]);
}

// Samples of maps (maps, height, width) at points (x, y) of the unit square, `per_map` for each map; `own` is 0 when the
// maps share them. A thread for each of `count` samples.
extern "C" __global__ void sample_points(const T *maps, const float *points, T *out, int count, int per_map, int own, int height,
                                         int width) {
    int i = index();
    if (i >= count)
        return;
    const T *map = maps + (size_t)(i / per_map) * height * width;
    Corners c = corners_of(points + 2 * (size_t)(own ? i : i % per_map), 0, 0, height, width);
    float sum = 0;
    for (int k = 0; k < 4; k++)
        if (c.at[k] >= 0)
            sum += c.weight[k] * get(map[c.at[k]]);
    put(out + i, sum);
}

// Its gradient. A block for SPAN pixels (grid.x) of a map (grid.y); each thread owns a pixel.
extern "C" __global__ void sample_points_gradient(const float *points, const T *gradient, T *out, int per_map, int own,
                                                  int height, int width) {
    __shared__ Hits hits;
    int start = blockIdx.x * SPAN, map = blockIdx.y;
    float sum = 0;
    for (int first = 0; first < per_map; first += SPAN) {
        int point = first + threadIdx.x;
        Corners c = nowhere();
        float g = 0;
        if (point < per_map) {
            size_t at = (size_t)map * per_map + point;
            c = corners_of(points + 2 * (own ? at : point), 0, 0, height, width);
            g = get(gradient[at]);
        }
        int count = list_hits(hits, c, start, point, g);
        for (int i = 0; i < count; i++)
            for (int k = 0; k < 4; k++)
                if (hits.at[k][i] == (int)threadIdx.x)
                    sum += hits.weight[k][i];
    }
    int pixel = start + threadIdx.x;
    if (pixel < height * width)
        put(out + (size_t)map * height * width + pixel, sum);
}
