# DropConnect.

cdef int set_linear(fd_linear *linear, tuple operands, cnp.ndarray y) except -1:
    """Refuses operands, and a y or dy, that are not of one layer."""
    cdef cnp.ndarray x, weight, bias
    x, weight, bias = operands
    known(x, "x")
    cdef int num = cnp.PyArray_TYPE(x)
    if num != cnp.NPY_FLOAT and num != cnp.NPY_DOUBLE:
        refused("x", "be float32 or float64")
    dense(x, num, 0, "x")
    dense(weight, num, 0, "weight")
    if cnp.PyArray_NDIM(x) != 2 or cnp.PyArray_NDIM(weight) != 2:
        refused("x and weight", "have two axes")
    cdef int64_t batch = cnp.PyArray_DIM(x, 0), outputs = cnp.PyArray_DIM(weight, 1)
    if cnp.PyArray_DIM(x, 1) != cnp.PyArray_DIM(weight, 0):
        refused("weight", "have a row for each input")
    dense(y, num, batch * outputs, "y")
    if bias is not None:
        dense(bias, num, outputs, "bias")
    memset(linear, 0, sizeof(fd_linear))
    linear.dtype = <fd_dtype> dtype_of(x)
    linear.batch = <size_t> cnp.PyArray_DIM(x, 0)
    linear.inputs = <size_t> cnp.PyArray_DIM(weight, 0)
    linear.outputs = <size_t> cnp.PyArray_DIM(weight, 1)
    linear.x, linear.weight, linear.bias = data(x), data(weight), data(bias)
    return 0


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
    set_linear(&linear, operands, y)
    linear.y = data(y)
    cdef fd_machine m = machine()
    cdef bytes room = PyBytes_FromStringAndSize(NULL, fd_connect_room(m, &linear))
    linear.room = PyBytes_AsString(room)
    with nogil:
        fd_connect(m, &of, first, &linear)


def connect_back(tuple operands, cnp.ndarray dy, tuple gradients, Draw draw not None,
                 uint64_t first, /):
    """The gradients of `connect`, not scaled, to arrays like the operands; dx must be zero."""
    cdef fd_linear linear
    cdef fd_draw of = draw.of()
    cdef cnp.ndarray dx, dweight, dbias
    dx, dweight, dbias = gradients
    set_linear(&linear, operands, dy)
    for operand, gradient, name in zip(operands, gradients, ("dx", "dweight", "dbias")):
        if operand is not None:
            dense(gradient, cnp.PyArray_TYPE(dy), cnp.PyArray_SIZE(operand), name)
    linear.dy, linear.dx = data(dy), data(dx)
    linear.dweight, linear.dbias = data(dweight), data(dbias)
    cdef fd_machine m = machine()
    cdef bytes room = PyBytes_FromStringAndSize(NULL, fd_connect_room(m, &linear))
    linear.room = PyBytes_AsString(room)
    with nogil:
        fd_connect_back(m, &of, first, &linear)
