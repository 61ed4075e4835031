// expert_sum's two passes over table rows: dot products of a token with its rows, and weighted sums of rows.
//
// T tokens, D model width, P pairs; the pairs of token t are start[t] to start[t + 1]. An int4 row is D / 2 bytes as
// drawn in kernels/packing.py. Rows lie at random places, so the short ones are fetched ahead of their use.

#include "../native.h"

namespace {

constexpr int64_t PAIRS_AHEAD = 8;

// The start of a row, which waits for a page's address; from there on the processor's own prefetcher follows.
INLINE void prefetch(const uint8_t* row, int64_t bytes) {
    const int64_t start = std::min<int64_t>(bytes, 512);
    for (int64_t i = 0; i < start; i += 64) __builtin_prefetch(row + i);
}

// The four precisions: bytes of a row, dot product with it, and its weighted addition.

template <class Element>
struct Row {
    static int64_t bytes(int64_t width) { return width * sizeof(typename Element::Stored); }

    static INLINE float dot(const float* x, const uint8_t* row, int64_t width) {
        const auto* w = reinterpret_cast<const typename Element::Stored*>(row);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < width; d++) sum += x[d] * Element::value(w[d]);
        return sum;
    }

    static INLINE void add(float* y, float weight, const uint8_t* row, int64_t width) {
        const auto* w = reinterpret_cast<const typename Element::Stored*>(row);
#pragma omp simd
        for (int64_t d = 0; d < width; d++) y[d] += weight * Element::value(w[d]);
    }
};

struct Float32Element {
    using Stored = float;
    static INLINE float value(float w) { return w; }
};
struct BFloat16Element {
    using Stored = uint16_t;
    static INLINE float value(uint16_t w) { return bits_to_float(uint32_t(w) << 16); }
};
struct Int8Element {
    using Stored = int8_t;
    static INLINE float value(int8_t w) { return float(w); }
};
using Float32 = Row<Float32Element>;
using BFloat16 = Row<BFloat16Element>;
using Int8 = Row<Int8Element>;

struct Int4 {
    static int64_t bytes(int64_t width) { return width / 2; }
    static INLINE float low(uint8_t byte) { return float(int32_t(uint32_t(byte) << 28) >> 28); }
    static INLINE float high(uint8_t byte) { return float(int32_t(int8_t(byte)) >> 4); }

    static INLINE float dot(const float* x, const uint8_t* row, int64_t width) {
        const int64_t half = width / 2;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < half; j++) sum += x[j] * low(row[j]) + x[half + j] * high(row[j]);
        return sum;
    }

    static INLINE void add(float* y, float weight, const uint8_t* row, int64_t width) {
        const int64_t half = width / 2;
#pragma omp simd
        for (int64_t j = 0; j < half; j++) {
            y[j] += weight * low(row[j]);
            y[half + j] += weight * high(row[j]);
        }
    }
};

template <class Rows>
INLINE void dots(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out) {
    const int64_t bytes = Rows::bytes(width);
    for (int64_t p = pairs.first; p < pairs.last; p++) {
        if (p + PAIRS_AHEAD < pairs.all) prefetch(table + pairs.expert[p + PAIRS_AHEAD] * pairs.stride, bytes);
        out[p] = Rows::dot(x, table + pairs.expert[p] * pairs.stride, width);
    }
}

template <class Rows>
INLINE void sums(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    const int64_t bytes = Rows::bytes(width);
    std::fill(y, y + width, 0.0f);
    for (int64_t p = pairs.first; p < pairs.last; p++) {
        if (p + PAIRS_AHEAD < pairs.all) prefetch(table + pairs.expert[p + PAIRS_AHEAD] * pairs.stride, bytes);
        Rows::add(y, weight[p - pairs.first], table + pairs.expert[p] * pairs.stride, width);
    }
}

#define STAMP(SET, TARGET)                                                                                          \
    template <class Rows>                                                                                           \
    TARGET void dots_##SET(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out) {          \
        dots<Rows>(x, table, width, pairs, out);                                                                    \
    }                                                                                                               \
    template <class Rows>                                                                                           \
    TARGET void sums_##SET(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {       \
        sums<Rows>(table, width, pairs, weight, y);                                                                 \
    }
