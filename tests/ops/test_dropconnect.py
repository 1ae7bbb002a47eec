"""DropConnect against the reference, finite differences, and what it promises."""

import functools
import math
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference
from fastdrop._core import Draw, Place
from fastdrop.backends.cpu import normals

SIZES = [(5, 7, 33), (3, 1, 1), (4, 9, 130), (2, 3, 5000), (6, 140, 31), (37, 20, 64), (2, 0, 3)]
MODES = ["example", "batch", "gaussian"]
BIASES = ["masked", "unmasked", "none"]


@pytest.fixture(autouse=True)
def restore():
    before = fd.get_num_threads()
    yield
    fd.set_num_threads(before)


def operands(batch, inputs, outputs, dtype=np.float64, bias="masked"):
    """x, weight, bias, dy."""
    generator = np.random.default_rng([batch, inputs, outputs])
    shapes = (batch, inputs), (inputs, outputs), (outputs,), (batch, outputs)
    x, weight, b, dy = (generator.standard_normal(shape).astype(dtype) for shape in shapes)
    return x, weight, None if bias == "none" else b, dy


def run(x, weight, bias, dy, p, **arguments):
    """y and the gradients."""
    y, ctx = fd.dropconnect(x, weight, bias, p, **arguments)
    return y, *ctx.backward(dy)


def expected(x, weight, bias, dy, p, mask_bias=True, first=0, masks=None):
    """The same by the reference, of seed 5."""
    if masks is None:
        inputs = len(weight) + (bias is not None and mask_bias)
        shape = len(x), inputs, weight.shape[1]
        masks = reference.dropconnect_masks(shape, p, 5, 0, first)
    y = reference.dropconnect(x, weight, bias, masks, p)
    gradients = reference.dropconnect_gradients(x, weight, bias, masks, p, dy)
    return y, *(g for g in gradients if g is not None)


@functools.cache
def case(size, dtype, p, bias="masked", first=0):
    """Operands, and what the reference makes of them: the same for each instruction set."""
    given = operands(*size, dtype, bias)
    return given, expected(*given, p, bias == "masked", first)


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_bit(isa, dtype, size, p):
    fd.set_num_threads(2)
    for first in (0, 7):
        given, wanted = case(size, dtype, p, first=first)
        for actual, value in zip(run(*given, p, rng=5, first=first), wanted, strict=True):
            assert_same_bits(actual, value)


@pytest.mark.parametrize("bias", BIASES)
def test_every_thread_count_and_bias(isa, dtype, bias):
    """Several chunks of examples and of weights."""
    given, wanted = case((24, 170, 130), dtype, 0.3, bias)
    for threads in (1, 2, 3):
        fd.set_num_threads(threads)
        actual = run(*given, 0.3, rng=5, mask_bias=bias == "masked")
        for a, w in zip(actual, wanted, strict=True):
            if w.ndim == 1 and bias == "unmasked":  # NumPy's sum
                np.testing.assert_allclose(a, w, rtol=1e-5)
            else:
                assert_same_bits(a, w)


def test_the_reference_is_what_the_paper_says():
    x, weight, bias, dy = operands(6, 50, 70)
    masks = fd.keep_mask((6, 51, 70), 0.3, rng=5)
    np.testing.assert_array_equal(masks, reference.dropconnect_masks(masks.shape, 0.3, 5, 0))
    y, dx, dweight, dbias = expected(x, weight, bias, dy, 0.3)
    m, b = masks[:, :-1] / 0.7, masks[:, -1] / 0.7
    np.testing.assert_allclose(y, np.einsum("bik,ik,bi->bk", m, weight, x) + b * bias, rtol=1e-12)
    np.testing.assert_allclose(dx, np.einsum("bik,ik,bk->bi", m, weight, dy), rtol=1e-12)
    np.testing.assert_allclose(dweight, np.einsum("bik,bi,bk->ik", m, x, dy), rtol=1e-9)
    np.testing.assert_allclose(dbias, (b * dy).sum(axis=0), rtol=1e-12)


def test_an_example_does_not_depend_on_its_batch():
    x, weight, bias, _ = operands(40, 60, 45, np.float32)
    whole, _ = fd.dropconnect(x, weight, bias, 0.2, rng=5)
    for first, end in [(0, 1), (1, 3), (3, 40)]:
        part, _ = fd.dropconnect(x[first:end], weight, bias, 0.2, rng=5, first=first)
        assert_same_bits(part, whole[first:end])


