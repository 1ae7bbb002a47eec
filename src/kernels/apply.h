/* From keep bits to elements. Included once per element type, with
 *   TYPE    prefix of what simd/ offers for it in memory (contract_type.h has the list)
 *   COMPUTE prefix of what simd/ offers for it in registers
 *   SUFFIX  its name
 *   SIZE    bytes of an element
 *   SCALAR  the compute type in C
 */
#include "simd/contract_type.h"
#include "kernels/exponential.h"
#include "kernels/gelu.h"

/* A vector of y, whose elements are `at` bytes behind the first and have bits j ... of b. lanes: those that
 * have a gradient, if the op says so. */
ALWAYS_INLINE VEC NAME(vector, SUFFIX)(fd_op op, const fd_operands *o, size_t at, BITS b, int j,
                                       VEC scale, uint32_t *lanes)
{
    const int with_bias = fd_reads_bias(op) && op != FD_BIAS_GELU_BACKWARD;
    VEC v = op == FD_ZONEOUT || with_bias ? LOAD(o->x + at) : LOAD_KEPT(o->x + at, b, j);
    if (with_bias) /* and drops the sum, which is one step less than dropping both */
        v = CHOOSE(ADD(v, LOAD(o->bias + (at & ~o->bias_skip))), SET(0), b, j);
    if (op == FD_BIAS_GELU_DROPOUT)
        v = NAME(gelu, SUFFIX)(v);
    if (op != FD_ZONEOUT)
        v = MUL(v, scale);
    if (op == FD_BIAS_GELU_BACKWARD)
        v = MUL(v, NAME(gelu_slope, SUFFIX)(CHOOSE(ADD(LOAD(o->residual + at), LOAD(o->bias + (at & ~o->bias_skip))),
                                                   SET(0), b, j)));
    if (op == FD_ALPHA_DROPOUT)
        v = CHOOSE(ADD(v, SET(o->constants.shift)), SET(o->constants.dropped), b, j);
    if (op == FD_ZONEOUT)
        v = CHOOSE(v, LOAD(o->residual + at), b, j);
    if (fd_is_relu(op))
        v = RELU(v, lanes);
    if (op == FD_DROPOUT_ADD || op == FD_BIAS_DROPOUT_ADD)
        v = ADD(LOAD(o->residual + at), v);
    return v;
}

/* 32 elements from i on; `op` and `non_temporal` are constants where this is inlined. */
ALWAYS_INLINE void NAME(half_strip, SUFFIX)(fd_op op, const fd_operands *o, size_t i, BITS b,
                                            VEC scale, int non_temporal)
{
    uint32_t active = 0;
    for (int j = 0; j < 32; j += WIDTH) {
        const size_t at = (i + (size_t)j) * SIZE;
        uint32_t lanes = 0;
        const VEC v = NAME(vector, SUFFIX)(op, o, at, b, j, scale, &lanes);
        active |= lanes << j;
        if (non_temporal) {
            if ((size_t)j * SIZE % 64 == 0) /* then x comes from memory, too: 2 KiB ahead */
                prefetch((const char *)((uintptr_t)o->x + at + 2048));
            NT_STORE(o->y + at, v);
        } else
            STORE(o->y + at, v);
    }
    if (fd_is_relu(op))
        store_le32(o->active + i / 8, active);
}

/* 64 elements from i on. */
ALWAYS_INLINE void NAME(strip, SUFFIX)(fd_op op, const fd_operands *o, size_t i,
                                       const uint8_t *bits, unsigned shift, VEC scale,
                                       int non_temporal)
{
    NAME(half_strip, SUFFIX)(op, o, i, bits_load(bits, shift), scale, non_temporal);
    NAME(half_strip, SUFFIX)(op, o, i + 32, bits_load(bits + 4, shift), scale, non_temporal);
}

