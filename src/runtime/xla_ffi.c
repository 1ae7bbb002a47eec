/* Ops that drop elements, and noise, as a custom call of XLA, which JAX compiles to.
 *
 * XLA promises that this interface (xla/ffi/api/c_api.h, version 0.x) is binary compatible, and checks
 * the version that a handler names. So that building needs no JAX, what is used of it is declared here:
 * every structure begins with its size and extensions, and new fields come at the end.
 */
#include "runtime/api.h"
#include "runtime/settings.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { XLA_MAJOR = 0, XLA_MINOR = 1 };
enum { XLA_METADATA = 1 }; /* type of extension */
enum { XLA_INVALID_ARGUMENT = 3, XLA_RESOURCE_EXHAUSTED = 8 };
enum { XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

typedef struct Extension {
    size_t size;
    int type;
    struct Extension *next;
} Extension;

typedef struct {
    size_t size;
    Extension *extensions;
    int major, minor;
} Version;

typedef struct {
    Extension base;
    struct {
        size_t size;
        Version version;
        uint32_t traits;
    } *metadata;
} Metadata;

typedef struct {
    size_t size;
    Extension *extensions;
    int dtype;
    void *data;
    int64_t rank, *dims;
} Buffer;

typedef struct {
    size_t size;
    Extension *extensions;
    int64_t count;
    int *types;
    Buffer **buffers;
} Buffers;

typedef struct {
    int dtype;
    void *value;
} Scalar;

typedef struct {
    int dtype;
    size_t size;
    void *data;
} Array;

typedef struct {
    size_t size;
    Extension *extensions;
    int64_t count;
    int *types;
    void **names;
    void **values; /* sorted by name */
} Attributes;

typedef struct {
    size_t size;
    Extension *extensions;
    const char *message;
    int code;
} Error;

typedef struct {
    size_t size;
    Extension *extensions;
    Version version;
    const void *internal;
    void *(*error_create)(Error *);
} Api;

typedef struct {
    size_t size;
    Extension *extensions;
    const Api *api;
    void *context;
    int stage;
    Buffers args, results;
    Attributes attributes;
} CallFrame;

static int dtype_of(int xla)
{
    switch (xla) {
    case XLA_F16: return FASTDROP_FLOAT16;
    case XLA_BF16: return FASTDROP_BFLOAT16;
    case XLA_F64: return FASTDROP_FLOAT64;
    default: return FASTDROP_FLOAT32;
    }
}

/* What `fastdrop.adapters.jax` asks for, by number; the first are those of fd_op. */
enum { GAUSSIAN_DROPOUT = 32, GAUSSIAN_NOISE, ALPHA_SLOPE };

/* A draw in uint32 words: low and high of the seed and of the call, whether one of them was negative,
 * three float32 whose sum in float64 is the rate (or the noise's deviation), and the low and high words of
 * the index where x begins along each axis. Of one of several equal shards its number along each axis
 * follows. */
enum { SEED = 0, CALL = 2, NEGATIVE = 4, RATE = 5, START = 8 };

/* Attributes: shape of x, number of the op, a bit per axis that shares its draw, shape of the array whose
 * mask it is. Shapes and bits count from x's last axis: axes in front of those are vmap's. */
enum { ATTRIBUTE_OF, ATTRIBUTE_OP, ATTRIBUTE_SHARED, ATTRIBUTE_WHOLE };

typedef struct {
    int op;
    int ndim, axes; /* axes of an array with one draw, and how many of them, the last, are x's own */
    uint64_t shared;
    const int64_t *dims, *of, *whole;
    int cut; /* whether this is one of several shards */
    fd_dtype dtype;
    size_t n;
} Call;

static uint64_t word64(const uint32_t *word) { return word[0] | (uint64_t)word[1] << 32; }

static void *failed(const CallFrame *frame, int code, const char *message)
{
    Error error = {sizeof error, NULL, message, code};
    return frame->api->error_create(&error);
}

/* Where a draw says that y lies; 0 if the region does not contain x. */
static int block_of(const Call *c, const uint32_t *draw, fd_block *block)
{
    const uint32_t *const shard = c->cut ? draw + START + 2 * c->axes : NULL;
    *block = (fd_block){.ndim = c->ndim};
    for (int d = 0; d < c->ndim; d++) {
        const int a = d - (c->ndim - c->axes); /* x's own, or negative */
        const int64_t n = c->dims[d], start = a < 0 ? 0 : (int64_t)word64(draw + START + 2 * a);
        if (a >= 0 && (start < 0 || start > c->whole[a] - c->of[a]))
            return 0;
        block->shared |= (uint64_t)(a < 0 || (c->shared >> a & 1)) << d;
        block->shape[d] = n, block->whole[d] = a < 0 ? n : c->whole[a];
        block->start[d] = start + (shard ? shard[d] * n : 0);
    }
    return 1;
}

static fd_constants constants_of(int op, double p)
{
    if (op != FD_ALPHA_DROPOUT && op != ALPHA_SLOPE)
        return (fd_constants){.scale = fd_scale(p)};
    if (p == 1.0)
        return (fd_constants){0};
    const double s = -1.7580993408473766; /* as in fastdrop/ops/alpha.py */
    const double a = pow((1.0 - p) * (1.0 + p * s * s), -0.5), b = -a * p * s;
    return (fd_constants){a, b, a * s + b};
}

/* y of n elements with one draw; 0 if there is no memory. */
static int drop(const Call *c, const fd_draw *draw, double p, const fd_block *block,
                const fd_operands *operands, size_t bias_length)
{
    fd_task task = {.machine = fd_machine_now(), .draw = *draw, .dtype = c->dtype,
                    .op = c->op == ALPHA_SLOPE ? FD_DROPOUT : (fd_op)c->op, .operands = *operands,
                    .bias_length = bias_length, .n = c->n};
    const int relu = task.op == FD_RELU_DROPOUT, run = fd_is_run(block);
    const int cut = task.op == FD_DROPOUT || task.op == FD_ALPHA_DROPOUT;
    const uint64_t piece = (uint64_t)fd_current.piece, most = cut && piece < c->n ? piece : c->n;
    uint8_t *const active = relu ? malloc(FASTDROP_BITS_BYTES(c->n)) : NULL;
    uint8_t *const bits = run ? NULL : malloc(FASTDROP_BITS_BYTES(most));
    const int room = (active || !relu) && (bits || run);
    task.operands.constants = constants_of(c->op, p);
    task.operands.active = active;
    if (room)
        fd_forward_block(&task, block, most, bits);
    free(active);
    free(bits);
    return room;
}

/* What x is multiplied by, or what is added to it. 0 if there is no memory. */
static int noise(const Call *c, const fd_draw *draw, double sigma, const fd_block *block, char *y)
{
    const int adds = c->op == GAUSSIAN_NOISE, run = fd_is_run(block);
    const fd_place place = fd_place_of(block);
    if (!adds)
        sigma = sqrt(sigma / (1.0 - sigma));
    fd_noise_task task = {.machine = fd_machine_now(), .draw = *draw, .start = place.start,
                          .kind = FD_NORMAL, .op = adds ? FD_NOISE_ADD : FD_NOISE_SCALE,
                          .dtype = c->dtype, .operands = {.x = y, .y = y}, .n = c->n};
    task.operands.constants.sigma = c->dtype == FD_FLOAT64 ? sigma : (double)(float)sigma;
    float *const drawn = run ? NULL : malloc((c->n + FD_NOISE_PAD) * sizeof *drawn);
    if (!run && !drawn)
        return 0;
    if (drawn)
        fd_draw_noise(task.machine, draw, FD_NORMAL, &place, drawn);
    task.operands.noise = drawn;
    for (size_t i = 0; i < c->n; i++)
        if (c->dtype == FD_FLOAT64)
            ((double *)y)[i] = !adds;
        else
            ((float *)y)[i] = (float)!adds;
    fd_noise_forward(&task);
    free(drawn);
    return 1;
}

/* A bias with the room behind it that kernels want; NULL if there is no memory. */
static char *padded(const char *bias, size_t length, size_t size)
{
    char *const copy = malloc((length + FD_REPEAT_PAD) * size);
    for (size_t i = 0; copy && i < length + FD_REPEAT_PAD; i++)
        memcpy(copy + i * size, bias + i % length * size, size);
    return copy;
}

/* Arguments: what the op computes with (x, residual, bias; of noise nothing), and draws of shape
 * (..., words). There are as many draws as equal parts of y, which follow each other: one, or those that a
 * vmap made. A bias has one row, or one for each draw. */
void *fd_xla_dropout(void *call_frame)
{
    const CallFrame *frame = call_frame;
    Extension *const asked = frame->extensions;
    if (asked && asked->type == XLA_METADATA) {
        Metadata *const answer = (Metadata *)asked;
        answer->metadata->version.major = XLA_MAJOR;
        answer->metadata->version.minor = XLA_MINOR;
        answer->metadata->traits = 0;
        return NULL;
    }
    Buffer *const *arg = frame->args.buffers, *y = frame->results.buffers[0];
    const int operands = (int)frame->args.count - 1;
    const Buffer *draws = arg[operands], *bias = operands == 3 ? arg[2] : NULL;
    void **const attribute = frame->attributes.values;
    const Array *of = attribute[ATTRIBUTE_OF], *whole = attribute[ATTRIBUTE_WHOLE];
    const int leading = (int)draws->rank - 1;
    Call c = {.op = (int)*(int64_t *)((Scalar *)attribute[ATTRIBUTE_OP])->value,
              .shared = *(uint64_t *)((Scalar *)attribute[ATTRIBUTE_SHARED])->value,
              .ndim = (int)y->rank - leading, .axes = (int)of->size, .of = of->data, .whole = whole->data,
              .dims = y->dims + leading, .dtype = (fd_dtype)dtype_of(y->dtype), .n = 1};
    if (c.ndim > FD_MAX_DIMS)
        return failed(frame, XLA_INVALID_ARGUMENT, "fastdrop: x must have at most 64 axes, vmap's included");
    size_t parts = 1;
    for (int d = 0; d < leading; d++)
        parts *= (size_t)draws->dims[d];
    for (int d = 0; d < c.ndim; d++)
        c.n *= (size_t)c.dims[d];
    const size_t words = (size_t)draws->dims[leading];
    c.cut = words > START + 2 * (size_t)c.axes;
    const size_t size = fd_itemsize[c.dtype];
    const size_t columns = bias ? (size_t)bias->dims[bias->rank - 1] : 0;
    char *row = NULL;
    for (size_t part = 0; c.n && part < parts; part++) {
        const uint32_t *const draw = (const uint32_t *)draws->data + part * words;
        float term[3];
        memcpy(term, draw + RATE, sizeof term);
        const double p = (double)term[0] + term[1] + term[2];
        fd_block block;
        const char *wrong = NULL;
        if (draw[NEGATIVE])
            wrong = "fastdrop: call, and key if it is an int, must be in 0 ... 2**64 - 1, got a negative one";
        else if (c.op == GAUSSIAN_NOISE ? !(p >= 0.0 && p <= 3.4e38) : !(p >= 0.0 && p <= 1.0))
            wrong = c.op == GAUSSIAN_NOISE ? "fastdrop: std must be in [0, inf)" : "fastdrop: p must be in [0, 1]";
        else if (c.op == GAUSSIAN_DROPOUT && p == 1.0)
            wrong = "fastdrop: p must be below 1: the noise would have infinite variance";
        else if (!block_of(&c, draw, &block))
            wrong = "fastdrop: region must contain x";
        if (wrong) {
            free(row);
            return failed(frame, XLA_INVALID_ARGUMENT, wrong);
        }
        const int noisy = c.op == GAUSSIAN_DROPOUT || c.op == GAUSSIAN_NOISE; /* has no rate */
        const fd_draw of_draw = fd_draw_of(word64(draw + SEED), word64(draw + CALL), noisy ? 0.0 : p);
        const size_t skip = part * c.n * size;
        char *const to = (char *)y->data + skip;
        int done;
        if (noisy)
            done = noise(&c, &of_draw, p, &block, to);
        else {
            if (bias && (!row || bias->rank > 1)) {
                free(row);
                row = padded((char *)bias->data + (bias->rank > 1) * part * columns * size, columns, size);
            }
            const fd_operands o = {.x = (char *)arg[0]->data + skip, .y = to, .bias = row,
                                   .residual = operands > 1 ? (char *)arg[1]->data + skip : NULL};
            done = (row || !bias) && drop(&c, &of_draw, p, &block, &o, bias ? columns : 1);
        }
        if (!done) {
            free(row);
            return failed(frame, XLA_RESOURCE_EXHAUSTED, "fastdrop: no memory for a mask");
        }
    }
    free(row);
    return NULL;
}
