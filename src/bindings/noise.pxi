# Continuous noise: drawn, and applied to elements.

cdef fd_noise kind_of(fd_noise_op op) noexcept:
    return FD_LOGISTIC if op == FD_CONCRETE else FD_NORMAL


def draw_noise(fd_noise kind, Draw draw not None, cnp.ndarray noise, /):
    """The noise of a draw, to contiguous float32 of at least its size."""
    dense(noise, cnp.NPY_FLOAT, draw.place.size, "noise")
    cdef fd_draw of = draw.of()
    cdef fd_place place
    cdef float *out = <float *> cnp.PyArray_DATA(noise)
    draw.place.fill(&place)
    with nogil:
        fd_draw_noise(machine(), &of, kind, &place, out)


cdef inline int compute_type(cnp.ndarray x) noexcept:
    """NumPy's number of the type that x is computed in."""
    return cnp.NPY_DOUBLE if dtype_of(x) == FD_FLOAT64 else cnp.NPY_FLOAT


cdef int set_noise_task(fd_noise_task *task, fd_noise_op op, cnp.ndarray x, Draw draw,
                        constants, size_t sigma_length, cnp.ndarray noise) except -1:
    fits(x, draw)
    cdef size_t n = <size_t> cnp.PyArray_SIZE(x)
    if op not in (FD_NOISE_SCALE, FD_NOISE_ADD, FD_CONCRETE):
        refused("op", "be one of table.h")
    dense(x, cnp.PyArray_TYPE(x), 0, "x")
    if noise is not None:
        dense(noise, cnp.NPY_FLOAT, n + FD_NOISE_PAD, "noise")
    memset(task, 0, sizeof(fd_noise_task))
    task.machine, task.draw, task.start = machine(), draw.of(), draw.place.start
    task.kind, task.op, task.dtype = kind_of(op), op, <fd_dtype> dtype_of(x)
    task.n = n
    task.operands.x = data(x)
    task.operands.noise = <const float *> data(noise)
    task.sigma_length = sigma_length
    cdef fd_noise_constants *c = &task.operands.constants
    if op == FD_CONCRETE:
        c.logit, c.p, c.inverse_temperature, c.scale = constants
    elif sigma_length:
        room = n if sigma_length >= n else sigma_length + FD_REPEAT_PAD
        dense(constants, compute_type(x), room, "sigma")
        task.operands.sigma = data(constants)
    else:
        c.sigma = constants
    return 0


def noise_forward(fd_noise_op op, cnp.ndarray x, cnp.ndarray out, Draw draw not None, constants,
                  size_t sigma_length, cnp.ndarray noise, /):
    """Draw noise and do one of the noise ops of src/kernels/table.h on C-contiguous arrays.

    Parameters
    ----------
    x : ndarray
    out : ndarray or None
        The caller's, where y goes; shape and dtype of x, and may be x. None: a new array.
    constants : float, ndarray or tuple of float
        sigma, as an array float64 for float64, else float32; if it repeats, BIAS_ROOM longer than
        sigma_length. Of CONCRETE: logit, p, 1 / temperature and scale.
    sigma_length : int
        0: sigma is a float.
    noise : ndarray or None
        What to take instead of drawing: float32, NOISE_PAD longer than x.

    Returns
    -------
    ndarray
        y.
    """
    cdef fd_noise_task task
    cdef bint given = out is not None
    global deliveries
    if not given:
        out = empty_like(x)
    set_noise_task(&task, op, x, draw, constants, sigma_length, noise)
    dense(out, cnp.PyArray_TYPE(x), task.n, "out")
    task.operands.y = data(out)
    with nogil:
        fd_noise_forward(&task)
    deliveries += given
    return out


def noise_backward(fd_noise_op op, cnp.ndarray x, tuple gradients, Draw draw not None, constants,
                   size_t sigma_length, cnp.ndarray noise, /):
    """The gradients of `noise_forward`, for x and for sigma or logit.

    Parameters
    ----------
    gradients : tuple
        dy; dx, or None if it is not wanted; terms, which get the gradient of sigma or logit element
        by element, in sigma's dtype, or None; without terms, sums: float64, shape (PARTS, row),
        where element i is added to sums[0, i % row].
    """
    cdef fd_noise_task task
    cdef cnp.ndarray dy, dx, terms, sums
    dy, dx, terms, sums = gradients
    cdef size_t row = 1
    set_noise_task(&task, op, x, draw, constants, sigma_length, noise)
    dense(dy, cnp.PyArray_TYPE(x), task.n, "dy")
    if dx is not None:
        dense(dx, cnp.PyArray_TYPE(x), task.n, "dx")
    if terms is not None:
        dense(terms, compute_type(x), task.n, "terms")
    else:
        sums_of(sums, &row)
        if not row:
            refused("sums", "have columns")
    cdef char *px = data(dx)
    cdef char *t = data(terms)
    cdef double *s = <double *> data(sums)
    task.operands.g = data(dy)
    with nogil:
        fd_noise_backward(&task, px, t, row, s)
