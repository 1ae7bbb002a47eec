"""At least 200 bad inputs for each operation: a documented exception; nothing drawn or written."""

import inspect
import itertools

import fuzz
import numpy as np
import pytest

import fastdrop as fd

X = np.ones((3, 4, 6, 6), np.float32)
W = np.ones((6, 5), np.float32)
GOOD = {
    **dict.fromkeys(("x", "residual", "previous", "new", "gradient", "scores"), X),
    **dict.fromkeys(("weight", "log_variance"), W),
    **{"bias": np.ones(6, np.float32), "log_alpha": np.ones(6, np.float32), "shape": (3, 4)},
    **{"logit": 0.3, "std": 0.1, "p": 0.5},
}
DTYPES = "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16", "U3", "S3", "O", "M8[s]"
DTYPES += "m8[s]", "V4", "V8", "f4,i4"
SHAPES = (), (1,), (3,), (0,), (3, 4), (6, 5), (2, 3, 4), (3, 4, 6, 6), (1, 1, 1, 1), (3, 0, 6, 6)
ARRAYS = [None, *(np.zeros(shape, dtype) for dtype, shape in itertools.product(DTYPES, SHAPES))]
ARRAYS += ["x", b"x", {}, object(), [[1.0], [1.0, 2.0]], [None], ["a"], [1j], fd, lambda: 1]
RATES = [-1, 2, -1e-9, 1 + 1e-9, np.nan, np.inf, -np.inf, 2**64, "0.5", b"", 1j, [0.5], (0.5,), {}]
RATES += [True, np.False_, object(), np.ones(1), np.array(True), np.array(1j), np.float16(2)]
AXES = [9, -9, (0, 0), (9,), "ab", 1.5, object(), (0.5,), None, (None,), {0: 1, "a": 2}]
REGIONS = [5, (), ((),), ((0,), (9,)), ((0,) * 4, (1,) * 4), ((-1,) * 4, (9,) * 4), "ab", [[], []]]
REGIONS += [((0,) * 4,), ((0.5,) * 4, (9,) * 4), ((0,) * 4, (2**20,) * 4), ((0,) * 4, (9,) * 5), 1j]
RNGS = ["1", 1.5, True, -1, 2**64, [1], (1, 2), {}, object(), np.ones(2), np.random.RandomState(1)]
WORDS = ["no", "", "BITS", None, 1, b"bits", 1.5, object()]
OUTS = [1, "x", [1.0], X.astype(float), X[1:].copy(), X.astype(">f4"), X[:0], b"x", object()]
BAD = {
    **dict.fromkeys(("p", "delta", "targeted"), RATES),
    **dict.fromkeys(("save", "mode"), WORDS),
    **{"shared_axes": AXES, "region": REGIONS, "rng": RNGS, "out": OUTS},
    "shape": [-1, (-1,), 1.5, (0.5,), "ab", None, object(), (1,) * 65, {"a": 1}, [[1]], 2**70],
    **{"block_size": [0, -1, 1.5, True, "1", None, object(), [1], -(2**70)]},
    **{"first": [-1, 1.5, True, "1", None, object(), 2**63], "time_axis": [9, -9, 1.5, "a", True]},
    **dict.fromkeys(("temperature", "std"), (-1, np.nan, np.inf, "1", 1j, None, [1.0], True)),
    "logit": [np.nan, np.inf, -99, 99, "1", 1j, None, [1.0], True, object(), np.ones(1)],
    **{"causal": [0, 1, "yes", None], "axis": [4, -5, 1.5, "a", None, (0,)]},
    **{"scale": [np.nan, np.inf, "1", 1j, None, [1.0], True]},
    "ids": [[9], [-1], [0.5], ["a"], [1j], [None], np.zeros(3), object()],
}
OPS = [name for name in fuzz.OPS if name not in ("concrete_regularizer", "dropconnect_inference")]


def bad_of(parameter):
    """Values that this argument of any operation must refuse."""
    if parameter in BAD or not isinstance(GOOD.get(parameter), np.ndarray):
        return BAD.get(parameter, [])
    return ARRAYS[1:] if parameter == "bias" else ARRAYS


@pytest.mark.parametrize("name", OPS)
def test_200_bad_inputs(name):
    op = getattr(fd, name)
    parameters = inspect.signature(op).parameters
    needed = [n for n, p in parameters.items() if p.default is p.empty]
    good = {n: GOOD[n] for n in needed if n != "rng"}
    op(**good, **({"rng": 1} if "rng" in parameters else {}))  # is good
    bad = [{n: value} for n in parameters for value in bad_of(n)]
    if {"p", "rng"} <= set(parameters):
        bad += [{"p": p, "rng": rng} for p, rng in itertools.product(RATES, RNGS)]
    assert len(bad) >= 200
    for change in bad:
        rng, out = fd.Rng(1), np.full_like(X, 7)
        default = {n: v for n, v in (("rng", rng), ("out", out)) if n in parameters}
        with pytest.raises((TypeError, ValueError, IndexError)):
            op(**{**good, **default, **change})
        assert rng.call == 0, change
        assert (out == 7).all(), change
