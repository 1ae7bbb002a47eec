/* One table of kernels against the portable one, bit for bit, without Python: so that a table can be
 * tested that the Python at hand cannot run (another architecture under qemu, emulated AVX-512).
 *
 *     cc -DTABLE=fd_avx2 -I../../../../src kernels.c ../../../../src/simd/isa_{portable,avx2}.c -lm
 *
 * usage: kernels KNOWN_ANSWERS [effort]: Random123's, as in tests/known_answers, and how many of the usual
 * number of cases, in percent. Prints one line; what differs first is described on stderr, and the exit
 * status is 1 then. */
#include "kernels/table.h"
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const fd_kernels fd_portable, TABLE;

static const char *const op_name[FD_OPS] = {
    "dropout", "dropout_add",       "bias_dropout_add",  "relu_dropout",      "alpha_dropout",
    "zoneout", "bias_relu_dropout", "bias_gelu_dropout", "bias_gelu_backward"};
static const char *const noise_op_name[FD_NOISE_OPS] = {
    "noise_scale", "noise_add", "noise_gradient", "concrete", "concrete_gradient"};
static const char *const dtype_name[FD_DTYPES] = {"float32", "float64", "float16", "bfloat16"};

static void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s differs from portable: ", TABLE.name);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

/* splitmix64: the cases are the same in every run. */
static uint64_t state;
static uint64_t random64(void)
{
    uint64_t z = state += UINT64_C(0x9E3779B97F4A7C15);
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}
static size_t below(size_t n) { return (size_t)(random64() % n); }

/* Memory that ends where its last byte does (for the address sanitizer), or, if it is written to,
 * between guards. Its begin is `skew` bytes behind a cache line's. */
enum { GUARD = 64, GUARD_BYTE = 0xa5 };
typedef struct {
    uint8_t *base, *at;
    size_t size;
} memory;

static memory take(size_t size, size_t skew, size_t guard)
{
    memory m = {malloc(guard + 64 + skew + size + guard), NULL, size};
    if (!m.base)
        abort();
    const size_t whole = guard + 64 + skew + size + guard, line = -(uintptr_t)(m.base + guard) % 64;
    memset(m.base, GUARD_BYTE, whole);
    /* Without a guard the end counts, and the skew is what malloc makes of it. */
    m.at = guard ? m.base + guard + line + skew : m.base + whole - size;
    return m;
}
static int guarded(memory m)
{
    for (const uint8_t *p = m.at - GUARD; p < m.at; p++)
        if (*p != GUARD_BYTE)
            return 0;
    for (const uint8_t *p = m.at + m.size; p < m.at + m.size + GUARD; p++)
        if (*p != GUARD_BYTE)
            return 0;
    return 1;
}

/* Random123's known answers: a line has the rounds, then counter, key and words in hexadecimal. */
enum { MOST = 100, BLOCKS = 35 };
static struct {
    int rounds;
    uint32_t counter[4], key[2], words[4];
} known[MOST];

/* Returns how many there are. */
static int read_known(const char *path)
{
    FILE *const file = fopen(path, "r");
    char line[200];
    int n = 0;
    while (file && n < MOST && fgets(line, sizeof line, file)) {
        char *at = line;
        if (!(known[n].rounds = (int)strtol(line, &at, 10)))
            continue;
        for (int i = 0; i < 10; i++) {
            const uint32_t word = (uint32_t)strtoul(at, &at, 16);
            *(i < 4 ? known[n].counter + i : i < 6 ? known[n].key + i - 4 : known[n].words + i - 6) = word;
        }
        n++;
    }
    if (file)
        fclose(file);
    return n;
}

/* At every place of a run of 1 ... 35 blocks, so that the last step is partly filled in most of them. */
static void test_philox(int answers)
{
    for (int k = 0; k < answers; k++)
        for (size_t n = 1; n <= BLOCKS; n++) {
            uint32_t counters[4 * BLOCKS], words[4 * BLOCKS + 1], expected[4 * BLOCKS + 1];
            for (size_t i = 0; i < 4 * n; i++)
                counters[i] = (uint32_t)random64();
            for (size_t at = 0; at < n; at += at + 8 < n ? 5 : 1) {
                memcpy(counters + 4 * at, known[k].counter, sizeof known[k].counter);
                words[4 * n] = expected[4 * n] = 0xa5a5a5a5;
                TABLE.philox(counters, known[k].key, known[k].rounds, n, words);
                fd_portable.philox(counters, known[k].key, known[k].rounds, n, expected);
                if (memcmp(words + 4 * at, known[k].words, sizeof known[k].words))
                    fail("philox, %d rounds, known answer %d, block %zu of %zu: %08" PRIx32
                         " %08" PRIx32 " %08" PRIx32 " %08" PRIx32,
                         known[k].rounds, k, at, n, words[4 * at], words[4 * at + 1],
                         words[4 * at + 2], words[4 * at + 3]);
                for (size_t i = 0; i <= 4 * n; i++)
                    if (words[i] != expected[i])
                        fail("philox, %d rounds, %zu blocks: word %zu is %08" PRIx32
                             ", not %08" PRIx32, known[k].rounds, n, i, words[i], expected[i]);
            }
        }
}

