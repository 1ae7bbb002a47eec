"""thinc: the ops behind its layers, and ours."""

import copy
import doctest
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

pytest.importorskip("thinc")
from thinc.api import (
    HashEmbed,
    Linear,
    NumpyOps,
    Padded,
    Ragged,
    Relu,
    chain,
    clone,
    fix_random_seed,
    get_ops,
    registry,
    set_dropout_rate,
    use_ops,
)

from fastdrop.adapters import thinc as adapter
from fastdrop.adapters.thinc import Dropout, DropoutMixin, FastdropOps

x = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
lengths = np.array([10, 25, 5], "i")
ragged = Ragged(x, lengths)
padded = Padded(
    x.reshape(4, 10, 30), np.full(4, 10, "i"), np.full(10, 4, "i"), np.arange(10, dtype="i")
)
several = [x[:10], x[10:35], x[35:]]


def test_example():
    pytest.importorskip("sklearn")
    failed, attempted = doctest.testmod(adapter)
    assert attempted > 5
    assert not failed


# The ops


@pytest.mark.parametrize("drop", [None, -1, 0, 0.2, 0.5, 1, 2])
def test_mask(drop):
    mask = FastdropOps(rng=3).get_dropout_mask((7, 30), drop)
    p = min(max(drop or 0, 0), 1)
    assert_same_bits(mask, fd.dropout(np.ones((7, 30), np.float32), p, rng=3)[0])


def test_registered():
    ops = get_ops("fastdrop", rng=3)
    assert type(ops) is FastdropOps
    assert isinstance(ops, NumpyOps)
    assert (ops.device_type, ops.device_id) == ("cpu", -1)
    assert get_ops("numpy").name == get_ops("cpu").name == "numpy"  # thinc's default is its own
    with use_ops("fastdrop", rng=3):
        assert Linear(2, 2).ops.rng.seed == 3
    assert registry.ops.get("FastdropOps") is FastdropOps


def test_seeds():
    """An int: a run that repeats. None: what thinc's documents promise of fix_random_seed."""
    draw = lambda ops: [ops.get_dropout_mask((99,), 0.5).tolist() for _ in range(3)]  # noqa: E731
    first, again = draw(FastdropOps(rng=3)), draw(FastdropOps(rng=3))
    assert first == again
    assert first[0] != first[1] != first[2]
    ops = FastdropOps()
    fix_random_seed(1)
    first = draw(ops)
    fix_random_seed(1)
    assert draw(ops) == first
    assert draw(ops) != first
    rng = fd.Rng(3)
    draw(FastdropOps(rng=rng))
    assert rng.call == 3


def test_copies_of_ops_draw_other_masks():
    """Ops that run side by side, as copies of layers do; without a seed NumPy's state is shared."""
    ops = FastdropOps(rng=3)
    copies = [copy.deepcopy(ops), copy.deepcopy(ops), ops]
    assert len({each.get_dropout_mask((256,), 0.5).tobytes() for each in copies}) == 3
    again = FastdropOps(rng=3)
    assert copy.deepcopy(again).rng.state == copy.deepcopy(FastdropOps(rng=3)).rng.state
    mask = again.get_dropout_mask((256,), 0.5)
    assert_same_bits(mask, copies[-1].__class__(rng=3).get_dropout_mask((256,), 0.5))


def test_mixin_with_other_ops():
    class Loud(NumpyOps):
        name = "loud"

        def __init__(self, word, **more):
            super().__init__(**more)
            self.word = word

    class Both(DropoutMixin, Loud):
        pass

    ops = Both("hear", rng=3, use_blis=False)
    assert (ops.word, ops.use_blis) == ("hear", False)
    assert_same_bits(
        ops.get_dropout_mask((99,), 0.5), FastdropOps(rng=3).get_dropout_mask((99,), 0.5)
    )


class Predicting(FastdropOps):
    def get_dropout_mask(self, shape, drop):
        raise AssertionError("a mask was drawn in prediction")


