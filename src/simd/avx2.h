/* AVX2: four lanes, and everything else that is written in intrinsics. */
#include <immintrin.h>

typedef __m256i Lanes;
enum { LANES = 4 };

static inline Lanes lanes_set(uint64_t v) { return _mm256_set1_epi64x((long long)v); }
static inline Lanes lanes_load(const uint64_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
static inline void lanes_store(uint64_t *p, Lanes v) { _mm256_storeu_si256((__m256i *)p, v); }
static inline Lanes lanes_add(Lanes a, Lanes b) { return _mm256_add_epi64(a, b); }
static inline Lanes lanes_mul32(Lanes a, Lanes b) { return _mm256_mul_epu32(a, b); }
/* The halves of each lane, exchanged; by a shuffle, as shifts compete with multiplications. */
static inline Lanes lanes_swap(Lanes a) { return _mm256_shuffle_epi32(a, 0xb1); }
static inline Lanes lanes_low(Lanes a) { return _mm256_blend_epi32(a, _mm256_setzero_si256(), 0xaa); }
static inline Lanes lanes_shr(Lanes a, int n) { return _mm256_srli_epi64(a, n); }
static inline Lanes lanes_xor(Lanes a, Lanes b) { return _mm256_xor_si256(a, b); }
/* a comes last, so b ^ c need not wait for it; in another type, or the compiler would reorder. */
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c)
{
    return _mm256_xor_si256(a, (Lanes)((__v8si)b ^ (__v8si)c));
}

/* Which block each lane computes, so that the two unpacks below leave them in natural order. */
static inline Lanes lanes_order(void) { return _mm256_setr_epi64x(0, 2, 1, 3); }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    _mm256_storeu_si256((__m256i *)dst, _mm256_unpacklo_epi64(low, high));
    _mm256_storeu_si256((__m256i *)(dst + 32), _mm256_unpackhi_epi64(low, high));
}

/* AVX2 compares signed bytes: in their order, bytes have their top bits flipped. */
static inline Lanes lanes_ordered(Lanes v)
{
    return lanes_xor(v, lanes_set(UINT64_C(0x8080808080808080)));
}
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal)
{
    const __m256i vt = _mm256_set1_epi8((char)(t ^ 0x80));
    const __m256i v[2] = {_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high)};
    uint32_t below[2], same[2];
    for (int i = 0; i < 2; i++) {
        below[i] = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(vt, v[i]));
        same[i] = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(vt, v[i]));
    }
    *least = ~(below[0] | (uint64_t)below[1] << 32);
    *equal = same[0] | (uint64_t)same[1] << 32;
}

static inline Lanes lanes_word(Lanes low, Lanes high, Lanes index)
{
    const __m256d second = _mm256_castsi256_pd(_mm256_slli_epi64(index, 62));
    const __m256d two = _mm256_blendv_pd(_mm256_castsi256_pd(low), _mm256_castsi256_pd(high), second);
    const Lanes odd = _mm256_and_si256(index, lanes_set(1));
    return lanes_low(_mm256_srlv_epi64(_mm256_castpd_si256(two), _mm256_slli_epi64(odd, 5)));
}
static inline uint32_t lanes_below(Lanes a, uint32_t b)
{
    const __m256d below = _mm256_castsi256_pd(_mm256_cmpgt_epi64(lanes_set(b), a));
    return (uint32_t)_mm256_movemask_pd(below);
}

/* 32-bit words, two per lane, for continuous noise. */
typedef __m256i Words;
static inline Words words_of(Lanes v, int part) { (void)part; return v; }
static inline Lanes lanes_of(const Words *part) { return *part; }
static inline Words words_set(uint32_t v) { return _mm256_set1_epi32((int)v); }
static inline Words words_add(Words a, Words b) { return _mm256_add_epi32(a, b); }
static inline Words words_sub(Words a, Words b) { return _mm256_sub_epi32(a, b); }
static inline Words words_and(Words a, Words b) { return _mm256_and_si256(a, b); }
static inline Words words_xor(Words a, Words b) { return _mm256_xor_si256(a, b); }
static inline Words words_shl(Words v, int n) { return _mm256_slli_epi32(v, n); }
static inline Words words_shr(Words v, int n) { return _mm256_srli_epi32(v, n); }
static inline Words words_sar(Words v, int n) { return _mm256_srai_epi32(v, n); }
static inline __m256 words_float(Words v) { return _mm256_cvtepi32_ps(v); }
static inline __m256 words_f32(Words v) { return _mm256_castsi256_ps(v); }
static inline Words f32_words(__m256 v) { return _mm256_castps_si256(v); }

