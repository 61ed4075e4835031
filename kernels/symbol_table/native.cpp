// symbol_table: a layer of symbolic experts, run from its tables.
//
// N tokens, D model width; what the tables hold is told in kernels/symbol_table/tables.py. Every index is compared with
// its limit where it is used, so that no table reads another's memory; the first that is wrong is reported.

#include "../native.h"

extern "C" {

// kernels/expert_sum/native.cpp: dot products with rows and weighted sums of rows, for each instruction set.
void row_dots(const float* x, const uint8_t* table, const uint16_t* scale, const int64_t* expert, const int64_t* start,
              int64_t tokens, int64_t width, int32_t precision, int32_t set, int32_t threads, float* out);
void row_sums(const uint8_t* table, const uint16_t* scale, const int64_t* expert, const int64_t* start,
              const float* weight, int64_t tokens, int64_t width, int32_t precision, int32_t set, int32_t threads,
              float* out);

// As kernels/symbol_table/native.py lays it out: first the tables in their order, then their sizes.
struct SymbolTables {
    const int32_t* cell_start;
    const uint8_t *tier, *code;
    const float *scale, *offset;
    const int16_t* index;
    const float *coefficient, *intercept;
    const int32_t* dense_row;
    const float* dense_u;
    const int32_t* rule;
    const uint8_t* gate;
    const int32_t *wire_a, *wire_b;
    const uint8_t *member, *literal_offset;
    const int32_t* spline_row;
    const float *spline_low, *spline_high, *spline_coefficient;
    const uint8_t* v;
    const uint16_t* v_scale;
    int64_t width, cells, experts, coordinates, dense, gates, literals, vocabulary, splines, places;
};

// What is wrong, numbered as in native.py; 0 for nothing.
struct Wrong {
    int64_t what, at, value, most;
};
}

namespace {

enum What : int64_t { START = 1, CELL, GATE, CONTEXT, CELL_START, TIER, CODE, INDEX, DENSE_ROW, RULE, WIRE_A, WIRE_B,
                      LITERAL_OFFSET, SPLINE_ROW };
enum Tier : uint8_t { T0, T1, T2, T3, T4 };

constexpr int64_t TOKENS_AT_ONCE = 256;  // their lists of experts stay in a core's second cache
constexpr int32_t FLOAT32 = 0, INT4 = 3;  // precisions of row_dots and row_sums
constexpr int32_t LAST_FUNCTION = 21, SPLINE = 255, KNOTS = 9;
constexpr float EXP_END = 10;

bool outside(int64_t value, int64_t least, int64_t most, What what, int64_t at, Wrong& wrong) {
    if (value >= least && value <= most) return false;
    wrong = {what, at, value, most};
    return true;
}

float spline(const SymbolTables& tables, int64_t row, float z) {
    const float low = tables.spline_low[row], high = tables.spline_high[row];
    float position = (z - low) / (high - low);
    position = position < 0 ? 0 : position > 1 ? 1 : position;  // nan stays
    position *= KNOTS - 1;
    const int32_t cell = position >= 0 ? std::min(int32_t(position), KNOTS - 2) : 0;
    const float t = position - float(cell), s = 1 - t;
    const float* c = tables.spline_coefficient + row * (KNOTS + 2) + cell;
    return (s * s * s * c[0] + (3 * t * t * t - 6 * t * t + 4) * c[1] + (-3 * t * t * t + 3 * t * t + 3 * t + 1) * c[2] +
            t * t * t * c[3]) / 6;
}

// The catalogue of kernels/symbol_table/functions.py; false for a code that is not in it.
bool function_of(int32_t code, float z, float& value) {
    const float positive = z < 0 ? 0 : z;
    switch (code) {
        case 0: value = 1; return true;
        case 1: value = z; return true;
        case 2: value = z * z; return true;
        case 3: value = positive; return true;
        case 4: value = positive * positive; return true;
        case 5: value = 0.5f * z * (1 + std::erf(z * 0.70710678118654752f)); return true;
        case 6: value = z / (1 + std::exp(-z)); return true;
        case 7: value = 1 / (1 + std::exp(-z)); return true;
        case 8: value = std::tanh(z); return true;
        case 9: value = z > 20 ? z : std::log1p(std::exp(z)); return true;
        case 10: value = std::fabs(z); return true;
        case 11: value = std::exp(-z * z); return true;
        case 12: value = z * z * z; return true;
        case 13: value = z * z * (z * z); return true;
        case 14: value = z * z * (z * z) * z; return true;
        case 15: value = std::copysign(std::sqrt(std::fabs(z)), z); return true;
        case 16: value = std::fabs(z) * std::sqrt(std::fabs(z)); return true;
        case 17: value = std::exp(z > EXP_END ? EXP_END : z); return true;
        case 18: value = std::copysign(std::log1p(std::fabs(z)), z); return true;
        case 19: value = std::sin(z); return true;
        case 20: value = std::cos(z); return true;
        case 21: value = std::atan(z); return true;
        default: return false;
    }
}

// The experts that fire on some tokens, in order of the tokens, and among them those with a dense u.
struct Firings {
    std::vector<int64_t> expert, start, dense_row, dense_start;
    std::vector<float> weight, dense_z;
    std::vector<uint8_t> wire;  // literals, then gates, of one token

