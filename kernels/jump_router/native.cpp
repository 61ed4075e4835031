// jump_router: from scores, or from features and sparse rows over them, to the pairs that fire.
//
// N tokens, S scores (rows of all heads, then columns), H heads, I rows, J columns. Tokens lie in lanes: number n of a
// row of N is token n's, so that one row's coefficient multiplies, and one comparison judges, LANES tokens at once.

#include "../native.h"

extern "C" {

// As kernels/jump_router/native.py lays it out.
struct JumpRouter {
    const float *row_mean, *row_var, *column_mean, *column_var, *threshold;
    const int32_t* index;  // (S, K) features of each score; null where scores are given
    const float *coefficient, *intercept;
    const float* read;  // (S, N) scores or (R, N) features
    float* scratch;     // for 3 N S + 2 H N numbers
    int64_t *key_start, *start;
    int64_t tokens, heads, rows, columns, features, terms;
    float epsilon, deviations, margin;
    int64_t keys, pairs;  // how many pass and fire, which jump_router_pass writes
};
}

namespace {

// Sub-keys that pass: of token n, from slot n * S on, in ascending order; (N, 2 H) counts by axis and head.
struct Passing {
    int32_t* score;
    float *log_gate, *gate;
    int32_t* count;
};

Passing in_slots(const JumpRouter& router) {
    const int64_t slots = router.tokens * router.heads * (router.rows + router.columns);
    float* at = router.scratch;
    return {reinterpret_cast<int32_t*>(at), at + slots, at + 2 * slots, reinterpret_cast<int32_t*>(at + 3 * slots)};
}

constexpr int LANES = 16;
enum Wrong : int32_t { NOTHING, NOT_FINITE, INDEX, BEGINS };

// e^x for x <= 0 to two units in the last place, 0 below the smallest normal number; a loop of it becomes vectors.
INLINE float exp_of_negative(float x) {
    const float clamped = std::max(x, -87.3f);
    const float twos = std::nearbyint(clamped * 1.44269504f);
    const float rest = (clamped - twos * 0.693359375f) + twos * 2.12194440e-4f;
    float power = 1.9875691500e-4f;  // Cephes, expf
    power = power * rest + 1.3981999507e-3f;
    power = power * rest + 8.3334519073e-3f;
    power = power * rest + 4.1665795894e-2f;
    power = power * rest + 1.6666665459e-1f;
    power = power * rest + 5.0000001201e-1f;
    power = power * rest * rest + rest + 1;
    const float scaled = power * bits_to_float(uint32_t(int32_t(twos) + 127) << 23);
    return x < -87.3f ? 0 : scaled;
}

INLINE void append(const Passing& passing, int64_t slot, int64_t score, float value) {
    passing.score[slot] = int32_t(score);
    passing.log_gate[slot] = value;
}

// Lists the scores that reach the limits of L tokens: one score after another, all tokens of a score at once.
struct Loops {
    template <int L>
    static INLINE void list(const float* score, int64_t stride, int64_t first, int64_t keys, const float* limit,
                            int64_t slots, const Passing& passing, int32_t* used) {
        for (int64_t k = 0; k < keys; k++, score += stride)
            for (int l = 0; l < L; l++)
                if (score[l] >= limit[l]) append(passing, l * slots + used[l]++, first + k, score[l]);
    }
};

#if defined(__x86_64__)
struct Vectors {
    template <int L>
    static AVX2_TARGET void list(const float* score, int64_t stride, int64_t first, int64_t keys, const float* limit,
                                 int64_t slots, const Passing& passing, int32_t* used) {
        if constexpr (L % 8) return Loops::list<L>(score, stride, first, keys, limit, slots, passing, used);
        __m256 least[L / 8 + 1];
        for (int i = 0; i < L / 8; i++) least[i] = _mm256_loadu_ps(limit + 8 * i);
        for (int64_t k = 0; k < keys; k++, score += stride) {
            uint32_t bits = 0;
            for (int i = 0; i < L / 8; i++)
                bits |= uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(score + 8 * i), least[i], _CMP_GE_OQ)))
                        << 8 * i;
            for (; bits; bits &= bits - 1) {
                const int l = __builtin_ctz(bits);
                append(passing, l * slots + used[l]++, first + k, score[l]);
            }
        }
    }
};
#else
using Vectors = Loops;
#endif

