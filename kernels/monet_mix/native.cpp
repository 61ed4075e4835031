// monet_mix, forward and backward: a token's six small matrix products, one after another while they are in the cache.
//
// T tokens, H router heads, I and J sub-experts of the two axes, M hidden units of a sub-expert.

#include <initializer_list>

#include "../native.h"

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }

struct Strided {
    const float* data;
    int64_t row, column;
    INLINE float operator()(int64_t r, int64_t c) const { return data[r * row + c * column]; }
};

// How a result is written: through the caches, or past them. A large one would be gone from them before it is read, and
// writing past them spares reading it first.
struct Cached {
    static INLINE void put(float* to, Lanes value) { *reinterpret_cast<Lanes*>(to) = value; }
};
#if defined(__x86_64__)
struct Streamed {  // in assembly, since the intrinsic cannot be inlined through functions that know no instruction set
    static INLINE void put(float* to, Lanes value) {
        asm("vmovntps %1, %0" : "=m"(*reinterpret_cast<Lanes*>(to)) : "v"(value));
    }
};
#else
using Streamed = Cached;
#endif
constexpr int64_t STREAMED_FLOATS = 1 << 19;  // 2 MB, a core's second cache

template <int ROWS, class Write>
INLINE void multiply_rows(Strided a, int64_t row, int64_t inner, const float* b, int64_t width, int64_t lane,
                          float* c) {
    Lanes sum[ROWS] = {};
    for (int64_t k = 0; k < inner; k++) {
        const Lanes b_k = *reinterpret_cast<const Lanes*>(b + k * width + lane);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) sum[r] += a(row + r, k) * b_k;
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) Write::put(c + (row + r) * width + lane, sum[r]);
}

// c = a b, of (rows, inner) and (inner, width); width is a multiple of LANES.
template <class Write>
INLINE void multiply(Strided a, int64_t rows, int64_t inner, const float* b, int64_t width, float* c) {
    for (int64_t lane = 0; lane < width; lane += LANES) {
        int64_t row = 0;
        for (; row + 8 <= rows; row += 8) multiply_rows<8, Write>(a, row, inner, b, width, lane, c);
        for (; row < rows; row++) multiply_rows<1, Write>(a, row, inner, b, width, lane, c);
    }
}

// Rows of `width` floats as rows of padded(width): as they lie where that is the same, else copied to `room`.
INLINE const float* spread(const float* from, int64_t rows, int64_t width, float* room) {
    if (width == padded(width)) return from;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) room[r * padded(width) + c] = from[r * width + c];
    return room;
}

// Where such rows are written, `to` or `room`; and back to `to`.
INLINE float* target(float* to, int64_t width, float* room) { return width == padded(width) ? to : room; }
INLINE void gather(const float* from, int64_t rows, int64_t width, float* to) {
    if (from == to) return;
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) to[r * width + c] = from[r * padded(width) + c];
}

// Lane l of the first and of the second of two vectors after their off-diagonal blocks of `size` lanes changed places.
#define FIRST(l, size) ((l) & (size) ? 16 + (l) - (size) : (l))
#define SECOND(l, size) ((l) & (size) ? 16 + (l) : (l) + (size))
#define ALL_LANES(f, s) \
    f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s), f(10, s), f(11, s), \
        f(12, s), f(13, s), f(14, s), f(15, s)

template <int SIZE>
INLINE void exchange(Lanes* row) {
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) {
        if (r & SIZE) continue;
        const Lanes first = row[r], second = row[r + SIZE];
        row[r] = __builtin_shufflevector(first, second, ALL_LANES(FIRST, SIZE));
        row[r + SIZE] = __builtin_shufflevector(first, second, ALL_LANES(SECOND, SIZE));
    }
}

// (rows, width) to (width, padded(rows)): whole tiles in registers, the border one by one.
INLINE const float* transpose(const float* from, int64_t rows, int64_t width, float* room) {
    const int64_t across = padded(rows), whole_rows = rows / LANES * LANES, whole_width = width / LANES * LANES;
    for (int64_t r = 0; r < whole_rows; r += LANES)
        for (int64_t c = 0; c < whole_width; c += LANES) {
            Lanes tile[LANES];
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) tile[i] = *reinterpret_cast<const Lanes*>(from + (r + i) * width + c);
            exchange<8>(tile);
            exchange<4>(tile);
            exchange<2>(tile);
            exchange<1>(tile);
#pragma GCC unroll 16
            for (int i = 0; i < LANES; i++) *reinterpret_cast<Lanes*>(room + (c + i) * across + r) = tile[i];
        }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = r < whole_rows ? whole_width : 0; c < width; c++) room[c * across + r] = from[r * width + c];
    return room;
}

// Asks for a token's floats while those of the one before are worked on.
INLINE void prefetch(const float* token, int64_t count) {
    for (int64_t i = 0; i < count; i += LANES) __builtin_prefetch(token + i, 0, 2);
}

struct Sizes {
    int64_t H, I, J, M;
};

struct Scratch {
    std::vector<float> in, out, head, transposed, gates;
    explicit Scratch(Sizes n)
        : in(std::max(n.I, n.J) * padded(n.M)), out(in.size()), head(n.H * padded(n.M)),
          transposed(n.M * padded(std::max(n.I, n.J))), gates(n.H * padded(std::max(n.I, n.J))) {}
};

template <class Write>
INLINE void mix(Sizes n, const float* hidden, const float* from, const float* to, float* out, float* head, Scratch& s) {
    const float* units = spread(hidden, n.I, n.M, s.in.data());
    float *heads = target(head, n.M, s.head.data()), *mixed = target(out, n.M, s.out.data());
    multiply<Cached>({from, n.I, 1}, n.H, n.I, units, padded(n.M), heads);
    multiply<Write>({to, 1, n.J}, n.J, n.H, heads, padded(n.M), mixed);
    gather(heads, n.H, n.M, head);
    gather(mixed, n.J, n.M, out);
}

