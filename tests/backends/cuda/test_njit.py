"""The GPU's kernels, typed and compiled by Numba for this CPU, against the C kernels at size.

One thread walks the whole grid. The simulator, which test_simulator.py uses, does not see types.
"""

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.fake_device import FakeArray, to_fake

import fastdrop as fd
from fastdrop.backends.cpu import host_bits
from fastdrop.backends.cuda import launch

pytest.importorskip("numba", reason="Numba is not installed: pip install 'fastdrop[numba]'")

N = 10**7 + 11


@pytest.fixture(autouse=True)
def compiled_for_the_cpu(monkeypatch):
    monkeypatch.setattr(launch, "where", lambda: "njit")


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
    assert host_bits(ctx.held)[: ctx.nbytes] == ctx_cpu.held[: ctx.nbytes]
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
    for op in (fd.bias_relu_dropout, fd.bias_gelu_dropout):
        ctx, ctx_cpu = both(op, x, x[0], 0.3)
        for a, b in zip(ctx.backward(to_fake(x)), ctx_cpu.backward(x), strict=True):
            assert_same_bits(a.host, b)
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


@pytest.mark.slow
def test_embedding():
    weight = numbers((20_000, 96), np.float16)
    ids = np.random.default_rng(2).zipf(1.3, (50, 1000)) % 20_000
    ctx, ctx_cpu = both(fd.embedding_dropout, weight, 0.2, ids=ids)
    dy = np.nan_to_num(numbers((*ids.shape, 96), np.float16), neginf=1)
    assert_same_bits(ctx.backward(to_fake(dy)).host, ctx_cpu.backward(dy))


@pytest.mark.slow
def test_drop_block():
    x = numbers((30, 48, 57, 59), np.float32)
    region = (2**20, 0, 0, 0), (2**21, *x.shape[1:])
    ctx, ctx_cpu = both(fd.drop_block, x, 0.2, 7, region=region)
    assert host_bits(ctx.held)[: ctx.nbytes] == ctx_cpu.held[: ctx.nbytes]
    np.testing.assert_array_equal(ctx.scales, ctx_cpu.scales)
    both(fd.drop_block, x, 0.1, 5, channels_last=True, per_channel=False)


@pytest.mark.slow
def test_dropconnect():
    """With masks of 10^7 bits, whose indices have more than 32."""
    generator = np.random.default_rng(3)
    x, dy = (generator.standard_normal((40, n), np.float32) for n in (300, 1001))
    weight, bias = (generator.standard_normal(n, np.float32) for n in ((300, 1001), 1001))
    ctx, ctx_cpu = both(fd.dropconnect, x, weight, bias, 0.3, first=2**40)
    for a, b in zip(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy), strict=True):
        assert_same_bits(a.host, b)


@pytest.mark.parametrize(
    "op",
    [
        fd.dropout,
        fd.relu_dropout,
        fd.gaussian_dropout,
        lambda x, **how: fd.drop_block(x, 0.5, 2, **how),
        lambda x, **how: fd.dropout(x, shared_axes=(0, 2), **how),
    ],
)
def test_a_launch_that_fails(op, monkeypatch):
    """Whichever it is: `out` is as it was, and no random call is taken."""
    x = numbers((4, 3, 6, 8), np.float32)
    there, started, failing = launch._kernel, [], [0]

    def kernel(*key):
        started.append(key)
        if len(started) in failing:
            raise RuntimeError("no kernel")
        return there(*key)

    monkeypatch.setattr(launch, "_kernel", kernel)
    for gaps in (1, 2):
        given = np.full((4, 3, 6, 8 * gaps), 7, np.float32)
        rng, failing[:] = fd.Rng(1, 5), [0]
        op(to_fake(x), rng=rng, out=FakeArray(given[..., ::gaps]))
        assert rng.call == 6
        assert len(started) >= gaps
        for k in range(1, len(started) + 1):
            started.clear()
            given[...] = 7
            rng, failing[:] = fd.Rng(1, 5), [k]
            with pytest.raises(RuntimeError, match="no kernel"):
                op(to_fake(x), rng=rng, out=FakeArray(given[..., ::gaps]))
            assert (given == 7).all()
            assert rng.call == 5
        started.clear()