// The scores of L tokens, `stride` apart, as sums of few of their features.
template <int L>
INLINE void sparse_scores(const JumpRouter& router, const float* feature, int64_t stride, int64_t scores, float* out) {
    for (int64_t s = 0; s < scores; s++) {
        const int32_t* index = router.index + s * router.terms;
        const float* coefficient = router.coefficient + s * router.terms;
        float sum[L];
        for (int l = 0; l < L; l++) sum[l] = router.intercept[s];
        for (int64_t k = 0; k < router.terms; k++) {
            const float* read = feature + index[k] * stride;
            const float times = coefficient[k];
#pragma omp simd
            for (int l = 0; l < L; l++) sum[l] += times * read[l];
        }
        for (int l = 0; l < L; l++) out[s * L + l] = sum[l];
    }
}

// Log gates and gates of one axis of one head, of L tokens whose lists have `used` entries. False if a score is not finite.
template <class Steps, int L>
INLINE bool axis_gates(const float* score, int64_t stride, int32_t first, int64_t keys, float cut, float slack,
                       int64_t slots, const Passing& passing, int32_t* used, int64_t counts) {
    float best[L], zero[L], limit[L];
    for (int l = 0; l < L; l++) best[l] = -std::numeric_limits<float>::infinity(), zero[l] = 0;
    for (int64_t k = 0; k < keys; k++) {
        const float* at = score + k * stride;
#pragma omp simd
        for (int l = 0; l < L; l++) {
            best[l] = at[l] > best[l] ? at[l] : best[l];
            zero[l] += 0 * at[l];  // nan from then on if the score is nan or infinite
        }
    }
    bool finite = true;
    int32_t begin[L];
    for (int l = 0; l < L; l++) {
        finite &= zero[l] == 0;
        limit[l] = std::min(best[l] - slack, cut);
        begin[l] = used[l];
    }
    if (!finite) return false;
    Steps::template list<L>(score, stride, first, keys, limit, slots, passing, used);
    for (int l = 0; l < L; l++) {
        const int32_t count = used[l] - begin[l];
        float* log_gate = passing.log_gate + l * slots + begin[l];
        float* gate = passing.gate + l * slots + begin[l];
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int32_t i = 0; i < count; i++) sum += gate[i] = exp_of_negative(log_gate[i] - best[l]);
        const float all = best[l] + std::log(sum), share = 1 / sum;
#pragma omp simd
        for (int32_t i = 0; i < count; i++) log_gate[i] -= all, gate[i] *= share;
        passing.count[l * counts] = count;
    }
    return true;
}

struct Axis {
    std::vector<float> cut, slack;  // a head: what a score must reach, and by how much the best may be missed
    Axis(const JumpRouter& router, const float* mean, const float* var) : cut(router.heads), slack(router.heads) {
        for (int64_t h = 0; h < router.heads; h++) {
            const float deviation = std::sqrt(var[h] + router.epsilon);
            cut[h] = mean[h] + router.deviations * deviation;
            slack[h] = router.margin * deviation;
        }
    }
};

// The sub-keys of L tokens that pass, from their scores. False if a score is not finite.
template <class Steps, int L>
INLINE bool pass(const JumpRouter& router, const Axis& row, const Axis& column, const float* score, int64_t stride,
                 Passing passing, int32_t* used) {
    const int64_t heads = router.heads, slots = heads * (router.rows + router.columns);
    for (int l = 0; l < L; l++) used[l] = 0;
    for (int64_t h = 0; h < 2 * heads; h++) {
        const bool rows = h < heads;
        const int64_t head = rows ? h : h - heads, keys = rows ? router.rows : router.columns;
        const int64_t first = rows ? head * keys : heads * router.rows + head * keys;
        const Axis& axis = rows ? row : column;
        if (!axis_gates<Steps, L>(score + first * stride, stride, int32_t(first), keys, axis.cut[head],
                                  axis.slack[head], slots, passing, used, 2 * heads))
            return false;
        passing.count++;
    }
    return true;
}

