"""What each public function raises: one table, which behaviour and docstrings must agree with.

Every argument of every public callable is replaced by hostile values, one after the other. Either
they are taken, or the error is of a kind in the table and names the argument.
"""

import contextlib
import inspect
import re
from importlib import import_module

import numpy as np
import pytest
from helpers.layer_kinds import NAMES as LAYER_NAMES

import fastdrop as fd
from fastdrop import layers, mc, schedules
from fastdrop.backends.cuda.backend import CUDA

KINDS = {"TypeError", "ValueError"}
AXES = KINDS | {"AxisError"}
GPU = {"RuntimeError"}  # an array on a GPU, where no kernel can run

RAISES = {
    "Context": KINDS,
    "Rng": KINDS,
    "adversarial_dropout": KINDS,
    "alpha_dropout": AXES | GPU,
    "bias_dropout_add": AXES | GPU,
    "bias_gelu_dropout": AXES | GPU,
    "bias_relu_dropout": AXES | GPU,
    "concrete_dropout": AXES | GPU,
    "concrete_regularizer": KINDS,
    "cpu_features": set(),
    "debug": {"TypeError"},
    "drop_block": KINDS | GPU,
    "drop_path": KINDS | GPU,
    "dropconnect": KINDS | GPU,
    "dropconnect_inference": KINDS,
    "dropout": AXES | GPU,
    "dropout_add": AXES | GPU,
    "embedding_dropout": KINDS | GPU | {"IndexError"},
    "feature_alpha_dropout": AXES | GPU,
    "gaussian_dropout": AXES | GPU,
    "gaussian_noise": AXES | GPU,
    "get_include": set(),
    "get_num_threads": set(),
    "keep_mask": AXES,
    "kl_divergence": KINDS,
    "locked_dropout": AXES | GPU,
    "relu_dropout": AXES | GPU,
    "set_num_threads": KINDS,
    "softmax_dropout": AXES,
    "sparse_variational_kl": KINDS,
    "sparse_variational_linear": KINDS,
    "spatial_dropout": AXES | GPU,
    "squared_divergence": KINDS,
    "targeted_dropout": KINDS,
    "targeted_prune": KINDS,
    "variational_dropout": AXES | GPU,
    "variational_kl": {"TypeError"},
    "zoneout": KINDS | GPU,
}

