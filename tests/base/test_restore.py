"""Pickles of contexts: loaded, the same gradients; tampered with, refused."""

import pickle
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import _core
from fastdrop.base import gate
from fastdrop.base.restore import _restore
from fastdrop.ops.zoneout import ZoneoutMeanContext

X = np.random.default_rng(0).standard_normal((4, 3, 6, 6)).astype(np.float32)
W = np.ones((6, 5), np.float32)
BIAS = np.ones(5, np.float32)

OPS = {
    "drop_block": lambda **mode: fd.drop_block(X, 0.2, 3, **mode),
    "drop_block, seed": lambda **mode: fd.drop_block(X, 0.2, 3, save="seed", **mode),
    "dropconnect": lambda **mode: fd.dropconnect(X, W, None, 0.5, **mode),
    "dropconnect, batch": lambda **mode: fd.dropconnect(X, W, BIAS, 0.5, mode="batch", **mode),
    "dropconnect, gaussian": lambda **mode: fd.dropconnect(X, W, BIAS, mode="gaussian", **mode),
    "gaussian_dropout": lambda **mode: fd.gaussian_dropout(X, 0.3, shared_axes=(2,), **mode),
    "gaussian_noise": lambda **mode: fd.gaussian_noise(X, 0.3, **mode),
    "concrete_dropout": lambda **mode: fd.concrete_dropout(X, 0.3, **mode),
    "variational_dropout": lambda **mode: fd.variational_dropout(X, X[0, 0, 0], **mode),
    "sparse": lambda **mode: fd.sparse_variational_linear(X, W, W - 4, BIAS, **mode),
    "embedding_dropout": lambda **mode: fd.embedding_dropout(W, 0.3, ids=[1, 5, 1], **mode),
    "zoneout": lambda **mode: fd.zoneout(X, X + 1, 0.3, **mode),
    "adversarial_dropout": lambda **mode: fd.adversarial_dropout(X, X, 0.1, 0.2, **mode),
    "targeted_dropout": lambda **mode: fd.targeted_dropout(W, **mode),
    "alpha_dropout": lambda **mode: fd.alpha_dropout(X, 0.2, **mode),
    "bias_dropout_add": lambda **mode: fd.bias_dropout_add(X, X[0, 0, 0], X, **mode),
    "relu_dropout": lambda **mode: fd.relu_dropout(X, **mode),
}
CLASSES = [name for name in OPS if is_dataclass(OPS[name](rng=1)[1])]


def gradients(ctx, y):
    found = ctx.backward(y.copy())
    return found if type(found) is tuple else (found,)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_the_same_gradients(name, training):
    y, ctx = OPS[name](rng=1, training=training)
    loaded = pickle.loads(pickle.dumps(ctx))
    assert type(loaded) is type(ctx)
    for a, b in zip(gradients(ctx, y), gradients(loaded, y), strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))


def load(ctx, **changes):
    """What comes from the context's pickle if fields are changed in it."""
    restore, (kind, *values) = ctx.__reduce__()
    names = [f.name for f in fields(ctx)]
    return restore(kind, *(changes.get(n, v) for n, v in zip(names, values, strict=True)))


BAD = [5, -1, 2.0, None, "x", (1, 2), b"ab", 2**70, object, np.nan]
BAD += [np.zeros(3, np.int32), np.zeros((2, 2)), np.zeros((0, 6), np.float32), (2**40, 2**40)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CLASSES)
def test_each_field_tampered_with(name, training):
    """Refused when it is loaded; or else it is one that an op could have made, and works."""
    y, ctx = OPS[name](rng=1, training=training)
    refused = 0
    for field in fields(ctx):
        for bad in BAD:
            try:
                loaded = load(ctx, **{field.name: bad})
            except (TypeError, ValueError, IndexError):
                refused += 1
                continue
            # dy of another shape, or a mask that no machine could hold
            with suppress(ValueError, MemoryError, OverflowError):
                gradients(loaded, y)
    assert refused >= len(fields(ctx)) * len(BAD) / 2


