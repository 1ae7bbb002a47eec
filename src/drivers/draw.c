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
    uint64_t start, size;
    int axes, dense; /* dense: runs follow each other so closely that what is between is drawn, too */
    int64_t n[FD_MAX_DIMS + 1], stride[FD_MAX_DIMS + 1];
    uint8_t *bits;
} Runs;

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
        start += (uint64_t)(at[a] * d->stride[a]);
    }
    uint8_t window[FD_BITS_BYTES], bits[FD_BITS_BYTES];
    uint64_t from = 0, until = 0; /* indices in the window */
    for (uint64_t tile = first; tile < last; tile++) {
        const size_t m = min_size(d->size - tile * FD_TILE, FD_TILE);
        bits_writer w = {bits, 0, 0};
        for (size_t done = 0, r; done < m; done += r) {
            r = min_size(m - done, (uint64_t)(d->n[inner] - at[inner]));
            if (start < from || start >= until) {
                from = start - start % FD_ALIGN;
                until = d->dense ? from + FD_TILE : start + r;
                d->kernels->draw_bits(&d->draw, from, (size_t)(until - from), window,
                                      (fd_ahead){(const char *)window, 0});
            }
            r = min_size(r, until - start);
            bits_copy(&w, window, start - from, r);
            start += r;
            at[inner] += (int64_t)r;
            for (int a = inner; at[a] == d->n[a] && a; a--) {
                start += (uint64_t)(d->stride[a - 1] - d->n[a] * d->stride[a]);
                at[a] = 0;
                at[a - 1]++;
            }
        }
        memcpy(d->bits + tile * (FD_TILE / 8), bits, (m + 7) / 8);
    }
}

void fd_draw_bits(fd_machine m, const fd_draw *draw, const fd_place *place, uint8_t *bits)
{
    const int64_t *shape = place->shape, *stride = place->stride;
    Runs d = {.kernels = m.kernels, .draw = *draw, .start = place->start, .size = 1, .bits = bits};
    for (int a = 0; a < place->ndim; a++) {
        d.size *= (uint64_t)shape[a];
        if (shape[a] == 1)
            continue;
        if (d.axes && d.stride[d.axes - 1] == shape[a] * stride[a]) {
            d.n[d.axes - 1] *= shape[a];
            d.stride[d.axes - 1] = stride[a];
        } else {
            d.n[d.axes] = shape[a];
            d.stride[d.axes++] = stride[a];
        }
    }
    if (!d.axes || d.stride[d.axes - 1] != 1) { /* each element is a run */
        d.n[d.axes] = 1;
        d.stride[d.axes++] = 1;
    }
    d.dense = d.axes == 1 || d.stride[d.axes - 2] < 8 * d.n[d.axes - 1];
    if (d.size)
        pool_run(m.threads, tiles(d.size), CHUNK, draw_tiles, &d);
}
