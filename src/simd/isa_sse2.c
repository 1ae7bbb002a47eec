#include "kernels/bits.h"
#include "kernels/table.h"
#if defined(__x86_64__) && defined(__GNUC__)
#include "simd/sse2.h"
#define KERNELS fd_sse2
#define KERNELS_NAME "sse2"
#include "kernels/kernels.h"
#endif
