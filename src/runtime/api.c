/* For size: what is hot is in the kernels. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
/* The table of functions that other compiled code calls. */
#include "runtime/api.h"
#include "runtime/settings.h"

_Static_assert(FASTDROP_FLOAT32 == (int)FD_FLOAT32 && FASTDROP_FLOAT64 == (int)FD_FLOAT64 &&
                   FASTDROP_FLOAT16 == (int)FD_FLOAT16 && FASTDROP_BFLOAT16 == (int)FD_BFLOAT16 &&
                   FASTDROP_BITS_BYTES(1) == 1 + FD_BITS_PAD,
               "the two headers agree");

static void forward(int dtype, const void *x, void *y, uint8_t *bits, size_t n, uint64_t start,
                    uint64_t seed, uint64_t call, double p)
{
    const fd_operands o = {.x = x, .y = y};
    fd_forward(fd_machine_now(), fd_stream_of(seed, call, p), start, FD_DROPOUT, (fd_dtype)dtype, o, 1,
               bits, n, fd_scale(p));
}

static void backward(int dtype, const void *dy, void *dx, const uint8_t *bits, size_t n, double p)
{
    fd_backward(fd_machine_now(), (fd_dtype)dtype, dy, dx, bits, n, fd_scale(p));
}

static void draw(uint8_t *bits, size_t n, uint64_t start, uint64_t seed, uint64_t call, double p)
{
    const int64_t shape = (int64_t)n, stride = 1;
    fd_draw(fd_machine_now(), fd_stream_of(seed, call, p), start, 1, &shape, &stride, bits);
}

const fastdrop_api fd_api = {FASTDROP_API_VERSION, forward, backward, draw};
