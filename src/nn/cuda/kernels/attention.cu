// Scaled dot-product attention. A block of 256 threads works on TILE rows of one head and goes over all columns, TILE at a
// time, so the score matrix never exists as a whole. Each thread holds 4 rows × 4 columns of a tile: rows 4·(thread / 16) + i,
// columns thread % 16 + 16·j. CHUNKS is defined by the program: TILE · CHUNKS ≥ dim.
//
// Source: Dao et al., "FlashAttention", algorithms 1 and 4; the backward pass runs once for each of queries, keys and
// values, which needs no atomics.

#define TILE 64
#define STEP 16 // values of the summed dimension in shared memory
#define THREADS 256

typedef float Tile[TILE][TILE + 1];

// out = a·bᵀ of `a_rows` and `b_rows` (at most TILE) rows of `dim` values; missing rows count as zeros.
__device__ __forceinline__ void products(const T *a, const T *b, int a_rows, int b_rows, int dim, float out[4][4]) {
    __shared__ float as[STEP][TILE + 1], bs[STEP][TILE + 1];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            out[i][j] = 0;
#pragma unroll 1
    for (int start = 0; start < dim; start += STEP) {
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < TILE * STEP; i += THREADS) {
            int row = i / STEP, d = i % STEP;
            size_t at = (size_t)row * dim + start + d;
            as[d][row] = row < a_rows && start + d < dim ? get(a[at]) : 0;
            bs[d][row] = row < b_rows && start + d < dim ? get(b[at]) : 0;
        }
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < STEP; d++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    out[i][j] += as[d][4 * ty + i] * bs[d][tx + 16 * j];
    }
}

// sums += weights·values, `rows` (at most TILE) rows of `dim` values; missing rows count as zeros. Starts with a barrier.
__device__ __forceinline__ void accumulate(const Tile weights, const T *values, int rows, int dim, float sums[CHUNKS][4][4]) {
    __shared__ float vs[STEP][TILE];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll 1
        for (int start = 0; start < TILE; start += STEP) {
            __syncthreads();
#pragma unroll 1
            for (int i = threadIdx.x; i < STEP * TILE; i += THREADS) {
                int row = start + i / TILE, column = chunk * TILE + i % TILE;
                vs[i / TILE][i % TILE] = row < rows && column < dim ? get(values[(size_t)row * dim + column]) : 0;
            }
            __syncthreads();
#pragma unroll 4
            for (int k = 0; k < STEP; k++)
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        sums[chunk][i][j] += weights[4 * ty + i][start + k] * vs[k][tx + 16 * j];
        }
}

// Writes `rows` rows of sums, each multiplied by its factor.
__device__ __forceinline__ void store(const float sums[CHUNKS][4][4], const float *factors, T *out, int rows, int dim) {
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int row = 4 * ty + i, column = chunk * TILE + tx + 16 * j;
                if (row < rows && column < dim)
                    put(out + (size_t)row * dim + column, sums[chunk][i][j] * factors[row]);
            }
}

// What is added to a score: bias (images, queries, keys), which the `sharing` heads of an image share; nothing for 0.
__device__ __forceinline__ float bias_of(const float *bias, int sharing, int query, int key, int queries, int keys) {
    return sharing ? bias[((size_t)(blockIdx.y / sharing) * queries + query) * keys + key] : 0;
}