X = np.ones((3, 4, 6, 6), np.float32)
W = np.ones((6, 5), np.float32)
FLAT = np.ones((3, 6), np.float32)
DRAWS = {"rng": 1, "training": True}
ONE = {**DRAWS, "x": X, "p": 0.5, "region": ((0,) * 4, (3, 4, 6, 6)), "rows": None, "out": None}
AXIS = {**ONE, "shared_axes": (0,)}
BITS = {**AXIS, "save": "bits"}
OWN = {"mask": None}
DROP = {k: v for k, v in BITS.items() if k not in ("region", "rows")}
PLACE = {k: AXIS[k] for k in ("region", "rows")}
LINEAR = {"x": FLAT, "weight": W, "bias": np.ones(5, np.float32)}
GOOD = {
    "Rng": {"seed": 1, "call": 2},
    "adversarial_dropout": {**DRAWS, **PLACE, "x": X, "gradient": X, "delta": 0.1, "p": 0.5},
    "alpha_dropout": BITS,
    "bias_dropout_add": {**BITS, **OWN, "residual": X, "bias": X[0, 0, 0]},
    "bias_gelu_dropout": {**BITS, **OWN, "bias": X[0, 0, 0]},
    "bias_relu_dropout": {**AXIS, **OWN, "bias": X[0, 0, 0]},
    "concrete_dropout": {
        **{k: v for k, v in AXIS.items() if k not in ("out", "p")},
        **{"logit": 0.3, "temperature": 0.1},
    },
    "concrete_regularizer": {
        **{"logit": 0.3, "weight": W, "features": 6},
        **{"weight_regularizer": 1e-6, "dropout_regularizer": 1e-5},
    },
    "cpu_features": {},
    "debug": {"on": True},
    "drop_block": {
        **{k: v for k, v in BITS.items() if k not in ("shared_axes", "rows")},
        **{"block_size": 3, "channels_last": False, "per_channel": True},
    },
    "drop_path": {
        **{k: v for k, v in BITS.items() if k != "shared_axes"},
        **{"mode": "row", "scale_by_keep": True},
    },
    "dropconnect": {
        **DRAWS,
        **LINEAR,
        **{"p": 0.5, "mode": "example", "mask_bias": True, "first": 0},
    },
    "dropconnect_inference": {
        **LINEAR,
        **{"p": 0.5, "activation": np.tanh, "samples": 3, "rng": 1, "mask_bias": True},
    },
    "dropout": {**BITS, **OWN},
    "dropout_add": {**BITS, **OWN, "residual": X},
    "embedding_dropout": {**DRAWS, "weight": W, "p": 0.5, "ids": [0, 1]},
    "feature_alpha_dropout": {**BITS, "channels_last": False},
    "gaussian_dropout": AXIS,
    "gaussian_noise": {**{k: v for k, v in AXIS.items() if k != "p"}, "std": 0.5},
    "get_include": {},
    "get_num_threads": {},
    "keep_mask": {
        **{"shape": (3, 4), "p": 0.5, "rng": 1, "shared_axes": (0,)},
        **{"region": ((0, 0), (3, 4)), "rows": None, "at": None, "packed": False},
    },
    "kl_divergence": {"target": [1, 2, 3], "logits": FLAT},
    "locked_dropout": {**BITS, "time_axis": 1},
    "relu_dropout": {**AXIS, **OWN},
    "set_num_threads": {"n": 1},
    "softmax_dropout": {
        **{k: v for k, v in BITS.items() if k != "x"},
        **{"scores": X, "scale": 0.5, "causal": True, "mask": X > 0, "axis": -1},
    },
    "sparse_variational_kl": {"weight": W, "log_variance": W},
    "sparse_variational_linear": {
        **{**DRAWS, **LINEAR, "log_variance": W},
        **{"region": ((0, 0), (3, 5)), "rows": None},
    },
    "spatial_dropout": {**BITS, "channels_last": False},
    "squared_divergence": {"target": FLAT, "logits": FLAT},
    "targeted_dropout": {
        **{**DRAWS, "weight": W, "p": 0.5, "targeted": 0.5, "mode": "weight"},
        "region": ((0, 0), (6, 5)),
    },
    "targeted_prune": {"weight": W, "targeted": 0.5, "mode": "weight"},
    "variational_dropout": {
        **{**DRAWS, **PLACE, "x": X, "log_alpha": X[0, 0, 0]},
        "shared_axes": (0,),
    },
    "variational_kl": {"log_alpha": W},
    "zoneout": {
        **{k: v for k, v in BITS.items() if k not in ("x", "shared_axes", "out")},
        **{"previous": X, "new": X, "expectation": True},
    },
}


class Failing:
    """An object that cannot be anything, and says so in its own words."""

    def fail(self, *_, **__):
        raise ZeroDivisionError("mine")

    __float__ = __index__ = __array__ = __iter__ = __len__ = __bool__ = __repr__ = fail


class FailingArray:
    """As a PyTorch tensor that requires a gradient."""

    shape, ndim, dtype = (3, 4, 6, 6), 4, np.dtype("f4")

    def __array__(self, *_, **__):
        raise RuntimeError("use detach() first")


def device(**attributes):
    """What is taken for an array on a GPU, and is none."""
    return type("Device", (), attributes)()


