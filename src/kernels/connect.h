/* DropConnect: a vector times the weights that are kept. Included as apply.h
 * is, for float32 and float64. Each sum has one order of additions, whatever WIDTH is. */

/* FD_GROUP columns from o on; y are theirs. */
static inline void NAME(columns, SUFFIX)(fd_weights w, const uint8_t *bits, size_t bit, size_t o,
                                         const SCALAR *x, char *y)
{
    VEC sum[FD_GROUP / WIDTH];
    UNROLL for (size_t j = 0; j < FD_GROUP; j += WIDTH)
        sum[j / WIDTH] = LOAD(y + j * SIZE);
    w.at += o * SIZE, bit += o;
    for (size_t r = 0; r < w.rows; r++, w.at += w.padded * SIZE, bit += w.row_bits) {
        const BITS b = bits_load(bits + bit / 8, bit % 8);
        const VEC v = SET(x[r]);
        UNROLL for (size_t j = 0; j < FD_GROUP; j += WIDTH)
            sum[j / WIDTH] = ADD(sum[j / WIDTH], MUL(LOAD_KEPT(w.at + j * SIZE, b, j), v));
    }
    UNROLL for (size_t j = 0; j < FD_GROUP; j += WIDTH)
        STORE(y + j * SIZE, sum[j / WIDTH]);
}

static void NAME(connect, SUFFIX)(const fd_weights *w, const uint8_t *bits, size_t bit,
                                  const void *x, char *y)
{
    const size_t n = w->n;
    size_t o = 0;
    for (; o + FD_GROUP <= n; o += FD_GROUP)
        NAME(columns, SUFFIX)(*w, bits, bit, o, x, y + o * SIZE);
    if (o < n) {
        char last[FD_GROUP * SIZE] = {0};
        memcpy(last, y + o * SIZE, (n - o) * SIZE);
        NAME(columns, SUFFIX)(*w, bits, bit, o, x, last);
        memcpy(y + o * SIZE, last, (n - o) * SIZE);
    }
}

/* A row's dx are FD_GROUP sums, the l-th of each FD_GROUP-th column from l on; then the upper half of them is
 * added to the lower until one is left. */
static void NAME(connect_back, SUFFIX)(const fd_weights *weights, const uint8_t *bits, size_t bit,
                                       const char *g, const void *x, void *dx, char *dw)
{
    const fd_weights w = *weights;
    const char *at = w.at;
    for (size_t r = 0; r < w.rows; r++, bit += w.row_bits) {
        VEC sum[FD_GROUP / WIDTH];
        for (size_t j = 0; j < FD_GROUP / WIDTH; j++)
            sum[j] = SET(0);
        const VEC v = SET(((const SCALAR *)x)[r]);
        for (size_t o = 0; o < w.padded; o += FD_GROUP, at += FD_GROUP * SIZE, dw += FD_GROUP * SIZE) {
            const BITS b = bits_load(bits + (bit + o) / 8, (bit + o) % 8);
            UNROLL for (size_t j = 0; j < FD_GROUP; j += WIDTH) {
                const char *gj = g + (o + j) * SIZE;
                const VEC kept = LOAD_KEPT(gj, b, j);
                sum[j / WIDTH] = ADD(sum[j / WIDTH], MUL(LOAD_KEPT(at + j * SIZE, b, j), LOAD(gj)));
                STORE(dw + j * SIZE, ADD(LOAD(dw + j * SIZE), MUL(kept, v)));
            }
        }
        VEC part[FD_GROUP / WIDTH]; /* a variable index into sum would keep that in memory above */
        for (size_t j = 0; j < FD_GROUP / WIDTH; j++)
            part[j] = sum[j];
        for (size_t half = FD_GROUP / 2; half >= WIDTH; half /= 2)
            for (size_t j = 0; j < half / WIDTH; j++)
                part[j] = ADD(part[j], part[j + half / WIDTH]);
        SCALAR lane[WIDTH];
        STORE((char *)lane, part[0]);
        for (size_t half = WIDTH / 2; half; half /= 2)
            for (size_t l = 0; l < half; l++)
                lane[l] += lane[l + half];
        if (dx)
            ((SCALAR *)dx)[r] += lane[0];
    }
}
