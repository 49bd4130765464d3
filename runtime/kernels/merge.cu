// Feature rows of the crops to rows of the prompt, as `runtime/merge.py` plans it.
#include <stddef.h>
#include <stdint.h>

// Row i of `out` [gridDim.x, width] is the sum of `weights` [i, taps] times the rows `indices` [i, taps] of `features`
// [feature_rows, width]; index `feature_rows` stands for `newline` alone. Summed in the order of the taps, as on the host;
// a feature that weighs nothing need not be a number.
extern "C" __global__ void lladav_merge(const float* features, const float* newline, const int32_t* indices,
                                        const float* weights, int taps, int feature_rows, int width, float* out) {
    indices += (size_t)blockIdx.x * taps;
    weights += (size_t)blockIdx.x * taps;
    out += (size_t)blockIdx.x * width;
    bool ends_row = indices[0] == feature_rows;
    for (int d = threadIdx.x; d < width; d += blockDim.x) {
        if (ends_row) {
            out[d] = newline[d];
            continue;
        }
        float sum = weights[0] * features[(size_t)indices[0] * width + d];
        for (int tap = 1; tap < taps; ++tap)
            if (weights[tap] != 0) sum += weights[tap] * features[(size_t)indices[tap] * width + d];
        out[d] = sum;
    }
}
