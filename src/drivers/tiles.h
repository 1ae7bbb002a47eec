/* What the drivers share: how arrays are cut into tiles, and an op on a part of its elements. */
#ifndef FASTDROP_TILES_H
#define FASTDROP_TILES_H

#include "fastdrop.h"
#include "kernels/bits.h"
#include "runtime/pool.h"
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

/* As much, in units of so many elements, at least one. */
static inline uint64_t chunk_of(uint64_t elements)
{
    return (CHUNK * FD_TILE + elements - 1) / elements;
}

/* The operands from the i-th element on, all contiguous. */
static inline fd_operands operands_at(const fd_task *t, uint64_t i)
{
    const uint64_t offset = i * fd_itemsize[t->dtype];
    fd_operands o = t->operands;
    o.x += offset, o.y += offset;
    if (fd_reads_residual(t->op))
        o.residual += offset;
    if (fd_reads_bias(t->op))
        o.bias += i % t->bias_length * fd_itemsize[t->dtype];
    if (fd_is_relu(t->op))
        o.active += i / 8;
    return o;
}

/* n of them; the first is bit `bit` of bits. Of a bias that repeats no more than its room is there in one piece. */
static inline void apply_at(const fd_task *t, uint64_t i, const uint8_t *bits, size_t bit, size_t n)
{
    const size_t most = fd_reads_bias(t->op) && !t->operands.bias_skip ? FD_REPEAT_PAD : n;
    for (size_t m; n; n -= m, i += m, bit += m) {
        const fd_operands o = operands_at(t, i);
        m = min_size(n, most);
        t->machine.kernels->apply[t->op][t->dtype](&o, bits, bit, m);
    }
}

/* Elements i ... i + n - 1 to the sums of their columns, of which there are `row`. */
static inline void add_columns(const fd_kernels *k, fd_dtype dtype, const char *x, uint64_t i, size_t n,
                               size_t row, double *sums)
{
    for (size_t m, rows; n; i += m * rows, n -= m * rows, x += m * rows * fd_itemsize[dtype]) {
        const size_t column = i % row;
        rows = column || n < row ? 1 : n / row;
        m = min_size(n, row - column);
        k->add_rows[dtype](x, rows, row, sums + column, m);
    }
}

/* The task; writing past the caches pays where y's n elements would not stay in them. In place they are
 * in them already. */
static inline fd_task past_caches(const fd_task *task, uint64_t n)
{
    fd_task t = *task;
    t.operands.non_temporal = n * fd_itemsize[t.dtype] >= t.machine.non_temporal_bytes &&
                              t.operands.x != t.operands.y && t.operands.residual != t.operands.y;
    return t;
}

/* Before another thread may read what was written past the caches. */
static inline void fence(const fd_task *t)
{
#if defined(__x86_64__)
    if (t->operands.non_temporal)
        _mm_sfence();
#else
    (void)t;
#endif
}

#endif
