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
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c)
{
    return _mm256_xor_si256(_mm256_xor_si256(a, b), c);
}

/* Which block each lane computes, so that the two unpacks below leave them in natural order. */
static inline Lanes lanes_order(void) { return _mm256_setr_epi64x(0, 2, 1, 3); }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    _mm256_storeu_si256((__m256i *)dst, _mm256_unpacklo_epi64(low, high));
    _mm256_storeu_si256((__m256i *)(dst + 32), _mm256_unpackhi_epi64(low, high));
}

/* Bytes against t: bits of those above and of those equal. AVX2 compares signed bytes, so they have
 * come with their top bits flipped. */
#define COMPARE_FLIP UINT64_C(0x8080808080808080)
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint8_t *above, uint8_t *equal)
{
    const __m256i vt = _mm256_set1_epi8((char)(t ^ 0x80));
    const __m256i v[2] = {_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high)};
    for (int i = 0; i < 2; i++) {
        const int gt = _mm256_movemask_epi8(_mm256_cmpgt_epi8(v[i], vt));
        const int eq = _mm256_movemask_epi8(_mm256_cmpeq_epi8(v[i], vt));
        memcpy(above + 4 * i, &gt, 4);
        memcpy(equal + 4 * i, &eq, 4);
    }
}

/* Keep bits: 32 of them, in every 32-bit lane, from bit `shift` (0 ... 7) of p on. A shift by 31 - i puts bit i where it is a sign. */
typedef __m256i BITS;
static inline BITS bits_load(const uint8_t *p, unsigned shift)
{
    uint32_t v;
    if (shift)
        v = (uint32_t)(load_le64(p) >> shift);
    else
        memcpy(&v, p, 4);
    return _mm256_set1_epi32((int)v);
}

static inline __m256 f32_load_kept(const char *p, BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i sign = _mm256_sllv_epi32(b, _mm256_sub_epi32(_mm256_set1_epi32(31 - j), lane));
    return _mm256_maskload_ps((const float *)p, sign);
}
#define F32_VEC __m256
#define F32_WIDTH 8
#define F32_LOAD_KEPT f32_load_kept
#define F32_STORE(p, v) _mm256_storeu_ps((float *)(p), v)
#define F32_SET(s) _mm256_set1_ps((float)(s))
#define F32_MUL(a, b) _mm256_mul_ps(a, b)

static inline __m256d f64_load_kept(const char *p, BITS b, int j)
{
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    const __m256i sign = _mm256_sllv_epi64(b, _mm256_sub_epi64(_mm256_set1_epi64x(63 - j), lane));
    return _mm256_maskload_pd((const double *)p, sign);
}
#define F64_VEC __m256d
#define F64_WIDTH 4
#define F64_LOAD_KEPT f64_load_kept
#define F64_STORE(p, v) _mm256_storeu_pd((double *)(p), v)
#define F64_SET(s) _mm256_set1_pd(s)
#define F64_MUL(a, b) _mm256_mul_pd(a, b)
