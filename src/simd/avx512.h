/* AVX-512 (F, BW, DQ, VL): eight lanes; keep bits are mask registers as they stand. */
#ifdef FASTDROP_SIMDE /* emulated on a CPU that lacks it: tests/backends/cpu/cross */
#include "simde_avx512.h"
#else
#include <immintrin.h>
#endif

typedef __m512i Lanes;
enum { LANES = 8 };

static inline Lanes lanes_set(uint64_t v) { return _mm512_set1_epi64((long long)v); }
static inline Lanes lanes_load(const uint64_t *p) { return _mm512_loadu_si512(p); }
static inline void lanes_store(uint64_t *p, Lanes v) { _mm512_storeu_si512(p, v); }
static inline Lanes lanes_add(Lanes a, Lanes b) { return _mm512_add_epi64(a, b); }
static inline Lanes lanes_mul32(Lanes a, Lanes b) { return _mm512_mul_epu32(a, b); }
static inline Lanes lanes_swap(Lanes a) { return _mm512_shuffle_epi32(a, _MM_PERM_CDAB); }
static inline Lanes lanes_low(Lanes a) { return _mm512_maskz_mov_epi32(0x5555, a); }
static inline Lanes lanes_shr(Lanes a, int n) { return _mm512_srli_epi64(a, (unsigned)n); }
static inline Lanes lanes_xor(Lanes a, Lanes b) { return _mm512_xor_si512(a, b); }
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c)
{
    return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

/* Which block each lane computes, so that the two unpacks below leave them in natural order. */
static inline Lanes lanes_order(void) { return _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7); }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    _mm512_storeu_si512(dst, _mm512_unpacklo_epi64(low, high));
    _mm512_storeu_si512(dst + 64, _mm512_unpackhi_epi64(low, high));
}

static inline Lanes lanes_ordered(Lanes v) { return v; }
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal)
{
    const __m512i vt = _mm512_set1_epi8((char)t);
    const __m512i v[2] = {_mm512_unpacklo_epi64(low, high), _mm512_unpackhi_epi64(low, high)};
    for (int i = 0; i < 2; i++) {
        least[i] = _mm512_cmpge_epu8_mask(v[i], vt);
        equal[i] = _mm512_cmpeq_epi8_mask(v[i], vt);
    }
}

static inline Lanes lanes_word(Lanes low, Lanes high, Lanes index)
{
    const __mmask8 second = _mm512_test_epi64_mask(index, lanes_set(2));
    const Lanes odd = _mm512_and_si512(index, lanes_set(1));
    const Lanes two = _mm512_mask_blend_epi64(second, low, high);
    return lanes_low(_mm512_srlv_epi64(two, _mm512_slli_epi64(odd, 5)));
}
static inline uint32_t lanes_below(Lanes a, uint32_t b)
{
    return _mm512_cmpgt_epi64_mask(lanes_set(b), a);
}

/* 32-bit words, two per lane, for continuous noise. */
typedef __m512i Words;
static inline Words words_of(Lanes v, int part) { (void)part; return v; }
static inline Lanes lanes_of(const Words *part) { return *part; }
static inline Words words_set(uint32_t v) { return _mm512_set1_epi32((int)v); }
static inline Words words_add(Words a, Words b) { return _mm512_add_epi32(a, b); }
static inline Words words_sub(Words a, Words b) { return _mm512_sub_epi32(a, b); }
static inline Words words_and(Words a, Words b) { return _mm512_and_si512(a, b); }
static inline Words words_xor(Words a, Words b) { return _mm512_xor_si512(a, b); }
static inline Words words_shl(Words v, int n) { return _mm512_slli_epi32(v, (unsigned)n); }
static inline Words words_shr(Words v, int n) { return _mm512_srli_epi32(v, (unsigned)n); }
static inline Words words_sar(Words v, int n) { return _mm512_srai_epi32(v, (unsigned)n); }
static inline __m512 words_float(Words v) { return _mm512_cvtepi32_ps(v); }
static inline __m512 words_f32(Words v) { return _mm512_castsi512_ps(v); }
static inline Words f32_words(__m512 v) { return _mm512_castps_si512(v); }

typedef uint32_t BITS;
static inline BITS bits_of(uint32_t v) { return v; }
/* Bits j ... of a mask register, in one: compilers take the way through another register. */
static inline __mmask16 bits_from(BITS b, int j)
{
    switch (j) {
    case 8:
        return (__mmask16)_kshiftri_mask32(b, 8);
    case 16:
        return (__mmask16)_kshiftri_mask32(b, 16);
    case 24:
        return (__mmask16)_kshiftri_mask32(b, 24);
    default:
        return (__mmask16)b;
    }
}

static inline __m512 f32_relu(__m512 v, uint32_t *active)
{
    const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NLE_UQ);
    *active = mask;
    return _mm512_maskz_mov_ps(mask, v);
}
#define F32_VEC __m512
#define F32_WIDTH 16
#define F32_LOAD(p) _mm512_loadu_ps(p)
#define F32_LOAD_KEPT(p, b, j) _mm512_maskz_loadu_ps(bits_from(b, j), p)
#define F32_STORE(p, v) _mm512_storeu_ps(p, v)
#define F32_NT_STORE(p, v) _mm512_stream_ps((float *)(p), v)
#define F32_SET(s) _mm512_set1_ps((float)(s))
#define F32_ADD(a, b) _mm512_add_ps(a, b)
#define F32_MUL(a, b) _mm512_mul_ps(a, b)
#define F32_RELU f32_relu
#define F32_CHOOSE(u, v, b, j) _mm512_mask_blend_ps(bits_from(b, j), v, u)
#define F32_SUB(a, b) _mm512_sub_ps(a, b)
#define F32_DIV(a, b) _mm512_div_ps(a, b)
#define F32_MIN(a, b) _mm512_min_ps(a, b)
#define F32_MAX(a, b) _mm512_max_ps(a, b)
#define F32_SQRT(a) _mm512_sqrt_ps(a)

