"""The CPU backend: the compiled kernels, and which of them run on this machine."""

from __future__ import annotations

import operator

from fastdrop import _core

# y, bits = forward(x, y, seed, call, p, block, save), and so on: see src/_core.pyx.
forward, backward, draw = _core.forward, _core.backward, _core.draw


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
    """How many threads the kernels use."""
    return 1


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use, at least 1. For now they use one, whatever n."""
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1, got {n}")
