# The values that calls pass on and keep. None of them changes, except the counter.

cdef int64_t MAX_INDEX = <int64_t> 1 << 62  # element indices that the keystream can address


# Arguments of a Place or Draw whose fields are filled in here, where they are right. No other code
# has this object, so all others go through the checks.
cdef object UNCHECKED = object()


cdef int64_t length_of(n, str name, value) except? -1:
    if type(n) is int and -MAX_INDEX <= n <= MAX_INDEX:
        return n
    raise ValueError(f"{name} must have ints of at most 2**62, got {value!r}")


@cython.final
cdef class Place:
    """Which part of which mask array an operation draws.

    The mask array has the shape of x with length 1 along axes that share a draw; its C-order
    positions are the element indices of the keystream. x may be a part (a shard, a chunk) of a
    larger array; then its mask is that part of the larger mask array.

    Parameters
    ----------
    of : tuple of int
        Shape of x.
    shared_axes : tuple of int
        Axes that share a draw: none twice, none negative.
    region : (start, global_shape), optional
        Two tuples of int: where x begins in the larger array, and the shape of that.
    rows : ndarray of int64, shape (of[0],), optional
        Which rows of the larger array those of x are, along axis 0: any, in any order. A region
        begins at 0 along that axis then. Without one, the larger array has as many as it takes.

    Attributes
    ----------
    of, shared_axes, region
        As given.
    rows : ndarray or None
        A copy that cannot be written to.
    shape : tuple of int
        Of the part of the mask array: 1 along shared axes.
    strides : tuple of int
        How far one step along each axis goes, in elements of the whole mask array.
    start : int
        Index of the first element; of row 0 if `scattered`.
    scattered : bool
        Whether there are rows, and they do not follow each other.
    size : int
        Elements of the part.
    is_run : bool
        Whether x's elements in C order have consecutive indices.

    Raises
    ------
    ValueError
        What cannot be: a region that does not contain x, rows outside of it, more than 64 axes or
        2**62 elements.
    """

    cdef readonly tuple of, shape
    cdef readonly object region
    cdef readonly uint64_t start
    cdef readonly int64_t size
    cdef readonly bint is_run, scattered
    cdef uint64_t shared  # a bit per axis
    cdef bytes _rows  # int64

    def __cinit__(self, of, tuple shared_axes not None=(), tuple region=None, rows=None, /):
        if of is UNCHECKED:
            return
        if type(of) is not tuple:
            raise TypeError(f"shape must be a tuple, got {of!r}")
        self._set(of, shared_axes, region, rows is not None)
        if rows is not None:
            self._set_rows(rows)

    cdef int _set(self, tuple of, tuple shared_axes, tuple region, bint rows) except -1:
        cdef int64_t n, size = 1, step = 1
        cdef int d, ndim = len(of)
        if ndim > FD_MAX_DIMS:
            raise ValueError(f"shape must have at most 64 axes, got {ndim}")
        for axis in shared_axes:
            if type(axis) is not int or not 0 <= axis < ndim or self.shared >> <int> axis & 1:
                raise ValueError(f"shared_axes must be axes of {of}, got {shared_axes!r}")
            self.shared |= <uint64_t> 1 << <int> axis
        for d in range(ndim):
            n = length_of(of[d], "shape", of)
            if n < 0:
                raise ValueError(f"shape must not have negative lengths, got {of}")
            if n and step > MAX_INDEX // n:
                raise ValueError(f"shape must have at most 2**62 elements, got {of}")
            step *= n or 1
            size *= 1 if self.shared >> d & 1 else n
        self.of, self.region, self.size, self.is_run = of, region, size, True
        self.shape = of
        if self.shared:
            self.shape = tuple([1 if self.shared >> d & 1 else of[d] for d in range(ndim)])
            self.is_run = self.shape == of
        if region is not None:
            start, whole = region
            self._begin(start, whole, rows)
        return 0

    cdef int _set_rows(self, rows) except -1:
        """Names the rows; those that follow each other are what a region is."""
        cdef fd_place place
        cdef const int64_t *row
        cdef int64_t i, most, n
        cdef uint64_t number, last, first, outside = 0, scattered = 0
        if type(rows) is not cnp.ndarray or (<object> rows).dtype != "int64":
            raise TypeError(f"rows must be an array of int64, got {rows!r:.60}")
        if self.of and self.shared & 1:
            raise ValueError(
                f"rows must not be given where axis 0 of x, of shape {self.of}, shares one draw: "
                "all rows have the same mask then; leave it out"
            )
        if not self.of or (<object> rows).shape != self.of[:1]:
            raise ValueError(
                f"rows must have a number for each row of x, of shape {self.of}, got shape "
                f"{(<object> rows).shape}"
            )
        self.fill(&place)
        if self.region is not None:
            most = (<tuple> self.region[1])[0]
        else:
            most = MAX_INDEX // max(place.stride[0], 1)
        self._rows = (<object> rows).tobytes()
        row = <const int64_t *> PyBytes_AsString(self._rows)
        n, last = place.shape[0], <uint64_t> (most - 1)
        first = <uint64_t> row[0] if n else 0
        for i in range(n):  # without a branch, as there may be many
            number = <uint64_t> row[i]
            outside |= number | (last - number)  # the highest bit says: negative
            scattered |= number ^ (first + <uint64_t> i)
        if outside >> 63:
            wrong = [given for given in self.rows.tolist() if not 0 <= given < most]
            raise ValueError(f"rows must be in 0 ... {most - 1}, got {wrong[0]}")
        self.scattered = scattered != 0
        if scattered:
            self.is_run = False
        elif self.size:
            self.start += <uint64_t> (row[0] * place.stride[0])
        return 0

    cdef int _begin(self, tuple start, tuple whole, bint rows) except -1:
        """Sets where a region begins."""
        cdef uint64_t at = 0, step = 1, run = 1
        cdef int64_t size = 1, s, n, w
        cdef int d, ndim = len(self.of)
        if start is None or whole is None:
            raise TypeError("region must be two tuples")
        given = start, whole
        if len(start) != ndim or len(whole) != ndim:
            raise ValueError(f"region must have {ndim} axes as x has, got {given!r}")
        for d in range(ndim - 1, -1, -1):
            s, w = length_of(start[d], "region", given), length_of(whole[d], "region", given)
            n = self.of[d]
            if rows and not d:
                if s or w < 0:
                    raise ValueError(
                        f"region must begin at 0 along axis 0, where rows are given, got {given!r}"
                    )
            elif s < 0 or s > w - n:
                raise ValueError(f"region must contain a part of shape {self.of}, got {given!r}")
            if w and size > MAX_INDEX // w:
                raise ValueError(
                    f"region must have a global size of at most 2**62, got {given!r}"
                )
            size *= w or 1
            if n > 1 and step != run:
                self.is_run = False
            if not self.shared >> d & 1:
                at += <uint64_t> s * step
                step *= <uint64_t> w
                run *= <uint64_t> n
        self.start = at
        return 0

    cdef void fill(self, fd_place *place) noexcept:
        cdef int64_t step = 1
        cdef int d
        cdef tuple whole = self.of if self.region is None else <tuple> self.region[1]
        place.start, place.ndim = self.start, <int> len(self.of)
        place.rows = <const int64_t *> PyBytes_AsString(self._rows) if self.scattered else NULL
        for d in range(place.ndim - 1, -1, -1):
            place.shape[d], place.stride[d] = self.shape[d], step
            if not self.shared >> d & 1:
                step *= <int64_t> whole[d]

    cdef bint in_rows(self, fd_task *task) noexcept:
        """Whether the elements of the task are rows of this place; sets them."""
        cdef fd_place place
        self.fill(&place)
        return self.size == <int64_t> task.n and fd_rows_of(&place, &task.rows)

    @property
    def shared_axes(self):
        return tuple([d for d in range(len(self.of)) if self.shared >> d & 1])

    @property
    def rows(self):
        return None if self._rows is None else np.frombuffer(self._rows, "int64")

    @property
    def strides(self):
        cdef fd_place place
        self.fill(&place)
        return tuple([place.stride[d] for d in range(place.ndim)])

    def __reduce__(self):
        return Place, (self.of, self.shared_axes, self.region, self.rows)

    def __repr__(self):
        rows = "" if self._rows is None else f", rows={self.rows!r}"
        return f"Place({self.of}, shared_axes={self.shared_axes}, region={self.region}{rows})"


