#if defined(__linux__)
#define _GNU_SOURCE /* for CPUs and who may run on them */
#endif
#include "runtime/pool.h"
#include <stddef.h>

void (*pool_refused)(void) = NULL;

#if defined(_WIN32)
void pool_run(int threads, uint64_t n, uint64_t chunk, pool_work *work, const void *job)
{
    (void)threads, (void)chunk;
    work(job, 0, n, 0);
}
#else

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>

static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER; /* held by the call that has the pool */

static struct {
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t wake, idle;
    int workers; /* threads there are, asleep or not */
    int seats;   /* how many more of them may join the job */
    int active;  /* how many have joined and not yet left */
    int cpu;     /* on which the caller gave the latest job; negative: unknown */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .idle = PTHREAD_COND_INITIALIZER};

/* The job; written while nobody is active. */
static pool_work *job_work;
static const void *job_data;
static uint64_t job_units, job_chunk;
static atomic_uint_fast64_t job_next;

static void take_chunks(int seat)
{
    for (;;) {
        const uint64_t first = atomic_fetch_add(&job_next, job_chunk);
        if (first >= job_units)
            return;
        const uint64_t left = job_units - first;
        job_work(job_data, first, first + (left < job_chunk ? left : job_chunk), seat);
    }
}

/* Workers stay off the caller's CPU. Where other threads spin on the rest, as those of BLAS do behind a
 * product of matrices, the system would let a worker wait behind the caller, until the job is done. */
#if defined(__linux__)
#include <sched.h>
typedef struct {
    cpu_set_t may, set; /* what others allow this thread; what it has set itself */
    int off;            /* the CPU that it stays off; negative: none */
} Where;

static Where anywhere(void) { return (Where){.off = -1}; }

static int current_cpu(void) { return sched_getcpu(); }

static void stay_off(Where *where, int cpu)
{
    cpu_set_t now;
    if (where->off == cpu || cpu < 0 || cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof now, &now))
        return;
    if (where->off < 0 || !CPU_EQUAL(&now, &where->set))
        where->may = now; /* others have changed it */
    where->set = where->may, where->off = cpu;
    CPU_CLR(cpu, &where->set);
    if (CPU_COUNT(&where->set))
        sched_setaffinity(0, sizeof where->set, &where->set);
}
#else
typedef int Where;
static Where anywhere(void) { return 0; }
static int current_cpu(void) { return -1; }
static void stay_off(Where *where, int cpu) { (void)where, (void)cpu; }
#endif

static void *worker(void *unused)
{
    (void)unused;
    Where where = anywhere();
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.seats) {
            stay_off(&where, pool.cpu);
            pthread_cond_wait(&pool.wake, &pool.lock);
        }
        const int seat = pool.seats--;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        take_chunks(seat);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0)
            pthread_cond_signal(&pool.idle);
    }
    return NULL;
}

/* A forked child has none of its parent's threads, and locks in whatever state they were. */
static void after_fork(void)
{
    pthread_mutex_init(&owner, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.idle, NULL);
    pool.workers = pool.seats = pool.active = 0;
}

/* Up to n workers; fewer if the system refuses. The caller holds the lock. */
static void hire(int n)
{
    static int registered = 0;
    if (!registered)
        registered = !pthread_atfork(NULL, NULL, after_fork);
    pthread_attr_t attr;
    if (!registered || pthread_attr_init(&attr))
        return;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, 1 << 20);
    sigset_t all, before; /* signals are for the threads of the host program */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    while (pool.workers < n && !pthread_create(&thread, &attr, worker, NULL))
        pool.workers++;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (pool.workers < n && pool_refused) {
        pool_refused();
        pool_refused = NULL;
    }
}

void pool_run(int threads, uint64_t n, uint64_t chunk, pool_work *work, const void *job)
{
    if (threads < 2 || n <= chunk || pthread_mutex_trylock(&owner)) {
        work(job, 0, n, 0);
        return;
    }
    job_work = work, job_data = job, job_units = n, job_chunk = chunk;
    atomic_store(&job_next, 0);
    const uint64_t useful = (n + chunk - 1) / chunk;
    const int others = useful < (uint64_t)threads ? (int)useful - 1 : threads - 1;
    pthread_mutex_lock(&pool.lock);
    if (pool.workers < others)
        hire(others);
    pool.seats = others < pool.workers ? others : pool.workers;
    pool.cpu = current_cpu();
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);

    take_chunks(0);

    pthread_mutex_lock(&pool.lock);
    pool.seats = 0; /* who has not woken up by now need not */
    while (pool.active)
        pthread_cond_wait(&pool.idle, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&owner);
}
#endif
