/* Philox4x32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3; SC 2011),
 * one block in each 64-bit lane. A lane holds one 32-bit word in its low half; what is in the high
 * half does not matter, because the multiplication reads low halves only. So a round needs no
 * shuffle between lanes.
 */
enum { ROUNDS = 7, MAX_ROUNDS = 10 };

/* One block has little that can overlap; two chains side by side hide its latency. */
#ifndef CHAINS
#define CHAINS 2
#endif
enum { STEP = CHAINS * LANES };
_Static_assert(16 * STEP <= FD_STEP_BYTES, "paddings.h");

#define MULTIPLIER0 UINT64_C(0xD2511F53)
#define MULTIPLIER1 UINT64_C(0xCD9E8D57)

enum {
    DOMAIN_BYTES = 0,
    DOMAIN_REFINEMENT = 1,
    DOMAIN_BITS = 2,
    DOMAIN_NORMALS = FD_NORMAL,
    DOMAIN_UNIFORMS = FD_LOGISTIC
};
ALWAYS_INLINE void halves_to_noise(uint32_t domain, Lanes *low, Lanes *high);

/* What all blocks of one call share: the last two counter words, and two keys per round. */
typedef struct {
    Lanes call[2], round[2 * MAX_ROUNDS];
} Keys;

ALWAYS_INLINE void keys_of(Keys *keys, uint32_t k0, uint32_t k1, int rounds)
{
    for (int r = 0; r < rounds; r++) {
        keys->round[2 * r] = lanes_set(k0 + (uint32_t)r * 0x9E3779B9u);
        keys->round[2 * r + 1] = lanes_set(k1 + (uint32_t)r * 0xBB67AE85u);
    }
}

ALWAYS_INLINE void keys_of_draw(Keys *keys, const fd_draw *draw)
{
    keys_of(keys, (uint32_t)draw->seed, (uint32_t)(draw->seed >> 32), ROUNDS);
    keys->call[0] = lanes_set((uint32_t)draw->call), keys->call[1] = lanes_set(draw->call >> 32);
}

/* Work that is done beside a drawing, from index i on, a slot at a time: the rounds of Philox wait for
 * each other, and no CPU looks far enough ahead to fill that with what comes behind them. */
typedef void beside_fn(const void *to, size_t i, int slot);
ALWAYS_INLINE void nothing(const void *to, size_t i, int slot) { (void)to, (void)i, (void)slot; }

/* CHAINS vectors of blocks, a round of all of them at a time, and a slot behind each. c: in, the first counter word times
 * MULTIPLIER0 (along a keystream that is a sum, so the running counter needs no multiplication) and
 * the three other words; out, the two 64-bit halves of the block in c[0] and c[2]. What is the same
 * in every turn of the caller's loop costs nothing there: the compiler hoists it. */
ALWAYS_INLINE void philox(Lanes c[CHAINS][4], const Keys *keys, int rounds, beside_fn *beside,
                          const void *to, size_t i, int slot)
{
    const Lanes m0 = lanes_set(MULTIPLIER0), m1 = lanes_set(MULTIPLIER1);
    UNROLL
    for (int r = 0; r < rounds; r++) {
        UNROLL
        for (int j = 0; j < CHAINS; j++) {
            const Lanes p0 = r ? lanes_mul32(c[j][0], m0) : c[j][0];
            const Lanes p1 = lanes_mul32(c[j][2], m1);
            /* Swapped, a product has its high word below, where it is xored, and its low word, which
             * is the next word, above: in the last round just the order that is wanted. */
            if (r == rounds - 1)
                c[j][1] = lanes_low(c[j][1]), c[j][3] = lanes_low(c[j][3]);
            c[j][0] = lanes_xor3(lanes_swap(p1), c[j][1], keys->round[2 * r]);
            c[j][1] = p1;
            c[j][2] = lanes_xor3(lanes_swap(p0), c[j][3], keys->round[2 * r + 1]);
            c[j][3] = p0;
        }
        beside(to, i, slot + r);
    }
}

/* lanes_ordered of all words that come out, for nothing: it is an xor, as is the key that comes last.
 * Done again, it is undone. */
static inline void order_words(Keys *keys)
{
    for (int i = 2 * ROUNDS - 2; i < 2 * ROUNDS; i++)
        keys->round[i] = lanes_ordered(keys->round[i]);
}

/* The next blocks of a keystream: their first counter words, times MULTIPLIER0, and the second, which
 * stays the same up to the next multiple of 2^32. */
typedef struct {
    Lanes product, second;
    uint32_t domain;
} Counter;

ALWAYS_INLINE Counter counter_at(uint32_t domain, uint64_t block)
{
    const Lanes number = lanes_add(lanes_set((uint32_t)block), lanes_order());
    return (Counter){lanes_mul32(number, lanes_set(MULTIPLIER0)),
                     lanes_set((block >> 32) | (uint64_t)domain << 28), domain};
}

/* Blocks from this one on for which a counter is right. */
static inline uint64_t blocks_left(uint64_t block)
{
    return (UINT64_C(1) << 32) - (uint32_t)block;
}

