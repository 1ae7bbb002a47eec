"""Targeted dropout: targets, draws, pruning, gradients, ramps."""

import pickle
import re
from itertools import pairwise, product

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference
from fastdrop.ops.targeted import MODES
from fastdrop.schedules import Ramp

SHAPES = [(7, 5), (64, 33), (130, 8), (3, 3, 4, 9)]


def weights(shape, dtype=np.float64):
    return np.random.default_rng(5).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_reference(shape, mode, any_dtype):
    W, dy = weights(shape, any_dtype), weights(shape[::-1], any_dtype).T
    for p, targeted in product([0, 0.3, 0.5, 1], [0, 0.1, 0.75, 1]):
        y, ctx = fd.targeted_dropout(W, p, targeted, mode=mode, rng=fd.Rng(3, 4))
        expected, keep = reference.targeted_dropout(W, p, targeted, mode, 3, 4)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.backward(dy), np.where(keep, dy, dy.dtype.type(0)))
        np.testing.assert_array_equal(ctx.mask(), keep)
        assert (ctx.seed, ctx.call, ctx.p, ctx.scale, ctx.shape) == (3, 4, p, 1.0, shape)


@pytest.mark.parametrize("mode", MODES)
def test_gradient(mode):
    W, dy = weights((9, 6)), weights((6, 9)).T
    _, ctx = fd.targeted_dropout(W, 0.5, 0.6, mode=mode, rng=2)
    dW, numeric, step = ctx.backward(dy), np.empty_like(W), 1e-6
    for at in np.ndindex(W.shape):
        ends = []
        for sign in (1, -1):
            moved = W.copy()
            moved[at] += sign * step
            y, _ = fd.targeted_dropout(moved, 0.5, 0.6, mode=mode, rng=2)
            ends.append((dy * y).sum())
        numeric[at] = (ends[0] - ends[1]) / (2 * step)
    assert np.abs(numeric - dW).max() <= 1e-6 * np.abs(dW).max()
    assert 0 < (dW == 0).sum() < dW.size


def test_draws_the_mask_of_dropout():
    W = weights((64, 33))
    for mode, axes in [("weight", ()), ("unit_weight", ()), ("unit", (0,))]:
        _, ctx = fd.targeted_dropout(W, 0.3, 0.5, mode=mode, rng=fd.Rng(8, 9))
        drawn = fd.keep_mask(W.shape, 0.3, rng=fd.Rng(8, 9), shared_axes=axes)
        target = fd.targeted_prune(W, 0.5, mode=mode) == 0
        np.testing.assert_array_equal(ctx.mask(), drawn | ~target)


def test_a_shard_of_the_units(any_dtype):
    whole, cuts = weights((3, 4, 30), any_dtype), (0, 1, 7, 20, 30)
    y, ctx = fd.targeted_dropout(whole, 0.4, 0.6, rng=fd.Rng(3, 4))
    for first, last in pairwise(cuts):
        W, region = whole[..., first:last], ((0, 0, first), whole.shape)
        part, part_ctx = fd.targeted_dropout(W, 0.4, 0.6, rng=fd.Rng(3, 4), region=region)
        expected, keep = reference.targeted_dropout(W, 0.4, 0.6, "weight", 3, 4, region)
        assert_same_bits(part, expected)
        assert_same_bits(part, y[..., first:last])
        loaded = pickle.loads(pickle.dumps(part_ctx))
        assert_same_bits(loaded.backward(W), ctx.backward(whole)[..., first:last])
        np.testing.assert_array_equal(loaded.mask(), keep)


def test_a_shard_knows_no_ranks_of_others():
    W, rng = weights((4, 6)), fd.Rng(1)
    for mode in MODES:
        for region, axis in [(((2, 0), (9, 6)), 0), (((0, 3), (4, 9)), 1), (((0, 0), (4, 7)), 1)]:
            how = {"mode": mode, "rng": rng, "region": region}
            if mode == "weight" and axis == 1:
                fd.targeted_dropout(W, **how)
                continue
            for training in (True, False):
                words = f"region must hold all of axis {axis}, along which magnitudes are ranked"
                with pytest.raises(ValueError, match=words):
                    fd.targeted_dropout(W, **how, training=training)
        y, _ = fd.targeted_dropout(W, mode=mode, rng=7, region=((0, 0), (4, 6)))
        assert_same_bits(y, fd.targeted_dropout(W, mode=mode, rng=7)[0])
    assert rng.call == 2


