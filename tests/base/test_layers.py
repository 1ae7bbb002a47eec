"""Stateful layers."""

import copy
import pickle
import pydoc
import re
import weakref

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.layer_kinds import NAMES as LAYER_NAMES

import fastdrop as fd
from fastdrop.layers.layer import Calls


def test_draws_a_new_mask_each_call():
    layer = fd.layers.Dropout(0.5, rng=7)
    x = np.ones((4, 300), np.float32)
    rng = fd.Rng(7)
    for _ in range(3):
        expected, ctx = fd.dropout(x, 0.5, rng=rng)
        assert_same_bits(layer(x), expected)
        assert_same_bits(layer.backward(x), ctx.backward(x))


def test_help():
    """It names each layer once, and is short."""
    text = pydoc.plain(pydoc.render_doc(fd.layers))
    contents = text[text.index("=====") : text.rindex("=====")]
    assert sorted(re.findall(r"\b[A-Z]\w*[a-z]\w*", contents)) == LAYER_NAMES
    assert len(text.splitlines()) < 60


def test_eval_passes_through_and_takes_no_call():
    layer = fd.layers.Dropout(0.5, rng=fd.Rng(7))
    assert layer.eval() is layer
    x = np.ones(300)
    assert_same_bits(layer(x), x)
    assert_same_bits(layer.backward(x), x)
    assert layer.rng.call == 0
    layer.train()
    assert (layer(x) == 0).any()


def test_a_mode_that_is_none():
    layer = fd.layers.Dropout(0.5, rng=7)
    layer.training = "no"
    for use in (layer, layer.forward, layer.backward):
        with pytest.raises(TypeError, match=r"training must be True or False, got 'no'; train\(\)"):
            use(np.ones(4, np.float32))
    assert layer.rng.call == 0


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


@pytest.mark.parametrize("seed", [3, np.int64(3), np.random.SeedSequence(3), None])
def test_seeds_are_the_layers_own(seed):
    """Whatever names a draw once must not name the same one in each call."""
    layer, x = fd.layers.Dropout(0.5, rng=seed), np.ones(300)
    assert (layer(x) != layer(x)).any()


def test_a_call_that_fails_is_no_step():
    layer = fd.layers.Dropout(lambda step: 0.1 if step == 0 else 1.5, rng=1)
    with pytest.raises(TypeError, match="x must be"):
        layer(np.ones(3, int))
    assert layer.step == 0
    layer(np.ones(3))
    with pytest.raises(ValueError, match="p must be in"):
        layer(np.ones(3))
    assert layer.step == 1


def test_no_rate_is_an_error():
    for layer in (fd.layers.Dropout, fd.layers.TargetedDropout, fd.layers.Zoneout):
        with pytest.raises(TypeError, match="p must be a real number"):
            layer(None)


def test_out_where_there_is_none():
    layer = fd.layers.Zoneout(0.5, rng=1)
    layer(np.ones(3), np.ones(3))
    with pytest.raises(TypeError, match="out is not taken by the backward pass of Zoneout"):
        layer.backward(np.ones(3), out=np.ones(3))


EVERY = {
    "DropConnect": (lambda: fd.layers.DropConnect(4, 4, rng=1), 1),
    "BiasDropoutAdd": (lambda: fd.layers.BiasDropoutAdd(rng=1), 3),
    "BiasGeluDropout": (lambda: fd.layers.BiasGeluDropout(rng=1), "bias"),
    "BiasReluDropout": (lambda: fd.layers.BiasReluDropout(rng=1), "bias"),
    "DropoutAdd": (lambda: fd.layers.DropoutAdd(rng=1), 2),
    "EmbeddingDropout": (lambda: fd.layers.EmbeddingDropout(np.ones((8, 4)), rng=1), 0),
    "LockedDropout": (lambda: fd.layers.LockedDropout(time_axis=1, rng=1), 1),
    "GaussianNoise": (lambda: fd.layers.GaussianNoise(0.5, rng=1), 1),
    "SparseVariationalLinear": (
        lambda: fd.layers.SparseVariationalLinear(4, 4, dtype=float, rng=1),
        1,
    ),
    "Zoneout": (lambda: fd.layers.Zoneout(rng=1), 2),
}


