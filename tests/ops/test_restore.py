"""Pickles of contexts: loaded, the same gradients; tampered with, refused."""

import pickle
from contextlib import suppress

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop._core import Draw, Place
from fastdrop.base import gate
from fastdrop.ops.context import fields

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
    "variational_dropout, rows": lambda **mode: fd.variational_dropout(
        X, X[0, 0, 0], rows=[7, 0, 7, 2], shared_axes=(2,), **mode
    ),
    "sparse": lambda **mode: fd.sparse_variational_linear(X, W, W - 4, BIAS, **mode),
    "sparse, region": lambda **mode: fd.sparse_variational_linear(
        X, W, W - 4, BIAS, region=((1, 0, 2, 0), (9, 3, 9, 7)), **mode
    ),
    "embedding_dropout": lambda **mode: fd.embedding_dropout(W, 0.3, ids=[1, 5, 1], **mode),
    "zoneout": lambda **mode: fd.zoneout(X, X + 1, 0.3, **mode),
    "adversarial_dropout": lambda **mode: fd.adversarial_dropout(X, X, 0.1, 0.2, **mode),
    "adversarial_dropout, rows": lambda **mode: fd.adversarial_dropout(
        X, X, 0.1, 0.2, rows=[7, 0, 7, 2], **mode
    ),
    "targeted_dropout": lambda **mode: fd.targeted_dropout(W, **mode),
    "targeted_dropout, region": lambda **mode: fd.targeted_dropout(
        W, region=((0, 2), (6, 9)), **mode
    ),
    "softmax_dropout": lambda **mode: fd.softmax_dropout(X, causal=True, **mode),
    "alpha_dropout": lambda **mode: fd.alpha_dropout(X, 0.2, **mode),
    "bias_dropout_add": lambda **mode: fd.bias_dropout_add(X, X[0, 0, 0], X, **mode),
    "relu_dropout": lambda **mode: fd.relu_dropout(X, **mode),
    "bias_relu_dropout": lambda **mode: fd.bias_relu_dropout(X, X[0, 0, 0], **mode),
    "bias_gelu_dropout": lambda **mode: fd.bias_gelu_dropout(X, X[0, 0, 0], **mode),
}


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
    kind, values = ctx.__reduce__()
    return kind(*(changes.get(n, v) for n, v in zip(fields(kind), values, strict=True)))


BAD = [5, -1, 2.0, None, "x", (1, 2), b"ab", 2**70, object, np.nan]
BAD += [np.zeros(3, np.int32), np.zeros((2, 2)), np.zeros((0, 6), np.float32), (2**40, 2**40)]
BAD += [Draw(1, 2, 0.5, Place((4, 3, 6, 7))), Place((4,)), True]


def works_or_is_refused(make, y):
    """Whether it is refused; or else it is one that an op could have made, and works."""
    try:
        loaded = make()
    except (TypeError, ValueError, IndexError, OverflowError):
        return True
    # dy of another shape, or a mask that no machine could hold
    with suppress(ValueError, TypeError, IndexError, MemoryError, OverflowError):
        gradients(loaded, y)
    return False


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OPS)
def test_each_field_tampered_with(name, training):
    y, ctx = OPS[name](rng=1, training=training)
    names = fields(type(ctx))
    refused = sum(
        works_or_is_refused(lambda field=field, bad=bad: load(ctx, **{field: bad}), y)
        for field in names
        for bad in BAD
    )
    assert refused >= len(names) * len(BAD) / 2


class Say:
    """Pickles as whatever it is told."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("name", OPS)
def test_states_behind_the_constructor(name):
    """What pickle's BUILD would set after the checks is not taken."""
    _, ctx = OPS[name](rng=1)
    kind, values = ctx.__reduce__()
    for state in ({"held": b""}, (None, {"held": b"\xff" * 40}), [1, 2], (None, {"shape": (1,)})):
        with pytest.raises((AttributeError, TypeError, pickle.UnpicklingError)):
            pickle.loads(pickle.dumps(Say(kind, values, state)))
    for part in (ctx.draw, ctx.draw.place):
        state = None, {"shape": (1,) * 4000, "strides": (1,) * 4000, "is_run": False, "start": 5}
        with pytest.raises((AttributeError, TypeError, pickle.UnpicklingError)):
            pickle.loads(pickle.dumps(Say(*part.__reduce__(), state)))


class Other(np.ndarray):
    """A subclass, which contexts hold as a plain array."""


class Later:
    """Pickles as a value, and then a state for an array that the value holds, in one pickle."""

    def __init__(self, value, array, state):
        self.value, self.array, self.state = value, array, state

    def __reduce__(self):
        return _first, (self.value, Say(_same, (self.array,), self.state))


def _first(value, _):
    return value


def _same(array):
    return array


@pytest.mark.parametrize("name", OPS)
def test_arrays_that_change_after_the_checks(name):
    """A pickle gives an array that a context holds another shape and other memory: an error, or
    the context has its own. Never what lies where the old memory was.
    """
    y, ctx = OPS[name](rng=1)
    kind, values = ctx.__reduce__()
    expected = gradients(ctx, y)
    states = [np.zeros(n, t).__reduce__()[2] for n in (0, 1, 7, 4096) for t in ("f4", "f8", "?")]
    for i, value in enumerate(values):
        for array in (value, value.copy().view(Other)) if isinstance(value, np.ndarray) else ():
            changed = (*values[:i], array, *values[i + 1 :])
            for state in states:
                with suppress(ValueError, TypeError, IndexError), np.errstate(all="ignore"):
                    loaded = pickle.loads(pickle.dumps(Later(Say(kind, changed), array, state)))
                    for a, b in zip(gradients(loaded, y), expected, strict=True):
                        if type(array) is Other:
                            assert_same_bits(np.asarray(a), np.asarray(b))