/* Keep bits: 32 of them, in every 32-bit lane. A shift by 31 - i puts bit i where it is a sign. */
typedef __m256i BITS;
static inline BITS bits_of(uint32_t v) { return _mm256_set1_epi32((int)v); }

static inline __m256i bits_signs32(BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(31 - j), lane));
}
static inline __m256i bits_signs64(BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    return _mm256_sllv_epi64(b, _mm256_sub_epi64(_mm256_set1_epi64x(63 - j), lane));
}
static inline __m256 f32_kept(__m256 v, BITS b, int j)
{
    const __m256i mask = _mm256_srai_epi32(bits_signs32(b, j), 31);
    return _mm256_and_ps(v, _mm256_castsi256_ps(mask));
}
static inline __m256 f32_relu(__m256 v, uint32_t *active)
{
    const __m256 mask = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NLE_UQ);
    *active = (uint32_t)_mm256_movemask_ps(mask);
    return _mm256_and_ps(v, mask);
}
#define F32_VEC __m256
#define F32_WIDTH 8
#define F32_LOAD(p) _mm256_loadu_ps((const float *)(p))
/* A masked load would do without the blend, but no prefetcher of Zen 4 follows it: where x comes from
 * memory it took twice as long. */
#define F32_LOAD_KEPT(p, b, j) F32_CHOOSE(F32_LOAD(p), _mm256_setzero_ps(), b, j)
#define F32_STORE(p, v) _mm256_storeu_ps((float *)(p), v)
#define F32_NT_STORE(p, v) _mm256_stream_ps((float *)(p), v)
#define F32_SET(s) _mm256_set1_ps((float)(s))
#define F32_ADD(a, b) _mm256_add_ps(a, b)
#define F32_MUL(a, b) _mm256_mul_ps(a, b)
#define F32_RELU f32_relu
#define F32_CHOOSE(u, v, b, j) _mm256_blendv_ps(v, u, _mm256_castsi256_ps(bits_signs32(b, j)))
#define F32_SUB(a, b) _mm256_sub_ps(a, b)
#define F32_DIV(a, b) _mm256_div_ps(a, b)
#define F32_MIN(a, b) _mm256_min_ps(a, b)
#define F32_MAX(a, b) _mm256_max_ps(a, b)
#define F32_SQRT(a) _mm256_sqrt_ps(a)

static inline __m256d f64_relu(__m256d v, uint32_t *active)
{
    const __m256d mask = _mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_NLE_UQ);
    *active = (uint32_t)_mm256_movemask_pd(mask);
    return _mm256_and_pd(v, mask);
}
#define F64_VEC __m256d
#define F64_WIDTH 4
#define F64_LOAD(p) _mm256_loadu_pd((const double *)(p))
#define F64_LOAD_KEPT(p, b, j) F64_CHOOSE(F64_LOAD(p), _mm256_setzero_pd(), b, j)
#define F64_STORE(p, v) _mm256_storeu_pd((double *)(p), v)
#define F64_NT_STORE(p, v) _mm256_stream_pd((double *)(p), v)
#define F64_SET(s) _mm256_set1_pd(s)
#define F64_ADD(a, b) _mm256_add_pd(a, b)
#define F64_MUL(a, b) _mm256_mul_pd(a, b)
#define F64_RELU f64_relu
#define F64_CHOOSE(u, v, b, j) _mm256_blendv_pd(v, u, _mm256_castsi256_pd(bits_signs64(b, j)))
#define F64_SUB(a, b) _mm256_sub_pd(a, b)
#define F64_DIV(a, b) _mm256_div_pd(a, b)
#define F64_MIN(a, b) _mm256_min_pd(a, b)
#define F64_MAX(a, b) _mm256_max_pd(a, b)
#define F64_FROM_F32(p) _mm256_cvtps_pd(_mm_loadu_ps(p))
#define F64_POWER(v)                                                                              \
    _mm256_castsi256_pd(_mm256_add_epi64(_mm256_slli_epi64(_mm256_castpd_si256(v), 52),           \
                                         _mm256_castpd_si256(_mm256_set1_pd(1))))

