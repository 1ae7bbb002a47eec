# Masks: drawn, and applied to elements.

def scale_of(double p, /):
    """1 / (1 - p); 0 at p = 1, where nothing is left to scale."""
    return fd_scale(p)


def philox4x32(cnp.ndarray counters, cnp.ndarray key, int rounds, cnp.ndarray words, /):
    """The kernels' own Philox, 7 or 10 rounds, on C-contiguous uint32 (n, 4), (2,), (n, 4)."""
    settings.kernels.philox(
        <const uint32_t *> cnp.PyArray_DATA(counters),
        <const uint32_t *> cnp.PyArray_DATA(key),
        rounds,
        <size_t> cnp.PyArray_DIM(counters, 0),
        <uint32_t *> cnp.PyArray_DATA(words),
    )


cdef void set_task(fd_task *task, fd_op op, cnp.ndarray x, cnp.ndarray y, double scale) noexcept:
    """An op on all elements of x, which has no draw and no other operands yet."""
    memset(task, 0, sizeof(fd_task))
    task.machine = machine()
    task.op, task.dtype = op, <fd_dtype> dtype_of(x)
    task.operands.x, task.operands.y = data(x), data(y)
    task.operands.constants.scale = scale
    task.bias_length = 1
    task.n = <size_t> cnp.PyArray_SIZE(x)


cdef int64_t set_place(fd_place *place, block) except -1:
    """Where a Block is, or where the first `block` elements are; returns how many."""
    cdef int64_t size = 1
    if isinstance(block, int):
        place.start, place.ndim, place.shape[0], place.stride[0] = 0, 1, block, 1
        return block
    place.start, place.ndim = block.start, len(block.shape)
    for d in range(place.ndim):
        place.shape[d], place.stride[d] = block.shape[d], block.strides[d]
        size *= place.shape[d]
    return size


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


cdef inline bint one_run(cnp.ndarray x, cnp.ndarray y, block) except -1:
    """Whether x and y are contiguous, and their mask is consecutive."""
    return flat(x, y) and (block is None or block.is_run)


def forward(fd_op op, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray bias, cnp.ndarray y,
            uint64_t seed, uint64_t call, double p, block, bint save, double scale=-1,
            double shift=0, double dropped=0, /):
    """Draw a mask and do one of the ops of src/kernels/table.h.

    Parameters
    ----------
    x, y : ndarray
        Of one shape and dtype, in any layout; y may be x.
    residual, bias : ndarray or None
        As the op wants; contiguous, as x and y are then. bias repeats: BIAS_ROOM longer than it is.
    block : fastdrop.block.Block or None
        Which part of which mask array is drawn. None: all of x, one draw per element.
    save : bool
        Whether the packed mask is wanted.
    scale : float
        Negative: that of the rate.
    shift, dropped : float
        Of ALPHA_DROPOUT.

    Returns
    -------
    bytes or None
        The packed mask for backward, if `save`; of RELU_DROPOUT which elements have a gradient.
    """
    cdef fd_task task
    cdef uint8_t *saved = NULL
    cdef bytes bits = None
    set_task(&task, op, x, y, fd_scale(p) if scale < 0 else scale)
    task.draw = fd_draw_of(seed, call, p)
    task.operands.residual, task.operands.bias = data(residual), data(bias)
    task.operands.constants.shift, task.operands.constants.dropped = shift, dropped
    if bias is not None:
        task.bias_length = cnp.PyArray_SIZE(bias) - FD_REPEAT_PAD
    if op == FD_RELU_DROPOUT:
        bits = empty_bits(task.n)
        task.operands.active = <uint8_t *> PyBytes_AsString(bits)
    if not one_run(x, y, block):
        return forward_walk(&task, x, y, block, save, bits)
    if block is not None:
        task.start = block.start
    if save and bits is None:
        bits = empty_bits(task.n)
        saved = <uint8_t *> PyBytes_AsString(bits)
    with nogil:
        fd_forward(&task, saved)
    return bits


cdef bytes forward_walk(fd_task *task, cnp.ndarray x, cnp.ndarray y, block, bint save,
                        bytes active):
    """As `forward`, where the mask is drawn first and then applied."""
    cdef bytes bits
    cdef fd_task part
    cdef cnp.ndarray x_part, y_part
    if block is None:
        block = Block((<object> x).shape, (), None)
    if task.op in (FD_DROPOUT, FD_ALPHA_DROPOUT) and not save and block.size > settings.piece:
        for at, piece in block.pieces(settings.piece):
            part = task[0]
            x_part, y_part = x[at], y[at]
            part.operands.x, part.operands.y = data(x_part), data(y_part)
            part.start, part.n = piece.start, cnp.PyArray_SIZE(x_part)
            if one_run(x_part, y_part, piece):
                with nogil:
                    fd_forward(&part, NULL)
            else:
                walk(&part, x_part, y_part, draw_block(&task.draw, piece), piece)
        return None
    bits = draw_block(&task.draw, block)
    walk(task, x, y, bits, block)
    return bits if active is None and save else active


cdef void walk(fd_task *task, cnp.ndarray x, cnp.ndarray y, bytes bits, block):
    """Apply a packed mask to any layout."""
    cdef uint8_t *mask = <uint8_t *> PyBytes_AsString(bits)
    cdef int ndim = cnp.PyArray_NDIM(x)
    cdef fd_axis axis[64]
    set_axes(x, y, block, axis)
    with nogil:
        fd_apply(task, mask, ndim, axis)


cdef bytes draw_block(const fd_draw *draw, block):
    cdef fd_place place
    cdef bytes bits = empty_bits(set_place(&place, block))
    cdef uint8_t *out = <uint8_t *> PyBytes_AsString(bits)
    with nogil:
        fd_draw_bits(machine(), draw, &place, out)
    return bits


def draw(uint64_t seed, uint64_t call, double p, block, /):
    """The packed mask of a Block of the mask array, or of its first `block` elements."""
    cdef fd_draw of = fd_draw_of(seed, call, p)
    return draw_block(&of, block)


def backward(cnp.ndarray dy, cnp.ndarray dx, bytes bits, double scale, block, /):
    """dx = dy * scale where the packed mask of `block` says kept, else 0; in any layout."""
    cdef fd_task task
    cdef uint8_t *mask = <uint8_t *> PyBytes_AsString(bits)
    set_task(&task, FD_DROPOUT, dy, dx, scale)
    if one_run(dy, dx, block):
        with nogil:
            fd_backward(&task, mask)
    else:
        walk(&task, dy, dx, bits, block)
