/* x86-64 CPUs run other kernels: for size, which makes half of these. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
#include "fastdrop.h"
#include "kernels/bits.h"
#include <string.h>
#include "simd/portable.h"
#define KERNELS fd_portable
#define KERNELS_NAME "portable"
#include "kernels/kernels.h"
