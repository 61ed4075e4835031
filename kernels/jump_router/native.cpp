// jump_router: from states, or from scores or features of them, to the pairs that fire.
//
// N tokens, D model width, S scores (rows of all heads, then columns), R features, H heads, I rows, J columns, P pairs
// that fire, Q scores that pass. Many tokens lie in lanes: number n of a row of N is token n's, so that one row's
// coefficient multiplies, and one comparison judges, LANES tokens at once. A few are taken one by one.

#include <memory>

#include "../native.h"

extern "C" {

// As kernels/jump_router/native.py lays it out.
struct JumpRouter {
    // Of each head: what a score must reach, by how much the best may be missed, and what a pair must be above.
    const float *row_cut, *row_slack, *column_cut, *column_slack, *threshold;
    const int32_t* index;  // (S, K) features of each score; null where scores are read
    const float *coefficient, *intercept;
    const int32_t* turned_index;  // (K, S) the same for one token, whose scores are made side by side
    const float* turned_coefficient;
    const float* weight;  // (S, D) or (R, D): what makes scores or features of a state; null where they are given
    int64_t width, read, heads, rows, columns, terms;  // read: S or R
};

// What a call of it leaves: how many fire and pass, how many words it needs (kernels/jump_router/packed.py), and
// whether a score is not finite.
struct Outcome {
    int64_t pairs, keys, words, wrong;
};
}

