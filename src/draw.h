/* From keystream to keep bits. */

/* Ties: elements whose byte equals the threshold's, dropped so far. Each is settled by 24 more bits,
 * drawn a vector at a time; one Philox call for each would cost more than all the rest. `queue`
 * holds the n words of `tie` that have a bit set. */
static inline void refine(const fd_stream *s, const Lanes *keys, uint64_t start, uint16_t *queue,
                          size_t n, uint64_t *tie, uint8_t *bits)
{
    const uint32_t f = (uint32_t)(s->threshold & 0xffffff);
    uint64_t at[FD_DRAW_MAX + STEP];
    if (!n)
        return;
    /* Take one bit from each word, and queue the word again while any is left. */
    for (size_t i = 0; i < n; i++) {
        const uint16_t k = queue[i];
        at[i] = 64 * (uint64_t)k + (uint64_t)ctz64(tie[k]);
        tie[k] &= tie[k] - 1;
        queue[n] = k;
        n += tie[k] != 0;
    }
    for (int l = 0; l < STEP; l++) /* fill the last vector: settling a tie twice does no harm */
        at[n + (size_t)l] = at[n - 1];
    for (size_t i = 0; i < n; i += STEP) {
        uint32_t word[STEP];
        words_at(s, keys, DOMAIN_REFINEMENT, start, at + i, word);
        for (int l = 0; l < STEP; l++) {
            const uint32_t w = word[l] ^ (uint32_t)COMPARE_FLIP;
            bits[at[i + (size_t)l] >> 3] |= (uint8_t)((w >> 8 >= f) << (at[i + (size_t)l] & 7));
        }
    }
}

static void draw(const fd_stream *s, uint64_t start, size_t n, uint8_t *bits, const char *ahead,
                 size_t itemsize)
{
    const uint64_t t = s->threshold;
    if (t == 0 || t >> 32) {
        memset(bits, t == 0 ? 0xff : 0, (n + 7) / 8);
        return;
    }
    Lanes keys[2 * ROUNDS];
    philox_keys((uint32_t)s->seed, (uint32_t)(s->seed >> 32), ROUNDS, keys);
    if (t == UINT64_C(1) << 31) { /* p = 1/2: one bit an element */
        keystream(s, keys, DOMAIN_BITS, start / 128, (n + 127) / 128, bits, NULL, 0, ahead, 0);
        return;
    }
    /* Kept surely: a byte above t. With f = 0 a byte equal to t is kept, too, and none is a tie. */
    const uint32_t f = (uint32_t)(t & 0xffffff);
    const uint8_t byte = (uint8_t)((t >> 24) - !f);
    uint8_t equal[FD_BITS_BYTES];
    for (int i = 2 * ROUNDS - 2; i < 2 * ROUNDS; i++)
        keys[i] = lanes_xor(keys[i], lanes_set(COMPARE_FLIP));
    /* Whole words of answers, as they are read below. */
    keystream(s, keys, DOMAIN_BYTES, start / 16, (n + 63) / 64 * 4, bits, equal, byte, ahead,
              16 * itemsize);
    if (!f)
        return;
    uint64_t tie[FD_DRAW_MAX / 64 + 1];
    uint16_t queue[FD_DRAW_MAX + 1];
    size_t queued = 0;
    for (size_t k = 0; k < (n + 63) / 64; k++) {
        tie[k] = load_le64(equal + 8 * k);
        queue[queued] = (uint16_t)k; /* stays only if it has a tie: about every fifth, so no branch */
        queued += tie[k] != 0;
    }
    refine(s, keys, start, queue, queued, tie, bits);
}