    void clear() {
        for (auto* list : {&expert, &start, &dense_row, &dense_start}) list->clear();
        weight.clear();
        start.push_back(0);
        dense_start.push_back(0);
    }
};

// Experts whose firing is logic. Blocks without one are left behind at the speed of memory.
std::vector<int32_t> logical_experts(const SymbolTables& tables) {
    std::vector<int32_t> found;
    for (int64_t block = 0; block < tables.experts; block += 64) {
        const int64_t last = std::min(block + 64, tables.experts);
        uint8_t any = 0;
        for (int64_t e = block; e < last; e++) any |= uint8_t(tables.tier[e] - T2) < 2;
        for (int64_t e = block; any && e < last; e++)
            if (tables.tier[e] == T2 || tables.tier[e] == T3) found.push_back(int32_t(e));
    }
    return found;
}

bool add_routed(const SymbolTables& tables, const int64_t* cell, const float* gate, int64_t first, int64_t last,
                Firings& firings, Wrong& wrong) {
    for (int64_t p = first; p < last; p++) {
        if (outside(cell[p], 0, tables.cells - 1, CELL, p, wrong)) return false;
        if (!std::isfinite(gate[p])) return wrong = {GATE, p, 0, 0}, false;
        const int64_t begin = tables.cell_start[cell[p]], end = tables.cell_start[cell[p] + 1];
        if (outside(begin, 0, tables.experts, CELL_START, cell[p], wrong)) return false;
        if (outside(end, 0, tables.experts, CELL_START, cell[p] + 1, wrong)) return false;
        for (int64_t e = begin; e < end; e++) {
            if (outside(tables.tier[e], 0, T4, TIER, e, wrong)) return false;
            if (tables.tier[e] > T1) continue;
            firings.expert.push_back(e);
            firings.weight.push_back(gate[p]);
            if (tables.tier[e] != T0) continue;
            if (outside(tables.dense_row[e], 0, tables.dense - 1, DENSE_ROW, e, wrong)) return false;
            firings.dense_row.push_back(tables.dense_row[e]);
        }
    }
    return true;
}

// What literals and gates say of some tokens, a row of TOKENS_AT_ONCE bytes each: gates are then a few vectors.
bool evaluate(const SymbolTables& tables, const int64_t* context, int64_t tokens, int64_t first, int64_t count,
              std::vector<uint8_t>& wire, Wrong& wrong) {
    wire.resize((tables.literals + tables.gates) * TOKENS_AT_ONCE);
    for (int64_t l = 0; l < tables.literals; l++) {
        if (outside(tables.literal_offset[l], 0, tables.places - 1, LITERAL_OFFSET, l, wrong)) return false;
        const uint8_t* member = tables.member + l * tables.vocabulary;
        for (int64_t t = 0; t < count; t++) {
            const int64_t at = tables.literal_offset[l] * tokens + first + t;
            if (outside(context[at], -1, tables.vocabulary - 1, CONTEXT, at, wrong)) return false;
            wire[l * TOKENS_AT_ONCE + t] = context[at] >= 0 && member[context[at]];
        }
    }
    for (int64_t g = 0; g < tables.gates; g++) {
        const int64_t before = tables.literals + g - 1;
        if (outside(tables.wire_a[g], 0, before, WIRE_A, g, wrong)) return false;
        if (outside(tables.wire_b[g], 0, before, WIRE_B, g, wrong)) return false;
        const uint8_t* a = wire.data() + tables.wire_a[g] * TOKENS_AT_ONCE;
        const uint8_t* b = wire.data() + tables.wire_b[g] * TOKENS_AT_ONCE;
        uint8_t* out = wire.data() + (before + 1) * TOKENS_AT_ONCE;
        // The gate as a sum modulo 2 of 1, a, b and ab (its algebraic normal form).
        const uint8_t none = tables.gate[g] >> 3 & 1, with_b = none ^ (tables.gate[g] >> 2 & 1);
        const uint8_t with_a = none ^ (tables.gate[g] >> 1 & 1);
        const uint8_t with_both = none ^ with_a ^ with_b ^ (tables.gate[g] & 1);
        for (int64_t t = 0; t < count; t++) out[t] = none ^ (with_a & a[t]) ^ (with_b & b[t]) ^ (with_both & a[t] & b[t]);
    }
    return true;
}

bool add_logical(const SymbolTables& tables, const std::vector<int32_t>& logical, int64_t t, Firings& firings,
                 Wrong& wrong) {
    for (const int32_t e : logical) {
        if (outside(tables.rule[e], 0, tables.gates - 1, RULE, e, wrong)) return false;
        if (!firings.wire[(tables.literals + tables.rule[e]) * TOKENS_AT_ONCE + t]) continue;
        firings.expert.push_back(e);
        firings.weight.push_back(1);
    }
    return true;
}

// A sum of few coordinates, in four chains of additions that do not wait for each other. False for one that is not there.
INLINE bool sparse_dot(const int16_t* index, const float* coefficient, int64_t count, const float* x, int64_t width,
                       float& sum) {
    uint16_t furthest = 0;
    for (int64_t k = 0; k < count; k++) furthest = std::max(furthest, uint16_t(index[k]));
    if (furthest >= width) return false;
    float part[4] = {0, 0, 0, 0};
    int64_t k = 0;
    for (; k + 4 <= count; k += 4)
        for (int j = 0; j < 4; j++) part[j] += coefficient[k + j] * x[index[k + j]];
    for (; k < count; k++) part[0] += coefficient[k] * x[index[k]];
    sum = (part[0] + part[1]) + (part[2] + part[3]);
    return true;
}

// Multiplies each firing's weight, its gate, with the magnitude: scale * f(z) + offset.
bool weigh(const SymbolTables& tables, const float* x, int64_t tokens, Firings& firings, Wrong& wrong) {
    const float* dense_z = firings.dense_z.data();
    for (int64_t t = 0; t < tokens; t++, x += tables.width)
        for (int64_t p = firings.start[t]; p < firings.start[t + 1]; p++) {
            const int64_t e = firings.expert[p];
            float z = 0, value;
            if (tables.tier[e] == T0) {
                z = *dense_z++;
            } else {
                const int16_t* index = tables.index + e * tables.coordinates;
                const float* coefficient = tables.coefficient + e * tables.coordinates;
                if (!sparse_dot(index, coefficient, tables.coordinates, x, tables.width, z)) {
                    int64_t k = 0;
                    while (!outside(index[k], 0, tables.width - 1, INDEX, e * tables.coordinates + k, wrong)) k++;
                    return false;
                }
            }
            z += tables.intercept[e];
            if (tables.code[e] == SPLINE) {
                if (outside(tables.spline_row[e], 0, tables.splines - 1, SPLINE_ROW, e, wrong)) return false;
                value = spline(tables, tables.spline_row[e], z);
            } else if (!function_of(tables.code[e], z, value)) {
                return wrong = {CODE, e, tables.code[e], LAST_FUNCTION}, false;
            }
            firings.weight[p] *= tables.scale[e] * value + tables.offset[e];
        }
    return true;
}

}  // namespace

