"""`fastdrop.cuda` where there is no GPU, no Numba, or both."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import cuda
from fastdrop.backends.cuda import launch
from fastdrop.backends.cuda.arrays import collapsed
from fastdrop.base.devices import on_device

OPS = [name for name in cuda.__all__ if name not in ("is_available", "why_not")]


@pytest.mark.parametrize("name", OPS)
def test_signatures(name):
    there, here = (inspect.signature(getattr(module, name)) for module in (cuda, fd))
    assert list(there.parameters.values()) == [
        parameter.replace(annotation=there.parameters[key].annotation)
        for key, parameter in here.parameters.items()
    ]


def test_importing_imports_neither_numba_nor_what_reads_archives():
    code = """
import sys, numpy
before = set(sys.modules)
import fastdrop.cuda as c
c.__all__
sys.exit(bool({"numba", "zipfile", "json", "hashlib"} & set(sys.modules) - before))
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_numba(monkeypatch):
    code = """
import sys
sys.modules["numba"] = None
import numpy as np, fastdrop as fd
assert not fd.cuda.is_available()
assert "pip install 'fastdrop[numba]'" in fd.cuda.why_not()
try:
    fd.cuda.dropout(np.ones(3))
except RuntimeError as error:
    assert "pip install" in str(error)
else:
    sys.exit(1)
"""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_why_not():
    assert fd.cuda.is_available() == (fd.cuda.why_not() is None)


def test_numpy_arrays_are_told_where_to_go(monkeypatch):
    monkeypatch.setattr(launch, "where", lambda: "cuda")
    with pytest.raises(TypeError, match=r"got numpy.ndarray: call fastdrop.relu_dropout for"):
        cuda.relu_dropout(np.ones(3))


def test_what_lives_on_a_device():
    class Somewhere:
        def __init__(self, is_cuda):
            self.is_cuda = is_cuda

    class Elsewhere:
        @property
        def __cuda_array_interface__(self):
            raise RuntimeError("no")

    assert on_device(Somewhere(True))
    for x in (Somewhere(False), Elsewhere(), np.ones(3), np.float32(1), 1.0, [1.0], (1,), None):
        assert not on_device(x)


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((), (), ((1,), (0,))),
        ((1, 1), (9, 9), ((1,), (0,))),
        ((2, 3, 4), (12, 4, 1), ((24,), (1,))),
        ((2, 3, 4), (12, 0, 1), ((2, 3, 4), (12, 0, 1))),
        ((2, 3, 4), (3, 1, 0), ((6, 4), (1, 0))),
        ((2, 1, 4), (4, 7, 1), ((8,), (1,))),
        ((2, 3), (0, 0), ((6,), (0,))),
    ],
)
def test_collapsed(shape, strides, expected):
    assert collapsed(shape, strides) == expected
