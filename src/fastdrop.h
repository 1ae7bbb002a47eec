/* What the kernels of one instruction set offer, and the drivers that run them.
 *
 * Everything here follows the stream's definition (README, "The stream"): seed, call and element
 * index decide whether an element is kept. A kernel cannot fail; its caller has checked everything.
 */
#ifndef FASTDROP_H
#define FASTDROP_H

#include <stddef.h>
#include <stdint.h>

/* Elements drawn at a time: their random bytes, bits and operands stay in the L1 cache. */
#define FD_TILE 4096
/* A run may begin anywhere, but is drawn from the 128-element boundary below it. */
#define FD_ALIGN 128
#define FD_DRAW_MAX (FD_TILE + FD_ALIGN)
/* Kernels write whole vectors of blocks: up to 32 blocks of 16 bytes more than was asked for. */
#define FD_SLACK 512
#define FD_BITS_BYTES (FD_DRAW_MAX / 8 + FD_SLACK)
/* Room behind the last bit of every packed mask: it is read and written in words. */
#define FD_BITS_PAD 8
#define FD_MAX_DIMS 64 /* NPY_MAXDIMS of NumPy 2 */

/* The draw of one call: which keystream, and how it decides. */
typedef struct {
    uint64_t seed, call;
    uint64_t threshold; /* T = round(p * 2^32), 0 ... 2^32 */
} fd_stream;

fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p);
double fd_scale(double p); /* 1 / (1 - p); 0 at p = 1 */

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
    FD_OPS
} fd_op;

/* n elements of each, contiguous; y may be x or residual. */
typedef struct {
    const char *x, *residual, *bias;
    char *y;
    uint8_t *active; /* packed bits, from bit 0 on: kept, and not (x <= 0) */
    double shift, dropped;
} fd_operands;

/* Bit `bit` of `bits` belongs to the first element. stream: write y past the caches. */
typedef void fd_apply_fn(const fd_operands *operands, const uint8_t *bits, size_t bit, size_t n,
                         double scale, int stream);

/* Continuous noise, by the domain its words come from: standard normal, standard logistic. */
typedef enum { FD_NORMAL = 3, FD_LOGISTIC = 4 } fd_noise;
#define FD_NOISE_BLOCK 4 /* variates of a block of the keystream */
/* Floats of room for n variates: they come in whole vectors of blocks. */
#define FD_NOISE_ROOM(n) ((n) + 2 * FD_NOISE_BLOCK + FD_SLACK / 4)

/* What is done with noise e. sigma is an array or, with sigma_step 0, its first 64 elements for all;
 * it has the compute type, float64 for float64, else float32. With a = (logit + e) / temperature,
 * z = 1 / (1 + exp(-a)) is the relaxed drop mask, and w = (1 - z) * scale. */
typedef enum {
    FD_NOISE_SCALE,       /* y = x * (1 + sigma * e) */
    FD_NOISE_ADD,         /* y = x + sigma * e */
    FD_NOISE_GRADIENT,    /* t = x * g * e: of sigma, where y = x * (1 + sigma * e) */
    FD_CONCRETE,          /* y = x * w */
    FD_CONCRETE_GRADIENT, /* t = x * g * w * (p - z / temperature): of logit */
    FD_NOISE_OPS
} fd_noise_op;

typedef struct {
    const char *x, *g, *sigma;
    const float *noise;
    char *y; /* t has the compute type */
    int sigma_step;
    double logit, p, inverse_temperature, scale;
} fd_noise_operands;

typedef void fd_noise_fn(const fd_noise_operands *operands, size_t n);
/* Rows of a linear layer's weights, `padded` elements apart: n of them, and zeros up to the next
 * multiple of 32. Keep bit r * row_bits + o belongs to at[r][o]. */
typedef struct {
    const char *at;
    size_t rows, n, padded, row_bits;
} fd_weights;

