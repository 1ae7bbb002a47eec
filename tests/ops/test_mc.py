"""Monte Carlo prediction against sums over all passes at once."""

import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import mc

W = np.random.default_rng(0).standard_normal((6, 40))
V = np.random.default_rng(1).standard_normal((40, 3))
X = np.random.default_rng(2).standard_normal((5, 6))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def network(x, rng, **options):
    """Two ops a pass."""
    x, _ = fd.dropout(x, 0.1, rng=rng, **options)
    h, _ = fd.dropout(np.maximum(x @ W, 0), 0.5, rng=rng, **options)
    return h @ V


def classifier(x, rng):
    return softmax(network(x, rng))


def all_passes(model, rng, samples):
    return np.stack([model(X, mc.pass_rng(rng, t)) for t in range(samples)])


def entropy(p):
    """-sum p log p, in Python's own floats."""
    return -sum(q * math.log(q) for q in p if q > 0)


def entropies(p):
    return np.apply_along_axis(entropy, -1, p)


# Against two passes over everything


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_regression(dtype, samples):
    def model(x, rng):
        return network(x, rng).astype(dtype)

    y = all_passes(model, 7, samples).astype(np.float64)
    result = mc.predict(model, X, samples, rng=7)
    assert isinstance(result, mc.Regression)
    assert result.samples == samples
    assert result.mean.dtype == result.variance.dtype == np.float64
    np.testing.assert_allclose(result.mean, y.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(result.variance, y.var(axis=0), rtol=1e-12)


def test_covariance():
    y = all_passes(network, 7, 50)
    plain = mc.predict(network, X, 50, mc.Regression(covariance=True), rng=7)
    expected = np.stack([np.cov(y[:, i].T, bias=True) for i in range(len(X))])
    np.testing.assert_allclose(plain.covariance, expected, rtol=1e-11, atol=1e-13)
    noisy = mc.predict(network, X, 50, mc.Regression(tau=4.0, covariance=True), rng=7)
    np.testing.assert_allclose(noisy.covariance, expected + np.eye(3) / 4, rtol=1e-11)
    np.testing.assert_allclose(noisy.variance, plain.variance + 0.25)
    diagonal = np.diagonal(noisy.covariance, axis1=-2, axis2=-1)
    np.testing.assert_allclose(diagonal, noisy.variance, rtol=1e-12)
    assert_same_bits(noisy.covariance, noisy.covariance.swapaxes(-1, -2))


def test_predictive_variance_as_the_paper_writes_it():
    y = all_passes(network, 7, 50)
    result = mc.predict(network, X, 50, mc.Regression(tau=2.0, covariance=True), rng=7)
    mean = y.mean(axis=0)
    second = np.einsum("tni,tnj->nij", y, y) / len(y)
    expected = second - np.einsum("ni,nj->nij", mean, mean) + np.eye(3) / 2
    np.testing.assert_allclose(result.covariance, expected, rtol=1e-9, atol=1e-9)


def test_variance_far_from_zero():
    """Where a difference of two means of squares has no digit left."""
    y = np.random.default_rng(0).standard_normal((500, 4))
    result = mc.Moments()
    for row in y:
        result.update(row + 1e9)
    np.testing.assert_allclose(result.variance, y.var(axis=0), rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 50])
