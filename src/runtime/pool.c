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

static void *worker(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        while (!pool.seats)
            pthread_cond_wait(&pool.wake, &pool.lock);
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
