"""Every op with every argument that it has, on a device and in NumPy: the same bits, the same
context and gradients, or the same kind of error about the same argument, with no call taken.

Values are tried one argument at a time, good ones and bad ones, and some together. Run as
device_cases.py is.
"""

import inspect
import os
import re

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from numba.core import config
from ops.test_matrix import CASES, listed, numbers

import fastdrop as fd
from fastdrop.backends.cuda import launch

if os.environ.get("FASTDROP_GPU"):
    from helpers.real_device import RealArray as FakeArray
else:
    from helpers.fake_device import FakeArray

# Arrays as small as an op takes, in place of those of tests/ops/test_matrix.py.
X, MAPS, TABLE = numbers(3, 20), numbers(2, 3, 4, 5), numbers(5, 6)
SMALL = {
    "bias_dropout_add": {"x": X, "bias": numbers(20), "residual": X + 1},
    "bias_gelu_dropout": {"x": X, "bias": numbers(20)},
    "bias_relu_dropout": {"x": X, "bias": numbers(20)},
    "dropout_add": {"x": X, "residual": X + 1},
    "drop_block": {"x": MAPS, "block_size": 2},
    "dropconnect": {"x": numbers(3, 5), "weight": numbers(5, 6), "bias": numbers(6)},
    "concrete_dropout": {"x": X, "logit": 0.3},
    "embedding_dropout": {"weight": TABLE, "p": 0.4, "ids": np.array([0, 2, 2, 1])},
    "feature_alpha_dropout": {"x": MAPS},
    "gaussian_noise": {"x": X, "std": 0.7},
    "locked_dropout": {"x": numbers(2, 3, 8)},
    "spatial_dropout": {"x": MAPS},
    "variational_dropout": {"x": X, "log_alpha": numbers(20).astype(np.float64)},
    "zoneout": {"previous": X, "new": X + 1},
}
NAMES = sorted({name.split(",")[0] for name, case in CASES.items() if case.kernels})
ON_HOST = "log_alpha", "mask", "rows", "ids"  # given in the host's memory


def region(x):
    """Where x lies in what is larger along each axis."""
    return tuple(range(1, x.ndim + 1)), tuple(n + 7 for n in x.shape)


def batch(x):
    return (4, *[0] * (x.ndim - 1)), (len(x) + 9, *x.shape[1:])


# Values of an argument, or what makes them from the first operand.
VALUES = {
    "p": [0, 0.3, 0.5, 1, -0.1, 1.5, np.nan, "a", None, True],
    "std": [0, 0.3, -1.0, np.inf, None],
    "training": [False, 1, None],
    "save": ["seed", "all", 3],
    "rng": [5, -1, "a"],
    "shared_axes": [0, -1, (0, 1), 9, (0, 0), "a"],
    "region": [region, batch, ((0,), (1,)), 5, ((9,) * 2, (3,) * 2)],
    "rows": [
        lambda x: np.arange(len(x)) + 5,
        lambda x: np.arange(len(x))[::-1] * 3,
        lambda x: [0],
        lambda x: [-1] * len(x),
        lambda x: [0.5] * len(x),
    ],
    "mask": [
        lambda x: x > 0,
        lambda x: np.packbits(x > 0, bitorder="little"),
        lambda x: x,
        lambda x: x[:1] > 0,
    ],
    "out": [
        np.zeros_like,
        lambda x: np.zeros(x.shape[::-1], x.dtype).T,
        lambda x: np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)[..., ::2],
        lambda x: x[:1].copy(),
        lambda x: x.astype(np.float64),
        lambda x: np.broadcast_to(x.flat[0], x.shape),
    ],
    "channels_last": [True, 2],
    "per_channel": [False, "no"],
    "time_axis": [0, 2, 7],
    "axis": [0, 1, 7],
    "block_size": [1, 3, 0, (1, 2), "a"],
    "mode": ["batch", "example", "row", "other", 1],
    "scale_by_keep": [False, 0],
    "expectation": [False, 0],
    "temperature": [0.5, 0.0, -1, None],
    "logit": [-1.0, np.nan, np.inf, None],
    "log_alpha": [-1.0, np.zeros(3), lambda x: np.full(x.shape, -2.0), np.nan, None],
    "first": [7, -1, 2**61, 2**80, 0.5],
    "mask_bias": [False, 1],
    "bias": [None, lambda x: x[:, 0].copy(), lambda x: numbers(20).astype(np.float64)],
    "residual": [None, lambda x: x[:1].copy(), lambda x: x.astype(np.float64), np.array],
    "new": [None, lambda x: x[:1].copy(), lambda x: x.astype(np.float16)],
    "weight": [lambda x: x.astype(np.float16), lambda x: x.astype(np.float64), lambda x: x[0]],
    "ids": [np.array([[1, 0]]), np.zeros(0, int), np.array(3), np.ones(3), [True], [9], None],
}
# The first operand otherwise: of another dtype, layout or number of axes.
OPERANDS = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "bfloat16": lambda x: x.astype(ml_dtypes.bfloat16),
    "complex64": lambda x: x.astype(np.complex64),
    "complex128": lambda x: x.astype(np.complex128),
    "int32": lambda x: x.astype(np.int32),
    "bool": lambda x: x > 0,
    "longdouble": lambda x: x.astype(np.longdouble),
    "swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "Fortran": np.asfortranarray,
    "sliced": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "empty": lambda x: x[:0],
    "no axes": lambda x: x.reshape(-1)[0:1].reshape(()),
    "one axis": lambda x: x.reshape(-1),
    "read-only": lambda x: np.broadcast_to(x[:1], x.shape),
}
TOGETHER = [
    {"region": 0, "shared_axes": 0},
    {"rows": 1, "shared_axes": 1},
    {"rows": 0, "save": 0},
    {"rows": 1, "out": 1, "p": 1},
    {"mask": 0, "out": 2},
    {"mask": 0, "rows": 0},
    {"mask": 0, "region": 0},
    {"mask": 0, "save": 0},
    {"mask": 1, "training": 0},
    {"region": 0, "out": 1},
    {"region": 1, "training": 0},
    {"rows": 0, "training": 0},
    {"rows": 2, "training": 0},
    {"region": 2, "training": 0},
    {"shared_axes": 3, "training": 0},
    {"out": 0, "training": 0},
    {"out": 1, "training": 0},
    {"out": 3, "training": 0},
    {"save": 1, "training": 0},
    {"p": 0, "out": 2},
    {"p": 3, "out": 2},
    {"p": 0, "save": 0},
    {"p": 3, "save": 0},
    {"p": 3, "mode": 0},
    {"expectation": 0, "training": 0},
    {"mode": 0, "mask_bias": 0},
    {"per_channel": 0, "channels_last": 0},
]


