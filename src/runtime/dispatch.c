/* What this machine has: kernels that its CPU can run, and its cache; and what of it is in use. */
#include "runtime/settings.h"
#if !defined(_WIN32)
#include <unistd.h>
#endif

extern const fd_kernels fd_portable;
#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_X86
extern const fd_kernels fd_avx512, fd_avx2, fd_sse2;
#elif defined(__aarch64__) && defined(__AARCH64EL__)
#define HAS_NEON
extern const fd_kernels fd_neon;
#endif

fd_settings fd_current = {.threads = 1, .piece = 1 << 22, .bfloat16 = -1};

const fd_kernels *fd_kernels_at(int i)
{
    const fd_kernels *table[4];
    int n = 0;
#ifdef HAS_X86
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
                     __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        table[n++] = &fd_avx512;
    if (avx2)
        table[n++] = &fd_avx2;
    table[n++] = &fd_sse2;
#endif
#ifdef HAS_NEON
    table[n++] = &fd_neon;
#endif
    table[n++] = &fd_portable;
    return i < n ? table[i] : NULL;
}

uint64_t fd_cache_bytes(void)
{
    long bytes = 0;
#if defined(_SC_LEVEL3_CACHE_SIZE)
    bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    return bytes > 0 ? (uint64_t)bytes : UINT64_C(32) << 20;
}

#if defined(__GNUC__) && !defined(__OPTIMIZE__)
#define HOW " without optimisation"
#else
#define HOW ""
#endif

const char *fd_compiler(void)
{
#if defined(__clang__)
    return __VERSION__ HOW;
#elif defined(__GNUC__)
    return "GCC " __VERSION__ HOW;
#elif defined(_MSC_VER)
    return "MSVC";
#else
    return "unknown compiler";
#endif
}
