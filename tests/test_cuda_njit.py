"""The GPU's kernels, typed and compiled by Numba for this CPU, against the C kernels at size.

One thread walks the whole grid. The simulator, which test_cuda_sim.py uses, does not see types.
"""

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same_bits
from fake_device import to_fake

import fastdrop as fd
from fastdrop import cuda, device

pytest.importorskip("numba", reason="Numba is not installed: pip install 'fastdrop[numba]'")

N = 10**7 + 11


@pytest.fixture(autouse=True)
def compiled_for_the_cpu(monkeypatch):
    for module in (cuda, device):
        monkeypatch.setattr(module, "where", lambda: "njit")


def numbers(shape, dtype):
    x = np.random.default_rng(1).random(shape, np.float32)
    x -= np.float32(0.5)
    x = x.astype(dtype)
    x.reshape(-1)[5:8] = np.nan, -np.inf, -0.0
    return x


def both(op, *arrays, **kwargs):
    y, ctx = op(*(to_fake(a) if isinstance(a, np.ndarray) else a for a in arrays), rng=7, **kwargs)
    expected, ctx_cpu = op(*arrays, rng=7, **kwargs)
    assert_same_bits(y.host, expected)
    return ctx, ctx_cpu


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", ml_dtypes.bfloat16])
def test_dropout(dtype):
    x = numbers(N, dtype)
    ctx, ctx_cpu = both(fd.dropout, x, 0.2)
    assert ctx._bits[: ctx.nbytes] == ctx_cpu._bits[: ctx.nbytes]
    assert_same_bits(ctx.backward(to_fake(x)).host, ctx_cpu.backward(x))


def test_half():
    both(fd.dropout, numbers(N, np.float32), 0.5)


@pytest.mark.slow
def test_start():
    """Indices of more than 32 bits, not at the begin of a block."""
    x = numbers(N // 4, np.float32)
    both(fd.dropout, x, 0.1, region=((2**60 + 5,), (2**61,)), save="seed")


@pytest.mark.slow
def test_shared_axes_and_sums():
    x = numbers((500, 8, 500), np.float32)
    ctx, ctx_cpu = both(fd.dropout, x, 0.3, shared_axes=1)
    x = x.reshape(-1, 500)
    ctx, ctx_cpu = both(fd.bias_dropout_add, x, x[0], x, 0.3)
    for a, b in zip(ctx.backward(to_fake(x)), ctx_cpu.backward(x), strict=True):
        assert_same_bits(a.host, b)


@pytest.mark.slow
def test_noise():
    both(fd.gaussian_dropout, numbers(N // 4, np.float16), 0.3)
    x = np.nan_to_num(numbers(N // 10, np.float64), neginf=1)
    ctx, ctx_cpu = both(fd.concrete_dropout, x, -0.4)
    for a, b in zip(ctx.backward(to_fake(x)), ctx_cpu.backward(x), strict=True):
        assert_same_bits(a.host, b)
