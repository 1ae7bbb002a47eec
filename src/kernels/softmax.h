/* Softmax and dropout of a row; included by apply.h. fastdrop/reference/softmax.py has the same.
 *
 * A row is read part by part into z, which has the compute type and stays in the L1 cache. If it has no
 * more than one part, it is read once. */
#ifndef SOFTMAX_PART
#define SOFTMAX_PART 1024
#define SOFTMAX_SUMS 32 /* sums of a row, as many as one load of bits has elements */
enum { SUM_VECTORS = SOFTMAX_SUMS / F64_WIDTH };

/* All of them: the upper half to the lower one, until one is left. */
static inline double softmax_total(const double *sums)
{
    F64_VEC v[SUM_VECTORS];
    double lanes[F64_WIDTH];
    UNROLL
    for (int k = 0; k < SUM_VECTORS; k++)
        v[k] = F64_LOAD((const char *)(sums + k * F64_WIDTH));
    UNROLL
    for (int half = SUM_VECTORS / 2; half; half /= 2)
        UNROLL
        for (int k = 0; k < half; k++)
            v[k] = F64_ADD(v[k], v[k + half]);
    F64_STORE((char *)lanes, v[0]);
    for (int half = F64_WIDTH / 2; half; half /= 2)
        for (int k = 0; k < half; k++)
            lanes[k] += lanes[k + half];
    return lanes[0];
}

/* The library's copy: in line, few bytes cost as much as a hundred elements. */
static NOINLINE void copy_few(char *to, const char *from, size_t bytes) { memcpy(to, from, bytes); }

/* Elements of a row that the kernel looks at: those that take part, and up to a multiple of 32, as those cost less
 * than an end of a row does. */
static inline size_t live_groups(const fd_softmax *s, uint64_t row)
{
    const size_t n = s->live ? ((size_t)s->live[row] + 31) / 32 * 32 : s->length;
    return n < s->length ? n : s->length;
}

/* Which of 32 elements take part, the i-th of the row and those behind it. */
static inline uint32_t taking_part(const fd_softmax *s, uint64_t row, size_t i)
{
    const size_t n = s->live ? (size_t)s->live[row] : s->length;
    uint32_t part = ~UINT32_C(0);
    if (n < i + 32)
        part = n > i ? (UINT32_C(1) << (n - i)) - 1 : 0;
    return s->mask ? part & load_le32(s->mask + (uint64_t)s->mask_row[row] * s->mask_bytes + i / 8) : part;
}

static inline void softmax_no_sums(double *sums)
{
    UNROLL
    for (int k = 0; k < SUM_VECTORS; k++)
        F64_STORE((char *)(sums + k * F64_WIDTH), F64_SET(0));
}
#endif
/* Of narrow vectors that would be much code. */
#if WIDTH >= 8
#define UNROLL_WIDE UNROLL
#else
#define UNROLL_WIDE
#endif
#if SIZE == 8
#define SOFTMAX_LEAST (-709.08984375) /* e to this and less is 0, as 2^-1023 is */
#define SOFTMAX_LOWEST (-DBL_MAX)
#define SOFTMAX_ADD add_rows_f64
#else
#define SOFTMAX_LEAST (-88.03125) /* 2^-127 */
#define SOFTMAX_LOWEST (-FLT_MAX)
#define SOFTMAX_ADD add_rows_f32
#endif

/* 32 elements at p, of which there are `left`; those behind them are 0. */
static inline const char *NAME(group, SUFFIX)(const char *p, size_t left, char *padded)
{
    if (left >= 32)
        return p;
    for (int k = 0; k < 32; k += WIDTH)
        STORE(padded + k * SIZE, SET(0));
    copy_few(padded, p, left * SIZE);
    return padded;
}

/* z = x * factor of elements i ... i + m - 1 of a row, -inf where they do not take part, and behind them up to
 * a multiple of 32; the largest of each lane. */
static inline VEC NAME(softmax_read, SUFFIX)(const fd_softmax *s, uint64_t row, size_t i, size_t m,
                                             SCALAR *z, VEC largest)
{
    const VEC factor = SET(s->factor), nothing = SET(-(double)INFINITY);
    const char *x = s->x + (row * s->length + i) * SIZE;
    char padded[32 * SIZE];
    for (size_t j = 0; j < m; j += 32) {
        const char *from = NAME(group, SUFFIX)(x + j * SIZE, m - j, padded);
        const BITS b = bits_of(taking_part(s, row, i + j));
        UNROLL_WIDE
        for (int k = 0; k < 32; k += WIDTH) {
            const VEC v = CHOOSE(MUL(LOAD(from + k * SIZE), factor), nothing, b, k);
            STORE_SCALARS((char *)(z + j + k), v);
            largest = MAX(v, largest);
        }
    }
    return largest;
}

/* z becomes e^(z - largest). */
static inline void NAME(softmax_exponentials, SUFFIX)(SCALAR *z, size_t m, SCALAR largest)
{
    enum { VECTORS = WIDTH == 1 || WIDTH > 8 ? 1 : WIDTH > 4 ? 2 : 4 };
    const VEC most = SET(largest), least = SET(SOFTMAX_LEAST);
    size_t j = 0;
    for (; j < m; j += VECTORS * WIDTH) {
        char *const at = (char *)(z + j);
        VEC v[VECTORS];
        UNROLL
        for (int k = 0; k < VECTORS; k++)
            v[k] = MAX(least, SUB(LOAD_SCALARS(at + k * WIDTH * sizeof *z), most));
        NAME(exponentials, SUFFIX)(v, VECTORS);
        UNROLL
        for (int k = 0; k < VECTORS; k++)
            STORE_SCALARS(at + k * WIDTH * sizeof *z, v[k]);
    }
    for (; j % 32; j += WIDTH)
        STORE_SCALARS((char *)(z + j), SET(0));
}

