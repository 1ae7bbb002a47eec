"""The figures fastdrop promises, and its throughput, measured here: ``python bench/ratios.py``.

A ratio is the median of five runs; a run alternates the two functions and takes the fastest burst
of each (see `fastdrop.timing`). "A copy" is the faster of np.copyto and np.multiply by 1.
"""

from statistics import median

import numpy as np
from tabulate import tabulate

import fastdrop as fd
from fastdrop.bench import COPIES, cpu, operations
from fastdrop.timing import fastest


def ratio(functions, name, base):
    """Median over five runs of the time of `name` over that of the fastest in `base`."""
    runs = []
    for _ in range(5):
        t = fastest({k: functions[k] for k in (*base, name)}, seconds=0.3)
        runs.append(t[name] / min(t[b] for b in base))
    return median(runs)


def promises():
    """(case, at most, measured) of each figure."""
    for p, name, bound in [
        (0.2, "forward", 3.0),
        (0.5, "forward", 1.6),
        (0.2, "backward, bits", 1.4),
    ]:
        measured = ratio(operations(2**16, np.float32, p), name, COPIES)
        yield f"{name}, p = {p}, 2^16 float32 / a copy", bound, measured
    x, y, rng = np.ones(16, np.float32), np.empty(16, np.float32), fd.Rng(1)
    call = {
        "np.multiply": lambda: np.multiply(x, 1.25, out=y),
        "call": lambda: fd.dropout(x, 0.2, rng=rng),
    }
    yield "a call on 16 elements / np.multiply(x, s, out=y)", 4.0, ratio(call, "call", call)


def throughput(sizes):
    """Rows of ns an element, float32, one column a size."""
    rows = {}
    for n in sizes:
        for p in (0.2, 0.5):
            seconds = fastest(operations(n, np.float32, p), seconds=0.3)
            rows.setdefault("a copy", {})[n] = min(seconds.pop(name) for name in COPIES)
            for name, t in seconds.items():
                by_rate = name.startswith(("forward", "keep")) or name.endswith("seed")
                rows.setdefault(f"{name}, p = {p}" if by_rate else name, {})[n] = t
    return [[name, *(t[n] / n * 1e9 for n in sizes)] for name, t in rows.items()]


def main():
    isa = fd.cpu_features()["isa"]
    print(f"{cpu()}, NumPy {np.__version__}, fastdrop {fd.__version__}, kernels: {isa}\n")
    headers = ["ratio", "at most", "measured"]
    print(tabulate(promises(), headers, floatfmt=".2f", tablefmt="github"), end="\n\n")
    exponents = 12, 16, 20, 24
    headers = ["ns an element, float32", *(f"2^{e}" for e in exponents)]
    rows = throughput([2**e for e in exponents])
    print(tabulate(rows, headers, floatfmt=".2f", tablefmt="github"))


if __name__ == "__main__":
    main()