/* STEP blocks, the halves of each in c[j][0] and c[j][2]. number: those of the blocks, in the order of
 * lanes_order, where they do not follow each other; else NULL. */
ALWAYS_INLINE void next_blocks(const Keys *keys, Counter *counter, const Lanes *number,
                               Lanes c[CHAINS][4], beside_fn *beside, const void *to, size_t i,
                               int slot)
{
    for (int j = 0; j < CHAINS; j++) {
        if (number) {
            counter->product = lanes_mul32(number[j], lanes_set(MULTIPLIER0));
            counter->second =
                lanes_xor(lanes_shr(number[j], 32), lanes_set((uint64_t)counter->domain << 28));
        }
        c[j][0] = counter->product, c[j][1] = counter->second;
        c[j][2] = keys->call[0], c[j][3] = keys->call[1];
        if (!number)
            counter->product = lanes_add(counter->product, lanes_set(LANES * MULTIPLIER0));
    }
    philox(c, keys, ROUNDS, beside, to, i, slot);
}

/* Blocks block ... block + n - 1 of one domain, and up to STEP - 1 more. Their bytes go to dst, 16 per
 * block, or what noise.h makes of them in its domains. ahead.step is per block here; what is ahead is
 * fetched while the multipliers are busy and the load ports idle. */
ALWAYS_INLINE void keystream(const Keys *keys, uint32_t domain, uint64_t block, size_t n,
                             uint8_t *dst, fd_ahead ahead)
{
    uintptr_t line = (uintptr_t)ahead.at; /* a number, as it may run past the end of what is there */
    for (size_t i = 0, end; i < n; i = end) {
        /* What a step writes beyond the end is overwritten by the next turn. */
        const uint64_t left = blocks_left(block + i);
        end = n - i < left ? n : i + (size_t)left;
        Counter counter = counter_at(domain, block + i);
        for (; i < end; i += STEP) {
            for (int b = 0; b < STEP; b++, line += ahead.step)
                prefetch((const char *)line);
            Lanes c[CHAINS][4];
            next_blocks(keys, &counter, NULL, c, nothing, NULL, 0, 0);
            for (int j = 0; j < CHAINS; j++) {
                if (domain == DOMAIN_NORMALS || domain == DOMAIN_UNIFORMS)
                    halves_to_noise(domain, &c[j][0], &c[j][2]);
                halves_store(c[j][0], c[j][2], dst + 16 * (i + (size_t)(j * LANES)));
            }
        }
    }
}

/* Which of the words index[0] ... index[STEP - 1] of one domain's keystream have their upper 24 bits below
 * `fraction`. */
static inline uint32_t below_at(const Keys *keys, uint32_t domain, const uint64_t *index,
                                uint32_t fraction)
{
    Lanes c[CHAINS][4];
    uint32_t below = 0;
    for (int j = 0; j < CHAINS; j++) {
        const Lanes i = lanes_load(index + j * LANES);
        /* block number = index / 4: its low word, and its high word */
        c[j][0] = lanes_mul32(lanes_shr(i, 2), lanes_set(MULTIPLIER0));
        c[j][1] = lanes_xor(lanes_shr(i, 34), lanes_set((uint64_t)domain << 28));
        c[j][2] = keys->call[0], c[j][3] = keys->call[1];
    }
    philox(c, keys, ROUNDS, nothing, NULL, 0, 0);
    for (int j = 0; j < CHAINS; j++) {
        const Lanes word = lanes_word(c[j][0], c[j][2], lanes_load(index + j * LANES));
        below |= lanes_below(lanes_shr(word, 8), fraction) << j * LANES;
    }
    return below;
}

static void philox_blocks(const uint32_t *counters, const uint32_t key[2], int rounds, size_t n,
                          uint32_t *words)
{
    Keys keys;
    keys_of(&keys, key[0], key[1], MAX_ROUNDS);
    for (size_t i = 0; i < n; i += STEP) {
        uint64_t lane[CHAINS][4][LANES] = {{{0}}};
        Lanes c[CHAINS][4];
        const size_t m = n - i < STEP ? n - i : STEP;
        for (size_t b = 0; b < m; b++)
            for (int w = 0; w < 4; w++)
                lane[b / LANES][w][b % LANES] = counters[4 * (i + b) + (size_t)w];
        for (int j = 0; j < CHAINS; j++)
            for (int w = 0; w < 4; w++)
                c[j][w] = lanes_load(lane[j][w]);
        for (int j = 0; j < CHAINS; j++)
            c[j][0] = lanes_mul32(c[j][0], lanes_set(MULTIPLIER0));
        if (rounds == ROUNDS)
            philox(c, &keys, ROUNDS, nothing, NULL, 0, 0);
        else
            philox(c, &keys, MAX_ROUNDS, nothing, NULL, 0, 0);
        for (int j = 0; j < CHAINS; j++)
            for (int h = 0; h < 2; h++)
                lanes_store(lane[j][h], c[j][2 * h]);
        for (size_t b = 0; b < m; b++)
            for (int w = 0; w < 4; w++)
                words[4 * (i + b) + (size_t)w] =
                    (uint32_t)(lane[b / LANES][w / 2][b % LANES] >> 32 * (w % 2));
    }
}
