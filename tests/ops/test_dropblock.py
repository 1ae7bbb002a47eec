"""DropBlock: blocks, scales, layouts, gradients, expectation."""

import pickle
import re
from functools import cache
from itertools import product
from math import prod

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop import _core, reference
from fastdrop.reference.dropblock import block_seeds

SHAPES = [(3, 5, 9, 11), (1, 2, 40, 33), (5, 1, 8, 8), (2, 4, 1, 6), (4, 3, 21)]


def maps(shape, dtype=np.float64):
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, any_dtype):
    x, dy = maps(shape, any_dtype), maps(shape[::-1], any_dtype).T
    for p, block_size, per_channel in product([0.1, 0.5, 0.9, 1], [1, 2, 7], [True, False]):
        options = {"per_channel": per_channel, "rng": fd.Rng(3, 4)}
        y, ctx = fd.drop_block(x, p, block_size, **options)
        expected, mask = reference.drop_block(x, p, block_size, 3, 4, per_channel)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.backward(dy), reference.rescaled(dy, mask))
        np.testing.assert_array_equal(ctx.mask(), mask)
        assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (3, 4, p, shape)
        examples = mask.reshape(len(mask), -1)
        kept = examples.sum(axis=1)
        scales = [examples.shape[1] / n if n else 0 for n in kept]
        np.testing.assert_array_equal(ctx.scales, scales)
        assert p < 1 or not mask.any()


def test_blocks_of_every_size():
    """The kernel against a loop, where many seeds are set and words end anywhere."""
    rng = np.random.default_rng(1)
    sides = [1, 2, 3, 5, 7, 8, 9, 13, 31, 32, 33, 40, 63, 64, 65]
    for height, width, kh, kw in product(sides, sides, (1, 2, 3, 6, 8), (1, 3, 7, 8)):
        if kh > height or kw > width or rng.random() < 0.7:
            continue
        shape = (2, int(rng.integers(1, 4)), height, width)
        places = (*shape[:2], height - kh + 1, width - kw + 1)
        begins = rng.random(places) < rng.choice([0.01, 0.1])
        expected = np.ones(shape, bool)
        for i, j in np.ndindex(kh, kw):
            expected[:, :, i : i + places[2], j : j + places[3]] &= ~begins
        seeds = np.packbits(~begins, bitorder="little").tobytes() + bytes(_core.BITS_PAD)
        keep = _core.drop_blocks(seeds, shape, kh, kw)
        assert len(keep) == _core.bytes_of_examples(2, expected[0].size)
        words = np.frombuffer(keep, np.uint8)[: -_core.BITS_PAD].reshape(2, -1)
        found = np.unpackbits(words, axis=1, bitorder="little")
        np.testing.assert_array_equal(found[:, : expected[0].size], expected.reshape(2, -1))
        assert not found[:, expected[0].size :].any()


@cache
def expected_of(shape):
    x = maps(shape, np.float32)
    return x, *reference.drop_block(x, 0.2, 5, 3, 0)


@pytest.mark.parametrize("shape", [(40, 16, 16, 17), (3, 4, 130, 131), (1, 3, 200, 201)], ids=str)
def test_instruction_sets_and_threads(isa, threads, shape):
    x, expected, mask = expected_of(shape)
    for non_temporal_bytes in (0, 2**62):
        before = _core.set_non_temporal_bytes(non_temporal_bytes)
        y, ctx = fd.drop_block(x, 0.2, 5, rng=3)
        _core.set_non_temporal_bytes(before)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("per_channel", [True, False])
def test_channels_last(shape, per_channel):
    x = maps(shape)
    options = {"per_channel": per_channel, "rng": 3}
    expected, ctx = fd.drop_block(x, 0.3, 3, **options)
    last = np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for v in (last, np.moveaxis(x, 1, -1)):
        y, ctx_last = fd.drop_block(v, 0.3, 3, channels_last=True, **options)
        assert_same_bits(np.moveaxis(y, -1, 1), expected)
        assert_same_bits(np.moveaxis(ctx_last.backward(v), -1, 1), expected)
        np.testing.assert_array_equal(np.moveaxis(ctx_last.mask(), -1, 1), ctx.mask())
        np.testing.assert_array_equal(ctx_last.scales, ctx.scales)