@pytest.mark.parametrize("name", ["Relu.v1", "Maxout.v1", "Mish.v1", "Gelu.v1", "HardSwish.v1"])
def test_thincs_layers_take_masks_from_the_ops(name):
    with use_ops("fastdrop", rng=3):
        model = registry.resolve({"m": {"@layers": name, "nO": 20, "dropout": 0.5}})["m"]
    model.initialize(x)
    y, backprop = model(x, is_train=True)
    mask = FastdropOps(rng=3).get_dropout_mask(y.shape, 0.5)
    plain = model.predict(x)
    np.testing.assert_allclose(y, plain * mask, rtol=1e-6)
    assert np.isfinite(backprop(y)).all()
    for node in model.walk():
        node.ops = Predicting()
    assert_same_bits(model.predict(x), plain)


def test_embedding_drops_columns():
    with use_ops("fastdrop", rng=3):
        model = HashEmbed(nO=20, nV=50, dropout=0.5).initialize()
    y, _ = model(np.arange(9, dtype="uint64"), is_train=True)
    dropped = fd.keep_mask(20, 0.5, rng=3)
    np.testing.assert_array_equal((y != 0).any(axis=0), dropped)


def train(model, steps=30):
    t = x[:, :1] * x[:, 1:2] + x[:, 2:3]
    model.initialize(x, t)
    for _ in range(steps):
        y, backprop = model.begin_update(x)
        backprop((y - t) / len(t))
        for node in model.walk():
            for name in node.grad_names:
                node.set_param(name, node.get_param(name) - 0.1 * node.get_grad(name))
                node.set_grad(name, 0 * node.get_grad(name))
    return model, float(((model.predict(x) - t) ** 2).mean())


def test_an_existing_model_trains_unchanged():
    fix_random_seed(0)
    model = chain(Relu(nO=64, dropout=0.2), Linear(nO=1))
    _, before = train(model, 0)
    for node in model.walk():
        node.ops = FastdropOps(rng=3)
    _, after = train(model)
    assert after < before / 4
    reset = chain(Relu(nO=64, dropout=0.2), Linear(nO=1))
    reset.initialize(x, x[:, :1]).from_bytes(model.to_bytes())  # ops are no part of it
    assert_same_bits(reset.predict(x), model.predict(x))


# The layer


@pytest.mark.parametrize("X", [x, x.astype(np.float64), ragged, padded, several, []])
def test_layer(X):
    model = Dropout(0.2, rng=3)
    model.initialize(X, X)
    Y, backprop = model(X, is_train=True)
    dX = backprop(X)
    assert type(Y) is type(dX) is type(X)
    rng = fd.Rng(3)
    for a, y, dx in zip(arrays(X), arrays(Y), arrays(dX), strict=True):
        expected, ctx = fd.dropout(a, 0.2, rng=rng)
        assert_same_bits(y, expected)
        assert_same_bits(dx, ctx.backward(a))
    for name in ("lengths", "size_at_t", "indices"):
        assert getattr(Y, name, None) is getattr(dX, name, None) is getattr(X, name, None)


def arrays(X):
    if isinstance(X, Ragged | Padded):
        return [X.data]
    return X if isinstance(X, list) else [X]


@pytest.mark.parametrize("X", [x, ragged, padded, several])
def test_prediction_and_disabled(X):
    model = Dropout(0.2, rng=3)
    assert model.predict(X) is X
    model.attrs["is_enabled"] = False
    Y, backprop = model(X, is_train=True)
    assert Y is X
    assert backprop(X) is X
    assert model.attrs["rng"].call == 0


def test_rates():
    model = chain(Linear(5), Dropout(rng=3))
    model.initialize(x)
    plain = model.predict(x)
    for rate in (0, 1):
        set_dropout_rate(model, rate)
        y, backprop = model.begin_update(x)
        np.testing.assert_array_equal(y, plain * (1 - rate))
        assert (backprop(np.ones_like(y)) != 0).any() == (rate == 0)
    set_dropout_rate(model, 1.5)
    with pytest.raises(ValueError, match="p must be in"):
        model.begin_update(x)


