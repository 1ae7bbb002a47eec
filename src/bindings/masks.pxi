# Masks: drawn, and applied to elements.

def scale_of(double p, /):
    """1 / (1 - p); 0 at p = 1, where nothing is left to scale."""
    return fd_scale(p)


def philox4x32(cnp.ndarray counters, cnp.ndarray key, int rounds, cnp.ndarray words, /):
    """The kernels' own Philox, 7 or 10 rounds, on C-contiguous uint32 (n, 4), (2,), (n, 4)."""
    dense(counters, cnp.NPY_UINT32, 0, "counters")
    dense(key, cnp.NPY_UINT32, 2, "key")
    dense(words, cnp.NPY_UINT32, cnp.PyArray_SIZE(counters), "words")
    if cnp.PyArray_NDIM(counters) != 2 or cnp.PyArray_DIM(counters, 1) != 4:
        refused("counters", "have the shape (n, 4)")
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


cdef void set_bias(fd_task *task, cnp.ndarray bias) noexcept:
    """The operand that repeats, as `repeated` makes it."""
    task.operands.bias = data(bias)
    task.bias_length = <size_t> cnp.PyArray_SIZE(bias) - FD_REPEAT_PAD
    task.operands.bias_skip = fd_bias_skip(task)


cdef void set_axes(cnp.ndarray x, cnp.ndarray y, Place place, fd_axis *axis) noexcept:
    """The axes of a walk over x and y with the mask of a place."""
    cdef int64_t step = 1
    cdef int d
    for d in range(cnp.PyArray_NDIM(x) - 1, -1, -1):
        axis[d].n = cnp.PyArray_DIM(x, d)
        axis[d].x = cnp.PyArray_STRIDE(x, d)
        axis[d].y = cnp.PyArray_STRIDE(y, d)
        axis[d].bit = 0
        if place is None or not place.shared >> d & 1:
            axis[d].bit = step
            step *= axis[d].n


cdef int operands(fd_op op, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray bias,
                  cnp.ndarray out) except -1:
    """Refuses what an op that takes contiguous arrays alone cannot compute with."""
    cdef int num = cnp.PyArray_TYPE(x)
    cdef int64_t n = cnp.PyArray_SIZE(x)
    if op <= FD_DROPOUT or op >= FD_OPS:
        refused("op", "be one of table.h")
    dense(x, num, 0, "x")
    dense(out, num, 0, "out")
    if fd_reads_residual(op):
        dense(residual, num, n, "residual")
    if fd_reads_bias(op) and n:
        dense(bias, num, FD_REPEAT_PAD + 1, "bias")
    return 0


# Elements that take so little time that the GIL is kept: letting go of it takes 60 ns.
cdef enum:
    ALONE = 4096


cpdef tuple forward(fd_op op, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray bias,
                    cnp.ndarray out, Draw draw, bint save, tuple constants, bytes given=None):
    """Draw a mask and do one of the ops of src/kernels/table.h.

    Parameters
    ----------
    x : ndarray
        Has the shape that draw.place is of; in any layout.
    residual, bias : ndarray or None
        As the op wants; contiguous, as x and out are then. bias repeats: BIAS_ROOM longer than it
        is.
    out : ndarray or None
        The caller's, where y goes; shape and dtype of x, and may be x. None: a new array in x's
        memory order.
    save : bool
        Whether the packed mask is wanted.
    constants : tuple of float
        scale, shift, and what stands for a dropped element.
    given : bytes or None
        The packed mask of the draw's place; None: it is drawn.

    Returns
    -------
    y : ndarray
    bits : bytes or None
        The packed mask for backward, if `save`; with ReLU: which elements have a gradient.
    """
    cdef fd_constants c
    c.scale, c.shift, c.dropped = constants
    return forward_of(op, x, residual, bias, out, draw, save, &c, given)