/* Of n elements: pieces that lie anywhere around `base`, some of them neighbours, or the same in part. */
static uint64_t *pieces_around(const fd_draw *s, uint64_t base, size_t n)
{
    const uint64_t block = s->threshold == UINT64_C(1) << 31 ? FD_ALIGN : 16;
    const size_t pieces = (n + FD_ALIGN - 1) / FD_ALIGN;
    uint64_t *const start = malloc((pieces + FD_PIECE_PAD) * sizeof *start);
    for (size_t i = 0; i < pieces; i++)
        start[i] = i && below(2) ? start[i - 1] + FD_ALIGN * below(3)
                   : below(2)    ? base + FD_ALIGN * below(1000)
                                 : base + block * below(8000);
    for (size_t i = 0; i < FD_PIECE_PAD; i++)
        start[pieces + i] = random64();
    return start;
}

/* n keep bits, drawn run by run. */
static void expected_bits(const fd_draw *s, fd_indices from, size_t n, uint8_t *bits)
{
    if (!from.piece) {
        fd_portable.draw_bits(s, from, n, bits);
        return;
    }
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < FD_ALIGN ? n - i : FD_ALIGN;
        uint8_t piece[FD_ALIGN / 8 + FD_BITS_PAD];
        fd_portable.draw_bits(s, (fd_indices){from.piece[i / FD_ALIGN], NULL}, m, piece);
        memcpy(bits + i / 8, piece, (m + 7) / 8);
    }
}

static void test_pieces(const fd_draw *s, uint64_t base)
{
    const size_t n = 1 + below(FD_PIECES), each = FD_ALIGN / 8;
    uint64_t *const start = pieces_around(s, base, n * FD_ALIGN);
    memory got = take(n * each + FD_BITS_PAD, below(64), GUARD);
    TABLE.draw_bits(s, (fd_indices){0, start}, n * FD_ALIGN, got.at);
    for (size_t i = 0; i < n; i++) {
        uint8_t expected[FD_ALIGN / 8 + FD_BITS_PAD];
        fd_portable.draw_bits(s, (fd_indices){start[i], NULL}, FD_ALIGN, expected);
        if (memcmp(got.at + each * i, expected, each))
            fail("pieces, threshold %#" PRIx64 ": piece %zu of %zu, from %#" PRIx64, s->threshold, i, n,
                 start[i]);
    }
    if (!guarded(got))
        fail("pieces, threshold %#" PRIx64 ": wrote outside its buffer", s->threshold);
    free(got.base), free(start);
}

/* Keep bits. Counter words overflow where start is a multiple of 2^36 (bytes), 2^34 (refinement) and
 * 2^39 (bits). */
static long test_draw(long cases)
{
    static const uint64_t thresholds[] = {
        0, UINT64_C(1) << 31, UINT64_C(1) << 32, (UINT64_C(1) << 32) - 1, 1, 2, 0xffffff, 0x1000000,
        0x1000001, 0x7f000000, 0x7fffffff, 0x80000001, 0x33333333, 0xff000000, 0xfeffffff, 0xff000001,
    };
    static const int powers[] = {0, 32, 34, 36, 39, 60};
    static const size_t lengths[] = {0, 1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257, 511, 513,
                                     FD_TILE - 1, FD_TILE, FD_TILE + 1, FD_DRAW_MAX - 1, FD_DRAW_MAX};
    enum { T = sizeof thresholds / sizeof *thresholds, P = sizeof powers / sizeof *powers,
           N = sizeof lengths / sizeof *lengths };
    for (long c = 0; c < cases; c++) {
        const uint64_t kind = random64() % 4, word = random64();
        const fd_draw s = {
            kind == 3 ? 0 - (word & 1) : random64(), kind == 2 ? 0 - (word >> 1 & 1) : random64(),
            c % 3 == 0   ? (uint32_t)word
            : c % 3 == 1 ? thresholds[below(T)]
            : word & 1   ? word >> 8 & 0xff000000 /* nothing left to refine */
                         : word >> 40, /* refinement alone: no byte is below t = 0 */
        };
        const int power = powers[below(P)];
        const uint64_t base = power ? UINT64_C(1) << power : 0, back = FD_ALIGN * (below(36));
        const uint64_t start = power && c % 8 ? base - back : base + back;
        const size_t n = c % 2 ? lengths[below(N)] : below(FD_DRAW_MAX + 1);
        memory got = take((n + 7) / 8 + FD_BITS_PAD, below(64), GUARD);
        memory expected = take((n + 7) / 8 + FD_BITS_PAD, below(64), GUARD);
        TABLE.draw_bits(&s, (fd_indices){start, NULL}, n, got.at);
        fd_portable.draw_bits(&s, (fd_indices){start, NULL}, n, expected.at);
        if (n % 8 && (got.at[n / 8] | expected.at[n / 8]) >> n % 8)
            fail("draw, threshold %#" PRIx64 ", n %zu: a bit behind the last is set", s.threshold, n);
        for (size_t i = 0; i < n; i++) {
            const int a = got.at[i / 8] >> i % 8 & 1, b = expected.at[i / 8] >> i % 8 & 1;
            if (a != b)
                fail("draw, seed %#" PRIx64 ", call %#" PRIx64 ", threshold %#" PRIx64
                     ", start %#" PRIx64 ", n %zu: bit %zu is %d, not %d",
                     s.seed, s.call, s.threshold, start, n, i, a, b);
        }
        if (!guarded(got) || !guarded(expected))
            fail("draw, threshold %#" PRIx64 ", n %zu: wrote outside its buffer", s.threshold, n);
        free(got.base);
        free(expected.base);
        test_pieces(&s, base);
    }
    return cases;
}

