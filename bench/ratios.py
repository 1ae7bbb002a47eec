"""The figures fastdrop promises, as ratios within one run: ``python bench/ratios.py``.

Each line is the median of five runs; a run alternates the two functions and takes the fastest
burst of each (see `fastdrop.timing`). "A copy" is the faster of np.copyto and np.multiply by 1.
"""

import platform
from statistics import median

import numpy as np
from cases import operations
from tabulate import tabulate

import fastdrop as fd
from fastdrop.timing import fastest


def ratio(functions, name, base):
    """Median over five runs of the time of `name` over that of the fastest in `base`."""
    runs = []
    for _ in range(5):
        t = fastest({k: functions[k] for k in (*base, name)}, seconds=0.3)
        runs.append(t[name] / min(t[b] for b in base))
    return median(runs)


def main():
    copy = "copyto", "multiply by 1"
    rows = []
    for p, name, bound in [
        (0.2, "forward", 3.0),
        (0.5, "forward", 1.6),
        (0.2, "backward, bits", 1.4),
        (0.2, "forward, seed", None),
        (0.2, "backward, seed", None),
    ]:
        measured = ratio(operations(2**16, np.float32, p), name, copy)
        rows.append([f"{name}, p = {p}, 2^16 float32 / copy", bound, measured])
    call = operations(16, np.float32, 0.2)
    x, y = np.ones(16, np.float32), np.empty(16, np.float32)
    call["multiply"] = lambda: np.multiply(x, 1.25, out=y)
    rng = fd.Rng(1)
    call["call"] = lambda: fd.dropout(x, 0.2, rng=rng)
    measured = ratio(call, "call", ["multiply"])
    rows.append(["call on 16 elements / np.multiply(x, s, out=y)", 4.0, measured])
    print(f"{platform.processor() or platform.machine()}, kernels: {fd.cpu_features()['isa']}")
    print(tabulate(rows, ["case", "at most", "measured"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
