/* NEON, which every aarch64 has: two lanes, and everything else that is written in intrinsics. */
#include <arm_neon.h>

typedef uint64x2_t Lanes;
enum { LANES = 2 };

static inline Lanes lanes_set(uint64_t v) { return vdupq_n_u64(v); }
static inline Lanes lanes_load(const uint64_t *p) { return vld1q_u64(p); }
static inline void lanes_store(uint64_t *p, Lanes v) { vst1q_u64(p, v); }
static inline Lanes lanes_add(Lanes a, Lanes b) { return vaddq_u64(a, b); }
/* The multiplication wants the low words side by side; those of a constant stay so. */
static inline Lanes lanes_mul32(Lanes a, Lanes b) { return vmull_u32(vmovn_u64(a), vmovn_u64(b)); }
static inline Lanes lanes_swap(Lanes a)
{
    return vreinterpretq_u64_u32(vrev64q_u32(vreinterpretq_u32_u64(a)));
}
static inline Lanes lanes_low(Lanes a) { return vandq_u64(a, vdupq_n_u64(0xffffffff)); }
static inline Lanes lanes_shr(Lanes a, int n) { return vshlq_u64(a, vdupq_n_s64(-n)); }
static inline Lanes lanes_xor(Lanes a, Lanes b) { return veorq_u64(a, b); }
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c) { return veorq_u64(veorq_u64(a, b), c); }

/* Which block each lane computes: the two zips below leave them as they are. */
static inline Lanes lanes_order(void) { return vcombine_u64(vcreate_u64(0), vcreate_u64(1)); }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    vst1q_u8(dst, vreinterpretq_u8_u64(vzip1q_u64(low, high)));
    vst1q_u8(dst + 16, vreinterpretq_u8_u64(vzip2q_u64(low, high)));
}

/* Bytes against t: bits of those above and of those equal. Each answer keeps the bit of its place,
 * and three additions of neighbours gather eight of them in a byte, all four vectors together. */
static inline Lanes lanes_ordered(Lanes v) { return v; }
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal)
{
    const uint8x16_t vt = vdupq_n_u8(t);
    const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(UINT64_C(0x8040201008040201)));
    const uint8x16_t v0 = vreinterpretq_u8_u64(vzip1q_u64(low, high));
    const uint8x16_t v1 = vreinterpretq_u8_u64(vzip2q_u64(low, high));
    const uint8x16_t ge = vpaddq_u8(vandq_u8(vcgeq_u8(v0, vt), place),
                                    vandq_u8(vcgeq_u8(v1, vt), place));
    const uint8x16_t eq = vpaddq_u8(vandq_u8(vceqq_u8(v0, vt), place),
                                    vandq_u8(vceqq_u8(v1, vt), place));
    const uint8x16_t fours = vpaddq_u8(ge, eq);
    const uint32x4_t bits = vreinterpretq_u32_u8(vpaddq_u8(fours, fours));
    *least = vgetq_lane_u32(bits, 0);
    *equal = vgetq_lane_u32(bits, 1);
}

static inline Lanes lanes_word(Lanes low, Lanes high, Lanes index)
{
    const Lanes two = vbslq_u64(vtstq_u64(index, vdupq_n_u64(2)), high, low);
    const uint64x2_t odd = vandq_u64(index, vdupq_n_u64(1));
    const int64x2_t shift = vreinterpretq_s64_u64(vshlq_n_u64(odd, 5));
    return lanes_low(vshlq_u64(two, vnegq_s64(shift)));
}
static inline uint32_t lanes_below(Lanes a, uint32_t b)
{
    const uint64x2_t below = vshrq_n_u64(vcltq_u64(a, vdupq_n_u64(b)), 63);
    return (uint32_t)(vgetq_lane_u64(below, 0) | vgetq_lane_u64(below, 1) << 1);
}

/* 32-bit words, two per lane, for continuous noise. */
typedef uint32x4_t Words;
static inline Words words_of(Lanes v, int part) { (void)part; return vreinterpretq_u32_u64(v); }
static inline Lanes lanes_of(const Words *part) { return vreinterpretq_u64_u32(*part); }
static inline Words words_set(uint32_t v) { return vdupq_n_u32(v); }
static inline Words words_add(Words a, Words b) { return vaddq_u32(a, b); }
static inline Words words_sub(Words a, Words b) { return vsubq_u32(a, b); }
static inline Words words_and(Words a, Words b) { return vandq_u32(a, b); }
static inline Words words_xor(Words a, Words b) { return veorq_u32(a, b); }
static inline Words words_shl(Words v, int n) { return vshlq_u32(v, vdupq_n_s32(n)); }
static inline Words words_shr(Words v, int n) { return vshlq_u32(v, vdupq_n_s32(-n)); }
static inline Words words_sar(Words v, int n)
{
    return vreinterpretq_u32_s32(vshlq_s32(vreinterpretq_s32_u32(v), vdupq_n_s32(-n)));
}
static inline float32x4_t words_float(Words v) { return vcvtq_f32_s32(vreinterpretq_s32_u32(v)); }
static inline float32x4_t words_f32(Words v) { return vreinterpretq_f32_u32(v); }
static inline Words f32_words(float32x4_t v) { return vreinterpretq_u32_f32(v); }

/* Keep bits: 32 of them, in every 32-bit lane. */
typedef uint32x4_t BITS;
static inline BITS bits_of(uint32_t v) { return vdupq_n_u32(v); }

/* Each lane tests its own bit. A table, because a loop that is not unrolled would make these vectors
 * in every turn. */
