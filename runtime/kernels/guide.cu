#include "loop.cuh"

// Classifier-free guidance `un + (scale + 1) (cond - un)`, written into `conditional`, both of `count` logits.
extern "C" __global__ void lladav_guide(const Rules* rules, float* conditional, const float* unconditional,
                                        size_t count) {
    float scale = rules->guidance;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (size_t)gridDim.x * blockDim.x)
        conditional[i] = (conditional[i] - unconditional[i]) * scale + unconditional[i];
}
