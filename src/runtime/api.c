/* The table of functions that other compiled code calls. */
#include "runtime/api.h"
#include "runtime/settings.h"

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

const fastdrop_api fd_api = {FASTDROP_API_VERSION, forward, backward, draw};
