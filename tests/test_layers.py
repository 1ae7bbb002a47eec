"""Stateful layers."""

import numpy as np
import pytest
from bitwise import assert_same_bits

import fastdrop as fd


def test_draws_a_new_mask_each_call():
    layer = fd.layers.Dropout(0.5, rng=7)
    x = np.ones((4, 300), np.float32)
    rng = fd.Rng(7)
    for _ in range(3):
        expected, ctx = fd.dropout(x, 0.5, rng=rng)
        assert_same_bits(layer(x), expected)
        assert_same_bits(layer.backward(x), ctx.backward(x))


def test_eval_passes_through_and_takes_no_call():
    layer = fd.layers.Dropout(0.5, rng=fd.Rng(7))
    assert layer.eval() is layer
    x = np.ones(300)
    assert_same_bits(layer(x), x)
    assert_same_bits(layer.backward(x), x)
    assert layer.rng.call == 0
    layer.train()
    assert (layer(x) == 0).any()


def test_in_place_and_options():
    layer = fd.layers.Dropout(0.5, rng=7, shared_axes=(0,), save="seed")
    x = np.ones((4, 300), np.float32)
    assert layer(x, out=x) is x
    assert (x == x[0]).all()
    assert layer.ctx.nbytes == 0
    layer.p = 0.0
    assert layer(x).all() == x.all()
    assert repr(layer) == "Dropout(p=0.0, shared_axes=(0,), save='seed')"


def test_shared_random_state():
    rng = fd.Rng(1)
    first, second = fd.layers.Dropout(rng=rng), fd.layers.Dropout(rng=rng)
    x = np.ones(300)
    first(x), second(x)
    assert (first.ctx.call, second.ctx.call) == (0, 1)
    generator = np.random.default_rng(1)
    assert fd.layers.Dropout(rng=generator).rng is generator


def test_backward_before_forward():
    with pytest.raises(RuntimeError, match="forward"):
        fd.layers.Dropout().backward(np.ones(3))


def test_bad_save():
    with pytest.raises(ValueError, match="save must be one of"):
        fd.layers.Dropout(save="x")
