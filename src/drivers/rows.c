/* Rows: of a table, looked up by number, and sums over the rows of an array. */
#include "drivers/tiles.h"

typedef struct {
    fd_task task; /* x: the table */
    const int64_t *ids;
    const uint8_t *bits;
    size_t row;
} Lookup;

static void look_up(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Lookup *l = job;
    const fd_task *t = &l->task;
    const size_t size = l->row * fd_itemsize[t->dtype], tile = FD_TILE * fd_itemsize[t->dtype];
    const size_t ahead = 1 + 4096 / size; /* rows: where they are, no hardware would guess */
    const char *table = t->operands.x;
    char *y = t->operands.y;
    fd_apply_fn *apply = t->machine.kernels->apply[t->op][t->dtype];
    fd_operands o = t->operands;
    uint8_t ones[FD_TILE / 8 + FD_BITS_PAD];
    memset(ones, 0xff, sizeof ones);
    for (; first < last; first++) {
        const uint64_t id = (uint64_t)l->ids[first];
        if (first + ahead < last)
            for (size_t b = 0; b < size && b < 4096; b += 64)
                prefetch(table + (uint64_t)l->ids[first + ahead] * size + b);
        o.x = table + id * size, o.y = y + first * size;
        if (!(l->bits[id / 8] >> id % 8 & 1))
            memset(o.y, 0, size);
        else
            for (size_t i = 0; i < l->row; i += FD_TILE, o.x += tile, o.y += tile)
                apply(&o, ones, 0, min_size(l->row - i, FD_TILE));
    }
}

void fd_lookup(const fd_task *task, const int64_t *ids, const uint8_t *bits, size_t row)
{
    const Lookup l = {*task, ids, bits, row};
    if (row)
        pool_run(task->machine.threads, task->n, chunk_of(row), look_up, &l);
}

void fd_add_rows(fd_machine m, fd_dtype dtype, const char *x, const int64_t *ids, size_t n,
                 size_t row, double *sums)
{
    for (size_t i = 0; i < n; i++)
        m.kernels->add_rows[dtype](x + i * row * fd_itemsize[dtype], 1, row, sums + (size_t)ids[i] * row,
                                   row);
}

typedef struct {
    fd_task task;
    const uint8_t *bits;
    size_t row;
    double *sums;
} Sums;

/* 16 rows at least, as a part of fewer would take longer to add to the others. */
uint64_t fd_parts_of(uint64_t rows) { return rows ? min_size(FD_PARTS, (rows + 15) / 16) : 1; }

/* Part by part, so that the order of the additions is always the same. */
static void sum_parts(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Sums *s = job;
    const fd_task *t = &s->task;
    const size_t size = fd_itemsize[t->dtype];
    const uint64_t rows = t->n / s->row, parts = fd_parts_of(rows);
    const size_t most = s->row < 4 * FD_TILE ? 4 * FD_TILE / s->row : 1; /* rows that stay in the cache */
    for (; first < last; first++) {
        double *sum = s->sums + first * s->row;
        memset(sum, 0, s->row * sizeof *sum);
        const uint64_t end = rows * (first + 1) / parts;
        for (uint64_t r = rows * first / parts, m; r < end; r += m) {
            m = min_size(end - r, most);
            const uint64_t i = r * s->row;
            if (s->bits)
                apply_at(t, i, s->bits, i, m * s->row);
            add_columns(t->machine.kernels, t->dtype, t->operands.y + i * size, i, m * s->row, s->row, sum);
        }
    }
}

void fd_sum_parts(fd_machine m, size_t row, size_t parts, double *sums)
{
    if (parts > 1)
        m.kernels->add_rows[FD_FLOAT64]((char *)(sums + row), parts - 1, row, sums, row);
}

void fd_backward_sums(const fd_task *task, const uint8_t *bits, size_t row, double *sums)
{
    if (!task->n) { /* then there may be no rows to count */
        memset(sums, 0, row * sizeof *sums);
        return;
    }
    const Sums s = {*task, bits, row, sums};
    const uint64_t parts = fd_parts_of(task->n / row);
    pool_run(task->n > CHUNK * FD_TILE ? task->machine.threads : 1, parts, 1, sum_parts, &s);
    fd_sum_parts(task->machine, row, parts, sums);
}
