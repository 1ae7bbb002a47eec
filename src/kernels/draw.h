/* From keystream to keep bits, and what is done beside that. */

/* What is drawn in one turn of a loop: whole words of bits. */
enum {
    TURN = 16 * STEP < 64 ? 64 : 16 * STEP,
    WORDS = TURN / 64,
    CHAIN_WORDS = LANES < 4 ? 1 : LANES / 4, /* of what a chain decides */
    SLOTS = TURN / (16 * STEP) * ROUNDS      /* for what is done beside it */
};

/* BITS from memory, from bit `shift` (0 ... 7) of p on. Without a shift no more is read, as a longer word
 * would have to wait for what has just been stored. */
static inline BITS bits_load(const uint8_t *p, unsigned shift)
{
    return bits_of(shift ? (uint32_t)(load_le64(p) >> shift) : load_le32(p));
}

/* The next TURN elements: kept, unless their byte is below the threshold's, and those where it is equal.
 * The words of keys are ordered. i: the first one's number among those of `from`; begin:
 * from which on something is done beside. */
ALWAYS_INLINE void next_turn(const Keys *keys, Counter *counter, fd_indices from, size_t i, uint8_t byte,
                             uint64_t *kept, uint64_t *tie, beside_fn *beside, const void *to,
                             size_t begin)
{
    enum { BLOCKS = FD_ALIGN / 16 }; /* of a piece */
    const uint64_t *const piece = from.piece ? from.piece + i / FD_ALIGN : NULL;
    for (int w = 0; w < WORDS; w++)
        kept[w] = tie[w] = 0;
    UNROLL
    for (int step = 0; step < TURN / (16 * STEP); step++) {
        Lanes c[CHAINS][4], number[CHAINS];
        for (int j = 0; piece && j < CHAINS; j++) {
            const size_t in_piece = TURN % FD_ALIGN ? i % FD_ALIGN / 16 : 0;
            const size_t block = in_piece + (size_t)((step * CHAINS + j) * LANES);
            number[j] = lanes_add(lanes_set(piece[block / BLOCKS] / 16 + block % BLOCKS), lanes_order());
        }
        next_blocks(keys, counter, piece ? number : NULL, c, beside, to, begin, step * ROUNDS);
        UNROLL
        for (int j = 0; j < CHAINS; j++) {
            uint64_t k[CHAIN_WORDS], e[CHAIN_WORDS];
            const int bit = (step * CHAINS + j) * 16 * LANES;
            halves_compare(c[j][0], c[j][2], byte, k, e);
            for (int w = 0; w < CHAIN_WORDS; w++) {
                kept[bit / 64 + w] |= k[w] << bit % 64;
                tie[bit / 64 + w] |= e[w] << bit % 64;
            }
        }
    }
}

/* Ties: elements whose byte equals the threshold's. They are kept at first, and dropped when 24 more bits
 * say so. Words that have some are queued, without a branch, as about every fifth has; and settled many
 * at a time, as one Philox call for each would cost more than all the rest. */
enum { QUEUE = 64, GROUP = 256 };
typedef struct {
    uint64_t word[QUEUE + 2 * WORDS];
    uint32_t number[QUEUE + 2 * WORDS];
} Ties;

/* Returns how many are queued now. */
ALWAYS_INLINE size_t queue_tie(Ties *ties, size_t queued, size_t number, uint64_t word)
{
    ties->word[queued] = word; /* stays only if it has a tie */
    ties->number[queued] = (uint32_t)number;
    return queued + (word != 0);
}

/* Ties that are dropped. Looks at the queue from *next on until there is work for many vectors; returns
 * how many elements it has put into `dropped`. */
