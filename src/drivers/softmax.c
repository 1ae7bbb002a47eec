/* Softmax and dropout: rows, each of which a kernel takes. */
#include "drivers/tiles.h"

static void rows_of(const void *job, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const fd_softmax_task *t = job;
    for (; first < last; first++)
        t->machine.kernels->softmax[t->back][t->dtype](&t->operands, first);
}

void fd_softmax_rows(const fd_softmax_task *task)
{
    if (!task->rows)
        return;
    /* An element costs ten times what it costs to drop it, so threads pay earlier. */
    pool_run(task->machine.threads, task->rows, chunk_of(8 * task->operands.length), rows_of, task);
}
