"""The studies' network library: gradients by finite differences, and what optimizers do."""

import pickle

import numpy as np
import pytest
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop.studies import nn


def double(net):
    """The same network in float64, for finite differences."""
    for layer in net.layers:
        for name in layer.learned:
            setattr(layer, name, getattr(layer, name).astype(np.float64))
    return net


def perceptron(middle, init):
    return nn.Dense(6, 5, init), middle, nn.Dense(5, 3, init)


def convolutional(init, size=3):
    conv = nn.Conv(2, 3, init, size), nn.ReLU(), nn.MaxPool(), nn.Conv(3, 2, init, size)
    return *conv, nn.Flatten(), nn.Dense(2 * 2 * 2, 3, init)


@pytest.mark.parametrize(
    "layers",
    [
        lambda init: perceptron(nn.ReLU(), init),
        lambda init: perceptron(nn.SELU(), init),
        lambda init: perceptron(nn.Dropout(0.4, rng=1), init),
        lambda init: perceptron(fd.layers.GaussianDropout(0.4, rng=1), init),
        convolutional,
        lambda init: convolutional(init, size=5),
    ],
    ids=["relu", "selu", "dropout", "gaussian", "conv", "conv 5x5"],
)
def test_gradients(layers):
    rng = np.random.default_rng(3)
    net = double(nn.Network(*layers(np.random.default_rng(0))))
    images = isinstance(net.layers[0], nn.Conv)
    x = rng.standard_normal((4, 5, 5, 2) if images else (4, 6))
    t = rng.integers(0, 3, 4)

    def loss():
        for dropout in net.dropouts:
            dropout.rng = fd.Rng(2)  # the same mask each time
        return nn.cross_entropy(net(x), t)[0]

    loss()
    for dropout in net.dropouts:
        dropout.rng = fd.Rng(2)
    net.learn(x, t)
    gradients = net.gradients
    assert gradients.keys() == net.parameters.keys()
    for name, value in net.parameters.items():
        assert_gradient(loss, value, gradients[name])


def test_dropout_is_between():
    """So that the test above sees a mask, and that in place is what the layer does elsewhere."""
    x = np.ones((8, 8), np.float32)
    y = nn.Dropout(0.5, rng=1)(x)
    assert y is x
    assert 0 < np.count_nonzero(y) < y.size
    np.testing.assert_array_equal(y, fd.layers.Dropout(0.5, rng=1)(np.ones_like(x)))


def test_a_convolution_by_its_definition():
    rng = np.random.default_rng(0)
    conv = nn.Conv(3, 4, rng)
    x = rng.standard_normal((20, 6, 7, 3), np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    W = conv.W.reshape(3, 3, 3, 4)
    expected = sum(padded[:, i : i + 6, j : j + 7] @ W[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_of_equal_pixels_one_has_the_gradient():
    pool = nn.MaxPool()
    assert pool(np.zeros((1, 3, 2, 1))).shape == (1, 1, 1, 1)
    np.testing.assert_array_equal(
        pool.backward(np.ones((1, 1, 1, 1)))[0, :, :, 0], [[1, 0], [0, 0], [0, 0]]
    )


def test_cross_entropy_is_that_of_one_hot_labels():
    rng = np.random.default_rng(0)
    logits, t = rng.standard_normal((5, 4)), rng.integers(0, 4, 5)
    one_hot = np.eye(4)[t]
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss, gradient = nn.cross_entropy(logits, t)
    np.testing.assert_allclose(loss, -(one_hot * np.log(p)).sum(axis=1).mean())
    np.testing.assert_allclose(gradient, (p - one_hot) / 5)


def test_adam_by_its_definition():
    rng = np.random.default_rng(0)
    start = rng.standard_normal((200, 100))
    update = nn.Adam({"W": start.copy()}, rate=0.1, weight_decay=0.5)
    w, m, v = start.copy(), 0, 0
    for step in range(1, 4):
        g = rng.standard_normal(start.shape)
        update({"W": g})
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w -= 0.1 * 0.5 * w
        w -= 0.1 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step) * m / (np.sqrt(v) + 1e-8)
    np.testing.assert_allclose(update.parameters["W"], w, rtol=1e-9)


def test_momentum_rate_and_max_norm():
    p = {"W": np.array([[3.0, 0.1], [4.0, 0.1]]), "b": np.array([9.0, 9.0])}
    update = nn.SGD(p, rate=lambda step: 0.1 / (1 + step), momentum=0.5, max_norm=1.0)
    g = {"W": np.zeros((2, 2)), "b": np.ones(2)}
    update(g)
    np.testing.assert_allclose(p["W"], [[0.6, 0.1], [0.8, 0.1]])  # a column is a unit's
    np.testing.assert_allclose(p["b"], 8.9)  # no weight: its norm is free
    update(g)
    np.testing.assert_allclose(p["b"], 8.9 - (0.05 + 0.05))


def test_early_stopping_brings_back_the_best():
    p = {"W": np.zeros(1)}
    stop = nn.EarlyStopping(2, p)
    answers = []
    for k, loss in enumerate([3.0, 1.0, 2.0, 1.5]):
        p["W"][:] = k
        answers.append(stop(loss))
    assert answers == [False, False, False, True]
    assert p["W"] == 1


def test_what_is_pickled_goes_on_as_if_nothing_happened():
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((8, 6), np.float32), rng.integers(0, 3, 8)
    net = nn.Network(*perceptron(nn.Dropout(0.4, rng=1), rng))
    update = nn.Adam(net.parameters)

    def step(net, update):
        net.learn(x, t)
        update(net.gradients)
        return net.parameters

    step(net, update)
    again = pickle.loads(pickle.dumps((net, update)))
    assert len(pickle.dumps(net)) < 2000  # no activations
    for _ in range(2):
        ours, theirs = step(net, update), step(*again)
        for name, value in ours.items():
            np.testing.assert_array_equal(value, theirs[name])


def test_evaluation_draws_nothing_and_is_not_timed():
    rng = fd.Rng(0)
    net = nn.Network(*perceptron(nn.Dropout(0.5, rng=rng), np.random.default_rng(0)))
    x = np.ones((1200, 6), np.float32)
    first, second = net.predict(x), net.predict(x)
    np.testing.assert_array_equal(first, second)
    assert rng.call == 0
    assert net.dropout_seconds == 0
    net.learn(x, np.zeros(1200, np.int64))
    assert rng.call == 1
    assert 0 < net.dropout_seconds < sum(net.seconds)