/* The exact rate: of two neighbouring thresholds, computed from the keystream so that they lie around
 * one element's 32 bits, the lower keeps it and the upper drops it. No random case would hit that. */
static void test_exact(long cases)
{
    for (long c = 0; c < cases; c++) {
        fd_draw s = {random64(), random64(), 0};
        const uint64_t index = random64() >> (4 + below(60)), start = index / FD_ALIGN * FD_ALIGN;
        const size_t i = (size_t)(index - start);
        const uint64_t block[2] = {index / 16, index / 4};
        const uint32_t key[2] = {(uint32_t)s.seed, (uint32_t)(s.seed >> 32)};
        uint32_t counters[8], words[8];
        for (uint32_t domain = 0; domain < 2; domain++) {
            counters[4 * domain] = (uint32_t)block[domain];
            counters[4 * domain + 1] = (uint32_t)(block[domain] >> 32) | domain << 28;
            counters[4 * domain + 2] = (uint32_t)s.call;
            counters[4 * domain + 3] = (uint32_t)(s.call >> 32);
        }
        TABLE.philox(counters, key, 7, 2, words);
        const uint32_t byte = words[index / 4 % 4] >> index % 4 * 8 & 0xff;
        const uint64_t least = (uint64_t)byte << 24 | words[4 + index % 4] >> 8;
        for (uint64_t t = least; t <= least + 1; t++) {
            if (t == 0 || t == UINT64_C(1) << 31) /* other rules */
                continue;
            memory bits = take(i / 8 + 1 + FD_BITS_PAD, 0, GUARD);
            s.threshold = t;
            TABLE.draw_bits(&s, (fd_indices){start, NULL}, i + 1, bits.at);
            if ((bits.at[i / 8] >> i % 8 & 1) != (t == least))
                fail("draw, seed %#" PRIx64 ", call %#" PRIx64 ", threshold %#" PRIx64 ": element %#"
                     PRIx64 ", whose bits are %#" PRIx64 ", is %s",
                     s.seed, s.call, t, index, least, t == least ? "dropped" : "kept");
            free(bits.base);
        }
    }
}

/* An element's bits, as a number. */
static uint64_t element(fd_dtype dtype, const uint8_t *p)
{
    uint64_t v = 0;
    for (size_t i = fd_itemsize[dtype]; i--;) /* little-endian, as every machine here */
        v = v << 8 | p[i];
    return v;
}
static int is_nan(fd_dtype dtype, uint64_t v)
{
    static const uint64_t inf[FD_DTYPES] = {0x7f800000, UINT64_C(0x7ff0000000000000), 0x7c00, 0x7f80};
    return (v & ~(UINT64_C(1) << (8 * fd_itemsize[dtype] - 1))) > inf[dtype];
}

/* Elements of all kinds: any bits at all, ordinary numbers, and what is at the edges. */
static void fill(fd_dtype dtype, uint8_t *p, size_t n)
{
    static const int exponent_bits[FD_DTYPES] = {8, 11, 5, 8};
    const size_t size = fd_itemsize[dtype];
    const int mantissa = (int)size * 8 - 1 - exponent_bits[dtype];
    const uint64_t one = UINT64_C(1), exponents = (one << exponent_bits[dtype]) - 1;
    for (size_t i = 0; i < n; i++) {
        const uint64_t word = random64(), kind = word >> 60, sign = word >> 59 & 1;
        uint64_t v = random64();
        if (kind < 6) { /* about 1 in size */
            const uint64_t exponent = exponents / 2 - 2 + (word & 3);
            v = (v & ((one << mantissa) - 1)) | exponent << mantissa;
        } else if (kind < 8) /* subnormal, or nearly */
            v &= (one << (mantissa + 1)) - 1;
        else if (kind < 10) /* a few units around zero, the smallest normal number, infinity */
            v = (word % 3 == 0 ? 0 : word % 3 == 1 ? one << mantissa : exponents << mantissa) +
                (v & 7) - (word % 3 ? 3 : 0);
        else if (kind < 12) /* infinite or NaN, half of them signalling */
            v = exponents << mantissa | (v & (word & 1 ? v >> 7 : 0) & ((one << mantissa) - 1));
        if (kind < 12)
            v = (v & ~(one << (8 * size - 1))) | sign << (8 * size - 1);
        for (size_t b = 0; b < size; b++)
            p[i * size + b] = (uint8_t)(v >> 8 * b);
    }
}

static double some_scale(void)
{
    static const double scales[] = {1, 1.25, 2, 1 / 0.9, 1 / 0.3, 0, 4294967296.0, 0.5};
    const uint64_t word = random64();
    const double mantissa = 1 + (double)(word >> 12) * 0x1p-52;
    if (word & 1) /* of any size, so that rounding to 16 bits meets every case, ties among them */
        return ldexp(word & 2 ? mantissa : 1 + (double)(word >> 61) * 0x1p-3, (int)(word >> 2 & 63) - 40);
    return scales[word >> 3 & 7];
}

