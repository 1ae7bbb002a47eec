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

/* CHAINS vectors of blocks, a round of all of them at a time. c: in, the first counter word times
 * MULTIPLIER0 (along a keystream that is a sum, so the running counter needs no multiplication) and
 * the three other words; out, the two 64-bit halves of the block in c[0] and c[2]. What is the same
 * in every turn of the caller's loop costs nothing there: the compiler hoists it. */
static inline void philox(Lanes c[CHAINS][4], const Keys *keys, int rounds)
{
    const Lanes m0 = lanes_set(MULTIPLIER0), m1 = lanes_set(MULTIPLIER1);
    for (int r = 0; r < rounds; r++)
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
}

/* lanes_ordered of all words that come out, for nothing: it is an xor, as is the key that comes last.
 * Done again, it is undone. */
static inline void order_words(Keys *keys)
{
    for (int i = 2 * ROUNDS - 2; i < 2 * ROUNDS; i++)
        keys->round[i] = lanes_ordered(keys->round[i]);
}

/* Blocks block ... block + n - 1 of one domain, and up to STEP - 1 more. With tie == NULL their
 * bytes go to dst, 16 per block, or what noise.h makes of them in its domains. Else each byte, whose
 * words are ordered, is compared with t, and two bits are left per byte: in dst whether it is above, in
 * tie whether it is equal, 2 bytes per block. ahead.step is per block here; what is ahead is fetched
 * while the multipliers are busy and the load ports idle. */
ALWAYS_INLINE void keystream(const Keys *keys, uint32_t domain, uint64_t block, size_t n,
                             uint8_t *dst, uint8_t *tie, uint8_t t, fd_ahead ahead)
{
    const size_t out = tie ? 2 : 16;
    uintptr_t line = (uintptr_t)ahead.at; /* a number, as it may run past the end of what is there */
    const Lanes c2 = keys->call[0], c3 = keys->call[1];
    for (size_t i = 0, end; i < n; i = end) {
        /* The second counter word stays the same up to the next multiple of 2^32. What a step
         * writes beyond it is overwritten by the next turn. */
        const uint64_t first = block + i, left = (UINT64_C(1) << 32) - (uint32_t)first;
        end = n - i < left ? n : i + (size_t)left;
        const Lanes c1 = lanes_set((first >> 32) | (uint64_t)domain << 28);
        const Lanes number = lanes_add(lanes_set((uint32_t)first), lanes_order());
        Lanes product = lanes_mul32(number, lanes_set(MULTIPLIER0));
        for (; i < end; i += STEP) {
            for (int b = 0; b < STEP; b++, line += ahead.step)
                prefetch((const char *)line);
            Lanes c[CHAINS][4];
            for (int j = 0; j < CHAINS; j++) {
                c[j][0] = product, c[j][1] = c1, c[j][2] = c2, c[j][3] = c3;
                product = lanes_add(product, lanes_set(LANES * MULTIPLIER0));
            }
            philox(c, keys, ROUNDS);
            for (int j = 0; j < CHAINS; j++) {
                const size_t at = out * (i + (size_t)(j * LANES));
                if (tie)
                    halves_compare(c[j][0], c[j][2], t, dst + at, tie + at);
                else {
                    if (domain == DOMAIN_NORMALS || domain == DOMAIN_UNIFORMS)
                        halves_to_noise(domain, &c[j][0], &c[j][2]);
                    halves_store(c[j][0], c[j][2], dst + at);
                }
            }
        }
    }
}

/* The two halves of STEP blocks of one domain, by their numbers. */
static inline void blocks_at(const Keys *keys, uint32_t domain, const Lanes number[CHAINS],
                             Lanes c[CHAINS][4])
{
    for (int j = 0; j < CHAINS; j++) {
        c[j][0] = lanes_mul32(number[j], lanes_set(MULTIPLIER0));
        c[j][1] = lanes_xor(lanes_shr(number[j], 32), lanes_set((uint64_t)domain << 28));
        c[j][2] = keys->call[0], c[j][3] = keys->call[1];
    }
    philox(c, keys, ROUNDS);
}

/* `keystream` of n blocks that lie anywhere, by their numbers in the order of lanes_order; n is a multiple
 * of STEP. */
ALWAYS_INLINE void keystream_at(const Keys *keys, uint32_t domain, const uint64_t *block, size_t n,
                                uint8_t *dst, uint8_t *tie, uint8_t t)
{
    for (size_t i = 0; i < n; i += STEP) {
        Lanes number[CHAINS], c[CHAINS][4];
        for (int j = 0; j < CHAINS; j++)
            number[j] = lanes_load(block + i + (size_t)(j * LANES));
        blocks_at(keys, domain, number, c);
        for (int j = 0; j < CHAINS; j++) {
            const size_t at = (tie ? 2 : 16) * (i + (size_t)(j * LANES));
            if (tie)
                halves_compare(c[j][0], c[j][2], t, dst + at, tie + at);
            else
                halves_store(c[j][0], c[j][2], dst + at);
        }
    }
}

/* Words index[0] ... index[STEP - 1] of one domain's keystream. */
static inline void words_at(const Keys *keys, uint32_t domain, const uint64_t *index,
                            uint32_t *words)
{
    uint64_t half[CHAINS][2][LANES];
    Lanes number[CHAINS], c[CHAINS][4];
    for (int j = 0; j < CHAINS; j++)
        number[j] = lanes_shr(lanes_load(index + j * LANES), 2);
    blocks_at(keys, domain, number, c);
    for (int j = 0; j < CHAINS; j++) {
        lanes_store(half[j][0], c[j][0]);
        lanes_store(half[j][1], c[j][2]);
    }
    for (int l = 0; l < STEP; l++)
        words[l] = (uint32_t)(half[l / LANES][index[l] >> 1 & 1][l % LANES] >> 32 * (index[l] & 1));
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
            philox(c, &keys, ROUNDS);
        else
            philox(c, &keys, MAX_ROUNDS);
        for (int j = 0; j < CHAINS; j++)
            for (int h = 0; h < 2; h++)
                lanes_store(lane[j][h], c[j][2 * h]);
        for (size_t b = 0; b < m; b++)
            for (int w = 0; w < 4; w++)
                words[4 * (i + b) + (size_t)w] =
                    (uint32_t)(lane[b / LANES][w / 2][b % LANES] >> 32 * (w % 2));
    }
}
