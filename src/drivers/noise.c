/* For size: what is hot is in the kernels. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")
#endif
/* From a whole array to tiles of continuous noise, on several threads: see fastdrop.h. */
#include "fastdrop.h"
#include "runtime/pool.h"
#include <string.h>

/* Tiles a thread takes at a time: noise costs more than keep bits, so threads pay earlier. */
enum { CHUNK = 4 };

static inline size_t min_size(uint64_t a, uint64_t b) { return (size_t)(a < b ? a : b); }

static inline uint64_t tiles(uint64_t n) { return (n + FD_TILE - 1) / FD_TILE; }

typedef struct {
    const fd_kernels *kernels;
    fd_noise kind;
    fd_stream stream;
    uint64_t start, n;
    fd_noise_op op;
    fd_dtype dtype;
    fd_noise_operands at; /* the first elements */
    size_t sigma_length;
    char *dx, *t; /* of backward */
    size_t row;
    double *sums;
    float *noise; /* of fd_draw_noise */
} Job;

/* Noise of m <= FD_TILE elements from the i-th on: in `buffer`, or where it was given. */
static const float *noise_at(const Job *job, uint64_t i, size_t m, float *buffer)
{
    if (job->at.noise)
        return job->at.noise + i;
    const size_t size = fd_itemsize[job->dtype], skip = (job->start + i) % FD_NOISE_BLOCK;
    job->kernels->noise(job->kind, &job->stream, (job->start + i) / FD_NOISE_BLOCK, m + skip,
                        buffer, job->at.x ? job->at.x + i * size : NULL, job->at.x ? size : 0);
    return buffer + skip;
}

/* The operands of the i-th element. */
static fd_noise_operands operands_at(const Job *job, uint64_t i, const float *noise)
{
    const size_t size = fd_itemsize[job->dtype], compute = size == 8 ? 8 : 4;
    fd_noise_operands o = job->at;
    o.noise = noise;
    o.x += i * size;
    if (o.y)
        o.y += i * size;
    if (o.g)
        o.g += i * size;
    if (o.sigma_step)
        o.sigma += i % job->sigma_length * compute;
    return o;
}

static void draw_tiles(const void *data, uint64_t first, uint64_t last)
{
    const Job *job = data;
    float buffer[FD_NOISE_ROOM(FD_TILE)];
    for (; first < last; first++) {
        const uint64_t i = first * FD_TILE;
        const size_t m = min_size(job->n - i, FD_TILE);
        memcpy(job->noise + i, noise_at(job, i, m, buffer), m * sizeof *buffer);
    }
}

void fd_draw_noise(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start, int ndim,
                   const int64_t *shape, const int64_t *stride, float *noise)
{
    Job job = {.kernels = m.kernels, .kind = kind, .stream = stream, .n = 1};
    uint64_t size = 1;
    int outer = ndim; /* axes in front of a run of consecutive indices */
    for (int d = 0; d < ndim; d++)
        size *= (uint64_t)shape[d];
    while (outer && (shape[outer - 1] == 1 || stride[outer - 1] == (int64_t)job.n))
        job.n *= (uint64_t)shape[--outer];
    for (uint64_t done = 0; done < size; done += job.n) {
        uint64_t run = done / job.n;
        job.start = start, job.noise = noise + done;
        for (int d = outer - 1; d >= 0; d--) {
            job.start += run % (uint64_t)shape[d] * (uint64_t)stride[d];
            run /= (uint64_t)shape[d];
        }
        pool_run(m.threads, tiles(job.n), CHUNK, draw_tiles, &job);
    }
}

static void forward_tiles(const void *data, uint64_t first, uint64_t last)
{
    const Job *job = data;
    float buffer[FD_NOISE_ROOM(FD_TILE)];
    for (; first < last; first++) {
        const uint64_t i = first * FD_TILE;
        const size_t m = min_size(job->n - i, FD_TILE);
        const fd_noise_operands o = operands_at(job, i, noise_at(job, i, m, buffer));
        job->kernels->apply_noise[job->op][job->dtype](&o, m);
    }
}

void fd_noise_forward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start, fd_noise_op op,
                      fd_dtype dtype, fd_noise_operands operands, size_t sigma_length, size_t n)
{
    const Job job = {.kernels = m.kernels, .kind = kind, .stream = stream, .start = start, .n = n,
                     .op = op, .dtype = dtype, .at = operands, .sigma_length = sigma_length};
    pool_run(m.threads, tiles(n), CHUNK, forward_tiles, &job);
}

/* Tiles part by part, so that the order of the additions is always the same. */
static void backward_parts(const void *data, uint64_t first, uint64_t last)
{
    const Job *job = data;
    const fd_noise_op gradient =
        job->op == FD_CONCRETE ? FD_CONCRETE_GRADIENT : FD_NOISE_GRADIENT;
    const fd_dtype compute = job->dtype == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32;
    const size_t size = fd_itemsize[compute];
    const uint64_t all = tiles(job->n);
    float buffer[FD_NOISE_ROOM(FD_TILE)];
    double terms[FD_TILE]; /* of the compute type */
    for (; first < last; first++) {
        double *const sum = job->sums ? job->sums + first * job->row : NULL;
        const uint64_t end = all * (first + 1) / FD_PARTS;
        if (sum)
            memset(sum, 0, job->row * sizeof *sum);
        for (uint64_t tile = all * first / FD_PARTS; tile < end; tile++) {
            const uint64_t i = tile * FD_TILE;
            const size_t m = min_size(job->n - i, FD_TILE);
            fd_noise_operands o = operands_at(job, i, noise_at(job, i, m, buffer));
            o.y = job->t ? job->t + i * size : (char *)terms;
            job->kernels->apply_noise[gradient][job->dtype](&o, m);
            if (job->dx) {
                o.x = o.g, o.y = job->dx + i * fd_itemsize[job->dtype];
                job->kernels->apply_noise[job->op][job->dtype](&o, m);
            }
            for (size_t j = 0, r; !job->t && j < m; j += r) {
                const size_t column = (i + j) % job->row;
                r = min_size(m - j, job->row - column);
                job->kernels->add_to[compute]((char *)terms + j * size, sum + column, r);
            }
        }
    }
}

void fd_noise_backward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start,
                       fd_noise_op op, fd_dtype dtype, fd_noise_operands operands,
                       size_t sigma_length, char *dx, char *t, size_t row, double *sums, size_t n)
{
    const Job job = {.kernels = m.kernels, .kind = kind, .stream = stream, .start = start, .n = n,
                     .op = op, .dtype = dtype, .at = operands, .sigma_length = sigma_length,
                     .dx = dx, .t = t, .row = row, .sums = t ? NULL : sums};
    pool_run(n > CHUNK * FD_TILE ? m.threads : 1, FD_PARTS, 1, backward_parts, &job);
    if (!t)
        fd_sum_parts(row, sums);
}