def test_classification(samples):
    p = all_passes(classifier, 7, samples)
    result = mc.predict(classifier, X, samples, mc.Classification(), rng=7)
    mean = p.mean(axis=0)
    np.testing.assert_allclose(result.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(result.variance, p.var(axis=0), rtol=1e-12, atol=1e-17)
    H, E = entropies(mean), entropies(p).mean(axis=0)
    np.testing.assert_allclose(result.predictive_entropy, H, rtol=1e-12)
    np.testing.assert_allclose(result.expected_entropy, E, rtol=1e-12)
    np.testing.assert_allclose(result.mutual_information, H - E, rtol=1e-9, atol=1e-15)
    counts = np.stack([(p.argmax(-1) == c).sum(axis=0) for c in range(3)], axis=-1)
    np.testing.assert_array_equal(result.counts, counts)
    np.testing.assert_allclose(result.variation_ratio, 1 - counts.max(axis=-1) / samples)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
def test_probabilities_of_any_dtype(kind):
    p = softmax(np.random.default_rng(0).standard_normal((20, 1000))).astype(kind)
    result = mc.Classification()
    result.update(p)
    np.testing.assert_allclose(result.predictive_entropy, entropies(p.astype(float)), rtol=1e-12)


# Known answers


def test_identical_passes_have_no_mutual_information():
    p = softmax(np.random.default_rng(0).standard_normal((50, 7)))
    with pytest.warns(RuntimeWarning, match="no pass has drawn from its rng"):
        result = mc.predict(lambda x, rng: p, X, 33, mc.Classification())
    assert (result.mutual_information == 0).all()
    assert (result.variance == 0).all()
    assert (result.variation_ratio == 0).all()
    np.testing.assert_array_equal(result.mean, p)


@pytest.mark.parametrize("T", [1, 2, 10])
def test_distinct_one_hots(T):
    result = mc.Classification()
    for row in np.eye(T):
        result.update(row)
    assert result.expected_entropy == 0
    assert result.predictive_entropy == pytest.approx(math.log(T), abs=1e-14)
    assert result.mutual_information == pytest.approx(math.log(T), abs=1e-14)
    assert result.variation_ratio == pytest.approx(1 - 1 / T)
    assert result.counts.tolist() == [1] * T


def test_variance_of_dropout():
    """dropout(1) has mean 1 and variance p / (1 - p)."""
    p = 0.2
    result = mc.predict(lambda x, rng: fd.dropout(x, p, rng=rng)[0], np.ones((40, 50)), 200, rng=1)
    assert result.mean.mean() == pytest.approx(1, abs=4 * math.sqrt(0.25 / (200 * 2000)))
    assert result.variance.mean() == pytest.approx(0.25, rel=0.02)


def test_precision():
    assert mc.precision(0.5, 0.01, 100, 1e-4) == pytest.approx(0.5 * 1e-4 / (2 * 100 * 1e-4))
    # The authors set the weight decay from tau: l**2 (1 - p) / (2 N tau).
    tau, p, length, n = 0.25, 0.05, 1e-2, 455
    weight_decay = length**2 * (1 - p) / (2.0 * n * tau)
    assert mc.precision(p, length, n, weight_decay) == pytest.approx(tau)


# The draws


def test_a_pass_can_be_drawn_alone():
    seen = []
    mc.predict(lambda x, rng: seen.append(network(x, rng)) or seen[-1], X, 20, rng=7)
    assert_same_bits(network(X, mc.pass_rng(7, 13)), seen[13])
    with pytest.raises(ValueError, match=r"t must be in 0 ... 2\*\*32 - 1, got 4294967296"):
        mc.pass_rng(7, 2**32)
    assert not np.array_equal(seen[12], seen[13])


def test_passes_never_share_a_draw():
    draws = set()

    def model(x, rng):
        for _ in range(9):
            _, ctx = fd.dropout(x, 0.5, rng=rng)
            draws.add((ctx.seed, ctx.call))
        return x

    rng = fd.Rng(7)
    mc.predict(model, X, 10, rng=rng)
    assert rng.call == 1
    mc.predict(model, X, 10, rng=rng)
    assert rng.call == 2
    draws |= {(7, call) for call in range(9)}
    assert len(draws) == 9 * (10 + 10 + 1)


def test_passes_can_be_added():
    whole = mc.predict(classifier, X, 30, mc.Classification(), rng=7)
    parts = mc.predict(classifier, X, 12, mc.Classification(), rng=7)
    assert mc.predict(classifier, X, 18, parts, rng=7) is parts
    assert_same_bits(parts.mean, whole.mean)
    assert_same_bits(parts.mutual_information, whole.mutual_information)


def test_the_accumulator_keeps_no_pass():
    sizes = []
    result = mc.Classification()
    for n in (1, 100):
        mc.predict(classifier, X, n, result, rng=7)
        sizes.append(len(pickle.dumps(result)))
    assert abs(sizes[1] - sizes[0]) < 16
    assert_same_bits(pickle.loads(pickle.dumps(result)).mean, result.mean)


def test_results_and_passes_are_not_aliased():
    y = np.ones((2, 3))
    result = mc.Classification()
    result.update(y / 3)
    mean, counts = result.mean, result.counts
    result.mean[:], result.counts[:], result.expected_entropy[:] = 9, 9, 9
    assert result.variation_ratio.max() == 0
    y = np.eye(3)[:2]
    result.update(y)
    y[:] = 9
    assert mean.max() < 0.34
    assert counts.max() == 1
    assert result.mean.max() <= 1
    assert result.expected_entropy.max() < 1


# Consistent masks

SAME = np.repeat(X[:1], 5, axis=0)


def test_a_mask_shared_across_the_batch_is_one_function():
    for t in range(5):
        y = network(SAME, mc.pass_rng(7, t))
        assert not (y == y[0]).all()
        y = network(SAME, mc.pass_rng(7, t), shared_axes=(0,))
        np.testing.assert_allclose(y, np.tile(y[0], (5, 1)), rtol=1e-12)


def layered(*layers):
    first, second = layers or (fd.layers.Dropout(0.1, rng=1), fd.layers.Dropout(0.5, rng=2))

    def forward(x):
        return second(np.maximum(first(x) @ W, 0)) @ V

    return [first, second], forward


@pytest.mark.parametrize("consistent", [False, True])
def test_layers_draw_as_their_ops(consistent):
    layers, forward = layered()

    def model(x, rng):
        with mc.sampling(layers, rng, consistent=consistent):
            return forward(x)

    options = {"shared_axes": (0,)} if consistent else {}
    result = mc.predict(model, X, 10, rng=7)
    expected = mc.predict(lambda x, rng: network(x, rng, **options), X, 10, rng=7)
    assert_same_bits(result.mean, expected.mean)
    assert_same_bits(result.variance, expected.variance)


def test_consistent_passes_are_the_same_functions_for_any_batch():
    layers, forward = layered()

    def model(x, rng):
        with mc.sampling(layers, rng, consistent=True):
            return forward(x)

    whole = mc.predict(model, X, 10, rng=7)
    for rows in (slice(0, 2), slice(2, 5)):
        part = mc.predict(model, X[rows], 10, rng=7)
        np.testing.assert_allclose(part.mean, whole.mean[rows], rtol=1e-12)
        np.testing.assert_allclose(part.variance, whole.variance[rows], rtol=1e-12)


@pytest.mark.parametrize(
    "make",
    [
        lambda: fd.layers.SpatialDropout(),
        lambda: fd.layers.LockedDropout(),
        lambda: fd.layers.AlphaDropout(),
        lambda: fd.layers.FeatureAlphaDropout(),
        lambda: fd.layers.GaussianDropout(),
        lambda: fd.layers.ConcreteDropout(),
        lambda: fd.layers.VariationalDropout(),
        lambda: fd.layers.DropPath(),
        lambda: fd.layers.DropConnect(6, 6, dtype=float),
    ],
)
def test_consistent_layers_treat_all_examples_alike(make):
    layer = make()
    x = np.broadcast_to(np.random.default_rng(0).standard_normal((1, 5, 6)), (4, 5, 6))
    alike = []
    for consistent in (False, True):
        with mc.sampling(layer, 3, consistent=consistent):
            ys = [layer(x) for _ in range(5)]
        alike.append(all((y == y[:1]).all() for y in ys))
    assert alike == [False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_sampling_leaves_no_trace(fails):
    schedule = fd.schedules.linear(0, 0.9, 10)
    first = fd.layers.Dropout(schedule, rng=1, shared_axes=1)
    second = fd.layers.Dropout(0.5, rng=fd.Rng(2)).eval()
    layers, forward = layered(first, second)
    forward(X)
    before = [vars(layer).copy() for layer in layers]
    calls = [layer.rng.call for layer in layers]
    try:
        with mc.sampling(layers, 3, consistent=True):
            assert first.training
            assert second.training
            assert first.shared_axes == (0, 1)
            assert second.shared_axes == (0,)
            forward(X)
            assert (first.ctx.call, second.ctx.call) == (0, 1)
            assert first.ctx.seed == second.ctx.seed == 3
            assert first.ctx.p == schedule(1)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [vars(layer) for layer in layers] == before
    assert [layer.rng.call for layer in layers] == calls


def test_sampling_takes_back_what_a_layer_gained():
    class Growing(fd.layers.Dropout):
        def __call__(self, x, out=None):
            self.cache = x
            return super().__call__(x, out)

    layer = Growing()
    with mc.sampling(layer, 3):
        layer(X)
    assert not hasattr(layer, "cache")


def test_sampling_takes_one_layer_and_axis_0_once():
    layer = fd.layers.Dropout(shared_axes=(0, 1))
    with mc.sampling(layer, 3, consistent=True):
        assert layer.shared_axes == (0, 1)
        y = layer(np.ones((4, 5)))
        assert (y == y[0, 0]).all()


def test_sampling_refuses():
    class Other(fd.layers.Layer):
        pass

    layer = fd.layers.Dropout().eval()
    with mc.sampling([Other()], 1):
        pass
    with (
        pytest.raises(TypeError, match=r"Other.* has no shared_axes"),
        mc.sampling([layer, Other()], 1, consistent=True),
    ):
        pass
    with (
        pytest.raises(TypeError, match=r"layers of fastdrop\.layers, got <function"),
        mc.sampling([layer, softmax], 1),
    ):
        pass
    assert not layer.training


# Errors


def test_shape_must_stay():
    result = mc.Classification()
    result.update(np.full((2, 4), 0.25))
    with pytest.raises(ValueError, match=r"y must have shape \(2, 4\) as before, got \(1, 4\)"):
        result.update(np.full((1, 4), 0.25))
    assert result.samples == 1
    assert repr(result) == "Classification(samples=1, shape=(2, 4))"


@pytest.mark.parametrize(
    ("y", "error", "words"),
    [
        ([[0.2, 0.7]], ValueError, "sums up to 0.1 away from 1"),
        ([[1.5, -0.5]], ValueError, "values from -0.5 on"),
        ([[np.nan, 1.0]], ValueError, "y must hold probabilities"),
        ([[1, 0]], TypeError, "y must be float16, bfloat16, float32 or float64, got int64"),
        (1.0, ValueError, r"classes along its last axis, got shape \(\)"),
        (np.ones((2, 0)), ValueError, r"classes along its last axis, got shape \(2, 0\)"),
    ],
)
def test_bad_probabilities(y, error, words):
    result = mc.Classification()
    with pytest.raises(error, match=words):
        result.update(y)
    assert result.samples == 0


def test_no_pass_yet():
    result = mc.Classification()
    assert repr(result) == "Classification(samples=0)"
    for name in ("mean", "variance", "mutual_information", "counts", "variation_ratio"):
        with pytest.raises(RuntimeError, match="at least one pass"):
            getattr(result, name)
    for name in ("variance", "covariance"):
        with pytest.raises(RuntimeError, match="at least one pass"):
            getattr(mc.Regression(covariance=True), name)


def test_covariance_must_be_asked_for():
    result = mc.predict(network, X, 2, rng=1)
    with pytest.raises(RuntimeError, match="pass covariance=True"):
        result.covariance  # noqa: B018
    with pytest.raises(ValueError, match="y must have a last axis"):
        mc.Regression(covariance=True).update(1.0)


def test_empty_batch():
    result = mc.predict(classifier, X[:0], 3, mc.Classification())
    assert result.mean.shape == result.counts.shape == (0, 3)
    assert result.mutual_information.shape == result.variation_ratio.shape == (0,)


def test_bad_arguments():
    rng = fd.Rng(1)
    for samples, error in ((0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="samples must be"):
            mc.predict(network, X, samples, rng=rng)
    with pytest.raises(TypeError, match=r"into must be a Regression, .*got 'regression'"):
        mc.predict(network, X, 1, "regression", rng=rng)
    with pytest.raises(ValueError, match="t must be at least 0, got -1"):
        mc.pass_rng(rng, -1)
    with pytest.raises(TypeError, match="rng must be"):
        mc.predict(network, X, 1, rng="x")
    assert rng.call == 0
    for tau in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tau must be positive and finite"):
            mc.Regression(tau)
    for bad, words in [
        ({"p": 2}, "p must be in"),
        ({"length_scale": 0}, "length_scale must be positive"),
        ({"n": 0}, "n must be at least 1"),
        ({"weight_decay": -1}, "weight_decay must be positive"),
    ]:
        with pytest.raises(ValueError, match=words):
            mc.precision(**{"p": 0.5, "length_scale": 1, "n": 3, "weight_decay": 1} | bad)
