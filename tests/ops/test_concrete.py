"""Concrete dropout."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient
from scipy import special

import fastdrop as fd
from fastdrop import _core, reference


def array(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize(("logit", "temperature"), [(-2.0, 0.1), (0.0, 1.0), (3.0, 0.01)])
def test_against_the_reference(isa, any_dtype, logit, temperature):
    for shape in ((), (1,), (3, 5), (7, 64), (40, 513), (0, 4)):
        x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
        y, ctx = fd.concrete_dropout(x, logit, temperature, rng=fd.Rng(5, 3))
        noise = reference.logistics(reference.element_index(shape), 5, 3)
        assert_same_bits(y, reference.concrete(x, logit, temperature, noise))
        dx, dlogit = pickle.loads(pickle.dumps(ctx)).backward(dy)
        assert_same_bits(dx, reference.concrete(dy, logit, temperature, noise))
        terms = reference.concrete_gradient(x, dy, logit, temperature, noise).astype(np.float64)
        assert dlogit.shape == ()
        np.testing.assert_allclose(
            dlogit, terms.sum(), rtol=1e-12, atol=1e-12 * np.abs(terms).sum()
        )
        assert (ctx.seed, ctx.call, ctx.shape, ctx.nbytes) == (5, 3, shape, x.nbytes)


def test_gradient_is_the_same_for_any_threads_and_isa():
    x, dy = array((300, 1000), np.float32), array((300, 1000), np.float32, 1)
    _, ctx = fd.concrete_dropout(x, 0.3, rng=1)
    before, isa = fd.get_num_threads(), _core.get_isa()
    found = set()
    for name in _core.available_isas():
        for n in (1, 2, 5):
            _core.set_isa(name)
            fd.set_num_threads(n)
            found.add(float(ctx.backward(dy)[1]))
    fd.set_num_threads(before)
    _core.set_isa(isa)
    assert len(found) == 1


@pytest.mark.parametrize(
    ("shared_axes", "region"), [((2, 3), None), ((), ((1, 2, 3, 4), (9, 9, 9, 9)))]
)
def test_shared_axes_and_region(dtype, shared_axes, region):
    x, dy = array((3, 4, 5, 5), dtype), array((3, 4, 5, 5), dtype, 1)
    y, ctx = fd.concrete_dropout(x, 0.5, rng=5, shared_axes=shared_axes, region=region)
    index = reference.element_index(x.shape, shared_axes, region)
    noise = reference.logistics(index, 5, 0)
    assert_same_bits(y, reference.concrete(x, 0.5, 0.1, noise))
    dx, dlogit = ctx.backward(dy)
    assert_same_bits(dx, reference.concrete(dy, 0.5, 0.1, noise))
    terms = reference.concrete_gradient(x, dy, 0.5, 0.1, noise)
    np.testing.assert_allclose(dlogit, terms.sum(dtype=np.float64), rtol=1e-10)


@pytest.mark.parametrize(("p", "mean"), [(0.1, 0.99869), (0.5, 1.0), (0.9, 1.01183)])
def test_mean(p, mean):
    """P(z > 1/2) = p exactly; E[(1 - z) / (1 - p)] is not 1. Four standard errors."""
    n = 10**6
    y, _ = fd.concrete_dropout(np.ones(n), special.logit(p), rng=3)
    assert abs(y.mean() - mean) < 4 * y.std() / np.sqrt(n) + 1e-5
    dropped = np.mean(y * (1 - p) < 0.5)
    assert abs(dropped - p) < 4 * np.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_gradients(temperature):
    x, weights = array((3, 4), np.float64), array((3, 4), np.float64, 1)
    logit = np.array(-0.7)

    def loss():
        return (fd.concrete_dropout(x, logit, temperature, rng=2)[0] * weights).sum()

    _, ctx = fd.concrete_dropout(x, logit, temperature, rng=2)
    dx, dlogit = ctx.backward(weights)
    assert_gradient(loss, x, dx)
    assert_gradient(loss, logit, dlogit, step=3e-6 if temperature < 0.5 else 1e-5)


def test_regularizer():
    weight, logit = array((3, 4), np.float64), np.array(0.8)

    def loss():
        return fd.concrete_regularizer(
            logit, weight, 7, weight_regularizer=0.3, dropout_regularizer=0.2
        )[0]

    value, dlogit, dweight = fd.concrete_regularizer(
        logit, weight, 7, weight_regularizer=0.3, dropout_regularizer=0.2
    )
    p = special.expit(0.8)
    entropy = p * np.log(p) + (1 - p) * np.log(1 - p)
    np.testing.assert_allclose(value, 0.3 * (weight**2).sum() / (1 - p) + 0.2 * 7 * entropy)
    assert_gradient(loss, logit, np.asarray(dlogit))
    assert_gradient(loss, weight, dweight)
    for extreme in (-40.0, 40.0):
        assert np.isfinite(fd.concrete_regularizer(extreme, weight, 7)[:2]).all()


def test_edges():
    x = np.array([1.0, -0.0, np.inf, np.nan], np.float32)
    rng = fd.Rng(1)
    y, ctx = fd.concrete_dropout(x, 0.0, rng=rng, training=False)
    assert_same_bits(y, x)
    dx, dlogit = ctx.backward(x)
    assert_same_bits(dx, x)
    assert dlogit == 0
    assert (rng.call, ctx.seed, ctx.p, ctx.nbytes) == (0, None, 0.0, 0)
    for logit in (-40.0, 40.0):
        for temperature in (1e-3, 0.1, 1e30):
            y, ctx = fd.concrete_dropout(np.ones(1000, np.float32), logit, temperature, rng=1)
            assert np.isfinite(y).all()
            assert np.isfinite(ctx.backward(y * np.float32(1e-32))[1])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fd.concrete_dropout(x, 41.0), ValueError, r"logit must be in \[-40, 40\]"),
        (lambda x: fd.concrete_dropout(x, np.nan), ValueError, "logit must be in"),
        (lambda x: fd.concrete_dropout(x, "a"), TypeError, "logit must be a real number"),
        (lambda x: fd.concrete_dropout(x, 0.0, 0.0), ValueError, "temperature must be positive"),
        (lambda x: fd.concrete_dropout(x, 0.0, -1.0), ValueError, "temperature must be positive"),
        (lambda x: fd.concrete_dropout(x.astype(int), 0.0), TypeError, "x must be float16"),
        (
            lambda x: fd.concrete_dropout(x, 0.0)[1].backward(x[1:]),
            ValueError,
            "dy must have shape",
        ),
        (lambda x: fd.layers.ConcreteDropout(0.0), ValueError, "p must be strictly between"),
        (
            lambda x: fd.concrete_regularizer(0.0, x, 3, weight_regularizer=-1.0),
            ValueError,
            "weight_regularizer must be",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((3, 4)))


def test_layer_learns_its_rate():
    """Two features are worth nothing, so that without dropping them the entropy decides."""
    layer = fd.layers.ConcreteDropout(0.1, rng=3, dropout_regularizer=1.0)
    x = np.ones((50, 4))
    y, ctx = fd.concrete_dropout(x, layer.logit, rng=3)
    assert_same_bits(layer(x), y)
    dx, dlogit = ctx.backward(x)
    assert_same_bits(layer.backward(x), dx)
    assert layer.gradients["logit"] == dlogit
    assert layer.parameters["logit"] is layer.logit
    weight = np.zeros((4, 2))
    for _ in range(200):
        layer(x)
        layer.backward(np.zeros_like(x))
        layer.regularize(weight, features=1)
        layer.logit -= layer.gradients["logit"]
    assert abs(layer.p - 0.5) < 0.01  # where the entropy is largest
    assert repr(layer).startswith("ConcreteDropout(p=0.")
    assert_same_bits(layer.eval()(x), x)


def test_a_layer_that_has_diverged_can_be_printed():
    layer = fd.layers.ConcreteDropout(0.3, rng=1)
    layer.logit = np.asarray(-800.0)
    assert repr(layer).startswith("ConcreteDropout(p=4.2")
    layer.logit = np.asarray(np.nan)
    with pytest.raises(ValueError, match=r"logit must be in \[-40, 40\], got nan"):
        layer(np.ones(3))


@pytest.mark.parametrize("p", [5e-324, 1e-310, 4e-18])
def test_a_rate_that_cannot_be_learned(p):
    with pytest.raises(ValueError, match=f"p must be at least 4.25e-18, got {p}"):
        fd.layers.ConcreteDropout(p)
    fd.layers.ConcreteDropout(4.3e-18, rng=1)(np.ones(3))


@pytest.mark.parametrize("temperature", [1e-310, 1e-31])
def test_a_temperature_without_a_reciprocal(temperature):
    """1 / temperature is what kernels take and what a pickle of the context holds."""
    words = f"temperature must be at least 1e-30, got {temperature}"
    with pytest.raises(ValueError, match=words):
        fd.concrete_dropout(np.ones(3), 0.0, temperature)
    with pytest.raises(ValueError, match=words):
        fd.layers.ConcreteDropout(0.1, temperature)
    x = np.linspace(-2, 2, 999, dtype=np.float32)
    y, ctx = fd.concrete_dropout(x, 0.3, 1e-30, rng=1)
    dx, dlogit = pickle.loads(pickle.dumps(ctx)).backward(x)
    assert np.isfinite([*y, *dx, dlogit]).all()
