"""Variational dropout with a learned variance, and the sparse variational linear layer."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient
from scipy import special, stats

import fastdrop as fd
from fastdrop import reference
from fastdrop._core import Draw, Place


def array(shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shared", ["layer", "neuron", "weight"])
def test_against_the_reference(isa, any_dtype, shared):
    for shape in ((1,), (3, 5), (7, 64), (40, 513), (1, 9001), (3000, 2), (0, 4)):
        x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
        group = {"layer": (), "neuron": shape[-1:], "weight": shape}[shared]
        log_alpha = -np.abs(array(group, np.float32, 2))
        y, ctx = fd.variational_dropout(x, log_alpha, rng=fd.Rng(5, 3))
        noise = reference.normals(reference.element_index(shape), 5, 3)
        kind = reference.compute_type(x.dtype)
        sigma = np.exp(log_alpha / 2).astype(kind)
        assert_same_bits(y, reference.noise_scale(x, sigma, noise))
        dx, dlog_alpha = pickle.loads(pickle.dumps(ctx)).backward(dy)
        assert_same_bits(dx, reference.noise_scale(dy, sigma, noise))
        terms = reference.noise_gradient(x, dy, noise).astype(np.float64) * sigma / 2
        assert (dlog_alpha.shape, dlog_alpha.dtype) == (group, log_alpha.dtype)
        axes = {"layer": None, "neuron": tuple(range(len(shape) - 1)), "weight": ()}[shared]
        sums, size = terms.sum(axis=axes), np.abs(terms).sum()
        np.testing.assert_allclose(dlog_alpha, sums, rtol=1e-6, atol=1e-9 * size)


PLACES = [
    {"shared_axes": (1, 2)},
    {"region": ((1, 2, 3, 4), (9, 9, 9, 9))},
    {"rows": [5, 0, 7], "region": ((0, 1, 2, 0), (9, 9, 9, 9))},
    {"shared_axes": 3, "rows": [5, 0, 2**40]},
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("group", [0, 1, 4])
def test_places(isa, dtype, place, group):
    x, dy = array((3, 4, 5, 5), dtype), array((3, 4, 5, 5), dtype, 1)
    log_alpha = np.asarray(-np.abs(array(x.shape, seed=2))[(0,) * (4 - group)])
    y, ctx = fd.variational_dropout(x, log_alpha, rng=fd.Rng(5, 3), **place)
    where = place.get("shared_axes", ()), place.get("region"), place.get("rows")
    noise = reference.normals(reference.element_index(x.shape, *where), 5, 3)
    sigma = np.exp(log_alpha / 2).astype(dtype)
    assert_same_bits(y, reference.noise_scale(x, sigma, noise))
    dx, dlog_alpha = ctx.backward(dy)
    assert_same_bits(dx, reference.noise_scale(dy, sigma, noise))
    terms = reference.noise_gradient(x, dy, noise).astype(np.float64) * sigma / 2
    sums = terms.sum(axis=tuple(range(4 - group)))
    np.testing.assert_allclose(dlog_alpha, sums, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("group", [(), (4,), (3, 4)])
def test_gradients(group):
    x, weights = array((3, 4)), array((3, 4), seed=1)
    log_alpha = -np.abs(array(group, seed=2)) - 0.1
    log_alpha = np.asarray(log_alpha)

    def loss():
        return (fd.variational_dropout(x, log_alpha, rng=2)[0] * weights).sum()

    _, ctx = fd.variational_dropout(x, log_alpha, rng=2)
    dx, dlog_alpha = ctx.backward(weights)
    assert_gradient(loss, x, dx)
    assert_gradient(loss, log_alpha, dlog_alpha)


def test_alpha_above_one_is_clipped():
    x = array((20, 3))
    y, ctx = fd.variational_dropout(x, np.array([-1.0, 0.0, 2.0]), rng=2)
    assert_same_bits(y, fd.variational_dropout(x, np.array([-1.0, 0.0, 0.0]), rng=2)[0])
    assert (ctx.backward(x)[1] != 0).tolist() == [True, True, False]
    np.testing.assert_allclose(ctx.p, [special.expit(-1.0), 0.5, 0.5])


def test_variance():
    n = 10**6
    y, _ = fd.variational_dropout(np.ones(n), np.log(0.25), rng=1)
    assert abs(y.mean() - 1) < 4 * 0.5 / np.sqrt(n)
    assert abs(y.var() / 0.25 - 1) < 4 * np.sqrt(2 / n)


def test_kl():
    log_alpha = np.array([-3.0, -1.0, -0.2])
    value, gradient = fd.variational_kl(log_alpha)
    assert_gradient(lambda: fd.variational_kl(log_alpha)[0], log_alpha, gradient)
    # Up to a constant, the integral of Kingma et al., eq. 12, to the cubic's accuracy
    exact = [log_uniform_kl(a) for a in log_alpha]
    single = [fd.variational_kl(a)[0] for a in log_alpha]
    np.testing.assert_allclose(
        np.subtract(single, single[0]), np.subtract(exact, exact[0]), atol=1e-2
    )
    np.testing.assert_allclose(value, sum(single))
    value, gradient = fd.variational_kl(np.array([0.5, 7.0]))
    np.testing.assert_allclose(value, 2 * fd.variational_kl(0.0)[0])
    assert (gradient == 0).all()


def log_uniform_kl(log_alpha):
    """-log_alpha / 2 + E ln|1 + sqrt(alpha) e|, to the constant that makes it 0 at infinity.

    (1 + sqrt(alpha) e)^2 / alpha has a noncentral chi-squared distribution: a Poisson mixture.
    """
    j = np.arange(5000)
    mixture = stats.poisson.pmf(j, np.exp(-log_alpha) / 2)
    mean = (np.sum(mixture * special.digamma(j + 0.5)) + np.log(2) + log_alpha) / 2
    limit = (np.euler_gamma + np.log(2)) / 2  # -E ln|e|
    return float(mean - log_alpha / 2 + limit)


def test_sparse_kl():
    """Numbers of the approximation, and of the integral it stands for."""

    def kl(log_alpha):
        value, _, gradient = fd.sparse_variational_kl(np.ones(()), np.asarray(log_alpha))
        return value, float(gradient)

    assert kl(0.0)[0] == pytest.approx(0.431239, abs=1e-6)
    assert kl(0.0)[1] == pytest.approx(-0.359128, abs=1e-6)
    assert kl(3.0)[0] == pytest.approx(0.025420, abs=1e-6)
    assert log_uniform_kl(0.0) == pytest.approx(0.426686, abs=1e-6)
    grid = np.arange(-7.5, 8, 0.5)
    error = [abs(kl(a)[0] - log_uniform_kl(a)) for a in grid]
    assert max(error) == pytest.approx(0.0094, abs=1e-4)
    assert grid[np.argmax(error)] == -3.5


def test_sparse_kl_against_the_reference(dtype):
    weight, log_variance = array((30, 40), dtype), array((30, 40), dtype, 1) * 4
    value, _, _ = fd.sparse_variational_kl(weight, log_variance)
    pairs = zip(weight.ravel().tolist(), log_variance.ravel().tolist(), strict=True)
    expected = sum(reference.sparse_variational_kl(w, v) for w, v in pairs)
    assert value == pytest.approx(expected, rel=1e-5 if dtype == np.float32 else 1e-12)


def test_sparse_kl_gradients():
    weight, log_variance = array((3, 4)), array((3, 4), seed=1) - 1
    weight[0, 0] = 1e-6  # clipped
    log_variance[1, 1] = -20.0  # clipped
    _, dweight, dlog_variance = fd.sparse_variational_kl(weight, log_variance)
    assert dweight[0, 0] == dlog_variance[0, 0] == dlog_variance[1, 1] == 0

    def loss():
        return fd.sparse_variational_kl(weight, log_variance)[0]

    assert_gradient(loss, weight, dweight, step=1e-6)
    assert_gradient(loss, log_variance, dlog_variance)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_sparse_linear(dtype, bias, training):
    x, weight = array((2, 5, 7), dtype), array((7, 4), dtype, 1)
    log_variance = array((7, 4), dtype, 2)
    b = array(4, dtype, 3) if bias else None
    y, ctx = fd.sparse_variational_linear(
        x, weight, log_variance, b, rng=fd.Rng(5, 3), training=training
    )
    model = reference.sparse_variational_linear(
        x.reshape(10, 7), weight, log_variance, b, (5, 3) if training else None
    )
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 1e-12}
    np.testing.assert_allclose(y.reshape(10, 4), model, **tolerance)
    assert y.dtype == dtype
    dy = array((2, 5, 4), dtype, 4)
    grads = pickle.loads(pickle.dumps(ctx)).backward(dy)
    assert len(grads) == 3 + bias
    assert all(g.dtype == dtype for g in grads)
    assert (ctx.seed, ctx.call) == ((5, 3) if training else (None, None))
    if training:
        flat = x.reshape(10, 7), weight, log_variance, (5, 3), dy.reshape(10, 4)
        models = reference.sparse_variational_gradients(*flat)
        for gradient, expected in zip(grads, models, strict=False):
            np.testing.assert_allclose(gradient.reshape(expected.shape), expected, **tolerance)
    if dtype == np.float32:
        return

    def loss():
        arguments = {"rng": fd.Rng(5, 3), "training": training}
        y, _ = fd.sparse_variational_linear(x, weight, log_variance, b, **arguments)
        return (y * dy).sum()

    values = (x, weight, log_variance, b)
    for value, gradient in zip(values, grads, strict=False):
        if training or value is not log_variance:
            assert_gradient(loss, value, gradient)
    if not training:
        assert (grads[2] == 0).all()


@pytest.mark.parametrize(
    "place",
    [{}, {"region": ((2, 3), (9, 11))}, {"rows": [7, 2, 2, 0, 8], "region": ((0, 1), (9, 6))}],
    ids=str,
)
def test_sparse_linear_of_a_shard(dtype, place):
    """Its noise is that of its place in the whole of y: examples and outputs may be cut."""
    operands = array((5, 7), dtype), array((7, 4), dtype, 1), array((7, 4), dtype, 2)
    y, ctx = fd.sparse_variational_linear(*operands, rng=fd.Rng(5, 3), **place)
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == np.float32 else {"rtol": 1e-11}
    expected = reference.sparse_variational_linear(*operands, None, (5, 3), **place)
    np.testing.assert_allclose(y, expected, **tolerance)
    dy = array((5, 4), dtype, 4)
    models = reference.sparse_variational_gradients(*operands, (5, 3), dy, **place)
    for gradient, model in zip(pickle.loads(pickle.dumps(ctx)).backward(dy), models, strict=False):
        np.testing.assert_allclose(gradient, model, **tolerance)


def test_gradients_of_shards_add_up():
    """Those of parameters where examples are cut, and that of x where outputs are."""
    x, weight, dy = array((3, 4, 7)), array((7, 6), seed=1), array((3, 4, 6), seed=4)
    log_variance, bias, how = array((7, 6), seed=2), array(6, seed=3), {"rng": fd.Rng(5, 3)}
    _, ctx = fd.sparse_variational_linear(x, weight, log_variance, bias, **how)
    whole = ctx.backward(dy)
    for axis, length in ((0, 3), (1, 4), (2, 6)):
        parts = []
        for own in (slice(0, 2), slice(2, length)):
            at = tuple(own if d == axis else slice(0, n) for d, n in enumerate(dy.shape))
            how = {"rng": fd.Rng(5, 3), "region": (tuple(s.start for s in at), dy.shape)}
            operands = weight[:, at[2]], log_variance[:, at[2]], bias[at[2]]
            _, ctx = fd.sparse_variational_linear(x[at[:2]], *operands, **how)
            parts.append(ctx.backward(dy[at]))
        for k, (expected, *given) in enumerate(zip(whole, *parts, strict=True)):
            summed = (k == 0) == (axis == 2)
            found = sum(given) if summed else np.concatenate(given, axis if k == 0 else -1)
            np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_a_pickle_of_before_regions():
    """Its place counts examples; the noise is the same."""
    operands = array((2, 5, 7)), array((7, 4), seed=1), array((7, 4), seed=2)
    y, ctx = fd.sparse_variational_linear(*operands, rng=fd.Rng(5, 3))
    kind, (shape, draw, *rest) = ctx.__reduce__()
    before = kind(shape, Draw(draw.seed, draw.call, draw.p, Place((10, 4))), *rest)
    for a, b in zip(ctx.backward(y), before.backward(y), strict=True):
        assert_same_bits(a, b)
    for wrong in ((10, 5), (5, 2, 4), (40,)):
        with pytest.raises(ValueError, match="draw must be for shape"):
            kind(shape, Draw(draw.seed, draw.call, draw.p, Place(wrong)), *rest)


def test_pruning():
    layer = fd.layers.SparseVariationalLinear(6, 3, rng=1, dtype=np.float64)
    assert layer.sparsity == 0
    layer.log_variance[:3] = np.log(layer.weight[:3] ** 2) + 3.01
    layer.log_variance[3:] = np.log(layer.weight[3:] ** 2) + 2.99
    assert layer.sparsity == 0.5
    x = array((5, 6))
    np.testing.assert_allclose(layer.eval()(x), x[:, 3:] @ layer.weight[3:])


def test_edges_and_errors():
    x = array((3, 4))
    rng = fd.Rng(1)
    y, ctx = fd.variational_dropout(x, 0.0, rng=rng, training=False)
    assert_same_bits(y, x)
    dx, dlog_alpha = ctx.backward(x)
    assert_same_bits(dx, x)
    assert dlog_alpha == ctx.p == ctx.nbytes == rng.call == 0
    y, _ = fd.variational_dropout(x, -np.inf, rng=rng)  # p = 0
    assert_same_bits(y, x)
    assert rng.call == 1
    w = np.ones((4, 2))
    for call, error, message in [
        (lambda: fd.variational_dropout(x, np.zeros(3)), ValueError, "log_alpha must have shape"),
        (lambda: fd.variational_dropout(x, 1), TypeError, "log_alpha must be float16"),
        (lambda: fd.variational_dropout(x.astype(int), 0.0), TypeError, "x must be float16"),
        (lambda: ctx.backward(x[1:]), ValueError, "dy must have shape"),
        (
            lambda: fd.variational_dropout(x, 0.0, region=((0, 1), (9, 4)), training=False),
            ValueError,
            "region must contain a part",
        ),
        (
            lambda: fd.sparse_variational_linear(x, w, w, region=((0, 0), (3, 4))[::-1]),
            ValueError,
            "region must contain a part of shape .3, 2.",
        ),
        (
            lambda: fd.sparse_variational_linear(x, w, w, region=5, training=False),
            TypeError,
            "region must be",
        ),
        (lambda: ctx.backward(np.float32(x)), TypeError, "dy must have dtype float64"),
        (lambda: fd.sparse_variational_linear(x, w.T, w), ValueError, "weight must have shape"),
        (lambda: fd.sparse_variational_linear(x, w, w.T), ValueError, "log_variance must have"),
        (lambda: fd.sparse_variational_linear(x, w, w, x), ValueError, "bias must have shape"),
        (lambda: fd.sparse_variational_linear(np.float16(x), w, w), TypeError, "x must be float32"),
        (
            lambda: fd.sparse_variational_linear(np.float32(x), w, w),
            TypeError,
            "weight must have d",
        ),
        (lambda: fd.layers.VariationalDropout(alpha=0.0), ValueError, "alpha must be above 0"),
        (lambda: fd.layers.VariationalDropout(alpha=1.5), ValueError, "alpha must be in"),
        (lambda: fd.sparse_variational_kl(w, x), ValueError, "log_variance must have shape"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_layers():
    x = array((8, 6), np.float32)
    layer = fd.layers.VariationalDropout((6,), 0.5, rng=7)
    y, ctx = fd.variational_dropout(x, np.full(6, np.log(0.5)), rng=7)
    assert_same_bits(layer(x), y)
    dx, dlog_alpha = ctx.backward(x)
    assert_same_bits(layer.backward(x), dx)
    np.testing.assert_array_equal(layer.gradients["log_alpha"], dlog_alpha)
    assert layer.kl()[1].shape == (6,)
    assert_same_bits(layer.eval()(x), x)
    assert repr(layer) == "VariationalDropout(shape=(6,))"
    layer = fd.layers.SparseVariationalLinear(6, 3, rng=7)
    assert layer(x).shape == (8, 3)
    assert layer.backward(np.ones((8, 3), np.float32)).shape == (8, 6)
    assert list(layer.gradients) == ["weight", "log_variance", "bias"]
    assert all(layer.gradients[k].shape == v.shape for k, v in layer.parameters.items())
    assert len(layer.kl()) == 3
    assert repr(layer) == "SparseVariationalLinear(6, 3, bias=True)"
    assert fd.layers.SparseVariationalLinear(6, 3, False, rng=7)(x).shape == (8, 3)


def test_no_inputs_or_outputs():
    for shape in ((0, 3), (3, 0), (0, 0)):
        layer = fd.layers.SparseVariationalLinear(*shape, rng=1)
        for mode in (True, False):
            y = layer.train(mode)(np.ones((2, shape[0]), np.float32))
            assert y.shape == (2, shape[1])
            assert layer.backward(y).shape == (2, shape[0])
        assert layer.sparsity == 0.0


def test_an_optimiser_may_change_log_alpha():
    x, log_alpha = array((3, 4)), np.array(-1.0)
    _, ctx = fd.variational_dropout(x, log_alpha, rng=1)
    before = ctx.backward(x)[1]
    log_alpha[...] = 0.5
    assert ctx.backward(x)[1] == before


def test_a_weight_of_0_that_is_kept_has_a_gradient():
    weight = np.zeros((2, 1))
    _, ctx = fd.sparse_variational_linear(np.ones((1, 2)), weight, weight - 30, training=False)
    assert (ctx.backward(np.ones((1, 1)))[1] == 1).all()


def test_sparse_kl_of_16_bits():
    weight = np.array([0.0, 1e-4, 1e-3, 0.01, 0.1], np.float16)
    log_variance = np.full(5, -10, np.float16)
    value, dweight, dlog_variance = fd.sparse_variational_kl(weight, log_variance)
    wide = fd.sparse_variational_kl(*(a.astype(np.float64) for a in (weight, log_variance)))
    assert value == pytest.approx(wide[0], rel=1e-3)
    for actual, expected in zip((dweight, dlog_variance), wide[1:], strict=True):
        assert actual.dtype == np.float16
        np.testing.assert_allclose(actual, expected, rtol=2e-3, atol=1e-3)


def test_of_nothing(dtype):
    for shape in ((0, 3), (3, 0)):
        for own in ((), shape[1:], shape):
            x = np.zeros(shape, dtype)
            y, ctx = fd.variational_dropout(x, np.zeros(own), rng=1)
            dx, dlog_alpha = ctx.backward(x)
            assert (y.shape, dx.shape, dlog_alpha.shape) == (shape, shape, own)
            assert not np.any(dlog_alpha)