def test_a_context_holds_no_view():
    for name in ("adversarial_dropout", "dropconnect", "variational_dropout"):
        kind, values = OPS[name](rng=1)[1].__reduce__()
        loaded = kind(*(v.view(Other) if isinstance(v, np.ndarray) else v for v in values))
        arrays = [getattr(loaded, field) for field in fields(kind)]
        arrays = [array for array in arrays if isinstance(array, np.ndarray)]
        assert arrays
        assert all(type(array) is np.ndarray and array.base is None for array in arrays)


def certain(draw):
    return Draw(draw.seed, draw.call, 1.0, draw.place)


def replaced(bits):
    return Draw(1, 2, 0.3, Place((4, 3, 6, 6), (), bits))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("drop_block", lambda c: {"held": c.held[:-1]}, "bits must be"),
        ("drop_block", lambda c: {"held": bytearray(c.held)}, "bits must be"),
        ("drop_block", lambda c: {"shape": (4, 3, 60, 6)}, "draw must be for shape"),
        ("drop_block", lambda c: {"shape": (4, 3)}, "x must have a batch axis"),
        (
            "drop_block",
            lambda c: {"draw": replaced(((0, 1, 0, 0), (4, 9, 6, 6)))},
            "region must hold all of axis 1",
        ),
        ("drop_block", lambda c: {"block_size": 0}, "block_size must be at least 1"),
        ("drop_block", lambda c: {"per_channel": 1}, "per_channel must be a bool"),
        ("dropconnect", lambda c: {"weight": W[:-1]}, "weight must have shape"),
        ("dropconnect", lambda c: {"weight": W.astype(float)}, "weight must have dtype"),
        ("dropconnect", lambda c: {"bias": BIAS[1:]}, "bias must have shape"),
        ("dropconnect", lambda c: {"first": -1}, "first must be at least 0"),
        ("dropconnect", lambda c: {"first": 2**62}, "first must leave room"),
        ("dropconnect", lambda c: {"draw": None}, "draw must be there"),
        ("dropconnect, gaussian", lambda c: {"draw": certain(c.draw)}, "p must be below 1"),
        ("sparse", lambda c: {"held": c.held.tolist()}, "deviation must be an array"),
        ("embedding_dropout", lambda c: {"held": np.array([1, 6])}, "ids must be in 0 ... 5"),
        ("embedding_dropout", lambda c: {"held": np.array([-1])}, "ids must be in 0 ... 5"),
        ("gaussian_dropout", lambda c: {"shape": (4, 3, 6, 7)}, "draw must be for shape"),
        ("gaussian_dropout", lambda c: {"draw": 3}, "draw must be a Draw"),
        ("gaussian_dropout", lambda c: {"sigma": np.ones(7)}, "sigma must have shape"),
        ("gaussian_dropout", lambda c: {"draw": None}, "draw must be there"),
        ("concrete_dropout", lambda c: {"relaxed": (1, 2, 3)}, "relaxed must be four"),
        ("concrete_dropout", lambda c: {"x": X[1:]}, "x must have shape"),
        ("variational_dropout", lambda c: {"log_alpha": W}, "log_alpha must have shape"),
        ("sparse", lambda c: {"held": c.held[1:]}, "deviation must have shape"),
        ("sparse, region", lambda c: {"draw": Draw(1, 2, 0.0, Place((72, 6)))}, "draw must be for"),
        ("sparse", lambda c: {"log_variance": W[1:]}, "log_variance must have shape"),
        ("zoneout", lambda c: {"draw": None, "held": None}, "draw must be there"),
        ("relu_dropout", lambda c: {"held": None}, "bits must hold one"),
        ("bias_relu_dropout", lambda c: {"held": None}, "bits must hold one"),
        ("bias_gelu_dropout", lambda c: {"x": X[1:]}, "x must have shape"),
        ("bias_gelu_dropout", lambda c: {"bias": X[0, 0, 0, 1:]}, "bias must have shape"),
        ("bias_gelu_dropout", lambda c: {"bias": None}, "bias must be"),
        ("adversarial_dropout", lambda c: {"scales": c.scales[1:]}, "scales must have shape"),
        ("adversarial_dropout", lambda c: {"changed": c.changed[:2]}, "changed must have shape"),
    ],
)
def test_refused(name, change, words):
    _, ctx = OPS[name](rng=1)
    with pytest.raises((TypeError, ValueError, IndexError), match=words.replace("...", r"\.\.\.")):
        load(ctx, **change(ctx))


def test_a_place_is_built_again():
    place = gate.place((3, 4), (0,), ((1, 2), (9, 9)))
    loaded = pickle.loads(pickle.dumps(place))
    assert (loaded.shape, loaded.start, loaded.strides) == ((1, 4), 2, (9, 1))
    assert (loaded.of, loaded.shared_axes, loaded.region) == ((3, 4), (0,), ((1, 2), (9, 9)))