namespace {

constexpr int LANES = 16;

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

// Sub-keys that pass of one token, in ascending order, in slots for S of them; and how many of each axis and head.
struct Passing {
    int32_t* score;
    float *log_gate, *gate;
    int32_t* count;
};

INLINE void append(const Passing& passing, int64_t slot, int64_t score, float value) {
    passing.score[slot] = int32_t(score);
    passing.log_gate[slot] = value;
}

// Lists the scores that reach a limit: of L tokens one score after another, all tokens of a score at once; of one token
// all its scores, which lie together.
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
    static AVX2_TARGET uint32_t reaching(const float* score, __m256 least) {
        return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(score), least, _CMP_GE_OQ)));
    }

    template <int L>
    static AVX2_TARGET void list(const float* score, int64_t stride, int64_t first, int64_t keys, const float* limit,
                                 int64_t slots, const Passing& passing, int32_t* used) {
        if constexpr (L == 1) {
            const __m256 least = _mm256_set1_ps(*limit);
            int64_t k = 0;
            for (; k + 8 <= keys; k += 8)
                for (uint32_t bits = reaching(score + k, least); bits; bits &= bits - 1) {
                    const int64_t at = k + __builtin_ctz(bits);
                    append(passing, used[0]++, first + at, score[at]);
                }
            return Loops::list<1>(score + k, 1, first + k, keys - k, limit, slots, passing, used);
        }
        __m256 least[L / 8 + 1];
        for (int i = 0; i < L / 8; i++) least[i] = _mm256_loadu_ps(limit + 8 * i);
        for (int64_t k = 0; k < keys; k++, score += stride) {
            uint32_t bits = 0;
            for (int i = 0; i < L / 8; i++) bits |= reaching(score + 8 * i, least[i]) << 8 * i;
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
    if constexpr (L == 1) {
        for (int64_t s = 0; s < scores; s++) out[s] = router.intercept[s];
        for (int64_t k = 0; k < router.terms; k++) {
            const int32_t* index = router.turned_index + k * scores;
            const float* coefficient = router.turned_coefficient + k * scores;
#pragma omp simd
            for (int64_t s = 0; s < scores; s++) out[s] += coefficient[s] * feature[index[s]];
        }
        return;
    }
    for (int64_t s = 0; s < scores; s++) {
        float sum[L];
        for (int l = 0; l < L; l++) sum[l] = router.intercept[s];
        for (int64_t k = s * router.terms; k < (s + 1) * router.terms; k++) {
            const float* read = feature + router.index[k] * stride;
            const float times = router.coefficient[k];
#pragma omp simd
            for (int l = 0; l < L; l++) sum[l] += times * read[l];
        }
        for (int l = 0; l < L; l++) out[s * L + l] = sum[l];
    }
}

// The best score of each of L tokens. False if a score is not finite.
template <int L>
INLINE bool best_of(const float* score, int64_t stride, int64_t keys, float* best) {
    constexpr float lowest = -std::numeric_limits<float>::infinity();
    if constexpr (L == 1) {
        float most = lowest, zero = 0;
#pragma omp simd reduction(max : most) reduction(+ : zero)
        for (int64_t k = 0; k < keys; k++) {
            most = score[k] > most ? score[k] : most;
            zero += 0 * score[k];  // nan from then on if the score is nan or infinite
        }
        *best = most;
        return zero == 0;
    }
    float zero[L];
    for (int l = 0; l < L; l++) best[l] = lowest, zero[l] = 0;
    for (int64_t k = 0; k < keys; k++) {
        const float* at = score + k * stride;
#pragma omp simd
        for (int l = 0; l < L; l++) {
            best[l] = at[l] > best[l] ? at[l] : best[l];
            zero[l] += 0 * at[l];
        }
    }
    bool finite = true;
    for (int l = 0; l < L; l++) finite &= zero[l] == 0;
    return finite;
}

// Log gates and gates of one axis of one head, of L tokens whose lists have `used` entries. False if a score is not finite.
template <class Steps, int L>
INLINE bool axis_gates(const float* score, int64_t stride, int32_t first, int64_t keys, float cut, float slack,
                       int64_t slots, const Passing& passing, int32_t* used, int64_t counts) {
    float best[L], limit[L];
    if (!best_of<L>(score, stride, keys, best)) return false;
    int32_t begin[L];
    for (int l = 0; l < L; l++) {
        limit[l] = std::min(best[l] - slack, cut);
        begin[l] = used[l];
    }
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

// The sub-keys of L tokens that pass, from their scores. False if a score is not finite.
template <class Steps, int L>
INLINE bool pass(const JumpRouter& router, const float* score, int64_t stride, Passing passing, int32_t* used) {
    const int64_t heads = router.heads, slots = heads * (router.rows + router.columns);
    for (int l = 0; l < L; l++) used[l] = 0;
    for (int64_t h = 0; h < 2 * heads; h++) {
        const bool rows = h < heads;
        const int64_t head = rows ? h : h - heads, keys = rows ? router.rows : router.columns;
        const int64_t first = rows ? head * keys : heads * router.rows + head * keys;
        const float cut = (rows ? router.row_cut : router.column_cut)[head];
        const float slack = (rows ? router.row_slack : router.column_slack)[head];
        if (!axis_gates<Steps, L>(score + first * stride, stride, int32_t(first), keys, cut, slack, slots, passing,
                                  used, 2 * heads))
            return false;
        passing.count++;
    }
    return true;
}

// A list that grows without writing to what it makes room for.
template <class Number>
struct List {
    std::unique_ptr<Number[]> number;
    int64_t size = 0, room = 0;

    // Where the next `more` numbers go; `size` is the caller's to raise.
    INLINE Number* next(int64_t more) {
        if (size + more > room) grow(size + more);
        return number.get() + size;
    }

    __attribute__((noinline)) void grow(int64_t least) {
        room = 2 * least + 64;
        std::unique_ptr<Number[]> longer(new Number[room]);
        std::copy(number.get(), number.get() + size, longer.get());
        number = std::move(longer);
    }

    INLINE void add(const Number* from, int64_t count) {
        Number* to = next(count);
        for (int64_t i = 0; i < count; i++) to[i] = from[i];
        size += count;
    }

    void copy_to(Number* to) const { std::copy(number.get(), number.get() + size, to); }
};

// What some tokens, one after another, pass and fire.
struct Piece {
    List<int64_t> cell, pair_count, key_count;
    List<float> gate, log_gate, key_gate;
    List<int32_t> score;
    List<float> numbers;  // scratch
    List<int32_t> integers;

    void clear() {
        cell.size = pair_count.size = key_count.size = 0;
        gate.size = log_gate.size = key_gate.size = score.size = 0;
    }

    // Adds a token: its lists, and every pair (r, c) of a head with A_r + B_c > threshold.
    INLINE void add(const JumpRouter& router, const Passing& passing, int64_t count) {
        score.add(passing.score, count);
        log_gate.add(passing.log_gate, count);
        key_gate.add(passing.gate, count);
        key_count.add(&count, 1);
        const int64_t heads = router.heads;
        int64_t fired = 0, most = 0;
        int32_t row = 0, column = 0;
        for (int64_t h = 0; h < heads; h++) {
            column += passing.count[h];
            most += int64_t(passing.count[h]) * passing.count[heads + h];
        }
        int64_t* to_cell = cell.next(most + 1);
        float* to_gate = gate.next(most + 1);
        for (int64_t h = 0; h < heads; h++) {
            const int32_t row_end = row + passing.count[h], column_end = column + passing.count[heads + h];
            const int64_t first_row = h * router.rows, first_column = heads * router.rows + h * router.columns;
            const float threshold = router.threshold[h];
            float best = -std::numeric_limits<float>::infinity();
            for (int32_t j = column; j < column_end; j++) best = std::max(best, passing.log_gate[j]);
            for (int32_t i = row; i < row_end; i++) {
                if (!(passing.log_gate[i] + best > threshold)) continue;
                // Written whether it fires or not: which do is a matter of chance, and a wrong guess costs more.
                const int64_t at = (passing.score[i] - first_row) * router.columns - first_column;
                for (int32_t j = column; j < column_end; j++) {
                    to_cell[fired] = at + passing.score[j];
                    to_gate[fired] = passing.gate[i] * passing.gate[j];
                    fired += passing.log_gate[i] + passing.log_gate[j] > threshold;
                }
            }
            row = row_end;
            column = column_end;
        }
        cell.size += fired;
        gate.size += fired;
        pair_count.add(&fired, 1);
    }
};

// (R) the products of x with the rows of a matrix, eight rows at a time: their sums do not wait for each other.
INLINE void products(const float* row, int64_t rows, int64_t width, const float* x, float* out) {
    typedef float Eight __attribute__((vector_size(32)));
    for (int64_t first = 0; first < rows; first += 8, row += 8 * width) {
        const int64_t some = std::min<int64_t>(8, rows - first);
        const float* at[8];
        for (int64_t r = 0; r < 8; r++) at[r] = row + std::min(r, some - 1) * width;
        Eight sum[8] = {};
        float rest[8] = {};
        int64_t d = 0;
        for (; d + 8 <= width; d += 8) {
            Eight part, of_x;
            std::memcpy(&of_x, x + d, sizeof of_x);
            for (int r = 0; r < 8; r++) {
                std::memcpy(&part, at[r] + d, sizeof part);
                sum[r] += part * of_x;
            }
        }
        for (; d < width; d++)
            for (int r = 0; r < 8; r++) rest[r] += at[r][d] * x[d];
        for (int64_t r = 0; r < some; r++) {
            for (int i = 0; i < 8; i++) rest[r] += sum[r][i];
            out[first + r] = rest[r];
        }
    }
}

// The tokens `begin` to `end` of `tokens`. `x` are states (N, D) where the router has a weight, else (S, N) or (R, N).
template <class Steps>
INLINE bool pass_tokens(const JumpRouter& router, const float* x, int64_t tokens, int64_t begin, int64_t end,
                        Piece& piece) {
    const int64_t scores = router.heads * (router.rows + router.columns);
    const int lanes = router.weight || end - begin < LANES ? 1 : LANES;
    float *made = piece.numbers.next(3 * lanes * scores + router.read), *read = made + 3 * lanes * scores;
    int32_t* integers = piece.integers.next(lanes * (scores + 2 * router.heads));
    const Passing passing{integers, made + lanes * scores, made + 2 * lanes * scores, integers + lanes * scores};
    int32_t used[LANES];
    for (int64_t n = begin; n < end;) {
        const bool many = lanes == LANES && end - n >= LANES;
        const float* score = x + n;
        int64_t stride = tokens;
        if (router.weight) {
            products(router.weight, router.read, router.width, x + n * router.width, read);
        } else if (!many) {
            for (int64_t r = 0; r < router.read; r++) read[r] = score[r * tokens];
        }
        if (!many) score = read, stride = 1;
        if (router.index) {
            if (many) sparse_scores<LANES>(router, score, tokens, scores, made);
            else sparse_scores<1>(router, score, 1, scores, made);
            score = made;
            stride = many ? LANES : 1;
        }
        if (!(many ? pass<Steps, LANES>(router, score, stride, passing, used)
                   : pass<Steps, 1>(router, score, 1, passing, used)))
            return false;
        const int64_t count = many ? LANES : 1;
        for (int64_t l = 0; l < count; l++)
            piece.add(router, {passing.score + l * scores, passing.log_gate + l * scores, passing.gate + l * scores,
                               passing.count + l * 2 * router.heads}, used[l]);
        n += count;
    }
    return true;
}

#define STAMP(SET, TARGET, STEPS)                                                                                    \
    TARGET bool pass_tokens_##SET(const JumpRouter& router, const float* x, int64_t tokens, int64_t begin,           \
                                  int64_t end, Piece& piece) {                                                       \
        return pass_tokens<STEPS>(router, x, tokens, begin, end, piece);                                             \
    }
STAMP(portable, PORTABLE_TARGET, Loops)
STAMP(avx2, AVX2_TARGET, Vectors)
STAMP(avx512, AVX512_TARGET, Vectors)
#undef STAMP

// Puts the lists of all pieces together. The words hold as many as the outcome says.
void lay_out(const std::vector<Piece>& pieces, int64_t count, const Routing& routing) {
    int64_t n = 0, p = 0, q = 0;
    routing.start[0] = routing.key_start[0] = 0;
    for (int64_t i = 0; i < count; i++) {
        const Piece& piece = pieces[i];
        piece.cell.copy_to(routing.cell + p);
        piece.gate.copy_to(routing.gate + p);
        piece.score.copy_to(routing.score + q);
        piece.log_gate.copy_to(routing.log_gate + q);
        piece.key_gate.copy_to(routing.key_gate + q);
        for (int64_t t = 0; t < piece.pair_count.size; t++, n++) {
            routing.start[n + 1] = p += piece.pair_count.number[t];
            routing.key_start[n + 1] = q += piece.key_count.number[t];
        }
    }
}

constexpr int64_t TOKENS_KEPT = 1024;  // up to so many leave their lists' memory to the next call

}  // namespace

