#include "loop.cuh"

// Conditional graphs came with CUDA 12.3, and their loops with 12.4.
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204

// Lets the body of a WHILE node run again while there is an unfinished canvas, but not into a step that is a multiple of
// `interval`, which is a refresh (0: none is), or of `slots`, where the log begins anew. One thread.
extern "C" __global__ void lladav_continue(char* canvases, int capacity, int sequences, int interval, int slots,
                                           cudaGraphConditionalHandle handle) {
    bool more = false;
    for (int i = 0; i < sequences; ++i) {
        const State* state = canvas_of(canvases, capacity, i).state;
        bool ends = (interval && state->step % interval == 0) || state->step % slots == 0;
        more |= !state->done && !ends;
    }
    cudaGraphSetConditional(handle, more);
}

#endif