static NOINLINE size_t settle(const fd_draw *draw, fd_indices from, const Ties *ties, size_t queued,
                              size_t *next, uint32_t dropped[GROUP])
{
    uint64_t at[GROUP + STEP], index[GROUP + STEP];
    size_t n = 0, m = 0;
    for (; *next < queued && n <= GROUP - 64; ++*next) {
        uint64_t word = ties->word[*next];
        const uint64_t first = UINT64_C(64) * ties->number[*next];
        at[n++] = first + (uint64_t)ctz64(word);
        word &= word - 1;
        at[n] = first + (uint64_t)ctz64(word | UINT64_C(1) << 63);
        n += word != 0; /* a second one is too frequent for a branch, a third is not */
        for (word &= word - 1; word; word &= word - 1)
            at[n++] = first + (uint64_t)ctz64(word);
    }
    for (int l = 0; l < STEP; l++) /* fills the last vector */
        at[n + (size_t)l] = 0;
    for (size_t k = 0; k < n + STEP; k++)
        index[k] = from.piece ? from.piece[at[k] / FD_ALIGN] + at[k] % FD_ALIGN : from.start + at[k];
    const uint32_t fraction = (uint32_t)(draw->threshold & 0xffffff);
    Keys keys;
    keys_of_draw(&keys, draw);
    for (size_t i = 0; i < n; i += STEP) {
        const uint32_t below = below_at(&keys, DOMAIN_REFINEMENT, index + i, fraction);
        for (size_t l = 0; l < STEP && i + l < n; l++) {
            dropped[m] = (uint32_t)at[i + l]; /* stays only if it is dropped: no branch */
            m += below >> l & 1;
        }
    }
    return m;
}

static inline void drop_bits(uint8_t *bits, const uint32_t *dropped, size_t n)
{
    for (size_t k = 0; k < n; k++)
        bits[dropped[k] / 8] &= (uint8_t)~(1 << dropped[k] % 8);
}

/* n <= TURN elements from the i-th on, outside the loop. Returns how many words are queued now. */
static NOINLINE size_t single_turn(const fd_draw *draw, fd_indices from, size_t i, size_t n,
                                   uint8_t *bits, Ties *ties, size_t queued)
{
    Keys keys;
    Counter counter = counter_at(DOMAIN_BYTES, (from.start + i) / 16);
    uint64_t kept[WORDS], tie[WORDS];
    keys_of_draw(&keys, draw);
    order_words(&keys);
    next_turn(&keys, &counter, from, i, (uint8_t)(draw->threshold >> 24), kept, tie,
              nothing, NULL, 0);
    for (size_t w = 0; 64 * w < n; w++) {
        const uint64_t all = n - 64 * w < 64 ? (UINT64_C(1) << n % 64) - 1 : UINT64_MAX;
        store_le64(bits + i / 8 + 8 * w, kept[w] & all);
        queued = queue_tie(ties, queued, i / 64 + w, tie[w] & all);
    }
    return queued;
}

/* Of n elements from the i-th on, those for which one counter is right. */
static inline size_t counted(fd_indices from, size_t i, size_t n)
{
    const uint64_t left = 16 * blocks_left((from.start + i) / 16);
    return n < left ? n : (size_t)left;
}

/* What is done when the elements before `end`, of which `begin` is the first that was not done beside,
 * are drawn; and with elements that were kept at first, and are dropped. */
typedef void rest_fn(const void *to, size_t begin, size_t end);
typedef void drop_fn(const void *to, const uint32_t *at, size_t n);

/* The loop that decides n elements, where the rate is neither 0, 1/2 nor 1. bits: n of them, and FD_BITS_PAD bytes more. Beside a turn from i on something
 * is done from i on; or `behind`, from the turn before that on, whose bits are there by then, and what is
 * left in the end is for `rest`. */
ALWAYS_INLINE void decide(const fd_draw *draw, fd_indices from, size_t n, uint8_t *bits, int behind,
                          beside_fn *beside, rest_fn *rest, drop_fn *drop, const void *to)
{
    const uint8_t byte = (uint8_t)(draw->threshold >> 24);
    const int no_ties = !(draw->threshold & 0xffffff);
    Keys keys;
    Ties ties;
    keys_of_draw(&keys, draw);
    order_words(&keys);
    for (size_t i = 0; i < n;) {
        const size_t end = i + counted(from, i, n - i);
        size_t queued = 0, begin = i;
        if (behind) {
            const size_t m = end - i < TURN ? end - i : TURN;
            queued = single_turn(draw, from, i, m, bits, &ties, queued);
            i += m;
        }
        Counter counter = counter_at(DOMAIN_BYTES, (from.start + i) / 16);
        for (; end - i >= TURN && queued < QUEUE; i += TURN) {
            uint64_t kept[WORDS], tie[WORDS];
            next_turn(&keys, &counter, from, i, byte, kept, tie, beside, to, behind ? i - TURN : i);
            begin = i;
            UNROLL
            for (size_t w = 0; w < WORDS; w++) {
                store_le64(bits + i / 8 + 8 * w, kept[w]);
                queued = queue_tie(&ties, queued, i / 64 + w, tie[w]);
            }
        }
        if (i < end && end - i < TURN) {
            queued = single_turn(draw, from, i, end - i, bits, &ties, queued);
            i = end;
        }
        rest(to, begin, i);
        for (size_t next = 0; !no_ties && next < queued;) {
            uint32_t dropped[GROUP];
            const size_t m = settle(draw, from, &ties, queued, &next, dropped);
            drop_bits(bits, dropped, m);
            drop(to, dropped, m);
        }
    }
}

