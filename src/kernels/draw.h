/* From keystream to keep bits. */

/* Ties: elements whose byte equals the threshold's, dropped so far; one bit each in 64-bit words. Each is
 * settled by 24 more bits: kept where those are not below f. They are drawn a vector at a time; one Philox
 * call for each would cost more than all the rest. piece: indices of the first element of every
 * FD_ALIGN of them; NULL: they follow each other from `start` on. */
ALWAYS_INLINE void refine(const Keys *keys, uint32_t f, uint64_t start, const uint64_t *piece,
                          const uint8_t *tie, size_t words, uint8_t *bits)
{
    uint16_t queue[FD_DRAW_MAX / 64 + 1];
    uint64_t at[FD_DRAW_MAX + STEP];
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
    }
    if (!n)
        return;
    for (int l = 0; l < STEP; l++) /* fill the last vector: settling a tie twice does no harm */
        at[n + (size_t)l] = at[n - 1];
    for (size_t i = 0; i < n; i += STEP) {
        uint32_t word[STEP];
        uint64_t index[STEP];
        for (size_t l = 0; l < STEP; l++)
            index[l] = piece ? piece[at[i + l] / FD_ALIGN] + at[i + l] % FD_ALIGN : start + at[i + l];
        words_at(keys, DOMAIN_REFINEMENT, index, word);
        for (int l = 0; l < STEP; l++)
            bits[at[i + (size_t)l] >> 3] |= (uint8_t)((word[l] >> 8 >= f) << (at[i + (size_t)l] & 7));
    }
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
        refine(&keys, f, start, NULL, equal, (n + 63) / 64, bits);
    }
}

/* The numbers of the blocks that n pieces are of, `each` a piece, in the order of lanes_order and up to a
 * whole step; returns how many. */
ALWAYS_INLINE size_t blocks_of(const uint64_t *start, size_t n, size_t each, uint64_t *block)
{
    const size_t all = (n * each + STEP - 1) / STEP * STEP;
    uint64_t order[LANES];
    lanes_store(order, lanes_order());
    for (size_t i = 0; i < all; i += LANES)
        for (size_t l = 0; l < LANES; l++) {
            const size_t b = i + (size_t)order[l] < n * each ? i + (size_t)order[l] : 0;
            block[i + l] = start[b / each] / (FD_ALIGN / each) + b % each;
        }
    return all;
}

static void draw_pieces(const fd_draw *draw, const uint64_t *start, size_t n, uint8_t *bits)
{
    enum { BLOCKS = FD_ALIGN / 16 }; /* a piece has as many; of single bits one */
    const uint64_t t = draw->threshold;
    if (t == 0 || t >> 32) {
        memset(bits, t == 0 ? 0xff : 0, n * (FD_ALIGN / 8));
        return;
    }
    Keys keys;
    keys_of_draw(&keys, draw);
    uint64_t block[FD_PIECES * BLOCKS + STEP];
    if (t == UINT64_C(1) << 31) {
        keystream_at(&keys, DOMAIN_BITS, block, blocks_of(start, n, 1, block), bits, NULL, 0);
        return;
    }
    const uint32_t f = (uint32_t)(t & 0xffffff);
    uint8_t equal[FD_BITS_BYTES];
    order_words(&keys);
    keystream_at(&keys, DOMAIN_BYTES, block, blocks_of(start, n, BLOCKS, block), bits, equal,
                 (uint8_t)((t >> 24) - !f));
    if (f) {
        order_words(&keys);
        refine(&keys, f, 0, start, equal, n * (FD_ALIGN / 64), bits);
    }
}
