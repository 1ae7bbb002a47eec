/* Unscheduled code compresses better, and these CPUs reorder it themselves. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns2")
#endif
#include "fastdrop.h"
#include "kernels/bits.h"
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include "simd/sse2.h"
#define KERNELS fd_sse2
#define KERNELS_NAME "sse2"
#include "kernels/kernels.h"
#endif