HOSTILE = {
    **{str(n): n for n in (0, -1, 1000, 1e200, 5e-324, 1e-310, np.inf, -np.inf, np.nan, 0.5, 1j)},
    **{"2**64": 2**64, "2**70": 2**70, "10**400": 10**400, "-10**400": -(10**400)},
    "10**5000": 10**5000,  # Python refuses to print it
    **{f"np.float32({n})": np.float32(n) for n in (0.25, np.nan)},
    **{"np.int8": np.int8(-1), "np.bool_": np.False_, "complex128": np.complex128(1j)},
    **{"longdouble": np.longdouble(3), "0-d": np.array(0.3), "0-d int": np.array(1)},
    **{"0-d object": np.array(None, object), "None": None, "True": True, "word": "no"},
    **{"empty": "", "bytes": b"bits", "dict": {}, "set": {0.5}, "object": object()},
    **{"list": [2**70], "nested": [[10**400]], "ragged": [[1.0], [1.0, 2.0]], "module": np},
    **{"pair": (2**70, 10**400), "pairs": ((2**70,) * 4, (10**400,) * 4), "long": (1,) * 70},
    **{"masked": np.ma.array(X, mask=X > 0), "0-d masked": np.ma.array(0.3, mask=True)},
    **{"np.ma.masked": np.ma.masked, "list of masked": [np.ma.array([1.0, 2.0], mask=[0, 1])] * 3},
    **{"masked in a list": [[1.0, np.ma.masked]], "masked ints": np.ma.array([1, 2, 3])},
    **{"failing": Failing(), "list of failing": [Failing()], "failing array": FailingArray()},
    **{"int64": X.astype(np.int64), "strings": np.array(["a"]), "objects": np.array([object()])},
    **{"dates": np.zeros(3, "M8[s]"), "records": np.zeros(3, "f4,i4"), "empty array": X[:0]},
    **{"generator": (i for i in ()), "result": fd.dropout(X, 0.5, rng=1)},
    **{"nan array": np.full_like(X, np.nan), "inf array": np.full_like(X, np.inf)},
}
DEVICES = {
    "interface": device(__cuda_array_interface__={}),
    "interface of a shape": device(__cuda_array_interface__={"shape": (3,)}),
    "interface of None": device(__cuda_array_interface__=None),
    "interface that fails": device(__cuda_array_interface__=property(Failing.fail)),
    "is_cuda": device(is_cuda=True),
    "is_cuda of a word": device(is_cuda="yes"),
    "copy_to_host": device(copy_to_host=None),
    "dlpack": device(__dlpack_device__=lambda self: (2, 0)),
    "dlpack of a word": device(__dlpack_device__=lambda self: "no"),
    "dlpack that fails": device(__dlpack_device__=Failing.fail),
}


def errors(call, good, hostile, words=None):
    """Kinds of the errors, with the call's last one; asserts that each names its argument."""
    kinds = {}
    for name in good:
        for what, value in hostile.items():
            try:
                call(**{**good, name: value})
                if "masked" in what:
                    kinds.setdefault("masked and taken", []).append(f"{name} = {what}")
            except Exception as error:
                kind, text = type(error).__name__, str(error)
                where = f"{name} = {what}: {kind}: {text[:300]}"
                kinds.setdefault(kind, []).append(where)
                if kind != "RuntimeError" and not is_named(name, (words or {}), good, text):
                    kinds.setdefault("nameless", []).append(where)
    return kinds


def is_named(name, words, good, text):
    """Whether an error tells its argument: or, where shapes do not fit, the other one."""
    fitting = good if re.search(r"shape|axis|axes|ids must be in", text) else ()
    return any(re.search(rf"\b{words.get(n, n)}\b", text) for n in (name, *fitting))


def others(found, allowed):
    return {kind: wheres for kind, wheres in found.items() if kind not in allowed}


def documented(thing):
    """The kinds of errors that a docstring names."""
    text = inspect.getdoc(thing) or ""
    section = re.search(r"(?m)^Raises\n-+\n((?:.*\n?)*?)(?=\n*^\S.*\n-{3,}|\Z)", text)
    names = re.findall(r"(?m)^(\S.*)$", section[1]) if section else []
    return {name.rpartition(".")[2] for line in names for name in line.split(", ")}


@pytest.fixture
def no_gpu(monkeypatch):
    def refuse():
        raise RuntimeError("fastdrop.cuda cannot run: no driver")

    monkeypatch.setattr(type(CUDA), "require", staticmethod(refuse))


