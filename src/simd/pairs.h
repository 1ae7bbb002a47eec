/* bfloat16, two in each 32-bit lane: a vector of them is two vectors of float32, the odd ones as they stand
 * and the even ones shifted up. So nothing has to be moved between lanes.
 *
 * A header of this folder includes it behind its float32, for COMPUTE. What it still has to offer is
 * pairs_load, pairs_store, pairs_relu and PAIRS_CHOOSE. */
typedef struct {
    F32_VEC even, odd;
} Pairs;

static inline Pairs pairs_set(double s) { return (Pairs){F32_SET(s), F32_SET(s)}; }
#define PAIRS_OF(name, operation)                                                                 \
    static inline Pairs name(Pairs a, Pairs b)                                                    \
    {                                                                                             \
        return (Pairs){operation(a.even, b.even), operation(a.odd, b.odd)};                       \
    }
PAIRS_OF(pairs_add, F32_ADD)
PAIRS_OF(pairs_sub, F32_SUB)
PAIRS_OF(pairs_mul, F32_MUL)
PAIRS_OF(pairs_div, F32_DIV)
PAIRS_OF(pairs_min, F32_MIN)
PAIRS_OF(pairs_max, F32_MAX)
#undef PAIRS_OF
#define PAIRS_VEC Pairs
#define PAIRS_WIDTH (2 * F32_WIDTH)
#define PAIRS_LOAD pairs_load
#define PAIRS_STORE pairs_store
#define PAIRS_SET pairs_set
#define PAIRS_ADD pairs_add
#define PAIRS_SUB pairs_sub
#define PAIRS_MUL pairs_mul
#define PAIRS_DIV pairs_div
#define PAIRS_MIN pairs_min
#define PAIRS_MAX pairs_max
#define PAIRS_POWER(v) ((Pairs){F32_POWER((v).even), F32_POWER((v).odd)})
#define PAIRS_RELU pairs_relu
#define BF16_COMPUTE PAIRS