def test_expected_dropped_fraction():
    W = weights((400, 300))
    targets = 300 * int(0.75 * 400)
    for mode in ("weight", "unit_weight"):
        y, _ = fd.targeted_dropout(W, 0.4, 0.75, mode=mode, rng=1)
        dropped = (y == 0).sum()
        assert abs(dropped - 0.4 * targets) < 4 * np.sqrt(targets * 0.4 * 0.6)
    y, _ = fd.targeted_dropout(weights((3, 20_000)), 0.4, 0.75, mode="unit", rng=1)
    units = (y == 0).all(axis=0)
    np.testing.assert_array_equal((y == 0).any(axis=0), units)
    assert abs(units.sum() - 0.4 * 15_000) < 4 * np.sqrt(15_000 * 0.4 * 0.6)


def test_rate_one_is_magnitude_pruning(dtype):
    W = weights((40, 30), dtype)
    y, ctx = fd.targeted_dropout(W, 1, 0.7, rng=1)
    order = np.argsort(np.abs(W), axis=0)
    expected = W.copy()
    np.put_along_axis(expected, order[: int(0.7 * 40)], 0, axis=0)
    assert_same_bits(y, expected)
    assert_same_bits(fd.targeted_prune(W, 0.7), expected)
    assert_same_bits(ctx.backward(W), expected)

    order = np.argsort(np.linalg.norm(W, axis=0))
    expected = W.copy()
    expected[:, order[: int(0.7 * 30)]] = 0
    for mode in ("unit", "unit_weight"):
        assert_same_bits(fd.targeted_prune(W, 0.7, mode=mode), expected)


def test_convolution_kernel_is_its_matrix():
    W = weights((3, 3, 4, 9))
    for mode in MODES:
        y, _ = fd.targeted_dropout(W, 0.5, 0.5, mode=mode, rng=1)
        flat, _ = fd.targeted_dropout(W.reshape(36, 9), 0.5, 0.5, mode=mode, rng=1)
        assert_same_bits(y.reshape(36, 9), flat)


def test_ties_are_kept():
    W = np.array([[1.0, 3.0], [-1.0, 1.0], [1.0, 1.0], [2.0, -1.0]])
    expected = [[1, 3], [-1, 1], [1, 1], [2, -1]]
    np.testing.assert_array_equal(fd.targeted_prune(W, 0.5), expected)
    expected = [[0, 3], [0, 0], [0, 0], [2, 0]]
    np.testing.assert_array_equal(fd.targeted_prune(W, 0.75), expected)
    assert not fd.targeted_prune(W, 1.0).any()
    same_norm = np.array([[3.0, 4.0, 5.0, 6.0], [4.0, 3.0, 0.0, 0.0]])
    np.testing.assert_array_equal(fd.targeted_prune(same_norm, 0.5, mode="unit"), same_norm)


def test_targets_that_are_not_finite():
    W = np.array([[np.nan, 1.0], [0.5, -np.inf], [-2.0, np.nan], [1.0, 0.0]], np.float32)
    expected = np.array([[np.nan, 0.0], [0.0, -np.inf], [-2.0, np.nan], [0.0, 0.0]], np.float32)
    np.testing.assert_array_equal(fd.targeted_prune(W, 0.5), expected)
    y = fd.targeted_prune(W, 1.0)
    assert not y.any()
    assert not np.signbit(y).any()
    large = np.full((4, 2), [1e30, 2e30], np.float32)  # their squares are no float32
    np.testing.assert_array_equal(fd.targeted_prune(large, 0.5, mode="unit")[0], [0, large[0, 1]])
    infinite = np.full((4, 2), [1e308, 1.5e308])  # norms that are infinite are ties
    np.testing.assert_array_equal(fd.targeted_prune(infinite, 0.5, mode="unit"), infinite)