cdef tuple forward_of(fd_op op, cnp.ndarray x, cnp.ndarray residual, cnp.ndarray bias,
                      cnp.ndarray out, Draw draw, bint save, const fd_constants *constants,
                      bytes given):
    """`forward`, whose arguments are as it says."""
    cdef fd_task task
    cdef fd_axis axis[64]
    cdef uint8_t *kept = NULL
    cdef bytes bits = None
    fits(x, draw)
    if given is None and (draw.given or op >= FD_DRAWN_OPS):
        refused("bits", "be there for a draw without a seed, and for a backward pass")
    cdef Place place = draw.place
    cdef int ndim = cnp.PyArray_NDIM(x)
    cdef bint delivers = out is not None
    global deliveries
    if not delivers:
        out = empty_like(x)
    else:
        alike(x, out, "out")
    if op not in (FD_DROPOUT, FD_ALPHA_DROPOUT):
        operands(op, x, residual, bias, out)
    set_task(&task, op, x, out, 0)
    task.draw, task.start = draw.of(), place.start
    task.operands.residual = data(residual)
    task.operands.constants = constants[0]
    if bias is not None:
        set_bias(&task, bias)
    if fd_is_relu(op):
        bits = empty_bits(task.n)
        task.operands.active = <uint8_t *> PyBytes_AsString(bits)
    if given is not None:
        kept = mask_of(given, place.size)
        if flat(x, out) and place.size == <int64_t> task.n:
            if task.n <= ALONE:
                fd_backward(&task, kept)
            else:
                with nogil:
                    fd_backward(&task, kept)
        else:
            set_axes(x, out, place, axis)
            with nogil:
                fd_apply(&task, kept, ndim, axis)
        if bits is None and save:
            bits = given
    elif not flat(x, out) or not (place.is_run or place.in_rows(&task)):
        bits = forward_walk(&task, x, out, place, save, bits)
    else:
        if save and bits is None:
            bits = empty_bits(task.n)
            kept = <uint8_t *> PyBytes_AsString(bits)
        if task.n <= ALONE:
            fd_forward(&task, kept)
        else:
            with nogil:
                fd_forward(&task, kept)
    deliveries += delivers
    return out, bits


cdef bytes forward_walk(fd_task *task, cnp.ndarray x, cnp.ndarray y, Place place, bint save,
                        bytes active):
    """As `forward`, where the mask is drawn first and then applied."""
    cdef fd_place part
    cdef fd_axis axis[64]
    cdef int64_t most = place.size
    if not save and most > settings.piece and any_layout(task.op):
        most = settings.piece  # a piece at a time, as nothing of the mask is kept
    cdef bytes bits = empty_bits(most)
    cdef uint8_t *room = <uint8_t *> PyBytes_AsString(bits)
    place.fill(&part)
    set_axes(x, y, place, axis)
    with nogil:
        fd_forward_walk(task, &part, axis, most, room)
    return bits if active is None and save else active


def draw_bits(Draw draw not None, /):
    """The packed mask of a draw."""
    cdef fd_draw of = draw.of()
    cdef fd_place place
    cdef bytes bits = empty_bits(draw.place.size)
    cdef uint8_t *out = <uint8_t *> PyBytes_AsString(bits)
    draw.place.fill(&place)
    with nogil:
        fd_draw_bits(machine(), &of, &place, out)
    return bits


cpdef cnp.ndarray backward(cnp.ndarray dy, cnp.ndarray out, Draw draw, bytes bits, double scale):
    """dx = dy * scale where the mask says kept, else 0; in any layout.

    Parameters
    ----------
    out : ndarray or None
        As in `forward`.
    bits : bytes or None
        The packed mask of the draw; None: it is drawn again.

    Returns
    -------
    ndarray
        dx.
    """
    cdef fd_constants c
    c.scale, c.shift, c.dropped = scale, 0.0, 0.0
    return forward_of(FD_DROPOUT, dy, None, None, out, draw, False, &c, bits)[0]


cdef bint writes_to(x, out) noexcept:
    """Whether a kernel may read x and write to out, an array that its caller gave, or None.

    The gate has more time for one with gaps, which may overlap itself.
    """
    if out is None:
        return True
    if out is x:
        return cnp.PyArray_ISWRITEABLE(out) and cnp.PyArray_ISONESEGMENT(out)
    return (
        type(out) is cnp.ndarray
        and has_kernels(out)
        and dtype_of(out) == dtype_of(x)
        and PyArray_SAMESHAPE(x, out)
        and cnp.PyArray_ISWRITEABLE(out)
        and cnp.PyArray_ISONESEGMENT(out)
        and not overlaps_otherwise(x, out)
    )


cdef bint watched = False  # whether `fastdrop.base.watch` has to see what is drawn


def set_watched(bint on, /):
    """Close, or open, the roads on which nobody sees what is drawn."""
    global watched
    watched = on


cdef inline bint any_layout(fd_op op) noexcept:
    """Whether an op takes arrays of any layout; ANY_LAYOUT has those that do."""
    return op == FD_DROPOUT or op == FD_ALPHA_DROPOUT


cdef inline bint keeps_operands(fd_op op) noexcept:
    """Whether the context has `x`, and `bias` as a copy, for the backward pass."""
    return op == FD_BIAS_GELU_DROPOUT


cdef bint reads(y, cnp.ndarray x, out) noexcept:
    """Whether a kernel may read y beside x, in one order, and write to out."""
    return (
        type(y) is cnp.ndarray
        and has_kernels(y)
        and dtype_of(y) == dtype_of(x)
        and PyArray_SAMESHAPE(x, y)
        and cnp.PyArray_IS_C_CONTIGUOUS(y)
        and (out is None or not overlaps_otherwise(y, out))
    )


