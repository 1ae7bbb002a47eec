/* From keystream to keep bits: the decision of one element, 64 at a time. */

/* Ties: elements whose byte equals the threshold's. Each is settled by 24 more bits, gathered here
 * and drawn a vector at a time; one Philox call for each would cost more than all the rest. */
static inline void refine(const fd_stream *s, uint64_t start, size_t words, uint64_t *tie,
                          uint8_t *bits)
{
    const uint32_t f = (uint32_t)(s->threshold & 0xffffff);
    uint16_t queue[FD_DRAW_MAX + 1];
    uint64_t index[FD_DRAW_MAX + STEP];
    uint32_t word[FD_DRAW_MAX + STEP];

    /* Queue the words of `tie` that have a bit set, then take one bit from each and queue it again
     * while any is left. No branch depends on the data: about every fifth word has a tie. */
    size_t n = 0;
    for (size_t k = 0; k < words; k++) {
        queue[n] = (uint16_t)k;
        n += tie[k] != 0;
    }
    for (size_t i = 0; i < n; i++) {
        const uint16_t k = queue[i];
        index[i] = start + 64 * (uint64_t)k + (uint64_t)ctz64(tie[k]);
        tie[k] &= tie[k] - 1;
        queue[n] = k;
        n += tie[k] != 0;
    }
    for (size_t i = n; i < n + STEP; i++)
        index[i] = start;
    words_at(s, DOMAIN_REFINEMENT, index, n, word);
    for (size_t i = 0; i < n; i++) {
        const uint64_t at = index[i] - start;
        bits[at >> 3] &= (uint8_t) ~((word[i] >> 8 < f) << (at & 7));
    }
}

static void draw(const fd_stream *s, uint64_t start, size_t n, uint8_t *bits)
{
    const uint64_t t = s->threshold;
    if (t == 0 || t >> 32) {
        memset(bits, t == 0 ? 0xff : 0, (n + 7) / 8);
        return;
    }
    if (t == UINT64_C(1) << 31) {
        keystream(s, DOMAIN_BITS, start / 128, (n + 127) / 128, bits);
        return;
    }
    uint8_t bytes[FD_DRAW_MAX + FD_SLACK];
    uint64_t tie[FD_DRAW_MAX / 64 + 1];
    const size_t words = (n + 63) / 64;
    keystream(s, DOMAIN_BYTES, start / 16, 4 * words, bytes);
    for (size_t k = 0; k < words; k++) {
        uint64_t keep;
        compare64(bytes + 64 * k, (uint8_t)(t >> 24), &keep, &tie[k]);
        store_le64(bits + 8 * k, keep);
    }
    if (t & 0xffffff)
        refine(s, start, words, tie, bits);
}
