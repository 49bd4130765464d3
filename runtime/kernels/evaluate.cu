// From rows of logits to tokens, and how sure the model is of each: `runtime/sampling.py` on the GPU.
#include "loop.cuh"
#include "philox.cuh"

namespace {

constexpr int MOST_THREADS = 1024;
// The exponential of less is 0 in float32.
constexpr float NOTHING = -104.0f;

// What some of a row's logits say. The largest one's own 1 is left out of `others`, so that a confidence next to 1
// keeps the small difference that ranks it.
struct Summary {
    float best, others, weighted;
    float score, sampled_logit;
    int token, sampled;
};

__device__ Summary of_nothing() { return {-INFINITY, 0, 0, -INFINITY, -INFINITY, 0, 0}; }

__device__ bool precedes(float a, int a_token, float b, int b_token) {
    return a > b || (a == b && a_token < b_token);
}

// Adds `part` of the exponentials, relative to their own largest, to a summary whose largest is not smaller.
__device__ void absorb(Summary& all, const Summary& part) {
    if (part.best == -INFINITY) {
        all.others += part.others;  // 0, or no number
        return;
    }
    float shift = part.best - all.best, scale = expf(shift);
    all.weighted += scale * (part.weighted + fmaxf(shift, NOTHING) * (1 + part.others));
    all.others += scale * (1 + part.others);
}

__device__ void merge(Summary& all, Summary part) {
    if (precedes(part.score, part.sampled, all.score, all.sampled))
        all.score = part.score, all.sampled = part.sampled, all.sampled_logit = part.sampled_logit;
    if (precedes(part.best, part.token, all.best, all.token)) {
        Summary less = all;
        all.best = part.best, all.token = part.token, all.others = part.others, all.weighted = part.weighted;
        part = less;
    }
    absorb(all, part);
}

__device__ void add(Summary& all, float logit, int token, float noise) {
    if (logit == -INFINITY) return;
    merge(all, {logit, 0, 0, logit + noise, logit, token, token});
}

// The noise of one row.
struct Noise {
    uint64_t seed;
    int position, step;
    float temperature;

    // Of the four tokens of a group, which share a draw.
    __device__ void of_group(int group, float* four) const {
        if (temperature == 0) {
            for (int i = 0; i < 4; ++i) four[i] = 0;
            return;
        }
        Words words = draw(seed, group, position, step, NOISE);
        for (int i = 0; i < 4; ++i) four[i] = temperature * gumbel(words.at[i]);
    }
};

// This thread's share of a whole row.
__device__ Summary of_row(const float* logits, int vocabulary, const Noise& noise) {
    Summary all = of_nothing();
    bool aligned = (uintptr_t)logits % sizeof(float4) == 0;
    for (int group = threadIdx.x; 4 * group < vocabulary; group += blockDim.x) {
        int start = 4 * group, count = min(4, vocabulary - start);
        float values[4], noises[4];
        if (aligned && count == 4) {
            float4 four = *(const float4*)(logits + start);
            values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
        } else {
            for (int i = 0; i < count; ++i) values[i] = logits[start + i];
        }
        noise.of_group(group, noises);
        for (int i = 0; i < count; ++i) add(all, values[i], start + i, noises[i]);
    }
    return all;
}

// This thread's share of the only ids that may stand in a row.
__device__ Summary of_ids(const float* logits, const int32_t* ids, int count, const Noise& noise) {
    Summary all = of_nothing();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        float noises[4];
        noise.of_group(ids[i] / 4, noises);
        add(all, logits[ids[i]], ids[i], noises[ids[i] % 4]);
    }
    return all;
}

__device__ void rule_out(float* logits, const int32_t* ids, int count) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) logits[ids[i]] = -INFINITY;
}

}  // namespace

// Token, confidence and entropy of every row of `logits` [gridDim.y, gridDim.x, vocabulary] that may be committed, in
// one read of it. Suppressed and forbidden entries are overwritten.
//
// `rows` [gridDim.x] says which position a row of logits is of, counted from `first`; what is picked lands at the row's
// own number. One block per row.
extern "C" __global__ void __launch_bounds__(MOST_THREADS)
    lladav_evaluate(const Rules* rules, char* canvases, int capacity, const int32_t* whole, float* logits,
                    int vocabulary, const int64_t* rows, int first) {
    __shared__ Summary parts[MOST_THREADS];

    Canvas canvas = canvas_of(canvases, capacity, blockIdx.y);
    int row = blockIdx.x, position = (int)rows[row] - first;
    if (canvas.state->done) return;
    if (!rules->every_row) {
        if (position < 0 || position >= candidates_end(rules, canvas.state, *whole)) return;
        if (!canvas.masked[position]) return;
    }
    float* own = logits + ((size_t)blockIdx.y * gridDim.x + row) * vocabulary;
    Restriction rule = {FREE, 0, 0};
    if (rules->restrictions) rule = rules->restrictions[blockIdx.y * capacity + row];
    const int32_t* ids = rules->ids + rule.begin;

    rule_out(own, rules->ids, rules->suppressed);
    if (rule.mode == ALL_BUT) rule_out(own, ids, rule.end - rule.begin);
    __syncthreads();
    Noise noise = {rules->seed, position, canvas.state->step, rules->temperature};
    parts[threadIdx.x] =
        rule.mode == ONLY ? of_ids(own, ids, rule.end - rule.begin, noise) : of_row(own, vocabulary, noise);
    for (int count = blockDim.x; count > 1;) {
        int half = (count + 1) / 2;
        __syncthreads();
        if (threadIdx.x + half < count) merge(parts[threadIdx.x], parts[threadIdx.x + half]);
        count = half;
    }
    if (threadIdx.x == 0) {
        Summary all = parts[0];
        double total = 1.0 + (double)all.others;
        bool sampled = noise.temperature > 0;
        canvas.tokens[row] = sampled ? all.sampled : all.token;
        // Logits that are no numbers, or infinite, become a confidence that is none.
        canvas.confidences[row] = (double)expf((sampled ? all.sampled_logit : all.best) - all.best) / total;
        canvas.entropies[row] = log(total) - (double)all.weighted / total;
    }
}
