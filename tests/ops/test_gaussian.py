"""Gaussian dropout and Gaussian noise."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop import reference

OPS = {
    "gaussian_dropout": (0.3, np.sqrt(0.3 / 0.7), reference.noise_scale),
    "gaussian_noise": (0.7, 0.7, reference.noise_add),
}


def array(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("op", OPS)
def test_against_the_reference(isa, any_dtype, op):
    value, sigma, model = OPS[op]
    for shape in ((), (1,), (3, 5), (7, 64), (40, 513), (1, 9001), (0, 4)):
        x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
        y, ctx = getattr(fd, op)(x, value, rng=fd.Rng(5, 3))
        noise = reference.normals(reference.element_index(shape), 5, 3)
        assert_same_bits(y, model(x, sigma, noise))
        expected = model(dy, sigma, noise) if op == "gaussian_dropout" else dy
        assert_same_bits(ctx.backward(dy), expected)
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).backward(dy), expected)
        assert (ctx.seed, ctx.call, ctx.shape, ctx.nbytes) == (5, 3, shape, 0)


@pytest.mark.parametrize("other", [np.float16, np.float32, np.float64])
def test_dy_of_another_dtype(dtype, other):
    """Noise and sigma are those of x, whatever dy's dtype is."""
    x, dy = array((40, 50), dtype), array((40, 50), other, 1)
    _, ctx = fd.gaussian_dropout(x, 0.3, rng=5)
    noise = reference.normals(reference.element_index(x.shape), 5, 0)
    sigma = np.sqrt(0.3 / 0.7).astype(dtype)
    dx = ctx.backward(dy)
    assert dx.dtype == other
    assert_same_bits(dx, reference.noise_scale(dy, sigma, noise))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("shared_axes", "region"),
    [((1,), None), ((0, 2), None), ((), ((2, 5, 7), (20, 90, 50))), (2, ((2, 0, 7), (9, 90, 50)))],
)
def test_shared_axes_and_region(dtype, threads, op, shared_axes, region):
    value, sigma, model = OPS[op]
    x = array((6, 80, 40), dtype)
    y, ctx = getattr(fd, op)(x, value, rng=5, shared_axes=shared_axes, region=region)
    axes = (shared_axes,) if isinstance(shared_axes, int) else shared_axes
    noise = reference.normals(reference.element_index(x.shape, axes, region), 5, 0)
    assert_same_bits(y, model(x, sigma, noise))
    if op == "gaussian_dropout":
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).backward(x), y)


@pytest.mark.parametrize("op", OPS)
def test_layouts_and_out(op):
    value = OPS[op][0]
    wide = array((60, 70), np.float32)
    expected, _ = getattr(fd, op)(wide[::2, ::-1].copy(), value, rng=1)
    assert_same_bits(getattr(fd, op)(wide[::2, ::-1], value, rng=1)[0], expected)
    for out in (np.empty((30, 70), np.float32), np.empty((70, 30), np.float32).T):
        assert getattr(fd, op)(wide[::2, ::-1], value, rng=1, out=out)[0] is out
        assert_same_bits(out.copy(), expected)
    part = wide[:30]
    shifted = getattr(fd, op)(part.copy(), value, rng=1)[0]
    getattr(fd, op)(part, value, rng=1, out=wide[1:31])
    assert_same_bits(wide[1:31].copy(), shifted)
    x = expected.copy()
    y, ctx = getattr(fd, op)(x, value, rng=1, out=x)
    assert y is x
    assert ctx.backward(y, out=y) is y


def test_mean_and_variance():
    """Mean 1, variance p / (1 - p): 4 standard errors at 10^6 draws."""
    n = 10**6
    for p in (0.1, 0.5, 0.8):
        y, _ = fd.gaussian_dropout(np.ones(n), p, rng=11)
        variance = p / (1 - p)
        assert abs(y.mean() - 1) < 4 * np.sqrt(variance / n)
        assert abs(y.var() / variance - 1) < 4 * np.sqrt(2 / n)


