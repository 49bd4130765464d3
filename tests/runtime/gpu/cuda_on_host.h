// Enough of CUDA C++ to run kernels on the host, thread by thread, so that a GPU is not needed to test them.
//
// A block's threads are fibers of one thread of the host. Each runs until its next barrier; when all have come there,
// the next round begins. The order of the threads changes with every round and every block, which shows most forgotten
// barriers. Blocks run one after the other.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __launch_bounds__(threads)
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static

using std::max;
using std::min;

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace host {

constexpr size_t STACK = 64 << 10;

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool finished;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current;
inline int counting, counted;
inline void (*body)(void**);
inline void** arguments;

inline void begin() {
    body(arguments);
    fibers[current].finished = true;
}

// Returns whether every thread of the block came to the same barriers.
inline bool run_block() {
    unsigned count = blockDim.x * blockDim.y * blockDim.z;
    for (unsigned i = 0; i < count; ++i) {
        Fiber& fiber = fibers[i];
        fiber.finished = false;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, begin, 0);
    }
    static bool first_order;
    first_order = !first_order;
    for (bool forward = first_order;; forward = !forward) {
        unsigned finished = 0;
        counting = 0;
        for (unsigned i = 0; i < count; ++i) {
            current = forward ? i : count - 1 - i;
            threadIdx = {current % blockDim.x, current / blockDim.x % blockDim.y, current / blockDim.x / blockDim.y};
            swapcontext(&scheduler, &fibers[current].context);
            finished += fibers[current].finished;
        }
        counted = counting;
        if (finished) return finished == count;
    }
}

inline int launch(void (*kernel)(void**), void** values, const unsigned* grid, const unsigned* block) {
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    body = kernel;
    arguments = values;
    size_t threads = (size_t)block[0] * block[1] * block[2];
    if (fibers.size() < threads) fibers.resize(threads);
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x)
                if (!run_block()) return 1;
    return 0;
}

template <auto kernel, class... Parameters, size_t... Numbers>
void call(void (*)(Parameters...), std::index_sequence<Numbers...>, void** values) {
    kernel(*(Parameters*)values[Numbers]...);
}

template <auto kernel, class... Parameters>
void unpack(void (*type)(Parameters...), void** values) {
    call<kernel>(type, std::index_sequence_for<Parameters...>(), values);
}

template <class... Parameters>
int sizes(void (*)(Parameters...), int* out) {
    int all[] = {(int)sizeof(Parameters)..., 0};
    memcpy(out, all, sizeof(all));
    return sizeof...(Parameters);
}

}  // namespace host

inline void __syncthreads() {
    unsigned self = host::current;
    swapcontext(&host::fibers[self].context, &host::scheduler);
}

inline int __syncthreads_count(int predicate) {
    host::counting += predicate != 0;
    __syncthreads();
    return host::counted;
}

// A conditional handle is the address of what it holds.
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 4
typedef unsigned long long cudaGraphConditionalHandle;
inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) { *(unsigned*)handle = value; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }

inline int atomicMin(int* address, int value) {
    int old = *address;
    *address = min(old, value);
    return old;
}

// What a driver does: launches a kernel with pointers to the values of its parameters, whose sizes it knows.
#define HOST_KERNEL(kernel)                                                                        \
    extern "C" int launch_##kernel(void** values, const unsigned* grid, const unsigned* block) {   \
        return host::launch([](void** v) { host::unpack<kernel>(kernel, v); }, values, grid, block); \
    }                                                                                              \
    extern "C" int sizes_of_##kernel(int* out) { return host::sizes(kernel, out); }
