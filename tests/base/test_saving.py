"""`fastdrop.layers.state`: a run of one's own goes on, bit for bit."""

import io
import json

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.layer_kinds import NAMES

import fastdrop as fd

X = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
SIZED = {
    "DropConnect": (8, 8),
    "EmbeddingDropout": (X,),
    "GaussianNoise": (0.5,),
    "SparseVariationalLinear": (8, 8),
    "VariationalDropout": ((8,),),
}
INPUTS = {"Zoneout": [X, X], "DropoutAdd": [X, X], "BiasDropoutAdd": [X, X[0], X]}
INPUTS |= {"BiasReluDropout": [X, X[0]], "BiasGeluDropout": [X, X[0]]}
INPUTS |= {"EmbeddingDropout": [[1, 3]], "LockedDropout": [X[None]]}
for maps in ("SpatialDropout", "FeatureAlphaDropout", "DropBlock"):
    INPUTS[maps] = [X.reshape(1, 3, 4, 4)]


def made(name, rng):
    sizes = (s.copy() if isinstance(s, np.ndarray) else s for s in SIZED.get(name, ()))
    return getattr(fd.layers, name)(*sizes, rng=rng)


def stepped(name, layer):
    """A step of a training: call, backward, and what an optimiser does."""
    y = layer(*INPUTS.get(name, [X]))
    layer.backward(y)
    for parameter, value in layer.parameters.items():
        value -= np.asarray(0.01 * layer.gradients[parameter], value.dtype)
    return y


def through_files(info, arrays):
    file = io.BytesIO()
    np.savez(file, info=json.dumps(info), **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as found:
        return json.loads(str(found["info"])), dict(found)


@pytest.mark.parametrize("seed", [7, None, "generator", "MT19937"])
@pytest.mark.parametrize("name", NAMES)
def test_a_layer_goes_on(name, seed):
    def numbers(k):
        if seed == "MT19937":
            return np.random.Generator(np.random.MT19937(k))
        return np.random.default_rng(k) if seed == "generator" else seed and k

    first, other = made(name, numbers(7)), made(name, numbers(8))
    stepped(name, first)
    fd.layers.load_state(other, *through_files(*fd.layers.state(first)))
    assert (other.step, list(other.parameters)) == (first.step, list(first.parameters))
    for _ in range(3):
        assert_same_bits(stepped(name, other), stepped(name, first))
    for a, b in zip(first.parameters.values(), other.parameters.values(), strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))
    assert fd.layers.state(first)[0] == fd.layers.state(other)[0]


def network(seed):
    rng = fd.Rng(seed)
    return {
        "first": fd.layers.Dropout(fd.schedules.curriculum(0.5, 0.1), rng=rng),
        "second": fd.layers.ConcreteDropout(0.2, rng=rng),
        "own": fd.layers.Dropout(0.5, rng=seed),
    }


def test_a_model_whose_layers_share():
    a, b = network(1), network(2)
    for layer in a.values():
        layer(X)
    a["own"].eval()
    logit = b["second"].logit
    fd.layers.load_state(b, *through_files(*fd.layers.state(a)))
    assert b["first"].rng is b["second"].rng
    assert not b["own"].training
    assert b["second"].logit is logit
    for _ in range(2):
        for name in a:
            assert_same_bits(a[name](X), b[name](X))


def test_what_was_not_seeded_stays_so():
    a, b = fd.layers.Dropout(), fd.layers.Dropout(rng=1)
    fd.layers.load_state([b], *fd.layers.state([a]))
    assert (b.rng.seed, b.rng.seeded) == (a.rng.seed, False)


def test_copies_go_on_from_where_they_were():
    from copy import copy, deepcopy

    a, b = fd.layers.Dropout(rng=1), fd.layers.Dropout(rng=2)
    deepcopy(a)
    fd.layers.load_state(b, *through_files(*fd.layers.state(a)))
    assert deepcopy(a).rng.seed == deepcopy(b).rng.seed
    assert copy(a).rng is a.rng


def test_bfloat16_and_arrays_that_do_not_change():
    weight = X.astype(ml_dtypes.bfloat16)
    a, b = (fd.layers.EmbeddingDropout(w, rng=1) for w in (weight, weight * 0))
    b.weight.flags.writeable = False
    fd.layers.load_state(b, *through_files(*fd.layers.state(a)))
    assert_same_bits(b.weight, weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda info, arrays: info.pop("rngs"), "info must be what state returned"),
        (lambda info, arrays: info.update(version=2), "info must be of version 1, got 2"),
        (lambda info, arrays: info["layers"]["own"].update(step=-1), "step must be"),
        (lambda info, arrays: info["layers"]["own"].update(training="yes"), "training must be"),
        (lambda info, arrays: info["layers"]["own"].update(kind="Zoneout"), "layers must be those"),
        (lambda info, arrays: info["layers"].pop("own"), "layers must be those"),
        (lambda info, arrays: info["layers"]["own"].update(rng=0), "layers must share their rng"),
        (lambda info, arrays: info["rngs"][0]["state"].update(seed=-1), "seed must be"),
        (lambda info, arrays: info["rngs"][0]["state"].update(stream_version=9), "stream_version"),
        (lambda info, arrays: info["rngs"][1].update(kind="PCG64"), "layers must draw from PCG64"),
        (lambda info, arrays: info["rngs"][1].update(copies=2**64), "random numbers"),
        (lambda info, arrays: info["rngs"].pop(), "info must have"),
        (lambda info, arrays: arrays.clear(), "arrays must have second.logit"),
        (
            lambda info, arrays: arrays.update({"second.logit": np.ones(2)}),
            "second.logit must have shape",
        ),
        (
            lambda info, arrays: arrays.update({"second.logit": np.ones((), "f4")}),
            "second.logit must have dtype",
        ),
    ],
)
def test_what_is_refused_changes_nothing(change, words):
    a, b = network(1), network(2)
    for layer in a.values():
        layer(X)
    info, arrays = fd.layers.state(a)
    change(info, arrays)
    before, parameters = fd.layers.state(b)
    with pytest.raises((TypeError, ValueError), match=words):
        fd.layers.load_state(b, info, arrays)
    after, same = fd.layers.state(b)
    assert before == after
    assert_same_bits(parameters["second.logit"], same["second.logit"])


def test_layers_of_another_kind():
    for wrong in (3, [3], {"a": 3}, {3: fd.layers.Dropout()}, None):
        with pytest.raises(TypeError, match="layers must be"):
            fd.layers.state(wrong)
    with pytest.raises((TypeError, ValueError), match="info must be"):
        fd.layers.load_state(fd.layers.Dropout(), None, {})


def test_the_state_of_one_layer():
    """A property that can be read and assigned, as that of `Rng`."""
    layer, other = made("ConcreteDropout", 1), made("ConcreteDropout", 2)
    stepped("ConcreteDropout", layer)
    info, arrays = layer.state
    assert (info, list(arrays)) == (fd.layers.state(layer)[0], list(fd.layers.state(layer)[1]))
    other.state = info, arrays
    np.testing.assert_array_equal(layer(X), other(X))
    for wrong in ((info,), info, None):
        with pytest.raises(TypeError, match="state must be the tuple"):
            other.state = wrong
    layer.training = np.True_
    assert json.dumps(layer.state[0])
    layer.step = 1.5
    with pytest.raises(TypeError, match="step must be an int"):
        fd.layers.state(layer)
