/* What the kernels of one instruction set offer.
 *
 * Everything here follows the stream's definition (README, "The stream"): seed, call and element
 * index decide whether an element is kept. A kernel cannot fail; its caller has checked everything.
 */
#ifndef FASTDROP_TABLE_H
#define FASTDROP_TABLE_H

#include "paddings.h"
#include <stddef.h>
#include <stdint.h>

/* The draw of one call: which keystream, and how it decides. */
typedef struct {
    uint64_t seed, call;
    uint64_t threshold; /* T = round(p * 2^32), 0 ... 2^32 */
} fd_draw;

/* Which elements of a mask array are drawn: those from index `start` on; or pieces, FD_ALIGN elements from
 * each of these indices on, and FD_PIECE_PAD more. All are multiples of a block of Philox: of 16, and at
 * p = 1/2 of FD_ALIGN. */
typedef struct {
    uint64_t start;
    const uint64_t *piece; /* NULL: none */
} fd_indices;

/* Memory that is read after a draw, `step` bytes per element drawn; it is fetched into the cache
 * meanwhile. Step 0: none but `at`, which is then anything at hand. */
typedef struct {
    const char *at;
    size_t step;
} fd_ahead;

typedef enum { FD_FLOAT32, FD_FLOAT64, FD_FLOAT16, FD_BFLOAT16, FD_DTYPES } fd_dtype;
static const size_t fd_itemsize[FD_DTYPES] = {4, 8, 2, 2};

/* kept(v) is v where the element is kept, else +0. 16-bit types are computed in float32 and rounded
 * once, at the end. */
typedef enum {
    FD_DROPOUT,          /* y = kept(x) * scale */
    FD_DROPOUT_ADD,      /* y = residual + kept(x) * scale */
    FD_BIAS_DROPOUT_ADD, /* y = residual + kept(x + bias) * scale */
    FD_RELU_DROPOUT,     /* y = relu(kept(x) * scale); active: which elements have a gradient */
    FD_ALPHA_DROPOUT,    /* y = x * scale + shift where kept, else `dropped` */
    FD_ZONEOUT,          /* y = x where kept, else residual */
    FD_BIAS_RELU_DROPOUT, /* as FD_RELU_DROPOUT, of x + bias */
    FD_BIAS_GELU_DROPOUT, /* y = gelu(kept(x + bias)) * scale */
    FD_DRAWN_OPS,
    FD_BIAS_GELU_BACKWARD = FD_DRAWN_OPS, /* y = kept(x) * scale * gelu'(kept(residual + bias)) */
    FD_OPS
} fd_op;

/* What an op reads beside x, and whether it writes `active`. */
static inline int fd_reads_residual(fd_op op)
{
    return op == FD_DROPOUT_ADD || op == FD_BIAS_DROPOUT_ADD || op == FD_ZONEOUT || op == FD_BIAS_GELU_BACKWARD;
}
static inline int fd_reads_bias(fd_op op)
{
    return op == FD_BIAS_DROPOUT_ADD || op == FD_BIAS_RELU_DROPOUT || op == FD_BIAS_GELU_DROPOUT ||
           op == FD_BIAS_GELU_BACKWARD;
}
static inline int fd_is_relu(fd_op op) { return op == FD_RELU_DROPOUT || op == FD_BIAS_RELU_DROPOUT; }

typedef struct {
    double scale, shift, dropped;
} fd_constants;

/* n elements of each, contiguous; y may be x or residual. What an op does not name is not read. */
typedef struct {
    const char *x, *residual, *bias;
    char *y;
    uint8_t *active; /* packed bits, from bit 0 on: kept, and not (x <= 0) */
    fd_constants constants;
    int non_temporal; /* write y past the caches */
    size_t bias_skip; /* bits that do not count in how many bytes of bias are behind its first: where it repeats
                         after a power of two, it is read from a part of it that stays in the L1 cache */
} fd_operands;

/* Bit `bit` of `bits` belongs to the first element. */
typedef void fd_apply_fn(const fd_operands *operands, const uint8_t *bits, size_t bit, size_t n);

/* Draw and apply in one loop n elements; y is neither the residual nor written past the caches. bits: where
 * they go, FD_BITS_PAD bytes longer. */
typedef void fd_forward_fn(const fd_draw *draw, fd_indices from, size_t n,
                           const fd_operands *operands, uint8_t *bits);

/* Draw a tile while another is applied, whose bits `before` are there: bit `bit` is the first's. y begins
 * at a cache line. */
typedef void fd_stream_fn(const fd_draw *draw, fd_indices from, uint8_t *bits,
                          const fd_operands *operands, const uint8_t *before, size_t bit);

