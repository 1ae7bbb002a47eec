/* AVX-512 on a CPU that has AVX2 and F16C: SIMDe, and what simd/avx512.h needs beyond it. SIMDe's
 * names are macros, so that a version which has one of these (0.7.4 has none) keeps its own. Included
 * by simd/avx512.h where FASTDROP_SIMDE is defined. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

/* Vectors of 512 bits as two of 256, which the CPU has. */
static inline __m256i half_of(__m512i v, int i)
{
    __m256i half[2];
    memcpy(half, &v, sizeof v);
    return half[i];
}
static inline __m512i whole_of(__m256i low, __m256i high)
{
    const __m256i half[2] = {low, high};
    __m512i v;
    memcpy(&v, half, sizeof v);
    return v;
}
static inline __m512 whole_of_f32(__m256 low, __m256 high)
{
    return _mm512_castsi512_ps(whole_of(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}

#ifndef _mm512_shuffle_epi32
#define _mm512_shuffle_epi32(v, order)                                                            \
    whole_of(_mm256_shuffle_epi32(half_of(v, 0), order), _mm256_shuffle_epi32(half_of(v, 1), order))
#endif

#ifndef _mm512_srai_epi32
#define _mm512_srai_epi32(v, n)                                                                   \
    whole_of(_mm256_srai_epi32(half_of(v, 0), (int)(n)), _mm256_srai_epi32(half_of(v, 1), (int)(n)))
#endif
#ifndef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(v)                                                                     \
    whole_of_f32(_mm256_cvtepi32_ps(half_of(v, 0)), _mm256_cvtepi32_ps(half_of(v, 1)))
#endif
#ifndef _mm512_cvtps_pd
#define _mm512_cvtps_pd(v)                                                                        \
    _mm512_castsi512_pd(                                                                          \
        whole_of(_mm256_castpd_si256(_mm256_cvtps_pd(_mm256_castps256_ps128(v))),                 \
                 _mm256_castpd_si256(_mm256_cvtps_pd(_mm256_extractf128_ps(v, 1)))))
#endif

#ifndef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32(v)                                                                  \
    whole_of(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),                                    \
             _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)))
#endif
#ifndef _mm512_maskz_cvtepu16_epi32
#define _mm512_maskz_cvtepu16_epi32(mask, v) _mm512_maskz_mov_epi32(mask, _mm512_cvtepu16_epi32(v))
#endif
#ifndef _mm512_cvtepi32_epi16 /* truncates */
static inline __m256i cvtepi32_epi16(__m512i v)
{
    uint32_t from[16];
    uint16_t to[16];
    __m256i r;
    memcpy(from, &v, sizeof v);
    for (int i = 0; i < 16; i++)
        to[i] = (uint16_t)from[i];
    memcpy(&r, to, sizeof r);
    return r;
}
#define _mm512_cvtepi32_epi16(v) cvtepi32_epi16(v)
#endif

#ifndef _mm512_cvtph_ps
#define _mm512_cvtph_ps(v)                                                                        \
    whole_of_f32(_mm256_cvtph_ps(_mm256_castsi256_si128(v)),                                      \
                 _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)))
#endif
#ifndef _mm512_maskz_cvtph_ps
#define _mm512_maskz_cvtph_ps(mask, v) _mm512_maskz_mov_ps(mask, _mm512_cvtph_ps(v))
#endif
#ifndef _mm512_cvtps_ph
static inline __m256i cvtps_ph(__m512 v)
{
    const __m512i u = _mm512_castps_si512(v);
    const __m256 low = _mm256_castsi256_ps(half_of(u, 0)), high = _mm256_castsi256_ps(half_of(u, 1));
    return _mm256_set_m128i(_mm256_cvtps_ph(high, 0), _mm256_cvtps_ph(low, 0));
}
#define _mm512_cvtps_ph(v, rounding) cvtps_ph(v)
#endif

/* A masked load touches no element whose bit is 0. */
#ifndef _mm512_maskz_loadu_ps
static inline __m512 maskz_loadu_ps(__mmask16 mask, const char *p)
{
    float v[16] = {0};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy(v + i, p + 4 * i, 4);
    return _mm512_loadu_ps(v);
}
#define _mm512_maskz_loadu_ps(mask, p) maskz_loadu_ps(mask, p)
#endif
#ifndef _mm512_maskz_loadu_pd
static inline __m512d maskz_loadu_pd(__mmask8 mask, const char *p)
{
    double v[8] = {0};
    for (int i = 0; i < 8; i++)
        if (mask >> i & 1)
            memcpy(v + i, p + 8 * i, 8);
    return _mm512_loadu_pd(v);
}
#define _mm512_maskz_loadu_pd(mask, p) maskz_loadu_pd(mask, p)
#endif

#ifndef _mm512_maskz_loadu_epi16
static inline __m512i maskz_loadu_epi16(__mmask32 mask, const char *p)
{
    uint16_t v[32] = {0};
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1)
            memcpy(v + i, p + 2 * i, 2);
    return _mm512_loadu_si512(v);
}
#define _mm512_maskz_loadu_epi16(mask, p) maskz_loadu_epi16(mask, p)
#endif

#ifndef _mm512_stream_ps
#define _mm512_stream_ps(p, v) _mm512_store_ps(p, v)
#endif
#ifndef _mm512_stream_pd
#define _mm512_stream_pd(p, v) _mm512_store_pd(p, v)
#endif
