/* SSE2, which every x86-64 has: two lanes, and everything else that is written in intrinsics. */
#include <emmintrin.h>

typedef __m128i Lanes;
enum { LANES = 2 };
#define ONE_LOOP 0 /* it spills, and takes 1.1 to 1.25 times as long */

static inline Lanes lanes_set(uint64_t v) { return _mm_set1_epi64x((long long)v); }
static inline Lanes lanes_load(const uint64_t *p) { return _mm_loadu_si128((const __m128i *)p); }
static inline void lanes_store(uint64_t *p, Lanes v) { _mm_storeu_si128((__m128i *)p, v); }
static inline Lanes lanes_add(Lanes a, Lanes b) { return _mm_add_epi64(a, b); }
static inline Lanes lanes_mul32(Lanes a, Lanes b) { return _mm_mul_epu32(a, b); }
static inline Lanes lanes_swap(Lanes a) { return _mm_shuffle_epi32(a, 0xb1); }
static inline Lanes lanes_low(Lanes a) { return _mm_and_si128(a, _mm_set1_epi64x(0xffffffff)); }
static inline Lanes lanes_shr(Lanes a, int n) { return _mm_srli_epi64(a, n); }
static inline Lanes lanes_xor(Lanes a, Lanes b) { return _mm_xor_si128(a, b); }
/* a comes last, so b ^ c need not wait for it; in another type, or the compiler would reorder. */
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c)
{
    return _mm_xor_si128(a, (Lanes)((__v4si)b ^ (__v4si)c));
}

/* Which block each lane computes: the two unpacks below leave them as they are. */
static inline Lanes lanes_order(void) { return _mm_set_epi64x(1, 0); }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    _mm_storeu_si128((__m128i *)dst, _mm_unpacklo_epi64(low, high));
    _mm_storeu_si128((__m128i *)(dst + 16), _mm_unpackhi_epi64(low, high));
}

/* SSE2 compares signed bytes: in their order, bytes have their top bits flipped. */
static inline Lanes lanes_ordered(Lanes v)
{
    return lanes_xor(v, lanes_set(UINT64_C(0x8080808080808080)));
}
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal)
{
    const __m128i vt = _mm_set1_epi8((char)(t ^ 0x80));
    const __m128i v[2] = {_mm_unpacklo_epi64(low, high), _mm_unpackhi_epi64(low, high)};
    uint32_t below[2], same[2];
    for (int i = 0; i < 2; i++) {
        below[i] = (uint32_t)_mm_movemask_epi8(_mm_cmpgt_epi8(vt, v[i]));
        same[i] = (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(vt, v[i]));
    }
    *least = (uint32_t)~(below[0] | below[1] << 16);
    *equal = same[0] | same[1] << 16;
}

static inline Lanes lanes_word(Lanes low, Lanes high, Lanes index)
{
    const Lanes bit = _mm_and_si128(index, lanes_set(2)), odd = _mm_and_si128(index, lanes_set(1));
    const Lanes first = _mm_sub_epi64(lanes_shr(bit, 1), lanes_set(1)); /* all ones or zeros */
    const Lanes two = _mm_or_si128(_mm_and_si128(first, low), _mm_andnot_si128(first, high));
    const Lanes even = _mm_sub_epi64(odd, lanes_set(1));
    return lanes_low(_mm_or_si128(_mm_and_si128(even, two), _mm_andnot_si128(even, lanes_shr(two, 32))));
}
static inline uint32_t lanes_below(Lanes a, uint32_t b)
{
    return (uint32_t)_mm_movemask_pd(_mm_castsi128_pd(_mm_sub_epi64(a, lanes_set(b))));
}

/* 32-bit words, two per lane, for continuous noise. */
typedef __m128i Words;
static inline Words words_of(Lanes v, int part) { (void)part; return v; }
static inline Lanes lanes_of(const Words *part) { return *part; }
static inline Words words_set(uint32_t v) { return _mm_set1_epi32((int)v); }
static inline Words words_add(Words a, Words b) { return _mm_add_epi32(a, b); }
static inline Words words_sub(Words a, Words b) { return _mm_sub_epi32(a, b); }
static inline Words words_and(Words a, Words b) { return _mm_and_si128(a, b); }
static inline Words words_xor(Words a, Words b) { return _mm_xor_si128(a, b); }
static inline Words words_shl(Words v, int n) { return _mm_slli_epi32(v, n); }
static inline Words words_shr(Words v, int n) { return _mm_srli_epi32(v, n); }
static inline Words words_sar(Words v, int n) { return _mm_srai_epi32(v, n); }
static inline __m128 words_float(Words v) { return _mm_cvtepi32_ps(v); }
static inline __m128 words_f32(Words v) { return _mm_castsi128_ps(v); }
static inline Words f32_words(__m128 v) { return _mm_castps_si128(v); }

