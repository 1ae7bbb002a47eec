/* What the drivers offer: from whole arrays to tiles that a kernel takes, on several threads.
 *
 * Nothing can fail here either; who calls has checked everything. */
#ifndef FASTDROP_H
#define FASTDROP_H

#include "kernels/table.h"

#define FD_MAX_DIMS 64 /* NPY_MAXDIMS of NumPy 2 */

/* The i-th of the tables that this CPU can run, the fastest first; NULL behind the last. */
const fd_kernels *fd_kernels_at(int i);
/* Bytes of the last-level cache. */
uint64_t fd_cache_bytes(void);
/* The compiler that made the kernels. */
const char *fd_compiler(void);

/* Which kernels, on how many threads, and from how many bytes of y on to write past the caches. */
typedef struct {
    const fd_kernels *kernels;
    int threads;
    uint64_t non_temporal_bytes;
} fd_machine;

fd_draw fd_draw_of(uint64_t seed, uint64_t call, double p);
double fd_scale(double p); /* 1 / (1 - p); 0 at p = 1 */

/* Rows of consecutive elements, of a length that is a multiple of FD_ALIGN, as are `start` of the task and
 * `stride`: row i begins number[i] times `stride` behind it. */
typedef struct {
    uint64_t length; /* 0: all elements follow each other */
    uint64_t stride;
    const int64_t *number; /* NULL: row i has the number i */
} fd_rows;

/* An op on n elements: what all drivers of ops take. What one does not name it does not read. */
typedef struct {
    fd_machine machine;
    fd_draw draw;
    uint64_t start; /* index of the first element in the mask array */
    fd_rows rows;   /* which of its elements; for fd_forward alone */
    fd_op op;
    fd_dtype dtype;
    fd_operands operands; /* the first elements; whether y goes past the caches is for the driver */
    size_t bias_length;   /* bias repeats after so many, and is FD_REPEAT_PAD longer */
    size_t n;
} fd_task;

/* `bias_skip` for a bias of the task's length and room: of a power of two, as long as two of it fit there. */
size_t fd_bias_skip(const fd_task *task);

/* Contiguous: draw and apply in one pass. saved: the n keep bits, or NULL. */
void fd_forward(const fd_task *task, uint8_t *saved);

/* Contiguous: apply n packed bits. */
void fd_backward(const fd_task *task, const uint8_t *bits);

/* Into how many parts rows are cut that are added up, at least 1. */
enum { FD_PARTS = 32 };
uint64_t fd_parts_of(uint64_t rows);

/* fd_backward, and the sums over the rows of y, which are `row` elements long, in one pass; with
 * bits == NULL the sums alone. sums: fd_parts_of(rows) * row float64, the result in the first row. The
 * order of the additions depends on n and row only. */
void fd_backward_sums(const fd_task *task, const uint8_t *bits, size_t row, double *sums);

/* So many rows to the first. */
void fd_sum_parts(fd_machine m, size_t row, size_t parts, double *sums);

/* n rows of the table x, of `row` elements each, by number: y = x[ids] * scale where bit ids[i] says
 * kept, else 0. Contiguous. */
void fd_lookup(const fd_task *task, const int64_t *ids, const uint8_t *bits, size_t row);

/* Back: row i of x is added to row ids[i] of sums. */
void fd_add_rows(fd_machine m, fd_dtype dtype, const char *x, const int64_t *ids, size_t n,
                 size_t row, double *sums);

/* One axis of a walk over x and y: length, strides of x and y in bytes, and the stride in the
 * packed mask in elements (0 where the axis shares its draw). */
typedef struct {
    int64_t n, x, y, bit;
} fd_axis;

/* Apply packed bits to any layout of x and y; operands beside them only if all are contiguous. */
void fd_apply(const fd_task *task, const uint8_t *bits, int ndim, const fd_axis *axis);

/* Part of a mask array: index of its first element, shape, and strides in elements of the whole.
 * rows: numbers of the rows along axis 0; NULL: they follow each other. */
typedef struct {
    uint64_t start;
    const int64_t *rows;
    int ndim;
    int64_t shape[FD_MAX_DIMS], stride[FD_MAX_DIMS];
} fd_place;

/* A place as rows; 0 if it is none. */
int fd_rows_of(const fd_place *place, fd_rows *rows);

/* The packed bits of a place, in its C order. */
void fd_draw_bits(fd_machine m, const fd_draw *draw, const fd_place *place, uint8_t *bits);

/* The variates of a place of the noise array, whose last axis has stride 1 or length 1. */
void fd_draw_noise(fd_machine m, const fd_draw *draw, fd_noise kind, const fd_place *place,
                   float *noise);

/* Any layout: draw the mask and apply it, a piece of at most `most` elements at a time if it has more;
 * for `bits` there is room for so many. axis[d].bit: 0 where the axis shares its draw. */
void fd_forward_walk(const fd_task *task, const fd_place *place, const fd_axis *axis, uint64_t most,
                     uint8_t *bits);

/* A noise op on n contiguous elements. */
typedef struct {
    fd_machine machine;
    fd_draw draw;
    uint64_t start;
    fd_noise kind;
    fd_noise_op op;
    fd_dtype dtype;
    fd_noise_operands operands; /* noise: what to take instead of drawing, or NULL */
    size_t sigma_length;        /* sigma, if an array, repeats as bias does in fd_task */
    size_t n;
} fd_noise_task;

/* Draw noise and do the op. */
void fd_noise_forward(const fd_noise_task *task);

/* In one pass: dx = op(g), and the gradient of the op's parameter: its n elements to t, or, with
 * t == NULL, element i added to sums[i % row] as in fd_backward_sums. dx may be NULL. */
void fd_noise_backward(const fd_noise_task *task, char *dx, char *t, size_t row, double *sums);

/* Softmax and dropout of rows. */
typedef struct {
    fd_machine machine;
    int back;
    fd_dtype dtype;
    fd_softmax operands;
    uint64_t rows;
} fd_softmax_task;

void fd_softmax_rows(const fd_softmax_task *task);

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
    char *room;                    /* fd_connect_room bytes */
} fd_linear;

/* What its threads work in, which is for the caller to find memory for. */
size_t fd_connect_room(fd_machine m, const fd_linear *linear);

/* first: number of the first example, from which its mask's place follows. */
void fd_connect(fd_machine m, const fd_draw *draw, uint64_t first, const fd_linear *linear);
void fd_connect_back(fd_machine m, const fd_draw *draw, uint64_t first, const fd_linear *linear);

/* Words that hold the keep bits of an example; what is behind the last bit is 0. */
#define FD_WORDS(bits) (((bits) + 63) / 64)

/* The feature maps of an example, and the squares that DropBlock drops in them, no larger. */
typedef struct {
    size_t maps, height, width, square_height, square_width;
} fd_squares;

/* Keep bits of all examples. A zero of `seeds` begins a square, which extends right and down from it:
 * an array of shape (examples, maps, height - square_height + 1, width - square_width + 1). */
void fd_drop_squares(fd_machine m, fd_squares shape, size_t examples, const uint8_t *seeds,
                     uint64_t *keep);

/* FD_DROPOUT in any layout. Each example, an index of the first axis, has its own FD_WORDS(bits) and
 * scale = bits / kept bits, or 0 if there are none. */
void fd_apply_examples(const fd_task *task, const uint64_t *keep, size_t bits, int ndim,
                       const fd_axis *axis);

#endif
