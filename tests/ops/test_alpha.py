"""Alpha dropout: the kernel against the reference, bit for bit, and its two moments."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient
from scipy import special

import fastdrop as fd
from fastdrop import _core, reference
from fastdrop.ops.alpha import SATURATION, affine

SHAPES = [(), (1,), (3, 5), (7, 64), (1, 4500), (0, 4)]
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, -6e-8, 1.0, -1.5, 6e4, -6e4]


def array(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


DRAW = {"shared_axes": (), "region": None}


def check(x, dy, p, **arguments):
    where = [arguments.get(name, default) for name, default in DRAW.items()]
    expected, mask = reference.alpha_dropout(x, p, 5, 3, *where)
    dx = reference.alpha_gradient(dy, mask, p)
    for save in ("bits", "seed"):
        y, ctx = fd.alpha_dropout(x, p, rng=fd.Rng(5, 3), save=save, **arguments)
        assert_same_bits(y, expected)
        np.testing.assert_array_equal(ctx.mask(), mask)
        assert_same_bits(ctx.backward(dy), dx)
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).backward(dy), dx)
        assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (5, 3, p, x.shape)


def test_against_the_reference(isa, any_dtype, p):
    for shape in SHAPES:
        check(array(shape, any_dtype), array(shape, any_dtype, 1), p)


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 1])
def test_special_values(isa, any_dtype, p):
    """Kept, a NaN or an infinity stays one; dropped, nothing of it is left."""
    x = np.resize(np.array(SPECIAL, any_dtype), 700)
    check(x, x[::-1].copy(), p)
    y, ctx = fd.alpha_dropout(x, p, rng=1)
    dropped = y[~ctx.mask()]
    assert np.isfinite(dropped).all()
    assert (dropped == dropped[:1]).all()


@pytest.mark.parametrize(
    "where",
    [
        {"shared_axes": (1,)},
        {"shared_axes": (0, 2)},
        {"region": ((2, 5, 7), (20, 90, 50))},
        {"shared_axes": (2,), "region": ((2, 0, 7), (9, 90, 50))},
    ],
    ids=str,
)
def test_shared_axes_and_region(dtype, threads, where):
    check(array((6, 80, 40), dtype), array((6, 80, 40), dtype, 1), 0.3, **where)


def test_layouts_and_out():
    wide = array((60, 70), np.float32)
    expected, _ = reference.alpha_dropout(wide[::2, ::-1].copy(), 0.3, 1, 0)
    before = _core.set_piece(1 << 8)
    try:
        for save in ("bits", "seed"):
            y, _ = fd.alpha_dropout(wide[::2, ::-1], 0.3, rng=1, save=save)
            assert_same_bits(y.copy(), expected)
    finally:
        _core.set_piece(before)
    for out in (np.empty((30, 70), np.float32), np.empty((70, 30), np.float32).T):
        assert fd.alpha_dropout(wide[::2, ::-1], 0.3, rng=1, out=out)[0] is out
        assert_same_bits(out.copy(), expected)
    x = wide[::2, ::-1].copy()
    assert fd.alpha_dropout(x, 0.3, rng=1, out=x)[0] is x
    assert_same_bits(x, expected)


@pytest.mark.parametrize(
    ("p", "a", "b"),
    [(0.1, 0.9212845161497115, 0.1619709700575702), (0.5, 0.886404894665932, 0.7791939305180317)],
)
def test_known_constants(p, a, b):
    assert affine(p)[:2] == pytest.approx((a, b), rel=1e-15)
    y, ctx = fd.alpha_dropout(np.array([0.0, 1.0]).repeat(50), p, rng=1)
    assert ctx.scale == pytest.approx(a, rel=1e-15)
    kept = ctx.mask()
    np.testing.assert_allclose(y[:50][kept[:50]], b, rtol=1e-15)
    np.testing.assert_allclose(y[50:][kept[50:]], a + b, rtol=1e-15)
    np.testing.assert_allclose(y[~kept], b - a * 1.7580993408473766, rtol=1e-14)


def test_saturation_is_that_of_selu():
    scale, alpha = 1.0507009873554805, 1.6732632423543772
    assert pytest.approx(-scale * alpha, rel=1e-15) == SATURATION == -1.7580993408473766
    # SELU has the fixed point (0, 1): lambda and alpha solve the two equations of the paper.
    z, weights = np.polynomial.hermite_e.hermegauss(200)
    selu = scale * np.where(z > 0, z, alpha * special.expm1(np.minimum(z, 0)))
    weights = weights / weights.sum()
    assert abs(weights @ selu) < 1e-3
    assert abs(weights @ selu**2 - 1) < 1e-3


@pytest.mark.parametrize("p", [1e-9, 0.05, 0.1, 0.5, 0.9, 1 - 1e-9])
def test_moments_are_preserved_analytically(p):
    """Of x * m + s * (1 - m), where x has mean 0 and variance 1 and m is 1 with chance 1 - p."""
    a, b, dropped = affine(p)
    assert dropped == pytest.approx(a * SATURATION + b)
    mean = (1 - p) * b + p * dropped
    second = (1 - p) * (a**2 + b**2) + p * dropped**2
    assert mean == pytest.approx(0, abs=1e-7 * (a + b))
    assert second == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_moments_are_preserved_in_a_sample(p):
    """Four standard errors at 10^6 draws; that of the variance from the fourth moment."""
    n = 10**6
    y, _ = fd.alpha_dropout(array(n, np.float64), p, rng=3)
    assert abs(y.mean()) < 4 / np.sqrt(n)
    assert abs(y.var() - 1) < 4 * np.sqrt((np.mean(y**4) - 1) / n)


def test_gradient():
    x, weights = array((3, 4), np.float64), array((3, 4), np.float64, 1)
    for op in (fd.alpha_dropout, lambda x, **k: fd.feature_alpha_dropout(x[None], **k)):
        y, ctx = op(x, p=0.4, rng=2)
        assert 0 < ctx.mask().sum() < x.size
        dx = ctx.backward(weights.reshape(y.shape)).reshape(x.shape)
        assert_gradient(
            lambda op=op: (op(x, p=0.4, rng=2)[0].reshape(x.shape) * weights).sum(), x, dx
        )


def test_edges(any_dtype):
    x = np.array(SPECIAL, any_dtype)
    rng = fd.Rng(1)
    for arguments, call in [({"p": 0}, 0), ({"p": 0.7, "training": False}, None)]:
        y, ctx = fd.alpha_dropout(x, rng=rng, **arguments)
        assert_same_bits(y, x)
        assert not np.shares_memory(y, x)
        assert_same_bits(ctx.backward(x), x)
        assert (ctx.call, ctx.p, ctx.scale, ctx.nbytes) == (call, 0.0, 1.0, 0)
    y, ctx = fd.alpha_dropout(x, 1, rng=rng)
    assert_same_bits(y, np.zeros_like(x))
    assert_same_bits(ctx.backward(x), np.zeros_like(x))
    assert rng.call == 2


@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 4), (3, 4, 2, 3, 2)])
def test_features(isa, shape):
    """Each map is dropped or transformed as a whole, the same in both layouts."""
    x = array(shape, np.float32)
    spatial = tuple(range(2, x.ndim))
    expected, mask = reference.alpha_dropout(x, 0.3, 5, 0, spatial)
    y, ctx = fd.feature_alpha_dropout(x, 0.3, rng=5)
    assert_same_bits(y, expected)
    assert_same_bits(ctx.backward(x), reference.alpha_gradient(x, mask, 0.3))
    last = np.moveaxis(x, 1, -1).copy()
    y, _ = fd.feature_alpha_dropout(last, 0.3, rng=5, channels_last=True)
    assert_same_bits(np.moveaxis(y, -1, 1).copy(), expected)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, r: fd.alpha_dropout(x, 1.5, rng=r), ValueError, r"p must be in \[0, 1\], got 1"),
        (lambda x, r: fd.alpha_dropout(x, True, rng=r), TypeError, "p must be a real number"),
        (lambda x, r: fd.alpha_dropout(x.astype(int), rng=r), TypeError, "x must be float16"),
        (lambda x, r: fd.alpha_dropout(x, save="x", rng=r), ValueError, "save must be one of"),
        (lambda x, r: fd.alpha_dropout(x, out=x[1:], rng=r), ValueError, "out must have shape"),
        (
            lambda x, r: fd.alpha_dropout(x, shared_axes=2, rng=r),
            np.exceptions.AxisError,
            "shared_axes: axis 2 is out of bounds",
        ),
        (
            lambda x, r: fd.feature_alpha_dropout(x, rng=r),
            ValueError,
            "x must have a batch axis, a channel axis and 1 to 3 spatial axes, got 2 axes",
        ),
        (
            lambda x, r: fd.alpha_dropout(x, rng=1)[1].backward(x[1:]),
            ValueError,
            "dy must have the shape of x",
        ),
    ],
)
def test_errors(call, error, message):
    rng = fd.Rng(1)
    with pytest.raises(error, match=message):
        call(np.ones((3, 4)), rng)
    assert rng.call == 0


def test_layers():
    x = array((4, 3, 50), np.float32)
    for layer, op, options in [
        (fd.layers.AlphaDropout, fd.alpha_dropout, {"shared_axes": (0,)}),
        (fd.layers.FeatureAlphaDropout, fd.feature_alpha_dropout, {"channels_last": True}),
    ]:
        rng = fd.Rng(7)
        layer = layer(0.4, rng=7, save="seed", **options)
        for _ in range(2):
            y, ctx = op(x, 0.4, rng=rng, **options)
            assert_same_bits(layer(x), y)
            assert_same_bits(layer.backward(x), ctx.backward(x))
            assert layer.ctx.nbytes == 0
        assert_same_bits(layer.eval()(x), x)
        assert layer.rng.call == 2
    assert (
        repr(layer) == "FeatureAlphaDropout(p=0.4, channels_last=True, shared_axes=(), save='seed')"
    )
    assert repr(fd.layers.AlphaDropout(rng=1)).startswith("AlphaDropout(p=0.5, shared_axes=()")
    with pytest.raises(ValueError, match="save must be one of"):
        fd.layers.AlphaDropout(save="x")