@pytest.fixture
def a_gpu(monkeypatch):
    """What comes before the first kernel is gone through as where there is one."""
    monkeypatch.setattr(type(CUDA), "require", staticmethod(lambda: None))


def test_the_table_has_every_callable():
    assert RAISES.keys() == {name for name in fd.__all__ if callable(getattr(fd, name))}
    assert GOOD.keys() == RAISES.keys() - {"Context"}
    for name, good in GOOD.items():
        assert good.keys() == inspect.signature(getattr(fd, name)).parameters.keys(), name


@pytest.mark.parametrize("name", GOOD)
def test_documents_what_it_raises(name, no_gpu, monkeypatch):
    """Nothing else comes out, each comes out for some value, and the docstring says so."""
    monkeypatch.setattr(fd._core, "set_threads", lambda n: None)
    call, good = getattr(fd, name), GOOD[name]
    call(**good)
    found = errors(call, good, {**HOSTILE, **DEVICES})
    assert set(found) == RAISES[name], found
    assert documented(call) == RAISES[name]


def test_documents_what_it_raises_of_a_context():
    _, ctx = fd.dropout(X, 0.5, rng=1)
    values = dict(zip(("shape", "draw", "scale", "held"), ctx.__reduce__()[1], strict=True))
    words = {"held": "bits", "draw": "(draw|bits)"}
    found = errors(lambda **v: fd.Context(*v.values()), values, HOSTILE, words)
    assert set(found) == RAISES["Context"], found
    assert documented(fd.Context) == RAISES["Context"]


@pytest.mark.parametrize("name", [name for name in RAISES if "RuntimeError" in RAISES[name]])
def test_what_only_looks_like_an_array_on_a_gpu(name, a_gpu):
    found = errors(getattr(fd, name), GOOD[name], DEVICES)
    assert set(found) == {"TypeError"}, found


# What is not in fd.__all__ itself: layers, their methods, schedules, mc, contexts, Rng.

SIZES = {"inputs": 4, "outputs": 3}
LAYER = {"rng": 1}
P = {"p": 0.5}
LAYERS = {
    "AdversarialDropout": {**LAYER, **P, "delta": 0.1},
    "AlphaDropout": {**LAYER, **P, "shared_axes": (), "save": "bits"},
    "BiasDropoutAdd": {**LAYER, **P, "shared_axes": (), "save": "bits"},
    "BiasGeluDropout": {**LAYER, **P, "shared_axes": (), "save": "bits"},
    "BiasReluDropout": {**LAYER, **P, "shared_axes": ()},
    "ConcreteDropout": {
        **LAYER,
        **{"p": 0.1, "temperature": 0.1, "shared_axes": ()},
        **{"weight_regularizer": 1e-6, "dropout_regularizer": 1e-5},
    },
    "DropBlock": {
        **{**LAYER, **P, "save": "bits"},
        **{"block_size": 3, "channels_last": False, "per_channel": True},
    },
    "DropConnect": {
        **{**LAYER, **SIZES, **P, "bias": True, "dtype": np.float32},
        **{"mode": "example", "mask_bias": True},
    },
    "DropPath": {**LAYER, **P, "mode": "row", "scale_by_keep": True, "save": "bits"},
    "Dropout": {**LAYER, **P, "shared_axes": (), "save": "bits"},
    "DropoutAdd": {**LAYER, **P, "shared_axes": (), "save": "bits"},
    "EmbeddingDropout": {**LAYER, **P, "weight": W},
    "FeatureAlphaDropout": {
        **LAYER,
        **{**P, "channels_last": False, "shared_axes": (), "save": "bits"},
    },
    "GaussianDropout": {**LAYER, **P, "shared_axes": ()},
    "GaussianNoise": {**LAYER, "std": 0.5, "shared_axes": ()},
    "LockedDropout": {**LAYER, **P, "time_axis": 1, "shared_axes": (), "save": "bits"},
    "ReluDropout": {**LAYER, **P, "shared_axes": ()},
    "SoftmaxDropout": {
        **{**LAYER, **P, "shared_axes": (), "save": "bits"},
        **{"scale": 0.5, "causal": True, "axis": -1},
    },
    "SparseVariationalLinear": {**LAYER, **SIZES, "bias": True, "dtype": np.float32},
    "SpatialDropout": {**LAYER, **P, "channels_last": False, "shared_axes": (), "save": "bits"},
    "TargetedDropout": {**LAYER, **P, "targeted": 0.5, "mode": "weight"},
    "VariationalDropout": {**LAYER, "shape": (), "alpha": 0.5, "shared_axes": ()},
    "Zoneout": {**LAYER, "p": 0.1, "expectation": True, "save": "bits"},
}


