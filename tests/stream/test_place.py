"""shared_axes and region: which part of which mask array is drawn."""

import itertools

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdrop as fd
from fastdrop import reference

SHAPE = (4, 5, 6, 7)
ALL_AXES = [axes for k in range(5) for axes in itertools.combinations(range(4), k)]


@pytest.mark.parametrize("axes", ALL_AXES, ids=str)
def test_shared_axes(isa, dtype, axes):
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    mask_shape = tuple(1 if d in axes else n for d, n in enumerate(SHAPE))
    for p in (0.3, 0.5):
        mask = np.broadcast_to(fd.keep_mask(mask_shape, p, rng=8), SHAPE)
        expected = reference.apply(x, mask, p)
        assert_same_bits(reference.dropout(x, p, 8, 0, axes)[0], expected)
        for save in ("bits", "seed"):
            y, ctx = fd.dropout(x, p, rng=8, shared_axes=axes, save=save)
            assert_same_bits(y, expected)
            assert_same_bits(ctx.backward(x), expected)
            np.testing.assert_array_equal(ctx.mask(), mask)
        np.testing.assert_array_equal(fd.keep_mask(SHAPE, p, rng=8, shared_axes=axes), mask)
        packed = fd.keep_mask(SHAPE, p, rng=8, shared_axes=axes, packed=True)
        np.testing.assert_array_equal(packed, np.packbits(mask, bitorder="little"))


def test_axes_may_be_an_int_or_negative(isa):
    x = np.ones(SHAPE)
    for a, b in ((-1, 3), ((-1, -2), (2, 3)), ((1, 0), (0, 1))):
        first, second = (fd.dropout(x, 0.4, rng=1, shared_axes=axes)[0] for axes in (a, b))
        np.testing.assert_array_equal(first, second)
        for axes in (a, b):
            np.testing.assert_array_equal(first, reference.dropout(x, 0.4, 1, 0, axes)[0])


@st.composite
def cuts(draw, n):
    """Where to cut an axis of length n into consecutive blocks."""
    inner = draw(st.lists(st.integers(0, n), max_size=3))
    return list(itertools.pairwise([0, *sorted(inner), n]))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), st.data())
@settings(max_examples=150)
def test_random_blocks_reassemble_to_the_whole(shape, data):
    p = data.draw(st.sampled_from([0.2, 0.5]))
    axes = tuple(d for d in range(len(shape)) if data.draw(st.booleans()))
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    whole, ctx = fd.dropout(x, p, rng=fd.Rng(1, 2), shared_axes=axes)
    mask = ctx.mask()
    pieces, gradient = np.full_like(x, np.nan), np.full_like(x, np.nan)
    for block in itertools.product(*(data.draw(cuts(n)) for n in shape)):
        at = tuple(slice(a, b) for a, b in block)
        region = tuple(a for a, _ in block), shape
        save = data.draw(st.sampled_from(["bits", "seed"]))
        where = {"shared_axes": axes, "region": region}
        y, part = fd.dropout(x[at], p, rng=fd.Rng(1, 2), save=save, **where)
        pieces[at] = y
        gradient[at] = part.backward(x[at])
        np.testing.assert_array_equal(part.mask(), mask[at])
        np.testing.assert_array_equal(fd.keep_mask(y.shape, p, rng=fd.Rng(1, 2), **where), mask[at])
    assert_same_bits(pieces, whole)
    assert_same_bits(gradient, whole)


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2)], ids=str)
def test_region_against_the_reference(isa, axes):
    """A block far inside an array that no machine could hold."""
    region = (2**20, 3, 2**30 + 5), (2**22, 11, 2**33)
    x = np.ones((3, 7, 500), np.float32)
    for p in (0.2, 0.5):
        y, ctx = fd.dropout(x, p, rng=3, shared_axes=axes, region=region)
        expected, mask = reference.dropout(x, p, 3, 0, axes, region)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)


def test_region_of_zero_size():
    y, ctx = fd.dropout(np.ones((0, 3)), 0.5, rng=1, region=((2, 0), (2, 3)), shared_axes=0)
    assert y.shape == ctx.mask().shape == (0, 3)


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("width", [1, 16, 100, 128, 256])
def test_every_offset_of_short_rows(isa, p, width):
    """What is drawn for one row serves the next, if it is near enough."""
    for whole in (width + 1, width + 40, 3 * width + 128):
        of = (40, whole)
        mask, x = fd.keep_mask(of, p, rng=1), np.ones((40, width), np.float32)
        for start in range(min(whole - width, 20) + 1):
            some = slice(start, start + width)
            where = {"region": ((0, start), of)}
            assert_same_bits(fd.keep_mask(x.shape, p, rng=1, **where), mask[:, some])
            assert_same_bits(fd.dropout(x, p, rng=1, **where)[0] != 0, mask[:, some])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_every_offset_of_a_run(isa, p):
    """Of a mask, and of what is drawn while it is applied."""
    whole, x = fd.keep_mask(2000, p, rng=1), np.ones(517, np.float32)
    for start in range(300):
        region = (start,), (2000,)
        expected = whole[start : start + 517]
        np.testing.assert_array_equal(fd.keep_mask(517, p, rng=1, region=region), expected)
        y, _ = fd.dropout(x, p, rng=1, region=region, save="seed")
        np.testing.assert_array_equal(y != 0, expected)
