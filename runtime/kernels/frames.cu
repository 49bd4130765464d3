// Frames that are on the GPU already: resampled as Pillow does, cut into crops and normalised. The arithmetic is that of
// `runtime/gpu/resampling.py`, so results are equal to the bit.
#include <stddef.h>
#include <stdint.h>

namespace {

// Binary places of a weight. Sums fit 32 bits: 8 are a pixel's, and 2 left for weights that overshoot.
constexpr int WEIGHT_BITS = 22;
constexpr int HALF = 1 << (WEIGHT_BITS - 1);

struct Colour {
    int red, green, blue;

    __device__ void add(int weight, int r, int g, int b) {
        red += weight * r;
        green += weight * g;
        blue += weight * b;
    }
};

__device__ uint8_t rounded(int sum) {
    int level = sum >> WEIGHT_BITS;
    return level < 0 ? 0 : level > 255 ? 255 : level;
}

}  // namespace

// Rows of a frame, and of a border of `level` around it, to `out` [lines, target, 3]. A thread takes one column of `out`,
// and every gridDim.y * blockDim.y-th line of it. `weights` are [taps, target].
extern "C" __global__ void lladav_resample_rows(const uint8_t* frame, ptrdiff_t row_stride, ptrdiff_t column_stride,
                                                ptrdiff_t channel_stride, int width, int height, int left, int top,
                                                int level, const int32_t* first, const int32_t* weights, int taps,
                                                int target, int lines, uint8_t* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x;
    if (x >= target) return;
    for (int y = blockIdx.y * blockDim.y + threadIdx.y; y < lines; y += gridDim.y * blockDim.y) {
        int row = y - top;
        Colour sum = {HALF, HALF, HALF};
        for (int tap = 0; tap < taps; ++tap) {
            int column = first[x] + tap - left, weight = weights[(size_t)tap * target + x];
            if (row >= 0 && row < height && column >= 0 && column < width) {
                const uint8_t* pixel = frame + row * row_stride + column * column_stride;
                sum.add(weight, pixel[0], pixel[channel_stride], pixel[2 * channel_stride]);
            } else {
                sum.add(weight, level, level, level);
            }
        }
        uint8_t* pixel = out + ((size_t)y * target + x) * 3;
        pixel[0] = rounded(sum.red);
        pixel[1] = rounded(sum.green);
        pixel[2] = rounded(sum.blue);
    }
}

// Columns of `source` [lines, width, 3] to a picture of `width` x `height`, which lies at `left`, `top` of a black canvas
// of `columns` x `rows` crops; and this to `crops` [rows * columns, 3, side, side], each byte as `values` has it. One thread
// per pixel of the canvas. `weights` are [taps, height].
extern "C" __global__ void lladav_lay_crops(const uint8_t* source, const int32_t* first, const int32_t* weights, int taps,
                                            int width, int height, int left, int top, int columns, int rows, int side,
                                            const float* values, float* crops) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= columns * side || y >= rows * side) return;
    int column = x - left, line = y - top;
    Colour sum = {0, 0, 0};
    if (column >= 0 && column < width && line >= 0 && line < height) {
        sum = {HALF, HALF, HALF};
        for (int tap = 0; tap < taps; ++tap) {
            const uint8_t* pixel = source + ((size_t)(first[line] + tap) * width + column) * 3;
            sum.add(weights[(size_t)tap * height + line], pixel[0], pixel[1], pixel[2]);
        }
    }
    size_t crop = y / side * columns + x / side, plane = (size_t)side * side;
    float* pixel = crops + crop * 3 * plane + y % side * side + x % side;
    pixel[0] = values[rounded(sum.red)];
    pixel[plane] = values[rounded(sum.green)];
    pixel[2 * plane] = values[rounded(sum.blue)];
}