/* n <= 64 elements from i on, by the same road in padded copies. */
static inline void NAME(part, SUFFIX)(fd_op op, const fd_operands *o, size_t i, const uint8_t *bits,
                                      size_t bit, size_t n, VEC scale)
{
    char x[64 * SIZE] = {0}, residual[64 * SIZE], bias[64 * SIZE];
    uint8_t copy[16] = {0}, active[8];
    memcpy(x, o->x + i * SIZE, n * SIZE);
    if (fd_reads_residual(op)) {
        memset(residual, 0, sizeof residual);
        memcpy(residual, o->residual + i * SIZE, n * SIZE);
    }
    if (fd_reads_bias(op)) {
        memset(bias, 0, sizeof bias);
        memcpy(bias, o->bias + (i * SIZE & ~o->bias_skip), n * SIZE);
    }
    memcpy(copy, bits + bit / 8, (bit % 8 + n + 7) / 8);
    const fd_operands padded = {x, residual, bias, x, active, o->constants, 0, 0};
    NAME(strip, SUFFIX)(op, &padded, 0, copy, bit % 8, scale, 0);
    memcpy(o->y + i * SIZE, x, n * SIZE);
    if (fd_is_relu(op)) {
        memcpy(o->active + i / 8, active, (n + 7) / 8);
        if (n % 8) /* nothing beyond the last element */
            o->active[(i + n) / 8] &= (uint8_t)((1 << n % 8) - 1);
    }
}

ALWAYS_INLINE void NAME(apply, SUFFIX)(fd_op op, const fd_operands *operands, const uint8_t *bits,
                                       size_t bit, size_t n)
{
    const fd_operands o = *operands;
    const VEC scale = SET(o.constants.scale);
    /* Begin with what is before y's first cache line: a store across two lines costs two. Up to 8 KiB
     * that is cheaper than two parts. Not with relu, whose own bits would begin inside a byte then. */
    const int few = n < 256 || (!o.non_temporal && n * SIZE < 8192);
    size_t i = few || fd_is_relu(op) ? 0 : to_line(o.y) / SIZE;
    if (i)
        NAME(part, SUFFIX)(op, &o, 0, bits, bit, i, scale);
    const int non_temporal = o.non_temporal && (uintptr_t)(o.y + i * SIZE) % 64 == 0;
    const unsigned shift = (bit + i) % 8;
    bits += (bit + i) / 8;
    const size_t first = i;
    if (non_temporal)
        for (; i + 64 <= n; i += 64)
            NAME(strip, SUFFIX)(op, &o, i, bits + (i - first) / 8, shift, scale, 1);
    else
        for (; i + 64 <= n; i += 64)
            NAME(strip, SUFFIX)(op, &o, i, bits + (i - first) / 8, shift, scale, 0);
    if (i < n)
        NAME(part, SUFFIX)(op, &o, i, bits, shift + (i - first), n - i, scale);
}

/* An op beside a drawing: the bits are those of the operands. */
typedef struct {
    fd_operands o;
    const uint8_t *bits;
    unsigned shift;
    VEC scale;
} NAME(Beside, SUFFIX);

/* The operands from the i-th element on; i is a multiple of 8. */
static inline fd_operands NAME(operands_at, SUFFIX)(fd_op op, const fd_operands *operands, size_t i)
{
    fd_operands o = *operands;
    o.x += i * SIZE, o.y += i * SIZE;
    if (fd_reads_residual(op))
        o.residual += i * SIZE;
    if (fd_reads_bias(op))
        o.bias += i * SIZE & ~o.bias_skip;
    if (fd_is_relu(op))
        o.active += i / 8;
    return o;
}

/* A slot's part of the TURN elements from i on. */
ALWAYS_INLINE void NAME(beside, SUFFIX)(fd_op op, const NAME(Beside, SUFFIX) *b, size_t i, int slot,
                                        int non_temporal)
{
    UNROLL
    for (int h = slot * (TURN / 32) / SLOTS; h < (slot + 1) * (TURN / 32) / SLOTS; h++) {
        const BITS bits = bits_load(b->bits + i / 8 + 4 * h, b->shift);
        NAME(half_strip, SUFFIX)(op, &b->o, i + 32 * (size_t)h, bits, b->scale, non_temporal);
    }
}

/* Elements that were kept at first, once more: their bits are 0 by now. A 0 that compilers knew of would
 * let them leave out the conversions of 16-bit elements, which make NaNs quiet. */