@pytest.mark.parametrize("mode", MODES)
def test_a_nan_is_larger_than_any_number(mode, any_dtype):
    """Whatever its sign and payload; and so is the norm of a unit with one."""
    W = weights((30, 20), any_dtype)
    for share in (0.05, 0.5, 0.95, 1.0):
        holes = W.copy()
        holes[np.random.default_rng(1).random(W.shape) < share] = np.nan
        holes[::3] *= -1
        bits = holes.view(f"u{holes.itemsize}")
        bits[1::2] |= np.isnan(holes[1::2])  # another payload
        holes[0, 0], holes[1, 1] = np.inf, -np.inf
        for targeted in (0.1, 0.5, 0.9, 1.0):
            y = fd.targeted_prune(holes, targeted, mode=mode)
            _, keep = reference.targeted_dropout(holes, 1.0, targeted, mode, 0, 0)
            assert_same_bits(y, np.where(keep, holes, holes.dtype.type(0)))
    row = np.array([[1, np.nan, np.nan, np.nan]], any_dtype)
    assert fd.targeted_prune(row, 0.5, mode="unit")[0, 0] == 0
    assert fd.targeted_prune(row.T, 0.5)[0, 0] == 0


@pytest.mark.parametrize("unit", [1e200, 1e-200, 2.0**-1070, 1e307])
def test_norms_of_any_size(unit):
    W = np.array([[1, 2, 3, 4]]) * unit
    for mode in ("unit", "unit_weight"):
        np.testing.assert_array_equal(fd.targeted_prune(W, 0.5, mode=mode), W * [0, 0, 1, 1])
        _, keep = reference.targeted_dropout(W, 1.0, 0.5, mode, 0, 0)
        np.testing.assert_array_equal(keep, [[False, False, True, True]])


def test_units_do_not_depend_on_the_layout():
    """Norms that tie except for rounding are added up in one order; no floating-point error."""
    generator = np.random.default_rng(3)
    for _ in range(50):
        values = generator.standard_normal(37)
        W = np.stack([generator.permutation(values) for _ in range(9)], 1)
        y = fd.targeted_prune(W, 0.5, mode="unit")
        assert_same_bits(fd.targeted_prune(np.asfortranarray(W), 0.5, mode="unit"), y)
    with np.errstate(all="raise"):
        wide = np.array([[1e300, 1.0], [1e-300, 1.0]])
        assert_same_bits(fd.targeted_prune(wide, 0.5, mode="unit"), wide * [1, 0])


def test_counts_of_decimal_fractions():
    """k / n of n are k, and so is the decimal; floor otherwise."""
    for n in (3, 7, 10, 100, 1000):
        W = np.arange(1.0, n + 1)[:, None]
        for k in range(n + 1):
            for fraction in (k / n, float(f"{k / n:.15g}")) if n in (10, 100, 1000) else (k / n,):
                assert (fd.targeted_prune(W, fraction) == 0).sum() == k
    W = np.arange(1.0, 101)[:, None]
    assert (fd.targeted_prune(W, 0.2899) == 0).sum() == 28
    assert (fd.targeted_prune(W, np.nextafter(0.29, 0) - 1e-15) == 0).sum() == 28


def test_edges():
    W = weights((16, 12), np.float32)
    rng = fd.Rng(1)
    for mode in MODES:
        y, ctx = fd.targeted_dropout(W, 0.5, 0.5, mode=mode, rng=rng, training=False)
        assert_same_bits(y, W)
        assert not np.shares_memory(y, W)
        assert_same_bits(ctx.backward(W), W)
        assert (ctx.seed, ctx.call, ctx.p, ctx.nbytes) == (None, None, 0.0, 0)
    assert rng.call == 0
    for p, targeted in [(0.0, 0.5), (0.5, 0.0)]:
        y, ctx = fd.targeted_dropout(W, p, targeted, rng=rng)
        assert_same_bits(y, W)
        assert_same_bits(ctx.backward(W), W)
        assert ctx.mask().all()
    assert rng.call == 2
    y, ctx = fd.targeted_dropout(W, 1.0, 1.0, rng=rng)
    assert not y.any()
    assert not ctx.backward(np.full_like(W, np.nan)).any()


def test_holds_one_bit_each():
    W = weights((16, 12))
    held = [fd.targeted_dropout(W, mode=mode, rng=1)[1].nbytes for mode in MODES]
    assert held == [24, 2, 24]


