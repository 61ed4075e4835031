// One step of an int4 table with an int4 accumulator: sum, second moment, stochastic rounding and store in one pass.
//
// R touched rows of width D; the pairs of row i are start[i] to start[i + 1]. The rule is that of
// kernels/sr_update/reference.py, the random bits those of kernels/philox.py.

#include <atomic>

#include "../native.h"

namespace {

struct Table {
    uint8_t *weight, *accumulator;
    uint16_t* scale;
    float* moment;
};

struct Rule {
    float learning_rate, decay, fresh, clip, growth, lowest, highest;
    uint64_t stream;
    uint32_t step;
};

struct Counts {
    int64_t flips = 0, growths = 0, refused = 0;
};

// uniform[d] for the columns of a row: 24 random bits, as kernels/philox.py draws them.
INLINE void row_uniforms(int64_t row, int64_t width, const Rule& rule, float* uniform) {
    const int64_t blocks = (width + 3) / 4;
#pragma omp simd
    for (int64_t g = 0; g < blocks; g++) {
        uint32_t c0 = uint32_t(g), c1 = uint32_t(row), c2 = rule.step, c3 = 0;
        uint32_t k0 = uint32_t(rule.stream), k1 = uint32_t(rule.stream >> 32);
        for (int round = 0; round < 10; round++) {
            const uint64_t product0 = uint64_t(c0) * 0xD2511F53u, product1 = uint64_t(c2) * 0xCD9E8D57u;
            c0 = uint32_t(product1 >> 32) ^ c1 ^ k0;
            c1 = uint32_t(product1);
            c2 = uint32_t(product0 >> 32) ^ c3 ^ k1;
            c3 = uint32_t(product0);
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        uniform[4 * g] = float(int32_t(c0 >> 8)) * 0x1p-24f;
        uniform[4 * g + 1] = float(int32_t(c1 >> 8)) * 0x1p-24f;
        uniform[4 * g + 2] = float(int32_t(c2 >> 8)) * 0x1p-24f;
        uniform[4 * g + 3] = float(int32_t(c3 >> 8)) * 0x1p-24f;
    }
}

INLINE int32_t latent(uint8_t weight, uint8_t accumulator, bool high) {
    const int32_t w = high ? int8_t(weight) >> 4 : int32_t(uint32_t(weight) << 28) >> 28;
    const int32_t a = high ? int8_t(accumulator) >> 4 : int32_t(uint32_t(accumulator) << 28) >> 28;
    return 16 * w + a;
}

// Scratch of one row: its gradient, then where its latents move to; and the uniforms.
struct Scratch {
    std::vector<float> gradient, uniform;
    std::vector<int8_t> q;
};

INLINE void update_row(Table table, int64_t row, int64_t width, const float* source, const int64_t* token,
                       const float* weight, int64_t pairs, const Rule& rule, Scratch& scratch, Counts& counts) {
    float *g = scratch.gradient.data(), *u = scratch.uniform.data();
    std::fill(g, g + width, 0.0f);
    for (int64_t p = 0; p < pairs; p++) {
        const float* x = source + token[p] * width;
        const float w = weight[p];
#pragma omp simd
        for (int64_t d = 0; d < width; d++) g[d] += w * x[d];
    }
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < width; d++) squares += g[d] * g[d];
    const float mean_square = squares / float(width), old = table.moment[row];
    const float moment = old == 0 ? mean_square : rule.decay * old + rule.fresh * mean_square;
    if (!std::isfinite(moment)) {
        counts.refused++;
        return;
    }
    if (moment == 0) return;  // never touched, and no gradient now

    uint8_t *w = table.weight + row * (width / 2), *a = table.accumulator + row * (width / 2);
    const float scale = half_to_float(table.scale[row]), root = std::sqrt(moment);
    const float step = rule.learning_rate * 16 / scale;
    const int64_t half = width / 2;
    int32_t outside = 0;
#pragma omp simd reduction(+ : outside)
    for (int64_t j = 0; j < half; j++) {
        const float low = std::min(rule.clip, std::max(-rule.clip, g[j] / root));
        const float high = std::min(rule.clip, std::max(-rule.clip, g[half + j] / root));
        g[j] = float(latent(w[j], a[j], false)) - step * low;
        g[half + j] = float(latent(w[j], a[j], true)) - step * high;
        outside += int32_t(std::fabs(g[j]) > -rule.lowest) + int32_t(std::fabs(g[half + j]) > -rule.lowest);
    }
    if (float(outside) > float(width) / 64) {
        const uint16_t grown = float_to_half(scale * rule.growth);
        if (grown >= 0x7C00) {
            counts.refused++;
            return;
        }
        // The ratio of the rounded scales, so that growth itself changes no weight beyond stochastic rounding.
        const float ratio = scale / half_to_float(grown);
        for (int64_t d = 0; d < width; d++) g[d] *= ratio;
        table.scale[row] = grown;
        counts.growths++;
    }
    table.moment[row] = moment;
    row_uniforms(row, width, rule, u);
    int8_t* q = scratch.q.data();
#pragma omp simd
    for (int64_t d = 0; d < width; d++) {
        // floor(moved + uniform), without the sum: it would round, and move values that have no gradient.
        const float whole = std::floor(g[d]);
        const float rounded = whole + float(u[d] >= 1 - (g[d] - whole));
        q[d] = int8_t(int32_t(std::min(rule.highest, std::max(rule.lowest, rounded))));
    }
    int32_t flips = 0;
#pragma omp simd reduction(+ : flips)
    for (int64_t j = 0; j < half; j++) {
        const int32_t low = (q[j] + 8) >> 4, high = (q[half + j] + 8) >> 4;
        const uint8_t packed = uint8_t((low & 15) | (high << 4));
        const uint8_t changed = packed ^ w[j];
        flips += int32_t((changed & 15) != 0) + int32_t((changed & 240) != 0);
        w[j] = packed;
        a[j] = uint8_t(((q[j] - 16 * low) & 15) | ((q[half + j] - 16 * high) << 4));
    }
    counts.flips += flips;
}

#define STAMP(SET, TARGET)                                                                                          \
    TARGET void update_row_##SET(Table table, int64_t row, int64_t width, const float* source, const int64_t* token, \
                                 const float* weight, int64_t pairs, const Rule& rule, Scratch& scratch,            \
                                 Counts& counts) {                                                                  \
        update_row(table, row, width, source, token, weight, pairs, rule, scratch, counts);                         \
    }
