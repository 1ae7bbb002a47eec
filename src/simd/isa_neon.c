#include "kernels/bits.h"
#include "kernels/table.h"
#if defined(__aarch64__) && defined(__AARCH64EL__)
#include "simd/neon.h"
#define KERNELS fd_neon
#define KERNELS_NAME "neon"
#include "kernels/kernels.h"
#endif