static const uint32_t lane_bit[32] = {
    0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x80, 0x100, 0x200, 0x400, 0x800,
    0x1000, 0x2000, 0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000,
    0x400000, 0x800000, 0x1000000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000,
    0x40000000, 0x80000000,
};
static inline uint32x4_t bits_mask32(BITS b, int j) { return vtstq_u32(b, vld1q_u32(lane_bit + j)); }
static inline uint64x2_t bits_mask64(BITS b, int j)
{
    return vtstq_u64(vreinterpretq_u64_u32(b), vmovl_u32(vld1_u32(lane_bit + j)));
}
static inline float32x4_t f32_kept(float32x4_t v, BITS b, int j)
{
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v), bits_mask32(b, j)));
}
static inline float32x4_t f32_relu(float32x4_t v, uint32_t *active)
{
    const uint32x4_t zero = vcleq_f32(v, vdupq_n_f32(0));
    *active = vaddvq_u32(vbicq_u32(vld1q_u32(lane_bit), zero));
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), zero));
}
static inline float32x4_t f32_load(const char *p)
{
    return vreinterpretq_f32_u8(vld1q_u8((const uint8_t *)p));
}
static inline void f32_store(char *p, float32x4_t v)
{
    vst1q_u8((uint8_t *)p, vreinterpretq_u8_f32(v));
}
/* There is no intrinsic that stores past the caches: NT_STORE is STORE. */
#define F32_VEC float32x4_t
#define F32_WIDTH 4
#define F32_LOAD(p) f32_load(p)
#define F32_LOAD_KEPT(p, b, j) f32_kept(f32_load(p), b, j)
#define F32_STORE f32_store
#define F32_NT_STORE f32_store
#define F32_SET(s) vdupq_n_f32((float)(s))
#define F32_ADD(a, b) vaddq_f32(a, b)
#define F32_MUL(a, b) vmulq_f32(a, b)
#define F32_RELU f32_relu
#define F32_CHOOSE(u, v, b, j) vbslq_f32(bits_mask32(b, j), u, v)
#define F32_SUB(a, b) vsubq_f32(a, b)
#define F32_DIV(a, b) vdivq_f32(a, b)
#define F32_MIN(a, b) vminq_f32(a, b)
#define F32_MAX(a, b) vmaxq_f32(a, b)
#define F32_SQRT(a) vsqrtq_f32(a)

static inline float64x2_t f64_kept(float64x2_t v, BITS b, int j)
{
    return vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(v), bits_mask64(b, j)));
}
static inline float64x2_t f64_relu(float64x2_t v, uint32_t *active)
{
    const uint64x2_t zero = vcleq_f64(v, vdupq_n_f64(0));
    *active = (uint32_t)vaddvq_u64(vbicq_u64(vmovl_u32(vld1_u32(lane_bit)), zero));
    return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(v), zero));
}
static inline float64x2_t f64_load(const char *p)
{
    return vreinterpretq_f64_u8(vld1q_u8((const uint8_t *)p));
}
static inline void f64_store(char *p, float64x2_t v)
{
    vst1q_u8((uint8_t *)p, vreinterpretq_u8_f64(v));
}
#define F64_VEC float64x2_t
#define F64_WIDTH 2
#define F64_LOAD(p) f64_load(p)
#define F64_LOAD_KEPT(p, b, j) f64_kept(f64_load(p), b, j)
#define F64_STORE f64_store
#define F64_NT_STORE f64_store
#define F64_SET(s) vdupq_n_f64(s)
#define F64_ADD(a, b) vaddq_f64(a, b)
#define F64_MUL(a, b) vmulq_f64(a, b)
#define F64_RELU f64_relu
#define F64_CHOOSE(u, v, b, j) vbslq_f64(bits_mask64(b, j), u, v)
#define F64_SUB(a, b) vsubq_f64(a, b)
#define F64_DIV(a, b) vdivq_f64(a, b)
#define F64_MIN(a, b) vminq_f64(a, b)
#define F64_MAX(a, b) vmaxq_f64(a, b)
#define F64_FROM_F32(p) vcvt_f64_f32(vld1_f32(p))
#define F64_POWER(v)                                                                              \
    vreinterpretq_f64_u64(vaddq_u64(vshlq_n_u64(vreinterpretq_u64_f64(v), 52),                    \
                                    vreinterpretq_u64_f64(vdupq_n_f64(1))))

static inline uint16x4_t load16x4(const char *p)
{
    return vreinterpret_u16_u8(vld1_u8((const uint8_t *)p));
}
static inline void store16x4(char *p, uint16x4_t v)
{
    vst1_u8((uint8_t *)p, vreinterpret_u8_u16(v));
}
#define F16_LOAD(p) vcvt_f32_f16(vreinterpret_f16_u16(load16x4(p)))
#define F16_LOAD_KEPT(p, b, j) f32_kept(F16_LOAD(p), b, j)
#define F16_STORE(p, v) store16x4(p, vreinterpret_u16_f16(vcvt_f16_f32(v)))
#define F16_NT_STORE F16_STORE

/* To nearest even. A NaN keeps its payload: that came from 16 bits, so nothing carries into it. */
static inline uint16x4_t bf16_pack(float32x4_t v)
{
    const uint32x4_t u = vreinterpretq_u32_f32(v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(vaddq_u32(u, vdupq_n_u32(0x7fff)), odd), 16);
}
#define BF16_LOAD(p) vreinterpretq_f32_u32(vshll_n_u16(load16x4(p), 16))
#define BF16_LOAD_KEPT(p, b, j) f32_kept(BF16_LOAD(p), b, j)
#define BF16_STORE(p, v) store16x4(p, bf16_pack(v))
#define BF16_NT_STORE BF16_STORE