STAMP(portable, PORTABLE_TARGET)
STAMP(avx2, AVX2_TARGET)
STAMP(avx512, AVX512_TARGET)

}  // namespace

// Updates the table in place; adds flips, growths and refused rows to counts.
extern "C" void sr_update(uint8_t* table_weight, uint8_t* table_accumulator, uint16_t* table_scale, float* table_moment,
                          const float* source, const int64_t* row, const int64_t* start, const int64_t* token,
                          const float* weight, int64_t rows, int64_t width, float learning_rate, float decay,
                          float fresh, float clip, float growth, float lowest, float highest, uint64_t stream,
                          uint32_t step, int32_t set, int32_t threads, int64_t* counts) {
    const Table table{table_weight, table_accumulator, table_scale, table_moment};
    const Rule rule{learning_rate, decay, fresh, clip, growth, lowest, highest, stream, step};
    const auto update = CHOOSE(set, update_row_portable, update_row_avx2, update_row_avx512);
    std::atomic<int64_t> flips{0}, growths{0}, refused{0};
    in_threads(rows, threads, [&](int64_t first, int64_t last) {
        Scratch scratch{std::vector<float>(width), std::vector<float>((width + 3) / 4 * 4), std::vector<int8_t>(width)};
        Counts mine;
        for (int64_t i = first; i < last; i++)
            update(table, row[i], width, source, token + start[i], weight + start[i], start[i + 1] - start[i], rule,
                   scratch, mine);
        flips += mine.flips;
        growths += mine.growths;
        refused += mine.refused;
    });
    counts[0] += flips;
    counts[1] += growths;
    counts[2] += refused;
}