def variants(name):
    """Names of calls, and what makes their arguments from the first operand."""
    known = inspect.signature(getattr(fd, name)).parameters
    first = next(iter(known))
    yield "default", {}
    for key, values in VALUES.items():
        if key in known and key != first:
            yield from ((f"{key}[{k}]", {key: value}) for k, value in enumerate(values))
    for named in TOGETHER:
        if set(named) <= set(known):
            arguments = {key: VALUES[key][k] for key, k in named.items()}
            yield ", ".join(f"{key}[{k}]" for key, k in named.items()), arguments
    for kind, change in OPERANDS.items():
        yield f"{first}: {kind}", {first: change}


ONLY_IN_NUMPY = "complex64", "complex128", "swapped"  # a device refuses these
LEFT_TO_BLAS = {
    "p[0]",
    "training[0]",
    "mode[0]",
    "mode[0], mask_bias[0]",
}  # with no order of its own
EACH = [(name, title) for name in NAMES for title, _ in variants(name)]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """The simulator starts a Python thread for each."""
    if config.ENABLE_CUDASIM:
        monkeypatch.setattr(launch, "THREADS", 3)
        monkeypatch.setattr(launch, "MAX_BLOCKS", 2)


def outcome(name, arguments, to, rng):
    """y and the gradients in the host's memory and what the context says, or the error."""
    there = {
        key: to(value) if isinstance(value, np.ndarray) and key not in ON_HOST else value
        for key, value in arguments.items()
    }
    try:
        y, ctx = getattr(fd, name)(**({"rng": rng} | there))
        y_host = getattr(y, "host", y)
        dy = np.asarray(np.arange(y_host.size).reshape(y_host.shape) % 7 - 3, y_host.dtype)
        gradients = listed(ctx.backward(to(dy)))
    except Exception as error:
        return error
    assert y is there["out"] if arguments.get("out") is not None else True
    said = [getattr(ctx, key, None) for key in ("seed", "call", "shape", "scale", "nbytes")]
    return [y_host, *(getattr(g, "host", g) for g in gradients)], said


def subject(error):
    """The argument that an error begins with."""
    return re.match(r"\w*", str(error))[0]


@pytest.mark.parametrize(("name", "title"), EACH)
def test_as_in_numpy(name, title):
    case = next(c for key, c in CASES.items() if key.split(",")[0] == name)
    operands = SMALL.get(name, {"x": X})
    assert next(iter(operands)) == next(iter(case.operands))
    first = next(iter(operands.values()))
    with np.errstate(all="ignore"):
        chosen = dict(variants(name))[title]
        made, again = (
            {key: make(first) if callable(make) else make for key, make in chosen.items()}
            for _ in range(2)  # what is written to
        )
    own, others = fd.Rng(11, 3), fd.Rng(11, 3)
    here = outcome(name, operands | made, lambda a: a, own)
    there = outcome(name, operands | again, FakeArray, others)
    if title.rpartition(": ")[2] in ONLY_IN_NUMPY and not isinstance(here, Exception):
        assert isinstance(there, TypeError)
        assert re.match(rf"{next(iter(operands))} must be float16.* got .*", str(there))
        assert others.call == 3
        return
    assert own.call == others.call, (here, there)
    if isinstance(here, Exception) or isinstance(there, Exception):
        assert (type(there), subject(there)) == (type(here), subject(here)), (there, here)
        return
    close = name == "dropconnect" and title in LEFT_TO_BLAS
    for a, b in zip(there[0], here[0], strict=True):
        if close:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert_same_bits(np.asarray(a), np.asarray(b))
    assert there[1] == here[1]
