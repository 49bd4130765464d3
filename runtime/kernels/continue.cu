#include "loop.cuh"

// Conditional graphs came with CUDA 12.3, and their loops with 12.4.
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204

// Lets the body of a WHILE node run again while there is an unfinished canvas. One thread.
extern "C" __global__ void lladav_continue(char* canvases, int capacity, int sequences,
                                           cudaGraphConditionalHandle handle) {
    bool unfinished = false;
    for (int i = 0; i < sequences; ++i) unfinished |= !canvas_of(canvases, capacity, i).state->done;
    cudaGraphSetConditional(handle, unfinished);
}

#endif
