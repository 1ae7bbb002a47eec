"""Adversarial dropout: which elements are flipped, gradients, divergences, a network."""

import doctest
import pickle
import re
from itertools import combinations, product

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference
from fastdrop.layers import AdversarialDropout
from fastdrop.ops.adversarial import kl_divergence, squared_divergence

DIVERGENCES = [kl_divergence, squared_divergence]


def inputs(shape, dtype=np.float64, seed=5):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for _ in range(2)]


@pytest.mark.parametrize("shape", [(4, 9), (7, 64), (3, 2, 5, 13)], ids=str)
def test_equals_reference(shape, any_dtype):
    x, g = inputs(shape, any_dtype)
    for p, delta in product([0, 0.3, 0.5, 1], [0, 0.05, 0.3, 1]):
        y, ctx = fd.adversarial_dropout(x, g, delta, p, rng=fd.Rng(3, 4))
        expected, mask, scale = reference.adversarial_dropout(x, g, delta, p, 3, 4)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)
        np.testing.assert_array_equal(ctx.scales, scale)
        wide = g.astype(reference.compute_type(g.dtype))
        factor = scale.astype(wide.dtype).reshape(-1, *(1,) * (len(shape) - 1))
        dx = reference.rounded(np.where(mask, wide * factor, wide.dtype.type(0)), g.dtype)
        assert_same_bits(ctx.backward(g), dx)
        assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (3, 4, p, shape)


def test_gradient():
    x, g = inputs((3, 20))
    _, dy = inputs((3, 20), seed=6)
    _, ctx = fd.adversarial_dropout(x, g, 0.2, 0.5, rng=2)
    dx, numeric, step = ctx.backward(dy), np.empty_like(x), 1e-6
    for at in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[at] += sign * step
            y, _ = fd.adversarial_dropout(moved, g, 0.2, 0.5, rng=2)
            ends.append((dy * y).sum())
        numeric[at] = (ends[0] - ends[1]) / (2 * step)
    assert np.abs(numeric - dx).max() <= 1e-6 * np.abs(dx).max()


@pytest.mark.parametrize("p", [0, 0.5])
@pytest.mark.parametrize("delta", [0.1, 0.25, 0.6, 1])
def test_is_the_best_mask_for_a_linear_divergence(p, delta):
    """D = sum(J * mask): no mask at this distance gives more."""
    H, limit = 10, int(delta * 10)
    x, g = inputs((6, H))
    _, ctx = fd.adversarial_dropout(x, g, delta, p, rng=1)
    base = fd.keep_mask(x.shape, p, rng=1)
    for J, before, after in zip(g * x, base, ctx.mask(), strict=True):
        best = max(
            (J * (before ^ np.isin(np.arange(H), flips))).sum()
            for k in range(limit + 1)
            for flips in combinations(range(H), k)
        )
        assert (J * after).sum() == pytest.approx(best, abs=1e-12)


def test_hamming_distance():
    x, g = inputs((50, 4, 10), np.float32)
    for p, delta in product([0, 0.5], [0, 0.02, 0.05, 0.33, 1]):
        _, ctx = fd.adversarial_dropout(x, g, delta, p, rng=1)
        base = fd.keep_mask(x.shape, p, rng=1)
        np.testing.assert_array_equal(ctx.changed, (ctx.mask() != base).sum(axis=(1, 2)))
        assert (ctx.changed <= int(delta * 40)).all()
        if delta < 0.3:  # there are more candidates than that
            assert (ctx.changed == int(delta * 40)).all()


def test_direction():
    """Switched on is what raises D, switched off what lowers it; nothing else moves."""
    x, g = inputs((50, 40))
    _, ctx = fd.adversarial_dropout(x, g, 0.3, 0.5, rng=1)
    base, mask = fd.keep_mask(x.shape, 0.5, rng=1), ctx.mask()
    assert ((g * x)[mask & ~base] > 0).all()
    assert ((g * x)[~mask & base] < 0).all()
    assert (mask & ~base).any()
    assert (~mask & base).any()


def test_mean_of_the_mask_is_one(dtype):
    x, g = inputs((50, 40), dtype)
    for p in (0, 0.5, 0.9):
        y, _ = fd.adversarial_dropout(x, g, 0.1, p, rng=1)
        np.testing.assert_allclose((y / x).mean(axis=1), 1, rtol=1e-6)