def test_layouts():
    x = maps((4, 6, 10, 12), np.float32)
    views = [
        np.asfortranarray(x),
        x[::-1, :, ::-2],
        x.transpose(3, 1, 2, 0),
        x.astype(">f4"),
        np.broadcast_to(x[:1], x.shape),
    ]
    for v in views:
        expected, _ = fd.drop_block(np.array(v, np.float32, order="C"), 0.3, 3, rng=1)
        y, ctx = fd.drop_block(v, 0.3, 3, rng=1)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.backward(v), expected)


def test_out():
    x = maps((4, 6, 10, 12), np.float32)
    expected, ctx = fd.drop_block(x, 0.3, 3, rng=1)
    out = np.empty_like(x)
    assert fd.drop_block(x, 0.3, 3, rng=1, out=out)[0] is out
    assert_same_bits(out, expected)
    assert ctx.backward(x, out=out[...]).base is out
    assert_same_bits(out, expected)
    both = np.concatenate([x, x[:1]])
    y, _ = fd.drop_block(both[:-1], 0.3, 3, rng=1, out=both[1:])  # overlaps
    assert_same_bits(y, expected)
    assert fd.drop_block(x, 0.3, 3, rng=1, out=x)[0] is x
    assert_same_bits(x, expected)


def test_batch_in_shards():
    x = maps((7, 3, 9, 9))
    for per_channel, save in product([True, False], ["bits", "seed"]):
        options = {"per_channel": per_channel, "save": save, "rng": 1}
        expected, _ = fd.drop_block(x, 0.3, 3, **options)
        for first, last in [(0, 2), (2, 6), (6, 7), (3, 3)]:
            part = x[first:last]
            region = (first, 0, 0, 0), x.shape
            y, ctx = fd.drop_block(part, 0.3, 3, region=region, **options)
            assert_same_bits(y, expected[first:last])
            assert_same_bits(ctx.backward(part), expected[first:last])


def test_saved_bits_and_seed():
    x = maps((3, 5, 9, 11))
    y, bits = fd.drop_block(x, 0.3, 3, rng=1)
    _, seed = fd.drop_block(x, 0.3, 3, rng=1, save="seed")
    assert (bits.nbytes, seed.nbytes) == (3 * 8 * 8, 0)  # 495 bits are 8 words
    assert fd.drop_block(x, 0.3, 3, rng=1, per_channel=False)[1].nbytes == 3 * 2 * 8
    for ctx in (bits, seed):
        assert_same_bits(ctx.backward(x), y)
        np.testing.assert_array_equal(ctx.mask(), y != 0)
        again, _ = fd.drop_block(x, 0.3, 3, rng=fd.Rng(ctx.seed, ctx.call))
        assert_same_bits(again, y)


def test_gradient():
    x, dy = maps((2, 2, 4, 5)), maps((5, 4, 2, 2)).T
    _, ctx = fd.drop_block(x, 0.4, 3, rng=1)
    dx = ctx.backward(dy)
    assert 0 < (dx == 0).sum() < dx.size
    assert_gradient(lambda: (dy * fd.drop_block(x, 0.4, 3, rng=1)[0]).sum(), x, dx)


def test_blocks_of_one_are_dropout():
    shape = (4, 6, 10, 12)
    for p in (0.1, 0.5, 0.7):
        _, ctx = fd.drop_block(np.ones(shape), p, 1, rng=8)
        np.testing.assert_array_equal(ctx.mask(), fd.keep_mask(shape, p, rng=8))


def test_block_larger_than_a_map():
    x = maps((200, 3, 4, 6))
    y, _ = fd.drop_block(x, 0.5, 50, rng=1)
    assert_same_bits(y, fd.drop_block(x, 0.5, 4, rng=1)[0])
    squares = maps((200, 3, 4, 4))  # where a block is a map, maps are dropped
    mask = fd.drop_block(squares, 0.5, 50, rng=1)[1].mask()
    maps_kept = fd.keep_mask((200, 3), 0.5, rng=1)
    np.testing.assert_array_equal(mask, np.broadcast_to(maps_kept[:, :, None, None], mask.shape))


