/* e^x: 2^n times Taylor's series for what is left. ln 2 is a sum, whose first part times n is exact. */
static inline VEC NAME(exponential, SUFFIX)(VEC x)
{
    static const double inverse_factorial[] = {
        1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
        1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800};
    const int terms = SIZE == 8 ? 14 : 8;
    const VEC magic = SET(SIZE == 8 ? 0x1.8p52 : 0x1.8p23);
    const VEC high = SET(SIZE == 8 ? 0.69314718036912381649 : 0.693145751953125);
    const VEC low = SET(SIZE == 8 ? 1.90821492927058770002e-10 : 1.4286068202862268e-06);
    const VEC shifted = ADD(MUL(x, SET(1.4426950408889634)), magic); /* the sum rounds it */
    const VEC n = SUB(shifted, magic);
    const VEC r = SUB(SUB(x, MUL(n, high)), MUL(n, low));
    VEC v = SET(inverse_factorial[terms - 1]);
    for (int k = terms - 2; k >= 0; k--)
        v = ADD(MUL(v, r), SET(inverse_factorial[k]));
    return MUL(v, POWER(shifted));
}