// q (heads, queries, dim), k and v (heads, keys, dim) → out (heads, queries, dim), and log Σ exp of every score row. A block
// for each tile of queries (grid.x) and head (grid.y).
extern "C" __global__ void attention(const T *q, const T *k, const T *v, const float *bias, T *out, float *log_sums,
                                     int queries, int keys, int dim, float scale, int causal, int sharing) {
    __shared__ Tile weights;
    __shared__ float factors[TILE];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, start = blockIdx.x * TILE;
    size_t first_row = (size_t)blockIdx.y * queries + start, first_key = (size_t)blockIdx.y * keys;
    // The four threads of a row keep the same two numbers.
    int row = threadIdx.x / 4, part = threadIdx.x % 4;
    float largest = -INFINITY, sum = 0, sums[CHUNKS][4][4] = {};
#pragma unroll 1
    for (int first = 0; first < keys && !(causal && first > start + TILE - 1); first += TILE) {
        float scores[4][4];
        products(q + first_row * dim, k + (first_key + first) * dim, queries - start, keys - first, dim, scores);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int query = start + 4 * ty + i, key = first + tx + 16 * j;
                // Rows without a query are not stored; they see what the last query sees.
                bool hidden = key >= keys || (causal && key > query);
                float score = hidden ? -INFINITY : scores[i][j] * scale;
                if (!hidden)
                    score += bias_of(bias, sharing, min(query, queries - 1), key, queries, keys);
                weights[4 * ty + i][tx + 16 * j] = score;
            }
        __syncthreads();
        float before = largest, added = 0;
        for (int i = part; i < TILE; i += 4)
            largest = fmaxf(largest, weights[row][i]);
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
        for (int i = part; i < TILE; i += 4) {
            // Every query sees key 0, and biases are finite, so the largest score is finite.
            float p = expf(weights[row][i] - largest);
            weights[row][i] = p;
            added += p;
        }
        added += __shfl_xor_sync(0xffffffffu, added, 1);
        added += __shfl_xor_sync(0xffffffffu, added, 2);
        float factor = expf(before - largest);
        sum = sum * factor + added;
        if (part == 0)
            factors[row] = factor;
        __syncthreads();
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    sums[chunk][i][j] *= factors[4 * ty + i];
        accumulate(weights, v + (first_key + first) * dim, keys - first, dim, sums);
    }
    __syncthreads();
    if (part == 0) {
        factors[row] = 1 / sum;
        if (start + row < queries)
            log_sums[first_row + row] = largest + logf(sum);
    }
    __syncthreads();
    store(sums, factors, out + first_row * dim, queries - start, dim);
}

// Σ out·gradient of every row of `dim` values, a warp for each row.
extern "C" __global__ void attention_means(const T *out, const T *gradient, float *means, int rows, int dim) {
    int row = index() / 32, lane = threadIdx.x % 32;
    if (row >= rows)
        return;
    float sum = 0;
    for (int i = lane; i < dim; i += 32)
        sum += get(out[(size_t)row * dim + i]) * get(gradient[(size_t)row * dim + i]);
    sum = warp_sum(sum);
    if (lane == 0)
        means[row] = sum;
}

enum Wanted { QUERIES, KEYS, VALUES };

// One gradient, `out` (heads, rows, dim). Scores (or their transpose) of a tile are a·bᵀ, slopes of the probabilities are
// a_slope·b_slopeᵀ, and what comes out is weights·factor:
//   queries: a = q, b = k, a_slope = gradient, b_slope = v, factor = k; rows are queries
//   keys:    a = k, b = q, a_slope = v, b_slope = gradient, factor = q; rows are keys
//   values:  a = k, b = q, factor = gradient; rows are keys
extern "C" __global__ void attention_gradient(const T *a, const T *b, const T *a_slope, const T *b_slope, const T *factor,
                                              const float *bias, const float *log_sums, const float *means, T *out,
                                              int rows, int columns, int dim, float scale, int causal, int sharing,
                                              int wanted) {
    __shared__ Tile weights;
    __shared__ float factors[TILE];
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16, start = blockIdx.x * TILE;
    size_t first_row = (size_t)blockIdx.y * rows + start, first_column = (size_t)blockIdx.y * columns;
    size_t first_query = (size_t)blockIdx.y * (wanted == QUERIES ? rows : columns);
    float sums[CHUNKS][4][4] = {};
#pragma unroll 1
    for (int first = 0; first < columns; first += TILE) {
        if (causal && (wanted == QUERIES ? first > start + TILE - 1 : first + TILE - 1 < start))
            continue; // all of it is hidden
        float scores[4][4], slopes[4][4] = {};
        size_t at = (first_column + first) * dim;
        products(a + first_row * dim, b + at, rows - start, columns - first, dim, scores);
        if (wanted != VALUES)
            products(a_slope + first_row * dim, b_slope + at, rows - start, columns - first, dim, slopes);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int row = start + 4 * ty + i, column = first + tx + 16 * j;
                int query = wanted == QUERIES ? row : column, key = wanted == QUERIES ? column : row;
                float weight = 0;
                if (row < rows && column < columns && !(causal && key > query)) {
                    int queries = wanted == QUERIES ? rows : columns, keys = wanted == QUERIES ? columns : rows;
                    float score = scores[i][j] * scale + bias_of(bias, sharing, query, key, queries, keys);
                    weight = expf(score - log_sums[first_query + query]);
                    if (wanted != VALUES)
                        weight *= (slopes[i][j] - means[first_query + query]) * scale;
                }
                weights[4 * ty + i][tx + 16 * j] = weight;
            }
        accumulate(weights, factor + at, columns - first, dim, sums);
    }
    if (threadIdx.x < TILE)
        factors[threadIdx.x] = 1;
    __syncthreads();
    store(sums, factors, out + first_row * dim, rows - start, dim);
}