ALWAYS_INLINE void NAME(drop, SUFFIX)(fd_op op, const NAME(Beside, SUFFIX) *b, const uint32_t *at,
                                      size_t n)
{
    const int second = fd_reads_residual(op);
    char x[WIDTH * SIZE] = {0}, residual[WIDTH * SIZE] = {0}, y[WIDTH * SIZE];
    const fd_operands o = {x, residual, x, y, NULL, b->o.constants, 0, 0};
    for (size_t k = 0; k < n; k++) {
        uint32_t lanes;
        if (second)
            memcpy(residual, b->o.residual + at[k] * SIZE, SIZE);
        if (second || k == 0) /* what depends on nothing is the same for all */
            STORE(y, NAME(vector, SUFFIX)(op, &o, 0, bits_load(b->bits + at[k] / 8, at[k] % 8), 0,
                                          b->scale, &lanes));
        memcpy(b->o.y + at[k] * SIZE, y, SIZE);
        if (fd_is_relu(op))
            b->o.active[at[k] / 8] &= (uint8_t)~(1 << at[k] % 8);
    }
}

/* The ops as functions: one road with a constant. */
#define APPLIED(name, op)                                                                         \
    static void NAME(name, SUFFIX)(const fd_operands *o, const uint8_t *bits, size_t bit, size_t n) \
    {                                                                                             \
        NAME(apply, SUFFIX)(op, o, bits, bit, n);                                                 \
    }
