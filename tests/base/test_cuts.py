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


def slices(shape, axes=None, count=40):
    """Blocks of an array of this shape, cut along these axes (or all), none of them empty."""
    generator = np.random.default_rng(2)
    for _ in range(count):
        begin = generator.integers(0, shape)
        end = generator.integers(begin + 1, np.array(shape) + 1)
        yield tuple(
            slice(a, b) if axes is None or d in axes else slice(0, n)
            for d, (a, b, n) in enumerate(zip(begin, end, shape, strict=True))
        )


def of_part(at, shape):
    return {"rng": fd.Rng(3, 8), "region": (tuple(s.start for s in at), shape)}


@pytest.mark.parametrize("group", [0, 1, 3])
def test_cuts_of_learned_variances(isa, group):
    """One variance of the layer, one for each neuron, one for each element."""
    shape = 11, 23, 37
    x, dy = values(N)[: np.prod(shape)].reshape(shape), values(N)[-np.prod(shape) :].reshape(shape)
    log_alpha = np.asarray(-np.abs(dy)[(0,) * (3 - group)], np.float64)
    y, ctx = fd.variational_dropout(x, log_alpha, rng=fd.Rng(3, 8))
    dx, dlog_alpha = ctx.backward(dy)
    for at in slices(shape):
        own = log_alpha[at[3 - group :]]
        part, part_ctx = fd.variational_dropout(x[at], own, **of_part(at, shape))
        assert_same_bits(part, y[at])
        part_dx, part_dlog_alpha = part_ctx.backward(dy[at])
        assert_same_bits(part_dx, dx[at])
        if group == 3:
            assert_same_bits(part_dlog_alpha, dlog_alpha[at])
    halves = [(slice(a, b), slice(0, 23), slice(0, 37)) for a, b in ((0, 4), (4, 11))]
    parts = [
        fd.variational_dropout(x[at], log_alpha[at[3 - group :]], **of_part(at, shape))[1]
        for at in halves
    ]
    found = [ctx.backward(dy[at])[1] for ctx, at in zip(parts, halves, strict=True)]
    together = np.concatenate(found) if group == 3 else sum(found)
    np.testing.assert_allclose(together, dlog_alpha, rtol=1e-9, atol=1e-9)


def test_cuts_of_targets_and_examples(isa):
    """Units of targeted weights, examples of adversarial dropout: what is ranked stays whole."""
    shape = 11, 23, 37
    x, dy = values(N)[: np.prod(shape)].reshape(shape), values(N)[-np.prod(shape) :].reshape(shape)
    y, ctx = fd.targeted_dropout(x, 0.4, 0.7, rng=fd.Rng(3, 8))
    for at in slices(shape, axes=(2,)):
        part, part_ctx = fd.targeted_dropout(x[at], 0.4, 0.7, **of_part(at, shape))
        assert_same_bits(part, y[at])
        assert_same_bits(part_ctx.backward(dy[at]), ctx.backward(dy)[at])
    y, ctx = fd.adversarial_dropout(x, dy, 0.2, 0.4, rng=fd.Rng(3, 8))
    for at in slices(shape, axes=(0,)):
        part, part_ctx = fd.adversarial_dropout(x[at], dy[at], 0.2, 0.4, **of_part(at, shape))
        assert_same_bits(part, y[at])
        assert_same_bits(part_ctx.backward(dy[at]), ctx.backward(dy)[at])


def test_cuts_of_drawn_outputs(isa):
    """The noise has the same bits: y is nothing else where weights are 0 and x has one input."""
    shape = 11, 23, 37
    ones, weight = np.ones((*shape[:-1], 1), np.float32), np.zeros((1, shape[-1]), np.float32)
    y, _ = fd.sparse_variational_linear(ones, weight, weight, rng=fd.Rng(3, 8))
    for at in slices(shape):
        w = weight[:, at[-1]]
        part, _ = fd.sparse_variational_linear(ones[at[:-1]], w, w, **of_part(at, shape))
        assert_same_bits(part, y[at])