def concrete():
    layer = layers.ConcreteDropout(0.1, rng=1)
    layer.backward(layer(X))
    return layer


def adversarial():
    layer = layers.AdversarialDropout(0.1, 0.5, rng=1)
    layer(X)
    return layer


def with_state(state):
    fd.Rng(1).state = state


def sampled(**arguments):
    with mc.sampling(**arguments):
        pass


def context(name):
    """A context of each op."""
    return getattr(fd, name)(**GOOD[name])[1]


STATE = {"stream_version": fd.STREAM_VERSION, "seed": 1, "call": 2}
UP = {"start": 0.1, "stop": 0.5, "steps": 10}
OTHERS = {
    "Rng.spawn": (lambda n: fd.Rng(1).spawn(n), {"n": 3}),
    "Rng.state": (with_state, {"state": STATE}),
    "Rng.state of values": (lambda **state: with_state(state), STATE),
    "Layer": (layers.Layer, {"rng": 1, "p": 0.5}),
    "Layer.train": (lambda mode: layers.Dropout().train(mode), {"mode": True}),
    "EmbeddingDropout(ids)": (lambda ids: layers.EmbeddingDropout(W)(ids), {"ids": [1]}),
    "TargetedDropout.prune": (lambda weight: layers.TargetedDropout().prune(weight), {"weight": W}),
    "ConcreteDropout.regularize": (
        lambda **v: concrete().regularize(**v),
        {"weight": W, "features": 6},
    ),
    "AdversarialDropout.search": (lambda gradient: adversarial().search(gradient), {"gradient": X}),
    "constant": (schedules.constant, P),
    "curriculum": (schedules.curriculum, {**P, "gamma": 0.1}),
    "anti_curriculum": (schedules.anti_curriculum, {**P, "gamma": 0.1}),
    "switch": (schedules.switch, {**P, "at": 3}),
    "linear": (schedules.linear, UP),
    "cosine": (schedules.cosine, UP),
    "steps": (schedules.steps, {"values": [0.1, 0.2], "boundaries": [3]}),
    "early": (schedules.early, {**P, "cutoff": 3, "shape": "linear"}),
    "late": (schedules.late, {**P, "start": 3}),
    "depth_linear": (schedules.depth_linear, {**P, "depth": 3}),
    "Ramp": (schedules.Ramp, {"final": 0.5, "steps": 3, "share": 0.5}),
    "Ramp(step)": (schedules.Ramp(0.5, 10), {"step": 3}),
    **{
        f"{name}(step)": (lambda step, schedule=schedule: schedule(step), {"step": 3})
        for name, schedule in {
            "curriculum": schedules.curriculum(0.5, 1.0),
            "anti_curriculum": schedules.anti_curriculum(0.5, 1.0),
            "linear": schedules.linear(0.1, 0.5, 10),
            "cosine": schedules.cosine(0.1, 0.5, 10),
            "steps": schedules.steps([0.1, 0.2], [3]),
            "early": schedules.early(0.5, 10, "linear"),
        }.items()
    },
    "Regression": (mc.Regression, {"tau": 1.0, "covariance": False}),
    "Moments.update": (lambda y: mc.Moments().update(y), {"y": X}),
    "Regression.update": (lambda y: mc.Regression(covariance=True).update(y), {"y": X}),
    "Classification.update": (lambda y: mc.Classification().update(y), {"y": [[0.5, 0.5]]}),
    "predict": (
        lambda **v: mc.predict(x=X, **v),
        {"model": lambda x, rng: fd.dropout(X, rng=rng)[0], "samples": 2, "into": None, "rng": 1},
    ),
    "pass_rng": (mc.pass_rng, {"rng": 1, "t": 3}),
    "sampling": (sampled, {"layers": [layers.Dropout()], "rng": 1, "consistent": False}),
    "precision": (mc.precision, {**P, "length_scale": 1.0, "n": 10, "weight_decay": 1e-3}),
}
"""Each with a call of good values."""


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, no_gpu):
    """When they are made, or when they are called."""
    make, good = getattr(layers, name), LAYERS[name]
    assert good.keys() == inspect.signature(make).parameters.keys()
    given = {"Zoneout": (X, X), "DropoutAdd": (X, X), "BiasDropoutAdd": (X, X[0, 0, 0], X)}
    given |= dict.fromkeys(("BiasReluDropout", "BiasGeluDropout"), (X, X[0, 0, 0]))
    given |= {"DropConnect": (FLAT[:, :4],), "EmbeddingDropout": ([0],)}
    given["SparseVariationalLinear"] = given["DropConnect"]

    def call(**arguments):
        layer = make(**arguments)
        layer(*given.get(name, (X,)))

    call(**good)
    words = {"alpha": "(alpha|log_alpha)", "shape": "(shape|log_alpha)", "weight": "(weight|ids)"}
    found = errors(call, good, {**HOSTILE, **DEVICES}, words)
    assert others(found, AXES | GPU | {"IndexError"}) == {}
    assert sorted(LAYERS) == LAYER_NAMES


