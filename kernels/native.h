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
