/* Dropout as a custom call of XLA, which JAX compiles to.
 *
 * XLA promises that this interface (xla/ffi/api/c_api.h, version 0.x) is binary compatible, and checks
 * the version that a handler names. So that building needs no JAX, what is used of it is declared here:
 * every structure begins with its size and extensions, and new fields come at the end.
 */
#include "runtime/api.h"
#include <string.h>

enum { XLA_MAJOR = 0, XLA_MINOR = 1 };
enum { XLA_METADATA = 1 }; /* type of extension */
enum { XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

typedef struct Extension {
    size_t size;
    int type;
    struct Extension *next;
} Extension;

typedef struct {
    size_t size;
    Extension *extensions;
    int major, minor;
} Version;

typedef struct {
    Extension base;
    struct {
        size_t size;
        Version version;
        uint32_t traits;
    } *metadata;
} Metadata;

typedef struct {
    size_t size;
    Extension *extensions;
    int dtype;
    void *data;
    int64_t rank, *dims;
} Buffer;

typedef struct {
    size_t size;
    Extension *extensions;
    int64_t count;
    int *types;
    Buffer **buffers;
} Buffers;

typedef struct {
    int dtype;
    void *value;
} Scalar;

typedef struct {
    size_t size;
    Extension *extensions;
    int64_t count;
    int *types;
    void **names;
    Scalar **values;
} Attributes;

typedef struct {
    size_t size;
    Extension *extensions;
    const void *api;
    void *context;
    int stage;
    Buffers args, results;
    Attributes attributes;
} CallFrame;

static int dtype_of(int xla)
{
    switch (xla) {
    case XLA_F16: return FASTDROP_FLOAT16;
    case XLA_BF16: return FASTDROP_BFLOAT16;
    case XLA_F64: return FASTDROP_FLOAT64;
    default: return FASTDROP_FLOAT32;
    }
}

/* Arguments: x, and uint32 draws of shape (..., 4), each the low and high words of a seed and of a call.
 * There are as many draws as equal parts of x, which follow each other: one, or those that a vmap made.
 * Attribute: p, float64. `fastdrop.adapters.jax` is the only caller. */
void *fd_xla_dropout(void *call_frame)
{
    const CallFrame *frame = call_frame;
    Extension *const asked = frame->extensions;
    if (asked && asked->type == XLA_METADATA) {
        Metadata *const answer = (Metadata *)asked;
        answer->metadata->version.major = XLA_MAJOR;
        answer->metadata->version.minor = XLA_MINOR;
        answer->metadata->traits = 0;
        return NULL;
    }
    const Buffer *x = frame->args.buffers[0], *draws = frame->args.buffers[1];
    double p;
    memcpy(&p, frame->attributes.values[0]->value, sizeof p);
    size_t n = 1, parts = 1;
    for (int64_t d = 0; d < x->rank; d++)
        n *= (size_t)x->dims[d];
    for (int64_t d = 0; d < draws->rank - 1; d++)
        parts *= (size_t)draws->dims[d];
    if (!n || !parts)
        return NULL;
    n /= parts;
    const int dtype = dtype_of(x->dtype);
    const size_t bytes = n * fd_itemsize[dtype];
    const uint32_t *word = draws->data;
    const char *from = x->data;
    char *to = frame->results.buffers[0]->data;
    for (; parts--; word += 4, from += bytes, to += bytes) {
        const uint64_t seed = word[0] | (uint64_t)word[1] << 32;
        const uint64_t call = word[2] | (uint64_t)word[3] << 32;
        fd_api.forward(dtype, from, to, NULL, n, 0, seed, call, p);
    }
    return NULL;
}
