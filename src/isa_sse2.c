/* x86-64 CPUs made since 2013 run other kernels; -O3 would make these three times as large. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O2", "peel-loops")
#endif
#include "fastdrop.h"
#include "bits.h"
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include "simd_sse2.h"
#define KERNELS fd_sse2
#define KERNELS_NAME "sse2"
#include "kernels.h"
#endif