static inline __m512d f64_relu(__m512d v, uint32_t *active)
{
    const __mmask8 mask = _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NLE_UQ);
    *active = mask;
    return _mm512_maskz_mov_pd(mask, v);
}
#define F64_VEC __m512d
#define F64_WIDTH 8
#define F64_LOAD(p) _mm512_loadu_pd(p)
#define F64_LOAD_KEPT(p, b, j) _mm512_maskz_loadu_pd((__mmask8)bits_from(b, j), p)
#define F64_STORE(p, v) _mm512_storeu_pd(p, v)
#define F64_NT_STORE(p, v) _mm512_stream_pd((double *)(p), v)
#define F64_SET(s) _mm512_set1_pd(s)
#define F64_ADD(a, b) _mm512_add_pd(a, b)
#define F64_MUL(a, b) _mm512_mul_pd(a, b)
#define F64_RELU f64_relu
#define F64_CHOOSE(u, v, b, j) _mm512_mask_blend_pd((__mmask8)bits_from(b, j), v, u)
#define F64_SUB(a, b) _mm512_sub_pd(a, b)
#define F64_DIV(a, b) _mm512_div_pd(a, b)
#define F64_MIN(a, b) _mm512_min_pd(a, b)
#define F64_MAX(a, b) _mm512_max_pd(a, b)
#define F64_FROM_F32(p) _mm512_cvtps_pd(_mm256_loadu_ps(p))
#define F64_POWER(v)                                                                              \
    _mm512_castsi512_pd(_mm512_add_epi64(_mm512_slli_epi64(_mm512_castpd_si512(v), 52),           \
                                         _mm512_castpd_si512(_mm512_set1_pd(1))))

#define LOAD16(p) _mm256_loadu_si256((const __m256i *)(p))
#define F16_LOAD(p) _mm512_cvtph_ps(LOAD16(p))
#define F16_LOAD_KEPT(p, b, j) _mm512_maskz_cvtph_ps(bits_from(b, j), LOAD16(p))
#define F16_PACK(v) _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define F16_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), F16_PACK(v))
#define F16_NT_STORE(p, v) _mm256_stream_si256((__m256i *)(p), F16_PACK(v))

#include "simd/pairs.h"

static inline Pairs bf16_wide(__m512i v)
{
    return (Pairs){_mm512_castsi512_ps(_mm512_slli_epi32(v, 16)),
                   _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(~0xffff)))};
}
/* To nearest even, in the upper half. A NaN keeps its payload: that came from 16 bits, so nothing
 * carries into it. (The instruction of AVX512_BF16 would flush subnormal numbers.) */
static inline __m512i bf16_near(__m512 v)
{
    const __m512i u = _mm512_castps_si512(v), near = _mm512_add_epi32(u, _mm512_set1_epi32(0x7fff));
    const __mmask16 odd = _mm512_test_epi32_mask(u, _mm512_set1_epi32(0x10000));
    return _mm512_mask_add_epi32(near, odd, near, _mm512_set1_epi32(1));
}
static inline __m512i bf16_pack(Pairs v)
{
    const __m512i even = _mm512_srli_epi32(bf16_near(v.even), 16);
    return _mm512_mask_mov_epi16(bf16_near(v.odd), 0x55555555, even);
}
static inline Pairs pairs_relu(Pairs v, uint32_t *active)
{
    uint32_t even, odd;
    v = (Pairs){f32_relu(v.even, &even), f32_relu(v.odd, &odd)};
    *active = _pdep_u32(even, 0x55555555) | _pdep_u32(odd, 0xaaaaaaaa);
    return v;
}
static inline Pairs pairs_choose(Pairs u, Pairs v, BITS b)
{
    const __mmask16 even = (__mmask16)_pext_u32(b, 0x55555555), odd = (__mmask16)_pext_u32(b, 0xaaaaaaaa);
    return (Pairs){_mm512_mask_blend_ps(even, v.even, u.even), _mm512_mask_blend_ps(odd, v.odd, u.odd)};
}
static inline __m512i pairs_order(int i)
{
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    return _mm512_add_epi32(first, _mm512_set1_epi32(8 * i));
}
static inline Pairs pairs_load(const char *p)
{
    const __m512 a = F32_LOAD(p), b = F32_LOAD(p + 64);
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    return (Pairs){_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b)};
}
static inline void pairs_store(char *p, Pairs v)
{
    for (int i = 0; i < 2; i++)
        F32_STORE(p + 64 * i, _mm512_permutex2var_ps(v.even, pairs_order(i), v.odd));
}
#define PAIRS_CHOOSE(u, v, b, j) pairs_choose(u, v, b)
#define BF16_LOAD(p) bf16_wide(_mm512_loadu_si512(p))
#define BF16_LOAD_KEPT(p, b, j) bf16_wide(_mm512_maskz_loadu_epi16(b, p))
#define BF16_STORE(p, v) _mm512_storeu_si512(p, bf16_pack(v))
#define BF16_NT_STORE(p, v) _mm512_stream_ps((float *)(p), _mm512_castsi512_ps(bf16_pack(v)))
