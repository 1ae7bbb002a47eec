"""dropout against the reference, bit for bit."""

import functools
import tracemalloc

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference


@functools.cache
def mask_of(size, p, seed, call):
    """The reference's mask: the same for every instruction set and dtype."""
    return reference.keep(np.arange(size), p, seed, call)


def check(x, p, seed=11, call=3, mask=None):
    """Forward and both ways back against the reference."""
    if mask is None:
        mask = mask_of(x.size, p, seed, call).reshape(x.shape)
    expected = reference.apply(x, mask, p)
    dy = x[::-1].copy()
    dx = reference.apply(dy, mask, p)
    for save in ("bits", "seed"):
        y, ctx = fd.dropout(x, p, rng=fd.Rng(seed, call), save=save)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.backward(dy), dx)
        np.testing.assert_array_equal(ctx.mask(), mask)


def test_every_length_to_600(isa, dtype, p):
    x = np.random.default_rng(0).standard_normal(600).astype(dtype)
    mask = mask_of(600, p, 11, 3)
    for n in range(601):
        check(x[:n], p, mask=mask[:n])


def test_random_lengths_to_a_million(isa, dtype, p):
    generator = np.random.default_rng(int(p * 1000))
    for n in (4095, 4096, 4097, 4224, *generator.integers(601, 10**6, 2)):
        check(generator.standard_normal(n).astype(dtype), p)


def test_a_block_boundary_in_the_call_number(isa):
    for call in (2**32 - 1, 2**32, 2**64 - 1):
        check(np.ones(1000, np.float32), 0.3, seed=2**64 - 1, call=call)


SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3e38, -3e38, 1.0, -1.5]


def test_special_values(isa, dtype, p):
    """Dropped means +0 whatever was there; kept means x * scale, NaN and infinity included."""
    x = np.resize(np.array(SPECIAL, dtype), 2000)
    check(x, p)
    y, ctx = fd.dropout(x, p, rng=1)
    dropped = y[~ctx.mask()]
    assert not np.signbit(dropped).any()
    assert (dropped == 0).all()


def test_rate_0_copies_every_bit(isa, dtype):
    unsigned = f"u{np.dtype(dtype).itemsize}"
    x = np.random.default_rng(0).integers(0, 2 ** (8 * np.dtype(dtype).itemsize), 5000, unsigned)
    x = x.view(dtype)
    for arguments in ({"p": 0}, {"p": 0.7, "training": False}):
        y, ctx = fd.dropout(x, **arguments, rng=1)
        assert_same_bits(y, x)
        assert not np.shares_memory(y, x)
        assert_same_bits(ctx.backward(x), x)
        assert ctx.mask().all()
        assert ctx.nbytes == 0
        assert ctx.scale == 1.0


def test_rate_1_is_zero_and_never_nan(isa, dtype):
    x = np.resize(np.array(SPECIAL, dtype), 333)
    y, ctx = fd.dropout(x, 1, rng=1)
    zeros = np.zeros_like(x)
    assert_same_bits(y, zeros)
    assert_same_bits(ctx.backward(x), zeros)
    assert not ctx.mask().any()
    assert ctx.scale == 0.0


def test_tiny_rate_still_scales(isa):
    """A rate that rounds to T = 0 drops nothing, but its scale is not 1."""
    p = 1e-11
    y, _ = fd.dropout(np.ones(100), p, rng=1)
    assert (y == 1 / (1 - p)).all()


def test_in_place(isa, dtype, p):
    x = np.random.default_rng(0).standard_normal(9001).astype(dtype)
    expected, ctx = fd.dropout(x, p, rng=4)
    dx = ctx.backward(x)
    y = x.copy()
    out, ctx = fd.dropout(y, p, rng=4, out=y)
    assert out is y
    assert_same_bits(y, expected)
    dy = x.copy()
    assert ctx.backward(dy, out=dy) is dy
    assert_same_bits(dy, dx)


def test_mean_is_preserved(dtype):
    y, _ = fd.dropout(np.ones(10**6, dtype), 0.3, rng=5)
    assert abs(y.mean(dtype=np.float64) - 1) < 6 * np.sqrt(0.3 / 0.7 / 10**6)


@pytest.mark.parametrize("save", ["bits", "seed"])
def test_gradient_by_central_differences(isa, save):
    generator = np.random.default_rng(0)
    x, dy = generator.standard_normal((2, 7, 11))
    _, ctx = fd.dropout(x, 0.4, rng=9, save=save)
    dx = ctx.backward(dy)
    h = 1e-6
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += h
        down[i] -= h
        f_up, f_down = (np.vdot(fd.dropout(v, 0.4, rng=9)[0], dy) for v in (up, down))
        assert dx[i] == pytest.approx((f_up - f_down) / (2 * h), rel=1e-6, abs=1e-8)


def test_backward_in_another_dtype(isa):
    x = np.ones(500, np.float32)
    _, ctx = fd.dropout(x, 0.3, rng=2)
    dx = ctx.backward(np.ones(500))
    assert dx.dtype == np.float64
    assert_same_bits(dx, np.where(ctx.mask(), 1 / (1 - 0.3), 0.0))


def test_lists_and_scalars():
    y, ctx = fd.dropout([1.0, 2.0, 3.0], 0.5, rng=3)
    assert_same_bits(y, reference.dropout(np.array([1.0, 2, 3]), 0.5, 3, 0)[0])
    y, ctx = fd.dropout(2.0, 0.5, rng=3)
    assert y.shape == ctx.shape == ()
    assert y in (0.0, 4.0)


@pytest.mark.parametrize("p", [0.25, np.float32(0.25), np.float64(0.25), np.array(0.25)])
def test_kinds_of_rate(p):
    _, ctx = fd.dropout(np.ones(10), p, rng=1)
    assert type(ctx.p) is float
    assert ctx.p == 0.25


def test_keep_mask(isa, p):
    for n in (0, 1, 7, 8, 9, 1000):
        mask = fd.keep_mask(n, p, rng=6)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, reference.keep(np.arange(n), p, 6, 0))
        packed = fd.keep_mask(n, p, rng=6, packed=True)
        np.testing.assert_array_equal(packed, np.packbits(mask, bitorder="little"))
        assert packed.flags.writeable
    assert fd.keep_mask((3, 4), p, rng=6).shape == (3, 4)
    assert fd.keep_mask((), p, rng=6).shape == ()


def test_memory_held_for_backward():
    x = np.ones(10_001, np.float32)
    assert fd.dropout(x, 0.3, rng=1)[1].nbytes == 1251
    assert fd.dropout(x, 0.3, rng=1, save="seed")[1].nbytes == 0
    assert fd.dropout(x.reshape(73, 137), 0.3, rng=1, shared_axes=1)[1].nbytes == 10


def peak(function):
    """Bytes allocated at most at one time, by Python and NumPy."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_peak_memory():
    """Beyond x, y and dx: one bit an element, or nothing that grows."""
    x = np.ones(2**22, np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)

    def step(**arguments):
        fd.dropout(x, 0.2, rng=1, out=y, **arguments)[1].backward(x, out=dx)

    step()
    slack = 10_000
    assert x.nbytes / 32 < peak(step) < x.nbytes / 32 + slack
    assert peak(lambda: step(save="seed")) < slack
