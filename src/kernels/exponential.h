/* e^x: 2^n times Taylor's series for what is left. ln 2 is a sum, whose first part times n is exact.
 *
 * Of several vectors step by step, as one has to wait for each of its steps. */
ALWAYS_INLINE void NAME(exponentials, SUFFIX)(VEC *x, int vectors)
{
    static const double inverse_factorial[] = {
        1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
        1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    const int terms = SIZE == 8 ? 14 : 8;
    const VEC magic = SET(SIZE == 8 ? 0x1.8p52 : 0x1.8p23);
    const VEC high = SET(SIZE == 8 ? 0.69314718036912381649 : 0.693145751953125);
    const VEC low = SET(SIZE == 8 ? 1.90821492927058770002e-10 : 1.4286068202862268e-06);
    VEC power[4], v[4];
    UNROLL
    for (int i = 0; i < vectors; i++) {
        const VEC shifted = ADD(MUL(x[i], SET(1.4426950408889634)), magic); /* the sum rounds it */
        const VEC n = SUB(shifted, magic);
        x[i] = SUB(SUB(x[i], MUL(n, high)), MUL(n, low));
        power[i] = POWER(shifted);
        v[i] = SET(inverse_factorial[terms - 1]);
    }
    UNROLL
    for (int k = terms - 2; k >= 0; k--)
        UNROLL
        for (int i = 0; i < vectors; i++)
            v[i] = ADD(MUL(v[i], x[i]), SET(inverse_factorial[k]));
    UNROLL
    for (int i = 0; i < vectors; i++)
        x[i] = MUL(v[i], power[i]);
}

static inline VEC NAME(exponential, SUFFIX)(VEC x)
{
    NAME(exponentials, SUFFIX)(&x, 1);
    return x;
}