/* y and active bits of one run. all: x is every pattern of 16 bits once. */
static void test_apply(fd_op op, fd_dtype dtype, size_t n, int all)
{
    const size_t size = fd_itemsize[dtype], bit = below(64), bits_size = (bit + n + 7) / 8;
    const int add = op == FD_DROPOUT_ADD || fd_reads_bias(op), second = fd_reads_residual(op);
    const int non_temporal = random64() & 1;
    const int in_place = (int)below(3), dense = (int)below(4); /* y is apart, x, residual */
    const double scale = some_scale(), shift = some_scale(), dropped = -some_scale();
    const size_t skew = random64() & 1 ? 0 : random64() & 1 ? below(64 / size) * size : below(64);
    memory x = take(n * size, 0, 0), residual = take(n * size, 0, 0), bias = take(n * size, 0, 0);
    memory bits = take(bits_size + FD_BITS_PAD, 0, 0);
    fill(dtype, x.at, n);
    fill(dtype, residual.at, n);
    fill(dtype, bias.at, n);
    if (all)
        for (size_t i = 0; i < n; i++)
            x.at[2 * i] = (uint8_t)i, x.at[2 * i + 1] = (uint8_t)(i >> 8);
    for (size_t i = 0; i < bits_size; i++)
        bits.at[i] = dense ? (uint8_t)(random64() | (dense == 1 ? random64() : 0)) : 0xff;
    memory y[2], active[2];
    for (int i = 0; i < 2; i++) {
        const fd_kernels *kernels = i ? &fd_portable : &TABLE;
        y[i] = take(n * size, skew, GUARD);
        active[i] = take((n + 7) / 8, below(64), GUARD);
        fd_operands o = {(char *)x.at, second ? (char *)residual.at : NULL,
                         fd_reads_bias(op) ? (char *)bias.at : NULL, (char *)y[i].at,
                         fd_is_relu(op) ? active[i].at : NULL,
                         {scale, shift, dropped}, non_temporal};
        if (in_place == 1)
            o.x = memcpy(y[i].at, x.at, n * size);
        else if (in_place == 2 && second)
            o.residual = memcpy(y[i].at, residual.at, n * size);
        kernels->apply[op][dtype](&o, bits.at, bit, n);
    }
#define WHERE "%s of %s, n %zu, bit %zu, scale %a, y at %zu bytes behind a line, non_temporal %d, in place %d: "
#define WHERE_ARGS op_name[op], dtype_name[dtype], n, bit, scale, skew, non_temporal, in_place
    if (memcmp(y[0].at, y[1].at, n * size))
        for (size_t i = 0; i < n; i++) {
            const uint64_t a = element(dtype, y[0].at + i * size), b = element(dtype, y[1].at + i * size);
            /* Which of two NaNs an addition passes on is left open by IEEE 754. */
            if (a != b && !(add && is_nan(dtype, a) && is_nan(dtype, b)))
                fail(WHERE "element %zu is %#" PRIx64 ", not %#" PRIx64 "; x %#" PRIx64
                     ", residual %#" PRIx64 ", bias %#" PRIx64 ", bit %d",
                     WHERE_ARGS, i, a, b, element(dtype, x.at + i * size),
                     element(dtype, residual.at + i * size), element(dtype, bias.at + i * size),
                     bits.at[(bit + i) / 8] >> (bit + i) % 8 & 1);
        }
    for (size_t i = 0; fd_is_relu(op) && i < (n + 7) / 8; i++)
        if (active[0].at[i] != active[1].at[i])
            fail(WHERE "byte %zu of active is %#x, not %#x", WHERE_ARGS, i,
                 (unsigned)active[0].at[i], (unsigned)active[1].at[i]);
    for (int i = 0; i < 2; i++) {
        if (!guarded(y[i]))
            fail(WHERE "%s wrote outside y", WHERE_ARGS, i ? "portable" : TABLE.name);
        if (!guarded(active[i]))
            fail(WHERE "%s wrote outside active", WHERE_ARGS, i ? "portable" : TABLE.name);
        free(y[i].base);
        free(active[i].base);
    }
    free(x.base), free(residual.base), free(bias.base), free(bits.base);
}

/* Elements of the runs below that were a tie and dropped, by where in a turn they were, and last of a run. */
enum { LONGEST_TURN = 512 };
static long dropped_ties[LONGEST_TURN], dropped_last;

