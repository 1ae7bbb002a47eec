/* The table of functions that other compiled code calls. */
#include "runtime/api.h"
#include "runtime/settings.h"
#include <stdlib.h>

_Static_assert(FASTDROP_FLOAT32 == (int)FD_FLOAT32 && FASTDROP_FLOAT64 == (int)FD_FLOAT64 &&
                   FASTDROP_FLOAT16 == (int)FD_FLOAT16 && FASTDROP_BFLOAT16 == (int)FD_BFLOAT16 &&
                   FASTDROP_BITS_BYTES(1) == 1 + FD_BITS_PAD,
               "the two headers agree");

static fd_task task_of(int dtype, const void *x, void *y, size_t n, double p)
{
    return (fd_task){.machine = fd_machine_now(), .op = FD_DROPOUT, .dtype = (fd_dtype)dtype, .n = n,
                     .operands = {.x = x, .y = y, .constants = {.scale = fd_scale(p)}}};
}

static void forward(int dtype, const void *x, void *y, uint8_t *bits, size_t n, uint64_t start,
                    uint64_t seed, uint64_t call, double p)
{
    fd_task task = task_of(dtype, x, y, n, p);
    task.draw = fd_draw_of(seed, call, p), task.start = start;
    fd_forward(&task, bits);
}

static void backward(int dtype, const void *dy, void *dx, const uint8_t *bits, size_t n, double p)
{
    const fd_task task = task_of(dtype, dy, dx, n, p);
    fd_backward(&task, bits);
}

static void draw(uint8_t *bits, size_t n, uint64_t start, uint64_t seed, uint64_t call, double p)
{
    const fd_place place = {.start = start, .ndim = 1, .shape = {(int64_t)n}, .stride = {1}};
    const fd_draw of = fd_draw_of(seed, call, p);
    fd_draw_bits(fd_machine_now(), &of, &place, bits);
}

fd_place fd_place_of(const fd_block *b)
{
    fd_place place = {.ndim = b->ndim};
    int64_t stride = 1;
    for (int d = b->ndim - 1; d >= 0; d--) {
        const int shares = b->shared >> d & 1;
        place.shape[d] = shares ? 1 : b->shape[d], place.stride[d] = stride;
        if (!shares)
            place.start += (uint64_t)(b->start[d] * stride), stride *= b->whole[d];
    }
    return place;
}

int fd_is_run(const fd_block *b)
{
    int64_t step = 1, run = 1;
    for (int d = b->ndim - 1; d >= 0; d--) {
        if (b->shape[d] != 1 && (step != run || (b->shared >> d & 1)))
            return 0;
        if (!(b->shared >> d & 1))
            step *= b->whole[d], run *= b->shape[d];
    }
    return 1;
}

void fd_forward_block(fd_task *task, const fd_block *b, uint64_t most, uint8_t *bits)
{
    const fd_place place = fd_place_of(b);
    fd_axis axis[FD_MAX_DIMS];
    int64_t bytes = (int64_t)fd_itemsize[task->dtype];
    task->start = place.start;
    if (!bits) {
        fd_forward(task, NULL);
        return;
    }
    for (int d = b->ndim - 1; d >= 0; d--) { /* the walk makes strides of bits of what is not 0 */
        axis[d] = (fd_axis){b->shape[d], bytes, bytes, !(b->shared >> d & 1)};
        bytes *= b->shape[d];
    }
    fd_forward_walk(task, &place, axis, most, bits);
}

static int region(int dtype, const void *x, void *y, int ndim, const int64_t *shape,
                  const int64_t *start, const int64_t *global_shape, uint64_t shared, uint64_t seed,
                  uint64_t call, double p)
{
    fd_block block = {.ndim = ndim, .shared = shared};
    uint64_t n = 1;
    for (int d = 0; d < ndim; d++) {
        block.shape[d] = shape[d], block.start[d] = start[d], block.whole[d] = global_shape[d];
        n *= (uint64_t)shape[d];
    }
    if (!n)
        return 0;
    fd_task task = task_of(dtype, x, y, (size_t)n, p);
    task.draw = fd_draw_of(seed, call, p);
    const uint64_t piece = (uint64_t)fd_current.piece, most = piece < n ? piece : n;
    uint8_t *const bits = fd_is_run(&block) ? NULL : malloc(FASTDROP_BITS_BYTES(most));
    if (!bits && !fd_is_run(&block))
        return -1;
    fd_forward_block(&task, &block, most, bits);
    free(bits);
    return 0;
}

const fastdrop_api fd_api = {FASTDROP_API_VERSION, forward, backward, draw, region};
