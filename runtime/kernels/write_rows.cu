#include "loop.cuh"

namespace {

enum Stored : int32_t { FLOAT32, FLOAT16, BFLOAT16 };

// Finite ones only, which are all that an export writes.
__device__ float half_to_float(uint16_t bits) {
    union {
        uint32_t word;
        float value;
    } moved = {(uint32_t)(bits & 0x7fff) << 13};
    float magnitude = moved.value * 0x1p112f;  // the exponents' biases differ by 112
    return bits & 0x8000 ? -magnitude : magnitude;
}

__device__ float bfloat_to_float(uint16_t bits) {
    union {
        uint32_t word;
        float value;
    } moved = {(uint32_t)bits << 16};
    return moved.value;
}

}  // namespace

// Embeddings of what the last step decided, from `table` [vocabulary, width] into `target`: a sequence's canvas begins
// every `stride` floats. gridDim.y are the canvases; gridDim.z is 2 where each has a second sequence behind all the
// first ones, for guidance.
extern "C" __global__ void lladav_write_rows(char* canvases, int capacity, const void* table, int stored, int width,
                                             float* target, size_t stride) {
    Canvas canvas = canvas_of(canvases, capacity, blockIdx.y);
    float* rows = target + (blockIdx.y + (size_t)blockIdx.z * gridDim.y) * stride;
    int count = canvas.state->chosen + canvas.state->forced;
    for (int i = blockIdx.x; i < count; i += gridDim.x) {
        int position = canvas.decided[i];
        size_t source = (size_t)canvas.ids[position] * width;
        for (int d = threadIdx.x; d < width; d += blockDim.x) {
            float value;
            if (stored == FLOAT32)
                value = ((const float*)table)[source + d];
            else if (stored == FLOAT16)
                value = half_to_float(((const uint16_t*)table)[source + d]);
            else
                value = bfloat_to_float(((const uint16_t*)table)[source + d]);
            rows[(size_t)position * width + d] = value;
        }
    }
}
