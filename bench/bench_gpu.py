"""Operations on a GPU, by its own clock: ``pytest --benchmark-only``; see on_gpu.py.

A group is one size and dtype; in it stand a copy from device to device, which is the floor, and
PyTorch and CuPy if they are installed.
"""

import pytest
from on_gpu import operations, timer

import fastdrop as fd

if reason := fd.cuda.why_not():
    pytest.skip(reason, allow_module_level=True)

now = timer()


@pytest.fixture(scope="module", params=[(e, d) for d in ("float32", "float16") for e in (16, 26)])
def case(request):
    e, dtype = request.param
    return f"2^{e} {dtype}", operations(2**e, dtype)


@pytest.mark.parametrize("name", operations(1024, "float32"))
@pytest.mark.benchmark(timer=now, min_rounds=20, warmup=True)
def test_operation(benchmark, case, name):
    group, functions = case
    benchmark.group = group
    benchmark(functions[name][0])
