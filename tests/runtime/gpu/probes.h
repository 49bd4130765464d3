// What tests ask of the kernels' parts, and of the emulation.
#pragma once

extern "C" void probe_philox(const uint32_t* counter, const uint32_t* key, uint32_t* out) {
    Words words = philox({{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    memcpy(out, words.at, sizeof(words.at));
}

extern "C" int probe_sizes(int* out) {
    int sizes[] = {sizeof(Rules), sizeof(State), sizeof(Decision), sizeof(Restriction)};
    memcpy(out, sizes, sizeof(sizes));
    return sizeof(sizes) / sizeof(int);
}

extern "C" size_t probe_canvas(int capacity) {
    return (size_t)canvas_of(nullptr, capacity, 1).state;
}

// A kernel with a fault: its first thread never comes to the barrier.
extern "C" __global__ void probe_lost_thread(int* out) {
    if (threadIdx.x == 0) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
HOST_KERNEL(probe_lost_thread)

// In which order the threads of a block run.
extern "C" __global__ void probe_order(int* next, int* out) { out[threadIdx.x] = (*next)++; }
HOST_KERNEL(probe_order)
