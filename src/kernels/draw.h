/* From keystream to keep bits. */

/* How many ties are settled together, about: a tile has 16 of them, so most tiles settle once. The stack of
 * a caller's thread may be small, so there is no room for all that there could be. */
enum { TIES = 48 };

/* Of n elements, at least one, those whose bits say so are kept. There is room for a vector behind them. */
static inline void settle(const Keys *keys, uint32_t f, uint64_t start, uint64_t *at, size_t n,
                          uint8_t *bits)
{
    for (int l = 0; l < STEP; l++) /* fill the last vector: settling a tie twice does no harm */
        at[n + (size_t)l] = at[n - 1];
    for (size_t i = 0; i < n; i += STEP) {
        uint32_t word[STEP];
        words_at(keys, DOMAIN_REFINEMENT, start, at + i, word);
        for (int l = 0; l < STEP; l++)
            bits[at[i + (size_t)l] >> 3] |= (uint8_t)((word[l] >> 8 >= f) << (at[i + (size_t)l] & 7));
    }
}

/* Ties: elements whose byte equals the threshold's, dropped so far; one bit each in 64-bit words. Each is
 * settled by 24 more bits: kept where those are not below f. They are drawn a vector at a time; one Philox
 * call for each would cost more than all the rest. */
static inline void refine(const Keys *keys, uint32_t f, uint64_t start, const uint8_t *tie,
                          size_t words, uint8_t *bits)
{
    uint16_t queue[FD_DRAW_MAX / 64 + 1];
    uint64_t at[TIES + 64 + STEP];
    size_t queued = 0, n = 0;
    for (size_t k = 0; k < words; k++) {
        queue[queued] = (uint16_t)k; /* stays only if it has a tie: about every fifth, so no branch */
        queued += load_le64(tie + 8 * k) != 0;
    }
    for (size_t i = 0; i < queued; i++) {
        const uint64_t k = queue[i];
        uint64_t word = load_le64(tie + 8 * k);
        at[n++] = 64 * k + (uint64_t)ctz64(word);
        word &= word - 1;
        at[n] = 64 * k + (uint64_t)ctz64(word | UINT64_C(1) << 63);
        n += word != 0; /* a second one is too frequent for a branch, a third is not */
        for (word &= word - 1; word; word &= word - 1)
            at[n++] = 64 * k + (uint64_t)ctz64(word);
        if (n > TIES) {
            settle(keys, f, start, at, n, bits);
            n = 0;
        }
    }
    if (n)
        settle(keys, f, start, at, n, bits);
}

static void draw_bits(const fd_draw *draw, uint64_t start, size_t n, uint8_t *bits, fd_ahead ahead)
{
    const uint64_t t = draw->threshold;
    if (t == 0 || t >> 32) {
        memset(bits, t == 0 ? 0xff : 0, (n + 7) / 8);
        return;
    }
    Keys keys;
    keys_of_draw(&keys, draw);
    if (t == UINT64_C(1) << 31) { /* p = 1/2: one bit per element */
        ahead.step = 0;
        keystream(&keys, DOMAIN_BITS, start / 128, (n + 127) / 128, bits, NULL, 0, ahead);
        return;
    }
    /* Kept surely: a byte above t. With f = 0 a byte equal to t is kept, too, and none is a tie. */
    const uint32_t f = (uint32_t)(t & 0xffffff);
    const uint8_t byte = (uint8_t)((t >> 24) - !f);
    uint8_t equal[FD_BITS_BYTES];
    ahead.step *= 16;
    order_words(&keys);
    /* Whole words of answers, as they are read below. */
    keystream(&keys, DOMAIN_BYTES, start / 16, (n + 63) / 64 * 4, bits, equal, byte, ahead);
    if (f) {
        order_words(&keys);
        refine(&keys, f, start, equal, (n + 63) / 64, bits);
    }
}
