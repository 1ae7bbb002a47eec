# What the kernels take: element types, layouts, overlaps.
cdef inline int dtype_of(cnp.ndarray x) noexcept:
    cdef int num = cnp.PyArray_TYPE(x)
    if num == cnp.NPY_FLOAT:
        return FD_FLOAT32
    if num == cnp.NPY_DOUBLE:
        return FD_FLOAT64
    if num == NPY_HALF:
        return FD_FLOAT16
    return FD_BFLOAT16 if num == settings.bfloat16 else -1


cdef inline bint flat(cnp.ndarray x, cnp.ndarray y) noexcept:
    return cnp.PyArray_IS_C_CONTIGUOUS(x) and cnp.PyArray_IS_C_CONTIGUOUS(y)


cdef int refused(str name, str what) except -1:
    raise ValueError(f"{name} must {what}")


cdef inline int known(cnp.ndarray x, str name) except -1:
    """Refuses what there are no kernels for."""
    if x is None or not has_kernels(x):
        refused(name, "be an array of a type that has kernels")
    return 0


cdef inline int alike(cnp.ndarray x, cnp.ndarray y, str name) except -1:
    """Refuses a y that has not the shape and type of x."""
    known(y, name)
    if dtype_of(y) != dtype_of(x) or not PyArray_SAMESHAPE(x, y):
        refused(name, "have the shape and type of x")
    return 0


cdef inline bint is_for(Draw draw, cnp.ndarray x) except -1:
    """Whether a draw is for arrays of x's shape."""
    cdef tuple of = draw.place.of
    cdef int d, ndim = cnp.PyArray_NDIM(x)
    if len(of) != ndim:
        return False
    for d in range(ndim):
        if cnp.PyArray_DIM(x, d) != <int64_t> of[d]:
            return False
    return True


cdef inline int fits(cnp.ndarray x, Draw draw) except -1:
    """Refuses a draw that is not for an array like x."""
    known(x, "x")
    if draw is None or not is_for(draw, x):
        refused("draw", "be for x's shape")
    return 0


cdef int dense(cnp.ndarray x, int num, int64_t n, str name) except -1:
    """Refuses what is not C-contiguous, of NumPy's type `num`, and at least n elements."""
    if (
        x is None
        or cnp.PyArray_TYPE(x) != num
        or not cnp.PyArray_ISNOTSWAPPED(x)
        or not cnp.PyArray_IS_C_CONTIGUOUS(x)
        or cnp.PyArray_SIZE(x) < n
    ):
        refused(name, f"be C-contiguous, of the right type, and have {n} elements")
    return 0


cdef int sums_of(cnp.ndarray sums, size_t *row) except -1:
    """Refuses what no sums go to; how long a row of them is, which is not 0."""
    dense(sums, cnp.NPY_DOUBLE, 0, "sums")
    if cnp.PyArray_NDIM(sums) != 2 or cnp.PyArray_DIM(sums, 0) != FD_PARTS:
        refused("sums", "have the shape (PARTS, row)")
    row[0] = <size_t> cnp.PyArray_DIM(sums, 1)
    return 0


cdef inline uint8_t *mask_of(bytes bits, int64_t n) except NULL:
    """The mask of n elements; refuses a shorter one."""
    if bits is None or len(bits) < (n + 7) // 8 + FD_BITS_PAD:
        refused("bits", "hold one for each element")
    return <uint8_t *> PyBytes_AsString(bits)


cdef inline bytes empty_bits(int64_t n):
    return PyBytes_FromStringAndSize(NULL, (n + 7) // 8 + FD_BITS_PAD)


cpdef bint has_kernels(cnp.ndarray x) noexcept:
    """Whether there are kernels for this element type, in this byte order."""
    return dtype_of(x) >= 0 and cnp.PyArray_ISNOTSWAPPED(x)


cdef inline void byte_bounds(cnp.ndarray x, const char **low, const char **high) noexcept:
    cdef int d  # without a type, these would be Python's numbers
    cdef cnp.npy_intp reach
    low[0] = high[0] = <const char *> cnp.PyArray_DATA(x)
    for d in range(cnp.PyArray_NDIM(x)):
        reach = (cnp.PyArray_DIM(x, d) - 1) * cnp.PyArray_STRIDE(x, d)
        if reach < 0:
            low[0] += reach
        else:
            high[0] += reach
    high[0] += cnp.PyArray_ITEMSIZE(x) if cnp.PyArray_SIZE(x) else 0


cdef bint share_memory(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether x and y may share memory."""
    cdef const char *x0
    cdef const char *x1
    cdef const char *y0
    cdef const char *y1
    byte_bounds(x, &x0, &x1)
    byte_bounds(y, &y0, &y1)
    return not (x1 <= y0 or y1 <= x0)


cdef bint overlaps_otherwise(cnp.ndarray x, cnp.ndarray y) noexcept:
    """Whether x and y, of one shape and dtype, may share memory except element by element."""
    cdef int d
    if not share_memory(x, y):
        return False
    for d in range(cnp.PyArray_NDIM(x)):
        if cnp.PyArray_STRIDE(x, d) != cnp.PyArray_STRIDE(y, d) and cnp.PyArray_DIM(x, d) > 1:
            return True
    return cnp.PyArray_DATA(x) != cnp.PyArray_DATA(y)


def apart(cnp.ndarray out not None, /, *operands):
    """out and the operands: copies of those that writing to out would change too early."""
    return (out, *[x.copy() if x is not None and x is not out and overlaps_otherwise(x, out) else x
                   for x in operands])


cpdef cnp.ndarray empty_like(cnp.ndarray x):
    """An array of x's shape, dtype and memory order."""
    return PyArray_NewLikeArray(x, cnp.NPY_KEEPORDER, NULL, 0)


def copy(cnp.ndarray x not None, cnp.ndarray out, /):
    """x in an array of the caller, of its shape and dtype; None: in a new one like it."""
    cdef bint given = out is not None
    global deliveries
    if not given:
        out = empty_like(x)
    cnp.PyArray_CopyInto(out, x)
    deliveries += given
    return out


def repeated(cnp.ndarray x not None, /):
    """The elements of x over and over, BIAS_ROOM more than it has: a tile finds its part of what
    repeats in one piece.
    """
    cdef cnp.npy_intp n = cnp.PyArray_SIZE(x), length = n + FD_REPEAT_PAD, done, m
    cdef cnp.ndarray found = np.zeros(length, (<object> x).dtype)
    if not n:
        return found
    found[:n] = x.reshape(-1)
    cdef size_t size = <size_t> cnp.PyArray_ITEMSIZE(x)
    cdef char *to = data(found)
    done = n
    while done < length:
        m = min(done, length - done)
        memcpy(to + <size_t> done * size, to, <size_t> m * size)
        done += m
    return found


cdef inline char *data(cnp.ndarray x) noexcept:
    return NULL if x is None else <char *> cnp.PyArray_DATA(x)