template <class Steps>
INLINE bool pass_tokens(const JumpRouter& router, int64_t begin, int64_t end) {
    const Passing passing = in_slots(router);
    const int64_t tokens = router.tokens;
    const int64_t scores = router.heads * (router.rows + router.columns);
    const Axis row(router, router.row_mean, router.row_var), column(router, router.column_mean, router.column_var);
    std::vector<float> made(router.index ? scores * LANES : 0);
    int32_t used[LANES];
    for (int64_t n = begin; n < end;) {
        const Passing mine{passing.score + n * scores, passing.log_gate + n * scores, passing.gate + n * scores,
                           passing.count + n * 2 * router.heads};
        const bool many = end - n >= LANES;
        const float* score = router.read + n;
        int64_t stride = tokens;
        if (router.index) {
            if (many) sparse_scores<LANES>(router, score, tokens, scores, made.data());
            else sparse_scores<1>(router, score, tokens, scores, made.data());
            score = made.data();
            stride = many ? LANES : 1;
        }
        if (!(many ? pass<Steps, LANES>(router, row, column, score, stride, mine, used)
                   : pass<Steps, 1>(router, row, column, score, stride, mine, used)))
            return false;
        const int64_t last = n + (many ? LANES : 1);
        for (int l = 0; n < last; l++) router.key_start[++n] = used[l];
    }
    return true;
}

// y = sum of gate * row. 64 columns at a time stay in registers while all rows are added.
INLINE void weighted_sum(const float* const* row, const float* gate, int64_t count, int64_t width, float* y) {
    typedef float Eight __attribute__((vector_size(32)));
    int64_t d = 0;
    for (; d + 64 <= width; d += 64) {
        Eight sum[8] = {};
        for (int64_t q = 0; q < count; q++)
            for (int j = 0; j < 8; j++) {
                Eight part;
                std::memcpy(&part, row[q] + d + 8 * j, sizeof part);
                sum[j] += gate[q] * part;
            }
        std::memcpy(y + d, sum, sizeof sum);
    }
    for (; d < width; d++) {
        y[d] = 0;
        for (int64_t q = 0; q < count; q++) y[d] += gate[q] * row[q][d];
    }
}

#define STAMP(SET, TARGET, STEPS)                                                                                    \
    TARGET bool pass_tokens_##SET(const JumpRouter& router, int64_t begin, int64_t end) {                            \
        return pass_tokens<STEPS>(router, begin, end);                                                               \
    }                                                                                                                \
    TARGET void sum_##SET(const float* const* row, const float* gate, int64_t count, int64_t width, float* y) {      \
        weighted_sum(row, gate, count, width, y);                                                                    \
    }
STAMP(portable, PORTABLE_TARGET, Loops)
STAMP(avx2, AVX2_TARGET, Vectors)
STAMP(avx512, AVX512_TARGET, Vectors)
#undef STAMP

// Places in a token's slot.
struct List {
    int32_t begin, end;
};

// Emits the places (i, j) of every pair of a head that fires.
template <class Emit>
INLINE void firing(const float* log_gate, List row, List column, float threshold, Emit emit) {
    for (int32_t i = row.begin; i < row.end; i++)
        for (int32_t j = column.begin; j < column.end; j++)
            if (log_gate[i] + log_gate[j] > threshold) emit(i, j);
}

// Calls visit(head, its rows, its columns) for each head of a token.
template <class Visit>
INLINE void for_heads(const int32_t* count, int64_t heads, Visit visit) {
    List row{0, 0}, column{0, 0};
    for (int64_t h = 0; h < heads; h++) column.end += count[h];
    for (int64_t h = 0; h < heads; h++) {
        row = {row.end, row.end + count[h]};
        column = {column.end, column.end + count[heads + h]};
        visit(h, row, column);
    }
}

}  // namespace

