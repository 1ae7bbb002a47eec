/* Kept elements times scale, dropped ones +0. Included once for each element type, with
 *   SUFFIX  name of the type
 *   ELEM    the type in memory
 *   VEC, WIDTH, LOAD_KEPT, STORE, SET, MUL   a vector in the compute type and what can be done to one
 * LOAD_KEPT(p, b, j): the elements at p where bits j ... j + WIDTH - 1 of the 32 bits in b are set,
 * else +0. So what is dropped is gone before it meets arithmetic, infinite and NaN included.
 */
#define NAME_(a, b) a##_##b
#define NAME(a, b) NAME_(a, b)

static inline void NAME(apply32, SUFFIX)(const char *x, char *y, const uint8_t *bits, VEC scale)
{
    const BITS b = bits_load(bits);
    for (int j = 0; j < 32; j += WIDTH) {
        const size_t at = (size_t)j * sizeof(ELEM);
        STORE(y + at, MUL(LOAD_KEPT(x + at, b, j), scale));
    }
}

static void NAME(apply, SUFFIX)(const char *x, char *y, const uint8_t *bits, size_t n, double scale)
{
    const VEC s = SET(scale);
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        NAME(apply32, SUFFIX)(x + i * sizeof(ELEM), y + i * sizeof(ELEM), bits + i / 8, s);
    if (i < n) { /* the tail takes the same road, in a padded copy */
        char elems[32 * sizeof(ELEM)] = {0};
        uint8_t tail[4] = {0};
        memcpy(elems, x + i * sizeof(ELEM), (n - i) * sizeof(ELEM));
        memcpy(tail, bits + i / 8, (n - i + 7) / 8);
        NAME(apply32, SUFFIX)(elems, elems, tail, s);
        memcpy(y + i * sizeof(ELEM), elems, (n - i) * sizeof(ELEM));
    }
}

#undef SUFFIX
#undef ELEM
#undef VEC
#undef WIDTH
#undef STORE
#undef SET
#undef MUL
#undef LOAD_KEPT
