#include "kernels/bits.h"
#include "kernels/table.h"
#if defined(__x86_64__) && defined(__GNUC__)
#if defined(FASTDROP_SIMDE)
#elif defined(__clang__)
#pragma clang attribute push(__attribute__((target("bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("bmi,bmi2,avx512f,avx512bw,avx512vl,avx512dq")
#endif
#include "simd/avx512.h"
#define KERNELS fd_avx512
#define KERNELS_NAME "avx512"
#include "kernels/kernels.h"
#if defined(__clang__) && !defined(FASTDROP_SIMDE)
#pragma clang attribute pop
#endif
#endif
