# cython: language_level=3
"""``cimport fastdrop``: the CPU kernels, without the GIL. See include/fastdrop_api.h, whose folder
``fastdrop.get_include()`` tells. Call ``fastdrop.import_fastdrop()`` once before the others.
"""
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef extern from "fastdrop_api.h" nogil:
    enum:
        FLOAT32 "FASTDROP_FLOAT32"
        FLOAT64 "FASTDROP_FLOAT64"
        FLOAT16 "FASTDROP_FLOAT16"
        BFLOAT16 "FASTDROP_BFLOAT16"
    size_t BITS_BYTES "FASTDROP_BITS_BYTES"(size_t n)
    ctypedef struct fastdrop_api:
        int version
        void (*forward)(int dtype, const void *x, void *y, uint8_t *bits, size_t n,
                        uint64_t start, uint64_t seed, uint64_t call, double p) noexcept nogil
        void (*backward)(int dtype, const void *dy, void *dx, const uint8_t *bits, size_t n,
                         double p) noexcept nogil
        void (*draw)(uint8_t *bits, size_t n, uint64_t start, uint64_t seed, uint64_t call,
                     double p) noexcept nogil
        int (*region)(int dtype, const void *x, void *y, int ndim, const int64_t *shape,
                      const int64_t *start, const int64_t *global_shape, uint64_t shared,
                      uint64_t seed, uint64_t call, double p) noexcept nogil
    const fastdrop_api *api "fastdrop"

cdef extern from "fastdrop_api.h":
    int import_fastdrop "fastdrop_import"() except -1
