// What the C++ kernels share: instruction sets, threads, half precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// A kernel is written once as inline loops and stamped out for each instruction set; the processor picks at run time.
#define INLINE inline __attribute__((always_inline))
#define PORTABLE_TARGET
#if defined(__x86_64__)
#include <immintrin.h>
#define AVX2_TARGET __attribute__((target("avx2,fma")))
#define AVX512_TARGET __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))
#else
#define AVX2_TARGET
#define AVX512_TARGET
#endif

// As kernels/backends.py numbers them.
enum InstructionSet : int32_t { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };

// The one of three stamped functions that belongs to an instruction set.
#define CHOOSE(set, portable, avx2, avx512) ((set) == AVX512 ? (avx512) : (set) == AVX2 ? (avx2) : (portable))

// body(first, last) over pieces of [0, count), one a thread. OpenMP's threads are torch's own: the library that torch
// brings is loaded already, and threads beside its waiting ones would fight them for the cores.
template <class Body>
void in_threads(int64_t count, int32_t threads, Body body) {
    const int64_t pieces = std::max<int64_t>(1, std::min<int64_t>(threads, count));
    if (pieces == 1) return body(0, count);  // a team of one costs as much as a token's experts
#pragma omp parallel for num_threads(pieces) schedule(static, 1)
    for (int64_t i = 0; i < pieces; i++) body(count * i / pieces, count * (i + 1) / pieces);
}

INLINE float bits_to_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

INLINE uint32_t float_to_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

// IEEE half to float, exactly: a factor of 2**112 moves the exponent from one bias to the other, subnormals included.
INLINE float half_to_float(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00) return bits_to_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
}

// Non-negative float to IEEE half, to the nearest, ties to even; infinity from 65520 on.
INLINE uint16_t float_to_half(float value) {
    if (!(value < 65520.0f)) return 0x7C00;
    if (value < 0x1p-14f) return uint16_t(float_to_bits(value + 0.5f) - float_to_bits(0.5f));  // steps of 2**-24
    const uint32_t bits = float_to_bits(value);
    return uint16_t((bits - (112u << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13);
}

// What a router leaves for the experts, in one block of words; kernels/jump_router/packed.py draws it.
struct Routing {
    int64_t *start, *key_start;  // where each token's pairs and passing scores begin
    int64_t* cell;               // of pairs
    float* gate;
    int32_t* score;  // that pass
    float *log_gate, *key_gate;

    static int64_t words(int64_t tokens, int64_t pairs, int64_t keys) {
        return 2 * (tokens + 1) + pairs + (pairs + 3 * keys + 1) / 2;
    }
    Routing() = default;
    Routing(int64_t* words, int64_t tokens, int64_t pairs, int64_t keys)
        : start(words),
          key_start(start + tokens + 1),
          cell(key_start + tokens + 1),
          gate(reinterpret_cast<float*>(cell + pairs)),
          score(reinterpret_cast<int32_t*>(gate + pairs)),
          log_gate(reinterpret_cast<float*>(score + keys)),
          key_gate(log_gate + keys) {}
};

// kernels/cells/layout.py: cell c holds the experts from start c to start c + 1.
struct CellStarts {
    const void* offset;  // bytes, or int32 where `wide`
    const int32_t* block_start;
    int64_t wide;

    struct Experts {
        int32_t begin, end;
    };
    INLINE Experts operator[](int64_t cell) const {
        const uint64_t at = uint64_t(cell), after = at + 1;
        const int32_t from = block_start[at / 32], to = block_start[after / 32];
        if (wide) {
            const int32_t* offsets = static_cast<const int32_t*>(offset);
            return {from + offsets[at], to + offsets[after]};
        }
        const uint8_t* offsets = static_cast<const uint8_t*>(offset);
        return {from + offsets[at], to + offsets[after]};
    }
};

// Output biases of the sub-keys: a row of `width`, `stride` apart, for each of `rows` and of `columns`; null where there
// are none.
struct AxisBiases {
    const float *row, *column;
    int64_t heads, rows, columns, width, stride;
};

// kernels/axis_bias: adds to y the bias rows of what `count` tokens from `first` on pass, by their gates. y begins
// with the first; `row` is scratch.
void add_axis_biases(const AxisBiases& biases, const Routing& routing, int64_t first, int64_t count, int32_t set,
                     std::vector<const float*>& row, float* y);

// A token's pairs, from first to last of all pairs; table rows lie `stride` bytes apart.
struct Pairs {
    const int64_t* expert;
    int64_t first, last, all, stride;
};

// kernels/expert_sum: (P) dot products of a token with its rows, and (D) the sum of its rows by weights, which begin
// with the token's first. Precisions as kernels/expert_sum/native.py numbers them; scales of rows are the caller's.
using RowDots = void (*)(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out);
using RowSums = void (*)(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y);
RowDots row_dots_of(int32_t precision, int32_t set);
RowSums row_sums_of(int32_t precision, int32_t set);
int64_t row_bytes(int32_t precision, int64_t width);
enum Precision : int32_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };
