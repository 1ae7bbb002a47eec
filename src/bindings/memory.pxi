# Elements at an address, of which the caller knows what they are: for adapters, to which an array
# of NumPy's costs more than the kernel.

def drop_memory(fd_op op, fd_dtype dtype, size_t x, size_t y, size_t n, uint64_t seed,
                uint64_t call, double p, tuple constants, bytes given, bint keep, /):
    """DROPOUT or ALPHA_DROPOUT of n elements that follow each other.

    Parameters
    ----------
    op : int
    dtype : int
        FLOAT32, FLOAT64, FLOAT16 or BFLOAT16.
    x, y : int
        Addresses of n elements, from which is read and to which is written; y may be x.
    n : int
    seed, call : int
    p : float
        In [0, 1].
    constants : tuple of float
        As in `forward`.
    given : bytes or None
        The packed mask; None: it is drawn.
    keep : bool
        Whether the packed mask is wanted.

    Returns
    -------
    bytes or None
        The packed mask, if `keep`.
    """
    cdef fd_task task
    cdef uint8_t *kept = NULL
    cdef bytes bits = given
    if not any_layout(op):
        refused("op", "be one of ANY_LAYOUT")
    if dtype < 0 or dtype > FD_BFLOAT16:
        refused("dtype", "be one that has kernels")
    if n and not (x and y):
        refused("x", "have memory")
    if not 0.0 <= p <= 1.0:
        refused("p", "be in [0, 1]")
    memset(&task, 0, sizeof(fd_task))
    task.machine = machine()
    task.op, task.dtype = op, dtype
    task.operands.x, task.operands.y = <char *> x, <char *> y
    task.operands.constants.scale, task.operands.constants.shift = constants[0], constants[1]
    task.operands.constants.dropped = constants[2]
    task.bias_length, task.n = 1, n
    if given is not None:
        kept = mask_of(given, n)
        if n <= ALONE:
            fd_backward(&task, kept)
        else:
            with nogil:
                fd_backward(&task, kept)
        return bits if keep else None
    task.draw = fd_draw_of(seed, call, p)
    if keep:
        bits = empty_bits(n)
        kept = <uint8_t *> PyBytes_AsString(bits)
    if n <= ALONE:
        fd_forward(&task, kept)
    else:
        with nogil:
            fd_forward(&task, kept)
    return bits
