/* Contiguous arrays: draw and apply tile by tile, or apply bits that were drawn before. */
#include "drivers/tiles.h"

/* n <= FD_TILE keep bits from any index, at bit 0 of `bits` (FD_BITS_BYTES long). */
static void draw_run(const fd_task *t, uint64_t start, size_t n, uint8_t *bits, fd_ahead ahead)
{
    const fd_kernels *k = t->machine.kernels;
    const unsigned skip = start % FD_ALIGN;
    if (!skip) {
        k->draw_bits(&t->draw, start, n, bits, ahead);
        return;
    }
    uint8_t aligned[FD_BITS_BYTES];
    k->draw_bits(&t->draw, start - skip, n + skip, aligned, ahead);
    bits_copy(&(bits_writer){bits, 0, 0}, aligned, skip, n);
}

typedef struct {
    fd_task task;
    const uint8_t *bits; /* backward */
    uint8_t *saved;      /* forward; NULL: not wanted */
} Flat;

static void forward_tiles(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Flat *f = job;
    const fd_task *t = &f->task;
    const size_t size = fd_itemsize[t->dtype];
    const uint64_t begin = first * FD_TILE, stop = min_size(t->n, last * FD_TILE);
    /* Tiles are drawn where the keystream's blocks begin, but applied where cache lines of y do: `lag`
     * elements behind. The bits of those wait in front of the next tile's. */
    const size_t off = t->op == FD_RELU_DROPOUT ? 0 : to_line(t->operands.y) / size;
    const size_t lag = off ? 64 - off : 0;
    uint8_t buffer[8 + FD_BITS_BYTES], *bits = buffer + 8;
    uint64_t done = begin;
    for (uint64_t i = begin, m; i < stop; i += m) {
        m = min_size(stop - i, FD_TILE);
        draw_run(t, t->start + i, m, bits, (fd_ahead){t->operands.x + i * size, size});
        const uint64_t end = i + m < stop ? i + m - lag : stop;
        apply_at(t, done, buffer, (size_t)(64 + done - i), (size_t)(end - done));
        done = end;
        if (f->saved) /* last, as reading what draw has just patched byte by byte would wait */
            bits_copy(&(bits_writer){f->saved + i / 8, 0, 0}, bits, 0, m);
        memcpy(buffer, bits + FD_TILE / 8 - 8, 8);
    }
    fence(t);
}

void fd_forward(const fd_task *task, uint8_t *saved)
{
    const Flat f = {past_caches(task, task->n), NULL, saved};
    pool_run(task->machine.threads, tiles(task->n), CHUNK, forward_tiles, &f);
}

static void backward_tiles(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Flat *f = job;
    const uint64_t i = first * FD_TILE;
    apply_at(&f->task, i, f->bits, i, min_size(f->task.n, last * FD_TILE) - i);
    fence(&f->task);
}

void fd_backward(const fd_task *task, const uint8_t *bits)
{
    const Flat f = {past_caches(task, task->n), bits, NULL};
    pool_run(task->machine.threads, tiles(task->n), CHUNK, backward_tiles, &f);
}
