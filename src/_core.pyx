# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Buffers to pointers: hands NumPy arrays to the C kernels without the GIL.

Nothing is checked here. `fastdrop.cpu` and `fastdrop.gate` are the only callers and pass what the
public functions have checked: arrays in native byte order, dtypes, shapes and sizes that fit.
A packed mask is a bytes object with BITS_PAD bytes of room behind its last bit.
"""
import os

cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    bint PyArray_SAMESHAPE(cnp.ndarray, cnp.ndarray)
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *, int)

cdef extern from "fastdrop.h" nogil:
    int FD_BITS_PAD, FD_MAX_DIMS
    ctypedef struct fd_stream:
        pass
    ctypedef int fd_dtype
    int FD_FLOAT32, FD_FLOAT64
    ctypedef void fd_apply_fn(const char *x, char *y, const uint8_t *bits, size_t bit, size_t n,
                              double scale)
    ctypedef struct fd_kernels:
        const char *name
        fd_apply_fn **apply
        void (*philox)(const uint32_t *counters, const uint32_t *key, int rounds, size_t n,
                       uint32_t *words)
    ctypedef struct fd_axis:
        int64_t n, x, y, bit
    const fd_kernels *fd_kernels_at(int i)
    fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p)
    double fd_scale(double p)
    void fd_dropout(const fd_kernels *k, fd_stream stream, uint64_t start, fd_dtype dtype,
                    const char *x, char *y, uint8_t *saved, size_t n, double scale)
    void fd_draw(const fd_kernels *k, fd_stream stream, uint64_t start, int ndim,
                 const int64_t *shape, const int64_t *stride, uint8_t *bits)
    void fd_apply(const fd_kernels *k, fd_dtype dtype, const char *x, char *y, const uint8_t *bits,
                  int ndim, fd_axis *axis, double scale)

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
        offered = ", ".join(names)
        raise ValueError(f"ISA {name!r} is not among those of this CPU and build: {offered}")
    kernels = fd_kernels_at(names.index(name))


if os.environ.get("FASTDROP_ISA"):
    try:
        set_isa(os.environ["FASTDROP_ISA"])
    except ValueError as error:
        raise ImportError(f"FASTDROP_ISA: {error}") from None


cdef inline int dtype_of(cnp.ndarray x) noexcept:
    cdef int num = cnp.PyArray_TYPE(x)
    return FD_FLOAT32 if num == cnp.NPY_FLOAT else FD_FLOAT64 if num == cnp.NPY_DOUBLE else -1


cdef inline bint flat(cnp.ndarray x, cnp.ndarray y) noexcept:
    return cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y)


cdef inline bytes empty_bits(int64_t n):
    return PyBytes_FromStringAndSize(NULL, (n + 7) // 8 + FD_BITS_PAD)


cpdef bint has_kernels(cnp.ndarray x) noexcept:
    """Whether there are kernels for this element type, in this byte order."""
    return dtype_of(x) >= 0 and cnp.PyArray_ISNOTSWAPPED(x)


cdef inline void byte_bounds(cnp.ndarray x, const char **low, const char **high) noexcept:
    low[0] = high[0] = <const char *> cnp.PyArray_DATA(x)
    for d in range(cnp.PyArray_NDIM(x)):
        reach = (cnp.PyArray_DIM(x, d) - 1) * cnp.PyArray_STRIDE(x, d)
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(x) if cnp.PyArray_SIZE(x) else 0


cpdef bint overlaps_otherwise(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether x and y, of one shape and dtype, may share memory but not element by element."""
    cdef const char *x0
    cdef const char *x1
    cdef const char *y0
    cdef const char *y1
    byte_bounds(x, &x0, &x1)
    byte_bounds(y, &y0, &y1)
    if x1 <= y0 or y1 <= x0:
        return False
    for d in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_STRIDE(x, d) != cnp.PyArray_STRIDE(y, d) and cnp.PyArray_DIM(x, d) > 1:
            return True
    return cnp.PyArray_DATA(x) != cnp.PyArray_DATA(y)


def admits(x, p, out):
    """Whether x, p and out are what the kernels take, so that the gate has nothing to do."""
    if type(x) is not cnp.ndarray or type(p) is not float or not has_kernels(x):
        return False
    if not 0.0 <= <double> p <= 1.0:
        return False
    if out is None or out is x:
        return out is None or cnp.PyArray_ISWRITEABLE(out)
    return (
        type(out) is cnp.ndarray
        and has_kernels(out)
        and dtype_of(out) == dtype_of(x)
        and PyArray_SAMESHAPE(x, out)
        and cnp.PyArray_ISWRITEABLE(out)
        and not overlaps_otherwise(x, out)
    )


