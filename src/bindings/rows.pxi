# Rows: sums over them, and those of a table.

cpdef tuple backward_sums(cnp.ndarray dy, cnp.ndarray out, bytes bits, double scale,
                          cnp.ndarray x=None, cnp.ndarray bias=None):
    """`backward`, and the sums of dx over all but the last axis.

    Parameters
    ----------
    dy : ndarray
        C-contiguous, at least 1-d.
    out : ndarray or None
        As in `forward`, C-contiguous.
    bits : bytes or None
        The packed mask, one bit per element. None: dy is dx already, and nothing is written.
    x, bias : ndarray or None
        Those of BIAS_GELU_DROPOUT, whose dx this is then; bias repeats as in `forward`.

    Returns
    -------
    dx : ndarray
    sums : ndarray
        In the dtype of dy, rounded from float64.
    """
    cdef fd_task task
    cdef bint given = out is not None
    global deliveries
    known(dy, "dy")
    cdef int64_t n = cnp.PyArray_SIZE(dy)
    if not cnp.PyArray_NDIM(dy):
        refused("dy", "have an axis")
    cdef int64_t row = cnp.PyArray_DIM(dy, cnp.PyArray_NDIM(dy) - 1)
    cdef cnp.npy_intp[2] shape = [<int64_t> fd_parts_of(<uint64_t> (n // row) if row else 0), row]
    dense(dy, cnp.PyArray_TYPE(dy), 0, "dy")
    cdef cnp.ndarray dx = dy if bits is None else out if given else empty_like(dy)
    dense(dx, cnp.PyArray_TYPE(dy), n, "out")
    alike(dy, dx, "out")
    cdef uint8_t *mask = NULL if bits is None else mask_of(bits, n)
    cdef cnp.ndarray sums = cnp.PyArray_EMPTY(2, shape, cnp.NPY_DOUBLE, 0)
    cdef double *totals = <double *> data(sums)
    set_task(&task, FD_DROPOUT if x is None else FD_BIAS_GELU_BACKWARD, dx, dx, scale)
    task.operands.x = data(dy)
    if x is not None:
        operands(task.op, dy, x, bias, dx)
        task.operands.residual = data(x)
        if bias is not None:
            set_bias(&task, bias)
    with nogil:
        fd_backward_sums(&task, mask, <size_t> row, totals)
    deliveries += given
    cdef cnp.ndarray of_columns = (<object> sums)[0].astype((<object> dy).dtype)
    return dx, of_columns


cdef int64_t table_of(cnp.ndarray table, cnp.ndarray ids) except -1:
    """How many rows a table has; refuses one that no rows can be taken from."""
    known(table, "table")
    dense(table, cnp.PyArray_TYPE(table), 0, "table")
    dense(ids, cnp.NPY_INT64, 0, "ids")
    if not cnp.PyArray_NDIM(table):
        refused("table", "have rows")
    return cnp.PyArray_DIM(table, 0)


def lookup(cnp.ndarray table, cnp.ndarray ids, bytes bits, cnp.ndarray y, double scale, /):
    """y = table[ids] * scale where the bit of the row's number says kept, else 0.

    Parameters
    ----------
    table, y : ndarray
        C-contiguous, of one dtype.
    ids : ndarray
        int64, C-contiguous: numbers of rows.
    bits : bytes
        One bit per row of the table.
    """
    cdef fd_task task
    cdef int64_t words = table_of(table, ids)
    cdef uint8_t *mask = mask_of(bits, words)
    cdef const int64_t *rows = <const int64_t *> data(ids)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(ids)
    cdef size_t row = <size_t> (cnp.PyArray_SIZE(table) // words if words else 0)
    dense(y, cnp.PyArray_TYPE(table), n * row, "y")
    set_task(&task, FD_DROPOUT, table, y, scale)
    task.n = n
    with nogil:
        fd_lookup(&task, rows, mask, row)


def add_rows(cnp.ndarray x, cnp.ndarray ids, cnp.ndarray sums, /):
    """Add the rows of x to those rows of sums, float64, whose numbers ids (int64) has.

    All are C-contiguous.
    """
    known(x, "x")
    dense(x, cnp.PyArray_TYPE(x), 0, "x")
    dense(ids, cnp.NPY_INT64, 0, "ids")
    dense(sums, cnp.NPY_DOUBLE, 0, "sums")
    cdef fd_dtype dtype = <fd_dtype> dtype_of(x)
    cdef const char *px = data(x)
    cdef const int64_t *rows = <const int64_t *> data(ids)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(ids)
    cdef size_t row = <size_t> cnp.PyArray_SIZE(x) // n if n else 0
    cdef double *to = <double *> data(sums)
    with nogil:
        fd_add_rows(machine(), dtype, px, rows, n, row, to)