extern "C" {

// The sub-keys that pass, in slots, and where each token's will start when they lie together; the same of pairs.
// Returns what is wrong, as native.py numbers it: 0 for nothing.
int32_t jump_router_pass(JumpRouter* given, int32_t set, int32_t threads) {
    const JumpRouter& router = *given;
    const auto run = CHOOSE(set, pass_tokens_portable, pass_tokens_avx2, pass_tokens_avx512);
    const int64_t heads = router.heads, slots = heads * (router.rows + router.columns);
    const Passing passing = in_slots(router);
    for (int64_t i = 0; router.index && i < slots * router.terms; i++)
        if (router.index[i] < 0 || router.index[i] >= router.features) return INDEX;
    bool finite = true;
    router.key_start[0] = router.start[0] = 0;
    in_threads(router.tokens, threads, [&](int64_t first, int64_t last) {
        if (!run(router, first, last)) {
#pragma omp atomic write
            finite = false;
            return;
        }
        for (int64_t n = first; n < last; n++) {
            const float* log_gate = passing.log_gate + n * slots;
            int64_t fired = 0;
            for_heads(passing.count + n * 2 * heads, heads, [&](int64_t h, List row, List column) {
                firing(log_gate, row, column, router.threshold[h], [&](int32_t, int32_t) { fired++; });
            });
            router.start[n + 1] = fired;
        }
    });
    if (!finite) return NOT_FINITE;
    for (int64_t n = 0; n < router.tokens; n++) {
        router.key_start[n + 1] += router.key_start[n];
        router.start[n + 1] += router.start[n];
    }
    given->keys = router.key_start[router.tokens];
    given->pairs = router.start[router.tokens];
    return NOTHING;
}

// Lays out what the slots hold: (P) cells and gates of pairs, and (Q) which scores pass with their gates.
void jump_router_fill(const JumpRouter* given, int32_t threads, int64_t* cell, float* gate, int32_t* score,
                      float* log_gate, float* key_gate) {
    const JumpRouter& router = *given;
    const int64_t heads = router.heads, slots = heads * (router.rows + router.columns);
    const Passing passing = in_slots(router);
    in_threads(router.tokens, threads, [&](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; n++) {
            const Passing mine{passing.score + n * slots, passing.log_gate + n * slots, passing.gate + n * slots,
                               passing.count + n * 2 * heads};
            const int64_t begin = router.key_start[n], count = router.key_start[n + 1] - begin;
            std::copy(mine.score, mine.score + count, score + begin);
            std::copy(mine.log_gate, mine.log_gate + count, log_gate + begin);
            std::copy(mine.gate, mine.gate + count, key_gate + begin);
            int64_t p = router.start[n];
            for_heads(mine.count, heads, [&](int64_t h, List row, List column) {
                const int64_t first_row = h * router.rows, first_column = heads * router.rows + h * router.columns;
                firing(mine.log_gate, row, column, router.threshold[h], [&](int32_t i, int32_t j) {
                    cell[p] = (mine.score[i] - first_row) * router.columns + mine.score[j] - first_column;
                    gate[p++] = mine.gate[i] * mine.gate[j];
                });
            });
        }
    });
}

// (N, D) the sum of the rows of `row` and `column` that belong to a token's passing scores, by their gates.
int32_t jump_router_bias(const int32_t* score, const float* gate, const int64_t* key_start, const float* row,
                         const float* column, int64_t tokens, int64_t keys, int64_t heads, int64_t rows,
                         int64_t columns, int64_t width, int32_t set, int32_t threads, float* out) {
    for (int64_t n = 0; n < tokens; n++)
        if (key_start[n] < 0 || key_start[n] > key_start[n + 1]) return BEGINS;
    if (key_start[tokens] > keys) return BEGINS;
    for (int64_t q = 0; q < keys; q++)
        if (score[q] < 0 || score[q] >= heads * (rows + columns)) return INDEX;
    const auto sum = CHOOSE(set, sum_portable, sum_avx2, sum_avx512);
    in_threads(tokens, threads, [=](int64_t first, int64_t last) {
        std::vector<const float*> bias;
        for (int64_t n = first; n < last; n++) {
            bias.clear();
            for (int64_t q = key_start[n]; q < key_start[n + 1]; q++) {
                int64_t key = score[q];
                const bool is_row = key < heads * rows;
                for (key -= is_row ? 0 : heads * rows; key >= (is_row ? rows : columns);) key -= is_row ? rows : columns;
                bias.push_back((is_row ? row : column) + key * width);
            }
            sum(bias.data(), gate + key_start[n], int64_t(bias.size()), width, out + n * width);
        }
    });
    return NOTHING;
}
}