typedef struct {
    const char *name;
    /* Keep bits of n <= FD_DRAW_MAX elements from index start (a multiple of FD_ALIGN);
     * `bits` has room for FD_BITS_BYTES. ahead: the same elements of the array they will be applied
     * to, which is fetched into the cache meanwhile; itemsize 0 if there is none. */
    void (*draw)(const fd_stream *stream, uint64_t start, size_t n, uint8_t *bits,
                 const char *ahead, size_t itemsize);
    fd_apply_fn *apply[FD_OPS][FD_DTYPES];
    /* n variates from 4 * block on, at most FD_TILE + 4; noise has FD_NOISE_ROOM(n). */
    void (*noise)(fd_noise kind, const fd_stream *stream, uint64_t block, size_t n, float *noise,
                  const char *ahead, size_t itemsize);
    fd_noise_fn *apply_noise[FD_NOISE_OPS][FD_DTYPES];
    /* sum[i] += x[i] */
    void (*add_to[FD_DTYPES])(const char *x, double *sum, size_t n);
    /* y[o] += sum over r of kept(w[r][o]) * x[r]. Bit `bit` of `bits` belongs to w[0][0]; 32 bits are
     * read for each of w's groups of 32 columns. float32 and float64. */
    void (*connect[FD_FLOAT64 + 1])(const fd_weights *w, const uint8_t *bits, size_t bit,
                                    const void *x, char *y);
    /* dx[r] += sum over o of kept(w[r][o]) * g[o], unless dx is NULL; dw[r][o] += kept(g[o]) * x[r].
     * g and the rows of dw are padded as w is. */
    void (*connect_back[FD_FLOAT64 + 1])(const fd_weights *w, const uint8_t *bits, size_t bit,
                                         const char *g, const void *x, void *dx, char *dw);
    /* n blocks of Philox4x32 with 7 or 10 rounds: the hook of the known-answer tests. */
    void (*philox)(const uint32_t *counters, const uint32_t key[2], int rounds, size_t n,
                   uint32_t *words);
} fd_kernels;

/* The i-th of the tables that this CPU can run, the fastest first; NULL behind the last. */
const fd_kernels *fd_kernels_at(int i);

/* One axis of a walk over x and y: length, strides of x and y in bytes, and the stride in the
 * packed mask in elements (0 where the axis shares its draw). */
typedef struct {
    int64_t n, x, y, bit;
} fd_axis;

/* What all drivers need: which kernels, on how many threads, and from which size of y on to write
 * past the caches. */
typedef struct {
    const fd_kernels *kernels;
    int threads;
    uint64_t stream_bytes;
} fd_machine;

/* Bytes of the last-level cache. */
uint64_t fd_cache_bytes(void);

/* The compiler that made the kernels. */
const char *fd_compiler(void);

/* Contiguous: draw and apply in one pass. start: index of element 0. bias repeats after bias_length
 * elements and is FD_BIAS_ROOM longer, so that a tile finds its part in one piece. saved: the n keep
 * bits, or NULL. */
#define FD_BIAS_ROOM (FD_TILE + 64)
void fd_forward(fd_machine m, fd_stream stream, uint64_t start, fd_op op, fd_dtype dtype,
                fd_operands operands, size_t bias_length, uint8_t *saved, size_t n, double scale);

/* Contiguous, from n packed bits. */
void fd_backward(fd_machine m, fd_dtype dtype, const char *dy, char *dx, const uint8_t *bits,
                 size_t n, double scale);

/* fd_backward, and the sums over the rows of dx, which are `row` elements long, in one pass; with
 * bits == NULL the sums alone. sums: FD_PARTS * row float64, zero, the result in the first row. The
 * order of the additions depends on n and row only. */
enum { FD_PARTS = 32 };
void fd_backward_sums(fd_machine m, fd_dtype dtype, const char *dy, char *dx, const uint8_t *bits,
                      size_t n, size_t row, double *sums, double scale);

/* FD_PARTS rows to the first. */
void fd_sum_parts(size_t row, double *sums);

