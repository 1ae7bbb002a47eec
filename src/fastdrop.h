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

typedef enum { FD_FLOAT32, FD_FLOAT64, FD_DTYPES } fd_dtype;
#define FD_ITEMSIZE {4, 8}

/* y = keep ? x * scale : 0 over n elements; bit `bit` of `bits` is the first. y may be x. */
typedef void fd_apply_fn(const char *x, char *y, const uint8_t *bits, size_t bit, size_t n,
                         double scale);

typedef struct {
    const char *name;
    /* Keep bits of n <= FD_DRAW_MAX elements from index start (a multiple of FD_ALIGN);
     * `bits` has room for FD_BITS_BYTES. ahead: the same elements of the array they will be applied
     * to, which is fetched into the cache meanwhile; itemsize 0 if there is none. */
    void (*draw)(const fd_stream *stream, uint64_t start, size_t n, uint8_t *bits,
                 const char *ahead, size_t itemsize);
    fd_apply_fn *apply[FD_DTYPES];
    /* n blocks of Philox4x32 with 7 or 10 rounds: the hook of the known-answer tests. */
    void (*philox)(const uint32_t *counters, const uint32_t key[2], int rounds, size_t n,
                   uint32_t *words);
} fd_kernels;

fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p);
double fd_scale(double p); /* 1 / (1 - p); 0 at p = 1 */

/* The i-th of the tables that this CPU can run, the fastest first; NULL behind the last. */
const fd_kernels *fd_kernels_at(int i);

/* One axis of a walk over x and y: length, strides of x and y in bytes, and the stride in the
 * packed mask in elements (0 where the axis shares its draw). */
typedef struct {
    int64_t n, x, y, bit;
} fd_axis;

/* Contiguous: draw and apply in one pass. saved (n bits) may be NULL. start: index of element 0. */
void fd_dropout(const fd_kernels *k, fd_stream stream, uint64_t start, fd_dtype dtype,
                const char *x, char *y, uint8_t *saved, size_t n, double scale);

/* Draw a block of the mask array into packed bits, in the block's C order. shape and stride (in
 * elements of the whole mask array) describe the block, start is the index of its first element. */
void fd_draw(const fd_kernels *k, fd_stream stream, uint64_t start, int ndim, const int64_t *shape,
             const int64_t *stride, uint8_t *bits);

/* Apply packed bits to any layout. The axes are reordered and merged in place. */
void fd_apply(const fd_kernels *k, fd_dtype dtype, const char *x, char *y, const uint8_t *bits,
              int ndim, fd_axis *axis, double scale);

#endif