/* Drawing and applying in one loop, or a tile beside another, against one after the other. */
static void test_forward(fd_op op, fd_dtype dtype, size_t n, int stream)
{
    const size_t size = fd_itemsize[dtype], bit = stream ? below(64) : 0;
    const int add = op == FD_DROPOUT_ADD || fd_reads_bias(op), second = fd_reads_residual(op);
    const int in_place = (int)below(2 + (stream && second)); /* y is apart, x, residual */
    const uint64_t kind = random64() % 8, base = random64() & 1 ? UINT64_C(1) << 36 : 0;
    const uint64_t start = base ? base - FD_ALIGN * below(40) : FD_ALIGN * below(40);
    const uint64_t byte = random64() & 0xff;
    /* Most often, every tie is dropped. */
    const uint64_t threshold = kind == 0   ? UINT64_C(1) << 31
                               : kind == 1 ? below(2) * (UINT64_C(1) << 32)
                               : kind == 2 ? (byte | 1) << 24
                               : kind == 3 ? byte << 24 | (random64() & 0xffffff)
                                           : byte << 24 | 0xffffff;
    const fd_draw s = {random64(), random64(), threshold};
    uint64_t *const piece = random64() % 3 ? NULL : pieces_around(&s, base, n);
    const fd_indices from = piece ? (fd_indices){0, piece} : (fd_indices){start, NULL};
    const double scale = some_scale(), shift = some_scale(), dropped = -some_scale();
    const size_t skew = stream || random64() & 1 ? 0 : below(64);
    memory x = take(n * size, 0, 0), residual = take(n * size, 0, 0), bias = take(n * size, 0, 0);
    memory before = take((bit + n + 7) / 8 + FD_BITS_PAD, 0, 0);
    fill(dtype, x.at, n);
    fill(dtype, residual.at, n);
    fill(dtype, bias.at, n);
    for (size_t i = 0; i < before.size; i++)
        before.at[i] = (uint8_t)random64();
    memory y[2], active[2], bits[2];
    for (int i = 0; i < 2; i++) {
        y[i] = take(n * size, skew, GUARD);
        active[i] = take((n + 7) / 8, below(64), GUARD);
        bits[i] = take((n + 7) / 8 + FD_BITS_PAD, below(64), GUARD);
        fd_operands o = {(char *)x.at, second ? (char *)residual.at : NULL,
                         fd_reads_bias(op) ? (char *)bias.at : NULL, (char *)y[i].at,
                         fd_is_relu(op) ? active[i].at : NULL, {scale, shift, dropped}, stream};
        if (in_place == 1)
            o.x = memcpy(y[i].at, x.at, n * size);
        else if (in_place == 2)
            o.residual = memcpy(y[i].at, residual.at, n * size);
        if (i) {
            expected_bits(&s, from, n, bits[1].at);
            fd_portable.apply[op][dtype](&o, stream ? before.at : bits[1].at, bit, n);
        } else if (stream)
            TABLE.stream[op][dtype](&s, from, bits[0].at, &o, before.at, bit);
        else
            TABLE.forward[op][dtype](&s, from, n, &o, bits[0].at);
    }
#define CASE "%s of %s, n %zu, threshold %#" PRIx64 ", start %#" PRIx64 ", pieces %d, stream %d, in place %d: "
#define CASE_ARGS op_name[op], dtype_name[dtype], n, threshold, start, piece != NULL, stream, in_place
    if (memcmp(bits[0].at, bits[1].at, (n + 7) / 8))
        fail(CASE "other bits", CASE_ARGS);
    if (fd_is_relu(op) && memcmp(active[0].at, active[1].at, (n + 7) / 8))
        fail(CASE "other active bits", CASE_ARGS);
    for (size_t i = 0; i < n; i++) {
        const uint64_t a = element(dtype, y[0].at + i * size), b = element(dtype, y[1].at + i * size);
        if (a != b && !(add && is_nan(dtype, a) && is_nan(dtype, b)))
            fail(CASE "element %zu is %#" PRIx64 ", not %#" PRIx64, CASE_ARGS, i, a, b);
    }
    if (!stream && kind > 3) { /* without the ties */
        const fd_draw least = {s.seed, s.call, threshold & 0xff000000};
        if (least.threshold && least.threshold != UINT64_C(1) << 31)
            expected_bits(&least, from, n, bits[1].at);
        for (size_t i = 0; i < n; i++) {
            const int tie = (bits[0].at[i / 8] ^ bits[1].at[i / 8]) >> i % 8 & 1;
            dropped_ties[i % LONGEST_TURN] += tie;
            dropped_last += tie && i + 1 == n;
        }
    }
    for (int i = 0; i < 2; i++) {
        if (!guarded(y[i]) || !guarded(active[i]) || !guarded(bits[i]))
            fail(CASE "%s wrote outside", CASE_ARGS, i ? "portable" : TABLE.name);
        free(y[i].base), free(active[i].base), free(bits[i].base);
    }
    free(x.base), free(residual.base), free(bias.base), free(before.base), free(piece);
}

static long test_forwards(long effort)
{
    long runs = 0;
    for (int op = 0; op < FD_DRAWN_OPS; op++)
        for (int dtype = 0; dtype < FD_DTYPES; dtype++) {
            for (size_t n = 0; n <= 600; n += 1 + below(effort < 100 ? 3 : 1), runs++)
                test_forward((fd_op)op, (fd_dtype)dtype, n, 0);
            for (long turn = 0; turn < effort; turn++, runs += 2) {
                test_forward((fd_op)op, (fd_dtype)dtype, 1000 + below(4 * FD_TILE), 0);
                test_forward((fd_op)op, (fd_dtype)dtype, FD_TILE, 1);
            }
        }
    test_forward(FD_DROPOUT, FD_FLOAT32, 300000, 0); /* the queue of ties is full many times */
    for (int i = 0; i < LONGEST_TURN; i++)
        if (!dropped_ties[i])
            fail("no tie was dropped at place %d of a turn: too few cases", i);
    if (!dropped_last)
        fail("no last element was a dropped tie: too few cases");
    return runs;
}