STAMP(portable, PORTABLE_TARGET)
STAMP(avx2, AVX2_TARGET)
STAMP(avx512, AVX512_TARGET)
#undef STAMP

#if defined(__x86_64__)

// A token as two int8 numbers an element, x = scale * (high + low / 254), so that VNNI multiplies table bytes as they
// are: 15 bits of the largest element, an error of about 3e-5 of a dot product's size.
struct Limbs {
    std::vector<int8_t> high, low;  // in stretches of a row's bytes, each padded with zeros to 64
    float scale, offset;            // offset: what the table's bytes, made unsigned, add to every dot product
};

template <class Rows>
AVX512_TARGET Limbs limbs_of(const float* x, int64_t width) {
    const int64_t bytes = Rows::bytes(width), padded = (bytes + 63) / 64 * 64, stretches = width / bytes;
    Limbs limbs{std::vector<int8_t>(stretches * padded), std::vector<int8_t>(stretches * padded), 0, 0};
    float largest = 0, poison = 0;
    for (int64_t d = 0; d < width; d++) {
        largest = std::max(largest, std::fabs(x[d]));
        poison += x[d] * 0;  // nan if x is not finite, and so are its dot products then
    }
    if (poison != 0 || largest == 0) {
        limbs.scale = poison;
        return limbs;
    }
    int32_t high_sum = 0, low_sum = 0;
    for (int64_t s = 0; s < stretches; s++)
        for (int64_t i = 0; i < bytes; i++) {
            const float q = x[s * bytes + i] * (127 / largest), whole = std::nearbyint(q);
            const int32_t high = int32_t(whole), low = int32_t(std::nearbyint((q - whole) * 254));
            limbs.high[s * padded + i] = int8_t(high);
            limbs.low[s * padded + i] = int8_t(low);
            high_sum += high;
            low_sum += low;
        }
    limbs.scale = largest / 127;
    limbs.offset = (stretches == 2 ? 8.0f : 128.0f) * (float(high_sum) + float(low_sum) / 254);
    return limbs;
}

AVX512_TARGET INLINE __mmask64 bytes_left(int64_t left) {
    return left >= 64 ? ~__mmask64(0) : left > 0 ? (__mmask64(1) << left) - 1 : 0;
}

template <class Rows>
AVX512_TARGET void dots_vnni(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out) {
    constexpr bool int4 = std::is_same<Rows, Int4>::value;
    const int64_t bytes = Rows::bytes(width), padded = (bytes + 63) / 64 * 64;
    const Limbs limbs = limbs_of<Rows>(x, width);
    const __m512i sign = _mm512_set1_epi8(int4 ? char(0x88) : char(0x80)), nibble = _mm512_set1_epi8(15);
    for (int64_t p = pairs.first; p < pairs.last; p++) {
        if (p + PAIRS_AHEAD < pairs.all) prefetch(table + pairs.expert[p + PAIRS_AHEAD] * pairs.stride, bytes);
        const uint8_t* row = table + pairs.expert[p] * pairs.stride;
        __m512i high = _mm512_setzero_si512(), low = high, high2 = high, low2 = high;
        for (int64_t i = 0; i < bytes; i += 64) {
            const __m512i b = _mm512_xor_si512(_mm512_maskz_loadu_epi8(bytes_left(bytes - i), row + i), sign);
            const int8_t *h = limbs.high.data() + i, *l = limbs.low.data() + i;
            const __m512i first = int4 ? _mm512_and_si512(b, nibble) : b;
            high = _mm512_dpbusd_epi32(high, first, _mm512_loadu_si512(h));
            low = _mm512_dpbusd_epi32(low, first, _mm512_loadu_si512(l));
            if (int4) {
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(b, 4), nibble);
                high2 = _mm512_dpbusd_epi32(high2, second, _mm512_loadu_si512(h + padded));
                low2 = _mm512_dpbusd_epi32(low2, second, _mm512_loadu_si512(l + padded));
            }
        }
        const float highs = float(_mm512_reduce_add_epi32(_mm512_add_epi32(high, high2)));
        const float lows = float(_mm512_reduce_add_epi32(_mm512_add_epi32(low, low2)));
        out[p] = (highs + lows / 254 - limbs.offset) * limbs.scale;
    }
}

