/* From a whole array to tiles that a kernel takes: see fastdrop.h. */
#include "fastdrop.h"
#include "bits.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const size_t itemsize[] = FD_ITEMSIZE;

static inline size_t min_size(uint64_t a, uint64_t b) { return (size_t)(a < b ? a : b); }

fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p)
{
    return (fd_stream){seed, call, (uint64_t)nearbyint(ldexp(p, 32))}; /* half to even */
}

double fd_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

static void bits_copy(uint8_t *dst, uint64_t at, const uint8_t *src, uint64_t from, size_t n)
{
    if (at % 8 == 0 && from % 8 == 0 && n >= 64) {
        memcpy(dst + at / 8, src + from / 8, n / 8);
        at += n & ~(size_t)7, from += n & ~(size_t)7, n &= 7;
    }
    for (size_t m; n; n -= m, at += m, from += m) {
        m = min_size(n, BITS_CHUNK);
        bits_put(dst, at, bits_get(src, from, m));
    }
}

static void bits_fill(uint8_t *dst, uint64_t at, int keep, size_t n)
{
    const uint64_t ones = keep ? UINT64_MAX : 0;
    for (size_t m; n; n -= m, at += m) {
        m = min_size(n, BITS_CHUNK);
        bits_put(dst, at, ones & ((UINT64_C(1) << m) - 1));
    }
}

/* n <= FD_TILE keep bits from any index, at bit 0 of `bits` (FD_BITS_BYTES long). */
static void draw_run(const fd_kernels *k, const fd_stream *s, uint64_t start, size_t n,
                     uint8_t *bits, const char *ahead, size_t itemsize)
{
    const unsigned skip = start % FD_ALIGN;
    if (!skip) {
        k->draw(s, start, n, bits, ahead, itemsize);
        return;
    }
    uint8_t aligned[FD_BITS_BYTES];
    k->draw(s, start - skip, n + skip, aligned, ahead, itemsize);
    bits_copy(bits, 0, aligned, skip, n);
}

void fd_dropout(const fd_kernels *k, fd_stream stream, uint64_t start, fd_dtype dtype,
                const char *x, char *y, uint8_t *saved, size_t n, double scale)
{
    /* Tiles are drawn where the stream's blocks begin, but applied where cache lines of y do: `lag`
     * elements behind. The bits of those wait in front of the next tile's. */
    const size_t size = itemsize[dtype], off = lines_off(y) / size, lag = off ? 64 - off : 0;
    uint8_t buffer[8 + FD_BITS_BYTES], *bits = buffer + 8;
    for (size_t i = 0, m, done = 0, end; i < n; i += m, done = end) {
        m = min_size(n - i, FD_TILE);
        draw_run(k, &stream, start + i, m, bits, x + i * size, size);
        if (saved)
            bits_copy(saved, i, bits, 0, m);
        end = i + m < n ? i + m - lag : n;
        k->apply[dtype](x + done * size, y + done * size, buffer, 64 + done - i, end - done, scale);
        memcpy(buffer, bits + FD_TILE / 8 - 8, 8);
    }
}

void fd_draw(const fd_kernels *k, fd_stream stream, uint64_t start, int ndim, const int64_t *shape,
             const int64_t *stride, uint8_t *bits)
{
    /* Merge axes that are one run of indices; what is left innermost is drawn run by run. */
    int64_t n[FD_MAX_DIMS + 1], step[FD_MAX_DIMS + 1], at[FD_MAX_DIMS + 1] = {0};
    int axes = 0;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == 0)
            return;
        if (shape[d] == 1)
            continue;
        if (axes && step[axes - 1] == shape[d] * stride[d]) {
            n[axes - 1] *= shape[d];
            step[axes - 1] = stride[d];
        } else {
            n[axes] = shape[d];
            step[axes++] = stride[d];
        }
    }
    if (!axes || step[axes - 1] != 1) {
        n[axes] = 1;
        step[axes++] = 1;
    }
    uint8_t tile[FD_BITS_BYTES];
    for (uint64_t done = 0;;) {
        for (uint64_t i = 0, m; i < (uint64_t)n[axes - 1]; i += m) {
            m = min_size((uint64_t)n[axes - 1] - i, FD_TILE);
            draw_run(k, &stream, start + i, m, tile, NULL, 0);
            bits_copy(bits, done, tile, 0, m);
            done += m;
        }
        int d = axes - 2;
        for (; d >= 0; d--) {
            start += (uint64_t)step[d];
            if (++at[d] < n[d])
                break;
            start -= (uint64_t)(n[d] * step[d]);
            at[d] = 0;
        }
        if (d < 0)
            return;
    }
}

