/* Every x86-64 has SSE2: there these are for comparison alone, and better small. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
#include "kernels/bits.h"
#include "kernels/table.h"
#include "simd/portable.h"
#define KERNELS fd_portable
#define KERNELS_NAME "portable"
#include "kernels/kernels.h"
