// symbol_table: a layer of symbolic experts, run from records of those that are left.
//
// N tokens, D model width; what the tables hold is told in kernels/symbol_table/tables.py, how records are made of them,
// and checked, in kernels/symbol_table/records.py. Of the arguments of a call the tokens are checked here.

#include "../native.h"

extern "C" {

// As kernels/symbol_table/native.py lays it out.
struct Symbols {
    const int32_t* first;   // cell c holds the records first[c] to first[c + 1]
    const uint8_t* record;  // `stride` bytes each: a Head, coefficients, indices, v
    const int32_t *spoken_first, *spoken;  // (O, V + 1): records that fire where a token stands o places back
    const int32_t* rule;                   // the wire by which record `by_circuit` + i fires
    const uint8_t* gate;
    const int32_t *wire_a, *wire_b;
    const int32_t *true_first, *true_literal;  // (O, V + 1): literals that are true of a token o places back
    const float *dense_u, *spline_low, *spline_high, *spline_coefficient;
    AxisBiases biases;
    int64_t stride, coordinates, num_spoken, by_circuit, rules, literals, gates, vocabulary, places;
};

// The first token that is none: where it stands, and which it is.
struct Wrong {
    int64_t is, at, value;
};
}

namespace {

// As kernels/symbol_table/records.py writes it.
struct Head {
    float scale, offset, intercept, v_scale;
    int32_t code, spline_row, dense_row, unused;  // the rows are -1 where there is none
};

constexpr int64_t TOKENS_AT_ONCE = 128;  // their wires and lists stay in the nearest caches
constexpr int64_t RECORDS_AHEAD = 6;
constexpr int32_t SPLINE = 255, KNOTS = 9;
constexpr float EXP_END = 10;

INLINE float spline(const Symbols& symbols, int64_t row, float z) {
    const float low = symbols.spline_low[row], high = symbols.spline_high[row];
    float position = (z - low) / (high - low);
    position = position < 0 ? 0 : position > 1 ? 1 : position;  // nan stays
    position *= KNOTS - 1;
    const int32_t cell = position >= 0 ? std::min(int32_t(position), KNOTS - 2) : 0;
    const float t = position - float(cell), s = 1 - t;
    const float* c = symbols.spline_coefficient + row * (KNOTS + 2) + cell;
    return (s * s * s * c[0] + (3 * t * t * t - 6 * t * t + 4) * c[1] + (-3 * t * t * t + 3 * t * t + 3 * t + 1) * c[2] +
            t * t * t * c[3]) / 6;
}

// The catalogue of kernels/symbol_table/functions.py.
INLINE float function_of(int32_t code, float z) {
    const float positive = z < 0 ? 0 : z;
    switch (code) {
        case 0: return 1;
        case 1: return z;
        case 2: return z * z;
        case 3: return positive;
        case 4: return positive * positive;
        case 5: return 0.5f * z * (1 + std::erf(z * 0.70710678118654752f));
        case 6: return z / (1 + std::exp(-z));
        case 7: return 1 / (1 + std::exp(-z));
        case 8: return std::tanh(z);
        case 9: return z > 20 ? z : std::log1p(std::exp(z));
        case 10: return std::fabs(z);
        case 11: return std::exp(-z * z);
        case 12: return z * z * z;
        case 13: return z * z * (z * z);
        case 14: return z * z * (z * z) * z;
        case 15: return std::copysign(std::sqrt(std::fabs(z)), z);
        case 16: return std::fabs(z) * std::sqrt(std::fabs(z));
        case 17: return std::exp(z > EXP_END ? EXP_END : z);
        case 18: return std::copysign(std::log1p(std::fabs(z)), z);
        case 19: return std::sin(z);
        case 20: return std::cos(z);
        case 21: return std::atan(z);
        default: return 0;
    }
}

// The records that fire on some tokens, in order of the tokens.
struct Firings {
    std::vector<int64_t> record, start;
    std::vector<float> weight;
    std::vector<uint8_t> wire;          // literals, then gates: a row of tokens each
    std::vector<int32_t> rule, rule_start;  // that are true, in order of the tokens
    std::vector<const float*> bias;
};

// The first of these tokens that is none, if there is one.
bool none_among(const Symbols& symbols, const int64_t* token, int64_t first, int64_t count, Wrong& wrong) {
    for (int64_t at = first; at < first + count; at++)
        if (token[at] < 0 || token[at] >= symbols.vocabulary) return wrong = {1, at, token[at]}, true;
    return false;
}

// Visits what (O, V + 1) lists hold for a token and those before it, as far as the window and the places go.
template <class Visit>
INLINE void look_back(const Symbols& symbols, const int32_t* first, const int32_t* entry, const int64_t* token,
                      int64_t in_window, Visit visit) {
    for (int64_t back = 0; back < symbols.places && back <= in_window; back++) {
        const int32_t* begin = first + back * (symbols.vocabulary + 1) + token[-back];
        for (int32_t i = begin[0]; i < begin[1]; i++) visit(entry[i]);
    }
}

// What literals and gates say of `count` tokens from `first` on.
void evaluate(const Symbols& symbols, const int64_t* token, int64_t length, int64_t first, int64_t count,
              std::vector<uint8_t>& wire) {
    wire.resize((symbols.literals + symbols.gates) * count);
    std::fill(wire.begin(), wire.begin() + symbols.literals * count, uint8_t(0));
    for (int64_t t = 0; t < count; t++)
        look_back(symbols, symbols.true_first, symbols.true_literal, token + first + t, (first + t) % length,
                  [&](int32_t literal) { wire[literal * count + t] = 1; });
    for (int64_t g = 0; g < symbols.gates; g++) {
        const uint8_t* a = wire.data() + symbols.wire_a[g] * count;
        const uint8_t* b = wire.data() + symbols.wire_b[g] * count;
        uint8_t* out = wire.data() + (symbols.literals + g) * count;
        // The gate as a sum modulo 2 of 1, a, b and ab (its algebraic normal form).
        const uint8_t none = symbols.gate[g] >> 3 & 1, with_b = none ^ (symbols.gate[g] >> 2 & 1);
        const uint8_t with_a = none ^ (symbols.gate[g] >> 1 & 1);
        const uint8_t with_both = none ^ with_a ^ with_b ^ (symbols.gate[g] & 1);
        for (int64_t t = 0; t < count; t++) out[t] = none ^ (with_a & a[t]) ^ (with_b & b[t]) ^ (with_both & a[t] & b[t]);
    }
}

// Sorts the rules that are true by their tokens.
void sort_rules(const Symbols& symbols, int64_t count, Firings& firings) {
    firings.rule_start.assign(count + 1, 0);
    const auto for_true = [&](auto visit) {
        for (int64_t r = 0; r < symbols.rules; r++) {
            const uint8_t* row = firings.wire.data() + symbols.rule[r] * count;
            for (int64_t t = 0; t < count; t += 8) {
                uint64_t eight = 0;
                std::memcpy(&eight, row + t, std::min<int64_t>(8, count - t));
                for (int64_t i = t; eight; i++, eight >>= 8)
                    if (eight & 1) visit(i, int32_t(r));
            }
        }
    };
    for_true([&](int64_t t, int32_t) { firings.rule_start[t + 1]++; });
    for (int64_t t = 0; t < count; t++) firings.rule_start[t + 1] += firings.rule_start[t];
    firings.rule.resize(firings.rule_start[count]);
    std::vector<int32_t> next(firings.rule_start.begin(), firings.rule_start.end() - 1);
    for_true([&](int64_t t, int32_t r) { firings.rule[next[t]++] = r; });
}

// Lists what fires on each token: the records of its cells, then those whose rule is true.
void list(const Symbols& symbols, const Routing& routing, const int64_t* token, int64_t length, int64_t first,
          int64_t count, Firings& firings) {
    const auto fire = [&](int64_t record, float gate) {
        firings.record.push_back(record);
        firings.weight.push_back(gate);
    };
    firings.record.clear();
    firings.weight.clear();
    firings.start.assign(1, 0);
    for (int64_t t = 0; t < count; t++) {
        for (int64_t p = routing.start[first + t]; p < routing.start[first + t + 1]; p++)
            for (int64_t r = symbols.first[routing.cell[p]]; r < symbols.first[routing.cell[p] + 1]; r++)
                fire(r, routing.gate[p]);
        if (symbols.num_spoken)
            look_back(symbols, symbols.spoken_first, symbols.spoken, token + first + t, (first + t) % length,
                      [&](int32_t record) { fire(record, 1); });
        if (symbols.rules)
            for (int32_t i = firings.rule_start[t]; i < firings.rule_start[t + 1]; i++)
                fire(symbols.by_circuit + firings.rule[i], 1);
        firings.start.push_back(int64_t(firings.record.size()));
    }
}

// A sum of few coordinates, in four chains of additions that do not wait for each other.
INLINE float sparse_dot(const uint16_t* index, const float* coefficient, int64_t count, const float* x) {
    float part[4] = {0, 0, 0, 0};
    int64_t k = 0;
    for (; k + 4 <= count; k += 4)
        for (int j = 0; j < 4; j++) part[j] += coefficient[k + j] * x[index[k + j]];
    for (; k < count; k++) part[0] += coefficient[k] * x[index[k]];
    return (part[0] + part[1]) + (part[2] + part[3]);
}

// Multiplies the weight of each firing, its gate, with the magnitude scale * f(z) + offset and the scale of v.
INLINE void weigh(const Symbols& symbols, const float* x, int64_t tokens, Firings& firings, RowDots dense_dots) {
    const int64_t width = symbols.biases.width, all = firings.start[tokens];
    for (int64_t t = 0; t < tokens; t++, x += width)
        for (int64_t p = firings.start[t]; p < firings.start[t + 1]; p++) {
            if (p + RECORDS_AHEAD < all) {
                const uint8_t* ahead = symbols.record + firings.record[p + RECORDS_AHEAD] * symbols.stride;
                for (int64_t i = 0; i < symbols.stride; i += 64) __builtin_prefetch(ahead + i);
            }
            const uint8_t* record = symbols.record + firings.record[p] * symbols.stride;
            Head head;
            std::memcpy(&head, record, sizeof head);
            const auto* coefficient = reinterpret_cast<const float*>(record + sizeof head);
            const auto* index = reinterpret_cast<const uint16_t*>(coefficient + symbols.coordinates);
            float z;
            if (head.dense_row < 0) {
                z = sparse_dot(index, coefficient, symbols.coordinates, x);
            } else {
                const int64_t row = head.dense_row;
                dense_dots(x, reinterpret_cast<const uint8_t*>(symbols.dense_u), width, {&row, 0, 1, 1, 4 * width}, &z);
            }
            z += head.intercept;
            const float value = head.code == SPLINE ? spline(symbols, head.spline_row, z) : function_of(head.code, z);
            firings.weight[p] *= (head.scale * value + head.offset) * head.v_scale;
        }
}

#define STAMP(SET, TARGET)                                                                                           \
    TARGET void weigh_##SET(const Symbols& symbols, const float* x, int64_t tokens, Firings& firings, RowDots dots) { \
        weigh(symbols, x, tokens, firings, dots);                                                                    \
    }