/* Keep bits: 32 of them, in every 32-bit lane. SSE2 has no shift by lanes: each lane looks at its own
 * bit, and what is dropped is where that is 0. */
typedef __m128i BITS;
static inline BITS bits_of(uint32_t v) { return _mm_set1_epi32((int)v); }

/* A table, because a loop that is not unrolled would make these vectors in every turn. */
static const _Alignas(16) uint32_t lane_bit[32] = {
    0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800,
    0x1000, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000,
    0x400000, 0x800000, 0x1000000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000,
    0x40000000, 0x80000000,
};
static inline __m128i bits_dropped32(BITS b, int j)
{
    const __m128i bit = _mm_load_si128((const __m128i *)(lane_bit + j));
    return _mm_cmpeq_epi32(_mm_and_si128(b, bit), _mm_setzero_si128());
}
static inline __m128i bits_dropped64(BITS b, int j)
{
    const __m128i bit = _mm_loadl_epi64((const __m128i *)(lane_bit + j));
    const __m128i twice = _mm_unpacklo_epi32(bit, bit);
    return _mm_cmpeq_epi32(_mm_and_si128(b, twice), _mm_setzero_si128());
}
static inline __m128 f32_kept(__m128 v, BITS b, int j)
{
    return _mm_andnot_ps(_mm_castsi128_ps(bits_dropped32(b, j)), v);
}
static inline __m128 f32_relu(__m128 v, uint32_t *active)
{
    const __m128 mask = _mm_cmpnle_ps(v, _mm_setzero_ps());
    *active = (uint32_t)_mm_movemask_ps(mask);
    return _mm_and_ps(v, mask);
}
#define F32_VEC __m128
#define F32_WIDTH 4
#define F32_LOAD(p) _mm_loadu_ps((const float *)(p))
#define F32_LOAD_KEPT(p, b, j) f32_kept(F32_LOAD(p), b, j)
#define F32_STORE(p, v) _mm_storeu_ps((float *)(p), v)
#define F32_NT_STORE(p, v) _mm_stream_ps((float *)(p), v)
#define F32_SET(s) _mm_set1_ps((float)(s))
#define F32_ADD(a, b) _mm_add_ps(a, b)
#define F32_MUL(a, b) _mm_mul_ps(a, b)
#define F32_RELU f32_relu
static inline __m128 f32_choose(__m128 u, __m128 v, BITS b, int j)
{
    const __m128 dropped = _mm_castsi128_ps(bits_dropped32(b, j));
    return _mm_or_ps(_mm_andnot_ps(dropped, u), _mm_and_ps(dropped, v));
}
#define F32_CHOOSE f32_choose
#define F32_SUB(a, b) _mm_sub_ps(a, b)
#define F32_DIV(a, b) _mm_div_ps(a, b)
#define F32_MIN(a, b) _mm_min_ps(a, b)
#define F32_MAX(a, b) _mm_max_ps(a, b)
#define F32_SQRT(a) _mm_sqrt_ps(a)

static inline __m128d f64_kept(__m128d v, BITS b, int j)
{
    return _mm_andnot_pd(_mm_castsi128_pd(bits_dropped64(b, j)), v);
}
static inline __m128d f64_relu(__m128d v, uint32_t *active)
{
    const __m128d mask = _mm_cmpnle_pd(v, _mm_setzero_pd());
    *active = (uint32_t)_mm_movemask_pd(mask);
    return _mm_and_pd(v, mask);
}
#define F64_VEC __m128d
#define F64_WIDTH 2
#define F64_LOAD(p) _mm_loadu_pd((const double *)(p))
#define F64_LOAD_KEPT(p, b, j) f64_kept(F64_LOAD(p), b, j)
#define F64_STORE(p, v) _mm_storeu_pd((double *)(p), v)
#define F64_NT_STORE(p, v) _mm_stream_pd((double *)(p), v)
#define F64_SET(s) _mm_set1_pd(s)
#define F64_ADD(a, b) _mm_add_pd(a, b)
#define F64_MUL(a, b) _mm_mul_pd(a, b)
#define F64_RELU f64_relu
static inline __m128d f64_choose(__m128d u, __m128d v, BITS b, int j)
{
    const __m128d dropped = _mm_castsi128_pd(bits_dropped64(b, j));
    return _mm_or_pd(_mm_andnot_pd(dropped, u), _mm_and_pd(dropped, v));
}
#define F64_CHOOSE f64_choose
#define F64_SUB(a, b) _mm_sub_pd(a, b)
#define F64_DIV(a, b) _mm_div_pd(a, b)
#define F64_MIN(a, b) _mm_min_pd(a, b)
#define F64_MAX(a, b) _mm_max_pd(a, b)
#define F64_FROM_F32(p) _mm_cvtps_pd(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(p))))
#define F64_POWER(v)                                                                              \
    _mm_castsi128_pd(_mm_add_epi64(_mm_slli_epi64(_mm_castpd_si128(v), 52),                       \
                                   _mm_castpd_si128(_mm_set1_pd(1))))