@pytest.mark.parametrize("bias", BIASES)
def test_one_mask_for_the_batch(dtype, bias):
    x, weight, b, dy = operands(9, 12, 20, dtype, bias)
    masked = bias == "masked"
    shape = 9, 12 + masked, 20
    mask = np.broadcast_to(reference.dropconnect_masks((1, *shape[1:]), 0.3, 5, 0), shape)
    wanted = expected(x, weight, b, dy, 0.3, masks=mask)
    actual = run(x, weight, b, dy, 0.3, rng=5, mode="batch", mask_bias=masked)
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, w, rtol=1e-4 if dtype == np.float32 else 1e-11)


@pytest.mark.parametrize("bias", BIASES)
def test_gaussian(dtype, bias):
    x, weight, b, dy = operands(9, 12, 20, dtype, bias)
    arguments = x, weight, b, 0.3, normals(Draw(5, 0, 0.3, Place((9, 20)))).astype(np.float64)
    masked = bias == "masked"
    y = reference.dropconnect_gaussian(*arguments, mask_bias=masked)
    gradients = reference.dropconnect_gaussian_gradients(*arguments, dy, mask_bias=masked)
    wanted = y, *(g for g in gradients if g is not None)
    actual = run(x, weight, b, dy, 0.3, rng=5, mode="gaussian", mask_bias=masked)
    for a, w in zip(actual, wanted, strict=True):
        assert a.dtype == dtype
        tolerance = 1e-4 if dtype == np.float32 else 1e-11
        np.testing.assert_allclose(a, w, rtol=tolerance, atol=tolerance)


