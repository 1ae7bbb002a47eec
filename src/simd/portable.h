/* Plain C, one lane: the baseline of every machine, what the others are compared with, and what to copy
 * for another. contract.h and contract_type.h say what each name means; README.md how to add one. */
#include <math.h>

typedef uint64_t Lanes;
enum { LANES = 1 };
#define ONE_LOOP 0

static inline Lanes lanes_set(uint64_t v) { return v; }
static inline Lanes lanes_load(const uint64_t *p) { return *p; }
static inline void lanes_store(uint64_t *p, Lanes v) { *p = v; }
static inline Lanes lanes_add(Lanes a, Lanes b) { return a + b; }
static inline Lanes lanes_mul32(Lanes a, Lanes b) { return (a & 0xffffffff) * (b & 0xffffffff); }
static inline Lanes lanes_swap(Lanes a) { return a >> 32 | a << 32; }
static inline Lanes lanes_low(Lanes a) { return a & 0xffffffff; }
static inline Lanes lanes_shr(Lanes a, int n) { return a >> n; }
static inline Lanes lanes_xor(Lanes a, Lanes b) { return a ^ b; }
static inline Lanes lanes_xor3(Lanes a, Lanes b, Lanes c) { return a ^ b ^ c; }
static inline Lanes lanes_order(void) { return 0; }

static inline void halves_store(Lanes low, Lanes high, uint8_t *dst)
{
    store_le64(dst, low);
    store_le64(dst + 8, high);
}

/* Eight bytes in a word: the top bit of each holds its answer, a multiplication collects them. */
static inline Lanes lanes_ordered(Lanes v) { return v; }
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint64_t *least, uint64_t *equal)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), top = ones << 7, vt = ones * t;
    const uint64_t collect = UINT64_C(0x0102040810204080), v[2] = {low, high};
    *least = *equal = 0;
    for (int i = 0; i < 2; i++) {
        const uint64_t x = v[i] ^ vt;
        const uint64_t zero = ~(((x & ~top) + ~top) | x) & top;
        const uint64_t seven = (v[i] | top) - (vt & ~top); /* top bit: >= t in the low seven bits */
        const uint64_t not_below = ((v[i] & ~vt) | (~x & seven)) & top;
        *equal |= ((zero >> 7) * collect >> 56) << 8 * i;
        *least |= ((not_below >> 7) * collect >> 56) << 8 * i;
    }
}
static inline Lanes lanes_word(Lanes low, Lanes high, Lanes index)
{
    return (index & 2 ? high : low) >> 32 * (index & 1) & 0xffffffff;
}
static inline uint32_t lanes_below(Lanes a, uint32_t b) { return a < b; }

typedef uint32_t BITS;
static inline BITS bits_of(uint32_t v) { return v; }

/* A type's bits and back: as C has no other way to look at them. */
static inline uint32_t f32_bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
static inline float f32_of_bits(uint32_t u)
{
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}
/* Whether bit j is set as a word of ones or zeros: a branch on a random bit would be mispredicted
 * every other time. */
#define BIT_MASK(b, j) (0 - (uint64_t)((b) >> (j) & 1))

static inline uint32_t load32(const char *p)
{
    uint32_t u;
    memcpy(&u, p, sizeof u);
    return u;
}
static inline float f32_relu(float v, uint32_t *active)
{
    *active = !(v <= 0);
    return *active ? v : 0;
}
static inline void f32_store(char *p, float v) { memcpy(p, &v, sizeof v); }
#define F32_VEC float
#define F32_WIDTH 1
#define F32_LOAD(p) f32_of_bits(load32(p))
#define F32_LOAD_KEPT(p, b, j) f32_of_bits(load32(p) & (uint32_t)BIT_MASK(b, j))
#define F32_STORE f32_store
#define F32_NT_STORE f32_store
#define F32_SET(s) (float)(s)
#define F32_ADD(a, b) ((a) + (b))
#define F32_MUL(a, b) ((a) * (b))
#define F32_RELU f32_relu
static inline float f32_choose(float u, float v, uint32_t b, int j)
{
    const uint32_t mask = (uint32_t)BIT_MASK(b, j);
    return f32_of_bits((f32_bits(u) & mask) | (f32_bits(v) & ~mask));
}
#define F32_CHOOSE f32_choose
#define F32_SUB(a, b) ((a) - (b))
#define F32_DIV(a, b) ((a) / (b))
#define F32_MIN(a, b) ((a) < (b) ? (a) : (b))
#define F32_MAX(a, b) ((a) > (b) ? (a) : (b))
#define F32_SQRT(a) sqrtf(a)

