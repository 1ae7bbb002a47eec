/* Threads that live on between calls.
 *
 * The pool has one job at a time. Units of a job are handed out in chunks by a counter, so how many
 * threads take part, and which, decides nothing but the time. */
#ifndef FASTDROP_POOL_H
#define FASTDROP_POOL_H

#include <stdint.h>

/* seat: which of the job's threads this is, 0 ... threads - 1; at most one thread has it at a time. */
typedef void pool_work(const void *job, uint64_t first, uint64_t last, int seat);

/* work(job, ...) over units 0 ... n - 1 in chunks, on up to `threads` threads, the caller's included.
 * Returns when all is done. A caller that finds the pool taken works alone, and so does the only
 * thread there is in a forked child until it asks for more. No thread starts before the first job. */
void pool_run(int threads, uint64_t n, uint64_t chunk, pool_work *work, const void *job);

/* Called once, by whichever thread is refused another by the system; the job is done with fewer. */
extern void (*pool_refused)(void);

#endif