def operands(x, inputs):
    """x, bias and residual; x and bias; or all alike."""
    bias = x[(0,) * (x.ndim - 1)]
    return {3: [x, bias, x], "bias": [x, bias]}.get(inputs) or [x] * inputs


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_every_layer(name):
    """One road: call, backward, copies, evaluation that draws nothing."""
    make, inputs = EVERY.get(name, (lambda: getattr(fd.layers, name)(rng=1), 1))
    layer = make()
    shape = (2, 4, 8, 8) if "Feature" in name or name in ("SpatialDropout", "DropBlock") else (6, 4)
    x = np.random.default_rng(0).standard_normal(shape)
    given = operands(x, inputs) or [np.arange(6)]
    if name == "DropConnect":
        given = [x.astype(np.float32)]
    with pytest.raises(RuntimeError, match="forward call"):
        layer.backward(x)
    call = layer.rng.call
    y = layer(*given)
    assert (layer.rng.call, layer.step) == (call + 1, 1)
    layer.backward(y)
    assert list(layer.gradients) == list(layer.learned) == list(layer.parameters)
    saved, other = pickle.dumps(layer), copy.deepcopy(layer)
    assert_same_bits(pickle.loads(saved)(*given), pickle.loads(saved)(*given))
    assert other.rng.state not in (layer.rng.state, copy.deepcopy(layer).rng.state)
    assert other.rng.state == copy.deepcopy(pickle.loads(saved)).rng.state
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        pickle.loads(pickle.dumps(layer.ctx, protocol))
    call = layer.rng.call
    assert layer.eval() is layer
    assert_same_bits(layer(*given), layer(*given))
    assert (layer.rng.call, layer.step) == (call, 1)


def test_copies_draw_other_masks():
    """With a seed, the same others each time; layers that share an `Rng` still do in a copy."""
    x = np.ones(300, np.float32)
    for seed in (None, 3):
        layers = [fd.layers.Dropout(0.5, rng=seed)]
        layers += [copy.deepcopy(layers[0]) for _ in range(3)] + [copy.copy(layers[0])]
        layers.append(copy.deepcopy(layers[1]))
        assert len({layer(x).tobytes() for layer in layers}) == len(layers)
    (a, b), (c, _) = (copy.deepcopy([fd.layers.Dropout(0.5, rng=3)] * 2) for _ in range(2))
    assert a is b
    assert_same_bits(a(x), c(x))
    rng = fd.Rng(3)
    model = [fd.layers.Dropout(0.5, rng=rng), fd.layers.Dropout(0.5, rng=rng)]
    first, second = copy.deepcopy(model)
    assert first.rng is second.rng is not rng
    assert first.rng.state == rng.state


def test_a_shallow_copy_has_calls_of_its_own():
    x = np.ones(300, np.float32)
    layer = fd.layers.Dropout(0.5, rng=1)
    y = layer(x)
    other = copy.copy(layer)
    with pytest.raises(RuntimeError, match="forward call"):
        other.backward(x)
    assert (other(x) != y).any()
    assert_same_bits(layer.backward(x), y)


@pytest.mark.parametrize("name", ["DropConnect", "SparseVariationalLinear"])
def test_inputs_that_contexts_hold_do_not_pile_up(name, monkeypatch):
    """What was not gone back through; parameters do not count."""
    layer = getattr(fd.layers, name)(8, 2, rng=1)
    dtype = next(iter(layer.parameters.values())).dtype
    calls = layer._calls[True]
    monkeypatch.setattr(type(calls), "BYTES", 1 << 16)
    alive = []
    for _ in range(30):
        x = np.ones((512, 8), dtype)
        layer(x)
        alive.append(weakref.ref(x))
    del x
    assert sum(a() is not None for a in alive) * 512 * 8 * dtype.itemsize <= 1 << 16
    layer.backward(np.ones((512, 2), dtype))


def test_search_belongs_to_the_latest_call_in_its_mode():
    x, g = np.ones((3, 100), np.float32), np.linspace(-1, 1, 300, dtype=np.float32).reshape(3, -1)
    layer, same = (fd.layers.AdversarialDropout(0.3, p=0.5, rng=1) for _ in range(2))
    layer(x)
    layer.eval()(2 * x)
    layer.train().forward(3 * x)
    same(x)
    assert_same_bits(layer.search(g), same.search(g))
    layer.forget()
    with pytest.raises(RuntimeError, match="search needs a forward call"):
        layer.search(g)


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_calls_are_undone_in_reverse_order(name):
    """As in a network that uses a layer twice; a pass in evaluation mode between is none of it."""
    make, inputs = EVERY.get(name, (lambda: getattr(fd.layers, name)(rng=1), 1))
    layer, same = make(), make()
    shape = (2, 4, 8, 8) if "Feature" in name or name in ("SpatialDropout", "DropBlock") else (6, 4)
    generator = np.random.default_rng(0)
    calls = [generator.standard_normal(shape, np.float32) for _ in range(3)]
    if name != "DropConnect":
        calls = [x.astype(np.float64) for x in calls]
    given = [operands(x, inputs) or [np.arange(k + 3)] for k, x in enumerate(calls)]
    outcomes = [same.forward(*g) for g in given]
    ys = [layer(*g) for g in given]
    layer.eval()
    layer(*given[0])
    layer.train()
    for y, (expected, ctx) in reversed(list(zip(ys, outcomes, strict=True))):
        assert_same_bits(y, expected)
        dy = np.ones_like(y)
        found, wanted = layer.backward(dy), ctx.backward(dy)
        found = found if isinstance(found, tuple) else (found,)
        learned = [layer.gradients[key] for key in layer.learned]
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        found = [*(a for a in found if a is not None), *learned]
        for a, b in zip(found, wanted, strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b))
    assert same.step == layer.step == 3
    for again in (layer, same):
        with pytest.raises(RuntimeError, match=r"layer\.forward\(x\)|in the other mode"):
            again.backward(ys[0])