cdef Place whole(tuple of, int64_t size):
    """All of an array of this shape, which NumPy has made; one draw per element."""
    cdef Place place = Place.__new__(Place, UNCHECKED)
    place.of = place.shape = of
    place.size, place.is_run = size, True
    return place


@cython.final
cdef class Draw:
    """Names the random numbers of one call: the same draw gives the same mask everywhere.

    Attributes
    ----------
    seed, call : int or None
        64 bits each. Both None: the mask was given, and nothing can be drawn.
    p : float
        The rate, in [0, 1].
    place : Place
        Which part of which mask array.
    """

    cdef uint64_t _seed, _call
    cdef readonly bint given
    cdef readonly double p
    cdef readonly Place place

    def __cinit__(self, seed, call=0, double p=0.0, Place place=None, /):
        if seed is UNCHECKED:
            return
        if place is None:
            raise TypeError("place must be a Place")
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be in [0, 1], got {p!r}")
        self.p, self.place, self.given = p, place, seed is None and call is None
        if not self.given:
            self._seed, self._call = seed, call

    @property
    def seed(self):
        return None if self.given else self._seed

    @property
    def call(self):
        return None if self.given else self._call

    cdef fd_draw of(self) noexcept:
        return fd_draw_of(self._seed, self._call, self.p)

    def __reduce__(self):
        return Draw, (self.seed, self.call, self.p, self.place)

    def __repr__(self):
        return f"Draw(seed={self.seed}, call={self.call}, p={self.p}, place={self.place!r})"


