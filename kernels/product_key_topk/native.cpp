// Product-key selection: the k best sums of a row score and a column score, and all sums above a threshold.
//
// R (token, head) pairs; each has N row scores and M column scores. No score is nan.

#include "../native.h"

namespace {

// The k best of some scores, best first; of equal scores the one met first.
struct Best {
    std::vector<float> score;
    std::vector<int32_t> index;
    int32_t k;
    explicit Best(int32_t k) : score(k), index(k), k(k) {}
};

// Scores that may be among the k best, in the order in which they were met.
struct Candidates {
    std::vector<float> score;
    std::vector<int32_t> index;
    int32_t count = 0;
};

// Many are inserted in turn.
void select_by_insertion(const Candidates& from, Best& best) {
    int32_t count = 0;
    for (int32_t i = 0; i < from.count; i++) {
        const float mine = from.score[i];
        if (count == best.k && !(mine > best.score[count - 1])) continue;
        int32_t place = count < best.k ? count++ : best.k - 1;
        for (; place > 0 && best.score[place - 1] < mine; place--) {
            best.score[place] = best.score[place - 1];
            best.index[place] = best.index[place - 1];
        }
        best.score[place] = mine;
        best.index[place] = from.index[i];
    }
}

// The two steps that are worth a processor's own instructions.
struct Loops {
    // Keeps the scores that reach the least of k disjoint groups' best: no other can be among the k best.
    static INLINE void filter(const float* score, int32_t size, int32_t k, Candidates& kept) {
        float least = -std::numeric_limits<float>::infinity();
        if (size >= k) {
            float* group_best = kept.score.data();
            std::copy(score, score + k, group_best);
            for (int32_t i = k; i + k <= size; i += k)
                for (int32_t j = 0; j < k; j++) group_best[j] = std::max(group_best[j], score[i + j]);
            least = *std::min_element(group_best, group_best + k);
        }
        kept.count = 0;
        for (int32_t i = 0; i < size; i++) {
            kept.score[kept.count] = score[i];
            kept.index[kept.count] = i;
            kept.count += score[i] >= least;
        }
    }

    static INLINE void select(Candidates& from, Best& best) { select_by_insertion(from, best); }
};

#if defined(__x86_64__)
struct Vectors {
    static AVX512_TARGET void filter(const float* score, int32_t size, int32_t k, Candidates& kept) {
        const int32_t groups = (k + 15) / 16 * 16;
        if (size < groups) return Loops::filter(score, size, k, kept);
        float least = std::numeric_limits<float>::infinity();
        for (int32_t g = 0; g < groups; g += 16) {
            __m512 group_best = _mm512_loadu_ps(score + g);
            for (int32_t i = g + groups; i + 16 <= size; i += groups)
                group_best = _mm512_max_ps(group_best, _mm512_loadu_ps(score + i));
            least = std::min(least, _mm512_reduce_min_ps(group_best));
        }
        const __m512i ahead = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        kept.count = 0;
        for (int32_t i = 0; i < size; i += 16) {
            const __mmask16 inside = size - i >= 16 ? 0xFFFF : __mmask16((1 << (size - i)) - 1);
            const __m512 block = _mm512_maskz_loadu_ps(inside, score + i);
            const __mmask16 reaches = _mm512_mask_cmp_ps_mask(inside, block, _mm512_set1_ps(least), _CMP_GE_OQ);
            const __m512i index = _mm512_add_epi32(ahead, _mm512_set1_epi32(i));
            _mm512_storeu_ps(kept.score.data() + kept.count, _mm512_maskz_compress_ps(reaches, block));
            _mm512_storeu_si512(kept.index.data() + kept.count, _mm512_maskz_compress_epi32(reaches, index));
            kept.count += __builtin_popcount(reaches);
        }
    }

