/* The CPU kernels for C, C++ and Cython code, without the GIL.
 *
 *     #include <Python.h>
 *     #include <fastdrop_api.h>            // cc -I$(python -c "import fastdrop; print(fastdrop.get_include())")
 *
 *     if (fastdrop_import() < 0)           // once, with the GIL held; in each file that includes this
 *         return NULL;
 *     fastdrop->forward(FASTDROP_FLOAT32, x, y, NULL, n, 0, seed, call, p);
 *
 * Nothing is linked: the functions come from the fastdrop that is imported. They check nothing and
 * cannot fail. Any thread may call them.
 */
#ifndef FASTDROP_API_H
#define FASTDROP_API_H

#include <stddef.h>
#include <stdint.h>

/* Functions are only ever added, at the end, and then the version is one more. */
#define FASTDROP_API_VERSION 2

enum { FASTDROP_FLOAT32, FASTDROP_FLOAT64, FASTDROP_FLOAT16, FASTDROP_BFLOAT16 };

/* Bytes of n keep bits: bit i % 8 of byte i / 8 is 1 where element i is kept. The last 8 are room for
 * whole words. */
#define FASTDROP_BITS_BYTES(n) (((n) + 7) / 8 + 8)

/* Arrays are contiguous and have n elements, aligned as their type; rates p are in [0, 1]. The draw is
 * that of fastdrop.dropout(x, p, rng=fastdrop.Rng(seed, call)); x begins at element `start` of the
 * array whose mask it is, which matters where x is a part of one. */
typedef struct {
    int version;

    /* y = x / (1 - p) where kept, else 0; y may be x. bits: NULL, or gets the keep bits. The backward
     * pass is the same with dy and dx, or `backward`. */
    void (*forward)(int dtype, const void *x, void *y, uint8_t *bits, size_t n, uint64_t start,
                    uint64_t seed, uint64_t call, double p);

    /* dx = dy / (1 - p) where the keep bits say so, else 0; dx may be dy. */
    void (*backward)(int dtype, const void *dy, void *dx, const uint8_t *bits, size_t n, double p);

    /* The keep bits alone. */
    void (*draw)(uint8_t *bits, size_t n, uint64_t start, uint64_t seed, uint64_t call, double p);

    /* `forward` of the block of this shape that begins at index `start` of an array of `global_shape`,
     * at most 64 axes each; the block lies within. Bit d of `shared` says that axis d shares a draw. Both
     * arrays have the block's elements in C order. 0, or -1 if there is no memory. Since version 2. */
    int (*region)(int dtype, const void *x, void *y, int ndim, const int64_t *shape,
                  const int64_t *start, const int64_t *global_shape, uint64_t shared, uint64_t seed,
                  uint64_t call, double p);
} fastdrop_api;

#define FASTDROP_CAPSULE "fastdrop._core._C_API"

#ifdef Py_PYTHON_H
static const fastdrop_api *fastdrop;

/* 0, or -1 with an ImportError set. */
static inline int fastdrop_import(void)
{
    const fastdrop_api *api = (const fastdrop_api *)PyCapsule_Import(FASTDROP_CAPSULE, 0);
    if (api && api->version < FASTDROP_API_VERSION) {
        PyErr_Format(PyExc_ImportError, "compiled for version %d of fastdrop's C API, this one has %d",
                     FASTDROP_API_VERSION, api->version);
        api = NULL;
    }
    fastdrop = api;
    return api ? 0 : -1;
}
#endif

#endif