cdef Draw undrawn(Place place):
    """Of a mask that is there."""
    cdef Draw draw = Draw.__new__(Draw, UNCHECKED)
    draw.place, draw.given = place, True
    return draw


cdef int forks = 0  # how many lie between the first process and this one


def after_fork():
    """Tells this process that it is a child."""
    global forks
    forks += 1


cdef class CallCounter:
    """Seed and next call number; `take` is one step for all threads.

    Parameters
    ----------
    seed, call : int
        64 bits each.
    spent : bool
        Whether that call, the last there is, has been used up.
    seeded : bool
        Whether the seed is a user's. One that is not is drawn again in a process that was forked.
    """

    cdef uint64_t _seed, _call
    cdef bint _spent
    cdef int _forks
    cdef readonly bint seeded

    def __init__(self, uint64_t seed, uint64_t call, bint spent=False, bint seeded=True, /):
        with cython.critical_section(self):
            self._seed, self._call, self._spent = seed, call, spent
            self.seeded, self._forks = seeded, forks

    cdef int _ready(self) except -1:
        """Makes sure that there is a call; a copy in another process has a seed of its own."""
        if self._spent:
            raise ValueError("rng has given all its calls, 2**64 of them; take another seed")
        if self._forks != forks and not self.seeded:
            self._seed, self._call = int.from_bytes(os.urandom(8), "little"), 0
            self._forks = forks
        return 0

    cdef void _step(self) noexcept:
        if self._call == <uint64_t> -1:
            self._spent = True
        else:
            self._call += 1

    def take(self):
        """(seed, call) of the next call, which is thereby used up."""
        cdef uint64_t seed, call
        with cython.critical_section(self):
            self._ready()
            seed, call = self._seed, self._call
            self._step()
        return seed, call

    def lend(self, double p, Place place not None, body, out=None, /):
        """body(draw), where the draw is that of the next call at this rate and place.

        The call is used up if body returns. If it raises, the call is the next one again, except
        where body has written `out`, an array of the caller, or others have taken calls since. As
        this is compiled code, no signal comes between taking the call and body, nor later between
        what body raises and giving the call back.
        """
        cdef uint64_t before = deliveries
        cdef Draw draw = self.drawn(p, place)
        cdef bint done = False
        try:  # without an except, which takes time where nothing is raised
            result = body(draw)
            self.spend(draw)
            done = True
        finally:
            if not done:
                self.back(draw, out, before)
        return result

    cdef int spend(self, Draw draw) except -1:
        """Tells the layer's call which this thread is in, if it is in one."""
        if lent != NULL:
            (<list> lent).append((self, draw))
        return 0

    cdef Draw drawn(self, double p, Place place):
        """The Draw of the next call, which is thereby used up."""
        if place is None or not 0.0 <= p <= 1.0:
            raise ValueError(f"p must be in [0, 1], and place a Place, got {p!r}, {place!r}")
        cdef Draw draw = Draw.__new__(Draw, UNCHECKED)
        draw.p, draw.place = p, place
        with cython.critical_section(self):
            self._ready()
            draw._seed, draw._call = self._seed, self._call
            self._step()
        return draw

    cdef void back(self, Draw draw, out, uint64_t before) noexcept:
        """Gives a call back if out has not been written since `before`, nor another call taken."""
        if out is not None and deliveries != before:
            return
        with cython.critical_section(self):
            if self._seed == draw._seed and self._call - draw._call == (0 if self._spent else 1):
                self._call, self._spent = draw._call, False

    def peek(self):
        """(seed, call) of the next call; the call is 2**64 if there is none."""
        cdef uint64_t seed, call
        cdef bint spent
        with cython.critical_section(self):
            if not self._spent:
                self._ready()
            seed, call, spent = self._seed, self._call, self._spent
        return seed, 2**64 if spent else call

    def __reduce__(self):
        with cython.critical_section(self):
            return CallCounter, (self._seed, self._call, self._spent, self.seeded)


