// axis_bias: the sum of the bias rows of the sub-keys that a token passes, by their gates.
//
// N tokens, D model width, Q scores that pass.

#include "../native.h"

namespace {

enum Wrong : int32_t { NOTHING, INDEX, BEGINS };

// y += sum of gate * row for some tokens, 64 columns at a time: so much of all rows stays near, and sums in registers.
INLINE void weighted_sums(const float* const* row, const float* gate, const int64_t* start, int64_t tokens,
                          int64_t width, float* y) {
    typedef float Eight __attribute__((vector_size(32)));
    int64_t d = 0;
    for (; d + 64 <= width; d += 64)
        for (int64_t t = 0; t < tokens; t++) {
            Eight sum[8];
            std::memcpy(sum, y + t * width + d, sizeof sum);
            for (int64_t q = start[t] - start[0]; q < start[t + 1] - start[0]; q++)
                for (int j = 0; j < 8; j++) {
                    Eight part;
                    std::memcpy(&part, row[q] + d + 8 * j, sizeof part);
                    sum[j] += gate[q] * part;
                }
            std::memcpy(y + t * width + d, sum, sizeof sum);
        }
    for (; d < width; d++)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t q = start[t] - start[0]; q < start[t + 1] - start[0]; q++)
                y[t * width + d] += gate[q] * row[q][d];
}

#define STAMP(SET, TARGET)                                                                                    \
    TARGET void sums_##SET(const float* const* row, const float* gate, const int64_t* start, int64_t tokens, \
                           int64_t width, float* y) {                                                        \
        weighted_sums(row, gate, start, tokens, width, y);                                                   \
    }
STAMP(portable, PORTABLE_TARGET)
STAMP(avx2, AVX2_TARGET)
STAMP(avx512, AVX512_TARGET)
#undef STAMP

}  // namespace

void add_axis_biases(const AxisBiases& biases, const Routing& routing, int64_t first, int64_t count, int32_t set,
                     std::vector<const float*>& row, float* y) {
    const int64_t heads = biases.heads, rows = biases.rows, columns = biases.columns;
    const int64_t* start = routing.key_start + first;
    row.resize(start[count] - start[0]);
    for (int64_t q = start[0]; q < start[count]; q++) {
        int64_t key = routing.score[q];
        const bool is_row = key < heads * rows;
        for (key -= is_row ? 0 : heads * rows; key >= (is_row ? rows : columns);) key -= is_row ? rows : columns;
        row[q - start[0]] = (is_row ? biases.row : biases.column) + key * biases.stride;
    }
    const auto sums = CHOOSE(set, sums_portable, sums_avx2, sums_avx512);
    sums(row.data(), routing.key_gate + start[0], start, count, biases.width, y);
}

extern "C" {

// (N, D) the sum of the rows of `row` and `column` that belong to a token's passing scores, by their gates.
int32_t axis_bias_sum(const int32_t* score, const float* gate, const int64_t* key_start, const float* row,
                         const float* column, int64_t tokens, int64_t keys, int64_t heads, int64_t rows,
                         int64_t columns, int64_t width, int32_t set, int32_t threads, float* out) {
    for (int64_t n = 0; n < tokens; n++)
        if (key_start[n] < 0 || key_start[n] > key_start[n + 1]) return BEGINS;
    if (key_start[tokens] > keys) return BEGINS;
    for (int64_t q = 0; q < keys; q++)
        if (score[q] < 0 || score[q] >= heads * (rows + columns)) return INDEX;
    Routing routing{};
    routing.key_start = const_cast<int64_t*>(key_start);
    routing.score = const_cast<int32_t*>(score);
    routing.key_gate = const_cast<float*>(gate);
    const AxisBiases biases{row, column, heads, rows, columns, width, width};
    in_threads(tokens, threads, [&](int64_t first, int64_t last) {
        std::vector<const float*> chosen;
        std::fill(out + first * width, out + last * width, 0.0f);
        add_axis_biases(biases, routing, first, last - first, set, chosen, out + first * width);
    });
    return NOTHING;
}
}
