/* DropConnect: from a batch to tiles of weights that a kernel takes. No mask exists, only the bits
 * of one tile and one example. */
#include "drivers/tiles.h"

/* Examples that pass by the weights together: their y stays in the cache. */
enum { EXAMPLES = 32 };

/* Columns of a tile's row. */
static size_t padded(size_t n) { return (n + FD_GROUP - 1) / FD_GROUP * FD_GROUP; }

typedef struct {
    const fd_kernels *kernels;
    fd_draw draw;
    uint64_t start, length; /* index of the first example's mask, and how long each is */
    fd_linear l;
    size_t rows, tiles; /* rows of weights in a tile; tiles of rows, the bias is the last */
} Connect;

/* What a thread works in, too large for the stack of a caller's thread, which may be small: a tile of
 * weights, and backward those of its gradient and of one row. */
static size_t room_bytes(const fd_linear *l) { return FD_TILE * fd_itemsize[l->dtype] * (l->dx ? 3 : 1); }

/* Weights that stay in the L1 cache while the examples pass by. The bias is a row whose x is 1. */
typedef struct {
    fd_weights w;
    size_t row, column;
    int bias;
    char *weights;
    uint8_t bits[FD_BITS_BYTES];
} Tile;

/* Where cache lines begin. */
static char *room_of(const fd_linear *l, int seat)
{
    return l->room + to_line(l->room) + (size_t)seat * room_bytes(l);
}

static void take(const Connect *c, size_t tile, size_t column, Tile *t)
{
    const fd_linear *l = &c->l;
    const size_t size = fd_itemsize[l->dtype], n = min_size(l->outputs - column, FD_TILE);
    const size_t row = min_size(tile * c->rows, l->inputs);
    t->row = row, t->column = column, t->bias = row == l->inputs;
    const size_t rows = t->bias ? 1 : min_size(c->rows, l->inputs - row);
    t->w = (fd_weights){t->weights, rows, n, padded(n), l->outputs};
    const char *from = (t->bias ? l->bias : l->weight + row * l->outputs * size) + column * size;
    memset(t->weights, 0, rows * t->w.padded * size);
    for (size_t r = 0; r < rows; r++)
        memcpy(t->weights + r * t->w.padded * size, from + r * l->outputs * size, n * size);
}

/* Bits of the tile in the mask of example i; returns which of t->bits is the first. */
static size_t draw_tile(const Connect *c, Tile *t, uint64_t i)
{
    const uint64_t start = c->start + i * c->length + t->row * c->l.outputs + t->column;
    const size_t skip = start % FD_ALIGN, n = (t->w.rows - 1) * t->w.row_bits + t->w.n;
    c->kernels->draw_bits(&c->draw, (fd_indices){start - skip, NULL}, skip + n, t->bits);
    return skip;
}

/* What the tile's rows are multiplied by in example i. */
static const void *x_of(const Connect *c, const Tile *t, uint64_t i)
{
    static const float one32 = 1;
    static const double one64 = 1;
    if (t->bias)
        return c->l.dtype == FD_FLOAT32 ? (const void *)&one32 : &one64;
    return c->l.x + (i * c->l.inputs + t->row) * fd_itemsize[c->l.dtype];
}

static void forward(const void *job, uint64_t first, uint64_t last, int seat)
{
    const Connect *c = job;
    const fd_linear *l = &c->l;
    const size_t size = fd_itemsize[l->dtype], row = l->outputs * size;
    Tile t = {.weights = room_of(l, seat)};
    for (uint64_t end; first < last; first = end) {
        end = first + min_size(last - first, EXAMPLES);
        memset(l->y + first * row, 0, (end - first) * row);
        for (size_t column = 0; column < l->outputs; column += FD_TILE)
            for (size_t tile = 0; tile < c->tiles; tile++) {
                take(c, tile, column, &t);
                for (uint64_t i = first; i < end; i++) {
                    const size_t bit = draw_tile(c, &t, i);
                    c->kernels->connect[l->dtype](&t.w, t.bits, bit, x_of(c, &t, i),
                                                  l->y + i * row + column * size);
                }
            }
    }
}