def test_ties_flip_fewer():
    x = np.ones((2, 8))
    g = np.array([[-3, -2, -2, -1, 0, 1, 2, 3], [-1] * 8], float)
    _, ctx = fd.adversarial_dropout(x, g, 0.25, rng=1)
    np.testing.assert_array_equal(ctx.changed, [1, 0])
    _, ctx = fd.adversarial_dropout(x, g, 0.375, rng=1)
    np.testing.assert_array_equal(ctx.changed, [3, 0])
    _, ctx = fd.adversarial_dropout(x, g, 1, rng=1)
    np.testing.assert_array_equal(ctx.changed, [4, 8])
    for delta in (0.75, 1):  # zeros of either sign
        _, ctx = fd.adversarial_dropout(x, g * [[0], [0]], delta, rng=1)
        np.testing.assert_array_equal(ctx.changed, [0, 0])


def test_nothing_kept():
    """No division by the 0 elements that are kept."""
    x = np.ones((2, 8), np.float32)
    y, ctx = fd.adversarial_dropout(x, -x, 1, rng=1)
    np.testing.assert_array_equal(ctx.scales, [0, 0])
    assert_same_bits(y, np.zeros_like(x))
    assert_same_bits(ctx.backward(np.full_like(x, np.nan)), np.zeros_like(x))


def test_values_that_are_not_finite():
    x = np.array([[np.inf, -np.inf, np.nan, 1.0, 0.0, -0.0, 2.0, 3.0]])
    g = np.array([[-1.0, -1.0, -9.0, np.nan, np.inf, -np.inf, -1.0, -2.0]])
    y, ctx = fd.adversarial_dropout(x, g, 0.25, rng=1)
    dropped = [0, 7]  # J is -inf and -6 there
    assert_same_bits(y, np.where(np.isin(np.arange(8), dropped), 0.0, x * (8 / 6)))
    assert ctx.changed == 2
    large = np.full((1, 8), 6e4, np.float16)
    y, _ = fd.adversarial_dropout(large, np.arange(-8, 0, dtype=np.float16)[None], 0.5, rng=1)
    np.testing.assert_array_equal(y, [[0, 0, 0, 0, *[np.inf] * 4]])


def test_edges():
    x, g = inputs((6, 40), np.float32)
    rng = fd.Rng(1)
    y, ctx = fd.adversarial_dropout(x, g, 0.5, 0.5, rng=rng, training=False)
    assert_same_bits(y, x)
    assert not np.shares_memory(y, x)
    assert_same_bits(ctx.backward(g), g)
    assert (ctx.seed, ctx.call, ctx.p, ctx.changed.any()) == (None, None, 0.0, False)
    assert rng.call == 0
    y, ctx = fd.adversarial_dropout(x, g, 0, 0, rng=rng)
    assert_same_bits(y, x)
    assert_same_bits(ctx.backward(g), g)
    y, ctx = fd.adversarial_dropout(x, g, 0.5, 1, rng=rng)
    assert_same_bits(y, np.zeros_like(x))
    assert_same_bits(ctx.backward(g), np.zeros_like(x))
    assert rng.call == 2
    assert ctx.nbytes == 6 * 40 // 8 + 6 * 8


def test_layouts_and_empties():
    x, g = inputs((4, 6, 5))
    expected, ctx = fd.adversarial_dropout(x, g, 0.3, 0.5, rng=1)
    strided = np.empty((8, 6, 10))[::2, :, ::-2]
    strided[...] = g
    for x2, g2 in [(np.asfortranarray(x), g), (x, strided), (x.astype(">f8"), g.tolist())]:
        y, _ = fd.adversarial_dropout(x2, g2, 0.3, 0.5, rng=1)
        np.testing.assert_array_equal(y, expected)
    assert_same_bits(ctx.backward(strided), ctx.backward(g))
    out = np.empty_like(g)
    assert ctx.backward(g, out) is out
    assert_same_bits(out, ctx.backward(g))
    for shape in [(0, 3), (3, 0), (2, 0, 3)]:
        y, ctx = fd.adversarial_dropout(np.ones(shape), np.ones(shape), 0.5, 0.5, rng=1)
        assert y.shape == ctx.backward(y).shape == shape


@pytest.mark.parametrize("training", [True, False])
def test_pickle(training):
    x, g = inputs((5, 13))
    y, ctx = fd.adversarial_dropout(x, g, 0.3, 0.5, rng=1, training=training)
    copy = pickle.loads(pickle.dumps(ctx))
    assert_same_bits(copy.backward(x), y)
    for name in ("seed", "call", "p", "shape", "nbytes"):
        assert getattr(copy, name) == getattr(ctx, name)
    np.testing.assert_array_equal(copy.changed, ctx.changed)
    np.testing.assert_array_equal(copy.scales, ctx.scales)


