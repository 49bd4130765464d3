// What tests ask of the kernels' parts.
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
