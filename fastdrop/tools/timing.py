"""Time functions against each other on a machine that others share.

Bursts of each function alternate, so that a slow phase of the machine hits all of them, and the
fastest burst of each counts: what was not disturbed. Every other round runs backwards, or one of
them would always find the caches as the same other left them: a copy of 2^20 floats took 1.7 times
as long after a function that allocates. Read ratios of one run, not seconds of two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from time import perf_counter
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def fastest(
    functions: Mapping[Name, Callable[[], object]],
    seconds: float = 0.5,
    burst: float = 3e-4,
    rounds: int = 5,
) -> dict[Name, float]:
    """Seconds a call of each function: the best of many bursts, alternating.

    Parameters
    ----------
    functions : mapping of name to function without arguments
    seconds : float
        About how long to measure each function.
    burst : float
        How long one burst should last; a single call if that takes longer.
    rounds : int
        At least so many bursts of each, however long they take.
    """

    def once(f: Callable[[], object], calls: int) -> float:
        start = perf_counter()
        for _ in range(calls):
            f()
        return (perf_counter() - start) / calls

    calls = {}
    for name, f in functions.items():
        once(f, 1)  # first use: page faults, caches
        calls[name] = max(1, int(burst / max(once(f, 1), 1e-7)))
    best = dict.fromkeys(functions, float("inf"))
    order = list(functions)
    begin, done = perf_counter(), 0
    while done < rounds or perf_counter() - begin < seconds * len(functions):
        done += 1
        for name in order:
            best[name] = min(best[name], once(functions[name], calls[name]))
        order.reverse()
    return best
