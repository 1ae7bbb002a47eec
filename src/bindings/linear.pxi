# DropConnect.

cdef void set_linear(fd_linear *linear, tuple operands):
    cdef cnp.ndarray x, weight, bias
    x, weight, bias = operands
    memset(linear, 0, sizeof(fd_linear))
    linear.dtype = <fd_dtype> dtype_of(x)
    linear.batch = <size_t> cnp.PyArray_DIM(x, 0)
    linear.inputs = <size_t> cnp.PyArray_DIM(weight, 0)
    linear.outputs = <size_t> cnp.PyArray_DIM(weight, 1)
    linear.x, linear.weight, linear.bias = data(x), data(weight), data(bias)


def connect(tuple operands, cnp.ndarray y, Draw draw not None, uint64_t first, /):
    """y = x @ kept(weight) + kept(bias), not scaled; each example keeps others.

    Parameters
    ----------
    operands : tuple of ndarray
        x (batch, inputs), weight (inputs, outputs), bias (outputs,) or None; as y (batch, outputs)
        C-contiguous and aligned.
    first : int
        Number of the first example.
    """
    cdef fd_linear linear
    cdef fd_draw of = draw.of()
    set_linear(&linear, operands)
    linear.y = data(y)
    with nogil:
        fd_connect(machine(), &of, first, &linear)


def connect_back(tuple operands, cnp.ndarray dy, tuple gradients, Draw draw not None,
                 uint64_t first, /):
    """The gradients of `connect`, not scaled, to arrays like the operands; dx must be zero."""
    cdef fd_linear linear
    cdef fd_draw of = draw.of()
    cdef cnp.ndarray dx, dweight, dbias
    dx, dweight, dbias = gradients
    set_linear(&linear, operands)
    linear.dy, linear.dx = data(dy), data(dx)
    linear.dweight, linear.dbias = data(dweight), data(dbias)
    with nogil:
        fd_connect_back(machine(), &of, first, &linear)