/* Continuous noise, by the domain its words come from: standard normal, standard logistic. */
typedef enum { FD_NORMAL = 3, FD_LOGISTIC = 4 } fd_noise;

/* What is done with noise e. With a = (logit + e) / temperature, z = 1 / (1 + exp(-a)) is the relaxed
 * drop mask, and w = (1 - z) * scale. */
typedef enum {
    FD_NOISE_SCALE,       /* y = x * (1 + sigma * e) */
    FD_NOISE_ADD,         /* y = x + sigma * e */
    FD_NOISE_GRADIENT,    /* t = x * g * e: of sigma, where y = x * (1 + sigma * e) */
    FD_CONCRETE,          /* y = x * w */
    FD_CONCRETE_GRADIENT, /* t = x * g * w * (p - z / temperature): of logit */
    FD_NOISE_OPS
} fd_noise_op;

typedef struct {
    double sigma; /* of all elements, where there is no array of sigma */
    double logit, p, inverse_temperature, scale;
} fd_noise_constants;

/* sigma and t have the compute type: float64 for float64, else float32. */
typedef struct {
    const char *x, *g, *sigma;
    const float *noise;
    char *y; /* or t */
    fd_noise_constants constants;
} fd_noise_operands;

typedef void fd_noise_fn(const fd_noise_operands *operands, size_t n);

/* Rows of a linear layer's weights, `padded` elements apart: n of them, and zeros up to the next
 * multiple of FD_GROUP. Keep bit r * row_bits + o belongs to at[r][o]. */
typedef struct {
    const char *at;
    size_t rows, n, padded, row_bits;
} fd_weights;

/* Rows of `length` elements. w = softmax(x * factor) of the elements that take part, of others 0: of row i those
 * before live[i] whose bit is set in row mask_row[i] of `mask`. y = kept(w) * scale. */
typedef struct {
    const char *x;        /* backward: dy */
    char *weights;        /* w; backward reads it */
    char *y;              /* may be x; backward: dx */
    const uint8_t *bits;  /* keep bits; NULL: all are kept */
    const int64_t *live;  /* NULL: the whole row */
    const uint8_t *mask;  /* NULL: all; its rows are mask_bytes apart, FD_BITS_PAD of which are room */
    const int64_t *mask_row;
    size_t mask_bytes, length;
    double factor, scale;
} fd_softmax;

typedef struct {
    const char *name;
    /* Keep bits of n elements; `bits` is FD_BITS_PAD bytes longer. */
    void (*draw_bits)(const fd_draw *draw, fd_indices from, size_t n, uint8_t *bits);
    fd_apply_fn *apply[FD_OPS][FD_DTYPES];
    fd_forward_fn *forward[FD_DRAWN_OPS][FD_DTYPES];
    fd_stream_fn *stream[FD_DRAWN_OPS][FD_DTYPES];
    /* n variates from 4 * block on, at most FD_TILE + 4; noise is FD_NOISE_PAD longer. */
    void (*draw_noise)(fd_noise kind, const fd_draw *draw, uint64_t block, size_t n, float *noise,
                       fd_ahead ahead);
    fd_noise_fn *apply_noise[FD_NOISE_OPS][FD_DTYPES];
    /* sum[i] += x[r * row + i], n columns of one row after the other, in float64. */
    void (*add_rows[FD_DTYPES])(const char *x, size_t rows, size_t row, double *sum, size_t n);
    /* y[o] += sum over r of kept(w[r][o]) * x[r]. Bit `bit` of `bits` belongs to w[0][0]; FD_GROUP
     * bits are read for each group of w's columns. float32 and float64. */
    void (*connect[FD_FLOAT64 + 1])(const fd_weights *w, const uint8_t *bits, size_t bit,
                                    const void *x, char *y);
    /* dx[r] += sum over o of kept(w[r][o]) * g[o], unless dx is NULL; dw[r][o] += kept(g[o]) * x[r].
     * g and the rows of dw are padded as w is. */
    void (*connect_back[FD_FLOAT64 + 1])(const fd_weights *w, const uint8_t *bits, size_t bit,
                                         const char *g, const void *x, void *dx, char *dw);
    /* A row, forward and back. */
    void (*softmax[2][FD_DTYPES])(const fd_softmax *s, uint64_t row);
    /* n blocks of Philox4x32 with 7 or 10 rounds: the hook of the known-answer tests. */
    void (*philox)(const uint32_t *counters, const uint32_t key[2], int rounds, size_t n,
                   uint32_t *words);
} fd_kernels;

#endif
