// Random numbers without a state: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011).
#pragma once

#include <stdint.h>

struct Words {
    uint32_t at[4];
};

// What a draw is for, so that no two purposes see the same numbers.
enum Purpose : uint32_t { NOISE, RANK };

__device__ inline Words philox(Words counter, uint32_t key0, uint32_t key1) {
    for (int round = 0; round < 10; ++round) {
        uint64_t left = (uint64_t)0xD2511F53u * counter.at[0], right = (uint64_t)0xCD9E8D57u * counter.at[2];
        counter = {{(uint32_t)(right >> 32) ^ counter.at[1] ^ key0, (uint32_t)right,
                    (uint32_t)(left >> 32) ^ counter.at[3] ^ key1, (uint32_t)left}};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

__device__ inline Words draw(uint64_t seed, uint32_t number, int position, int step, Purpose purpose) {
    return philox({{number, (uint32_t)position, (uint32_t)step, purpose}}, (uint32_t)seed, (uint32_t)(seed >> 32));
}

// Uniform in [0, 1), with the 53 bits that a double holds.
__device__ inline double uniform(Words words) {
    return ((words.at[0] >> 5) * 67108864.0 + (words.at[1] >> 6)) / 9007199254740992.0;
}

// -log(-log(u)). The uniform number is taken as 1 - v, because large results come from u next to 1, where a float is
// coarse and one next to 0 is not.
__device__ inline float gumbel(uint32_t word) {
    float v = fminf(((float)word + 0.5f) * 0x1p-32f, 0x1.fffffep-1f);
    return -logf(-log1pf(-v));
}