/* Four 16-bit elements, each in the upper half of a 32-bit lane. */
static inline __m128i load16x4(const char *p)
{
    return _mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i *)p));
}
#define STORE16(p, v) _mm_storel_epi64((__m128i *)(p), v)
#define NT_STORE16(p, v) _mm_stream_si64((long long *)(void *)(p), _mm_cvtsi128_si64(v))

/* float16 to float32, exactly: the exponent is moved up by a multiplication, subnormals included;
 * an infinite or NaN lacks only exponent bits then. */
static inline __m128 f16_load(const char *p)
{
    const __m128i h = _mm_srai_epi32(load16x4(p), 3);
    const __m128i low = _mm_and_si128(h, _mm_set1_epi32((int)0x8fffe000));
    const __m128i over = _mm_cmpgt_epi32(_mm_and_si128(h, _mm_set1_epi32(0x0fffe000)),
                                         _mm_set1_epi32(0x0f7fffff));
    const __m128 v = _mm_mul_ps(_mm_castsi128_ps(low), _mm_set1_ps(0x1p112f));
    return _mm_or_ps(v, _mm_castsi128_ps(_mm_and_si128(over, _mm_set1_epi32(0x7f800000))));
}
/* float32 to float16, to nearest even. Added to 2^(13 + e), a number of exponent e is rounded to the
 * ten bits that stay, and they stand at the sum's low end; below the normal numbers e is -14. */
static inline __m128i f16_pack(__m128 v)
{
    const __m128i u = _mm_castps_si128(v), sign = _mm_and_si128(u, _mm_set1_epi32(INT32_MIN));
    const __m128i a = _mm_xor_si128(u, sign);
    /* What is 65536 or more, or NaN, becomes 65536, which is infinity's pattern. */
    const __m128 least = _mm_min_ps(_mm_castsi128_ps(a), _mm_set1_ps(65536));
    const __m128i most = _mm_castps_si128(_mm_max_ps(least, _mm_set1_ps(0x1p-14f)));
    const __m128i e = _mm_and_si128(most, _mm_set1_epi32(0x7f800000));
    const __m128i power = _mm_add_epi32(e, _mm_set1_epi32(13 << 23));
    const __m128i sum = _mm_castps_si128(_mm_add_ps(least, _mm_castsi128_ps(power)));
    const __m128i exponent = _mm_srli_epi32(_mm_sub_epi32(e, _mm_set1_epi32(113 << 23)), 13);
    const __m128i number = _mm_add_epi32(_mm_sub_epi32(sum, power), exponent);
    /* NaN: quiet, with the top of its payload */
    const __m128i payload = _mm_and_si128(_mm_srli_epi32(u, 13), _mm_set1_epi32(0x3ff));
    const __m128i quiet = _mm_or_si128(payload, _mm_set1_epi32(0x200));
    const __m128i nan = _mm_and_si128(_mm_castps_si128(_mm_cmpunord_ps(v, v)), quiet);
    const __m128i h = _mm_or_si128(_mm_or_si128(number, nan), _mm_srai_epi32(sign, 16));
    return _mm_packs_epi32(h, h);
}
#define F16_LOAD(p) f16_load(p)
#define F16_LOAD_KEPT(p, b, j) f32_kept(f16_load(p), b, j)
#define F16_STORE(p, v) STORE16(p, f16_pack(v))
#define F16_NT_STORE(p, v) NT_STORE16(p, f16_pack(v))

/* To nearest even. A NaN keeps its payload: that came from 16 bits, so nothing carries into it. */
static inline __m128i bf16_pack(__m128 v)
{
    const __m128i u = _mm_castps_si128(v);
    const __m128i odd = _mm_and_si128(_mm_srli_epi32(u, 16), _mm_set1_epi32(1));
    const __m128i near = _mm_add_epi32(_mm_add_epi32(u, _mm_set1_epi32(0x7fff)), odd);
    const __m128i top = _mm_srai_epi32(near, 16); /* the only pack of SSE2 is for signed numbers */
    return _mm_packs_epi32(top, top);
}
#define BF16_LOAD(p) _mm_castsi128_ps(load16x4(p))
#define BF16_LOAD_KEPT(p, b, j) f32_kept(BF16_LOAD(p), b, j)
#define BF16_STORE(p, v) STORE16(p, bf16_pack(v))
#define BF16_NT_STORE(p, v) NT_STORE16(p, bf16_pack(v))
