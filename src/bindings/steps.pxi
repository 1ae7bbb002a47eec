# What happens in one step for whoever interrupts: no signal comes while compiled code runs.

def delivered():
    """Tell that an array of the caller has been written, by a GPU's kernel."""
    global deliveries
    deliveries += 1


cdef void do_all(steps):
    """Calls compiled functions, (function, its arguments), with nothing in between."""
    for function, *arguments in steps:
        function(*arguments)


def in_one_step(body, /):
    """The first of body(); the others are compiled functions that are then called in one step.

    If body raises, the random calls that it has taken are given back, except where it has written
    an array of the caller.

    Parameters
    ----------
    body : callable
        Without arguments; returns (result, (function, *arguments), ...).
    """
    global lent
    cdef uint64_t before = deliveries
    cdef PyObject *outer = lent
    cdef list taken = []
    lent = <PyObject *> taken
    try:
        result, *steps = body()
        do_all(steps)
        return result
    except BaseException:
        for counter, draw in reversed(taken):
            (<CallCounter> counter).back(draw, counter, before)
        raise
    finally:
        lent = outer


def with_last(entries, body, out, /):
    """As `in_one_step`, of body(the last entry), which is gone then.

    If body raises, the entry is there again, except where body has written `out`.

    Parameters
    ----------
    entries : deque
    body : callable
    out : ndarray or None
        An array of the caller.
    """
    cdef uint64_t before = deliveries
    entry = entries.pop()
    try:
        result, *steps = body(entry)
        do_all(steps)
        return result
    except BaseException:
        if out is None or deliveries == before:
            entries.append(entry)
        raise


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
