"""The example's backpropagation through time against finite differences, and what it learns."""

import numpy as np
import pytest
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop.studies.lstm import Network, Rates
from fastdrop.studies.nn import Adam

ALL = Rates(words=0.3, inputs=0.4, recurrent=0.4, hidden=0.3, cell=0.4)
IDS = np.random.default_rng(0).integers(0, 6, (8, 3))


def network(rates, dtype=np.float64):
    net = Network(6, 4, rates, seed=1)
    net.table = net.table.astype(dtype)
    for layer in (net.lstm, net.output):
        for name in layer.learned:
            setattr(layer, name, getattr(layer, name).astype(dtype))
    return net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "rates",
    [ALL, Rates(inputs=0.5), Rates(recurrent=0.5), Rates(hidden=0.5, cell=0.5), Rates(words=0.5)],
    ids=str,
)
def test_every_gradient(rates, training):
    net = network(rates)

    def loss():
        net.rng.state = fd.Rng(3).state  # the same draws each time
        return net.loss(IDS, training)

    loss()
    grads = net.backward()
    assert grads.keys() == net.parameters.keys()
    for name, value in net.parameters.items():
        assert_gradient(loss, value, grads[name])


def test_all_kinds_of_dropout_are_on():
    """So that the test above sees each of them, and masks that are held where they should be."""
    net = network(ALL)
    net.loss(IDS, training=True)
    assert 0 < net.looked_up.kept().sum() < 6
    recurrent, cell, hidden = zip(*net.lstm.saved[-1], strict=True)
    for masks in ([c.mask() for c in recurrent], net.entered.mask(), net.left.mask()):
        assert 0 < masks[0].sum() < masks[0].size
        assert all((mask == masks[0]).all() for mask in masks)
    for contexts in (cell, hidden):
        masks = np.array([c.mask() for c in contexts])
        assert 0 < masks.sum() < masks.size
        assert (masks != masks[0]).any()
    first = recurrent[0].mask()
    net.loss(IDS, training=True)
    assert (net.lstm.saved[-1][0][0].mask() != first).any()


def test_validation_draws_nothing():
    net = network(ALL)
    losses = {net.loss(IDS) for _ in range(3)}
    assert len(losses) == 1
    assert net.rng.call == 0


def test_learns_a_period():
    net = network(Rates(inputs=0.05, hidden=0.05), np.float32)
    update = Adam(net.parameters, rate=0.03)
    ids = (np.arange(13)[:, None] + np.arange(4)) % 6
    for _ in range(120):
        net.loss(ids, training=True)
        update(net.backward())
    assert net.loss(ids) < 0.1
    assert net.dlogits.dtype == np.float32