/* Whether n elements are the same bits, or both NaN. Which of two NaNs an operation passes on is left
 * open by IEEE 754. */
static int equal(fd_dtype dtype, memory a, memory b, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        const uint64_t x = element(dtype, a.at + i * fd_itemsize[dtype]);
        const uint64_t y = element(dtype, b.at + i * fd_itemsize[dtype]);
        if (x != y && !(is_nan(dtype, x) && is_nan(dtype, y)))
            return 0;
    }
    return guarded(a) && guarded(b);
}

/* A tile of weights, forward and backward. */
static void test_connect(fd_dtype dtype, int finite)
{
    const size_t size = fd_itemsize[dtype], n = 1 + below(random64() & 1 ? 40 : 300);
    const size_t padded = (n + FD_GROUP - 1) / FD_GROUP * FD_GROUP, rows = 1 + below(6), bit = below(FD_ALIGN);
    const fd_weights shape = {NULL, rows, n, padded, n};
    memory w = take(rows * padded * size, 0, 0), g = take(padded * size, 0, 0);
    memory x = take(rows * size, 0, 0), bits = take((bit + rows * n + 63) / 8 + FD_BITS_PAD, 0, 0);
    memory *const in[] = {&w, &g, &x};
    for (int i = 0; i < 3; i++) {
        fill(dtype, in[i]->at, in[i]->size / size);
        for (size_t e = size - 1; finite && e < in[i]->size; e += size)
            in[i]->at[e] &= 0xbf; /* exponents of the lower half */
    }
    for (size_t i = 0; i < bits.size; i++)
        bits.at[i] = (uint8_t)random64();
    memory y[2], dx[2], dw[2];
    for (int i = 0; i < 2; i++) {
        const fd_kernels *kernels = i ? &fd_portable : &TABLE;
        fd_weights weights = shape;
        weights.at = (const char *)w.at;
        y[i] = take(n * size, 0, GUARD), dx[i] = take(rows * size, 0, GUARD);
        dw[i] = take(rows * padded * size, 0, GUARD);
        memcpy(y[i].at, g.at, n * size);
        memcpy(dx[i].at, x.at, rows * size);
        memcpy(dw[i].at, w.at, rows * padded * size);
        kernels->connect[dtype](&weights, bits.at, bit, x.at, (char *)y[i].at);
        kernels->connect_back[dtype](&weights, bits.at, bit, (char *)g.at, x.at, dx[i].at,
                                     (char *)dw[i].at);
    }
    if (!equal(dtype, y[0], y[1], n) || !equal(dtype, dx[0], dx[1], rows) ||
        !equal(dtype, dw[0], dw[1], rows * padded))
        fail("connect of %s, %zu rows of %zu, bit %zu", dtype_name[dtype], rows, n, bit);
    for (int i = 0; i < 2; i++)
        free(y[i].base), free(dx[i].base), free(dw[i].base);
    free(w.base), free(g.base), free(x.base), free(bits.base);
}

/* Variates. Counter words overflow where block is a multiple of 2^32. */
static void test_noise(long cases)
{
    static char array[(FD_TILE + 4) * 8];
    for (long c = 0; c < cases; c++) {
        const uint64_t word = random64();
        const fd_noise kind = word & 1 ? FD_NORMAL : FD_LOGISTIC;
        const fd_draw s = {random64(), random64(), 0};
        const uint64_t base = UINT64_C(1) << (word >> 1 & 1 ? 32 : 59), back = below(36);
        const uint64_t block = c % 3 == 0 ? back : c % 3 == 1 ? base - back : random64() >> 4;
        const size_t n = c % 2 ? 1 + below(300) : 1 + below(FD_TILE + 4);
        const size_t itemsize = (size_t)(word >> 60) % 5 * 2;
        memory noise[2];
        for (int i = 0; i < 2; i++) {
            noise[i] = take((n + FD_NOISE_PAD) * sizeof(float), 4 * below(16), GUARD);
            (i ? &fd_portable : &TABLE)
                ->draw_noise(kind, &s, block, n, (float *)noise[i].at, (fd_ahead){array, itemsize});
        }
        for (size_t i = 0; i < n; i++) {
            const uint64_t a = element(FD_FLOAT32, noise[0].at + 4 * i);
            const uint64_t b = element(FD_FLOAT32, noise[1].at + 4 * i);
            if (a != b)
                fail("noise %d, seed %#" PRIx64 ", call %#" PRIx64 ", block %#" PRIx64
                     ", n %zu: variate %zu is %#" PRIx64 ", not %#" PRIx64,
                     kind, s.seed, s.call, block, n, i, a, b);
        }
        for (int i = 0; i < 2; i++) {
            if (!guarded(noise[i]))
                fail("noise %d, n %zu: wrote outside its buffer", kind, n);
            free(noise[i].base);
        }
    }
}