static void backward(const void *job, uint64_t first, uint64_t last, int seat)
{
    const Connect *c = job;
    const fd_linear *l = &c->l;
    const size_t size = fd_itemsize[l->dtype], row = l->outputs * size;
    Tile t = {.weights = room_of(l, seat)};
    char *const dw = t.weights + FD_TILE * size, *const wide = dw + FD_TILE * size;
    for (; first < last; first++)
        for (size_t column = 0; column < l->outputs; column += FD_TILE) {
            take(c, first, column, &t);
            memset(dw, 0, t.w.rows * t.w.padded * size);
            memset(wide, 0, t.w.padded * size);
            for (uint64_t i = 0; i < l->batch; i++) {
                const size_t bit = draw_tile(c, &t, i);
                const char *g = l->dy + i * row + column * size;
                if (t.w.n < t.w.padded)
                    g = memcpy(wide, g, t.w.n * size);
                void *dx = t.bias ? NULL : l->dx + (i * l->inputs + t.row) * size;
                c->kernels->connect_back[l->dtype](&t.w, t.bits, bit, g, x_of(c, &t, i), dx, dw);
            }
            char *to = (t.bias ? l->dbias : l->dweight + t.row * row) + column * size;
            for (size_t r = 0; r < t.w.rows; r++)
                memcpy(to + r * row, dw + r * t.w.padded * size, t.w.n * size);
        }
}

static Connect connect_of(fd_machine m, const fd_draw *draw, uint64_t first, const fd_linear *l)
{
    const uint64_t length = (l->inputs + !!l->bias) * (uint64_t)l->outputs;
    const size_t rows = FD_TILE / min_size(padded(l->outputs), FD_TILE);
    const size_t tiles = (l->inputs + rows - 1) / rows + !!l->bias;
    return (Connect){m.kernels, *draw, first * length, length, *l, rows, tiles};
}

/* Units a thread takes at a time, each of so many weights: as many as the others, except that it takes
 * no more than `most`, and no less than chunk_of says. */
static uint64_t share_of(fd_machine m, uint64_t units, uint64_t weights, uint64_t most)
{
    const uint64_t fair = min_size((units + (uint64_t)m.threads - 1) / (uint64_t)m.threads, most);
    const uint64_t least = chunk_of(weights);
    return fair > least ? fair : least;
}

/* Of the examples forward, of the tiles backward. */
static uint64_t chunk_for(fd_machine m, const Connect *c)
{
    if (c->l.dx)
        return share_of(m, c->tiles, c->rows * c->l.outputs * c->l.batch + 1, 4);
    return share_of(m, c->l.batch, c->length + 1, EXAMPLES / 2);
}

size_t fd_connect_room(fd_machine m, const fd_linear *l)
{
    if (!l->outputs)
        return 0;
    const fd_draw any = {0, 0, 0};
    const Connect c = connect_of(m, &any, 0, l);
    const uint64_t units = l->dx ? c.tiles : l->batch, chunk = chunk_for(m, &c);
    return min_size((uint64_t)m.threads, (units + chunk - 1) / chunk) * room_bytes(l) + 64;
}

void fd_connect(fd_machine m, const fd_draw *draw, uint64_t first, const fd_linear *l)
{
    if (!l->outputs || !l->batch)
        return;
    const Connect c = connect_of(m, draw, first, l);
    pool_run(m.threads, l->batch, chunk_for(m, &c), forward, &c);
}

void fd_connect_back(fd_machine m, const fd_draw *draw, uint64_t first, const fd_linear *l)
{
    if (!l->outputs)
        return;
    const Connect c = connect_of(m, draw, first, l);
    pool_run(m.threads, c.tiles, chunk_for(m, &c), backward, &c);
}
