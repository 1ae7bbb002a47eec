# Softmax and dropout.

cdef int set_softmax(fd_softmax_task *task, cnp.ndarray x, cnp.ndarray weights, cnp.ndarray out,
                     bytes bits, double factor, double scale) except -1:
    cdef int num = cnp.PyArray_TYPE(x), ndim = cnp.PyArray_NDIM(x)
    cdef int64_t n = cnp.PyArray_SIZE(x)
    if not ndim:
        refused("x", "have an axis")
    for y, name in ((x, "x"), (weights, "weights"), (out, "out")):
        dense(y, num, n, name)
    memset(task, 0, sizeof(fd_softmax_task))
    task.machine, task.dtype = machine(), <fd_dtype> dtype_of(x)
    cdef fd_softmax *s = &task.operands
    s.x, s.weights, s.y = data(x), data(weights), data(out)
    s.bits = NULL if bits is None else mask_of(bits, n)
    s.length = <size_t> cnp.PyArray_DIM(x, ndim - 1)
    s.factor, s.scale = factor, scale
    task.rows = <uint64_t> n // s.length if n else 0
    return 0


cdef const int64_t *numbers_of(cnp.ndarray numbers, int64_t rows, int64_t most,
                               str name) except? NULL:
    """Of each row a number of at most so many; NULL: there are none."""
    cdef int64_t i
    if numbers is None:
        return NULL
    dense(numbers, cnp.NPY_INT64, rows, name)
    cdef const int64_t *number = <const int64_t *> data(numbers)
    for i in range(rows):
        if not 0 <= number[i] <= most:
            refused(name, f"be in 0 ... {most}")
    return number


def softmax(cnp.ndarray x, cnp.ndarray out, bytes bits, tuple part, double factor, double scale, /):
    """Softmax and dropout along the last axis of C-contiguous arrays.

    Parameters
    ----------
    x : ndarray
    out : ndarray or None
        The caller's, where y goes; shape and dtype of x, and may be x. None: a new array.
    bits : bytes or None
        Keep bits of x; None: all is kept.
    part : tuple
        What takes part. Of each row how many elements at most, int64, or None; rows of packed bits,
        uint8 of shape (masks, bytes of a row and BITS_PAD more), and of each row the number of its
        mask, int64, or None twice.
    factor, scale : float

    Returns
    -------
    (ndarray, ndarray)
        y = kept(weights) * scale, and weights = softmax(x * factor).
    """
    cdef fd_softmax_task task
    cdef cnp.ndarray live, mask, mask_row
    cdef bint given = out is not None
    global deliveries
    known(x, "x")
    if not given:
        out = empty_like(x)
    cdef cnp.ndarray weights = empty_like(x)
    set_softmax(&task, x, weights, out, bits, factor, scale)
    cdef fd_softmax *s = &task.operands
    cdef int64_t rows = <int64_t> task.rows
    live, mask, mask_row = part
    s.live = numbers_of(live, rows, <int64_t> s.length, "live")
    if mask is not None:
        dense(mask, cnp.NPY_UINT8, 0, "mask")
        if cnp.PyArray_NDIM(mask) != 2 or mask_row is None:
            refused("mask", "have two axes, and a number for each row of x")
        s.mask, s.mask_bytes = <const uint8_t *> data(mask), <size_t> cnp.PyArray_DIM(mask, 1)
        if s.mask_bytes < (s.length + 7) // 8 + <size_t> FD_BITS_PAD:
            refused("mask", "have a bit for each element of a row, and room")
        s.mask_row = numbers_of(mask_row, rows, cnp.PyArray_DIM(mask, 0) - 1, "mask_row")
    with nogil:
        fd_softmax_rows(&task)
    deliveries += given
    return out, weights


def softmax_backward(cnp.ndarray dy, cnp.ndarray weights, cnp.ndarray out, bytes bits,
                     double factor, double scale, /):
    """dx of `softmax`, whose weights these are."""
    cdef fd_softmax_task task
    cdef bint given = out is not None
    global deliveries
    known(dy, "dy")
    if not given:
        out = empty_like(dy)
    set_softmax(&task, dy, weights, out, bits, factor, scale)
    task.back = 1
    with nogil:
        fd_softmax_rows(&task)
    deliveries += given
    return out
