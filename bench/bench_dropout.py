"""Throughput over sizes, rates, dtypes and thread counts: ``pytest --benchmark-only``.

A group is one size, dtype, rate and thread count; in it stand the copy of the same arrays,
fastdrop's operations, naive and tuned NumPy, and the frameworks that are installed.
``-k "n08 or n16"`` picks 2^8 and 2^16 elements.
"""

import pytest

import fastdrop as fd
from fastdrop.tools import bench

OTHERS = {dtype: bench.others(dtype) for dtype in bench.dtypes()}

FUNCTIONS = [
    pytest.param((e, dtype, p, threads), name, id=f"n{e:02}-{dtype}-p={p}-t{threads}-{name}")
    for e in bench.EXPONENTS
    for dtype, others in OTHERS.items()
    for p in bench.RATES
    for threads in bench.thread_counts()
    for name in bench.operations(1, dtype, p, others)
]


@pytest.fixture(scope="module")
def case(request):
    """The functions of one size, dtype, rate and thread count, and the arrays they share."""
    e, dtype, p, threads = request.param
    before = fd.get_num_threads()
    fd.set_num_threads(threads)
    yield request.param, bench.operations(2**e, dtype, p, OTHERS[dtype])
    fd.set_num_threads(before)


@pytest.mark.parametrize(("case", "name"), FUNCTIONS, indirect=["case"])
@pytest.mark.benchmark(min_rounds=3, max_time=0.1, warmup=False)
def test_throughput(benchmark, case, name):
    (e, dtype, p, threads), functions = case
    benchmark.group = f"2^{e} {dtype} p={p} threads={threads}"
    benchmark(functions[name])
    ns, gbs = bench.throughput(benchmark.stats.stats.min, 2**e, dtype)
    benchmark.extra_info.update({"ns/element": round(ns, 4), "GB/s": round(gbs, 2)})