def expected_mean(size, p, block_size):
    """Of the keep mask: an element that c blocks may cover is kept with chance (1 - gamma)^c."""
    k, places, gamma = block_seeds(size, p, block_size)
    counts = [np.convolve(np.ones(n), np.ones(k)) for n in places]
    covers = prod(np.ix_(*counts))
    return ((1 - gamma) ** covers).mean()


def test_expectation():
    for size, p, block_size in [((14, 14), 0.3, 5), ((20, 9), 0.1, 3), ((16,), 0.2, 4)]:
        _, ctx = fd.drop_block(np.ones((1000, 4, *size)), p, block_size, rng=1)
        kept = ctx.mask().reshape(4000, -1).mean(axis=1)
        expected = expected_mean(size, p, block_size)
        assert abs(kept.mean() - expected) < 4 * kept.std() / np.sqrt(4000)
        assert 1 - p < expected < 1 - 0.8 * p
    dropped = [1 - expected_mean((56, 56), p, 7) for p in (0.1, 0.5)]
    np.testing.assert_allclose(dropped, [0.095, 0.38], rtol=0.01)  # as the docstring says


def test_sum_of_each_example_is_kept():
    x = np.ones((20, 3, 15, 15))
    y, ctx = fd.drop_block(x, 0.3, 5, rng=1)
    np.testing.assert_allclose(y.sum(axis=(1, 2, 3)), x[0].size)
    assert len(set(ctx.scales)) > 10
    expected = np.where(ctx.mask(), ctx.scales[:, None, None, None], 0)
    np.testing.assert_array_equal(y, expected)


def test_nothing_dropped(dtype):
    x = maps((2, 3, 8, 8), dtype)
    x[0, 0, 0] = np.nan
    for p, training, calls in [(0.0, True, 1), (0.3, False, 0), (0, False, 0), (1, False, 0)]:
        for save in ("bits", "seed"):
            rng = fd.Rng(1)
            y, ctx = fd.drop_block(x, p, 3, rng=rng, training=training, save=save)
            assert y is not x
            assert_same_bits(y, x)
            assert_same_bits(ctx.backward(x), x)
            assert ctx.mask().all()
            np.testing.assert_array_equal(ctx.scales, [1, 1])
            assert (rng.call, ctx.p, ctx.nbytes) == (calls, 0.0, 0)
            assert (ctx.seed is None) == (calls == 0)


def test_everything_dropped(dtype):
    x = np.full((2, 3, 8, 9), np.inf, dtype)
    x[0] = np.nan
    for save in ("bits", "seed"):
        y, ctx = fd.drop_block(x, 1, 3, rng=1, save=save)
        assert_same_bits(y, np.zeros_like(x))
        assert_same_bits(ctx.backward(x), np.zeros_like(x))
        np.testing.assert_array_equal(ctx.scales, [0, 0])


def test_dropped_infinities_are_gone():
    x = np.full((2, 3, 8, 9), np.inf)
    y, ctx = fd.drop_block(x, 0.5, 3, rng=1)
    assert_same_bits(y, np.where(ctx.mask(), np.inf, 0.0))


@pytest.mark.parametrize(
    "shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0), (2, 3, 0)]
)
def test_empty(shape):
    for per_channel in (True, False):
        rng = fd.Rng(1)
        y, ctx = fd.drop_block(np.ones(shape), 0.5, 3, per_channel=per_channel, rng=rng)
        assert y.shape == ctx.backward(y).shape == ctx.mask().shape == shape
        assert ctx.scales.shape == shape[:1]
        assert rng.call == 1


def refuses(error, words, x=None, **arguments):
    """The call fails as it should, draws nothing and leaves out as it was."""
    rng = fd.Rng(1)
    out = arguments.setdefault("out", np.full((2, 3, 8, 9), 7.0))
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error, match=re.escape(words)):
        fd.drop_block(np.ones((2, 3, 8, 9)) if x is None else x, rng=rng, **arguments)
    assert rng.call == 0
    if before is not None:
        np.testing.assert_array_equal(out, before)