def test_bad_input():
    x, g = inputs((4, 3))
    for error, words, arguments in [
        (ValueError, "delta must be in [0, 1], got -1.0", {"delta": -1}),
        (TypeError, "delta must be a real number in [0, 1], got None", {"delta": None}),
        (ValueError, "p must be in [0, 1], got nan", {"p": np.nan}),
        (ValueError, "x must have at least two axes", {"x": x[0], "gradient": g[0]}),
        (ValueError, "gradient must have shape (4, 3), got (3, 4)", {"gradient": g.T}),
        (TypeError, "gradient must have dtype float64", {"gradient": g.astype(np.float32)}),
        (TypeError, "x must be float16", {"x": x.astype(int)}),
    ]:
        rng = fd.Rng(1)
        with pytest.raises(error, match=re.escape(words)):
            fd.adversarial_dropout(**{"x": x, "gradient": g, "rng": rng} | arguments)
        assert rng.call == 0
    _, ctx = fd.adversarial_dropout(x, g, rng=1)
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        ctx.backward(g.T)


def targets(shape):
    rng = np.random.default_rng(8)
    return [rng.integers(0, shape[-1], shape[:-1]), 3 * rng.standard_normal(shape)]


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 7), (4,)], ids=str)
def test_divergence(divergence, shape):
    logits, _ = inputs(shape)
    definition = getattr(reference, divergence.__name__)
    for target in targets(shape):
        value, gradient = divergence(target, logits)
        assert value == pytest.approx(definition(target, logits), rel=1e-12)
        numeric, step = np.empty_like(logits), 1e-5
        for at in np.ndindex(shape):
            ends = []
            for sign in (1, -1):
                moved = logits.copy()
                moved[at] += sign * step
                ends.append(definition(target, moved))
            numeric[at] = (ends[0] - ends[1]) / (2 * step)
        assert np.abs(numeric - gradient).max() <= 1e-6 * np.abs(gradient).max()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_dtypes(divergence):
    for dtype, tolerance in [(np.float32, 1e-6), (np.float16, 1e-3), (ml_dtypes.bfloat16, 1e-2)]:
        logits = inputs((5, 4), dtype)[0]
        for target in targets((5, 4)):
            value, gradient = divergence(target, logits)
            wide_value, wide = divergence(target, logits.astype(np.float64))
            assert value == pytest.approx(wide_value, rel=1e-5)
            assert gradient.dtype == dtype
            np.testing.assert_allclose(gradient.astype(float), wide, rtol=0, atol=tolerance)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_divergence_edges(divergence):
    logits = np.array([[1e4, 0.0], [-1e4, 0.0]], np.float32)  # their exponentials are no floats
    value, gradient = divergence(logits, logits)
    assert value == 0.0
    assert not gradient.any()
    value, gradient = divergence(np.array([1, 0]), logits)
    assert value == {kl_divergence: 1e4, squared_divergence: 1.0}[divergence]
    assert np.isfinite(gradient).all()
    for target in (np.ones((0, 3)), np.ones(0, int)):
        value, gradient = divergence(target, np.ones((0, 3)))
        assert (value, gradient.shape) == (0.0, (0, 3))
    for error, words, target, given in [
        (ValueError, "target must have shape (2,) for labels, got (3,)", [0, 1, 0], logits),
        (ValueError, "target must have shape (2, 2) for logits, got (2,)", [0.0, 1.0], logits),
        (ValueError, "target must have labels in 0 ... 1, got -1", [0, -1], logits),
        (ValueError, "target must have labels in 0 ... 1, got 2", [2, 0], logits),
        (TypeError, "target must be float16", [[True, False]] * 2, logits),
        (TypeError, "logits must be float16", [0, 1], logits.astype(int)),
        (ValueError, "logits must have the shape (..., classes), got ()", 0, 1.0),
        (
            ValueError,
            "logits must have the shape (..., classes), got (2, 0)",
            [0, 1],
            logits[:, :0],
        ),
    ]:
        with pytest.raises(error, match=re.escape(words)):
            divergence(target, given)