/* 32-bit words, two per lane, for continuous noise. */
typedef uint32_t Words;
static inline Words words_of(Lanes v, int part) { return (Words)(v >> 32 * part); }
static inline Lanes lanes_of(const Words *part) { return part[0] | (Lanes)part[1] << 32; }
static inline Words words_set(uint32_t v) { return v; }
static inline Words words_add(Words a, Words b) { return a + b; }
static inline Words words_sub(Words a, Words b) { return a - b; }
static inline Words words_and(Words a, Words b) { return a & b; }
static inline Words words_xor(Words a, Words b) { return a ^ b; }
static inline Words words_shl(Words v, int n) { return v << n; }
static inline Words words_shr(Words v, int n) { return v >> n; }
static inline Words words_sar(Words v, int n) { return v >> n | (v >> 31 ? ~(UINT32_MAX >> n) : 0); }
static inline float words_float(Words v) { return (float)(int32_t)v; }
static inline float words_f32(Words v) { return f32_of_bits(v); }
static inline Words f32_words(float v) { return f32_bits(v); }

static inline uint64_t f64_bits(double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}
static inline double f64_of_bits(uint64_t u)
{
    double v;
    memcpy(&v, &u, sizeof v);
    return v;
}
static inline double f64_load(const char *p, uint64_t mask)
{
    uint64_t u;
    memcpy(&u, p, sizeof u);
    return f64_of_bits(u & mask);
}
static inline double f64_relu(double v, uint32_t *active)
{
    *active = !(v <= 0);
    return *active ? v : 0;
}
static inline void f64_store(char *p, double v) { memcpy(p, &v, sizeof v); }
#define F64_VEC double
#define F64_WIDTH 1
#define F64_LOAD(p) f64_load(p, UINT64_MAX)
#define F64_LOAD_KEPT(p, b, j) f64_load(p, BIT_MASK(b, j))
#define F64_STORE f64_store
#define F64_NT_STORE f64_store
#define F64_SET(s) (s)
#define F64_ADD(a, b) ((a) + (b))
#define F64_MUL(a, b) ((a) * (b))
#define F64_RELU f64_relu
static inline double f64_choose(double u, double v, uint32_t b, int j)
{
    const uint64_t mask = BIT_MASK(b, j);
    return f64_of_bits((f64_bits(u) & mask) | (f64_bits(v) & ~mask));
}
#define F64_CHOOSE f64_choose
#define F64_SUB(a, b) ((a) - (b))
#define F64_DIV(a, b) ((a) / (b))
#define F64_MIN(a, b) ((a) < (b) ? (a) : (b))
#define F64_MAX(a, b) ((a) > (b) ? (a) : (b))
#define F64_FROM_F32(p) ((double)*(p))
#define F64_POWER(v) f64_of_bits((f64_bits(v) << 52) + f64_bits(1))

static inline uint32_t load16(const char *p)
{
    uint16_t u;
    memcpy(&u, p, sizeof u);
    return u;
}
static inline void store16(char *p, uint32_t v)
{
    const uint16_t u = (uint16_t)v;
    memcpy(p, &u, sizeof u);
}
/* float16 to float32, exactly: the exponent is moved up by a multiplication, subnormals included. */
static inline float f16_wide(uint32_t h)
{
    const uint32_t sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
    if (rest >= 0x0f800000) /* infinite or NaN */
        return f32_of_bits(sign | 0x7f800000 | rest);
    return f32_of_bits(sign | f32_bits(f32_of_bits(rest) * 0x1p112f));
}
/* float32 to float16, to nearest even. */
static inline uint32_t f16_pack(float v)
{
    const uint32_t u = f32_bits(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000) /* NaN: quiet, with the top of its payload */
        return sign | 0x7e00 | (a >> 13 & 0x3ff);
    if (a >= 0x477ff000) /* 65520 and more round to infinity */
        return sign | 0x7c00;
    if (a < 0x38800000) /* subnormal: 1/2 has the units of its last place, the addition rounds */
        return sign | (f32_bits(f32_of_bits(a) + 0.5f) - 0x3f000000);
    return sign | (a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13;
}
#define F16_LOAD(p) f16_wide(load16(p))
#define F16_LOAD_KEPT(p, b, j) f16_wide(load16(p) & (uint32_t)BIT_MASK(b, j))
#define F16_STORE(p, v) store16(p, f16_pack(v))
#define F16_NT_STORE F16_STORE

/* float32 to bfloat16, to nearest even. A NaN keeps its payload: that came from 16 bits, so nothing
 * carries into it. */
static inline uint32_t bf16_pack(float v)
{
    const uint32_t u = f32_bits(v);
    return (u + 0x7fff + (u >> 16 & 1)) >> 16;
}
#define BF16_LOAD(p) f32_of_bits(load16(p) << 16)
#define BF16_LOAD_KEPT(p, b, j) f32_of_bits((load16(p) & (uint32_t)BIT_MASK(b, j)) << 16)
#define BF16_STORE(p, v) store16(p, bf16_pack(v))
#define BF16_NT_STORE BF16_STORE