#define F16_LOAD(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))
#define F16_LOAD_KEPT(p, b, j) f32_kept(F16_LOAD(p), b, j)
#define F16_PACK(v) _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define F16_STORE(p, v) _mm_storeu_si128((__m128i *)(p), F16_PACK(v))
#define F16_NT_STORE(p, v) _mm_stream_si128((__m128i *)(p), F16_PACK(v))

#include "simd/pairs.h"

static inline Pairs bf16_load(const char *p)
{
    const __m256i v = _mm256_loadu_si256((const __m256i *)p);
    return (Pairs){_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)),
                   _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(~0xffff)))};
}
static inline Pairs bf16_load_kept(const char *p, BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i even = _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(31 - j), lane));
    const __m256i odd = _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(30 - j), lane));
    const Pairs v = bf16_load(p);
    return (Pairs){_mm256_and_ps(v.even, _mm256_castsi256_ps(_mm256_srai_epi32(even, 31))),
                   _mm256_and_ps(v.odd, _mm256_castsi256_ps(_mm256_srai_epi32(odd, 31)))};
}
/* To nearest even, in the upper half. A NaN keeps its payload: that came from 16 bits, so nothing
 * carries into it. */
static inline __m256i bf16_near(__m256 v)
{
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
}
static inline __m256i bf16_pack(Pairs v)
{
    return _mm256_blend_epi16(_mm256_srli_epi32(bf16_near(v.even), 16), bf16_near(v.odd), 0xaa);
}
static inline Pairs pairs_relu(Pairs v, uint32_t *active)
{
    uint32_t even, odd;
    v = (Pairs){f32_relu(v.even, &even), f32_relu(v.odd, &odd)};
    *active = _pdep_u32(even, 0x5555) | _pdep_u32(odd, 0xaaaa);
    return v;
}
static inline Pairs pairs_choose(Pairs u, Pairs v, BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
    const __m256i even = _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(31 - j), lane));
    const __m256i odd = _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(30 - j), lane));
    return (Pairs){_mm256_blendv_ps(v.even, u.even, _mm256_castsi256_ps(even)),
                   _mm256_blendv_ps(v.odd, u.odd, _mm256_castsi256_ps(odd))};
}
static inline Pairs pairs_load(const char *p)
{
    const __m256 a = F32_LOAD(p), b = F32_LOAD(p + 32);
    const __m256 low = _mm256_permute2f128_ps(a, b, 0x20), high = _mm256_permute2f128_ps(a, b, 0x31);
    return (Pairs){_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xdd)};
}
static inline void pairs_store(char *p, Pairs v)
{
    const __m256 low = _mm256_unpacklo_ps(v.even, v.odd), high = _mm256_unpackhi_ps(v.even, v.odd);
    F32_STORE(p, _mm256_permute2f128_ps(low, high, 0x20));
    F32_STORE(p + 32, _mm256_permute2f128_ps(low, high, 0x31));
}
#define PAIRS_CHOOSE pairs_choose
#define BF16_LOAD bf16_load
#define BF16_LOAD_KEPT bf16_load_kept
#define BF16_STORE(p, v) _mm256_storeu_si256((__m256i *)(p), bf16_pack(v))
#define BF16_NT_STORE(p, v) _mm256_stream_si256((__m256i *)(p), bf16_pack(v))
