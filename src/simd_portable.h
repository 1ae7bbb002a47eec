/* Plain C, one lane: the baseline of every machine, and what the others are compared with. */

typedef uint64_t Lanes;
enum { LANES = 1 };

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
#define COMPARE_FLIP UINT64_C(0)
static inline void halves_compare(Lanes low, Lanes high, uint8_t t, uint8_t *above, uint8_t *equal)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), top = ones << 7, vt = ones * t;
    const uint64_t collect = UINT64_C(0x0102040810204080), v[2] = {low, high};
    for (int i = 0; i < 2; i++) {
        const uint64_t x = v[i] ^ vt;
        const uint64_t zero = ~(((x & ~top) + ~top) | x) & top;
        const uint64_t seven = (v[i] | top) - (vt & ~top); /* top bit: >= t in the low seven bits */
        const uint64_t least = ((v[i] & ~vt) | (~x & seven)) & top;
        equal[i] = (uint8_t)((zero >> 7) * collect >> 56);
        above[i] = (uint8_t)(((least & ~zero) >> 7) * collect >> 56);
    }
}

typedef uint32_t BITS;
static inline BITS bits_load(const uint8_t *p, unsigned shift)
{
    return (uint32_t)(load_le64(p) >> shift);
}

static inline void f32_store(char *p, float v) { memcpy(p, &v, sizeof v); }
/* By its bits, because a branch on a random bit is mispredicted every other time. */
static inline float f32_load_kept(const char *p, BITS b, int j)
{
    uint32_t u;
    float v;
    memcpy(&u, p, sizeof u);
    u &= (uint32_t)0 - (b >> j & 1);
    memcpy(&v, &u, sizeof v);
    return v;
}
#define F32_VEC float
#define F32_WIDTH 1
#define F32_LOAD_KEPT f32_load_kept
#define F32_STORE f32_store
#define F32_SET(s) (float)(s)
#define F32_MUL(a, b) ((a) * (b))

static inline void f64_store(char *p, double v) { memcpy(p, &v, sizeof v); }
static inline double f64_load_kept(const char *p, BITS b, int j)
{
    uint64_t u;
    double v;
    memcpy(&u, p, sizeof u);
    u &= (uint64_t)0 - (b >> j & 1);
    memcpy(&v, &u, sizeof v);
    return v;
}
#define F64_VEC double
#define F64_WIDTH 1
#define F64_LOAD_KEPT f64_load_kept
#define F64_STORE f64_store
#define F64_SET(s) (s)
#define F64_MUL(a, b) ((a) * (b))
