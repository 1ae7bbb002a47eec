# DropConnect.

cdef void set_linear(fd_linear *linear, cnp.ndarray x, cnp.ndarray weight,
                     cnp.ndarray bias) noexcept:
    memset(linear, 0, sizeof(fd_linear))
    linear.dtype = <fd_dtype> dtype_of(x)
    linear.batch = <size_t> cnp.PyArray_DIM(x, 0)
    linear.inputs = <size_t> cnp.PyArray_DIM(weight, 0)
    linear.outputs = <size_t> cnp.PyArray_DIM(weight, 1)
    linear.x, linear.weight, linear.bias = data(x), data(weight), data(bias)


def connect(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray y,
            uint64_t seed, uint64_t call, double p, uint64_t first, /):
    """y = x @ kept(weight) + kept(bias), not scaled; each example keeps others.

    Parameters
    ----------
    x, weight, bias, y : ndarray
        C-contiguous and aligned: (batch, inputs), (inputs, outputs), (outputs,), (batch, outputs).
        bias may be None.
    first : int
        Number of the first example.
    """
    cdef fd_linear linear
    cdef fd_draw draw = fd_draw_of(seed, call, p)
    set_linear(&linear, x, weight, bias)
    linear.y = data(y)
    with nogil:
        fd_connect(machine(), &draw, first, &linear)


def connect_back(cnp.ndarray x, cnp.ndarray weight, cnp.ndarray bias, cnp.ndarray dy,
                 cnp.ndarray dx, cnp.ndarray dweight, cnp.ndarray dbias,
                 uint64_t seed, uint64_t call, double p, uint64_t first, /):
    """The gradients of `connect`, not scaled. dx must be zero; dbias is None if bias is."""
    cdef fd_linear linear
    cdef fd_draw draw = fd_draw_of(seed, call, p)
    set_linear(&linear, x, weight, bias)
    linear.dy, linear.dx = data(dy), data(dx)
    linear.dweight, linear.dbias = data(dweight), data(dbias)
    with nogil:
        fd_connect_back(machine(), &draw, first, &linear)
