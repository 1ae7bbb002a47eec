/* Noise and elements: the noise ops of fastdrop.h for one element type; included by apply.h. 16-bit
 * elements are float32 between two conversions.
 */
#if SIZE >= 4
/* 64 elements. */
static inline void NAME(noise_strip, SUFFIX)(fd_noise_op op, const fd_noise_operands *o)
{
    const fd_noise_constants c = o->constants;
    const VEC one = SET(1), scale = SET(c.scale), p = SET(c.p), same = SET(c.sigma);
    const VEC logit = SET(c.logit), inverse = SET(c.inverse_temperature);
    const VEC most = SET(SIZE == 8 ? 700 : 87);
    for (size_t j = 0; j < 64; j += WIDTH) {
        const size_t at = j * SIZE;
        const VEC e = FROM_F32(o->noise + j), x = LOAD(o->x + at);
        if (op == FD_NOISE_SCALE || op == FD_NOISE_ADD) {
            const VEC noise = MUL(o->sigma ? LOAD(o->sigma + at) : same, e);
            STORE(o->y + at, op == FD_NOISE_ADD ? ADD(x, noise) : MUL(x, ADD(one, noise)));
        } else if (op == FD_NOISE_GRADIENT)
            STORE(o->y + at, MUL(MUL(x, LOAD(o->g + at)), e));
        else {
            const VEC a = MIN(MAX(MUL(ADD(logit, e), inverse), SUB(SET(0), most)), most);
            const VEC odds = NAME(exponential, SUFFIX)(a), sum = ADD(one, odds);
            const VEC w = DIV(scale, sum);
            if (op == FD_CONCRETE)
                STORE(o->y + at, MUL(x, w));
            else {
                const VEC rest = SUB(p, MUL(DIV(odds, sum), inverse));
                STORE(o->y + at, MUL(MUL(x, LOAD(o->g + at)), MUL(w, rest)));
            }
        }
    }
}
#define NOISE_STRIP NAME(noise_strip, SUFFIX)
#else
#define NOISE_STRIP noise_strip_f32
#endif

/* m <= 64 elements as SCALAR in a buffer. */
static inline void NAME(gather, SUFFIX)(const char *p, size_t m, SCALAR *to)
{
    char padded[64 * SIZE] = {0};
    memcpy(padded, p, m * SIZE);
    for (size_t j = 0; j < 64; j += WIDTH)
        STORE_SCALARS((char *)(to + j), LOAD(padded + j * SIZE));
}

static inline void NAME(apply_noise, SUFFIX)(fd_noise_op op, const fd_noise_operands *operands,
                                             size_t n)
{
    const int gradient = op == FD_NOISE_GRADIENT || op == FD_CONCRETE_GRADIENT;
    const size_t out = gradient ? sizeof(SCALAR) : SIZE;
    fd_noise_operands o = *operands;
    for (size_t m; n; n -= m) {
        m = n < 64 ? n : 64;
        if (m == 64 && SIZE >= 4)
            NOISE_STRIP(op, &o);
        else {
            SCALAR x[64], g[64], sigma[64] = {0}, y[64];
            fd_noise_operands padded = o;
            NAME(gather, SUFFIX)(o.x, m, x);
            padded.x = (char *)x, padded.y = (char *)y;
            if (gradient) {
                NAME(gather, SUFFIX)(o.g, m, g);
                padded.g = (char *)g;
            }
            if (o.sigma) {
                memcpy(sigma, o.sigma, m * sizeof *sigma);
                padded.sigma = (char *)sigma;
            }
            NOISE_STRIP(op, &padded);
            if (gradient || SIZE >= 4)
                memcpy(o.y, y, m * out);
            else {
                char packed[64 * SIZE];
                for (size_t j = 0; j < 64; j += WIDTH)
                    STORE(packed + j * SIZE, LOAD_SCALARS((char *)(y + j)));
                memcpy(o.y, packed, m * SIZE);
            }
        }
        o.x += m * SIZE, o.y += m * out, o.noise += m;
        if (gradient)
            o.g += m * SIZE;
        if (o.sigma)
            o.sigma += m * sizeof(SCALAR);
    }
}

#define OP(name, op)                                                                              \
    static void NAME(name, SUFFIX)(const fd_noise_operands *o, size_t n)                          \
    {                                                                                             \
        NAME(apply_noise, SUFFIX)(op, o, n);                                                      \
    }
OP(noise_scale, FD_NOISE_SCALE)
OP(noise_add, FD_NOISE_ADD)
OP(noise_gradient, FD_NOISE_GRADIENT)
OP(concrete, FD_CONCRETE)
OP(concrete_gradient, FD_CONCRETE_GRADIENT)
#undef OP
#undef NOISE_STRIP
