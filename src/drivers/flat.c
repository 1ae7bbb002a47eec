/* Contiguous arrays: draw and apply tile by tile, or apply bits that were drawn before. */
#include "drivers/tiles.h"

size_t fd_bias_skip(const fd_task *task)
{
    const size_t least = 512, length = task->bias_length < least ? least : task->bias_length;
    if (task->bias_length & (task->bias_length - 1) || 2 * length > FD_TILE)
        return 0;
    return ~(length * fd_itemsize[task->dtype] - 1);
}

/* n <= FD_TILE keep bits from any index, at bit 0 of `bits` (FD_BITS_BYTES long). */
static void draw_run(const fd_task *t, fd_indices from, size_t n, uint8_t *bits)
{
    const fd_kernels *k = t->machine.kernels;
    const unsigned skip = from.start % FD_ALIGN;
    if (!skip) {
        k->draw_bits(&t->draw, from, n, bits);
        return;
    }
    uint8_t aligned[FD_BITS_BYTES];
    from.start -= skip;
    k->draw_bits(&t->draw, from, n + skip, aligned);
    bits_copy(&(bits_writer){bits, 0, 0}, aligned, skip, n);
}

/* Of n elements from the i-th on; what rows need goes to `piece`. */
static fd_indices indices(const fd_task *t, uint64_t i, size_t n, uint64_t *piece)
{
    const fd_rows r = t->rows;
    if (!r.length)
        return (fd_indices){t->start + i, NULL};
    uint64_t row = i / r.length, at = i % r.length;
    size_t k = 0;
    for (; k * FD_ALIGN < n; k++) {
        piece[k] = t->start + (r.number ? (uint64_t)r.number[row] : row) * r.stride + at;
        at += FD_ALIGN;
        if (at == r.length)
            at = 0, row++;
    }
    piece[k] = 0;
    return (fd_indices){0, piece};
}

enum { PIECE = CHUNK * FD_TILE }; /* elements, whose bits stay in the L1 cache */

typedef struct {
    fd_task task;
    const uint8_t *bits; /* backward */
    uint8_t *saved;      /* forward; NULL: not wanted */
} Flat;

/* In one loop. */
static void forward_pieces(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Flat *f = job;
    const fd_task *t = &f->task;
    const size_t most = fd_reads_bias(t->op) && !t->operands.bias_skip ? FD_TILE : PIECE;
    const uint64_t stop = min_size(t->n, last * FD_TILE);
    uint8_t unwanted[PIECE / 8 + FD_BITS_PAD];
    uint64_t piece[PIECE / FD_ALIGN + FD_PIECE_PAD];
    for (uint64_t i = first * FD_TILE; i < stop; i += most) {
        const size_t n = min_size(stop - i, most);
        const fd_operands o = operands_at(t, i);
        t->machine.kernels->forward[t->op][t->dtype](&t->draw, indices(t, i, n, piece), n, &o,
                                                     f->saved ? f->saved + i / 8 : unwanted);
    }
}

/* A tile is drawn while the one before it is applied. Tiles are drawn where the keystream's blocks begin,
 * but applied where cache lines of y do: `lag` elements behind. The bits of those wait in front of the
 * next tile's. */
static void forward_tiles(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Flat *f = job;
    const fd_task *t = &f->task;
    const size_t size = fd_itemsize[t->dtype];
    const uint64_t begin = first * FD_TILE, stop = min_size(t->n, last * FD_TILE);
    const size_t off = fd_is_relu(t->op) ? 0 : to_line(t->operands.y) / size;
    const size_t lag = off ? 64 - off : 0;
    uint8_t buffer[2][8 + FD_BITS_BYTES], *before = buffer[0], *bits = buffer[1];
    uint64_t piece[FD_TILE / FD_ALIGN + FD_PIECE_PAD];
    uint64_t done = begin, tile = begin; /* elements */
    for (uint64_t i = begin; done < stop;) {
        const size_t m = min_size(stop - i, FD_TILE), bit = (size_t)(64 + done - tile);
        const size_t n = (size_t)((m && i > begin ? i - lag : i) - done);
        const fd_operands o = operands_at(t, done);
        const fd_indices from = indices(t, i, m, piece);
        if (t->operands.non_temporal && m == FD_TILE && n == FD_TILE && t->start % FD_ALIGN == 0 &&
            (uintptr_t)o.y % 64 == 0)
            t->machine.kernels->stream[t->op][t->dtype](&t->draw, from, bits + 8, &o, before, bit);
        else {
            draw_run(t, from, m, bits + 8);
            apply_at(t, done, before, bit, n);
        }
        if (f->saved)
            bits_copy(&(bits_writer){f->saved + i / 8, 0, 0}, bits + 8, 0, m);
        memcpy(before, bits + FD_TILE / 8, 8);
        done += n, tile = i, i += m;
        uint8_t *const free = before;
        before = bits, bits = free;
    }
    fence(t);
}

void fd_forward(const fd_task *task, uint8_t *saved)
{
    const Flat f = {past_caches(task, task->n), NULL, saved};
    const int in_one = !f.task.operands.non_temporal && task->operands.residual != task->operands.y &&
                       task->start % FD_ALIGN == 0;
    pool_run(task->machine.threads, tiles(task->n), f.task.operands.non_temporal ? 4 * CHUNK : CHUNK,
             in_one ? forward_pieces : forward_tiles, &f);
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