def draw_of(ctx, **changes):
    return {"draw": load(ctx.draw, **changes)}


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("drop_block", lambda c: {"p": 5.0}, "p must be in"),
        ("drop_block", lambda c: {"bits": c.bits[:-1]}, "bits must be"),
        ("drop_block", lambda c: {"bits": bytearray(c.bits)}, "bits must be a bytes"),
        ("drop_block", lambda c: {"shape": (4, 3, 60, 6)}, "bits must be"),
        ("drop_block", lambda c: {"shape": (4, 3)}, "x must have a batch axis"),
        ("drop_block, seed", lambda c: {"seed": None}, "must have a seed"),
        ("dropconnect", lambda c: {"p": 2.0}, "p must be in"),
        ("dropconnect", lambda c: {"weight": W[:-1]}, "weight must have shape"),
        ("dropconnect", lambda c: {"weight": W.astype(float)}, "weight must have dtype"),
        ("dropconnect", lambda c: {"bias": BIAS[1:]}, "bias must have shape"),
        ("dropconnect", lambda c: {"first": -1}, "first must be at least 0"),
        ("embedding_dropout", lambda c: {"ids": np.array([1, 6])}, "ids must be in 0 ... 5"),
        ("embedding_dropout", lambda c: {"ids": np.array([-1])}, "ids must be in 0 ... 5"),
        ("gaussian_dropout", lambda c: {"shape": (4, 3, 6, 7)}, "draw must be for shape"),
        ("gaussian_dropout", lambda c: {"draw": 3}, "draw must be one of"),
        ("gaussian_dropout", lambda c: draw_of(c, op=_core.CONCRETE), "relaxed must be"),
        ("gaussian_dropout", lambda c: draw_of(c, op=99), "op must be"),
        ("gaussian_dropout", lambda c: draw_of(c, sigma=np.ones(7)), "sigma must have shape"),
        ("gaussian_dropout", lambda c: draw_of(c, sigma=None), "sigma must be"),
        ("gaussian_dropout", lambda c: draw_of(c, call=None), "must have a seed"),
        ("gaussian_dropout", lambda c: draw_of(c, block=(0, 1)), "block must be a Block"),
        ("concrete_dropout", lambda c: draw_of(c, relaxed=(1, 2, 3)), "relaxed must be four"),
        ("concrete_dropout", lambda c: {"x": X[1:]}, "draw must be for shape"),
        ("variational_dropout", lambda c: {"log_alpha": W}, "log_alpha must have shape"),
        ("sparse", lambda c: {"deviation": c.deviation[1:]}, "deviation must have shape"),
        ("sparse", lambda c: {"log_variance": W[1:]}, "log_variance must have shape"),
    ],
)
def test_refused(name, change, words):
    _, ctx = OPS[name](rng=1)
    with pytest.raises((TypeError, ValueError, IndexError), match=words.replace("...", r"\.\.\.")):
        load(ctx, **change(ctx))


def test_made_by_hand():
    """What goes by size is checked there, too."""
    _, ctx = OPS["drop_block"](rng=1)
    with pytest.raises(ValueError, match="bits must be"):
        replace(ctx, bits=ctx.bits[:-1])


def test_scales_of_an_adversarial_context():
    _, ctx = OPS["adversarial_dropout"](rng=1)
    for bad in ((ctx.scales[1:], ctx.changed), (ctx.scales, "x"), (ctx.scales, ctx.changed[:2])):
        with pytest.raises((TypeError, ValueError)):
            ctx.__setstate__(bad)


def test_other_classes_and_numbers_of_fields():
    with pytest.raises(TypeError, match="must be one of fastdrop's"):
        _restore(dict, 1)
    with pytest.raises(TypeError, match="must have 2 fields, got 1"):
        _restore(ZoneoutMeanContext, 1)


def test_a_block_is_built_again():
    block = gate.block((3, 4), (0,), ((1, 2), (9, 9)))
    block.start = block.strides = "tampered with"
    loaded = pickle.loads(pickle.dumps(block))
    assert (loaded.shape, loaded.start, loaded.strides) == ((1, 4), 2, (9, 1))
