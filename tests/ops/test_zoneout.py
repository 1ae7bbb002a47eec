"""Zoneout against the reference, bit for bit, and through time."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop import reference

SHAPES = [(), (1,), (3, 5), (7, 64), (1, 4500), (0, 4)]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 6e-8, 1.0, -1.5, 6e4]


def states(shape, dtype):
    """previous, new and dy."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(dtype) for _ in range(3)]


def check(previous, new, dy, p, region=None):
    expected, mask = reference.zoneout(previous, new, p, 5, 3, region)
    expected_grads = reference.zoneout_gradient(dy, mask)
    for save in ("bits", "seed"):
        y, ctx = fd.zoneout(previous, new, p, rng=fd.Rng(5, 3), region=region, save=save)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)
        copy = pickle.loads(pickle.dumps(ctx))
        for grads in (ctx.backward(dy), copy.backward(dy)):
            assert len(grads) == 2
            for grad, wanted in zip(grads, expected_grads, strict=True):
                assert_same_bits(grad, wanted)
        assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (5, 3, p, new.shape)
        assert ctx.nbytes == (-(-new.size // 8) if save == "bits" else 0)


def test_against_the_reference(isa, any_dtype, p):
    for shape in SHAPES:
        check(*states(shape, any_dtype), p)


@pytest.mark.parametrize("p", [0, 0.1, 0.5, 1])
def test_special_values(isa, any_dtype, p):
    """Every pair of values: what is not taken leaves no trace, what is taken keeps its sign."""
    values = np.array(SPECIAL, any_dtype)
    previous, new = (np.tile(v.reshape(-1), 5) for v in np.meshgrid(values, values))
    check(previous, new, new[::-1].copy(), p)


@pytest.mark.parametrize("region", [((2, 5, 7), (20, 90, 50)), ((2, 0, 0), (9, 80, 40))])
def test_region(dtype, threads, region):
    check(*states((6, 80, 40), dtype), 0.3, region)


def test_layouts():
    previous, new, dy = states((60, 70), np.float32)
    expected, mask = reference.zoneout(previous.T, new[:, ::-1].T, 0.3, 1, 0)
    for kind in ("=f4", ">f4"):
        y, ctx = fd.zoneout(previous.astype(kind).T, new.astype(kind)[:, ::-1].T, 0.3, rng=1)
        assert_same_bits(y, expected)
        for grad, wanted in zip(
            ctx.backward(dy.astype(kind).T), reference.zoneout_gradient(dy.T, mask), strict=True
        ):
            assert_same_bits(grad.copy(), wanted.copy())
    y, _ = fd.zoneout([0.0, 0.0], [1.0, 1.0], 0.5, rng=1)
    assert y.dtype == np.float64


def test_takes_the_mask_of_dropout():
    previous, new, _ = states((4, 300), np.float64)
    y, ctx = fd.zoneout(previous, new, 0.3, rng=fd.Rng(8, 9))
    mask = fd.keep_mask((4, 300), 0.3, rng=fd.Rng(8, 9))
    np.testing.assert_array_equal(ctx.mask(), mask)
    np.testing.assert_array_equal(y, np.where(mask, new, previous))


def test_rate():
    n = 10**6
    y, _ = fd.zoneout(np.ones(n), np.zeros(n), 0.15, rng=3)
    assert abs(y.mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / n)


@pytest.mark.parametrize("p", [0, 0.1, 1 / 3, 1])
def test_without_training_is_the_expectation(any_dtype, p):
    rng = fd.Rng(1)
    for shape in SHAPES:
        previous, new, dy = states(shape, any_dtype)
        y, ctx = fd.zoneout(previous, new, p, rng=rng, training=False)
        assert isinstance(y, np.ndarray)
        assert_same_bits(y, reference.zoneout_mean(previous, new, p))
        assert not np.shares_memory(y, new)
        assert not np.shares_memory(y, previous)
        zero = np.zeros_like(dy)
        for saved in (ctx, pickle.loads(pickle.dumps(ctx))):
            dprevious, dnew = saved.backward(dy)
            np.testing.assert_array_equal(dprevious, reference.zoneout_mean(dy, zero, p))
            np.testing.assert_array_equal(dnew, reference.zoneout_mean(zero, dy, p))
            assert dnew.dtype == dprevious.dtype == dy.dtype
            assert (saved.seed, saved.call, saved.p, saved.nbytes) == (None, None, p, 0)
            assert saved.shape == shape
    assert rng.call == 0


def test_expectation_is_the_mean_over_draws():
    previous, new, _ = states((50,), np.float64)
    rng, draws = fd.Rng(2), 4000
    mean = sum(fd.zoneout(previous, new, 0.3, rng=rng)[0] for _ in range(draws)) / draws
    y, _ = fd.zoneout(previous, new, 0.3, training=False)
    error = np.abs(previous - new) * np.sqrt(0.3 * 0.7 / draws)
    assert (np.abs(mean - y) < 4 * error).all()


def test_without_expectation_the_new_value_is_taken():
    previous, new = np.full(9, np.nan), np.array([*SPECIAL[:-1]])
    y, ctx = fd.zoneout(previous, new, 0.3, training=False, expectation=False)
    assert_same_bits(y, new)
    dprevious, dnew = ctx.backward(new)
    assert_same_bits(dprevious, np.zeros(9))
    assert_same_bits(dnew, new)
    assert ctx.p == 0.0


@pytest.mark.parametrize("training", [True, False])
def test_gradients(training):
    previous, new, weights = states((3, 4), np.float64)

    def loss():
        return (fd.zoneout(previous, new, 0.4, rng=2, training=training)[0] * weights).sum()

    _, ctx = fd.zoneout(previous, new, 0.4, rng=2, training=training)
    dprevious, dnew = ctx.backward(weights)
    assert_gradient(loss, previous, dprevious)
    assert_gradient(loss, new, dnew)
    assert not training or 0 < (dnew == 0).sum() < 12


X = np.ones((3, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((X, X[1:]), ValueError, r"new must have shape \(3, 4\), got \(2, 4\)"),
        ((X, X[0]), ValueError, r"new must have shape \(3, 4\), got \(4,\)"),
        ((X, 1.0), ValueError, r"new must have shape \(3, 4\), got \(\)"),
        ((X, X.astype(float)), TypeError, "new must have dtype float32 as previous has, got float"),
        ((X.astype(int), X), TypeError, "previous must be float16, bfloat16, float32 or float64"),
        ((X, X.astype(bool)), TypeError, "new must be float16, .*, got bool"),
        ((X, X, -0.1), ValueError, r"p must be in \[0, 1\], got -0.1"),
        ((X, X, np.nan), ValueError, r"p must be in \[0, 1\], got nan"),
        ((X, X, True), TypeError, "p must be a real number"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_errors(arguments, error, message, training):
    rng = fd.Rng(1)
    with pytest.raises(error, match=message):
        fd.zoneout(*arguments, rng=rng, training=training)
    assert rng.call == 0


def test_errors_of_options_and_backward():
    rng = fd.Rng(1)
    with pytest.raises(ValueError, match="save must be one of 'bits', 'seed', got 'x'"):
        fd.zoneout(X, X, rng=rng, save="x")
    with pytest.raises(ValueError, match="region must contain a part"):
        fd.zoneout(X, X, rng=rng, region=((0, 0), (2, 4)))
    assert rng.call == 0
    for training in (True, False):
        _, ctx = fd.zoneout(X, X, rng=1, training=training)
        with pytest.raises(ValueError, match=r"dy must have shape \(3, 4\), got \(2, 4\)"):
            ctx.backward(X[1:])
        with pytest.raises(TypeError, match="dy must be float16"):
            ctx.backward(X.astype(int))


def test_layer():
    previous, new, dy = states((4, 300), np.float32)
    rng = fd.Rng(7)
    layer = fd.layers.Zoneout(0.2, rng=7, save="seed")
    for _ in range(2):
        y, ctx = fd.zoneout(previous, new, 0.2, rng=rng)
        assert_same_bits(layer(previous, new), y)
        for grad, wanted in zip(layer.backward(dy), ctx.backward(dy), strict=True):
            assert_same_bits(grad, wanted)
        assert layer.ctx.nbytes == 0
    y, _ = fd.zoneout(previous, new, 0.2, training=False)
    assert_same_bits(layer.eval()(previous, new), y)
    assert rng.call == layer.rng.call == 2
    assert repr(layer) == "Zoneout(p=0.2, expectation=True, save='seed')"
    layer = fd.layers.Zoneout(0.2, expectation=False).eval()
    assert_same_bits(layer(previous, new), new)
    with pytest.raises(ValueError, match="save must be one of"):
        fd.layers.Zoneout(save="x")
    with pytest.raises(RuntimeError, match="forward"):
        fd.layers.Zoneout().backward(dy)
