/* Which kernels this CPU can run. */
#include "fastdrop.h"
#include <string.h>

extern const fd_kernels fd_portable;
#if defined(__x86_64__) && defined(__GNUC__)
extern const fd_kernels fd_avx2;
#define HAS_AVX2 (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
#endif

const fd_kernels *fd_kernels_at(int i)
{
    const fd_kernels *table[4];
    int n = 0;
#ifdef HAS_AVX2
    if (HAS_AVX2)
        table[n++] = &fd_avx2;
#endif
    table[n++] = &fd_portable;
    return i < n ? table[i] : NULL;
}
