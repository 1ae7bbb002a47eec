/* Packed bits applied to arrays of any layout. */
#include "drivers/tiles.h"
#include <stdlib.h>

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

/* Any layout. The axes from `inner` on are one contiguous run of x and y, so whole tiles can be
 * applied however short the runs of the mask are. Without such a run the last axis is gathered. */
typedef struct {
    fd_task task;
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
    /* Rows of the last axis; the first may have begun. */
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

#if defined(__GNUC__) && !defined(__clang__)
/* So short a loop takes 1.5 times as long where it lies across a line of the instruction cache. */
#define ALIGNED_LOOPS __attribute__((noinline, optimize("align-loops=64")))
#else
#define ALIGNED_LOOPS
#endif

/* n elements of `size` bytes, sx and sy bytes apart. */
ALIGNED_LOOPS static void copy_strided(const char *x, int64_t sx, char *y, int64_t sy, size_t n, size_t size)
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

/* Bytes that are gathered at a time: half a tile of float64, as the stack of a caller's thread may be small. */
enum { GATHERED = FD_TILE * 4 };

static void walk_tiles(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Walk *w = job;
    const size_t size = fd_itemsize[w->task.dtype];
    const fd_axis step = w->axis[w->axes - 1];
    fd_task t = w->task;
    const char *x = t.operands.x; /* of the run's first element */
    char *y = t.operands.y;
    int64_t at[FD_MAX_DIMS], bit = 0;
    uint64_t run = first / w->per_run, tile = first % w->per_run;
    for (int d = w->inner - 1; d >= 0; d--) {
        at[d] = (int64_t)(run % (uint64_t)w->axis[d].n);
        run /= (uint64_t)w->axis[d].n;
        x += at[d] * w->axis[d].x, y += at[d] * w->axis[d].y;
        bit += at[d] * w->axis[d].bit;
    }
    const int gather = w->gather_x || w->gather_y;
    char gathered[GATHERED]; /* x, and then y */
    uint8_t bits[FD_TILE / 8 + FD_BITS_PAD];
    for (; first < last; first++) {
        const uint64_t i = tile * FD_TILE;
        const size_t m = min_size(w->n - i, FD_TILE);
        expand(w, bit, i, m, bits);
        t.operands.x = x, t.operands.y = y;
        if (!gather)
            apply_at(&t, i, bits, 0, m);
        else
            for (size_t done = 0, n; done < m; done += n) {
                const char *const xi = x + (int64_t)(i + done) * step.x;
                char *const yi = y + (int64_t)(i + done) * step.y;
                n = min_size(m - done, GATHERED / size);
                if (w->gather_x)
                    copy_strided(xi, step.x, gathered, (int64_t)size, n, size);
                t.operands.x = w->gather_x ? gathered : xi;
                t.operands.y = w->gather_y ? gathered : yi;
                apply_at(&t, 0, bits, done, n);
                if (w->gather_y)
                    copy_strided(gathered, (int64_t)size, yi, step.y, n, size);
            }
        if (++tile < w->per_run)
            continue;
        tile = 0;
        for (int d = w->inner - 1; d >= 0; d--) {
            const fd_axis a = w->axis[d];
            x += a.x, y += a.y, bit += a.bit;
            if (++at[d] < a.n)
                break;
            x -= a.n * a.x, y -= a.n * a.y, bit -= a.n * a.bit;
            at[d] = 0;
        }
    }
    fence(&t);
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

/* Bit j of row[i] to bit i of row[j], 32 x 32: swap ever smaller squares beside the diagonal. */
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

void fd_apply(const fd_task *task, const uint8_t *bits, int ndim, const fd_axis *axis)
{
    const int64_t size = (int64_t)fd_itemsize[task->dtype];
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
    w.task = past_caches(task, total);
    pool_run(task->machine.threads, total / w.n * w.per_run, chunk_of(min_size(w.n, FD_TILE)),
             walk_tiles, &w);
    free(copy);
}

void fd_forward_walk(const fd_task *task, const fd_place *place, const fd_axis *axis, uint64_t most,
                     uint8_t *bits)
{
    fd_axis part[FD_MAX_DIMS];
    uint64_t size = 1;
    int cut = -1; /* the first axis that can be cut */
    memcpy(part, axis, sizeof *part * (size_t)place->ndim);
    for (int d = place->ndim - 1; d >= 0; d--) {
        if (part[d].bit)
            part[d].bit = (int64_t)size;
        size *= (uint64_t)place->shape[d];
        cut = place->shape[d] > 1 ? d : cut;
    }
    if (size <= most || cut < 0) {
        fd_draw_bits(task->machine, &task->draw, place, bits);
        fd_apply(task, bits, place->ndim, part);
        return;
    }
    const int64_t length = place->shape[cut];
    const int64_t fits = (int64_t)(most / (size / (uint64_t)length)), step = fits ? fits : 1;
    fd_place p = *place;
    fd_task t = *task;
    for (int64_t begin = 0; begin < length; begin += step) {
        p.shape[cut] = part[cut].n = length - begin < step ? length - begin : step;
        if (place->rows && !cut)
            p.rows = place->rows + begin;
        else
            p.start = place->start + (uint64_t)(begin * place->stride[cut]);
        t.operands.x = task->operands.x + begin * axis[cut].x;
        t.operands.y = task->operands.y + begin * axis[cut].y;
        fd_forward_walk(&t, &p, part, most, bits);
    }
}