/* Noise and elements. */
static void test_apply_noise(fd_noise_op op, fd_dtype dtype, size_t n)
{
    const int gradient = op == FD_NOISE_GRADIENT || op == FD_CONCRETE_GRADIENT;
    const int scaled = op == FD_NOISE_SCALE || op == FD_NOISE_ADD;
    const int relaxed = op == FD_CONCRETE || op == FD_CONCRETE_GRADIENT;
    const fd_dtype compute = dtype == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32;
    const fd_dtype out = gradient ? compute : dtype;
    const size_t size = fd_itemsize[dtype], wide = fd_itemsize[compute];
    const int single = random64() & 1, in_place = !gradient && random64() & 1;
    const double logit = (double)below(161) - 80 + (double)below(8) / 8;
    const double inverse_temperature = ldexp(1 + (double)below(8) / 8, (int)below(12) - 2);
    memory x = take(n * size, 0, 0), g = take(n * size, 0, 0), sigma = take(n * wide, 0, 0);
    memory noise = take((n + FD_NOISE_PAD) * sizeof(float), 0, 0), y[2];
    fill(dtype, x.at, n);
    fill(dtype, g.at, n);
    fill(compute, sigma.at, n);
    memset(noise.at, 0, noise.size);
    fd_portable.draw_noise(relaxed ? FD_LOGISTIC : FD_NORMAL, &(fd_draw){random64(), 0, 0}, 0, n,
                      (float *)noise.at, (fd_ahead){NULL, 0});
    for (int i = 0; i < 2; i++) {
        y[i] = take(n * fd_itemsize[out], below(64 / size) * size, GUARD);
        fd_noise_operands o = {(char *)x.at, gradient ? (char *)g.at : NULL,
                               scaled && !single ? (char *)sigma.at : NULL, (float *)noise.at,
                               (char *)y[i].at, {ldexp(logit, -4), logit, 1 / (1 + exp(-logit)),
                               inverse_temperature, 1 + exp(logit)}};
        if (in_place)
            o.x = memcpy(y[i].at, x.at, n * size);
        (i ? &fd_portable : &TABLE)->apply_noise[op][dtype](&o, n);
    }
    for (size_t i = 0; i < n; i++) {
        const uint64_t a = element(out, y[0].at + i * fd_itemsize[out]);
        const uint64_t b = element(out, y[1].at + i * fd_itemsize[out]);
        /* Which of two NaNs a product passes on is open, as above. */
        if (a != b && !(is_nan(out, a) && is_nan(out, b)))
            fail("%s of %s, n %zu, single sigma %d, logit %g, 1 / temperature %g, in place %d: element "
                 "%zu is %#" PRIx64 ", not %#" PRIx64 "; x %#" PRIx64 ", noise %#" PRIx64,
                 noise_op_name[op], dtype_name[dtype], n, single, logit, inverse_temperature, in_place,
                 i, a, b, element(dtype, x.at + i * size), element(FD_FLOAT32, noise.at + 4 * i));
    }
    for (int i = 0; i < 2; i++) {
        if (!guarded(y[i]))
            fail("%s of %s, n %zu: %s wrote outside y", noise_op_name[op], dtype_name[dtype], n,
                 i ? "portable" : TABLE.name);
        free(y[i].base);
    }
    free(x.base), free(g.base), free(sigma.base), free(noise.base);
}

/* Ordinary numbers, from 1/16 to 16. */
static void fill_tame(fd_dtype dtype, uint8_t *p, size_t n)
{
    static const int exponent_bits[FD_DTYPES] = {8, 11, 5, 8};
    const size_t size = fd_itemsize[dtype];
    const int mantissa = (int)size * 8 - 1 - exponent_bits[dtype];
    for (size_t i = 0; i < n; i++) {
        const uint64_t one = UINT64_C(1), word = random64(), exponent = (one << (exponent_bits[dtype] - 1)) - 5 + (word & 7);
        const uint64_t v = (random64() & ((one << mantissa) - 1)) | exponent << mantissa | (word >> 63) << (8 * size - 1);
        for (size_t b = 0; b < size; b++)
            p[i * size + b] = (uint8_t)(v >> 8 * b);
    }
}

/* The elements of two arrays are the same, or both NaN: which NaN comes out is open. */
static void same_rows(const char *what, fd_dtype dtype, const fd_softmax *s, size_t n, const uint8_t *a, const uint8_t *b)
{
    for (size_t i = 0; i < n; i++) {
        const uint64_t u = element(dtype, a + i * fd_itemsize[dtype]), v = element(dtype, b + i * fd_itemsize[dtype]);
        if (u != v && !(is_nan(dtype, u) && is_nan(dtype, v)))
            fail("softmax, %s of %s, rows of %zu, factor %g, scale %g, bits %d, live %d, mask %d: element %zu is %#"
                 PRIx64 ", not %#" PRIx64, what, dtype_name[dtype], s->length, s->factor, s->scale, s->bits != NULL,
                 s->live != NULL, s->mask != NULL, i, u, v);
    }
}