/* weights = z * inverse, and y, from element i of a row on. */
static inline void NAME(softmax_write, SUFFIX)(const fd_softmax *s, uint64_t row, size_t i, size_t m,
                                               const SCALAR *z, SCALAR inverse)
{
    const uint64_t first = row * s->length + i;
    const VEC scale = SET(s->scale), one_over = SET(inverse), zero = SET(0);
    char w_end[32 * SIZE], y_end[32 * SIZE];
    for (size_t j = 0; j < m; j += 32) {
        const int end = m - j < 32;
        char *const w_to = s->weights + (first + j) * SIZE, *const y_to = s->y + (first + j) * SIZE;
        char *const w = end ? w_end : w_to, *const y = end ? y_end : y_to;
        const BITS kept = s->bits ? bits_load(s->bits + (first + j) / 8, (first + j) % 8) : bits_of(~UINT32_C(0));
        const BITS part = bits_of(taking_part(s, row, i + j));
        UNROLL_WIDE
        for (int k = 0; k < 32; k += WIDTH) {
            /* What takes no part is 0 beside a NaN, too. */
            const VEC v = CHOOSE(MUL(LOAD_SCALARS((const char *)(z + j + k)), one_over), zero, part, k);
            STORE(w + k * SIZE, v);
            STORE(y + k * SIZE, CHOOSE(MUL(v, scale), zero, kept, k));
        }
        if (end) {
            copy_few(w_to, w, (m - j) * SIZE);
            copy_few(y_to, y, (m - j) * SIZE);
        }
    }
}

static void NAME(softmax, SUFFIX)(const fd_softmax *s, uint64_t row)
{
    SCALAR z[SOFTMAX_PART], lanes[WIDTH], most = (SCALAR)SOFTMAX_LOWEST;
    double sums[SOFTMAX_SUMS];
    const size_t n = live_groups(s, row);
    const int again = n > SOFTMAX_PART;
    softmax_no_sums(sums);
    VEC largest = SET(SOFTMAX_LOWEST);
    for (size_t i = 0; i < n; i += SOFTMAX_PART)
        largest = NAME(softmax_read, SUFFIX)(s, row, i, n - i < SOFTMAX_PART ? n - i : SOFTMAX_PART, z, largest);
    STORE_SCALARS((char *)lanes, largest);
    for (int k = 0; k < WIDTH; k++)
        most = lanes[k] > most ? lanes[k] : most;
    for (int write = 0; write < 2; write++) {
        const double sum = write ? softmax_total(sums) : 0;
        const SCALAR inverse = (SCALAR)(sum == 0 ? 0 : 1 / sum); /* where nothing takes part, all is 0 */
        for (size_t i = 0, m; i < n; i += m) {
            m = n - i < SOFTMAX_PART ? n - i : SOFTMAX_PART;
            if (again)
                NAME(softmax_read, SUFFIX)(s, row, i, m, z, largest);
            if (again || !write)
                NAME(softmax_exponentials, SUFFIX)(z, m, most);
            if (write)
                NAME(softmax_write, SUFFIX)(s, row, i, m, z, inverse);
            else
                SOFTMAX_ADD((const char *)z, (m + 31) / 32, 32, sums, 32);
        }
    }
    const uint64_t dead = row * s->length + n;
    memset(s->weights + dead * SIZE, 0, (s->length - n) * SIZE);
    memset(s->y + dead * SIZE, 0, (s->length - n) * SIZE);
}

/* x is dy, and y is dx = factor * w * (g - sum of g * w), with g = kept(dy) * scale. */
static void NAME(softmax_back, SUFFIX)(const fd_softmax *s, uint64_t row)
{
    SCALAR z[SOFTMAX_PART];
    double sums[SOFTMAX_SUMS];
    const size_t n = s->length;
    const VEC scale = SET(s->scale), factor = SET(s->factor);
    VEC mean = SET(0);
    softmax_no_sums(sums);
    for (int write = 0; write < 2; write++) {
        if (write)
            mean = SET(softmax_total(sums));
        for (size_t i = 0; i < n; i += 32) {
            const uint64_t first = row * n + i;
            char g_end[32 * SIZE], w_end[32 * SIZE], y_end[32 * SIZE];
            const char *g_at = NAME(group, SUFFIX)(s->x + first * SIZE, n - i, g_end);
            const char *w_at = NAME(group, SUFFIX)(s->weights + first * SIZE, n - i, w_end);
            char *const y_to = s->y + first * SIZE, *const y = n - i < 32 ? y_end : y_to;
            const BITS b = s->bits ? bits_load(s->bits + first / 8, first % 8) : bits_of(~UINT32_C(0));
            SCALAR *const terms = z + i % SOFTMAX_PART;
            UNROLL_WIDE
            for (int k = 0; k < 32; k += WIDTH) {
                const VEC g = MUL(LOAD_KEPT(g_at + k * SIZE, b, k), scale), w = LOAD(w_at + k * SIZE);
                if (write)
                    STORE(y + k * SIZE, MUL(MUL(w, factor), SUB(g, mean)));
                else
                    STORE_SCALARS((char *)(terms + k), MUL(g, w));
            }
            if (write && n - i < 32)
                copy_few(y_to, y, (n - i) * SIZE);
            if (!write && (i % SOFTMAX_PART == SOFTMAX_PART - 32 || n - i <= 32))
                SOFTMAX_ADD((const char *)z, i % SOFTMAX_PART / 32 + 1, 32, sums, 32);
        }
    }
}

#undef UNROLL_WIDE
#undef SOFTMAX_LEAST
#undef SOFTMAX_LOWEST
#undef SOFTMAX_ADD
