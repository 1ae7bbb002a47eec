/* GELU in its tanh form, and its slope, of exactly rounded operations; included by apply.h. With
 * a = -2 sqrt(2 / pi) (u + 0.044715 u^3), gelu(u) = u (1 + tanh(-a / 2)) / 2 = u / (1 + e^a).
 *
 * Beyond the limits e^a is infinite and 0, as 2^n is, and nothing changes any more. Of MAX and MIN the second
 * operand comes out where it is a NaN. fastdrop/reference/activation.py has the same, and what the errors are. */
#define GELU_LEAST SET(SIZE == 8 ? -21.16015625 : -10.0625)
#define GELU_MOST SET(SIZE == 8 ? 21.15234375 : 10.03125)
#define GELU_LINEAR (-1.5957691216057308)
#define GELU_CUBIC (GELU_LINEAR * 0.044715)

/* e^a of a u within the limits. */
static inline VEC NAME(gelu_odds, SUFFIX)(VEC u)
{
    const VEC square = MUL(u, u);
    return NAME(exponential, SUFFIX)(MUL(u, ADD(SET(GELU_LINEAR), MUL(SET(GELU_CUBIC), square))));
}

static NOINLINE VEC NAME(gelu, SUFFIX)(VEC u)
{
    const VEC v = MAX(GELU_LEAST, u);
    return DIV(v, ADD(SET(1), NAME(gelu_odds, SUFFIX)(MIN(GELU_MOST, v))));
}

/* s - u a' s (1 - s) with s = 1 / (1 + e^a). 1 - s is e^a s, which keeps its digits; not infinity times 0. */
static NOINLINE VEC NAME(gelu_slope, SUFFIX)(VEC u)
{
    const VEC one = SET(1), v = MIN(GELU_MOST, MAX(GELU_LEAST, u));
    const VEC odds = NAME(gelu_odds, SUFFIX)(v), s = DIV(one, ADD(one, odds));
    const VEC rest = MUL(MIN(odds, SET(SIZE == 8 ? 0x1p1022 : 0x1p126)), s);
    const VEC slope = ADD(SET(GELU_LINEAR), MUL(SET(3 * GELU_CUBIC), MUL(v, v)));
    return MUL(s, SUB(one, MUL(MUL(v, slope), rest)));
}

#undef GELU_LEAST
#undef GELU_MOST
#undef GELU_LINEAR
#undef GELU_CUBIC
