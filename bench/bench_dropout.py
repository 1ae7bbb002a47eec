"""Throughput over sizes, rates and dtypes: ``pytest --benchmark-only``.

A group is one size, dtype and rate; in it stand the copy of the same arrays, fastdrop's
operations, and naive and tuned NumPy. ``-k "n08 or n16"`` picks 2^8 and 2^16 elements.
"""

import numpy as np
import pytest
from cases import operations

NAMES = list(operations(1, np.float32, 0.5))


@pytest.fixture(scope="module")
def case(request):
    """The operations of one size, dtype and rate, and the arrays they share."""
    log2n, dtype, p = request.param
    return request.param, operations(2**log2n, dtype, p)


CASES = [
    pytest.param((log2n, dtype, p), id=f"n{log2n:02}-{np.dtype(dtype)}-p={p}")
    for log2n in range(8, 27, 2)
    for dtype in (np.float32, np.float64)
    for p in (0.1, 0.2, 0.5, 0.9)
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", CASES, indirect=True)
@pytest.mark.benchmark(min_rounds=3, max_time=0.1, warmup=False)
def test_throughput(benchmark, case, name):
    (log2n, dtype, p), functions = case
    n = 2**log2n
    benchmark.group = f"2^{log2n} {np.dtype(dtype)} p={p}"
    benchmark(functions[name])
    seconds = benchmark.stats.stats.min
    moved = 2 * n * np.dtype(dtype).itemsize  # x read, y written
    benchmark.extra_info["ns/element"] = round(seconds / n * 1e9, 4)
    benchmark.extra_info["GB/s"] = round(moved / seconds / 1e9, 2)
