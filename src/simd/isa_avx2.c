#include "kernels/bits.h"
#include "kernels/table.h"
#if defined(__x86_64__) && defined(__GNUC__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2,f16c")
#endif
#include "simd/avx2.h"
#define KERNELS fd_avx2
#define KERNELS_NAME "avx2"
#include "kernels/kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