ALWAYS_INLINE void no_rest(const void *to, size_t begin, size_t end) { (void)to, (void)begin, (void)end; }
ALWAYS_INLINE void no_drop(const void *to, const uint32_t *at, size_t n) { (void)to, (void)at, (void)n; }

/* p = 1/2: one bit per element, so a piece is a block. */
static void draw_halves(const fd_draw *draw, fd_indices from, size_t n, uint8_t *bits)
{
    const fd_ahead none = {(char *)bits, 0};
    uint8_t last[16 * STEP];
    Keys keys;
    keys_of_draw(&keys, draw);
    if (from.piece) {
        Counter counter = counter_at(DOMAIN_BITS, 0);
        uint64_t order[LANES];
        lanes_store(order, lanes_order());
        for (size_t i = 0, blocks = (n + 127) / 128; i < blocks; i += STEP) {
            Lanes c[CHAINS][4], number[CHAINS];
            for (size_t j = 0; j < CHAINS; j++) {
                uint64_t block[LANES];
                for (size_t l = 0; l < LANES; l++) {
                    const size_t k = i + j * LANES + order[l];
                    block[l] = k < blocks ? from.piece[k] / FD_ALIGN : 0;
                }
                number[j] = lanes_load(block);
            }
            next_blocks(&keys, &counter, number, c, nothing, NULL, 0, 0);
            for (int j = 0; j < CHAINS; j++)
                halves_store(c[j][0], c[j][2], last + 16 * j * LANES);
            const size_t left = (n + 7) / 8 - 16 * i;
            memcpy(bits + 16 * i, last, left < sizeof last ? left : sizeof last);
        }
        return;
    }
    for (size_t m; n; n -= m, from.start += m, bits += m / 8) {
        const uint64_t block = from.start / 128, left = blocks_left(block);
        m = n / 128 < left ? n : 128 * (size_t)left;
        const size_t whole = m / 128 / STEP * STEP; /* a last step would go beyond the end */
        keystream(&keys, DOMAIN_BITS, block, whole, bits, none);
        if (m > 128 * whole) {
            keystream(&keys, DOMAIN_BITS, block + whole, (m + 127) / 128 - whole, last, none);
            memcpy(bits + 16 * whole, last, (m + 7) / 8 - 16 * whole);
        }
    }
}

/* Whether elements are applied beside the drawing. Without vectors nothing is gained by it. */
#ifndef ONE_LOOP
#define ONE_LOOP 1
#endif

/* Whether `decide` is for such a rate. */
static inline int by_bytes(const fd_draw *draw)
{
    const uint64_t t = draw->threshold;
    return t && t != UINT64_C(1) << 31 && !(t >> 32);
}

static void draw_bits(const fd_draw *draw, fd_indices from, size_t n, uint8_t *bits)
{
    if (by_bytes(draw)) {
        decide(draw, from, n, bits, 0, nothing, no_rest, no_drop, NULL);
        return;
    }
    if (draw->threshold == UINT64_C(1) << 31)
        draw_halves(draw, from, n, bits);
    else
        memset(bits, draw->threshold ? 0 : 0xff, (n + 7) / 8);
    if (n % 8) /* nothing beyond the last element */
        bits[n / 8] &= (uint8_t)((1 << n % 8) - 1);
}
