/* DropBlock: from where squares begin to keep bits, and a scale for each example. The bits of each
 * example begin with a word of their own, so that threads share none. */
#include "drivers/tiles.h"

/* Bit i becomes the or of bits i, i - step, ... i - (k - 1) * step; each pass doubles how many. */
static void spread(uint64_t *words, size_t n, size_t step, size_t k)
{
    for (size_t done = 1, more; done < k; done += more) {
        more = done < k - done ? done : k - done;
        const size_t far = more * step / 64;
        const unsigned shift = more * step % 64;
        for (size_t i = n; i-- > far + 1;)
            words[i] |= words[i - far] << shift | words[i - far - 1] >> 1 >> (63 - shift);
        if (far < n)
            words[far] |= words[0] << shift;
    }
}

/* To bit `at` of words: n seeds, which are the zeros from bit `from` on. */
static void put_seeds(uint64_t *words, size_t at, const uint8_t *bits, uint64_t from, size_t n)
{
    for (size_t m; n; n -= m, at += m, from += m) {
        m = n < BITS_CHUNK ? n : BITS_CHUNK;
        const uint64_t seeds = bits_get(bits, from, m) ^ ((UINT64_C(1) << m) - 1);
        words[at / 64] |= seeds << at % 64;
        if (at % 64 + m > 64)
            words[at / 64 + 1] |= seeds >> (64 - at % 64);
    }
}

typedef struct {
    fd_squares shape;
    const uint8_t *seeds;
    uint64_t *keep;
} Drop;

/* The maps of an example are one run of bits. A square begins only where it fits, so no shift, along
 * a row or by whole rows, carries it across an edge. */
static void drop_examples(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Drop *d = job;
    const fd_squares s = d->shape;
    const size_t rows = s.height - s.square_height + 1, columns = s.width - s.square_width + 1;
    const size_t elements = s.maps * s.height * s.width, n = FD_WORDS(elements);
    for (; first < last; first++) {
        uint64_t *const words = d->keep + first * n;
        uint64_t seed = first * s.maps * rows * columns;
        memset(words, 0, n * sizeof *words);
        for (size_t map = 0; map < s.maps; map++)
            for (size_t row = 0; row < rows; row++, seed += columns)
                put_seeds(words, (map * s.height + row) * s.width, d->seeds, seed, columns);
        spread(words, n, 1, s.square_width);
        spread(words, n, s.width, s.square_height);
        if (elements % 64)
            words[n - 1] |= UINT64_MAX << elements % 64;
        for (size_t i = 0; i < n; i++)
            store_le64((uint8_t *)(words + i), ~words[i]);
    }
}

void fd_drop_squares(fd_machine m, fd_squares shape, size_t examples, const uint8_t *seeds,
                    uint64_t *keep)
{
    const Drop d = {shape, seeds, keep};
    pool_run(m.threads, examples, chunk_of(shape.maps * shape.height * shape.width), drop_examples,
             &d);
}

typedef struct {
    fd_task task;
    const uint64_t *keep;
    size_t bits;
    int ndim;
    const fd_axis *axis;
} Examples;

static void apply_examples(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Examples *e = job;
    fd_task t = e->task;
    for (; first < last; first++) {
        const uint64_t *words = e->keep + first * FD_WORDS(e->bits);
        size_t kept = 0;
        for (size_t i = 0; i < FD_WORDS(e->bits); i++)
            kept += popcount64(words[i]);
        t.operands.x = e->task.operands.x + (int64_t)first * e->axis->x;
        t.operands.y = e->task.operands.y + (int64_t)first * e->axis->y;
        t.operands.constants.scale = kept ? (double)e->bits / (double)kept : 0;
        fd_apply(&t, (const uint8_t *)words, e->ndim - 1, e->axis + 1);
    }
}

void fd_apply_examples(const fd_task *task, const uint64_t *keep, size_t bits, int ndim,
                       const fd_axis *axis)
{
    const uint64_t examples = (uint64_t)axis->n;
    Examples e = {*task, keep, bits, ndim, axis};
    e.task.machine.non_temporal_bytes /= examples ? examples : 1; /* y is all of them */
    size_t elements = 1;
    for (int d = 1; d < ndim; d++)
        elements *= (size_t)axis[d].n;
    pool_run(task->machine.threads, examples, chunk_of(elements), apply_examples, &e);
}