extern "C" {

// Writes what passes and fires into `words` if it fits `capacity`; if not, the outcome says how many there must be.
void jump_router_run(const JumpRouter* given, const float* x, int64_t tokens, int32_t set, int32_t threads,
                     int64_t* words, int64_t capacity, Outcome* outcome) {
    const JumpRouter& router = *given;
    const auto run = CHOOSE(set, pass_tokens_portable, pass_tokens_avx2, pass_tokens_avx512);
    *outcome = {0, 0, 0, 0};
    const int64_t count = std::max<int64_t>(1, std::min<int64_t>(threads, tokens));
    thread_local std::vector<Piece> kept;
    std::vector<Piece> own;
    std::vector<Piece>& pieces = tokens <= TOKENS_KEPT ? kept : own;
    if (int64_t(pieces.size()) < count) pieces.resize(count);
    bool finite = true;
    in_threads(count, threads, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) {
            pieces[i].clear();
            if (!run(router, x, tokens, tokens * i / count, tokens * (i + 1) / count, pieces[i])) {
#pragma omp atomic write
                finite = false;
            }
        }
    });
    if (!finite) return void(outcome->wrong = 1);
    for (int64_t i = 0; i < count; i++) {
        outcome->pairs += pieces[i].cell.size;
        outcome->keys += pieces[i].score.size;
    }
    outcome->words = Routing::words(tokens, outcome->pairs, outcome->keys);
    if (outcome->words <= capacity)
        lay_out(pieces, count, Routing(words, tokens, outcome->pairs, outcome->keys));
}

// Whether every feature that a score names is one.
int32_t jump_router_rows_are_sound(const int32_t* index, int64_t entries, int64_t features) {
    for (int64_t i = 0; i < entries; i++)
        if (index[i] < 0 || index[i] >= features) return 0;
    return 1;
}
}
