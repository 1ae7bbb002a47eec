/* x86-64 CPUs made since 2013 run other kernels; -O3 would make these four times as large. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
#include "fastdrop.h"
#include "bits.h"
#include <string.h>
#include "simd_portable.h"
#define KERNELS fd_portable
#define KERNELS_NAME "portable"
#include "kernels.h"