cdef class Saved:
    """What contexts share; `fastdrop.base.context` says what it means and checks it."""

    cdef readonly tuple shape
    cdef readonly Draw draw
    cdef readonly double scale
    cdef readonly object held

    def __init__(self, tuple shape not None, Draw draw, double scale, held, /):
        self.shape, self.draw, self.scale, self.held = shape, draw, scale, held

    @property
    def seed(self):
        return None if self.draw is None else self.draw.seed

    @property
    def call(self):
        return None if self.draw is None else self.draw.call

    @property
    def p(self):
        return 0.0 if self.draw is None else self.draw.p


cdef extern from "Python.h":
    ctypedef object (*newfunc)(PyTypeObject *kind, tuple arguments, PyObject *keywords)
    bint PyType_IsSubtype(PyTypeObject *a, PyTypeObject *b)
    void *PyType_GetSlot(PyTypeObject *kind, int slot)
    int Py_tp_new


cdef newfunc new_saved = <newfunc> PyType_GetSlot(<PyTypeObject *> Saved, Py_tp_new)


cpdef Saved saved(kind, tuple shape, Draw draw, double scale, held):
    """A context of this kind (a subclass of Saved), made without its checks."""
    if not isinstance(kind, type) or not PyType_IsSubtype(
        <PyTypeObject *> kind, <PyTypeObject *> Saved
    ):
        raise TypeError(f"kind must be a subclass of Saved, got {kind!r}")
    # Saved.__new__(kind) looks the method up and makes a tuple for it: 150 ns of a call.
    cdef Saved ctx = new_saved(<PyTypeObject *> kind, (), NULL)
    ctx.shape, ctx.draw, ctx.scale, ctx.held = shape, draw, scale, held
    return ctx
