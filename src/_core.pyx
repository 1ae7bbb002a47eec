# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Buffers to pointers: hands NumPy arrays to the C kernels without the GIL.

Nothing is checked here. ``fastdrop.cpu`` is the only caller and passes what the public functions
have checked: aligned or not, but native byte order, right dtypes, shapes and sizes.
"""
import os

cimport numpy as cnp
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cnp.import_array()

cdef extern from "fastdrop.h" nogil:
    int FD_MAX_DIMS
    int FD_BITS_PAD
    ctypedef struct fd_stream:
        uint64_t seed, call, threshold
    ctypedef int fd_dtype
    int FD_FLOAT32, FD_FLOAT64
    ctypedef void fd_apply_fn(const char *x, char *y, const uint8_t *bits, size_t n, double scale)
    ctypedef struct fd_kernels:
        const char *name
        fd_apply_fn **apply
        void (*philox)(const uint32_t *counters, const uint32_t *key, int rounds, size_t n,
                       uint32_t *words)
    ctypedef struct fd_axis:
        int64_t n, x, y, bit
    const fd_kernels *fd_kernels_at(int i)
    void fd_dropout(const fd_kernels *k, fd_stream stream, uint64_t start, fd_dtype dtype,
                    const char *x, char *y, uint8_t *saved, size_t n, double scale)
    void fd_draw(const fd_kernels *k, fd_stream stream, uint64_t start, int ndim,
                 const int64_t *shape, const int64_t *stride, uint8_t *bits)
    void fd_apply(const fd_kernels *k, fd_dtype dtype, const char *x, char *y, const uint8_t *bits,
                  int ndim, fd_axis *axis, double scale)

FLOAT32 = FD_FLOAT32
FLOAT64 = FD_FLOAT64
BITS_PAD = FD_BITS_PAD

cdef const fd_kernels *kernels = fd_kernels_at(0)


def available_isas():
    """Names of the kernel tables this CPU can run, the fastest first."""
    names = []
    cdef int i = 0
    while fd_kernels_at(i) != NULL:
        names.append(fd_kernels_at(i).name.decode())
        i += 1
    return tuple(names)


def get_isa():
    """Name of the kernel table in use."""
    return kernels.name.decode()


def set_isa(str name not None):
    """Use this table from now on. Raises ValueError if this CPU cannot run it."""
    global kernels
    names = available_isas()
    if name not in names:
        raise ValueError(f"ISA {name!r} is not among those of this CPU and build: {', '.join(names)}")
    kernels = fd_kernels_at(names.index(name))


if os.environ.get("FASTDROP_ISA"):
    try:
        set_isa(os.environ["FASTDROP_ISA"])
    except ValueError as error:
        raise ImportError(f"FASTDROP_ISA: {error}") from None


def dropout(cnp.ndarray x, cnp.ndarray y, cnp.ndarray saved, fd_dtype dtype, uint64_t seed,
            uint64_t call, uint64_t threshold, uint64_t start, double scale):
    """One pass over C-contiguous x and y; saved, if not None, receives the packed mask."""
    cdef fd_stream stream = fd_stream(seed, call, threshold)
    cdef uint8_t *bits = NULL if saved is None else <uint8_t *> cnp.PyArray_DATA(saved)
    cdef const char *px = <const char *> cnp.PyArray_DATA(x)
    cdef char *py = <char *> cnp.PyArray_DATA(y)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    with nogil:
        fd_dropout(kernels, stream, start, dtype, px, py, bits, n, scale)


def draw(cnp.ndarray bits, uint64_t seed, uint64_t call, uint64_t threshold, uint64_t start,
         tuple shape, tuple strides):
    """Packed mask of a block: its shape and its strides, in elements of the whole mask array."""
    cdef fd_stream stream = fd_stream(seed, call, threshold)
    cdef int64_t n[64]
    cdef int64_t step[64]
    cdef int ndim = <int> len(shape)
    for d in range(ndim):
        n[d], step[d] = shape[d], strides[d]
    cdef uint8_t *out = <uint8_t *> cnp.PyArray_DATA(bits)
    with nogil:
        fd_draw(kernels, stream, start, ndim, n, step, out)


def apply(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, fd_dtype dtype, tuple bit_strides,
          double scale):
    """Packed mask onto x of any layout; bit_strides: one for each axis of x, 0 where shared."""
    cdef fd_axis axis[64]
    cdef int ndim = cnp.PyArray_NDIM(x)
    for d in range(ndim):
        axis[d].n = cnp.PyArray_DIM(x, d)
        axis[d].x = cnp.PyArray_STRIDE(x, d)
        axis[d].y = cnp.PyArray_STRIDE(y, d)
        axis[d].bit = bit_strides[d]
    cdef const char *px = <const char *> cnp.PyArray_DATA(x)
    cdef char *py = <char *> cnp.PyArray_DATA(y)
    cdef const uint8_t *mask = <const uint8_t *> cnp.PyArray_DATA(bits)
    with nogil:
        fd_apply(kernels, dtype, px, py, mask, ndim, axis, scale)


def apply_flat(cnp.ndarray x, cnp.ndarray y, cnp.ndarray bits, fd_dtype dtype, double scale):
    """Packed mask onto C-contiguous x and y, one bit an element."""
    cdef const char *px = <const char *> cnp.PyArray_DATA(x)
    cdef char *py = <char *> cnp.PyArray_DATA(y)
    cdef const uint8_t *mask = <const uint8_t *> cnp.PyArray_DATA(bits)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    with nogil:
        kernels.apply[dtype](px, py, mask, n, scale)


def philox4x32(cnp.ndarray counters, cnp.ndarray key, int rounds, cnp.ndarray words):
    """The kernels' own Philox (7 or 10 rounds) on C-contiguous uint32 arrays (n, 4), (2,), (n, 4)."""
    kernels.philox(<const uint32_t *> cnp.PyArray_DATA(counters),
                   <const uint32_t *> cnp.PyArray_DATA(key), rounds,
                   <size_t> cnp.PyArray_DIM(counters, 0),
                   <uint32_t *> cnp.PyArray_DATA(words))
