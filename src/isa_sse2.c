#include "fastdrop.h"
#include "bits.h"
#include <string.h>
#if defined(__x86_64__) && defined(__GNUC__)
#include "simd_sse2.h"
#define KERNELS fd_sse2
#define KERNELS_NAME "sse2"
#include "kernels.h"
#endif