// 128 output columns at a time stay in eight registers while all rows of the token are added.
template <class Rows>
AVX512_TARGET void sums_in_registers(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    constexpr bool int4 = std::is_same<Rows, Int4>::value;
    const int64_t bytes = Rows::bytes(width), half = width / 2, block = int4 ? 64 : 128;
    for (int64_t c = 0; c < bytes; c += block) {
        __m512 sum[8];
        for (auto& s : sum) s = _mm512_setzero_ps();
        for (int64_t p = pairs.first; p < pairs.last; p++) {
            // The next token's rows, of which it has about as many, come while this one's are added: int4 rows at once,
            // the longer ones of int8 block by block.
            const int64_t ahead = p + (pairs.last - pairs.first), part = int4 ? bytes : std::min(block, bytes - c);
            if (ahead < pairs.all && (!int4 || c == 0)) prefetch(table + pairs.expert[ahead] * pairs.stride + c, part);
            const uint8_t* row = table + pairs.expert[p] * pairs.stride + c;
            const __m512 w = _mm512_set1_ps(weight[p - pairs.first]);
            for (int j = 0; j < (int4 ? 4 : 8); j++) {
                const __mmask16 inside = __mmask16(bytes_left(bytes - c - 16 * j));
                const __m512i b = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(inside, row + 16 * j));
                const __m512i first = int4 ? _mm512_srai_epi32(_mm512_slli_epi32(b, 28), 28) : b;
                sum[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(first), w, sum[j]);
                if (int4) sum[4 + j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_srai_epi32(b, 4)), w, sum[4 + j]);
            }
        }
        for (int j = 0; j < 8; j++) {
            const bool second = int4 && j >= 4;
            const int64_t column = c + 16 * (second ? j - 4 : j), left = (int4 ? half : width) - column;
            _mm512_mask_storeu_ps(y + column + (second ? half : 0), __mmask16(bytes_left(left)), sum[j]);
        }
    }
}

// As above with eight registers of eight: 64 output columns at a time, of an int4 row 32 and the 32 half a row on.
template <class Rows>
AVX2_TARGET void sums_in_eights(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    constexpr bool int4 = std::is_same<Rows, Int4>::value;
    constexpr int64_t block = int4 ? 32 : 64;
    const int64_t bytes = Rows::bytes(width), half = width / 2;
    int64_t c = 0;
    for (; c + block <= bytes; c += block) {
        __m256 sum[8];
        for (auto& s : sum) s = _mm256_setzero_ps();
        for (int64_t p = pairs.first; p < pairs.last; p++) {
            const int64_t ahead = p + (pairs.last - pairs.first);
            if (ahead < pairs.all && (!int4 || c == 0))
                prefetch(table + pairs.expert[ahead] * pairs.stride + c, int4 ? bytes : block);
            const uint8_t* row = table + pairs.expert[p] * pairs.stride + c;
            const __m256 w = _mm256_set1_ps(weight[p - pairs.first]);
            for (int j = 0; j < (int4 ? 4 : 8); j++) {
                const __m256i b = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + 8 * j)));
                const __m256i first = int4 ? _mm256_srai_epi32(_mm256_slli_epi32(b, 28), 28) : b;
                sum[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(first), w, sum[j]);
                if (int4) sum[4 + j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(_mm256_srai_epi32(b, 4)), w, sum[4 + j]);
            }
        }
        for (int j = 0; j < 8; j++) _mm256_storeu_ps(y + c + (int4 && j >= 4 ? half + 8 * (j - 4) : 8 * j), sum[j]);
    }
    for (; c < bytes; c++) {
        float first = 0, second = 0;
        for (int64_t p = pairs.first; p < pairs.last; p++) {
            const uint8_t stored = table[pairs.expert[p] * pairs.stride + c];
            first += weight[p - pairs.first] * (int4 ? Int4::low(stored) : float(int8_t(stored)));
            if (int4) second += weight[p - pairs.first] * Int4::high(stored);
        }
        y[c] = first;
        if (int4) y[half + c] = second;
    }
}