@pytest.mark.parametrize("name", OTHERS)
def test_others(name, no_gpu):
    call, good = OTHERS[name]
    call(**good)
    found = errors(call, good, {**HOSTILE, **DEVICES})
    allowed = KINDS | ({"IndexError"} if "ids" in good else set())
    assert others(found, allowed) == {}


@pytest.mark.parametrize("name", [name for name in GOOD if "training" in GOOD[name]])
def test_contexts(name, no_gpu):
    """backward, of hostile gradients and out."""
    ctx = context(name)
    y, _ = getattr(fd, name)(**GOOD[name])
    good = {"dy": y}
    if "out" in inspect.signature(ctx.backward).parameters:
        good["out"] = None
    ctx.backward(**good)
    found = errors(ctx.backward, good, {**HOSTILE, **DEVICES})
    assert others(found, KINDS | GPU) == {}


@pytest.mark.parametrize("name", [name for name in GOOD if "training" in GOOD[name]])
def test_pickles_of_contexts(name):
    """What a file may hold in place of a context's fields."""
    make, values = context(name).__reduce__()
    for i in range(len(values)):
        for value in HOSTILE.values():
            with contextlib.suppress(TypeError, ValueError, IndexError):
                make(*values[:i], value, *values[i + 1 :])


@pytest.mark.parametrize("name", ["autograd", "dask", "jax"])
def test_adapters(name, no_gpu):
    """Those whose dropout is a function of arrays, as ours is."""
    pytest.importorskip(name)
    adapter = import_module(f"fastdrop.adapters.{name}")
    good = {k: v for k, v in DROP.items() if k != "out"} | {"region": None}
    if name == "dask":
        del good["save"], good["region"]
    elif name == "jax":
        good = {"x": X, "p": 0.5, "key": 1, "call": 2, "training": True}
        good |= {"shared_axes": (0,), "region": None}
    assert good.keys() == inspect.signature(adapter.dropout).parameters.keys()
    adapter.dropout(**good)
    assert others(errors(adapter.dropout, good, HOSTILE), AXES) == {}
    if name == "dask":
        _, ctx = adapter.dropout(**good)
        assert others(errors(ctx.backward, {"dy": X}, HOSTILE), KINDS) == {}