#define OP(name, op)                                                                              \
    APPLIED(name, op)                                                                             \
    ALWAYS_INLINE void NAME(name##_beside, SUFFIX)(const void *to, size_t i, int slot)            \
    {                                                                                             \
        NAME(beside, SUFFIX)(op, to, i, slot, 0);                                                 \
    }                                                                                             \
    ALWAYS_INLINE void NAME(name##_rest, SUFFIX)(const void *to, size_t begin, size_t end)        \
    {                                                                                             \
        const NAME(Beside, SUFFIX) *b = to;                                                       \
        const fd_operands o = NAME(operands_at, SUFFIX)(op, &b->o, begin);                        \
        NAME(name, SUFFIX)(&o, b->bits + begin / 8, 0, end - begin);                              \
    }                                                                                             \
    ALWAYS_INLINE void NAME(name##_drop, SUFFIX)(const void *to, const uint32_t *at, size_t n)    \
    {                                                                                             \
        NAME(drop, SUFFIX)(op, to, at, n);                                                        \
    }                                                                                             \
    static void NAME(name##_forward, SUFFIX)(const fd_draw *draw, fd_indices from, size_t n,      \
                                             const fd_operands *o, uint8_t *bits)                 \
    {                                                                                             \
        const NAME(Beside, SUFFIX) to = {*o, bits, 0, SET(o->constants.scale)};                   \
        if (ONE_LOOP && by_bytes(draw))                                                           \
            decide(draw, from, n, bits, 1, NAME(name##_beside, SUFFIX),                          \
                   NAME(name##_rest, SUFFIX), NAME(name##_drop, SUFFIX), &to);                    \
        else {                                                                                    \
            draw_bits(draw, from, n, bits);                                                       \
            NAME(name, SUFFIX)(o, bits, 0, n);                                                    \
        }                                                                                         \
    }
#define STREAMED(name, op)                                                                         \
    ALWAYS_INLINE void NAME(name##_past, SUFFIX)(const void *to, size_t i, int slot)              \
    {                                                                                             \
        NAME(beside, SUFFIX)(op, to, i, slot, 1);                                                 \
    }                                                                                             \
    static void NAME(name##_stream, SUFFIX)(const fd_draw *draw, fd_indices from, uint8_t *bits,  \
                                            const fd_operands *o, const uint8_t *before,          \
                                            size_t bit)                                           \
    {                                                                                             \
        const NAME(Beside, SUFFIX) to = {*o, before + bit / 8, bit % 8, SET(o->constants.scale)}; \
        if (ONE_LOOP && by_bytes(draw) && counted(from, 0, FD_TILE) == FD_TILE)                   \
            decide(draw, from, FD_TILE, bits, 0, NAME(name##_past, SUFFIX), no_rest, no_drop,    \
                   &to);                                                                          \
        else {                                                                                    \
            draw_bits(draw, from, FD_TILE, bits);                                                 \
            NAME(name, SUFFIX)(o, before, bit, FD_TILE);                                          \
        }                                                                                         \
    }
OP(dropout, FD_DROPOUT) STREAMED(dropout, FD_DROPOUT)
OP(dropout_add, FD_DROPOUT_ADD) STREAMED(dropout_add, FD_DROPOUT_ADD)
OP(bias_dropout_add, FD_BIAS_DROPOUT_ADD) STREAMED(bias_dropout_add, FD_BIAS_DROPOUT_ADD)
OP(relu_dropout, FD_RELU_DROPOUT) STREAMED(relu_dropout, FD_RELU_DROPOUT)
OP(alpha_dropout, FD_ALPHA_DROPOUT)
OP(zoneout, FD_ZONEOUT)
OP(bias_relu_dropout, FD_BIAS_RELU_DROPOUT)
#undef OP
#undef STREAMED

/* Beside so much arithmetic a loop that draws, too, would win nothing. */
APPLIED(bias_gelu_dropout, FD_BIAS_GELU_DROPOUT)
APPLIED(bias_gelu_backward, FD_BIAS_GELU_BACKWARD)
#undef APPLIED
static void NAME(bias_gelu_dropout_forward, SUFFIX)(const fd_draw *draw, fd_indices from, size_t n,
                                                    const fd_operands *o, uint8_t *bits)
{
    draw_bits(draw, from, n, bits);
    NAME(bias_gelu_dropout, SUFFIX)(o, bits, 0, n);
}

/* Ops that draw a tile and then apply the other: the code of one loop for each takes room in every wheel. */
#define STREAMED(name)                                                                            \
    static void NAME(name##_stream, SUFFIX)(const fd_draw *draw, fd_indices from, uint8_t *bits,  \
                                            const fd_operands *o, const uint8_t *before,          \
                                            size_t bit)                                           \
    {                                                                                             \
        draw_bits(draw, from, FD_TILE, bits);                                                     \
        NAME(name, SUFFIX)(o, before, bit, FD_TILE);                                              \
    }
STREAMED(alpha_dropout)
STREAMED(zoneout)
STREAMED(bias_relu_dropout)
STREAMED(bias_gelu_dropout)
#undef STREAMED

/* Some columns at a time, whose sums stay in registers. */
static void NAME(add_rows, SUFFIX)(const char *x, size_t rows, size_t row, double *sum, size_t n)
{
    enum { COLUMNS = F64_WIDTH < 4 ? 32 : 8 * F64_WIDTH, VECTORS = COLUMNS / F64_WIDTH };
    for (size_t i = 0, m; i < n; i += m) {
        char padded[COLUMNS * SIZE];
        double total[COLUMNS], *to = sum + i;
        F64_VEC v[VECTORS];
        m = n - i < COLUMNS ? n - i : COLUMNS;
        if (m < COLUMNS) {
            memset(padded, 0, sizeof padded);
            memset(total, 0, sizeof total);
            to = memcpy(total, sum + i, m * sizeof *total);
        }
        UNROLL
        for (int k = 0; k < VECTORS; k++)
            v[k] = F64_LOAD((const char *)(to + k * F64_WIDTH));
        for (size_t r = 0; r < rows; r++) {
            const char *at = x + (r * row + i) * SIZE;
            SCALAR value[COLUMNS];
            if (m < COLUMNS)
                at = memcpy(padded, at, m * SIZE);
            UNROLL
            for (int j = 0; j < COLUMNS; j += WIDTH)
                STORE_SCALARS((char *)(value + j), LOAD(at + j * SIZE));
            UNROLL
            for (int k = 0; k < VECTORS; k++)
#if SIZE == 8
                v[k] = F64_ADD(v[k], F64_LOAD((const char *)(value + k * F64_WIDTH)));
#else
                v[k] = F64_ADD(v[k], F64_FROM_F32(value + k * F64_WIDTH));
#endif
        }
        UNROLL
        for (int k = 0; k < VECTORS; k++)
            F64_STORE((char *)(to + k * F64_WIDTH), v[k]);
        if (m < COLUMNS)
            memcpy(sum + i, total, m * sizeof *total);
    }
}

#include "kernels/apply_noise.h"
#include "kernels/softmax.h"
#if SIZE >= 4
#include "kernels/connect.h"
#endif

#undef TYPE
#undef COMPUTE
#undef SUFFIX
#undef SIZE
#undef SCALAR
