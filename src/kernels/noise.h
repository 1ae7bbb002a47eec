/* Continuous noise: normal and logistic variates, float32, the same bits on any instruction set. The
 * definition, with the polynomials' origin and errors, is fastdrop/reference/noise.py; every step
 * here is one that IEEE 754 rounds, in the same order.
 */
enum { WORD_PARTS = 2 * LANES / F32_WIDTH }; /* vectors of words in a vector of lanes */

static const float LOG[] = {1.0f, -0.4999999f, 0.33333948f, -0.25001782f, 0.19962151f,
                            -0.16570109f, 0.14916925f, -0.1430936f, 0.087394305f};
static const float SIN[] = {1.0f, -0.16666655f, 0.008332189f, -0.00019518292f};
static const float COS[] = {1.0f, -0.5f, 0.041666646f, -0.001388731f, 2.4432327e-05f};
#define LN2 0.6931472f
#define QUARTER_TURN 3.6572953e-10f /* pi / 4 * 2^-31 */

#define POLYNOMIAL(table, x) polynomial(table, (int)(sizeof(table) / sizeof *(table)), x)
ALWAYS_INLINE F32_VEC polynomial(const float *c, int n, F32_VEC x)
{
    F32_VEC v = F32_SET(c[n - 1]);
    for (int k = n - 2; k >= 0; k--)
        v = F32_ADD(F32_MUL(v, x), F32_SET(c[k]));
    return v;
}

/* x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2): e, and ln(1 + f) to *ln. */
ALWAYS_INLINE Words log_parts(F32_VEC x, F32_VEC *ln)
{
    const Words bits = f32_words(x);
    const Words e = words_sar(words_sub(bits, words_set(0x3f3504f3)), 23);
    const F32_VEC f = F32_SUB(words_f32(words_sub(bits, words_shl(e, 23))), F32_SET(1));
    *ln = F32_MUL(f, POLYNOMIAL(LOG, f));
    return e;
}

/* Box and Muller: words of radius and angle to radius times cosine and radius times sine. */
ALWAYS_INLINE void normal_pair(Words *radius, Words *angle)
{
    const F32_VEC u = F32_ADD(words_float(words_shr(*radius, 1)), F32_SET(0.5));
    F32_VEC ln;
    const Words e = log_parts(u, &ln);
    const F32_VEC whole = F32_MUL(words_float(words_sub(words_set(31), e)), F32_SET(LN2 + LN2));
    const F32_VEC r = F32_SQRT(F32_SUB(whole, F32_ADD(ln, ln)));

    const F32_VEC x = F32_MUL(words_float(words_shl(*angle, 2)), F32_SET(QUARTER_TURN));
    const F32_VEC square = F32_MUL(x, x);
    const Words sin = f32_words(F32_MUL(x, POLYNOMIAL(SIN, square)));
    const Words turn = words_and(words_shl(*angle, 1), words_set(UINT32_C(1) << 31));
    const Words cos = words_xor(f32_words(POLYNOMIAL(COS, square)), turn);
    const Words swap = words_and(words_xor(sin, cos), words_sar(*angle, 31));
    *radius = f32_words(F32_MUL(r, words_f32(words_xor(cos, swap))));
    *angle = f32_words(F32_MUL(r, words_f32(words_xor(sin, swap))));
}

/* ln(u / (1 - u)), u = (k + 1/2) / 2^23 with k the upper 23 bits. */
ALWAYS_INLINE Words logistic(Words w)
{
    const Words k = words_shr(w, 9);
    const F32_VEC odd = words_float(words_add(words_add(k, k), words_set(1)));
    F32_VEC ln;
    const Words e = log_parts(F32_DIV(odd, F32_SUB(F32_SET(16777216), odd)), &ln);
    return f32_words(F32_ADD(F32_MUL(words_float(e), F32_SET(LN2)), ln));
}

/* The two halves of vectors of blocks, in place. */
ALWAYS_INLINE void halves_to_noise(uint32_t domain, Lanes *low, Lanes *high)
{
    Words a[WORD_PARTS], b[WORD_PARTS];
    for (int i = 0; i < WORD_PARTS; i++) {
        a[i] = words_of(*low, i), b[i] = words_of(*high, i);
        if (domain == DOMAIN_NORMALS)
            normal_pair(&a[i], &b[i]);
        else
            a[i] = logistic(a[i]), b[i] = logistic(b[i]);
    }
    *low = lanes_of(a), *high = lanes_of(b);
}

static void draw_noise(fd_noise kind, const fd_draw *draw, uint64_t block, size_t n, float *to,
                       fd_ahead ahead)
{
    const size_t blocks = (n + FD_NOISE_BLOCK - 1) / FD_NOISE_BLOCK;
    uint8_t *const dst = (uint8_t *)to;
    Keys keys;
    keys_of_draw(&keys, draw);
    ahead.step *= FD_NOISE_BLOCK;
    if (kind == FD_NORMAL)
        keystream(&keys, DOMAIN_NORMALS, block, blocks, dst, ahead);
    else
        keystream(&keys, DOMAIN_UNIFORMS, block, blocks, dst, ahead);
}
