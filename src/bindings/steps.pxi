# What happens in one step for whoever interrupts: no signal comes while compiled code runs.

def delivered():
    """Tell that an array of the caller has been written, by a GPU's kernel."""
    global deliveries
    deliveries += 1


def in_one_step(body, dict attributes not None, entries, /):
    """The result of body(); what it changes is changed in one step.

    If body raises, the random calls that it has taken are given back, except where it has written
    an array of the caller.

    Parameters
    ----------
    body : callable
        Without arguments; returns (result, attributes that change, entry or None).
    attributes : dict
        Of an object.
    entries : deque
        What an entry is appended to.
    """
    global lent
    cdef uint64_t before = deliveries
    cdef PyObject *outer = lent
    cdef list taken = []
    cdef bint done = False
    lent = <PyObject *> taken
    try:
        result, changed, entry = body()
        attributes.update(changed)
        if entry is not None:
            entries.append(entry)
        done = True
    finally:
        lent = outer
        if not done:
            for counter, draw in reversed(taken):
                (<CallCounter> counter).back(draw, counter, before)
    return result


def with_last(entries, body, out, dict attributes not None, /):
    """As `in_one_step`, of body(the last entry), which is gone then.

    If body raises, the entry is there again, except where body has written `out`.

    Parameters
    ----------
    entries : deque
    body : callable
        Returns (result, attributes that change).
    out : ndarray or None
        An array of the caller.
    attributes : dict
    """
    cdef uint64_t before = deliveries
    cdef bint done = False
    entry = entries.pop()
    try:
        result, changed = body(entry)
        attributes.update(changed)
        done = True
    finally:
        if not done and (out is None or deliveries == before):
            entries.append(entry)
    return result


cdef class Unchanged:
    """A context manager behind which the attributes of objects are what they were before it.

    Parameters
    ----------
    objects : list
    enter : callable
        What changes them; called when it begins.
    """

    cdef list objects, before
    cdef object enter

    def __init__(self, list objects not None, enter, /):
        self.objects, self.enter = objects, enter

    def __enter__(self):
        self.before = [dict(vars(each)) for each in self.objects]
        try:
            self.enter()
        except BaseException:
            self.restore()
            raise

    def __exit__(self, *_):
        self.restore()

    cdef void restore(self):
        after = [dict(vars(each)) for each in self.objects]  # so nothing is freed in between
        for each, attributes in zip(self.objects, self.before):
            vars(each).clear()
            vars(each).update(attributes)
        after.clear()
