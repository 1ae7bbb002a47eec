"""Every adapter with its default arguments, on NumPy's memory and on arrays on a device: forward,
and backward from what the adapter saves. Every bit counts. Run in the simulator, too.

What adapts to a library without device arrays, or hands nothing to fastdrop's Python, is named in
`ON_HOSTS`; those adapters have tests of their own.
"""

import os
import pkgutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.fake_device import FakeArray

import fastdrop as fd
from fastdrop import adapters
from fastdrop.backends.cuda import launch

ROOT = Path(__file__).parents[2]
SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WITH_DEVICES = {"torch", "keras", "thinc", "dask"}
ON_HOSTS = {"autograd", "jax", "mpi", "numba", "sklearn"}


def test_every_adapter_is_here():
    names = {module.name for module in pkgutil.iter_modules(adapters.__path__)}
    assert names == WITH_DEVICES | ON_HOSTS


@pytest.fixture(params=["NumPy", "device"])
def place(request, monkeypatch):
    """Where fastdrop believes that the arrays are."""
    if request.param == "device":
        if not find_spec("numba"):
            pytest.skip("Numba is not installed: pip install 'fastdrop[numba]'")
        monkeypatch.setattr(launch, "THREADS", 3)
        monkeypatch.setattr(launch, "MAX_BLOCKS", 2)
        if not SIMULATED:
            monkeypatch.setattr(launch, "where", lambda: "njit")
    return request.param


def numbers(*shape):
    return np.random.default_rng(list(shape)).standard_normal(shape, np.float32)


X, MAPS, CUBES = numbers(6, 40), numbers(3, 4, 8, 9), numbers(3, 4, 2, 3, 4)
MODULES = {
    "Dropout": (fd.dropout, X, ()),
    "Dropout1d": (fd.dropout, MAPS[0], (2,)),
    "Dropout2d": (fd.dropout, MAPS, (2, 3)),
    "Dropout3d": (fd.dropout, CUBES, (2, 3, 4)),
    "AlphaDropout": (fd.alpha_dropout, X, ()),
    "FeatureAlphaDropout": (fd.alpha_dropout, MAPS, (2, 3)),
}


@pytest.fixture
def torch(place, monkeypatch):
    """PyTorch, whose tensors' memory fastdrop sees as that of NumPy or of a device."""
    torch = pytest.importorskip("torch")
    from fastdrop.adapters.torch import kernels

    if place == "device":
        monkeypatch.setattr(kernels, "array", lambda x: FakeArray(x.detach().numpy()))
        monkeypatch.setattr(kernels, "is_memory", lambda *_: False)
    return torch


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("seed", [None, 7])
def test_torch(torch, name, seed):
    from fastdrop.adapters import torch as adapter

    op, x, axes = MODULES[name]
    module = getattr(adapter, name)(seed=seed)
    torch.manual_seed(3)
    token = torch.empty(2, dtype=torch.int64).random_().tolist()
    draw = token if seed is None else (seed, 0)
    expected, ctx = op(x, 0.5, rng=fd.Rng(*draw), shared_axes=axes)
    torch.manual_seed(3)
    tensor = torch.tensor(x, requires_grad=True)
    y = module(tensor)
    assert_same_bits(y.detach().numpy(), expected)
    y.backward(torch.tensor(x + 1))
    # Without a seed, small tensors have PyTorch's multiplication, which gives some zeros a sign.
    same = np.testing.assert_array_equal if seed is None else assert_same_bits
    same(tensor.grad.numpy(), ctx.backward(x + 1))
    tangent = torch.autograd.forward_ad
    torch.manual_seed(3)
    module = getattr(adapter, name)(seed=seed)
    with tangent.dual_level():
        dual = module(tangent.make_dual(tensor.detach(), torch.tensor(x - 1)))
        assert_same_bits(tangent.unpack_dual(dual).tangent.numpy(), ctx.backward(x - 1))


KERAS = """
import numpy as np, pytest, sys
sys.path.insert(0, "tests")
from helpers.bitwise import assert_same_bits
from helpers.fake_device import FakeArray
import fastdrop as fd
from fastdrop.backends.cuda import launch
from fastdrop.adapters.torch import kernels
from fastdrop.adapters.keras import Dropout
import torch
if sys.argv[1] == "device":
    kernels.array = lambda x: FakeArray(x.detach().numpy())
    kernels.is_memory = lambda *_: False
    launch.where = lambda: "njit"
x = np.random.default_rng(0).standard_normal((6, 40), np.float32)
layer, tensor = Dropout(0.5, seed=5), torch.tensor(x, requires_grad=True)
y = layer(tensor, training=True)
expected, ctx = fd.dropout(x, 0.5, rng=fd.Rng(5, 0))
assert_same_bits(y.detach().numpy(), expected)
y.backward(torch.tensor(x + 1))
assert_same_bits(tensor.grad.numpy(), ctx.backward(x + 1))
"""


@pytest.mark.skipif(SIMULATED, reason="the same road as PyTorch's")
def test_keras_on_torch(place):
    for library in ("keras", "torch"):
        if not find_spec(library):
            pytest.skip(f"needs {library}")
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", KERAS, place]
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_thinc(place, monkeypatch):
    pytest.importorskip("thinc")
    from thinc.api import get_ops

    from fastdrop.adapters.thinc import Dropout

    class Library:
        """What the mixin asks of NumPy or CuPy."""

        @staticmethod
        def ones(shape, dtype):
            made = np.ones(shape, dtype)
            return FakeArray(made) if place == "device" else made

    ops = get_ops("fastdrop-cupy" if place == "device" else "fastdrop", rng=3)
    assert ops.device_type == ("gpu" if place == "device" else "cpu")
    monkeypatch.setattr(type(ops), "xp", Library)
    mask = ops.get_dropout_mask((6, 40), 0.5)
    assert isinstance(mask, FakeArray) == (place == "device")
    expected = fd.dropout(np.ones((6, 40), np.float32), 0.5, rng=3)[0]
    assert_same_bits(mask.host if place == "device" else mask, expected)

    given, expect = (FakeArray, lambda a: a.host) if place == "device" else (np.asarray,) * 2
    y, back = Dropout(0.5, rng=4)(given(X.copy()), is_train=True)
    expected, ctx = fd.dropout(X, 0.5, rng=4)
    assert_same_bits(expect(y), expected)
    assert_same_bits(expect(back(given(X + 1))), ctx.backward(X + 1))


def test_dask(place):
    """A chunk, wherever it is."""
    pytest.importorskip("dask.array")
    from fastdrop.adapters import dask as adapter

    ctx = adapter.DaskContext((12, 40), 0.5, 5, 6, ())
    where = {0: {"array-location": [(6, 12), (0, 40)]}}
    expected = fd.dropout(np.concatenate([X, X]), 0.5, rng=fd.Rng(5, 6))[0][6:]
    if place == "device":
        assert_same_bits(adapter.drop(FakeArray(X.copy()), ctx, where).host, expected)
    else:
        assert_same_bits(adapter.drop(X, ctx, where), expected)


@pytest.mark.skipif(SIMULATED, reason="is that process")
def test_the_same_in_the_simulator():
    if not (find_spec("numba") and find_spec("torch")):
        pytest.skip("needs numba and torch")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-k", "device"]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    assert " passed" in run.stdout
