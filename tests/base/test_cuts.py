"""The same bytes for every length, number of threads and cut, on every instruction set."""

import functools

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference

N = 9 * 65_536 + 4097


@functools.cache
def expected(p, n=N):
    return reference.dropout(values(n), p, 3, 0)[0]


@functools.cache
def values(n):
    return np.random.default_rng(0).standard_normal(n, np.float32)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_every_length_to_4097(isa, p):
    for n in range(4098):
        y, ctx = fd.dropout(values(N)[:n], p, rng=3)
        assert y.tobytes() == expected(p)[:n].tobytes()
        assert ctx.backward(y).shape == (n,)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_1_to_64_threads(isa, p):
    before = fd.get_num_threads()
    try:
        for threads in range(1, 65):
            fd.set_num_threads(threads)
            y, ctx = fd.dropout(values(N), p, rng=3)
            assert np.array_equal(y, expected(p))
            if threads % 16 == 0:
                assert_same_bits(ctx.backward(values(N)), expected(p))
    finally:
        fd.set_num_threads(before)


def test_10_000_cuts(isa):
    """Blocks of a 3-d array as regions, on one thread or three."""
    generator = np.random.default_rng(1)
    shape = 11, 23, 517
    x = values(N)[: np.prod(shape)].reshape(shape)
    whole = {p: fd.dropout(x, p, rng=3)[0] for p in (0.2, 0.5)}
    assert_same_bits(whole[0.2].ravel(), expected(0.2, N)[: x.size])
    begin = generator.integers(0, shape, (10_000, 3))
    end = generator.integers(begin, np.array(shape) + 1)
    for i, (low, high) in enumerate(zip(begin, end, strict=True)):
        at = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        p = (0.2, 0.5)[i % 2]
        y, _ = fd.dropout(x[at], p, rng=3, region=(tuple(low), shape), save="seed")
        assert np.array_equal(y, whole[p][at])
