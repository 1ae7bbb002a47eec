/* Kept elements times scale, dropped ones +0. Included once for each element type, with
 *   SUFFIX  name of the type
 *   ELEM    the type in memory
 *   VEC, WIDTH, LOAD_KEPT, STORE, SET, MUL   a vector in the compute type and what can be done to one
 * LOAD_KEPT(p, b, j): the elements at p where bits j ... j + WIDTH - 1 of the 32 bits in b are set,
 * else +0. So what is dropped is gone before it meets arithmetic, infinite and NaN included.
 */
#define NAME_(a, b) a##_##b
#define NAME(a, b) NAME_(a, b)

static inline void NAME(apply64, SUFFIX)(const char *x, char *y, const uint8_t *bits,
                                         unsigned shift, VEC scale)
{
    for (int half = 0; half < 2; half++) {
        const BITS b = bits_load(bits + 4 * half, shift);
        for (int j = 0; j < 32; j += WIDTH) {
            const size_t at = (size_t)(32 * half + j) * sizeof(ELEM);
            STORE(y + at, MUL(LOAD_KEPT(x + at, b, j), scale));
        }
    }
}

/* At most 64 elements, by the same road in a padded copy. */
static void NAME(apply_part, SUFFIX)(const char *x, char *y, const uint8_t *bits, size_t bit,
                                     size_t n, VEC scale)
{
    char elems[64 * sizeof(ELEM)] = {0};
    uint8_t copy[16] = {0};
    memcpy(elems, x, n * sizeof(ELEM));
    memcpy(copy, bits + bit / 8, (bit % 8 + n + 7) / 8);
    NAME(apply64, SUFFIX)(elems, elems, copy, bit % 8, scale);
    memcpy(y, elems, n * sizeof(ELEM));
}

static void NAME(apply, SUFFIX)(const char *x, char *y, const uint8_t *bits, size_t bit, size_t n,
                                double scale)
{
    const VEC s = SET(scale);
    /* Begin with what is before y's first cache line: a store across two lines costs two. */
    size_t i = n < 256 ? 0 : lines_off(y) / sizeof(ELEM);
    if (i)
        NAME(apply_part, SUFFIX)(x, y, bits, bit, i, s);
    const unsigned shift = (bit + i) % 8;
    if (shift)
        for (; i + 64 <= n; i += 64)
            NAME(apply64, SUFFIX)(x + i * sizeof(ELEM), y + i * sizeof(ELEM), bits + (bit + i) / 8,
                                  shift, s);
    else
        for (; i + 64 <= n; i += 64)
            NAME(apply64, SUFFIX)(x + i * sizeof(ELEM), y + i * sizeof(ELEM), bits + (bit + i) / 8,
                                  0, s);
    if (i < n)
        NAME(apply_part, SUFFIX)(x + i * sizeof(ELEM), y + i * sizeof(ELEM), bits, bit + i, n - i, s);
}

#undef SUFFIX
#undef ELEM
#undef VEC
#undef WIDTH
#undef STORE
#undef SET
#undef MUL
#undef LOAD_KEPT