/* Draw a block of the mask array into packed bits, in the block's C order. shape and stride (in
 * elements of the whole mask array) describe the block, start is the index of its first element. */
void fd_draw(fd_machine m, fd_stream stream, uint64_t start, int ndim, const int64_t *shape,
             const int64_t *stride, uint8_t *bits);

/* The variates of a block of the noise array, as fd_draw; the last axis has stride 1 or length 1. */
void fd_draw_noise(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start, int ndim,
                   const int64_t *shape, const int64_t *stride, float *noise);

/* Contiguous: draw noise and do `op`. operands.noise: what to take instead of drawing, or NULL, with
 * 64 floats of room behind it. sigma repeats after sigma_length elements as bias does in fd_forward. */
void fd_noise_forward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start, fd_noise_op op,
                      fd_dtype dtype, fd_noise_operands operands, size_t sigma_length, size_t n);

/* Contiguous, in one pass: dx = op(g), and the gradient of the op's parameter: its n elements to t, or,
 * with t == NULL, element i added to sums[i % row] as in fd_backward_sums. dx may be NULL. */
void fd_noise_backward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start,
                       fd_noise_op op, fd_dtype dtype, fd_noise_operands operands,
                       size_t sigma_length, char *dx, char *t, size_t row, double *sums, size_t n);

/* n rows of a table, of `row` elements each, by number: y = table[ids] * scale where bit ids[i] says
 * kept, else 0. Contiguous. */
void fd_lookup(fd_machine m, fd_dtype dtype, const char *table, const int64_t *ids,
               const uint8_t *bits, char *y, size_t n, size_t row, double scale);

/* Back: row i of x is added to row ids[i] of sums. */
void fd_add_rows(fd_machine m, fd_dtype dtype, const char *x, const int64_t *ids, size_t n,
                 size_t row, double *sums);

/* Apply packed bits to any layout of x and y; operands beside them only if all are contiguous. */
void fd_apply(fd_machine m, fd_op op, fd_dtype dtype, fd_operands operands, size_t bias_length,
              const uint8_t *bits, int ndim, const fd_axis *axis, double scale);

/* DropConnect: a linear layer each of whose examples keeps other weights. C-contiguous float32 or
 * float64; bias NULL: none is dropped. An example's mask is that of the weights, then that of the
 * bias. What is computed are the sums, not multiplied by the scale. */
typedef struct {
    fd_dtype dtype;
    size_t batch, inputs, outputs;
    const char *x, *weight, *bias; /* (batch, inputs), (inputs, outputs), (outputs) */
    char *y;                       /* (batch, outputs) */
    const char *dy;                /* backward: as y */
    char *dx, *dweight, *dbias;    /* as x (zero at first), weight, bias */
} fd_linear;

/* first: number of the first example, from which its mask's place follows. */
void fd_connect(fd_machine m, fd_stream stream, uint64_t first, const fd_linear *linear);
void fd_connect_back(fd_machine m, fd_stream stream, uint64_t first, const fd_linear *linear);

/* Words that hold the keep bits of an example; what is behind the last bit is 0. */
#define FD_WORDS(bits) (((bits) + 63) / 64)

/* The feature maps of an example, and the blocks dropped in them, which are no larger. */
typedef struct {
    size_t maps, height, width, block_height, block_width;
} fd_blocks;

/* Keep bits of all examples. A zero of `seeds` begins a block, which extends right and down from it:
 * an array of shape (examples, maps, height - block_height + 1, width - block_width + 1). */
void fd_drop_blocks(fd_machine m, fd_blocks shape, size_t examples, const uint8_t *seeds,
                    uint64_t *keep);

/* FD_DROPOUT in any layout. Each example, an index of the first axis, has its own FD_WORDS(bits) and
 * scale = bits / kept bits, or 0 if there are none. */
void fd_apply_examples(fd_machine m, fd_dtype dtype, const char *x, char *y, const uint64_t *keep,
                       size_t bits, int ndim, const fd_axis *axis);

#endif