def test_saved_and_copied_with_the_model():
    """What comes next is the same in one that was loaded; copies draw other masks."""
    model = chain(Linear(5, 30), Dropout(0.5, rng=3)).initialize()
    model.begin_update(x)
    data = model.to_bytes()
    copies, expected = [model.copy(), model.copy()], model.begin_update(x)[0]
    masks = [m.begin_update(x)[0] == 0 for m in copies] + [expected == 0]
    assert len({mask.tobytes() for mask in masks}) == 3
    loaded = chain(Linear(5, 30), Dropout(0.1, rng=2)).initialize()
    loaded.from_bytes(data)
    assert loaded.layers[1].attrs["dropout_rate"] == 0.5
    assert_same_bits(loaded.begin_update(x)[0], expected)
    assert loaded.can_from_bytes(data, strict=False)
    top = chain(Linear(5, 30), Dropout(0.5, rng=2**64 - 1)).initialize()
    assert top.from_bytes(top.to_bytes()).layers[1].attrs["rng"].seed == 2**64 - 1


@pytest.mark.parametrize("rng", [None, 3])
def test_clones_draw_other_masks(rng):
    fix_random_seed(0)
    model = clone(Dropout(0.5, rng=rng), 3)
    seeds = [node.attrs["rng"].seed for node in model.walk() if node.name == "dropout"]
    fix_random_seed(0)
    again = clone(Dropout(0.5, rng=rng), 3)
    assert len(set(seeds)) == 3
    assert seeds == [node.attrs["rng"].seed for node in again.walk() if node.name == "dropout"]


def test_from_config():
    config = {"m": {"@layers": "fastdrop.Dropout.v1", "rate": 0.2, "rng": 3}}
    assert registry.fill(config) == config
    y, _ = registry.resolve(config)["m"](x, is_train=True)
    assert_same_bits(y, fd.dropout(x, 0.2, rng=3)[0])


def test_layers_have_seeds_of_their_own():
    rng = fd.Rng(3)
    seeds = [Dropout(0.2, rng=r).attrs["rng"].seed for r in (rng, rng, None, None)]
    assert len(set(seeds)) == 4
    assert rng.call == 2
    fix_random_seed(1)
    first = Dropout(0.2).attrs["rng"]
    fix_random_seed(1)
    assert Dropout(0.2).attrs["rng"].state == first.state


def test_layer_trains():
    fix_random_seed(0)
    make = lambda: chain(Linear(nO=64), Dropout(0.2), Linear(nO=1))  # noqa: E731
    assert train(make())[1] < train(make(), 0)[1] / 2


MASKS = """
import atexit
import fastdrop.adapters.thinc as adapter
from thinc.api import get_ops, set_current_ops

set_current_ops(get_ops("fastdrop"))
drawn, drop = [], adapter.door.drop
adapter.door.drop = lambda *a, **more: drawn.append(a) or drop(*a, **more)
atexit.register(lambda: print("masks", len(drawn)))
"""
EXAMPLES = """
import random, spacy
from spacy.tokens import Doc, DocBin

words = {"a": "DET", "the": "DET", "fine": "ADJ", "sad": "ADJ", "film": "NOUN", "book": "NOUN"}
nlp, random = spacy.blank("en"), random.Random(0)
for name in ("train", "dev"):
    docs = DocBin()
    for _ in range(100):
        text = random.choices(list(words), k=5)
        docs.add(Doc(nlp.vocab, words=text, tags=[words[word] for word in text]))
    docs.to_disk(f"{name}.spacy")
"""


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("spacy"), reason="needs spaCy, which wants a thinc of its own")
def test_spacy_trains_with_these_masks(tmp_path):
    """As the module says: a tagger, by spaCy's command line."""
    (tmp_path / "masks.py").write_text(MASKS)

    def python(*command):
        command = [sys.executable, *command]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    python("-c", EXAMPLES)
    python("-m", "spacy", "init", "config", "base.cfg", "--pipeline", "tagger")
    how = "--paths.train train.spacy --paths.dev dev.spacy --training.max_steps 40 --code masks.py"
    said = python(
        "-m", "spacy", "train", "base.cfg", *how.split(), "--training.eval_frequency", "20"
    )
    assert int(said.split("masks ")[1].split()[0]) >= 40
    assert float(said.split(" 40 ")[1].split()[2]) > 90, said
