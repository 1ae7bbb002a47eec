/* From a whole array to tiles that a kernel takes, on several threads: see fastdrop.h. */
#include "fastdrop.h"
#include "kernels/bits.h"
#include "runtime/pool.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

/* Tiles a thread takes at a time: 64 Ki elements, so smaller arrays stay on the caller's thread. Two
 * threads over one, float32, p = 0.2, with a quarter of that: 2^16 1.03, 2^17 0.97, 2^18 0.78, 2^20 0.61;
 * with all of it: 2^17 1.00, 2^18 0.75, 2^20 0.54. */
enum { CHUNK = 16 };

static inline size_t min_size(uint64_t a, uint64_t b) { return (size_t)(a < b ? a : b); }

static inline uint64_t tiles(uint64_t n) { return (n + FD_TILE - 1) / FD_TILE; }

fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p)
{
    return (fd_stream){seed, call, (uint64_t)nearbyint(ldexp(p, 32))}; /* half to even */
}

double fd_scale(double p) { return p < 1.0 ? 1.0 / (1.0 - p) : 0.0; }

/* Inline, or the writer would live in memory. */
static inline void bits_copy(bits_writer *w, const uint8_t *src, uint64_t from, size_t n)
{
    if (n >= 64 && from % 8 == 0 && !w->held) {
        memcpy(w->to, src + from / 8, n / 8);
        w->to += n / 8, from += n & ~(size_t)7, n &= 7;
    }
    for (size_t m; n; n -= m, from += m) {
        m = min_size(n, BITS_CHUNK);
        bits_put(w, bits_get(src, from, m), m);
    }
}