@pytest.mark.parametrize("mode", MODES)
def test_layouts_and_empties(mode):
    W = weights((64, 33))
    expected, _ = fd.targeted_dropout(W, 0.5, 0.5, mode=mode, rng=1)
    strided = np.empty((128, 66))[::2, ::-2]
    strided[...] = W
    for same in (np.asfortranarray(W), strided, W.astype(">f8"), W.tolist()):
        y, _ = fd.targeted_dropout(same, 0.5, 0.5, mode=mode, rng=1)
        np.testing.assert_array_equal(y, expected)
    for shape in [(0, 3), (3, 0), (2, 0, 3)]:
        y, ctx = fd.targeted_dropout(np.ones(shape), 0.5, 0.5, mode=mode, rng=1)
        assert y.shape == ctx.backward(y).shape == shape


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("p", [0, 0.5, 1])
def test_pickle(mode, p):
    W = weights((16, 13))
    y, ctx = fd.targeted_dropout(W, p, 0.5, mode=mode, rng=1)
    copy = pickle.loads(pickle.dumps(ctx))
    assert_same_bits(copy.backward(W), y)
    assert (copy.seed, copy.call, copy.p, copy.scale) == (ctx.seed, ctx.call, ctx.p, ctx.scale)


def test_bad_input():
    W = weights((4, 3))
    for error, words, arguments in [
        (ValueError, "p must be in [0, 1], got 2", {"p": 2}),
        (ValueError, "targeted must be in [0, 1], got nan", {"targeted": np.nan}),
        (TypeError, "targeted must be a real number in [0, 1], got True", {"targeted": True}),
        (ValueError, "mode must be one of 'weight', 'unit', 'unit_weight'", {"mode": "units"}),
        (ValueError, "weight must have at least two axes", {"weight": W[0]}),
        (TypeError, "weight must be float16", {"weight": W.astype(int)}),
    ]:
        rng = fd.Rng(1)
        with pytest.raises(error, match=re.escape(words)):
            fd.targeted_dropout(**{"weight": W, "rng": rng} | arguments)
        assert rng.call == 0
    _, ctx = fd.targeted_dropout(W, rng=1)
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        ctx.backward(W.T)
    with pytest.raises(ValueError, match="targeted must be in"):
        fd.targeted_prune(W, 2)
    with pytest.raises(ValueError, match="mode must be one of"):
        fd.layers.TargetedDropout(mode="x")
    with pytest.raises(ValueError, match="targeted must be in"):
        fd.layers.TargetedDropout(0.5, 2)


def test_ramp_is_the_authors():
    targeted, p = Ramp(0.75, 20_000, 0.95), Ramp(0.5, 40_000)
    for t in (0, 1, 9_999, 20_000, 20_001, 31_000, 40_000, 40_001, 10**9):
        rising = 0.95 * min(1, t / 20_000) + 0.05 * np.clip((t - 20_000) / 20_000, 0, 1)
        assert targeted(t) == pytest.approx(0.75 * rising, rel=1e-15)
        assert p(t) == pytest.approx(0.5 * min(1, t / 40_000), rel=1e-15)
    assert (targeted(40_000), p(40_000)) == (0.75, 0.5)
    assert pickle.loads(pickle.dumps(targeted)) == targeted
    for arguments, words in [
        ((1.5, 10), "final must be in"),
        ((0.5, 10, -1), "share must be in"),
        ((0.5, 0), "steps must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            Ramp(*arguments)


def test_layer():
    W = weights((16, 12), np.float32)
    layer = fd.layers.TargetedDropout(0.3, 0.6, mode="unit", rng=7)
    rng = fd.Rng(7)
    for _ in range(3):
        expected, ctx = fd.targeted_dropout(W, 0.3, 0.6, mode="unit", rng=rng)
        assert_same_bits(layer(W), expected)
        assert_same_bits(layer.backward(W), ctx.backward(W))
    assert_same_bits(layer.eval()(W), W)
    assert layer.rng.call == 3
    assert_same_bits(layer.prune(W), fd.targeted_prune(W, 0.6, mode="unit"))
    assert repr(layer) == "TargetedDropout(p=0.3, targeted=0.6, mode='unit')"


def test_layer_follows_ramps():
    W = weights((16, 12))
    p, targeted = Ramp(0.5, 4), Ramp(0.8, 2, 0.5)
    layer = fd.layers.TargetedDropout(p, targeted, rng=7)
    rng = fd.Rng(7)
    for t in range(5):
        expected, _ = fd.targeted_dropout(W, p(t), targeted(t), rng=rng)
        assert_same_bits(layer(W), expected)
    assert_same_bits(layer.prune(W), fd.targeted_prune(W, 0.8))
    assert repr(layer).startswith("TargetedDropout(p=Ramp(final=0.5, steps=4, share=1.0)")
