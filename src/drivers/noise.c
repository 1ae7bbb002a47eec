/* Contiguous arrays and continuous noise: draw and apply tile by tile. */
#include "drivers/tiles.h"

/* Tiles a thread takes at a time: noise costs more than keep bits, so threads pay earlier. */
enum { NOISE_CHUNK = CHUNK / 4 };

typedef struct {
    fd_noise_task task;
    float *noise; /* fd_draw_noise: where it goes */
    char *dx, *t; /* backward */
    size_t row;
    double *sums;
} Job;

/* Noise of m <= FD_TILE elements from the i-th on: in `buffer`, or where it was given. */
static const float *noise_at(const fd_noise_task *t, uint64_t i, size_t m, float *buffer)
{
    if (t->operands.noise)
        return t->operands.noise + i;
    const size_t size = fd_itemsize[t->dtype], skip = (t->start + i) % FD_NOISE_BLOCK;
    const char *x = t->operands.x;
    const fd_ahead ahead = x ? (fd_ahead){x + i * size, size} : (fd_ahead){(char *)buffer, 0};
    t->machine.kernels->draw_noise(t->kind, &t->draw, (t->start + i) / FD_NOISE_BLOCK, m + skip,
                                   buffer, ahead);
    return buffer + skip;
}

/* The operands of the i-th element. */
static fd_noise_operands noise_operands_at(const fd_noise_task *t, uint64_t i, const float *noise)
{
    const size_t size = fd_itemsize[t->dtype], compute = size == 8 ? 8 : 4;
    fd_noise_operands o = t->operands;
    o.noise = noise;
    o.x += i * size;
    if (o.y)
        o.y += i * size;
    if (o.g)
        o.g += i * size;
    if (o.sigma)
        o.sigma += i % t->sigma_length * compute;
    return o;
}

static void draw_tiles(const void *data, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Job *job = data;
    float buffer[FD_TILE + FD_NOISE_PAD];
    for (; first < last; first++) {
        const uint64_t i = first * FD_TILE;
        const size_t m = min_size(job->task.n - i, FD_TILE);
        memcpy(job->noise + i, noise_at(&job->task, i, m, buffer), m * sizeof *buffer);
    }
}

void fd_draw_noise(fd_machine m, const fd_draw *draw, fd_noise kind, const fd_place *place,
                   float *noise)
{
    Job job = {.task = {.machine = m, .draw = *draw, .kind = kind, .n = 1}};
    fd_noise_task *const run = &job.task; /* of consecutive indices */
    uint64_t size = 1;
    int outer = place->ndim; /* axes in front of it */
    for (int d = 0; d < place->ndim; d++)
        size *= (uint64_t)place->shape[d];
    const int rows = place->rows != NULL; /* axis 0's are not one run */
    while (outer > rows &&
           (place->shape[outer - 1] == 1 || place->stride[outer - 1] == (int64_t)run->n))
        run->n *= (uint64_t)place->shape[--outer];
    for (uint64_t done = 0; done < size; done += run->n) {
        uint64_t at = done / run->n;
        run->start = place->start, job.noise = noise + done;
        for (int d = outer - 1; d >= 0; d--) {
            const uint64_t i = at % (uint64_t)place->shape[d];
            run->start += (rows && !d ? (uint64_t)place->rows[i] : i) * (uint64_t)place->stride[d];
            at /= (uint64_t)place->shape[d];
        }
        pool_run(m.threads, tiles(run->n), NOISE_CHUNK, draw_tiles, &job);
    }
}

static void forward_tiles(const void *data, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const fd_noise_task *t = data;
    float buffer[FD_TILE + FD_NOISE_PAD];
    for (; first < last; first++) {
        const uint64_t i = first * FD_TILE;
        const size_t m = min_size(t->n - i, FD_TILE);
        const fd_noise_operands o = noise_operands_at(t, i, noise_at(t, i, m, buffer));
        t->machine.kernels->apply_noise[t->op][t->dtype](&o, m);
    }
}

void fd_noise_forward(const fd_noise_task *task)
{
    pool_run(task->machine.threads, tiles(task->n), NOISE_CHUNK, forward_tiles, task);
}

/* Tiles part by part, so that the order of the additions is always the same. */
static void backward_parts(const void *data, uint64_t first, uint64_t last, int seat)
{
    (void)seat;
    const Job *job = data;
    const fd_noise_task *t = &job->task;
    const fd_kernels *k = t->machine.kernels;
    const fd_noise_op gradient = t->op == FD_CONCRETE ? FD_CONCRETE_GRADIENT : FD_NOISE_GRADIENT;
    const fd_dtype compute = t->dtype == FD_FLOAT64 ? FD_FLOAT64 : FD_FLOAT32;
    const size_t size = fd_itemsize[compute];
    const uint64_t all = tiles(t->n), parts = min_size(FD_PARTS, all);
    float buffer[FD_TILE + FD_NOISE_PAD];
    /* Of the compute type: half a tile of float64, as the stack of a caller's thread may be small. */
    char terms[FD_TILE * 4];
    for (; first < last; first++) {
        double *const sum = job->sums ? job->sums + first * job->row : NULL;
        const uint64_t end = all * (first + 1) / parts;
        if (sum)
            memset(sum, 0, job->row * sizeof *sum);
        for (uint64_t tile = all * first / parts; tile < end; tile++) {
            const uint64_t stop = min_size(t->n, (tile + 1) * FD_TILE);
            uint64_t i = tile * FD_TILE;
            const float *noise = noise_at(t, i, (size_t)(stop - i), buffer);
            for (size_t m; i < stop; i += m, noise += m) {
                m = min_size(stop - i, sizeof terms / size);
                fd_noise_operands o = noise_operands_at(t, i, noise);
                o.y = job->t ? job->t + i * size : terms;
                k->apply_noise[gradient][t->dtype](&o, m);
                if (job->dx) {
                    o.x = o.g, o.y = job->dx + i * fd_itemsize[t->dtype];
                    k->apply_noise[t->op][t->dtype](&o, m);
                }
                if (sum)
                    add_columns(k, compute, terms, i, m, job->row, sum);
            }
        }
    }
}

void fd_noise_backward(const fd_noise_task *task, char *dx, char *t, size_t row, double *sums)
{
    const Job job = {*task, NULL, dx, t, row, t ? NULL : sums};
    const int threads = task->n > NOISE_CHUNK * FD_TILE ? task->machine.threads : 1;
    const uint64_t parts = min_size(FD_PARTS, tiles(task->n)); /* of more, the others would be empty */
    pool_run(threads, parts, 1, backward_parts, &job);
    if (!t)
        fd_sum_parts(task->machine, row, parts, sums);
}
