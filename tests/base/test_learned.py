"""Learned parameters that have a range: a step too far is undone, and no step makes a call fail."""

import numpy as np
import pytest

import fastdrop as fd

X = np.random.default_rng(0).standard_normal((64, 6))


def concrete():
    return fd.layers.ConcreteDropout(0.1, rng=1), "logit", -40.0, 40.0


def variational(shape=()):
    return fd.layers.VariationalDropout(shape, 0.5, rng=1), "log_alpha", -np.inf, 0.0


def each_neuron():
    return variational((6,))


def sparse():
    layer = fd.layers.SparseVariationalLinear(6, 3, rng=1, dtype=np.float64)
    middle = np.log(layer.weight**2 + 1e-8)
    return layer, "log_variance", middle - 8, middle + 8


MAKE = [concrete, variational, each_neuron, sparse]


@pytest.mark.parametrize("make", MAKE)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("far", [1e-3, 60.0, 1e6, np.inf])
def test_no_step_makes_a_call_fail(make, sign, far):
    """Whatever an optimiser does to the array itself, the layer brings back in place."""
    layer, name, low, high = make()
    parameter = getattr(layer, name)
    parameter[...] = (low if sign < 0 and np.all(np.isfinite(low)) else high) + sign * far
    y = layer(X)
    assert getattr(layer, name) is parameter
    assert ((parameter >= low) & (parameter <= high)).all()
    assert np.isfinite(layer.backward(np.ones_like(y))).all()
    assert np.isfinite(layer.gradients[name]).all()
    layer.eval()(X)


def kl(layer, name):
    """The divergence's value and gradient."""
    if name == "logit":
        layer.backward(layer(X) * 0)
        value, _ = layer.regularize(np.ones((6, 2)), 6)
        return value, layer.gradients["logit"]
    value, *gradients = layer.kl()
    return value, gradients[-1]


@pytest.mark.parametrize("make", MAKE)
def test_a_step_too_far_is_undone(make):
    """The loss wants the parameter within its range, the step before has led out of it."""
    layer, name, low, high = make()
    parameter = getattr(layer, name)
    if name == "logit":  # the weights' prior wants the rate back down, as 1 / (1 - p) grows
        parameter[...] = 50.0
        rate, wanted = 1e-14, lambda: parameter < 39.9
    elif name == "log_alpha":
        parameter[...] = 5.0
        rate, wanted = 1e-3, lambda: parameter < -0.1
    else:  # the divergence wants more noise
        parameter[...] = low - 30.0
        rate, wanted = 0.1, lambda: parameter > low + 1.0
    start = None
    for _ in range(500):
        if name == "log_alpha":  # noise is all that the loss has
            y = layer(X)
            layer.backward(2 * (y - X))
            gradient = layer.gradients[name]
        else:
            _, gradient = kl(layer, name)
        start = parameter.copy() if start is None else start
        assert ((start >= low) & (start <= high)).all()
        parameter -= rate * gradient
    assert np.all(wanted()), parameter


@pytest.mark.parametrize("make", MAKE)
def test_a_gradient_at_the_bound(make):
    """That of the inner side: what it is a little inside."""
    for side in (2, 3):
        layer, name, *bounds = make()
        bound = bounds[side - 2]
        if not np.all(np.isfinite(bound)):
            continue
        parameter, inner = getattr(layer, name), 1e-7 if side == 2 else -1e-7
        parameter[...] = bound
        at = kl(layer, name)[1]
        if name == "log_variance":
            assert (at != 0).all()
            inner *= 2e4  # behind the room that rounding is given
        parameter[...] = bound + inner
        np.testing.assert_allclose(at, kl(layer, name)[1], rtol=1e-2)