def test_calls_of_the_other_mode():
    layer, x = fd.layers.Dropout(0.5, rng=0), np.ones((3, 4))
    y = layer(x)
    layer.eval()
    with pytest.raises(RuntimeError, match="in evaluation mode; there was one in the other mode"):
        layer.backward(x)
    layer(x)
    assert_same_bits(layer.backward(x), x)
    with pytest.raises(RuntimeError, match="in evaluation mode; there was one in the other mode"):
        layer.backward(x)
    assert_same_bits(layer.train().backward(x), y)


def test_a_backward_pass_that_fails_undoes_nothing():
    layer, x = fd.layers.Dropout(0.5, rng=0), np.ones((3, 4))
    y = layer(x)
    for wrong in (x[:2], "x", x.astype(int)):
        with pytest.raises((TypeError, ValueError)):
            layer.backward(wrong)
    assert_same_bits(layer.backward(x), y)


def test_calls_that_are_never_undone_are_forgotten(monkeypatch):
    layer, x = fd.layers.Dropout(0.5, rng=0), np.ones(64)
    for _ in range(Calls.MOST + 5):
        y = layer(x)
    assert len(layer._calls[True].stack) == Calls.MOST
    assert_same_bits(layer.backward(x), y)
    for _ in range(Calls.MOST - 1):
        layer.backward(x)
    with pytest.raises(RuntimeError, match="what earlier ones left was forgotten"):
        layer.backward(x)
    monkeypatch.setattr(Calls, "BYTES", 100)
    layer.forget()
    for _ in range(50):
        y = layer(x)
    assert layer._calls[True].nbytes <= 100
    assert len(layer._calls[True].stack) == 100 // 8
    large = np.ones(10_000)
    y = layer(large)
    assert_same_bits(layer.backward(large), y)  # the last is kept, whatever it holds
    layer.eval()
    for _ in range(5):
        layer(x)
    assert len(layer._calls[False].stack) == 1


def test_copies_after_a_pickle_are_others():
    """The pickle knows how many copies there are, and copies of what it holds go on from there."""
    layer = fd.layers.Dropout(0.5, rng=1)
    before = [copy.deepcopy(layer) for _ in range(3)]
    loaded = pickle.loads(pickle.dumps(layer))
    after = [copy.deepcopy(loaded) for _ in range(3)]
    masks = [each(np.ones(256)).tobytes() for each in (*before, *after, layer)]
    assert len({*masks}) == 7
    nested = [copy.deepcopy(before[0]), copy.deepcopy(copy.deepcopy(before[0]))]
    assert len({each.rng.seed for each in (*before, *nested)}) == 5


def test_a_pickle_of_layers_that_share_an_rng():
    """They still do, if it is one pickle; one by one each has the state as it was."""
    rng = fd.Rng(1)
    pair = [fd.layers.Dropout(0.5, rng=rng), fd.layers.Dropout(0.5, rng=rng)]
    first, second = pickle.loads(pickle.dumps(pair))
    assert first.rng is second.rng is not rng
    alone = [pickle.loads(pickle.dumps(layer)) for layer in pair]
    assert alone[0].rng.state == alone[1].rng.state == rng.state


def test_contexts_of_other_makers():
    """A layer of somebody else may have contexts without nbytes."""

    class Bare:
        def backward(self, dy):
            return 2 * dy

    class Doubling(fd.layers.Layer):
        def _forward(self, x):
            return 2 * x, Bare()

    layer = Doubling()
    layer(np.ones(3))
    assert (layer.backward(np.ones(3)) == 2).all()
    with pytest.raises(RuntimeError, match="each call is undone once"):
        layer.backward(np.ones(3))

    class Failing(Bare):
        @property
        def nbytes(self):
            raise ZeroDivisionError

    layer._forward = lambda x: (x, Failing())
    with pytest.raises(ZeroDivisionError):
        layer(np.ones(3))
    with pytest.raises(RuntimeError):  # nothing was left on the stack
        layer.backward(np.ones(3))
