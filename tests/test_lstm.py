"""The LSTM example: its backward pass by central differences, and that it learns."""

import numpy as np
import pytest
from differences import assert_gradient

import fastdrop as fd
from fastdrop.examples import lstm

RATES = {"p_input": 0.3, "p_state": 0.4, "p_zone": 0.3}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rates", [RATES, {}], ids=["dropout", "plain"])
def test_gradients(rates, training):
    """Of input and all parameters, the draws held fixed."""
    init = np.random.default_rng(0)
    net = lstm.LSTM(3, 5, **rates, rng=fd.Rng(7), init=init, dtype=np.float64)
    net.training = training
    x, weights = init.standard_normal((2, 4, 3)), init.standard_normal((2, 4, 5))

    def loss():
        net.rng.state = fd.Rng(7).state
        return (net(x) * weights).sum()

    loss()
    assert_gradient(loss, x, net.backward(weights))
    loss()
    net.backward(weights)
    grads = dict(net.grads)
    for name, gradient in grads.items():
        assert_gradient(loss, getattr(net, name), gradient)


def test_masks_are_held_over_time():
    net = lstm.LSTM(3, 50, **RATES, rng=fd.Rng(7), init=np.random.default_rng(0))
    net(np.ones((2, 6, 3), np.float32))
    masks = [step[1].mask() for step in net.steps]
    assert all((mask == masks[0]).all() for mask in masks)
    assert not masks[0].all()
    locked = net.input_dropout.ctx.mask()
    assert (locked == locked[:, :1]).all()
    zones = [step[-1].mask() for step in net.steps]
    assert not all((zone == zones[0]).all() for zone in zones)
    assert net.rng.call == 2 + 2 * 6


def test_eval_repeats_and_takes_no_call():
    net = lstm.LSTM(3, 5, **RATES, rng=fd.Rng(7), init=np.random.default_rng(0))
    net.training = False
    x = np.ones((2, 6, 3), np.float32)
    np.testing.assert_array_equal(net(x), net(x))
    assert net.rng.call == 0


def test_main_learns(capsys):
    lstm.main(["--epochs", "4", "--hidden", "32"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[1:]] == ["without", "with"]
    text = lstm.text_of_python(24_000)
    guess = np.log(text.max() + 1.0)  # nats of a guess
    for line in shown[1:]:
        assert float(line.split()[-1]) < 0.8 * guess
