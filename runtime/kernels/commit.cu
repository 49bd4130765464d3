// Everything between the picks and the next pass: `runtime/canvas.py`, `selectors.py` and `stops.py` on the GPU, for a
// canvas without template and a prompt without masks.
#include "loop.cuh"
#include "philox.cuh"

namespace {

constexpr int MOST_ROWS = 1024;

// Positions that compete, best first and of equals the first, in `order`; returns how many compete. Every thread has
// its own position and calls it with that position's `key`.
__device__ int rank(bool competes, double key, double* keys, uint8_t* competing, int* order) {
    int position = threadIdx.x;
    keys[position] = key;
    competing[position] = competes;
    int count = __syncthreads_count(competes);
    if (competes) {
        int before = 0;
        for (int other = 0; other < blockDim.x; ++other)
            if (competing[other]) before += keys[other] > key || (keys[other] == key && other < position);
        order[before] = position;
    }
    __syncthreads();
    return count;
}

// How many of the n best a step commits. By every rule what passes is a prefix: the numbers fall and the bounds rise,
// however they are rounded.
__device__ int passing(const Rules* rules, const State* state, const double* keys, const int* order, int n) {
    if (rules->selector == FIXED) {
        int quota = state->block_masks / rules->steps_per_block;
        if (state->block_step < state->block_masks % rules->steps_per_block) ++quota;
        return min(quota, n);
    }
    int count = 0;
    double sum = 0;
    for (; count < n; ++count) {
        double key = keys[order[count]];
        if (rules->selector == THRESHOLD && !(key >= rules->parameter)) break;
        if (rules->selector == FACTOR && !(key >= 1 - rules->parameter / (count + 2))) break;
        if (rules->selector == FRECHET) {
            sum += 1 - key;
            if (!(key - sum > rules->parameter)) break;
        }
        if (rules->selector == ENTROPY) {
            if (!(sum <= rules->parameter)) break;
            sum -= key;
        }
    }
    count = max(count, min(1, n));
    bool all_but_one = rules->selector == FACTOR && rules->accept_last && count == n - 1;
    return all_but_one ? n : count;
}

// Decides one row as the model picked; a mask token leaves it masked.
__device__ void decide(const Rules* rules, const Canvas& canvas, int position, int place) {
    int token = canvas.tokens[position];
    bool is_mask = false;
    for (int i = 0; i < rules->aliases; ++i) is_mask |= rules->ids[rules->suppressed + i] == token;
    canvas.ids[position] = token;
    canvas.masked[position] = is_mask;
    canvas.decided[place] = position;
}

// The earliest stop by the authors' walk, which ends at the first of the list once any was ever found; `stop` is -1
// where there is none yet.
__device__ int scan(const Rules* rules, const int32_t* ids, int stop, int* found) {
    const int32_t* sequence = rules->ids + rules->suppressed + rules->aliases;
    for (int i = 0; i < rules->stops; ++i) {
        int length = *sequence++;
        int position = threadIdx.x;
        if (position == 0) *found = rules->length;
        __syncthreads();
        bool matches = position + length <= rules->length;
        for (int j = 0; matches && j < length; ++j) matches = ids[position + j] == sequence[j];
        if (matches) atomicMin(found, position);
        __syncthreads();
        if (*found < rules->length && (stop < 0 || *found < stop)) stop = *found;
        __syncthreads();
        if (stop >= 0) break;
        sequence += length;
    }
    return stop;
}

// Goes on to the block of the next step, by the rules of `Canvas.quotas`; every thread has the same `next`.
__device__ void advance(const Rules* rules, State& next, bool masked) {
    int position = threadIdx.x;
    bool decided = next.stop >= 0 && next.undecided == 0;
    ++next.block_step;
    for (;;) {
        int start = next.block * rules->block_length;
        int masks = __syncthreads_count(masked && position >= start && position < start + rules->block_length);
        if (next.block_step == 0) next.block_masks = masks;
        bool planned = rules->selector != FIXED || next.block_step < rules->steps_per_block;
        if (planned && masks > 0 && !decided) return;
        start += rules->block_length;
        if (start >= rules->length || (next.stop >= 0 && next.stop <= start)) {
            next.done = 1;
            return;
        }
        ++next.block;
        next.block_step = 0;
    }
}

}  // namespace

// One step of one canvas, once its rows are evaluated: chooses, commits, looks for stops, plans the next step, and
// writes a record of it to `log` [slots, gridDim.x]. `whole` commits everything, because no further pass fits the
// deadline.
//
// One block per canvas and one thread per position. Picks lie in the order of the canvas.
extern "C" __global__ void __launch_bounds__(MOST_ROWS)
    lladav_commit(const Rules* rules, char* canvases, int capacity, const int32_t* whole, char* log, int slots) {
    __shared__ double keys[MOST_ROWS];
    __shared__ uint8_t competing[MOST_ROWS];
    __shared__ int order[MOST_ROWS];
    __shared__ int shared;

    Canvas canvas = canvas_of(canvases, capacity, blockIdx.x);
    const State before = *canvas.state;
    if (before.done) return;
    State after = before;
    ++after.step;
    int position = threadIdx.x;
    bool inside = position < rules->length;
    bool masked = inside && canvas.masked[position];
    double confidence = inside ? canvas.confidences[position] : 0;

    bool candidate = masked && position < candidates_end(rules, &before, *whole);
    after.invalid = __syncthreads_count(candidate && !isfinite(confidence));
    after.chosen = after.forced = 0;
    if (after.invalid) {
        after.done = 1;
    } else {
        double key = confidence;
        if (rules->selector == ENTROPY)
            key = candidate ? -canvas.entropies[position] : 0;
        else if (rules->random_ranks)
            key = uniform(draw(rules->seed, 0, position, before.step, RANK));
        int count = rank(candidate, key, keys, competing, order);
        if (position == 0) shared = passing(rules, &before, keys, order, count);
        __syncthreads();
        after.chosen = shared;
        if (position < after.chosen) decide(rules, canvas, order[position], position);
        __syncthreads();
        after.stop = scan(rules, canvas.ids, before.stop, &shared);
        if (*whole) {
            masked = inside && canvas.masked[position];
            bool rest = masked && position < (after.stop >= 0 ? after.stop : rules->length);
            after.forced = rank(rest, confidence, keys, competing, order);
            if (position < after.forced) decide(rules, canvas, order[position], after.chosen + position);
            __syncthreads();
        }
        masked = inside && canvas.masked[position];
        after.masks_left = __syncthreads_count(masked);
        after.undecided = __syncthreads_count(masked && (after.stop < 0 || position < after.stop));
        advance(rules, after, masked);
        if (*whole) after.done = 1;
    }

    char* record = log + ((size_t)(before.step % slots) * gridDim.x + blockIdx.x) *
                             (sizeof(State) + 2 * capacity * sizeof(Decision));
    Decision* decisions = (Decision*)(record + sizeof(State));
    for (int i = position; i < after.chosen + after.forced; i += blockDim.x) {
        int row = canvas.decided[i];
        decisions[i] = {row, canvas.ids[row], canvas.confidences[row]};
    }
    if (position == 0) {
        *canvas.state = after;
        // The record names the step and the block that were, and counts what is left now.
        after.step = before.step;
        after.block = before.block;
        *(State*)record = after;
    }
}