extern "C" {

// (N, D) for each token the sum of gate * magnitude * v over the experts that fire. `context` has a row of N tokens for
// each place looked back.
void symbol_table(const SymbolTables* given, const float* x, const int64_t* cell, const int64_t* start,
                  const float* gate, const int64_t* context, int64_t tokens, int64_t pairs, int32_t set,
                  int32_t threads, float* out, Wrong* wrong) {
    const SymbolTables& tables = *given;
    *wrong = {0, 0, 0, 0};
    if (outside(start[0], 0, 0, START, 0, *wrong) || outside(start[tokens], pairs, pairs, START, tokens, *wrong)) return;
    for (int64_t t = 0; t < tokens; t++)
        if (outside(start[t], 0, start[t + 1], START, t, *wrong)) return;
    const std::vector<int32_t> logical = logical_experts(tables);
    in_threads(tokens, threads, [&](int64_t begin, int64_t end) {
        Firings firings;
        Wrong mine{0, 0, 0, 0};
        const auto* u = reinterpret_cast<const uint8_t*>(tables.dense_u);
        for (int64_t first = begin; first < end; first += TOKENS_AT_ONCE) {
            const int64_t count = std::min(TOKENS_AT_ONCE, end - first);
            const float* x_first = x + first * tables.width;
            firings.clear();
            bool well = logical.empty() || evaluate(tables, context, tokens, first, count, firings.wire, mine);
            for (int64_t t = first; well && t < first + count; t++) {
                well = add_routed(tables, cell, gate, start[t], start[t + 1], firings, mine) &&
                       add_logical(tables, logical, t - first, firings, mine);
                firings.start.push_back(int64_t(firings.expert.size()));
                firings.dense_start.push_back(int64_t(firings.dense_row.size()));
            }
            if (well) {
                firings.dense_z.resize(firings.dense_row.size());
                row_dots(x_first, u, nullptr, firings.dense_row.data(), firings.dense_start.data(), count, tables.width,
                         FLOAT32, set, 1, firings.dense_z.data());
                well = weigh(tables, x_first, count, firings, mine);
            }
            if (!well) {
#pragma omp critical
                *wrong = mine;
                return;
            }
            row_sums(tables.v, tables.v_scale, firings.expert.data(), firings.start.data(), firings.weight.data(), count,
                     tables.width, INT4, set, 1, out + first * tables.width);
        }
    });
}
}