def test_gaussian_shards():
    x, weight, b, _ = operands(9, 12, 20, np.float64, "masked")
    whole, _ = fd.dropconnect(x, weight, b, 0.3, rng=5, mode="gaussian")
    part, _ = fd.dropconnect(x[4:], weight, b, 0.3, rng=5, mode="gaussian", first=4)
    np.testing.assert_allclose(part, whole[4:], rtol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bias", BIASES)
def test_central_differences(mode, bias):
    x, weight, b, dy = operands(4, 6, 5, bias=bias)
    arguments = {"rng": 5, "mode": mode, "mask_bias": bias == "masked"}
    gradients = run(x, weight, b, dy, 0.3, **arguments)[1:]
    given = [a for a in (x, weight, b) if a is not None]
    for array, gradient in zip(given, gradients, strict=True):
        assert gradient.shape == array.shape
        numeric = np.empty_like(array)
        for i in np.ndindex(array.shape):
            value, ends = array[i], []
            for step in (1e-5, -1e-5):
                array[i] = value + step
                ends.append((fd.dropconnect(x, weight, b, 0.3, **arguments)[0] * dy).sum())
            array[i] = value
            numeric[i] = (ends[0] - ends[1]) / 2e-5
        error = np.abs(numeric - gradient).max() / np.abs(gradient).max()
        assert error < 1e-6


@pytest.mark.parametrize("mode", ["example", "gaussian"])
def test_mean_and_variance(mode):
    """The check of the page: the variance over many masks is that of the formula."""
    _, weight, bias, _ = operands(1, 12, 6)
    x, n = np.linspace(-1, 2, 12), 100_000
    examples = np.broadcast_to(x, (n, 12))
    for masked in (True, False):
        y, _ = fd.dropconnect(examples, weight, bias, 0.3, rng=5, mode=mode, mask_bias=masked)
        mean, variance = x @ weight + bias, x**2 @ weight**2 + masked * bias**2
        variance *= 0.3 / 0.7
        assert (np.abs(y.mean(axis=0) - mean) < 4 * np.sqrt(variance / n)).all()
        ratio = y.var(axis=0) / variance
        assert ratio.min() > 0.98
        assert ratio.max() < 1.02


def test_inference():
    """The mean of relu(u) is known: mean * Phi(mean / sigma) + sigma * phi(mean / sigma)."""
    x, weight, bias, _ = operands(7, 12, 6)
    samples = 1000

    def relu(u):
        return np.maximum(u, 0, out=u)

    for masked in (True, False):
        mean, variance = x @ weight + bias, x**2 @ weight**2 + masked * bias**2
        sigma = np.sqrt(variance * 0.3 / 0.7)
        z = mean / sigma
        phi = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
        wanted = mean * (1 + np.vectorize(math.erf)(z / np.sqrt(2))) / 2 + sigma * phi
        rng = fd.Rng(3, 9)
        r = fd.dropconnect_inference(x, weight, bias, 0.3, relu, samples, rng=rng, mask_bias=masked)
        assert rng.call == 10
        assert (np.abs(r - wanted) < 4.5 * sigma / np.sqrt(samples)).all()
    one = fd.dropconnect_inference(x, weight, bias, 0.3, relu, 1, rng=3)
    assert_same_bits(one, fd.dropconnect_inference(x, weight, bias, 0.3, relu, 1, rng=3))
    for p, kept in [(0.0, x @ weight + bias), (1.0, np.zeros((7, 6)))]:
        r = fd.dropconnect_inference(x, weight, bias, p, np.tanh, 3, rng=3)
        np.testing.assert_allclose(r, np.tanh(kept), rtol=1e-12)
    r = fd.dropconnect_inference(x, weight, bias, 1.0, np.tanh, 3, rng=3, mask_bias=False)
    np.testing.assert_allclose(r, np.tanh(np.broadcast_to(bias, (7, 6))), rtol=1e-12)


def peak(function):
    """Bytes that are allocated at most while it runs, and those of what it returns."""
    function()
    tracemalloc.start()
    kept = function()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most, sum(a.nbytes for a in kept)


def test_memory():
    """No temporary but the three tiles that each thread works in."""
    x, weight, bias, dy = operands(128, 512, 512, np.float32)
    _, ctx = fd.dropconnect(x, weight, bias, 0.5, rng=5)
    assert ctx.nbytes == 0
    for function in (
        lambda: fd.dropconnect(x, weight, bias, 0.5, rng=5)[:1],
        lambda: ctx.backward(dy),
    ):
        most, kept = peak(function)
        assert most - kept < (64 + 48 * fd.get_num_threads()) << 10
    # one sample at a time
    activation = np.tanh
    most, _ = peak(
        lambda: [fd.dropconnect_inference(x[:8], weight, bias, 0.5, activation, 50, rng=5)]
    )
    assert most < 4 * weight.nbytes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("masked", [True, False])
def test_edges(dtype, mode, masked):
    x, weight, bias, dy = operands(5, 6, 7, dtype)
    linear = x @ weight + bias
    plain = dy @ weight.T, x.T @ dy, dy.sum(axis=0)
    rng = fd.Rng(5)
    arguments = {"rng": rng, "mode": mode, "mask_bias": masked}
    y, *gradients = run(x, weight, bias, dy, 0.4, training=False, **arguments)
    assert rng.call == 0
    for a, w in zip((y, *gradients), (linear, *plain), strict=True):
        np.testing.assert_allclose(a, w, rtol=1e-6)
    y, *gradients = run(x, weight, bias, dy, 0, **arguments)
    assert rng.call == 1
    for a, w in zip((y, *gradients), (linear, *plain), strict=True):
        np.testing.assert_allclose(a, w, rtol=1e-6)
    x[0, 0] = weight[0, 0] = np.inf
    y, dx, dweight, dbias = run(x, weight, bias, dy, 1, **arguments)
    assert rng.call == 2
    assert_same_bits(y, np.zeros_like(dy) if masked else np.broadcast_to(bias, dy.shape))
    assert_same_bits(dx, np.zeros_like(x))
    assert_same_bits(dweight, np.zeros_like(weight))
    assert_same_bits(dbias, np.zeros_like(bias) if masked else dy.sum(axis=0))


@pytest.mark.parametrize("mode", MODES)
def test_no_examples(dtype, mode):
    x, weight, bias, dy = operands(0, 6, 7, dtype)
    y, dx, dweight, dbias = run(x, weight, bias, dy, 0.5, rng=5, mode=mode)
    assert y.shape == (0, 7)
    assert dx.shape == (0, 6)
    assert not dweight.any()
    assert not dbias.any()
    y, dx, *_ = run(x[:, :0], weight[:0], bias, dy, 0.5, rng=5, mode=mode)
    assert y.shape == (0, 7)
    empty = run(np.ones((3, 6)), np.ones((6, 0)), np.ones(0), np.ones((3, 0)), 0.5, mode=mode)
    assert [a.shape for a in empty] == [(3, 0), (3, 6), (6, 0), (0,)]
    assert not empty[1].any()


def test_what_is_dropped_is_gone(dtype):
    x, weight, _, dy = operands(8, 20, 40, dtype, "none")
    masks = reference.dropconnect_masks((8, 20, 40), 0.5, 5, 0)
    weight[3, 4], weight[6, 7] = np.inf, np.nan
    y, ctx = fd.dropconnect(x, weight, p=0.5, rng=5)
    for i in range(8):
        assert np.isinf(y[i, 4]) == masks[i, 3, 4]
        assert np.isnan(y[i, 7]) == masks[i, 6, 7]
    dy[2, 5] = np.inf
    _, dweight = ctx.backward(dy)
    np.testing.assert_array_equal(np.isinf(dweight[:, 5]), masks[2, :, 5])


def test_deviation_of_zero():
    x, weight, bias, dy = operands(3, 4, 5)
    x[1] = 0
    y, *gradients = run(x, weight, bias, dy, 0.5, rng=5, mode="gaussian", mask_bias=False)
    assert_same_bits(y[1], bias)
    assert all(np.isfinite(g).all() for g in gradients)


def test_layouts():
    x, weight, bias, dy = operands(12, 9, 10, np.float32)
    wanted = run(x, weight, bias, dy, 0.5, rng=5)
    odd = np.zeros((12, 18), np.float32)[:, ::2]
    odd[:] = x
    shifted = np.zeros(4 * weight.size + 1, np.uint8)[1:].view(np.float32).reshape(weight.shape)
    shifted[:] = weight
    actual = run(odd, shifted, bias[::-1].copy()[::-1], dy.astype(">f4"), 0.5, rng=5)
    for a, w in zip(actual, wanted, strict=True):
        assert_same_bits(a, w)
    for a, w in zip(
        run(x.reshape(3, 4, 9), np.asfortranarray(weight), bias, dy.reshape(3, 4, 10), 0.5, rng=5),
        wanted,
        strict=True,
    ):
        assert_same_bits(a.reshape(w.shape), w)
    y, dx, *_ = run(x[0], weight, bias, dy[0], 0.5, rng=5)
    assert_same_bits(y, wanted[0][0])
    assert_same_bits(dx, wanted[1][0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("training", [True, False])
def test_pickle(mode, training):
    x, weight, bias, dy = operands(3, 4, 5)
    _, ctx = fd.dropconnect(x, weight, bias, 0.5, rng=5, mode=mode, training=training)
    copy = pickle.loads(pickle.dumps(ctx))
    assert repr(copy) == repr(ctx)
    assert (copy.seed, copy.call) == ((5, 0) if training else (None, None))
    assert (copy.shape, copy.p, copy.scale) == (((3, 4), 0.5, 2.0) if training else ((3, 4), 0, 1))
    for a, w in zip(copy.backward(dy), ctx.backward(dy), strict=True):
        assert_same_bits(a, w)


def refuses(error, words, *given, **arguments):
    rng = fd.Rng(1)
    with pytest.raises(error, match=re.escape(words)):
        fd.dropconnect(*given, rng=rng, **arguments)
    assert rng.call == 0


def test_errors():
    x, weight, bias, dy = operands(3, 4, 5)
    for i, name in enumerate(("x", "weight", "bias")):
        given = [x, weight, bias]
        for dtype in (np.float16, int):
            given[i] = [x, weight, bias][i].astype(dtype)
            words = f"{name} must be float32 or float64, got {given[i].dtype}; convert it"
            refuses(TypeError, words, *given)
    words = "weight must have dtype float64 as x has, got float32"
    refuses(TypeError, words, x, weight.astype(np.float32), bias)
    refuses(ValueError, "x must have at least one axis", x[0, 0], weight)
    words = "weight must have shape (4, outputs) for x of shape (3, 4), got (5, 4)"
    refuses(ValueError, words, x, weight.T)
    refuses(ValueError, "weight must have shape (4, outputs)", x, weight[:, 0])
    refuses(ValueError, "bias must have shape (5,), got (4,)", x, weight, bias[:4])
    refuses(ValueError, "p must be in [0, 1], got 1.5", x, weight, bias, 1.5)
    refuses(TypeError, "p must be a real number", x, weight, bias, "a")
    words = "mode must be one of 'example', 'batch', 'gaussian', got 'none'"
    refuses(ValueError, words, x, weight, mode="none")
    refuses(ValueError, "first must be in 0", x, weight, first=-1)
    refuses(TypeError, "first must be an int, got 1.5", x, weight, first=1.5)
    refuses(ValueError, "first must leave room for masks", x, weight, first=2**60)
    _, ctx = fd.dropconnect(x, weight, bias, 0.5, rng=1)
    with pytest.raises(ValueError, match=re.escape("dy must have shape (3, 5), got (3, 4)")):
        ctx.backward(x)
    with pytest.raises(TypeError, match="dy must have dtype float64 as x has, got float32"):
        ctx.backward(dy.astype(np.float32))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        fd.dropconnect_inference(x, weight, bias, 0.5, np.tanh, 0)
    with pytest.raises(ValueError, match="inputs must be at least 1, got 0"):
        fd.layers.DropConnect(0, 3)
    with pytest.raises(ValueError, match="dtype must be float32 or float64"):
        fd.layers.DropConnect(3, 3, dtype=np.float16)
    with pytest.raises(ValueError, match="mode must be one of"):
        fd.layers.DropConnect(3, 3, mode="x")


@pytest.mark.parametrize("mode", MODES)
def test_layer(dtype, mode):
    layer = fd.layers.DropConnect(6, 7, 0.3, rng=5, mode=mode, dtype=dtype)
    again = fd.layers.DropConnect(6, 7, rng=5, dtype=dtype)
    assert_same_bits(layer.weight, again.weight)
    assert (layer.weight.dtype, layer.bias.dtype) == (dtype, dtype)
    assert not layer.bias.any()
    layer.bias += 1
    x, _, _, dy = operands(5, 6, 7, dtype)
    for call in (1, 2):
        y, ctx = fd.dropconnect(x, layer.weight, layer.bias, 0.3, rng=fd.Rng(5, call), mode=mode)
        assert_same_bits(layer(x), y)
        dx, dweight, dbias = ctx.backward(dy)
        assert_same_bits(layer.backward(dy), dx)
        assert_same_bits(layer.gradients["weight"], dweight)
        assert_same_bits(layer.gradients["bias"], dbias)
    assert list(layer.parameters) == ["weight", "bias"]
    assert layer.parameters["weight"] is layer.weight
    np.testing.assert_allclose(layer.eval()(x), x @ layer.weight + layer.bias, rtol=1e-6)
    words = f"DropConnect(6, 7, p=0.3, bias=True, mode={mode!r}, mask_bias=True)"
    assert repr(layer) == words


def test_layer_without_bias_and_with_a_schedule():
    layer = fd.layers.DropConnect(400, 300, lambda step: 0.1 * step, rng=5, bias=False)
    assert layer.weight.std() == pytest.approx(np.sqrt(2 / 400), rel=0.02)
    assert list(layer.parameters) == ["weight"]
    x = np.ones((2, 400), np.float32)
    for p in (0.0, 0.1, 0.2):
        layer(x)
        assert layer.ctx.p == pytest.approx(p)
    layer.backward(np.ones((2, 300), np.float32))
    assert list(layer.gradients) == ["weight"]


def test_random_sizes(isa):
    """Tiles of every shape, one thread and two."""
    generator = np.random.default_rng(0)
    for _ in range(20):
        size = tuple(int(n) for n in generator.integers(1, [12, 80, 200]))
        fd.set_num_threads(int(generator.integers(1, 3)))
        given, wanted = case(size, np.float32, 0.2)
        for a, w in zip(run(*given, 0.2, rng=5), wanted, strict=True):
            assert_same_bits(a, w)


def test_a_truth_value_is_a_bool():
    """Or the context could be pickled and not loaded."""
    layer = fd.layers.DropConnect(6, 5, mask_bias=np.True_, rng=1)
    y = layer(np.ones((2, 6), np.float32))
    again = pickle.loads(pickle.dumps(layer))
    assert_same_bits(again.backward(y), layer.backward(y))