/* Keep bits of elements j ... j + m - 1 of these axes in C order, from the packed mask. */
static void expand(const uint8_t *mask, int64_t first, int axes, const fd_axis *axis, uint64_t j,
                   size_t m, uint8_t *bits)
{
    int64_t at[FD_MAX_DIMS + 1], bit = first;
    for (int d = axes - 1; d >= 0; d--) {
        at[d] = (int64_t)(j % (uint64_t)axis[d].n);
        j /= (uint64_t)axis[d].n;
        bit += at[d] * axis[d].bit;
    }
    const fd_axis last = axis[axes - 1];
    for (size_t done = 0; done < m;) {
        const size_t run = min_size(m - done, (uint64_t)(last.n - at[axes - 1]));
        if (last.bit == 1)
            bits_copy(bits, done, mask, (uint64_t)bit, run);
        else if (last.bit == 0)
            bits_fill(bits, done, mask[bit / 8] >> bit % 8 & 1, run);
        else
            for (size_t i = 0; i < run; i++) {
                const int64_t b = bit + (int64_t)i * last.bit;
                bits_put(bits, done + i, mask[b / 8] >> b % 8 & 1);
            }
        done += run;
        bit -= at[axes - 1] * last.bit;
        at[axes - 1] = 0;
        for (int d = axes - 2; d >= 0; d--) {
            bit += axis[d].bit;
            if (++at[d] < axis[d].n)
                break;
            bit -= axis[d].n * axis[d].bit;
            at[d] = 0;
        }
    }
}

static int by_stride(const void *a, const void *b)
{
    const int64_t x = ((const fd_axis *)a)->x, y = ((const fd_axis *)b)->x;
    return (x < y) - (x > y);
}

void fd_apply(const fd_kernels *k, fd_dtype dtype, const char *x, char *y, const uint8_t *bits,
              int ndim, fd_axis *axis, double scale)
{
    const int64_t size = (int64_t)itemsize[dtype];

    /* Walk memory forwards, the longest strides outermost. */
    int64_t bit = 0;
    int axes = 0;
    for (int d = 0; d < ndim; d++) {
        fd_axis a = axis[d];
        if (a.n == 0)
            return;
        if (a.n == 1)
            continue;
        if (a.x < 0) {
            x += (a.n - 1) * a.x, y += (a.n - 1) * a.y, bit += (a.n - 1) * a.bit;
            a.x = -a.x, a.y = -a.y, a.bit = -a.bit;
        }
        axis[axes++] = a;
    }
    if (!axes)
        axis[axes++] = (fd_axis){1, size, size, 1};
    qsort(axis, (size_t)axes, sizeof *axis, by_stride);
    int merged = 0;
    for (int d = 1; d < axes; d++) {
        const fd_axis a = axis[merged], b = axis[d];
        if (a.x == b.n * b.x && a.y == b.n * b.y && a.bit == b.n * b.bit)
            axis[merged] = (fd_axis){a.n * b.n, b.x, b.y, b.bit};
        else
            axis[++merged] = b;
    }
    axes = merged + 1;

    /* The axes from `inner` on are one contiguous run of x and y, so whole tiles can be applied
     * however short the runs of the mask are. Without such a run the last axis is gathered. */
    int inner = axes - 1;
    uint64_t n = (uint64_t)axis[inner].n;
    const int gather_x = axis[inner].x != size, gather_y = axis[inner].y != size;
    while (!gather_x && !gather_y && inner && axis[inner - 1].x == (int64_t)n * size &&
           axis[inner - 1].y == (int64_t)n * size)
        n *= (uint64_t)axis[--inner].n;

    char tx[FD_TILE * 8], ty[FD_TILE * 8];
    uint8_t tile[FD_TILE / 8 + FD_BITS_PAD];
    int64_t at[FD_MAX_DIMS] = {0};
    for (;;) {
        for (uint64_t i = 0, m; i < n; i += m) {
            m = min_size(n - i, FD_TILE);
            expand(bits, bit, axes - inner, axis + inner, i, m, tile);
            const int64_t sx = axis[axes - 1].x, sy = axis[axes - 1].y;
            const char *px = x + (int64_t)i * sx;
            char *py = y + (int64_t)i * sy;
            if (gather_x)
                for (uint64_t e = 0; e < m; e++)
                    memcpy(tx + e * (uint64_t)size, px + (int64_t)e * sx, (size_t)size);
            k->apply[dtype](gather_x ? tx : px, gather_y ? ty : py, tile, 0, m, scale);
            if (gather_y)
                for (uint64_t e = 0; e < m; e++)
                    memcpy(py + (int64_t)e * sy, ty + e * (uint64_t)size, (size_t)size);
        }
        int d = inner - 1;
        for (; d >= 0; d--) {
            x += axis[d].x, y += axis[d].y, bit += axis[d].bit;
            if (++at[d] < axis[d].n)
                break;
            x -= axis[d].n * axis[d].x, y -= axis[d].n * axis[d].y;
            bit -= axis[d].n * axis[d].bit;
            at[d] = 0;
        }
        if (d < 0)
            return;
    }
}
