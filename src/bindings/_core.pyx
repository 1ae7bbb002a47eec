# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
# cython: freethreading_compatible=True
# Buffers to pointers: hands NumPy arrays to the C kernels without the GIL.
#
# Nothing is checked here, but by `Saved`, which anyone can make. `fastdrop.cpu` and `fastdrop.gate`
# are the only callers and pass what the public functions have checked: arrays in native byte order,
# dtypes, shapes and sizes that fit. A packed mask is a bytes object with BITS_PAD bytes of room
# behind its last bit. What is private has comments, as docstrings would be in the wheel.
import os
import warnings

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    /* Calls, not loops: half the size. */
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("Os")
    #endif
    """

from fastdrop.block import Block

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    int NPY_HALF
    bint PyArray_SAMESHAPE(cnp.ndarray, cnp.ndarray)
    cnp.ndarray PyArray_NewLikeArray(cnp.ndarray, cnp.NPY_ORDER, void *, int)

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*)(void *) except -1, void *) nogil

cdef extern from "runtime/pool.h" nogil:
    void (*pool_refused)() noexcept

cdef extern from "fastdrop.h" nogil:
    int FD_BITS_PAD, FD_BIAS_ROOM
    ctypedef struct fd_stream:
        pass
    ctypedef enum fd_dtype:
        FD_FLOAT32, FD_FLOAT64, FD_FLOAT16, FD_BFLOAT16
    ctypedef enum fd_op:
        FD_DROPOUT, FD_DROPOUT_ADD, FD_BIAS_DROPOUT_ADD, FD_RELU_DROPOUT
        FD_ALPHA_DROPOUT, FD_ZONEOUT
    ctypedef struct fd_operands:
        const char *x
        const char *residual
        const char *bias
        char *y
        uint8_t *active
        double shift, dropped
    ctypedef enum fd_noise:
        FD_NORMAL, FD_LOGISTIC
    ctypedef enum fd_noise_op:
        FD_NOISE_SCALE, FD_NOISE_ADD, FD_CONCRETE
    ctypedef struct fd_noise_operands:
        const char *x
        const char *g
        const char *sigma
        const float *noise
        char *y
        int sigma_step
        double logit, p, inverse_temperature, scale
    ctypedef struct fd_kernels:
        const char *name
        void (*philox)(const uint32_t *counters, const uint32_t *key, int rounds, size_t n,
                       uint32_t *words)
    ctypedef struct fd_axis:
        int64_t n, x, y, bit
    ctypedef struct fd_machine:
        pass
    const fd_kernels *fd_kernels_at(int i)
    uint64_t fd_cache_bytes()
    const char *fd_compiler()
    fd_stream fd_stream_of(uint64_t seed, uint64_t call, double p)
    double fd_scale(double p)
    void fd_forward(fd_machine m, fd_stream stream, uint64_t start, fd_op op, fd_dtype dtype,
                    fd_operands operands, size_t bias_length, uint8_t *saved, size_t n,
                    double scale)
    void fd_backward(fd_machine m, fd_dtype dtype, const char *dy, char *dx, const uint8_t *bits,
                     size_t n, double scale)
    int FD_PARTS
    void fd_backward_sums(fd_machine m, fd_dtype dtype, const char *dy, char *dx,
                          const uint8_t *bits, size_t n, size_t row, double *sums, double scale)
    void fd_draw(fd_machine m, fd_stream stream, uint64_t start, int ndim, const int64_t *shape,
                 const int64_t *stride, uint8_t *bits)
    void fd_apply(fd_machine m, fd_op op, fd_dtype dtype, fd_operands operands,
                  size_t bias_length, const uint8_t *bits, int ndim, const fd_axis *axis,
                  double scale)
    void fd_lookup(fd_machine m, fd_dtype dtype, const char *table, const int64_t *ids,
                   const uint8_t *bits, char *y, size_t n, size_t row, double scale)
    void fd_add_rows(fd_machine m, fd_dtype dtype, const char *x, const int64_t *ids, size_t n,
                     size_t row, double *sums)
    void fd_draw_noise(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start, int ndim,
                       const int64_t *shape, const int64_t *stride, float *noise)
    void fd_noise_forward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start,
                          fd_noise_op op, fd_dtype dtype, fd_noise_operands operands,
                          size_t sigma_length, size_t n)
    void fd_noise_backward(fd_machine m, fd_noise kind, fd_stream stream, uint64_t start,
                           fd_noise_op op, fd_dtype dtype, fd_noise_operands operands,
                           size_t sigma_length, char *dx, char *t, size_t row, double *sums,
                           size_t n)
    ctypedef struct fd_linear:
        fd_dtype dtype
        size_t batch, inputs, outputs
        const char *x
        const char *weight
        const char *bias
        char *y
        const char *dy
        char *dx
        char *dweight
        char *dbias
    void fd_connect(fd_machine m, fd_stream stream, uint64_t first, const fd_linear *linear)
    void fd_connect_back(fd_machine m, fd_stream stream, uint64_t first, const fd_linear *linear)
    size_t FD_WORDS(size_t bits)
    ctypedef struct fd_blocks:
        size_t maps, height, width, block_height, block_width
    void fd_drop_blocks(fd_machine m, fd_blocks shape, size_t examples, const uint8_t *seeds,
                        uint64_t *keep)
    void fd_apply_examples(fd_machine m, fd_dtype dtype, const char *x, char *y,
                           const uint64_t *keep, size_t bits, int ndim, const fd_axis *axis)

cdef extern from "runtime/settings.h" nogil:
    ctypedef struct fd_settings:
        const fd_kernels *kernels
        int threads
        uint64_t stream_bytes
        int64_t piece
        int bfloat16
    fd_settings settings "fd_current"
    fd_machine machine "fd_machine_now"()

cdef extern from "runtime/api.h":
    ctypedef struct fastdrop_api:
        pass
    const fastdrop_api fd_api
    void *fd_xla_dropout(void *call_frame)

cdef extern from *:
    """
    #ifdef Py_LIMITED_API
    #define BUILT_FOR "every Python from 3.11 on (abi3)"
    #else
    #define BUILT_FOR "this version of Python alone"
    #endif
    """
    const char *BUILT_FOR

BUILD = f"{fd_compiler().decode()}, for {BUILT_FOR.decode()}"
BITS_PAD = FD_BITS_PAD
BIAS_ROOM = FD_BIAS_ROOM
PARTS = FD_PARTS
NOISE_PAD = 64
DROPOUT = FD_DROPOUT
DROPOUT_ADD = FD_DROPOUT_ADD
BIAS_DROPOUT_ADD = FD_BIAS_DROPOUT_ADD
RELU_DROPOUT = FD_RELU_DROPOUT
ALPHA_DROPOUT = FD_ALPHA_DROPOUT
ZONEOUT = FD_ZONEOUT
NORMAL = FD_NORMAL
LOGISTIC = FD_LOGISTIC
NOISE_SCALE = FD_NOISE_SCALE
NOISE_ADD = FD_NOISE_ADD
CONCRETE = FD_CONCRETE

settings.kernels = fd_kernels_at(0)
settings.stream_bytes = fd_cache_bytes() // 2  # x passes through the cache, too


# For compiled code: fastdrop/include/fastdrop_api.h, and XLA, which asks for that name.
_C_API = PyCapsule_New(<void *> &fd_api, "fastdrop._core._C_API", NULL)
_XLA_DROPOUT = PyCapsule_New(<void *> fd_xla_dropout, "xla._CUSTOM_CALL_TARGET", NULL)


def available_isas():
    # Names of the kernel tables this CPU can run, the fastest first.
    names = []
    cdef int i = 0
    while fd_kernels_at(i) != NULL:
        names.append(fd_kernels_at(i).name.decode())
        i += 1
    return tuple(names)


def get_isa():
    # Name of the kernel table in use.
    return settings.kernels.name.decode()


def set_isa(str name not None, /):
    # Use this table from now on. Raises ValueError if this CPU cannot run it.
    names = available_isas()
    if name not in names:
        offered = ", ".join(names)
        raise ValueError(f"ISA {name!r} is not among those of this CPU and build: {offered}")
    settings.kernels = fd_kernels_at(names.index(name))


def get_threads():
    # How many threads a call may use.
    return settings.threads


def set_threads(int n, /):
    # Let a call use n threads, the caller's included.
    settings.threads = n


cdef int warn_refused(void *unused) except -1:
    warnings.warn(
        "the system refused a thread; fastdrop goes on with fewer, set_num_threads sets how many",
        RuntimeWarning,
    )
    return 0


cdef void on_refused() noexcept nogil:
    Py_AddPendingCall(warn_refused, NULL)  # as kernels run without the GIL


pool_refused = on_refused


def set_piece(int64_t n, /):
    # How large a mask is drawn at once where none is kept. Returns what it was: for tests.
    before = settings.piece
    settings.piece = n
    return before


def set_stream_bytes(uint64_t n, /):
    # From which size of y on to write past the caches. Returns what it was: for tests.
    before = settings.stream_bytes
    settings.stream_bytes = n
    return before


if os.environ.get("FASTDROP_ISA"):
    try:
        set_isa(os.environ["FASTDROP_ISA"])
    except ValueError as error:
        raise ImportError(f"FASTDROP_ISA: {error}") from None


def use_bfloat16(int num, /):
    # Tell NumPy's number of the bfloat16 type.
    settings.bfloat16 = num


cdef inline int dtype_of(cnp.ndarray x) noexcept:
    cdef int num = cnp.PyArray_TYPE(x)
    if num == cnp.NPY_FLOAT:
        return FD_FLOAT32
    if num == cnp.NPY_DOUBLE:
        return FD_FLOAT64
    if num == NPY_HALF:
        return FD_FLOAT16
    return FD_BFLOAT16 if num == settings.bfloat16 else -1


cdef inline bint flat(cnp.ndarray x, cnp.ndarray y) noexcept:
    return cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y)


cdef inline bytes empty_bits(int64_t n):
    return PyBytes_FromStringAndSize(NULL, (n + 7) // 8 + FD_BITS_PAD)


cpdef bint has_kernels(cnp.ndarray x) noexcept:
    # Whether there are kernels for this element type, in this byte order.
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
    # Whether x and y, of one shape and dtype, may share memory but not element by element.
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


def admits(x, p, out, /):
    # Whether x, p and out are what the kernels take, so that the gate has nothing to do.
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


def empty_like(cnp.ndarray x, /):
    # An array of x's shape, dtype and memory order.
    return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)


cdef inline char *data(cnp.ndarray x) noexcept:
    return NULL if x is None else <char *> cnp.PyArray_DATA(x)


def forward(fd_op op, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray bias, cnp.ndarray y,
            uint64_t seed, uint64_t call, double p, block, bint save, double scale=-1,
            double shift=0, double dropped=0, /):
    # One of the ops of fastdrop.h. Returns the packed mask for backward, if `save`. A negative
    # scale stands for that of the rate, as in `Saved`.
    #
    # block: see `fastdrop.block`; None: all of x, one draw an element. Operands beside x and y are
    # None, or contiguous as x and y are then. bias repeats: BIAS_ROOM longer than it is.
    cdef fd_operands o = fd_operands(data(x), data(residual), data(bias), data(y), NULL, shift,
                                     dropped)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef size_t bias_length = 1 if bias is None else cnp.PyArray_SIZE(bias) - FD_BIAS_ROOM
    cdef uint64_t start = 0 if block is None else block.start
    cdef uint8_t *saved = NULL
    cdef bytes bits = None
    cdef fd_stream stream
    if scale < 0:
        scale = fd_scale(p)
    if op == FD_RELU_DROPOUT:
        bits = empty_bits(n)
        o.active = <uint8_t *> PyBytes_AsString(bits)
    if not flat(x, y) or (block is not None and not block.is_run):
        return forward_walk(op, x, y, &o, bias_length, seed, call, p, block, save, scale,
                            bits)
    if save and bits is None:
        bits = empty_bits(n)
        saved = <uint8_t *> PyBytes_AsString(bits)
    with nogil:
        stream = fd_stream_of(seed, call, p)
        fd_forward(machine(), stream, start, op, dtype, o, bias_length, saved, n, scale)
    return bits


cdef bytes forward_walk(fd_op op, cnp.ndarray x, cnp.ndarray y, fd_operands *o,
                        size_t bias_length, uint64_t seed, uint64_t call, double p, block,
                        bint save, double scale, bytes active):
    """As `forward`, where the mask is drawn first and then applied."""
    cdef bytes bits
    if block is None:
        block = Block((<object> x).shape, (), None)
    if op in (FD_DROPOUT, FD_ALPHA_DROPOUT) and not save and block.size > settings.piece:
        for at, part in block.pieces(settings.piece):
            forward(op, x[at], None, None, y[at], seed, call, p, part, False, scale, o.shift,
                    o.dropped)
        return None
    bits = draw(seed, call, p, block)
    walk(op, x, y, o, bias_length, bits, scale, block)
    return bits if active is None and save else active


def draw(uint64_t seed, uint64_t call, double p, block, /):
    # The packed mask of a block of the mask array, or of its first `block` elements.
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
    out = <uint8_t *> PyBytes_AsString(bits)
    with nogil:
        fd_draw(machine(), fd_stream_of(seed, call, p), start, ndim, n, step, out)
    return bits


cdef void set_axes(cnp.ndarray x, cnp.ndarray y, block, fd_axis *axis):
    """The axes of a walk over x and y with the mask of a block."""
    cdef int64_t step = 1
    for d in range(cnp.PyArray_NDIM(x) - 1, -1, -1):
        axis[d].n = cnp.PyArray_DIM(x, d)
        axis[d].x = cnp.PyArray_STRIDE(x, d)
        axis[d].y = cnp.PyArray_STRIDE(y, d)
        axis[d].bit = 0
        if block is None or block.shape[d] != 1:
            axis[d].bit = step
            step *= axis[d].n


cdef void walk(fd_op op, cnp.ndarray x, cnp.ndarray y, fd_operands *o, size_t bias_length,
               bytes bits, double scale, block):
    """Apply a packed mask to any layout."""
    cdef uint8_t *mask = <uint8_t *> PyBytes_AsString(bits)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef int ndim = cnp.PyArray_NDIM(x)
    cdef fd_axis axis[64]
    set_axes(x, y, block, axis)
    with nogil:
        fd_apply(machine(), op, dtype, o[0], bias_length, mask, ndim, axis, scale)


def backward(cnp.ndarray dy, cnp.ndarray dx, bytes bits, double scale, block, /):
    # dx = dy * scale where the packed mask says kept, else 0.
    cdef fd_operands o = fd_operands(data(dy), NULL, NULL, data(dx), NULL, 0, 0)
    cdef uint8_t *mask = <uint8_t *> PyBytes_AsString(bits)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(dy)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(dy)
    if flat(dy, dx) and (block is None or block.is_run):
        with nogil:
            fd_backward(machine(), dtype, o.x, o.y, mask, n, scale)
    else:
        walk(FD_DROPOUT, dy, dx, &o, 1, bits, scale, block)


def backward_sums(cnp.ndarray dy, cnp.ndarray dx, bytes bits, double scale,
                  cnp.ndarray sums, /):
    # `backward` on C-contiguous arrays, one bit an element, and the sums over all but the last
    # axis in sums[0], float64 of shape (PARTS, length of the last axis). bits None: the sums alone.
    cdef uint8_t *mask = NULL if bits is None else <uint8_t *> PyBytes_AsString(bits)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(dx)
    cdef char *py = data(dy)
    cdef char *px = data(dx)
    cdef double *out = <double *> data(sums)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(dx)
    cdef size_t row = <size_t> cnp.PyArray_DIM(sums, 1)
    with nogil:
        fd_backward_sums(machine(), dtype, py, px, mask, n, row, out, scale)


def bytes_of_examples(size_t examples, size_t bits, /):
    # How long the keep bits are that `drop_blocks` returns, BITS_PAD included.
    return examples * FD_WORDS(bits) * sizeof(uint64_t) + FD_BITS_PAD


def drop_blocks(bytes seeds, tuple shape, size_t block_height, size_t block_width, /):
    # Keep bits of maps of this shape (examples, maps, height, width), none of them 0, in which
    # each zero of the packed mask `seeds` begins a block. Each example begins with a word.
    examples, maps, height, width = shape
    cdef fd_blocks blocks = fd_blocks(maps, height, width, block_height, block_width)
    cdef size_t n = examples
    cdef bytes keep = PyBytes_FromStringAndSize(
        NULL, bytes_of_examples(n, blocks.maps * blocks.height * blocks.width)
    )
    cdef const uint8_t *zeros = <const uint8_t *> PyBytes_AsString(seeds)
    cdef uint64_t *words = <uint64_t *> PyBytes_AsString(keep)
    with nogil:
        fd_drop_blocks(machine(), blocks, n, zeros, words)
    return keep


def apply_examples(cnp.ndarray x, cnp.ndarray y, bytes keep, bint per_channel, /):
    # y = x * scale where kept, else 0, with scale = elements / kept elements of the example. x and
    # y, not empty, have the shape that was given to `drop_blocks`, except that one map of keep bits
    # is for all channels if not per_channel.
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef int64_t bits = cnp.PyArray_SIZE(x) // cnp.PyArray_DIM(x, 0)
    cdef char *px = data(x)
    cdef char *py = data(y)
    cdef const uint64_t *words = <const uint64_t *> PyBytes_AsString(keep)
    cdef int ndim = cnp.PyArray_NDIM(x)
    cdef fd_axis axis[64]
    set_axes(x, y, None, axis)
    if not per_channel:
        bits //= axis[1].n
        axis[1].bit = 0
    with nogil:
        fd_apply_examples(machine(), dtype, px, py, words, bits, ndim, axis)


def lookup(cnp.ndarray table, cnp.ndarray ids, bytes bits, cnp.ndarray y, double scale, /):
    # y = table[ids] * scale where bit ids[i] of the packed mask says kept, else 0.
    #
    # All C-contiguous; ids: int64, each the number of a row.
    cdef uint8_t *mask = <uint8_t *> PyBytes_AsString(bits)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(table)
    cdef char *x = data(table)
    cdef char *to = data(y)
    cdef const int64_t *rows = <const int64_t *> data(ids)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(ids)
    cdef size_t row = <size_t> cnp.PyArray_SIZE(y) // n if n else 0
    with nogil:
        fd_lookup(machine(), dtype, x, rows, mask, to, n, row, scale)


def add_rows(cnp.ndarray x, cnp.ndarray ids, cnp.ndarray sums, /):
    # Add the rows of x to those of sums, float64, with these numbers (int64).
    #
    # All C-contiguous.
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef const char *px = data(x)
    cdef const int64_t *rows = <const int64_t *> data(ids)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(ids)
    cdef size_t row = <size_t> cnp.PyArray_SIZE(x) // n if n else 0
    cdef double *to = <double *> data(sums)
    with nogil:
        fd_add_rows(machine(), dtype, px, rows, n, row, to)


def draw_noise(fd_noise kind, uint64_t seed, uint64_t call, block, cnp.ndarray noise, /):
    # Noise of a block of the noise array, to contiguous float32 of at least its size.
    cdef int64_t n[64]
    cdef int64_t step[64]
    cdef int ndim = len(block.shape)
    cdef uint64_t start = block.start
    cdef float *out = <float *> cnp.PyArray_DATA(noise)
    for d in range(ndim):
        n[d], step[d] = block.shape[d], block.strides[d]
    with nogil:
        fd_draw_noise(machine(), kind, fd_stream_of(seed, call, 0), start, ndim, n, step, out)


@cython.profile(False)  # line tracing would make a dict of the result, and strings of its pointers
@cython.linetrace(False)
cdef fd_noise_operands noise_operands(cnp.ndarray x, cnp.ndarray g, cnp.ndarray y,
                                      cnp.ndarray sigma, size_t sigma_length, cnp.ndarray noise,
                                      tuple relaxed):
    cdef fd_noise_operands o = fd_noise_operands(data(x), data(g), data(sigma),
                                                 <const float *> data(noise), data(y),
                                                 sigma_length != 0, 0, 0, 0, 0)
    if relaxed is not None:
        o.logit, o.p, o.inverse_temperature, o.scale = relaxed
    return o


def noise_forward(fd_noise kind, fd_noise_op op, cnp.ndarray x, cnp.ndarray y, cnp.ndarray sigma,
                  size_t sigma_length, cnp.ndarray noise, tuple relaxed, uint64_t seed,
                  uint64_t call, uint64_t start, /):
    # One of the noise ops of fastdrop.h on C-contiguous arrays.
    #
    # sigma: 64 times the same with sigma_length 0; else, if it repeats, BIAS_ROOM longer than
    # sigma_length. noise: None to draw it, or float32, NOISE_PAD longer than x. relaxed: logit, p,
    # 1 / temperature, scale, or None.
    cdef fd_noise_operands o = noise_operands(x, None, y, sigma, sigma_length, noise, relaxed)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    with nogil:
        fd_noise_forward(machine(), kind, fd_stream_of(seed, call, 0), start, op, dtype, o,
                         sigma_length, n)


def noise_backward(fd_noise kind, fd_noise_op op, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray dx,
                   cnp.ndarray terms, cnp.ndarray sums, cnp.ndarray sigma, size_t sigma_length,
                   cnp.ndarray noise, tuple relaxed, uint64_t seed, uint64_t call,
                   uint64_t start, /):
    # dx (None: not wanted) and the gradient of sigma or logit: element by element in terms, or
    # summed in sums[0], float64 of shape (PARTS, row), where element i counts in column i % row.
    cdef fd_noise_operands o = noise_operands(x, dy, None, sigma, sigma_length, noise, relaxed)
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    cdef size_t row = 1 if sums is None else cnp.PyArray_DIM(sums, 1)
    cdef char *px = data(dx)
    cdef char *t = data(terms)
    cdef double *s = <double *> data(sums)
    with nogil:
        fd_noise_backward(machine(), kind, fd_stream_of(seed, call, 0), start, op, dtype, o,
                          sigma_length, px, t, row, s, n)


def scale_of(double p, /):
    # 1 / (1 - p); 0 at p = 1, where nothing is left to scale.
    return fd_scale(p)


@cython.profile(False)
@cython.linetrace(False)
cdef fd_linear linear_of(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray y):
    cdef size_t batch = <size_t> cnp.PyArray_DIM(x, 0)
    cdef size_t inputs = <size_t> cnp.PyArray_DIM(weight, 0)
    cdef size_t outputs = <size_t> cnp.PyArray_DIM(weight, 1)
    return fd_linear(<fd_dtype> dtype_of(x), batch, inputs, outputs, data(x), data(weight),
                     data(bias), data(y), NULL, NULL, NULL, NULL)


def connect(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray y,
            uint64_t seed, uint64_t call, double p, uint64_t first, /):
    # y = x @ kept(weight) + kept(bias), not scaled; all C-contiguous and aligned, bias or None.
    cdef fd_linear linear = linear_of(x, weight, bias, y)
    with nogil:
        fd_connect(machine(), fd_stream_of(seed, call, p), first, &linear)


def connect_back(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray dy,
                 cnp.ndarray dx, cnp.ndarray dweight, cnp.ndarray dbias,
                 uint64_t seed, uint64_t call, double p, uint64_t first, /):
    # The gradients of `connect`, not scaled. dx must be zero; dbias None if bias is.
    cdef fd_linear linear = linear_of(x, weight, bias, None)
    linear.dy, linear.dx = data(dy), data(dx)
    linear.dweight, linear.dbias = data(dweight), data(dbias)
    with nogil:
        fd_connect_back(machine(), fd_stream_of(seed, call, p), first, &linear)


def philox4x32(cnp.ndarray counters, cnp.ndarray key, int rounds, cnp.ndarray words, /):
    # The kernels' own Philox, 7 or 10 rounds, on C-contiguous uint32 (n, 4), (2,), (n, 4).
    settings.kernels.philox(
        <const uint32_t *> cnp.PyArray_DATA(counters),
        <const uint32_t *> cnp.PyArray_DATA(key),
        rounds,
        <size_t> cnp.PyArray_DIM(counters, 0),
        <uint32_t *> cnp.PyArray_DATA(words),
    )


cdef class CallCounter:
    """Seed and next call number; `take` is one step for all threads."""

    cdef uint64_t _seed, _call

    def __init__(self, uint64_t seed, uint64_t call, /):
        with cython.critical_section(self):
            self._seed, self._call = seed, call

    def take(self):
        """(seed, call) of the next call, which is thereby used up."""
        cdef uint64_t seed, call
        with cython.critical_section(self):
            seed, call = self._seed, self._call
            self._call = call + 1
        return seed, call

    def peek(self):
        """(seed, call) of the next call."""
        cdef uint64_t seed, call
        with cython.critical_section(self):
            seed, call = self._seed, self._call
        return seed, call


cdef class Saved:
    """What a call saves for its backward pass; `fastdrop.Context` says what it means."""

    cdef readonly tuple shape
    cdef readonly double p, scale
    cdef readonly object seed, call
    cdef readonly object _block
    cdef readonly object _held  # None, bytes, or a fastdrop.device.DeviceBits

    def __init__(self, tuple shape, double p, seed, call, block, bits, double scale=-1, /):
        cdef tuple drawn = shape
        cdef int64_t n = 1
        if block is not None:
            drawn = block.shape
            if block.of != shape:
                raise ValueError("shape must be that of the block")
        if type(bits) is bytes:  # whoever made this: no kernel may read behind its end
            for d in drawn:
                n *= <int64_t> d
            if len(<bytes> bits) != (n + 7) // 8 + FD_BITS_PAD:
                raise ValueError("bits must hold one for each element that is drawn")
        self.scale = fd_scale(p) if scale < 0 else scale
        self.shape, self.p, self.seed, self.call = shape, p, seed, call
        self._block, self._held = block, bits

    @property
    def _bits(self):
        """The packed mask in the host's memory."""
        if self._held is None or type(self._held) is bytes:
            return self._held
        return self._held.fetch()