def network(seed=0):
    """Inputs, labels, and the weights of two layers."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 32)
    centres = rng.standard_normal((5, 12))
    x = centres[labels] + 0.5 * rng.standard_normal((32, 12))
    return x, labels, rng.standard_normal((12, 40)) / 3, rng.standard_normal((40, 5)) / 6


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(("p", "supervised"), [(0.5, False), (0.5, True), (0.0, True)])
def test_adversarial_masks_disturb_more_than_random_ones(divergence, p, supervised):
    x, labels, W1, W2 = network()
    h = np.maximum(x @ W1, 0)
    target = labels if supervised else h @ W2
    layer = AdversarialDropout(0.1, p, rng=3)
    before, dlogits = divergence(target, layer(h) @ W2)
    base = layer.ctx.mask()
    after, _ = divergence(target, layer.search(dlogits @ W2.T) @ W2)
    rng = np.random.default_rng(4)
    for _ in range(100):
        order = rng.permuted(np.broadcast_to(np.arange(40), base.shape), axis=1)
        mask = base ^ (order < layer.ctx.changed[:, None])  # as many flips in each example
        y = h * mask * (40 / mask.sum(axis=1, keepdims=True))
        assert divergence(target, y @ W2)[0] < after
    assert layer.ctx.changed.max() == 4
    assert before < after


@pytest.mark.parametrize("p", [0.0, 0.4])
def test_a_shard_of_the_examples(any_dtype, p):
    x, g = inputs((9, 5, 8), any_dtype)
    for place in ({"region": ((4, 0, 0), (20, 5, 8))}, {"rows": [3, 0, 7, 3, 9, 1, 2, 50, 8]}):
        y, ctx = fd.adversarial_dropout(x, g, 0.3, p, rng=fd.Rng(3, 4), **place)
        expected, mask, scale = reference.adversarial_dropout(x, g, 0.3, p, 3, 4, **place)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)
        np.testing.assert_array_equal(ctx.scales, scale)
        loaded = pickle.loads(pickle.dumps(ctx))
        assert_same_bits(loaded.backward(g), ctx.backward(g))
    for region, axis in [(((0, 1, 0), (9, 6, 8)), 1), (((0, 0, 0), (9, 5, 9)), 2)]:
        for training in (True, False):
            words = f"region must hold all of axis {axis}, as the elements of an example"
            with pytest.raises(ValueError, match=words):
                fd.adversarial_dropout(x, g, 0.3, p, rng=1, region=region, training=training)
        layer = fd.layers.AdversarialDropout(p=0.5, rng=1)
        with pytest.raises(ValueError, match=words):
            layer(x, region=region)
        assert layer.rng.call == 0


def test_layer():
    x, g = inputs((6, 40), np.float32)
    layer = AdversarialDropout(0.1, 0.5, rng=7)
    with pytest.raises(RuntimeError, match="search needs a forward call"):
        layer.search(g)
    rng = fd.Rng(7)
    for call in range(3):
        base, ctx = fd.dropout(x, 0.5, rng=rng)
        assert_same_bits(layer(x), base)
        assert_same_bits(layer.backward(g), ctx.backward(g))
        again = fd.Rng(7, call)
        expected, ctx = fd.adversarial_dropout(x, g, 0.1, 0.5, rng=again)
        assert_same_bits(layer.search(g), expected)
        assert_same_bits(layer.backward(g), ctx.backward(g))
    assert (layer.rng.call, layer.step) == (3, 3)
    layer.eval()
    assert_same_bits(layer(x), x)
    assert_same_bits(layer.search(g), x)
    assert_same_bits(layer.backward(g), g)
    assert layer.rng.call == 3
    assert repr(layer) == "AdversarialDropout(delta=0.1, p=0.5)"
    with pytest.raises(ValueError, match="delta must be in"):
        AdversarialDropout(2)


def test_the_training_loop_in_the_docstring():
    x, labels, W1, W2 = network()
    names = {"fastdrop": fd, "np": np, "W1": W1, "W2": W2}
    names |= {"batches": [(x, labels)] * 100, "strength": 1.0, "rate": 0.5}
    before, _ = kl_divergence(labels, np.maximum(x @ W1, 0) @ W2)
    for example in doctest.DocTestParser().get_examples(AdversarialDropout.__doc__):
        exec(example.source, names)
    after, _ = kl_divergence(labels, np.maximum(x @ W1, 0) @ W2)
    assert after < 0.1 * before


def test_classes_of_probability_0():
    """Logits of -inf, as masked classes have."""
    logits = np.array([[1.0, -np.inf, 0.5]])
    for target in (np.array([0]), np.array([[0.2, -np.inf, 0.1]])):
        value, gradient = kl_divergence(target, logits)
        assert np.isfinite(value)
        assert gradient[0, 1] == 0
        assert np.isfinite(gradient).all()
