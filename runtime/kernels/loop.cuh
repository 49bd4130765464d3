// What the kernels of the denoising loop share: records in device memory, as `runtime/gpu/loop_state.py` lays them out.
//
// Everything that differs from one answer to the next is in these records and not among a kernel's parameters, because
// a captured graph keeps its parameters.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum Selector : int32_t { FIXED, THRESHOLD, FACTOR, FRECHET, ENTROPY };
enum Mode : int32_t { FREE, ONLY, ALL_BUT };

// What may stand in one row: a span of the answer's ids.
struct Restriction {
    int32_t mode, begin, end;
};

// How one answer is made.
struct Rules {
    const int32_t* ids;               // suppressed, then mask aliases, then every stop behind its length, then anything
    const Restriction* restrictions;  // [sequences, capacity], or null
    uint64_t seed;
    double parameter;                 // of the selector
    int32_t length, block_length, steps_per_block;
    int32_t selector, accept_last, random_ranks;
    int32_t every_row;                // the host chose the rows: evaluate all of them
    int32_t suppressed, aliases, stops;  // how many
    float temperature, guidance;      // `guidance` is what the difference is multiplied by
};

// How far one canvas is, and what its last step did. `done` makes every kernel pass it over.
struct State {
    int32_t step, block, block_step, block_masks;
    int32_t stop;  // position, or -1
    int32_t masks_left, undecided, done;
    int32_t chosen, forced, invalid;
    int32_t unused[5];
};

// One row that a step decided.
struct Decision {
    int32_t position, token;
    double confidence;
};

// One canvas: a state, then arrays for `capacity` rows. A row that picked a mask stays masked, and the last step before
// a deadline decides it again, so that twice as many may be decided.
struct Canvas {
    State* state;
    double *confidences, *entropies;
    int32_t *tokens, *ids, *decided;
    uint8_t* masked;
};

__device__ inline Canvas canvas_of(char* canvases, int capacity, int sequence) {
    size_t rows = (33 * (size_t)capacity + 15) / 16 * 16;
    char* base = canvases + sequence * (sizeof(State) + rows);
    Canvas canvas;
    canvas.state = (State*)base;
    canvas.confidences = (double*)(base + sizeof(State));
    canvas.entropies = canvas.confidences + capacity;
    canvas.tokens = (int32_t*)(canvas.entropies + capacity);
    canvas.ids = canvas.tokens + capacity;
    canvas.decided = canvas.ids + capacity;
    canvas.masked = (uint8_t*)(canvas.decided + 2 * capacity);
    return canvas;
}

// Where the rows end that may be committed now; `whole` looks beyond the current block.
__device__ inline int candidates_end(const Rules* rules, const State* state, bool whole) {
    if (state->stop >= 0) return state->stop;
    return whole ? rules->length : (state->block + 1) * rules->block_length;
}