template <>
void sums_avx2<Int8>(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    sums_in_eights<Int8>(table, width, pairs, weight, y);
}
template <>
void sums_avx2<Int4>(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    sums_in_eights<Int4>(table, width, pairs, weight, y);
}
template <>
void dots_avx512<Int8>(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out) {
    dots_vnni<Int8>(x, table, width, pairs, out);
}
template <>
void dots_avx512<Int4>(const float* x, const uint8_t* table, int64_t width, Pairs pairs, float* out) {
    dots_vnni<Int4>(x, table, width, pairs, out);
}
template <>
void sums_avx512<Int8>(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    sums_in_registers<Int8>(table, width, pairs, weight, y);
}
template <>
void sums_avx512<Int4>(const uint8_t* table, int64_t width, Pairs pairs, const float* weight, float* y) {
    sums_in_registers<Int4>(table, width, pairs, weight, y);
}

#endif

INLINE float scale_of(const uint16_t* scale, int64_t row) { return scale ? half_to_float(scale[row]) : 1.0f; }

template <class Rows>
RowDots dots_of(int32_t set) { return CHOOSE(set, dots_portable<Rows>, dots_avx2<Rows>, dots_avx512<Rows>); }

template <class Rows>
RowSums sums_of(int32_t set) { return CHOOSE(set, sums_portable<Rows>, sums_avx2<Rows>, sums_avx512<Rows>); }

#define OF_PRECISION(precision, f)                                                                               \
    ((precision) == FLOAT32 ? f<Float32> : (precision) == BFLOAT16 ? f<BFloat16> : (precision) == INT8 ? f<Int8> \
                                                                                                       : f<Int4>)

}  // namespace

RowDots row_dots_of(int32_t precision, int32_t set) { return OF_PRECISION(precision, dots_of)(set); }
RowSums row_sums_of(int32_t precision, int32_t set) { return OF_PRECISION(precision, sums_of)(set); }
int64_t row_bytes(int32_t precision, int64_t width) {
    return precision == FLOAT32 ? 4 * width : precision == BFLOAT16 ? 2 * width : precision == INT8 ? width : width / 2;
}

extern "C" {

// (P) dot product of each pair's token and table row, times the row's scale (IEEE half, or null for 1).
void row_dots(const float* x, const uint8_t* table, const uint16_t* scale, const int64_t* expert, const int64_t* start,
              int64_t tokens, int64_t width, int32_t precision, int32_t set, int32_t threads, float* out) {
    const RowDots dots = row_dots_of(precision, set);
    const int64_t stride = row_bytes(precision, width);
    in_threads(tokens, threads, [=](int64_t first, int64_t last) {
        for (int64_t t = first; t < last; t++) {
            const Pairs pairs{expert, start[t], start[t + 1], start[tokens], stride};
            dots(x + t * width, table, width, pairs, out);
            for (int64_t p = pairs.first; p < pairs.last; p++) out[p] *= scale_of(scale, expert[p]);
        }
    });
}

// (T, D) for each token the sum of its pairs' rows, weighted and scaled.
void row_sums(const uint8_t* table, const uint16_t* scale, const int64_t* expert, const int64_t* start,
              const float* weight, int64_t tokens, int64_t width, int32_t precision, int32_t set, int32_t threads,
              float* out) {
    const RowSums sums = row_sums_of(precision, set);
    const int64_t stride = row_bytes(precision, width);
    in_threads(tokens, threads, [=](int64_t first, int64_t last) {
        std::vector<float> scaled;
        for (int64_t t = first; t < last; t++) {
            const Pairs pairs{expert, start[t], start[t + 1], start[tokens], stride};
            scaled.resize(pairs.last - pairs.first);
            for (int64_t p = pairs.first; p < pairs.last; p++)
                scaled[p - pairs.first] = weight[p] * scale_of(scale, expert[p]);
            sums(table, width, pairs, scaled.data(), out + t * width);
        }
    });
}

int32_t pairs_are_sound(const int64_t* expert, const int64_t* start, const float* gate, int64_t tokens, int64_t pairs,
                        int64_t experts) {
    bool sound = start[0] == 0 && start[tokens] == pairs;
    for (int64_t t = 0; t < tokens; t++) sound &= start[t] <= start[t + 1];
    float poison = 0;
    for (int64_t p = 0; p < pairs; p++) {
        sound &= uint64_t(expert[p]) < uint64_t(experts);
        poison += gate[p] * 0;  // nan from then on if a gate is not finite
    }
    return sound && poison == 0;
}
}
