// Runs CUDA kernels on the processor, one thread after the other: every thread of a block is a context of its own that gives
// way at barriers. Enough of the language for our kernels; slow; the same result every time.
//
// Checked on the way: a thread that leaves a kernel while others of its block (or warp) wait for it at a barrier ends the
// program, as such code may hang on a GPU.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__ static
#define __forceinline__ inline
#define __shared__ static // one block runs at a time

struct Index {
    unsigned int x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

static inline float __uint_as_float(unsigned int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

static inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }

namespace shim {

struct Barrier {
    int size = 0, arrived = 0;
    long round = 0;
};

struct Thread {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
};

static std::vector<Thread> threads;
static ucontext_t scheduler;
static int current;
static Barrier block_barrier, warp_barriers[32];
static float exchanged[1024];
static void (*body)(void **);
static void **body_args;

static void give_way() {
    int self = current;
    swapcontext(&threads[self].context, &scheduler);
}

static void wait(Barrier &barrier) {
    long round = barrier.round;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        barrier.round++;
        return;
    }
    while (barrier.round == round)
        give_way();
}

static void enter() {
    body(body_args);
    threads[current].done = true;
    give_way();
}

// One round lets every thread run to its next barrier. `backwards` turns the order of threads round: a result that depends
// on it misses a barrier.
static bool run_round(int count, bool backwards) {
    bool alive = false;
    for (int i = 0; i < count; i++) {
        current = backwards ? count - 1 - i : i;
        if (threads[current].done)
            continue;
        alive = true;
        threadIdx.x = current;
        swapcontext(&scheduler, &threads[current].context);
    }
    return alive;
}

static void check_barrier(const Barrier &barrier, int first) {
    for (int i = first; i < first + barrier.size; i++)
        if (barrier.arrived > 0 && threads[i].done) {
            std::fprintf(stderr, "a thread left the kernel while others wait for it at a barrier\n");
            std::abort();
        }
}

static void run_block(int count, bool backwards) {
    if ((int)threads.size() < count)
        threads.resize(count);
    block_barrier = Barrier{count, 0, 0};
    for (int warp = 0; warp < count / 32; warp++)
        warp_barriers[warp] = Barrier{32, 0, 0};
    for (int i = 0; i < count; i++) {
        Thread &thread = threads[i];
        thread.stack.resize(64 * 1024);
        thread.done = false;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.data();
        thread.context.uc_stack.ss_size = thread.stack.size();
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, enter, 0);
    }
    long rounds = 0;
    while (run_round(count, backwards)) {
        check_barrier(block_barrier, 0);
        for (int warp = 0; warp < count / 32; warp++)
            check_barrier(warp_barriers[warp], 32 * warp);
        if (++rounds > 10000000) {
            std::fprintf(stderr, "a kernel does not end\n");
            std::abort();
        }
    }
}

template <typename... A, size_t... I>
static void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*(A *)args[I]...);
}

// p pointer, i int, f float: how the argument is to be passed.
template <typename A> struct Letter;
template <typename P> struct Letter<P *> { static const char value = 'p'; };
template <> struct Letter<int> { static const char value = 'i'; };
template <> struct Letter<float> { static const char value = 'f'; };

template <typename... A> static const char *signature(void (*)(A...)) {
    static const char letters[] = {Letter<A>::value..., 0};
    return letters;
}

template <typename... A> static void call_any(void (*kernel)(A...), void **args) {
    call(kernel, args, std::index_sequence_for<A...>());
}

} // namespace shim

static inline void __syncthreads() { shim::wait(shim::block_barrier); }

static inline float __shfl_xor_sync(unsigned int, float x, int mask) {
    int self = threadIdx.x;
    shim::Barrier &barrier = shim::warp_barriers[self / 32];
    shim::exchanged[self] = x;
    shim::wait(barrier);
    float theirs = shim::exchanged[self ^ mask];
    shim::wait(barrier);
    return theirs;
}

// One bit for each thread of the warp.
static inline unsigned int __ballot_sync(unsigned int, bool vote) {
    int self = threadIdx.x, first = self / 32 * 32;
    shim::Barrier &barrier = shim::warp_barriers[self / 32];
    shim::exchanged[self] = vote;
    shim::wait(barrier);
    unsigned int votes = 0;
    for (int lane = 0; lane < 32; lane++)
        votes |= (unsigned int)(shim::exchanged[first + lane] != 0) << lane;
    shim::wait(barrier);
    return votes;
}

static inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }

struct Kernel {
    const char *name, *signature;
    void (*run)(void **);
};

#define KERNEL(name) {#name, shim::signature(name), [](void **args) { shim::call_any(name, args); }}

namespace shim {

// 0, or 1 for an unknown kernel, or 2 for arguments of other types.
static int launch(const Kernel *kernels, int count, const char *name, const char *letters, const int *grid, int threads_per_block,
                  void **args, int backwards) {
    for (int i = 0; i < count; i++) {
        if (std::strcmp(kernels[i].name, name) != 0)
            continue;
        if (std::strcmp(kernels[i].signature, letters) != 0)
            return 2;
        body = kernels[i].run;
        body_args = args;
        blockDim = {(unsigned)threads_per_block, 1, 1};
        gridDim = {(unsigned)grid[0], (unsigned)grid[1], 1};
        for (int block = 0; block < grid[0] * grid[1]; block++) {
            int at = backwards ? grid[0] * grid[1] - 1 - block : block;
            blockIdx = {(unsigned)(at % grid[0]), (unsigned)(at / grid[0]), 0};
            run_block(threads_per_block, backwards);
        }
        return 0;
    }
    return 1;
}

} // namespace shim
