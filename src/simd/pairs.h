/* bfloat16, two in each 32-bit lane: a vector of them is two vectors of float32, the odd ones as they stand
 * and the even ones shifted up. So nothing has to be moved between lanes.
 *
 * A header of this folder includes it behind its float32, for COMPUTE. What it still has to offer is
 * pairs_load, pairs_store, pairs_relu and PAIRS_CHOOSE. */
typedef struct {
    F32_VEC even, odd;
} Pairs;

static inline Pairs pairs_set(double s) { return (Pairs){F32_SET(s), F32_SET(s)}; }
static inline Pairs pairs_add(Pairs a, Pairs b)
{
    return (Pairs){F32_ADD(a.even, b.even), F32_ADD(a.odd, b.odd)};
}
static inline Pairs pairs_mul(Pairs a, Pairs b)
{
    return (Pairs){F32_MUL(a.even, b.even), F32_MUL(a.odd, b.odd)};
}
#define PAIRS_VEC Pairs
#define PAIRS_WIDTH (2 * F32_WIDTH)
#define PAIRS_LOAD pairs_load
#define PAIRS_STORE pairs_store
#define PAIRS_SET pairs_set
#define PAIRS_ADD pairs_add
#define PAIRS_MUL pairs_mul
#define PAIRS_RELU pairs_relu
#define BF16_COMPUTE PAIRS
