"""The CPU backend: the compiled kernels, and which of them run on this machine."""

from __future__ import annotations

import os

from fastdrop import _core
from fastdrop.base import gate

# Documented in src/bindings.
forward, backward, draw = _core.forward, _core.backward, _core.draw
connect, connect_back = _core.connect, _core.connect_back
lookup, add_rows = _core.lookup, _core.add_rows


def cpu_features() -> dict[str, object]:
    """Which kernels run here.

    Returns
    -------
    dict
        ``isa``: the instruction set in use; ``available``: all this CPU and build offer, the
        fastest first. The environment variable ``FASTDROP_ISA`` forces one at import.
    """
    return {"isa": _core.get_isa(), "available": _core.available_isas()}


def get_num_threads() -> int:
    """How many threads a call may use."""
    return _core.get_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, the caller's included.

    Results do not depend on it. The default is the number of CPUs this process may run on, or
    the environment variable ``FASTDROP_NUM_THREADS``. Arrays of up to about 65,536 elements
    stay on the caller's thread; a call that finds the other threads busy works alone.

    Parameters
    ----------
    n : int
        1 to 1024.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    if gate.count(n, "n") > 1024:
        raise ValueError(f"n must be in 1 ... 1024, got {n}")
    _core.set_threads(n)


def _default_threads() -> int:
    wanted = os.environ.get("FASTDROP_NUM_THREADS")
    if not wanted:
        affinity = getattr(os, "sched_getaffinity", None)
        return min(1024, len(affinity(0)) if affinity else os.cpu_count() or 1)
    if not (wanted.isdecimal() and 1 <= int(wanted) <= 1024):
        raise ImportError(f"FASTDROP_NUM_THREADS must be in 1 ... 1024, got {wanted!r}")
    return int(wanted)


set_num_threads(_default_threads())