def test_errors():
    for p in (-0.1, 1.1, float("nan")):
        refuses(ValueError, f"p must be in [0, 1], got {p!r}", p=p)
    refuses(TypeError, "p must be a real number in [0, 1], got True", p=True)
    refuses(ValueError, "block_size must be at least 1, got 0", block_size=0)
    for block_size in (3.0, True, "3", None, (3, 3)):
        words = f"block_size must be an int, got {block_size!r}"
        refuses(TypeError, words, block_size=block_size)
        with pytest.raises(TypeError, match=re.escape(words)):
            fd.layers.DropBlock(0.1, block_size)
    for ndim in (0, 1, 2, 5):
        x = np.ones((2,) * ndim)
        refuses(ValueError, f"1 or 2 spatial axes, got {ndim} axes in all", x, out=None)
    refuses(TypeError, "x must be float16, bfloat16, float32 or", np.ones((2, 3, 8, 9), int))
    refuses(ValueError, "save must be one of 'bits', 'seed', got 'all'", save="all")
    refuses(ValueError, "out must have shape (2, 3, 8, 9), got (2,)", out=np.ones(2))
    words = "as a scale needs a whole example"
    for axis, region in [(1, ((0, 0, 0, 0), (2, 4, 8, 9))), (2, ((0, 0, 1, 0), (2, 3, 9, 9)))]:
        refuses(ValueError, f"region must hold all of axis {axis}, {words}", region=region)
    refuses(ValueError, "region must contain", region=((1, 0, 0, 0), (2, 3, 8, 9)))
    _, ctx = fd.drop_block(np.ones((2, 3, 8, 9)), 0.1, rng=1)
    with pytest.raises(ValueError, match=re.escape("dy must have shape (2, 3, 8, 9), got (2, 3)")):
        ctx.backward(np.ones((2, 3)))
    with pytest.raises(TypeError, match="dy must be float16"):
        ctx.backward(np.ones((2, 3, 8, 9), int))


def test_pickle():
    x = maps((3, 8, 9, 5))
    whole = (9, 8, 9, 5)
    for save, p in product(["bits", "seed"], [0.0, 0.3]):
        options = {"channels_last": True, "region": ((2, 0, 0, 0), whole), "rng": 1}
        y, ctx = fd.drop_block(x, p, 3, save=save, **options)
        again = pickle.loads(pickle.dumps(ctx))
        assert repr(again) == repr(ctx)
        assert (again.first, again.block_size, again.channels_last) == (2, 3, True)
        assert_same_bits(again.backward(x), y)
    _, ctx = fd.drop_block(x, 0.3, 3, rng=1)
    kind, (shape, draw, scale, bits, *rest) = ctx.__reduce__()
    with pytest.raises(ValueError, match=f"bits must be {len(bits)} bytes"):
        kind(shape, draw, scale, bits[:-8], *rest)


def test_layer():
    layer = fd.layers.DropBlock(0.3, 3, rng=7)
    x = maps((3, 8, 9, 5), np.float32)
    rng = fd.Rng(7)
    for _ in range(3):
        expected, ctx = fd.drop_block(x, 0.3, 3, rng=rng)
        assert_same_bits(layer(x), expected)
        assert_same_bits(layer.backward(x), ctx.backward(x))
    assert_same_bits(layer.eval()(x), x)
    assert_same_bits(layer.backward(x), x)
    assert layer.rng.call == 3
    assert repr(layer) == (
        "DropBlock(p=0.3, block_size=3, channels_last=False, per_channel=True, save='bits')"
    )
    options = {"channels_last": True, "per_channel": False, "save": "seed"}
    layer = fd.layers.DropBlock(lambda step: 0.1 * step, 2, rng=7, **options)
    assert_same_bits(layer(x), x)
    out = np.empty_like(x)
    assert layer(x, out=out) is out
    assert_same_bits(out, fd.drop_block(x, 0.1, 2, rng=fd.Rng(7, 1), **options)[0])
    assert layer.ctx.nbytes == 0
    with pytest.raises(ValueError, match="save must be one of"):
        fd.layers.DropBlock(save="x")