STAMP(portable, PORTABLE_TARGET)
STAMP(avx2, AVX2_TARGET)
STAMP(avx512, AVX512_TARGET)
#undef STAMP

}  // namespace

extern "C" {

// (N, D) for each token the sum of gate * magnitude * v over the experts that fire, and the biases of its axes. Tokens
// lie in windows of `length`: a token looks back no further than to its window's first.
void symbol_table_run(const Symbols* given, const float* x, int64_t* words, int64_t tokens, int64_t pairs, int64_t keys,
                      const int64_t* token, int64_t length, int32_t set, int32_t threads, float* out, Wrong* wrong) {
    const Symbols& symbols = *given;
    const Routing routing(words, tokens, pairs, keys);
    const int64_t width = symbols.biases.width;
    const int64_t v = sizeof(Head) + symbols.coordinates * int64_t(sizeof(float) + sizeof(uint16_t));
    const auto weigh_all = CHOOSE(set, weigh_portable, weigh_avx2, weigh_avx512);
    const RowDots dense_dots = row_dots_of(FLOAT32, set);
    const RowSums add_rows = row_sums_of(INT4, set);
    wrong->is = 0;
    if ((symbols.num_spoken || symbols.rules) && none_among(symbols, token, 0, tokens, *wrong)) return;
    in_threads(tokens, threads, [&](int64_t begin, int64_t end) {
        thread_local Firings kept;
        Firings& firings = kept;
        for (int64_t first = begin; first < end; first += TOKENS_AT_ONCE) {
            const int64_t count = std::min(TOKENS_AT_ONCE, end - first);
            if (symbols.rules) {
                evaluate(symbols, token, length, first, count, firings.wire);
                sort_rules(symbols, count, firings);
            }
            list(symbols, routing, token, length, first, count, firings);
            weigh_all(symbols, x + first * width, count, firings, dense_dots);
            for (int64_t t = 0; t < count; t++) {
                const Pairs found{firings.record.data(), firings.start[t], firings.start[t + 1], firings.start[count],
                                  symbols.stride};
                float* y = out + (first + t) * width;
                add_rows(symbols.record + v, width, found, firings.weight.data() + firings.start[t], y);
            }
            if (symbols.biases.row)
                add_axis_biases(symbols.biases, routing, first, count, set, firings.bias, out + first * width);
        }
    });
}
}