def empty_like(cnp.ndarray x):
    """An array of x's shape, dtype and memory order."""
    return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)


def forward(cnp.ndarray x, cnp.ndarray y, uint64_t seed, uint64_t call, double p, block, bint save):
    """y = x * scale where kept, else 0. block as in `draw`; None: all of x, one draw an element.

    Returns the packed mask if asked to.
    """
    cdef const char *px = <const char *> cnp.PyArray_DATA(x)
    cdef char *py = <char *> cnp.PyArray_DATA(y)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    cdef int dtype = dtype_of(x)
    cdef uint64_t start = 0 if block is None else block.start
    cdef uint8_t *saved = NULL
    cdef bytes bits
    cdef fd_stream stream
    if not flat(x, y) or (block is not None and not block.is_run):
        bits = draw(seed, call, p, cnp.PyArray_SIZE(x) if block is None else block)
        backward(x, y, bits, p, block)
        return bits if save else None
    if save:
        bits = empty_bits(n)
        saved = <uint8_t *> PyBytes_AS_STRING(bits)
    with nogil:
        stream = fd_stream_of(seed, call, p)
        fd_dropout(kernels, stream, start, dtype, px, py, saved, n, fd_scale(p))
    return bits if save else None


def draw(uint64_t seed, uint64_t call, double p, block):
    """The packed mask of a block of the mask array, or of its first `block` elements."""
    cdef int64_t n[64]
    cdef int64_t step[64]
    cdef int ndim = 1
    cdef uint64_t start = 0
    cdef bytes bits
    cdef uint8_t *out
    if isinstance(block, int):
        n[0], step[0] = block, 1
        bits = empty_bits(block)
    else:
        start, ndim = block.start, len(block.shape)
        for d in range(ndim):
            n[d], step[d] = block.shape[d], block.strides[d]
        bits = empty_bits(block.size)
    out = <uint8_t *> PyBytes_AS_STRING(bits)
    with nogil:
        fd_draw(kernels, fd_stream_of(seed, call, p), start, ndim, n, step, out)
    return bits


def backward(cnp.ndarray dy, cnp.ndarray dx, bytes bits, double p, block):
    """dx = dy * scale where the packed mask says kept, else 0."""
    cdef const char *px = <const char *> cnp.PyArray_DATA(dy)
    cdef char *py = <char *> cnp.PyArray_DATA(dx)
    cdef const uint8_t *mask = <const uint8_t *> PyBytes_AS_STRING(bits)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(dy)
    cdef int dtype = dtype_of(dy), ndim = cnp.PyArray_NDIM(dy)
    cdef fd_axis axis[64]
    cdef int64_t step = 1
    if flat(dy, dx) and (block is None or block.is_run):
        with nogil:
            kernels.apply[dtype](px, py, mask, 0, n, fd_scale(p))
        return
    for d in range(ndim - 1, -1, -1):
        axis[d].n = cnp.PyArray_DIM(dy, d)
        axis[d].x = cnp.PyArray_STRIDE(dy, d)
        axis[d].y = cnp.PyArray_STRIDE(dx, d)
        axis[d].bit = step
        if block is None or block.shape[d] != 1:
            step *= axis[d].n
        else:
            axis[d].bit = 0
    with nogil:
        fd_apply(kernels, dtype, px, py, mask, ndim, axis, fd_scale(p))


def philox4x32(cnp.ndarray counters, cnp.ndarray key, int rounds, cnp.ndarray words):
    """The kernels' own Philox, 7 or 10 rounds, on C-contiguous uint32 (n, 4), (2,), (n, 4)."""
    kernels.philox(<const uint32_t *> cnp.PyArray_DATA(counters),
                   <const uint32_t *> cnp.PyArray_DATA(key), rounds,
                   <size_t> cnp.PyArray_DIM(counters, 0),
                   <uint32_t *> cnp.PyArray_DATA(words))


cdef class CallCounter:
    """Seed and next call number; `take` is one step under the GIL."""

    cdef uint64_t _seed, _call

    def __init__(self, uint64_t seed, uint64_t call):
        self._seed, self._call = seed, call

    def take(self):
        """(seed, call) of the next call, which is thereby used up."""
        cdef uint64_t call = self._call
        self._call = call + 1
        return self._seed, call

    def peek(self):
        """(seed, call) of the next call."""
        return self._seed, self._call


cdef class Saved:
    """What a call saves for its backward pass; `fastdrop.Context` says what it means."""

    cdef readonly tuple shape
    cdef readonly double p
    cdef readonly object seed, call
    cdef readonly object _block
    cdef readonly bytes _bits

    def __init__(self, tuple shape, double p, seed, call, block, bytes bits):
        self.shape, self.p, self.seed, self.call = shape, p, seed, call
        self._block, self._bits = block, bits