static inline void bits_fill(bits_writer *w, int keep, size_t n)
{
    const uint64_t ones = keep ? UINT64_MAX : 0;
    if (n >= 64) {
        const size_t head = 8 - w->held;
        bits_put(w, ones & ((UINT64_C(1) << head) - 1), head);
        memset(w->to, (int)(ones & 0xff), (n - head) / 8);
        w->to += (n - head) / 8, n = (n - head) % 8;
    }
    for (size_t m; n; n -= m) {
        m = min_size(n, BITS_CHUNK);
        bits_put(w, ones & ((UINT64_C(1) << m) - 1), m);
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
    bits_copy(&(bits_writer){bits, 0, 0}, aligned, skip, n);
}

/* What to do with elements, and where they are. */
typedef struct {
    const fd_kernels *kernels;
    fd_op op;
    fd_dtype dtype;
    fd_operands at; /* the first elements */
    size_t bias_length;
    double scale;
    int stream;
} Elements;

/* n elements from the i-th on, all contiguous; the first is bit `bit` of bits. */
static inline void apply_at(const Elements *e, uint64_t i, const uint8_t *bits, size_t bit, size_t n)
{
    const uint64_t offset = i * fd_itemsize[e->dtype];
    fd_operands o = e->at;
    o.x += offset, o.y += offset;
    if (e->op == FD_DROPOUT_ADD || e->op == FD_BIAS_DROPOUT_ADD || e->op == FD_ZONEOUT)
        o.residual = e->at.residual + offset;
    if (e->op == FD_BIAS_DROPOUT_ADD)
        o.bias = e->at.bias + i % e->bias_length * fd_itemsize[e->dtype];
    if (e->op == FD_RELU_DROPOUT)
        o.active = e->at.active + i / 8;
    e->kernels->apply[e->op][e->dtype](&o, bits, bit, n, e->scale, e->stream);
}

/* Before another thread may read what was streamed. */
static inline void end_of_stream(const Elements *e)
{
#if defined(__x86_64__)
    if (e->stream)
        _mm_sfence();
#else
    (void)e;
#endif
}

/* Writing past the caches pays where y would not stay in them; in place it is in them already. */
static int should_stream(fd_machine m, const fd_operands *o, fd_dtype dtype, uint64_t n)
{
    return n * fd_itemsize[dtype] >= m.stream_bytes && o->x != o->y && o->residual != o->y;
}

typedef struct {
    Elements e;
    fd_stream stream;
    uint64_t start, n;
    uint8_t *saved;
} Forward;

static void forward_tiles(const void *job, uint64_t first, uint64_t last)
{
    const Forward *f = job;
    const size_t size = fd_itemsize[f->e.dtype];
    const uint64_t begin = first * FD_TILE, stop = min_size(f->n, last * FD_TILE);
    /* Tiles are drawn where the stream's blocks begin, but applied where cache lines of y do: `lag`
     * elements behind. The bits of those wait in front of the next tile's. */
    const size_t off = f->e.op == FD_RELU_DROPOUT ? 0 : to_line(f->e.at.y) / size;
    const size_t lag = off ? 64 - off : 0;
    uint8_t buffer[8 + FD_BITS_BYTES], *bits = buffer + 8;
    uint64_t done = begin;
    for (uint64_t i = begin, m; i < stop; i += m) {
        m = min_size(stop - i, FD_TILE);
        draw_run(f->e.kernels, &f->stream, f->start + i, m, bits, f->e.at.x + i * size, size);
        const uint64_t end = i + m < stop ? i + m - lag : stop;
        apply_at(&f->e, done, buffer, (size_t)(64 + done - i), (size_t)(end - done));
        done = end;
        if (f->saved) /* last, as reading what draw has just patched byte by byte would wait */
            bits_copy(&(bits_writer){f->saved + i / 8, 0, 0}, bits, 0, m);
        memcpy(buffer, bits + FD_TILE / 8 - 8, 8);
    }
    end_of_stream(&f->e);
}

void fd_forward(fd_machine m, fd_stream stream, uint64_t start, fd_op op, fd_dtype dtype,
                fd_operands operands, size_t bias_length, uint8_t *saved, size_t n, double scale)
{
    const Forward f = {{m.kernels, op, dtype, operands, bias_length, scale,
                        should_stream(m, &operands, dtype, n)},
                       stream, start, n, saved};
    pool_run(m.threads, tiles(n), CHUNK, forward_tiles, &f);
}

/* A block of the mask array as runs of consecutive indices. */
typedef struct {
    const fd_kernels *kernels;
    fd_stream stream;
    uint64_t start, size;
    int axes, dense; /* dense: runs follow each other so closely that what is between is drawn, too */
    int64_t n[FD_MAX_DIMS + 1], stride[FD_MAX_DIMS + 1];
    uint8_t *bits;
} Draw;

static void draw_tiles(const void *job, uint64_t first, uint64_t last)
{
    const Draw *d = job;
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
                d->kernels->draw(&d->stream, from, (size_t)(until - from), window,
                                 (const char *)window, 0);
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

void fd_draw(fd_machine m, fd_stream stream, uint64_t start, int ndim, const int64_t *shape,
             const int64_t *stride, uint8_t *bits)
{
    Draw d = {.kernels = m.kernels, .stream = stream, .start = start, .size = 1, .bits = bits};
    for (int a = 0; a < ndim; a++) {
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

/* Any layout. The axes from `inner` on are one contiguous run of x and y, so whole tiles can be
 * applied however short the runs of the mask are. Without such a run the last axis is gathered. */
typedef struct {
    Elements e;
    const uint8_t *mask;
    int axes, inner, gather_x, gather_y;
    uint64_t n, per_run; /* elements of a run, and its tiles */
    fd_axis axis[FD_MAX_DIMS];
} Walk;

/* A row of n keep bits, from bit `bit` of the mask on, `step` apart. */
static inline void bits_row(bits_writer *w, const uint8_t *mask, int64_t bit, int64_t step, size_t n)
{
    if (step == 1)
        bits_copy(w, mask, (uint64_t)bit, n);
    else if (step == 0)
        bits_fill(w, mask[bit / 8] >> bit % 8 & 1, n);
    else
        for (size_t m; n; n -= m) {
            uint64_t word = 0;
            m = min_size(n, BITS_CHUNK);
            for (size_t i = 0; i < m; i++, bit += step)
                word |= (uint64_t)(mask[bit / 8] >> bit % 8 & 1) << i;
            bits_put(w, word, m);
        }
}

/* Keep bits of elements j ... j + m - 1 of the run whose first bit is `bit`. */
static void expand(const Walk *w, int64_t bit, uint64_t j, size_t m, uint8_t *bits)
{
    const fd_axis *axis = w->axis + w->inner;
    const int inner = w->axes - w->inner - 1;
    int64_t at[FD_MAX_DIMS];
    for (int d = inner; d >= 0; d--) {
        at[d] = (int64_t)(j % (uint64_t)axis[d].n);
        j /= (uint64_t)axis[d].n;
        bit += at[d] * axis[d].bit;
    }
    /* Rows of the last axis, of which the first may have begun. */
    const fd_axis row = axis[inner], above = inner ? axis[inner - 1] : (fd_axis){1, 0, 0, 0};
    int64_t begun = at[inner], rows = above.n - (inner ? at[inner - 1] : 0);
    bits_writer to = {bits, 0, 0};
    for (;;) {
        for (; rows; rows--) {
            const size_t n = min_size(m, (uint64_t)(row.n - begun));
            bits_row(&to, w->mask, bit, row.bit, n);
            if (!(m -= n))
                return;
            bit += above.bit - begun * row.bit;
            begun = 0;
        }
        rows = above.n;
        bit -= above.n * above.bit;
        for (int d = inner - 2; d >= 0; d--) {
            bit += axis[d].bit;
            if (++at[d] < axis[d].n)
                break;
            bit -= axis[d].n * axis[d].bit;
            at[d] = 0;
        }
    }
}

/* n elements of `size` bytes, sx and sy bytes apart. */
static void copy_strided(const char *x, int64_t sx, char *y, int64_t sy, size_t n, size_t size)
{
    if (size == 2)
        for (; n--; x += sx, y += sy)
            memcpy(y, x, 2);
    else if (size == 4)
        for (; n--; x += sx, y += sy)
            memcpy(y, x, 4);
    else
        for (; n--; x += sx, y += sy)
            memcpy(y, x, 8);
}

static void walk_tiles(const void *job, uint64_t first, uint64_t last)
{
    const Walk *w = job;
    const size_t size = fd_itemsize[w->e.dtype];
    const fd_axis step = w->axis[w->axes - 1];
    Elements e = w->e;
    int64_t at[FD_MAX_DIMS], bit = 0;
    uint64_t run = first / w->per_run, tile = first % w->per_run;
    for (int d = w->inner - 1; d >= 0; d--) {
        at[d] = (int64_t)(run % (uint64_t)w->axis[d].n);
        run /= (uint64_t)w->axis[d].n;
        e.at.x += at[d] * w->axis[d].x, e.at.y += at[d] * w->axis[d].y;
        bit += at[d] * w->axis[d].bit;
    }
    const int gather = w->gather_x || w->gather_y;
    char tx[FD_TILE * 8], ty[FD_TILE * 8];
    uint8_t bits[FD_TILE / 8 + FD_BITS_PAD];
    for (; first < last; first++) {
        const uint64_t i = tile * FD_TILE;
        const size_t m = min_size(w->n - i, FD_TILE);
        expand(w, bit, i, m, bits);
        if (!gather)
            apply_at(&e, i, bits, 0, m);
        else {
            Elements t = e;
            t.at.x = e.at.x + (int64_t)i * step.x, t.at.y = e.at.y + (int64_t)i * step.y;
            char *const y = t.at.y;
            if (w->gather_x)
                copy_strided(t.at.x, step.x, tx, (int64_t)size, m, size), t.at.x = tx;
            if (w->gather_y)
                t.at.y = ty;
            apply_at(&t, 0, bits, 0, m);
            if (w->gather_y)
                copy_strided(ty, (int64_t)size, y, step.y, m, size);
        }
        if (++tile < w->per_run)
            continue;
        tile = 0;
        for (int d = w->inner - 1; d >= 0; d--) {
            const fd_axis a = w->axis[d];
            e.at.x += a.x, e.at.y += a.y, bit += a.bit;
            if (++at[d] < a.n)
                break;
            e.at.x -= a.n * a.x, e.at.y -= a.n * a.y, bit -= a.n * a.bit;
            at[d] = 0;
        }
    }
    end_of_stream(&e);
}

static int by_stride(const void *a, const void *b)
{
    const int64_t x = llabs(((const fd_axis *)a)->x), y = llabs(((const fd_axis *)b)->x);
    return (x < y) - (x > y);
}

/* Merge neighbours that are one axis; returns how many are left. */
static int merge(fd_axis *axis, int axes)
{
    int last = 0;
    for (int d = 1; d < axes; d++) {
        const fd_axis a = axis[last], b = axis[d];
        if (a.x == b.n * b.x && a.y == b.n * b.y && a.bit == b.n * b.bit)
            axis[last] = (fd_axis){a.n * b.n, b.x, b.y, b.bit};
        else
            axis[++last] = b;
    }
    return last + 1;
}

/* Bit j of row[i] to bit i of row[j], 32 x 32: swap ever smaller blocks beside the diagonal. */
static void transpose32(uint32_t row[32])
{
    uint32_t mask = 0x0000ffff;
    for (int k = 16; k; k >>= 1, mask ^= mask << k)
        for (int i = 0; i < 32; i = (i + k + 1) & ~k) {
            const uint32_t swap = (row[i] >> k ^ row[i + k]) & mask;
            row[i] ^= swap << k;
            row[i + k] ^= swap;
        }
}

/* A copy of the mask with its axes in the order of the walk, so that bits of neighbours in memory
 * are neighbours, too; sets their new strides. NULL if there is no memory for it. */
static uint8_t *in_walk_order(const uint8_t *mask, fd_axis *axis, int axes)
{
    fd_axis drawn[FD_MAX_DIMS]; /* length, stride in the copy (x), stride in the mask (bit) */
    int n = 0, unit = 0;
    int64_t size = 1;
    for (int d = axes - 1; d >= 0; d--) {
        if (!axis[d].bit)
            continue;
        drawn[n] = (fd_axis){axis[d].n, size, 0, axis[d].bit};
        if (axis[d].bit == 1)
            unit = n;
        n++;
        axis[d].bit = size;
        size *= axis[d].n;
    }
    uint8_t *const copy = calloc((size_t)(size / 8 + 1 + FD_BITS_PAD), 1);
    if (!copy)
        return NULL;
    /* Rows along drawn[0], contiguous in the copy; columns along the axis contiguous in the mask. */
    const fd_axis rows = drawn[0], columns = drawn[unit];
    int64_t at[FD_MAX_DIMS] = {0}, from = 0, to = 0;
    for (;;) {
        for (int64_t c = 0; c < columns.n; c += 32)
            for (int64_t r = 0; r < rows.n; r += 32) {
                const int64_t nc = columns.n - c < 32 ? columns.n - c : 32;
                const int64_t nr = rows.n - r < 32 ? rows.n - r : 32;
                uint32_t block[32] = {0};
                for (int64_t i = 0; i < nr; i++)
                    block[i] = (uint32_t)bits_get(mask, (uint64_t)(from + (r + i) * rows.bit + c),
                                                  (size_t)nc);
                transpose32(block);
                for (int64_t j = 0; j < nc; j++)
                    bits_or(copy, (uint64_t)(to + r + (c + j) * columns.x), block[j]);
            }
        int d = 1;
        for (; d < n; d++) {
            if (d == unit)
                continue;
            from += drawn[d].bit, to += drawn[d].x;
            if (++at[d] < drawn[d].n)
                break;
            from -= drawn[d].n * drawn[d].bit, to -= drawn[d].n * drawn[d].x;
            at[d] = 0;
        }
        if (d >= n)
            return copy;
    }
}

void fd_apply(fd_machine m, fd_op op, fd_dtype dtype, fd_operands o, size_t bias_length,
              const uint8_t *bits, int ndim, const fd_axis *axis, double scale)
{
    const int64_t size = (int64_t)fd_itemsize[dtype];
    uint64_t total = 1;
    Walk w = {.mask = bits};
    for (int d = 0; d < ndim; d++) {
        total *= (uint64_t)axis[d].n;
        if (axis[d].n != 1)
            w.axis[w.axes++] = axis[d];
    }
    if (!total)
        return;
    if (!w.axes)
        w.axis[w.axes++] = (fd_axis){1, size, size, 1};

    /* Walk memory in its own order, the longest strides outermost. */
    qsort(w.axis, (size_t)w.axes, sizeof *w.axis, by_stride);
    w.axes = merge(w.axis, w.axes);
    uint8_t *copy = NULL;
    if (w.axis[w.axes - 1].bit > 1) {
        fd_axis order[FD_MAX_DIMS];
        memcpy(order, w.axis, sizeof order);
        copy = in_walk_order(bits, order, w.axes);
        if (copy) {
            w.mask = copy;
            memcpy(w.axis, order, sizeof order);
            w.axes = merge(w.axis, w.axes);
        }
    }
    const int merged = w.axes - 1;
    w.inner = merged;
    w.n = (uint64_t)w.axis[merged].n;
    w.gather_x = w.axis[merged].x != size, w.gather_y = w.axis[merged].y != size;
    if (!w.gather_x && !w.gather_y)
        while (w.inner && w.axis[w.inner - 1].x == (int64_t)w.n * size &&
               w.axis[w.inner - 1].y == (int64_t)w.n * size)
            w.n *= (uint64_t)w.axis[--w.inner].n;
    w.per_run = tiles(w.n);
    w.e = (Elements){m.kernels, op, dtype, o, bias_length, scale, should_stream(m, &o, dtype, total)};
    const uint64_t chunk = min_size(w.n, FD_TILE);
    pool_run(m.threads, total / w.n * w.per_run, (CHUNK * FD_TILE + chunk - 1) / chunk, walk_tiles,
             &w);
    free(copy);
}

typedef struct {
    Elements e; /* x: the table */
    const uint8_t *bits;
    const int64_t *ids;
    size_t row;
} Lookup;

static void look_up(const void *job, uint64_t first, uint64_t last)
{
    const Lookup *l = job;
    const size_t size = l->row * fd_itemsize[l->e.dtype];
    const size_t ahead = 1 + 4096 / size; /* rows: where they are, no hardware would guess */
    uint8_t ones[FD_TILE / 8 + FD_BITS_PAD];
    memset(ones, 0xff, sizeof ones);
    for (; first < last; first++) {
        const uint64_t id = (uint64_t)l->ids[first];
        Elements e = l->e;
        if (first + ahead < last)
            for (size_t b = 0; b < size && b < 4096; b += 64)
                prefetch(e.at.x + (uint64_t)l->ids[first + ahead] * size + b);
        e.at.x += id * size, e.at.y += first * size;
        if (!(l->bits[id / 8] >> id % 8 & 1))
            memset(e.at.y, 0, size);
        else
            for (size_t i = 0; i < l->row; i += FD_TILE)
                apply_at(&e, i, ones, 0, min_size(l->row - i, FD_TILE));
    }
}

void fd_lookup(fd_machine m, fd_dtype dtype, const char *table, const int64_t *ids,
               const uint8_t *bits, char *y, size_t n, size_t row, double scale)
{
    const fd_operands o = {.x = table, .y = y};
    const Lookup l = {{m.kernels, FD_DROPOUT, dtype, o, 0, scale, 0}, bits, ids, row};
    if (row)
        pool_run(m.threads, n, (CHUNK * FD_TILE + row - 1) / row, look_up, &l);
}

void fd_add_rows(fd_machine m, fd_dtype dtype, const char *x, const int64_t *ids, size_t n,
                 size_t row, double *sums)
{
    for (size_t i = 0; i < n; i++)
        m.kernels->add_to[dtype](x + i * row * fd_itemsize[dtype], sums + (size_t)ids[i] * row, row);
}

typedef struct {
    Elements e;
    const uint8_t *bits;
    uint64_t n;
} Flat;

static void flat_tiles(const void *job, uint64_t first, uint64_t last)
{
    const Flat *f = job;
    const uint64_t i = first * FD_TILE;
    apply_at(&f->e, i, f->bits, i, min_size(f->n, last * FD_TILE) - i);
    end_of_stream(&f->e);
}

void fd_backward(fd_machine m, fd_dtype dtype, const char *dy, char *dx, const uint8_t *bits,
                 size_t n, double scale)
{
    const fd_operands o = {.x = dy, .y = dx};
    const Flat f = {{m.kernels, FD_DROPOUT, dtype, o, 0, scale, should_stream(m, &o, dtype, n)}, bits, n};
    pool_run(m.threads, tiles(n), CHUNK, flat_tiles, &f);
}

typedef struct {
    Flat f;
    size_t row;
    double *sums;
} Sums;

static void sum_parts(const void *job, uint64_t first, uint64_t last)
{
    const Sums *s = job;
    const Flat *f = &s->f;
    const size_t size = fd_itemsize[f->e.dtype];
    const uint64_t rows = f->n / s->row;
    const size_t block = s->row < FD_TILE ? FD_TILE / s->row : 1; /* rows that stay in the cache */
    for (; first < last; first++) {
        double *sum = s->sums + first * s->row;
        memset(sum, 0, s->row * sizeof *sum);
        const uint64_t end = rows * (first + 1) / FD_PARTS;
        for (uint64_t r = rows * first / FD_PARTS, m; r < end; r += m) {
            m = min_size(end - r, block);
            if (f->bits)
                apply_at(&f->e, r * s->row, f->bits, r * s->row, m * s->row);
            for (uint64_t i = r; i < r + m; i++)
                f->e.kernels->add_to[f->e.dtype](f->e.at.y + i * s->row * size, sum, s->row);
        }
    }
    end_of_stream(&f->e);
}

void fd_sum_parts(size_t row, double *sums)
{
    for (int part = 1; part < FD_PARTS; part++)
        for (size_t i = 0; i < row; i++)
            sums[i] += sums[(size_t)part * row + i];
}

void fd_backward_sums(fd_machine m, fd_dtype dtype, const char *dy, char *dx, const uint8_t *bits,
                      size_t n, size_t row, double *sums, double scale)
{
    if (!n) /* then there may be no rows to count */
        return;
    const fd_operands o = {.x = dy, .y = dx};
    const Sums s = {{{m.kernels, FD_DROPOUT, dtype, o, 0, scale, 0}, bits, n}, row, sums};
    pool_run(n > CHUNK * FD_TILE ? m.threads : 1, FD_PARTS, 1, sum_parts, &s);
    fd_sum_parts(row, sums);
}
