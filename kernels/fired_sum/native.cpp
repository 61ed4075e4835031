// fired_sum: what a token's experts add, from the cells that its router left: dot products with rows of u, activation,
// sums of rows of v, biases of the axes.

#include "../native.h"

extern "C" {

// As kernels/fired_sum/native.py lays it out.
struct FiredSum {
    CellStarts cell_start;
    const uint8_t *u, *v;
    const uint16_t *u_scale, *v_scale;  // of rows, IEEE half; null for 1
    const float* bias;
    AxisBiases biases;
    int64_t precision, activation;
};
}

namespace {

constexpr int64_t TOKENS_AT_ONCE = 64;  // their lists of experts stay in a core's first cache

enum Activation : int64_t { RELU2, RELU, GELU, SILU };

INLINE float activated(int64_t activation, float z) {
    const float positive = z < 0 ? 0 : z;
    switch (activation) {
        case RELU2: return positive * positive;
        case RELU: return positive;
        case GELU: return 0.5f * z * (1 + std::erf(z * 0.70710678118654752f));
        default: return z / (1 + std::exp(-z));
    }
}

struct Firings {
    std::vector<int64_t> expert, start;
    std::vector<float> gate, weight;
    std::vector<const float*> bias;
};

void list(const FiredSum& layer, const Routing& routing, int64_t first, int64_t count, Firings& firings) {
    firings.expert.clear();
    firings.gate.clear();
    firings.start.assign(1, 0);
    for (int64_t t = first; t < first + count; t++) {
        for (int64_t p = routing.start[t]; p < routing.start[t + 1]; p++) {
            const int64_t end = layer.cell_start[routing.cell[p] + 1];
            for (int64_t e = layer.cell_start[routing.cell[p]]; e < end; e++) {
                firings.expert.push_back(e);
                firings.gate.push_back(routing.gate[p]);
            }
        }
        firings.start.push_back(int64_t(firings.expert.size()));
    }
    firings.weight.resize(firings.expert.size());
}

}  // namespace

extern "C" {

// (N, D) for each token the sum of gate * act(u . x + b) * v over the experts of its cells, and the axes' biases.
void fired_sum_run(const FiredSum* given, const float* x, int64_t* words, int64_t tokens, int64_t pairs, int64_t keys,
                   int32_t set, int32_t threads, float* out) {
    const FiredSum& layer = *given;
    const Routing routing(words, tokens, pairs, keys);
    const int64_t width = layer.biases.width, stride = row_bytes(int32_t(layer.precision), width);
    const RowDots dots = row_dots_of(int32_t(layer.precision), set);
    const RowSums sums = row_sums_of(int32_t(layer.precision), set);
    in_threads(tokens, threads, [&](int64_t begin, int64_t end) {
        thread_local Firings kept;
        Firings& firings = kept;
        for (int64_t first = begin; first < end; first += TOKENS_AT_ONCE) {
            const int64_t count = std::min(TOKENS_AT_ONCE, end - first);
            list(layer, routing, first, count, firings);
            const int64_t* expert = firings.expert.data();
            float* weight = firings.weight.data();
            for (int64_t t = 0; t < count; t++) {
                const Pairs found{expert, firings.start[t], firings.start[t + 1], firings.start[count], stride};
                dots(x + (first + t) * width, layer.u, width, found, weight);
                for (int64_t p = found.first; p < found.last; p++) {
                    const int64_t e = expert[p];
                    const float z = weight[p] * (layer.u_scale ? half_to_float(layer.u_scale[e]) : 1) + layer.bias[e];
                    weight[p] = activated(layer.activation, z) * firings.gate[p] *
                                (layer.v_scale ? half_to_float(layer.v_scale[e]) : 1);
                }
            }
            for (int64_t t = 0; t < count; t++) {
                const Pairs found{expert, firings.start[t], firings.start[t + 1], firings.start[count], stride};
                float* y = out + (first + t) * width;
                sums(layer.v, width, found, weight + found.first, y);
            }
            if (layer.biases.row)
                add_axis_biases(layer.biases, routing, first, count, set, firings.bias, out + first * width);
        }
    });
}
}
