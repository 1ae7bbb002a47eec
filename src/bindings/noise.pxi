# Continuous noise: drawn, and applied to elements.

def draw_noise(fd_noise kind, uint64_t seed, uint64_t call, block, cnp.ndarray noise, /):
    """Noise of a Block of the noise array, to contiguous float32 of at least its size."""
    cdef fd_draw draw = fd_draw_of(seed, call, 0)
    cdef fd_place place
    cdef float *out = <float *> cnp.PyArray_DATA(noise)
    set_place(&place, block)
    with nogil:
        fd_draw_noise(machine(), &draw, kind, &place, out)


cdef void set_noise_task(fd_noise_task *task, fd_noise kind, fd_noise_op op, cnp.ndarray x,
                         cnp.ndarray sigma, size_t sigma_length, cnp.ndarray noise,
                         tuple relaxed):
    memset(task, 0, sizeof(fd_noise_task))
    task.machine = machine()
    task.kind, task.op, task.dtype = kind, op, <fd_dtype> dtype_of(x)
    task.n = <size_t> cnp.PyArray_SIZE(x)
    task.operands.x = data(x)
    task.operands.noise = <const float *> data(noise)
    task.sigma_length = sigma_length
    cdef fd_noise_constants *c = &task.operands.constants
    if sigma_length:
        task.operands.sigma = data(sigma)
    elif sigma is not None:
        c.sigma = ((<double *> data(sigma))[0] if task.dtype == FD_FLOAT64
                   else (<float *> data(sigma))[0])
    if relaxed is not None:
        c.logit, c.p, c.inverse_temperature, c.scale = relaxed


def noise_forward(fd_noise kind, fd_noise_op op, cnp.ndarray x, cnp.ndarray y, cnp.ndarray sigma,
                  size_t sigma_length, cnp.ndarray noise, tuple relaxed, uint64_t seed,
                  uint64_t call, uint64_t start, /):
    """Draw noise and do one of the noise ops of src/kernels/table.h on C-contiguous arrays.

    Parameters
    ----------
    x, y : ndarray
        Of one shape and dtype; y may be x.
    sigma : ndarray or None
        float64 for float64, else float32. If it repeats, BIAS_ROOM longer than sigma_length.
    sigma_length : int
        0: sigma's first element is that of all.
    noise : ndarray or None
        What to take instead of drawing: float32, NOISE_PAD longer than x.
    relaxed : tuple or None
        logit, p, 1 / temperature and scale, of CONCRETE.
    start : int
        Index of x's first element in the noise array.
    """
    cdef fd_noise_task task
    set_noise_task(&task, kind, op, x, sigma, sigma_length, noise, relaxed)
    task.draw, task.start = fd_draw_of(seed, call, 0), start
    task.operands.y = data(y)
    with nogil:
        fd_noise_forward(&task)


def noise_backward(fd_noise kind, fd_noise_op op, cnp.ndarray x, cnp.ndarray dy, cnp.ndarray dx,
                   cnp.ndarray terms, cnp.ndarray sums, cnp.ndarray sigma, size_t sigma_length,
                   cnp.ndarray noise, tuple relaxed, uint64_t seed, uint64_t call,
                   uint64_t start, /):
    """The gradients of `noise_forward`, for x and for sigma or logit.

    Parameters
    ----------
    dx : ndarray or None
        None: not wanted.
    terms : ndarray or None
        Gets the gradient of sigma or logit element by element, in sigma's dtype.
    sums : ndarray or None
        Without terms: float64, shape (PARTS, row); element i is added to sums[0, i % row].
    """
    cdef fd_noise_task task
    cdef size_t row = 1 if sums is None else cnp.PyArray_DIM(sums, 1)
    cdef char *px = data(dx)
    cdef char *t = data(terms)
    cdef double *s = <double *> data(sums)
    set_noise_task(&task, kind, op, x, sigma, sigma_length, noise, relaxed)
    task.draw, task.start = fd_draw_of(seed, call, 0), start
    task.operands.g = data(dy)
    with nogil:
        fd_noise_backward(&task, px, t, row, s)
