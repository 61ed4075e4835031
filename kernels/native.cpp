// What the C++ library asks of the processor.

#include "native.h"

extern "C" int32_t best_instruction_set() {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx512 ? AVX512 : avx2 ? AVX2 : PORTABLE;
#else
    return PORTABLE;
#endif
}
