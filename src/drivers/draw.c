/* A call's draw, and the keep bits of any part of a mask array. */
#include "drivers/tiles.h"
#include <math.h>

fd_draw fd_draw_of(uint64_t seed, uint64_t call, double p)
{
    return (fd_draw){seed, call, (uint64_t)nearbyint(ldexp(p, 32))}; /* half to even */
}

double fd_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

/* A place as runs of consecutive indices. */
typedef struct {
    const fd_kernels *kernels;
    fd_draw draw;
    uint64_t start, size, block; /* elements that are drawn together */
    const int64_t *rows; /* numbers of axis 0's, or NULL */
    int axes;
    int64_t n[FD_MAX_DIMS + 1], stride[FD_MAX_DIMS + 1];
    uint8_t *bits;
} Runs;

/* What is drawn at once: pieces of the mask array, and the runs of keep bits that come from them. */
enum { RUNS = 128, PART = 2 * FD_TILE };
typedef struct {
    uint64_t piece[FD_PIECES + FD_PIECE_PAD];
    uint32_t at[RUNS], n[RUNS]; /* a run's first bit in the pieces, and its length */
    size_t pieces, runs;
    int whole; /* all runs are whole pieces, so their bits follow each other as they are drawn */
} Batch;

static void draw_batch(const Runs *d, Batch *batch, bits_writer *to)
{
    uint8_t buffer[FD_PIECES * FD_ALIGN / 8 + FD_BITS_PAD];
    const int whole = batch->whole && !to->held;
    uint8_t *const bits = whole ? to->to : buffer;
    uint64_t *const piece = batch->piece;
    const size_t n = batch->pieces;
    size_t follow = 1;
    while (follow < n && piece[follow] == piece[follow - 1] + FD_ALIGN)
        follow++;
    piece[n] = 0;
    const int follows = follow >= n; /* faster */
    const fd_indices from = {follows ? piece[0] : 0, follows ? NULL : piece};
    d->kernels->draw_bits(&d->draw, from, n * FD_ALIGN, bits);
    if (whole)
        to->to += n * (FD_ALIGN / 8);
    else
        for (size_t i = 0; i < batch->runs; i++)
            bits_copy(to, bits, batch->at[i], batch->n[i]);
    batch->pieces = batch->runs = 0, batch->whole = 1;
}

/* n <= PART more, from index start on. A piece begins where the first run that needs it does, or up to a
 * block before. */
static void add_run(const Runs *d, Batch *batch, bits_writer *to, uint64_t start, size_t n)
{
    uint64_t piece = start - start % d->block;
    if (batch->runs == RUNS ||
        batch->pieces + (start - piece + n + FD_ALIGN - 1) / FD_ALIGN > FD_PIECES)
        draw_batch(d, batch, to);
    const int same = batch->pieces && start - batch->piece[batch->pieces - 1] < FD_ALIGN;
    const size_t first = batch->pieces - (size_t)same;
    if (same)
        piece = batch->piece[first];
    batch->whole &= !same && start == piece && n % FD_ALIGN == 0;
    batch->at[batch->runs] = (uint32_t)(first * FD_ALIGN + (start - piece));
    batch->n[batch->runs++] = (uint32_t)n;
    for (piece += same ? FD_ALIGN : 0; piece < start + n; piece += FD_ALIGN)
        batch->piece[batch->pieces++] = piece;
}

static void draw_tiles(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Runs *d = job;
    const int inner = d->axes - 1;
    int64_t at[FD_MAX_DIMS + 1];
    uint64_t start = d->start, j = first * FD_TILE;
    for (int a = inner; a >= 0; a--) {
        at[a] = (int64_t)(j % (uint64_t)d->n[a]);
        j /= (uint64_t)d->n[a];
        start += (uint64_t)((d->rows && !a ? d->rows[at[0]] : at[a]) * d->stride[a]);
    }
    uint8_t bits[PART / 8 + FD_BITS_PAD];
    Batch batch;
    batch.pieces = batch.runs = 0, batch.whole = 1;
    const uint64_t end = min_size(d->size, last * FD_TILE);
    for (uint64_t begin = first * FD_TILE; begin < end; begin += PART) {
        const size_t m = min_size(end - begin, PART);
        bits_writer w = {bits, 0, 0};
        for (size_t done = 0, r; done < m; done += r) {
            r = min_size(m - done, (uint64_t)(d->n[inner] - at[inner]));
            add_run(d, &batch, &w, start, r);
            start += r;
            at[inner] += (int64_t)r;
            int a = inner;
            for (; at[a] == d->n[a] && a; a--) {
                start += (uint64_t)(d->stride[a - 1] - d->n[a] * d->stride[a]);
                at[a] = 0;
                at[a - 1]++;
            }
            if (d->rows && !a && at[0] < d->n[0])
                start = d->start + (uint64_t)(d->rows[at[0]] * d->stride[0]);
        }
        draw_batch(d, &batch, &w); /* at least a run is left */
        memcpy(d->bits + begin / 8, bits, (m + 7) / 8);
    }
}

int fd_rows_of(const fd_place *place, fd_rows *rows)
{
    int a = place->ndim - 1;
    uint64_t n = 1;
    for (; a >= !!place->rows && (place->shape[a] == 1 || (uint64_t)place->stride[a] == n); a--)
        n *= (uint64_t)place->shape[a];
    if (a < 0 || !n || (n | (uint64_t)place->stride[a] | place->start) % FD_ALIGN)
        return 0;
    for (int d = 0; d < a; d++)
        if (place->shape[d] != 1)
            return 0;
    *rows = (fd_rows){n, (uint64_t)place->stride[a], a ? NULL : place->rows};
    return 1;
}

void fd_draw_bits(fd_machine m, const fd_draw *draw, const fd_place *place, uint8_t *bits)
{
    const int64_t *shape = place->shape, *stride = place->stride;
    Runs d = {.kernels = m.kernels, .draw = *draw, .start = place->start, .size = 1, .bits = bits};
    d.rows = place->rows;
    d.block = draw->threshold == UINT64_C(1) << 31 ? FD_ALIGN : 16;
    for (int a = 0; a < place->ndim; a++) {
        d.size *= (uint64_t)shape[a];
        if (shape[a] == 1 && !(d.rows && !a))
            continue;
        if (d.axes > !!d.rows && d.stride[d.axes - 1] == shape[a] * stride[a]) {
            d.n[d.axes - 1] *= shape[a];
            d.stride[d.axes - 1] = stride[a];
        } else {
            d.n[d.axes] = shape[a];
            d.stride[d.axes++] = stride[a];
        }
    }
    if (d.axes == !!d.rows || d.stride[d.axes - 1] != 1) { /* each element is a run */
        d.n[d.axes] = 1;
        d.stride[d.axes++] = 1;
    }
    if (d.size)
        pool_run(m.threads, tiles(d.size), CHUNK, draw_tiles, &d);
}