/* Softmax of some rows, and back. */
static void test_softmax(fd_dtype dtype, size_t length, int tame)
{
    enum { ROWS = 3, MASKS = 2 };
    const size_t n = ROWS * length, size = fd_itemsize[dtype], mask_bytes = (length + 7) / 8 + FD_BITS_PAD;
    const int in_place = random64() & 1;
    memory x = take(n * size, 0, 0), dy = take(n * size, 0, 0), bits = take((n + 7) / 8 + FD_BITS_PAD, 0, 0);
    memory mask = take(MASKS * mask_bytes, 0, 0), w[2], y[2], dx[2];
    (tame ? fill_tame : fill)(dtype, x.at, n);
    (tame ? fill_tame : fill)(dtype, dy.at, n);
    for (size_t i = 0; i < bits.size; i++)
        bits.at[i] = (uint8_t)random64();
    for (size_t i = 0; i < mask.size; i++)
        mask.at[i] = (uint8_t)(random64() | random64());
    int64_t live[ROWS], mask_row[ROWS];
    for (int r = 0; r < ROWS; r++)
        live[r] = (int64_t)below(length + 1), mask_row[r] = (int64_t)below(MASKS);
    const fd_softmax s = {
        .bits = below(3) ? bits.at : NULL, .live = below(2) ? live : NULL, .mask = below(2) ? mask.at : NULL,
        .mask_row = mask_row, .mask_bytes = mask_bytes, .length = length,
        .factor = ldexp((double)below(64) - 16, -(int)below(7)), .scale = tame ? 1.25 : some_scale()};
    for (int i = 0; i < 2; i++) {
        const fd_kernels *k = i ? &fd_portable : &TABLE;
        w[i] = take(n * size, below(64), GUARD), y[i] = take(n * size, below(64), GUARD);
        dx[i] = take(n * size, below(64), GUARD);
        fd_softmax t = s;
        t.x = (char *)x.at, t.weights = (char *)w[i].at, t.y = (char *)y[i].at;
        if (in_place)
            t.x = memcpy(y[i].at, x.at, n * size);
        for (uint64_t r = 0; r < ROWS; r++)
            k->softmax[0][dtype](&t, r);
        t.x = (char *)dy.at, t.weights = (char *)w[0].at, t.y = (char *)dx[i].at; /* the same NaNs for both */
        if (in_place)
            t.x = memcpy(dx[i].at, dy.at, n * size);
        for (uint64_t r = 0; r < ROWS; r++)
            k->softmax[1][dtype](&t, r);
    }
    same_rows("y", dtype, &s, n, y[0].at, y[1].at);
    same_rows("weights", dtype, &s, n, w[0].at, w[1].at);
    same_rows("dx", dtype, &s, n, dx[0].at, dx[1].at);
    for (int i = 0; i < 2; i++) {
        if (!guarded(w[i]) || !guarded(y[i]) || !guarded(dx[i]))
            fail("softmax of %s, rows of %zu: %s wrote outside", dtype_name[dtype], length, i ? "portable" : TABLE.name);
        free(w[i].base), free(y[i].base), free(dx[i].base);
    }
    free(x.base), free(dy.base), free(bits.base), free(mask.base);
}

int main(int argc, char **argv)
{
    const long effort = argc > 2 ? strtol(argv[2], NULL, 10) : 100;
    const int answers = argc > 1 ? read_known(argv[1]) : 0;
    if (effort < 1 || !answers)
        return fprintf(stderr, "usage: %s KNOWN_ANSWERS [effort in percent, from 1 on]\n", *argv), 2;
    test_philox(answers);
    test_exact(20 * effort);
    const long draws = test_draw(200 * effort);
    test_noise(20 * effort);
    long runs = 0, noise_runs = 0;
    for (int op = 0; op < FD_OPS; op++)
        for (int dtype = 0; dtype < FD_DTYPES; dtype++) {
            for (long turn = 0; turn < (effort + 9) / 10; turn++)
                for (size_t n = 0; n <= 400; n++, runs++)
                    test_apply((fd_op)op, (fd_dtype)dtype, n, 0);
            for (long turn = 0; turn < effort; turn++, runs++)
                test_apply((fd_op)op, (fd_dtype)dtype, 1000 + below(4000), 0);
            for (long turn = 0; turn < (effort + 4) / 5 && fd_itemsize[dtype] == 2; turn++, runs++)
                test_apply((fd_op)op, (fd_dtype)dtype, 65536, 1);
        }
    const long forwards = test_forwards(effort);
    for (long c = 0; c < 40 * effort; c++)
        test_connect(c & 1 ? FD_FLOAT64 : FD_FLOAT32, c % 4 > 0);
    for (int dtype = 0; dtype < FD_DTYPES; dtype++) {
        for (size_t n = 1; n <= 200; n++)
            test_softmax((fd_dtype)dtype, n, n % 4 > 0);
        for (long turn = 0; turn < effort; turn++)
            test_softmax((fd_dtype)dtype, 1 + below(turn % 8 ? 400 : 4000), turn % 4 > 0);
    }
    for (int op = 0; op < FD_NOISE_OPS; op++)
        for (int dtype = 0; dtype < FD_DTYPES; dtype++) {
            for (size_t n = 0; n <= 200; n++, noise_runs++)
                test_apply_noise((fd_noise_op)op, (fd_dtype)dtype, n);
            for (long turn = 0; turn < effort; turn++, noise_runs++)
                test_apply_noise((fd_noise_op)op, (fd_dtype)dtype, 1 + below(FD_TILE));
        }
    printf("%s equals portable: %d known answers, %ld draws, %ld and %ld runs of %d ops x %d dtypes, "
           "%ld draws of noise, %ld runs of %d noise ops x %d dtypes\n",
           TABLE.name, answers, draws, runs, forwards, FD_OPS, FD_DTYPES, 20 * effort, noise_runs, FD_NOISE_OPS,
           FD_DTYPES);
    return 0;
}
