"""Time functions against each other on a machine that others share.

Bursts of each function alternate, so that a slow phase of the machine hits all of them, and the
fastest burst of each counts: what was not disturbed. Read ratios of one run, not seconds of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter


def fastest(
    functions: Mapping[str, Callable[[], object]], seconds: float = 0.5, burst: float = 3e-4
) -> dict[str, float]:
    """Seconds a call of each function: the best of many bursts, at least five, alternating.

    Parameters
    ----------
    functions : mapping of name to function without arguments
    seconds : float
        About how long to measure each function.
    burst : float
        How long one burst should last; a single call if that takes longer.
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
    begin, rounds = perf_counter(), 0
    while rounds < 5 or perf_counter() - begin < seconds * len(functions):
        rounds += 1
        for name, f in functions.items():
            best[name] = min(best[name], once(f, calls[name]))
    return best