template <class Write>
INLINE void mix_backward(Sizes n, const float* dout, const float* hidden, const float* from, const float* to,
                         const float* head, float* dhidden, float* dfrom, float* dto, Scratch& s) {
    float *dhead = s.head.data(), *dgates = target(dto, n.J, s.gates.data());
    const float* turned = transpose(dout, n.J, n.M, s.transposed.data());
    multiply<Write>({head, n.M, 1}, n.H, n.M, turned, padded(n.J), dgates);
    gather(dgates, n.H, n.J, dto);
    multiply<Cached>({to, n.J, 1}, n.H, n.J, spread(dout, n.J, n.M, s.in.data()), padded(n.M), dhead);
    dgates = target(dfrom, n.I, s.gates.data());
    turned = transpose(hidden, n.I, n.M, s.transposed.data());
    multiply<Write>({dhead, padded(n.M), 1}, n.H, n.M, turned, padded(n.I), dgates);
    gather(dgates, n.H, n.I, dfrom);
    float* dunits = target(dhidden, n.M, s.out.data());
    multiply<Write>({from, 1, n.I}, n.I, n.H, dhead, padded(n.M), dunits);
    gather(dunits, n.I, n.M, dhidden);
}

#define STAMP(SET, TARGET, WRITE)                                                                                   \
    TARGET void mix_##SET(Sizes n, const float* hidden, const float* from, const float* to, float* out, float* head, \
                          Scratch& s) {                                                                             \
        mix<WRITE>(n, hidden, from, to, out, head, s);                                                                 \
    }                                                                                                               \
    TARGET void mix_backward_##SET(Sizes n, const float* dout, const float* hidden, const float* from,              \
                                   const float* to, const float* head, float* dhidden, float* dfrom, float* dto,    \
                                   Scratch& s) {                                                                    \
        mix_backward<WRITE>(n, dout, hidden, from, to, head, dhidden, dfrom, dto, s);                                  \
    }
STAMP(portable, PORTABLE_TARGET, Cached)
STAMP(avx2, AVX2_TARGET, Cached)
STAMP(avx512, AVX512_TARGET, Cached)
STAMP(streamed, AVX512_TARGET, Streamed)
#undef STAMP

// Whether results of so many floats a token may be written past the caches: whole aligned vectors, and many of them.
bool streams(int32_t set, int64_t tokens, int64_t floats, std::initializer_list<int64_t> widths, const float* first) {
    bool whole = reinterpret_cast<uintptr_t>(first) % 64 == 0;
    for (int64_t width : widths) whole &= width % LANES == 0;
    return set == AVX512 && whole && tokens * floats >= STREAMED_FLOATS;
}

void finish_stores() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

}  // namespace

extern "C" {

// (T, J, M) output and (T, H, M) units by head.
void monet_mix(const float* hidden, const float* from, const float* to, int64_t tokens, int64_t heads, int64_t num_from,
               int64_t num_to, int64_t units, int32_t set, int32_t threads, float* out, float* head) {
    const Sizes n{heads, num_from, num_to, units};
    const bool streamed = streams(set, tokens, n.J * n.M, {n.M}, out);
    const auto one = streamed ? mix_streamed : CHOOSE(set, mix_portable, mix_avx2, mix_avx512);
    in_threads(tokens, threads, [=](int64_t first, int64_t last) {
        Scratch scratch(n);
        for (int64_t t = first; t < last; t++) {
            if (t + 1 < last) {
                prefetch(hidden + (t + 1) * n.I * n.M, n.I * n.M);
                prefetch(from + (t + 1) * n.H * n.I, n.H * n.I);
                prefetch(to + (t + 1) * n.H * n.J, n.H * n.J);
            }
            one(n, hidden + t * n.I * n.M, from + t * n.H * n.I, to + t * n.H * n.J, out + t * n.J * n.M,
                head + t * n.H * n.M, scratch);
        }
        finish_stores();
    });
}

// The gradients of the three arguments.
void monet_mix_backward(const float* dout, const float* hidden, const float* from, const float* to, const float* head,
                        int64_t tokens, int64_t heads, int64_t num_from, int64_t num_to, int64_t units, int32_t set,
                        int32_t threads, float* dhidden, float* dfrom, float* dto) {
    const Sizes n{heads, num_from, num_to, units};
    const bool aligned = (reinterpret_cast<uintptr_t>(dfrom) | reinterpret_cast<uintptr_t>(dto)) % 64 == 0;
    const bool streamed = aligned && streams(set, tokens, n.I * n.M, {n.M, n.I, n.J}, dhidden);
    const auto one = streamed ? mix_backward_streamed
                              : CHOOSE(set, mix_backward_portable, mix_backward_avx2, mix_backward_avx512);
    in_threads(tokens, threads, [=](int64_t first, int64_t last) {
        Scratch scratch(n);
        for (int64_t t = first; t < last; t++) {
            if (t + 1 < last) {
                prefetch(dout + (t + 1) * n.J * n.M, n.J * n.M);
                prefetch(hidden + (t + 1) * n.I * n.M, n.I * n.M);
                prefetch(from + (t + 1) * n.H * n.I, n.H * n.I);
                prefetch(to + (t + 1) * n.H * n.J, n.H * n.J);
            }
            one(n, dout + t * n.J * n.M, hidden + t * n.I * n.M, from + t * n.H * n.I, to + t * n.H * n.J,
                head + t * n.H * n.M, dhidden + t * n.I * n.M, dfrom + t * n.H * n.I, dto + t * n.H * n.J, scratch);
        }
        finish_stores();
    });
}
}