    // Few go to the place that their count of betters says, without a branch to mispredict.
    static AVX512_TARGET void select(Candidates& from, Best& best) {
        if (from.count > 8 * best.k + 64) return select_by_insertion(from, best);
        float* score = from.score.data();
        _mm512_storeu_ps(score + from.count, _mm512_set1_ps(-std::numeric_limits<float>::infinity()));
        for (int32_t i = 0; i < from.count; i++) {
            const __m512 mine = _mm512_set1_ps(score[i]);
            int32_t before = 0;
            for (int32_t block = 0; block < from.count; block += 16) {
                const __m512 others = _mm512_loadu_ps(score + block);
                const int32_t earlier = i - block >= 16 ? 0xFFFF : i > block ? (1 << (i - block)) - 1 : 0;
                const __mmask16 above = _mm512_cmp_ps_mask(others, mine, _CMP_GT_OQ);
                const __mmask16 equal = _mm512_cmp_ps_mask(others, mine, _CMP_EQ_OQ);
                before += __builtin_popcount(above | (equal & earlier));
            }
            if (before < best.k) {
                best.score[before] = score[i];
                best.index[before] = from.index[i];
            }
        }
    }
};
#else
using Vectors = Loops;
#endif

struct Scratch {
    Best by_row, by_column, sums;
    Candidates candidates;
    Scratch(int32_t k, int32_t room) : by_row(k), by_column(k), sums(k) {
        candidates.score.resize(room);
        candidates.index.resize(room);
    }
};

template <class Steps>
INLINE void best_cells(const float* row, const float* column, int32_t rows, int32_t columns, Scratch& scratch,
                       float* score, int64_t* cell) {
    Best &by_row = scratch.by_row, &by_column = scratch.by_column, &sums = scratch.sums;
    Candidates& candidates = scratch.candidates;
    const int32_t k = sums.k;
    Steps::filter(row, rows, k, candidates);
    Steps::select(candidates, by_row);
    Steps::filter(column, columns, k, candidates);
    Steps::select(candidates, by_column);
    candidates.count = 0;
    // Rank (i, j) is beaten by (i + 1)(j + 1) - 1 others: only those with (i + 1)(j + 1) <= k can be among the k best.
    for (int32_t i = 0; i < k; i++)
        for (int32_t j = 0; (i + 1) * (j + 1) <= k; j++) {
            candidates.score[candidates.count] = by_row.score[i] + by_column.score[j];
            candidates.index[candidates.count++] = i * k + j;
        }
    Steps::select(candidates, sums);
    for (int32_t i = 0; i < k; i++) {
        const int64_t r = by_row.index[sums.index[i] / k], c = by_column.index[sums.index[i] % k];
        score[i] = sums.score[i];
        cell[i] = r * columns + c;
    }
}

#define STAMP(SET, TARGET, STEPS)                                                                                   \
    TARGET void best_cells_##SET(const float* row, const float* column, int32_t rows, int32_t columns,              \
                                 Scratch& scratch, float* score, int64_t* cell) {                                   \
        best_cells<STEPS>(row, column, rows, columns, scratch, score, cell);                                        \
    }
STAMP(portable, PORTABLE_TARGET, Loops)
STAMP(avx2, AVX2_TARGET, Loops)
STAMP(avx512, AVX512_TARGET, Vectors)
#undef STAMP

// Emits (row, column) of every sum above the threshold, rows ascending and columns within them.
template <class Emit>
void above_threshold(const float* row, const float* column, int32_t rows, int32_t columns, float threshold,
                     std::vector<int32_t>& candidates, Emit emit) {
    const float row_best = *std::max_element(row, row + rows);
    const float column_best = *std::max_element(column, column + columns);
    candidates.clear();
    for (int32_t c = 0; c < columns; c++)
        if (row_best + column[c] > threshold) candidates.push_back(c);
    for (int32_t r = 0; r < rows; r++)
        if (row[r] + column_best > threshold)
            for (int32_t c : candidates)
                if (row[r] + column[c] > threshold) emit(r, c);
}

}  // namespace

extern "C" {

// (R, k) scores, best first, and cells row * M + column; k is at most N and M.
void product_key_topk(const float* row, const float* column, int64_t groups, int32_t rows, int32_t columns, int32_t k,
                      int32_t set, int32_t threads, float* score, int64_t* cell) {
    const auto best = CHOOSE(set, best_cells_portable, best_cells_avx2, best_cells_avx512);
    int32_t pairs = 0;
    for (int32_t i = 1; i <= k; i++) pairs += k / i;
    const int32_t room = std::max({rows, columns, pairs, k}) + 16;
    in_threads(groups, threads, [=](int64_t first, int64_t last) {
        Scratch scratch(k, room);
        for (int64_t g = first; g < last; g++)
            best(row + g * rows, column + g * columns, rows, columns, scratch, score + g * k, cell + g * k);
    });
}

// (R) how many sums of each (token, head) are above its head's threshold.
void product_key_count(const float* row, const float* column, const float* threshold, int64_t groups, int64_t heads,
                       int32_t rows, int32_t columns, int32_t threads, int64_t* count) {
    in_threads(groups, threads, [=](int64_t first, int64_t last) {
        std::vector<int32_t> candidates;
        for (int64_t g = first; g < last; g++) {
            int64_t found = 0;
            above_threshold(row + g * rows, column + g * columns, rows, columns, threshold[g % heads], candidates,
                            [&](int32_t, int32_t) { found++; });
            count[g] = found;
        }
    });
}

// Token, head, row and column of those sums; the ones of each (token, head) begin at start.
void product_key_fill(const float* row, const float* column, const float* threshold, const int64_t* start,
                      int64_t groups, int64_t heads, int32_t rows, int32_t columns, int32_t threads, int64_t* token,
                      int64_t* head, int64_t* r, int64_t* c) {
    in_threads(groups, threads, [=](int64_t first, int64_t last) {
        std::vector<int32_t> candidates;
        for (int64_t g = first; g < last; g++) {
            int64_t p = start[g];
            above_threshold(row + g * rows, column + g * columns, rows, columns, threshold[g % heads], candidates,
                            [&](int32_t i, int32_t j) {
                                token[p] = g / heads;
                                head[p] = g % heads;
                                r[p] = i;
                                c[p++] = j;
                            });
        }
    });
}
}