def test_gradient():
    x, weights = array((3, 4), np.float64), array((3, 4), np.float64, 1)
    for op, (value, _, _) in OPS.items():
        _, ctx = getattr(fd, op)(x, value, rng=2)
        assert_gradient(
            lambda op=op, value=value: (getattr(fd, op)(x, value, rng=2)[0] * weights).sum(),
            x,
            ctx.backward(weights),
        )


def test_edges():
    x = np.array([1.0, -0.0, np.inf, -np.inf, np.nan], np.float32)
    rng = fd.Rng(1)
    y, ctx = fd.gaussian_dropout(x, 0.0, rng=rng)
    assert_same_bits(y, x)
    assert rng.call == 1
    assert_same_bits(ctx.backward(x), x)
    for op, (value, _, _) in OPS.items():
        y, ctx = getattr(fd, op)(x, value, rng=rng, training=False)
        assert y is not x
        assert_same_bits(y, x)
        assert_same_bits(ctx.backward(x), x)
        assert (ctx.seed, ctx.call, ctx.p) == (None, None, 0.0)
    assert rng.call == 1
    y, _ = fd.gaussian_dropout(x, 1.0, training=False)
    assert_same_bits(y, x)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: fd.gaussian_dropout(x, 1.0), ValueError, "p must be below 1, got 1.0"),
        (lambda x: fd.gaussian_dropout(x, 1.5), ValueError, r"p must be in \[0, 1\], got 1.5"),
        (lambda x: fd.gaussian_dropout(x, True), TypeError, "p must be a real number"),
        (lambda x: fd.gaussian_noise(x, -1.0), ValueError, r"std must be in \[0, inf\), got -1.0"),
        (lambda x: fd.gaussian_noise(x, np.nan), ValueError, "std must be in"),
        (lambda x: fd.gaussian_noise(x, np.inf), ValueError, "std must be in"),
        (lambda x: fd.gaussian_noise(x.astype(int), 1.0), TypeError, "x must be float16"),
        (lambda x: fd.gaussian_noise(x, 1.0, shared_axes=2), np.exceptions.AxisError, "axis 2"),
        (lambda x: fd.gaussian_noise(x, 1.0, out=x[1:]), ValueError, "out must have shape"),
        (lambda x: fd.gaussian_noise(x, 1.0)[1].backward(x[1:]), ValueError, "dy must have shape"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(np.ones((3, 4)))


def test_layers():
    x = np.ones((4, 300), np.float32)
    rng = fd.Rng(7)
    layer = fd.layers.GaussianDropout(0.4, rng=7, shared_axes=(0,))
    for _ in range(2):
        y, ctx = fd.gaussian_dropout(x, 0.4, rng=rng, shared_axes=(0,))
        assert_same_bits(layer(x), y)
        assert_same_bits(layer.backward(x), ctx.backward(x))
    assert_same_bits(layer.eval()(x), x)
    assert repr(layer) == "GaussianDropout(p=0.4, shared_axes=(0,))"
    layer = fd.layers.GaussianNoise(0.4, rng=7)
    assert_same_bits(layer(x), fd.gaussian_noise(x, 0.4, rng=7)[0])
    assert repr(layer) == "GaussianNoise(std=0.4, shared_axes=())"
    with pytest.raises(ValueError, match="std must be"):
        fd.layers.GaussianNoise(-1.0)


def test_deviations_that_a_dtype_cannot_hold(any_dtype):
    """float16 and bfloat16 compute in float32."""
    x, rng = np.ones(9, any_dtype), fd.Rng(1)
    if any_dtype == np.float64:
        assert np.isfinite(fd.gaussian_noise(x, 1e300, rng=rng)[0]).all()
        return
    with pytest.raises(ValueError, match=r"std must be finite in float32, got 1e\+300"):
        fd.gaussian_noise(x, 1e300, rng=rng)
    assert rng.call == 0