cdef bint repeats(y, cnp.ndarray x) noexcept:
    """Whether y can be added to the rows of x."""
    cdef int ndim = cnp.PyArray_NDIM(x)
    return (
        type(y) is cnp.ndarray
        and has_kernels(y)
        and dtype_of(y) == dtype_of(x)
        and cnp.PyArray_NDIM(y) == 1
        and ndim > 0
        and cnp.PyArray_DIM(y, 0) == cnp.PyArray_DIM(x, ndim - 1)
        and cnp.PyArray_DIM(y, 0) > 0
    )


cdef bint fused(fd_op op, cnp.ndarray x, out, residual, bias) noexcept:
    """Whether an op that takes contiguous arrays alone can have these."""
    return (
        cnp.PyArray_IS_C_CONTIGUOUS(x)
        and (out is None or cnp.PyArray_IS_C_CONTIGUOUS(out))
        and (not fd_reads_residual(op) or reads(residual, x, out))
        and (not fd_reads_bias(op) or repeats(bias, x))
    )


def common_call(fd_op op, x, p, tuple how, constants, kind, residual=None, bias=None, /):
    """The call that nearly all are, in one step: no argument needs the gate.

    Parameters
    ----------
    x, p
        As the caller gave them.
    how : tuple
        rng, training, shared_axes, region, rows, out and save, as the caller gave them.
    constants : callable or None
        Those of the op from the rate; None: those of inverted dropout.
    kind : type
        Of the context.
    residual, bias
        As the caller gave them, if the op has some.

    Returns
    -------
    (y, context) or None
        None: something has to be looked at, and nothing was done.
    """
    rng, training, shared_axes, region, rows, out, save = how
    if (
        watched
        or type(x) is not cnp.ndarray
        or not has_kernels(x)
        or type(p) is not float
        or not 0.0 < <double> p <= 1.0
        or not isinstance(rng, CallCounter)
        or training is not True
        or type(shared_axes) is not tuple
        or len(<tuple> shared_axes) != 0
        or region is not None
        or rows is not None
        or type(save) is not str
        or not writes_to(x, out)
        or not (any_layout(op) or fused(op, x, out, residual, bias))
        or keeps_operands(op) and out is not None and share_memory(x, out)
    ):
        return None
    keep = save == "bits"
    cdef int64_t size = cnp.PyArray_SIZE(x)
    if not keep and save != "seed" or size > MAX_INDEX:
        return None
    cdef Place place = whole((<object> x).shape, size)
    cdef CallCounter counter = <CallCounter> rng
    cdef fd_constants c
    if constants is None:
        c.scale, c.shift, c.dropped = fd_scale(p), 0.0, 0.0
    else:
        c.scale, c.shift, c.dropped = constants(p)
    cdef uint64_t before = deliveries
    cdef Draw draw = counter.drawn(p, place)
    cdef bint done = False
    try:
        longer = repeated(bias) if fd_reads_bias(op) else None
        y, bits = forward_of(op, x, residual, longer, out, draw, keep, &c, None)
        ctx = saved(kind, draw.place.of, draw, c.scale, bits)
        if keeps_operands(op):
            PyObject_GenericSetAttr(ctx, "x", x)
            PyObject_GenericSetAttr(ctx, "bias", bias.copy())
        result = y, ctx
        counter.spend(draw)
        done = True
    finally:
        if not done:
            counter.back(draw, out, before)
    return result


def common_backward(Saved ctx not None, dy, out, str kind=None, /):
    """The backward pass of `common_call`; None: something has to be looked at.

    kind: "each", where held has a bit for each element, whatever shares a draw; "apart", where out
    may share no memory with dy; "columns" and "each columns", where, besides, the sums of dx over
    all but the last axis are wanted: (dx, sums).
    """
    held = ctx.held
    cdef Draw draw = ctx.draw
    if (
        watched
        or type(dy) is not cnp.ndarray
        or not has_kernels(dy)
        or draw is None
        or not (type(held) is bytes or held is None and draw.p > 0.0)
        or not is_for(draw, dy)
        or not writes_to(dy, out)
    ):
        return None
    cdef int64_t n = cnp.PyArray_SIZE(dy)
    if kind is None:
        return backward(dy, out, draw, held, ctx.scale)
    cdef bint each = kind == "each" or kind == "each columns"
    if not each and out is not None and share_memory(dy, out):
        return None
    if kind == "apart":
        return backward(dy, out, draw, held, ctx.scale)
    if held is None:
        return None
    if kind == "each":
        return backward(dy, out, undrawn(whole(ctx.shape, n)), held, ctx.scale)
    if (
        not each and draw.place.size != n
        or not cnp.PyArray_IS_C_CONTIGUOUS(dy)
        or not (out is None or cnp.PyArray_IS_C_CONTIGUOUS(out))
        or cnp.PyArray_NDIM(dy) == 0
    ):
        return None
    return backward_sums(dy, out, held, ctx.scale)
