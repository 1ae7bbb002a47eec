"""Every op on the arrays of each library: CuPy, PyTorch, Numba, and what has DLPack alone; compared
with NumPy bit by bit. Then what only a device can show: streams, graphs, contexts, size.

With FASTDROP_GPU=1 the arrays are real. Else, in Numba's simulator, they are PyTorch's CPU tensors
that say they are on a GPU, a stand-in for CuPy, and the simulator's own; dev/gpu/on_gpu.py runs it.
"""

import os
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from helpers import fake_device
from helpers.bitwise import assert_same_bits
from numba import cuda
from numba.core import config
from ops.test_matrix import CASES, SAVES, listed, numbers, run

import fastdrop as fd
from fastdrop.backends.cuda import launch, libraries

GPU = bool(os.environ.get("FASTDROP_GPU"))
HELD = [(name, save) for name, save in SAVES if CASES[name].kernels]
DTYPES = ["float32", "float64", "float16", "bfloat16"]


def needs_device(what):
    return pytest.mark.skipif(not GPU, reason=f"a device: {what}")


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """The simulator starts a Python thread for each."""
    if config.ENABLE_CUDASIM:
        monkeypatch.setattr(launch, "THREADS", 3)
        monkeypatch.setattr(launch, "MAX_BLOCKS", 2)


class Numba:
    """`to` a device, `back` from it, and what type of array that is."""

    def __init__(self, monkeypatch):
        self.type = type(self.to(np.ones(1)))

    def to(self, host):
        return cuda.to_device(host)

    def back(self, x):
        return x.copy_to_host()


class Torch:
    def __init__(self, monkeypatch):
        self.torch = pytest.importorskip("torch")
        self.type = self.torch.Tensor
        if not GPU:
            self._stand_in(monkeypatch)

    def _stand_in(self, monkeypatch):
        class Tensor(self.torch.Tensor):
            is_cuda = True

        class Library(libraries.PyTorch):
            def empty(self, *how):
                return super().empty(*how).as_subclass(Tensor)

            def send(self, *how):
                return super().send(*how).as_subclass(Tensor)

        Tensor.__module__ = "torch"
        stream = SimpleNamespace(cuda_stream=0)
        monkeypatch.setattr(self.torch.cuda, "current_stream", lambda device=None: stream)
        monkeypatch.setitem(libraries.KINDS, "torch", Library())
        self.type = Tensor

    def to(self, host):
        if host.dtype.name == "bfloat16":
            x = self.torch.from_numpy(host.view(np.int16)).view(self.torch.bfloat16)
        else:
            x = self.torch.from_numpy(host)
        return x.cuda() if GPU else x.clone().as_subclass(self.type)

    def back(self, x):
        return libraries.PyTorch().fetch(x if GPU else x.as_subclass(self.torch.Tensor))


class CuPy:
    def __init__(self, monkeypatch):
        if GPU:
            self.cupy = pytest.importorskip("cupy")
        else:
            self.cupy = stand_in_for_cupy()
            monkeypatch.setitem(sys.modules, "cupy", self.cupy)
        self.type = self.cupy.ndarray_type if not GPU else self.cupy.ndarray

    def to(self, host):
        return self.cupy.asarray(host)

    def back(self, x):
        return x.get()


def stand_in_for_cupy():
    """What `libraries.CuPy` uses of it, in the host's memory."""

    class Array(fake_device.FakeArray):
        device = type("Device", (nullcontext,), {"id": None})()
        T = property(lambda self: Array(self.host.T))

        def __dlpack_device__(self):
            return 2, 0

        def __getitem__(self, part):
            return Array(self.host[part])

        def get(self):
            return self.host.copy(order="K")

    Array.__module__ = "cupy"
    cupy = ModuleType("cupy")
    cupy.ndarray_type = Array
    cupy.ndarray = lambda shape, dtype, memory, strides: Array(
        np.ndarray(shape, dtype, memory.data, 0, strides)
    )
    cupy.asarray = lambda host: Array(fake_device.to_fake(host).host)
    cupy.from_dlpack = lambda x: Array(getattr(x, "held", x).host)
    cupy.cuda = SimpleNamespace(
        alloc=fake_device.allocate, get_current_stream=lambda device: SimpleNamespace(ptr=0)
    )
    return cupy


class DLPack:
    """Arrays of one library that show `__dlpack__` and nothing else."""

    def __init__(self, monkeypatch):
        self.cupy = CuPy(monkeypatch)  # which fastdrop sees them by
        if not GPU:
            monkeypatch.setattr(libraries.DLPack, "stream", lambda self, x: 0)
        self.of = Torch(monkeypatch) if GPU else self.cupy
        of = self.of

        class Exchanged:
            def __init__(self, held):
                self.held = held if GPU else getattr(held, "held", held)
                self.shape, self.ndim, self.dtype = held.shape, held.ndim, held.dtype

            @staticmethod
            def __array_namespace__():
                take = of.torch.from_dlpack if GPU else lambda x: x
                return SimpleNamespace(from_dlpack=lambda x: Exchanged(take(x)))

            def __dlpack_device__(self):
                return self.held.__dlpack_device__() if GPU else (2, 0)

            def __dlpack__(self, **how):
                return self.held.__dlpack__(**how)

            T = property(lambda self: Exchanged(self.held.T))

            def __getitem__(self, part):
                return Exchanged(self.held[part])

        self.type = Exchanged

    def to(self, host):
        return self.type(self.of.to(host))

    def back(self, x):
        return self.of.back(x.held)


@pytest.fixture(params=[Numba, Torch, CuPy, DLPack], ids=["numba", "torch", "cupy", "dlpack"])
def library(request, monkeypatch):
    return request.param(monkeypatch)


def rng():
    return fd.Rng(9, 4)


def compare(library, actual, expected):
    for a, b in zip(listed(actual), listed(expected), strict=True):
        assert isinstance(a, library.type)
        assert_same_bits(library.back(a), np.asarray(b))


@pytest.mark.parametrize(("name", "save"), HELD)
def test_every_op(library, name, save):
    case = CASES[name]
    there = {
        key: library.to(value)
        if isinstance(value, np.ndarray) and key not in case.on_host
        else value
        for key, value in case.operands.items()
    }
    y, ctx = run(name, case, there, save)
    expected, here = run(name, case, case.operands, save)
    compare(library, y, expected)
    dy = numbers(*expected.shape)
    compare(library, ctx.backward(library.to(dy)), here.backward(dy))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(library, dtype):
    if dtype == "bfloat16":
        if not isinstance(library, Torch):
            pytest.skip("this library has no bfloat16")
        from ml_dtypes import bfloat16 as dtype
    x = numbers(5, 21).astype(dtype)
    for op in (fd.dropout, fd.relu_dropout, fd.gaussian_dropout):
        y, ctx = op(library.to(x), 0.3, rng=rng())
        expected, here = op(x, 0.3, rng=rng())
        compare(library, y, expected)
        compare(library, ctx.backward(library.to(x)), here.backward(x))


def transposed(x):
    """A view; what Numba's device arrays have as T is a copy."""
    if not GPU or type(x).__module__.partition(".")[0] != "numba":
        return x.T
    known = x.__cuda_array_interface__
    strides = known["strides"] or (x.shape[1] * x.dtype.itemsize, x.dtype.itemsize)
    seen = known | {"shape": x.shape[::-1], "strides": strides[::-1]}
    return cuda.as_cuda_array(SimpleNamespace(__cuda_array_interface__=seen, held=x))


VIEWS = {
    "transposed": transposed,
    "every second": lambda x: x[:, ::2],
    "inner": lambda x: x[1:3, 1:7],
    "from the second row": lambda x: x[1:],  # begins at no multiple of 16 bytes
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("place", [{}, {"shared_axes": 0}, {"region": ((2, 1), (90, 90))}])
def test_views(library, view, place):
    host = numbers(5, 17)
    x, there = VIEWS[view](host), VIEWS[view](library.to(host))
    y, ctx = fd.dropout(there, 0.3, rng=rng(), **place)
    expected, here = fd.dropout(x, 0.3, rng=rng(), **place)
    compare(library, y, expected)
    compare(library, ctx.backward(there), here.backward(x))
    out = library.to(host)
    assert fd.dropout(there, 0.3, rng=rng(), out=VIEWS[view](out), **place)
    VIEWS[view](host)[...] = expected
    assert_same_bits(library.back(out), host)


def test_a_context_changes_sides(library):
    x = numbers(4, 33)
    _, there = fd.dropout(library.to(x), 0.3, rng=rng())
    _, here = fd.dropout(x, 0.3, rng=rng())
    assert_same_bits(there.backward(x), here.backward(x))
    compare(library, here.backward(library.to(x)), here.backward(x))


# What follows needs a device.

HALF = 2**22 + 5  # elements that take a stream long enough to be overtaken


def stream_of(library):
    """A new stream, as a context manager in which the library's calls are in it."""
    if isinstance(library, Torch):
        stream = library.torch.cuda.Stream()
        return library.torch.cuda.stream(stream), stream.synchronize
    stream = library.cupy.cuda.Stream(non_blocking=True)
    return stream, stream.synchronize


@needs_device("two streams at once")
@pytest.mark.parametrize("kind", [Torch, CuPy])
def test_two_streams(kind, monkeypatch):
    """Nothing waits but each for its own: what is read in a stream behind an op is its y."""
    library = kind(monkeypatch)
    host = [numbers(HALF), numbers(HALF)[::-1].copy()]
    there = [library.to(x) for x in host]
    library.back(there[1])
    found, waits = [], []
    for k, x in enumerate(there):
        stream, wait = stream_of(library)
        waits.append(wait)
        with stream:
            y = x
            for call in range(4):
                y, ctx = fd.dropout(y, 0.2, rng=fd.Rng(k, call))
            found.append((y + 0, ctx.backward(y)))
    for k, x in enumerate(host):
        waits[k]()
        for call in range(4):
            x, here = fd.dropout(x, 0.2, rng=fd.Rng(k, call))
        compare(library, found[k], (x + 0, here.backward(x)))


@needs_device("a graph that PyTorch captured")
@pytest.mark.parametrize("save", ["bits", "seed"])
def test_graph_of_torch(monkeypatch, save):
    """A replay reads x as it is then, and has the captured call's mask."""
    library = Torch(monkeypatch)
    torch, host = library.torch, numbers(1003)
    x = library.to(host)
    fd.dropout(x, 0.3, rng=rng(), save=save)[1].backward(x)  # what is compiled is compiled now
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, ctx = fd.dropout(x, 0.3, rng=rng(), save=save)
        dx = ctx.backward(y)
    for scale in (1, 3):
        x.copy_(library.to(host * np.float32(scale)))
        graph.replay()
        torch.cuda.synchronize()
        expected, here = fd.dropout(host * np.float32(scale), 0.3, rng=rng())
        compare(library, (y, dx), (expected, here.backward(expected)))


@needs_device("a graph that CuPy captured")
def test_graph_of_cupy(monkeypatch):
    library = CuPy(monkeypatch)
    host = numbers(1003)
    x, y, dx = (library.to(host) for _ in range(3))
    fd.dropout(x, 0.3, rng=rng(), out=y, save="seed")[1].backward(y, out=dx)
    stream = library.cupy.cuda.Stream(non_blocking=True)
    stream.synchronize()
    with stream:
        stream.begin_capture()
        _, ctx = fd.dropout(x, 0.3, rng=rng(), out=y, save="seed")
        ctx.backward(y, out=dx)
        graph = stream.end_capture()
    for scale in (1, 3):
        x.set(host * np.float32(scale))
        library.cupy.cuda.get_current_stream().synchronize()
        graph.launch(stream)
        stream.synchronize()
        expected, here = fd.dropout(host * np.float32(scale), 0.3, rng=rng())
        compare(library, (y, dx), (expected, here.backward(expected)))


@needs_device("a second context")
def test_second_context(monkeypatch):
    """While another context is present the bits are right, or the library refuses; then all is as
    before."""
    driver = pytest.importorskip("cuda.bindings.driver")
    library, host = Numba(monkeypatch), numbers(1003)
    x = library.to(host)
    expected, _ = fd.dropout(host, 0.3, rng=rng())
    compare(library, fd.dropout(x, 0.3, rng=rng())[0], expected)
    create = driver.cuCtxCreate
    try:
        error, context = create(None, 0, driver.CUdevice(0))  # of CUDA 13
    except TypeError:
        error, context = create(0, driver.CUdevice(0))
    assert int(error) == 0
    try:
        refused = None
        try:
            compare(library, fd.dropout(x, 0.3, rng=rng())[0], expected)
        except RuntimeError as error:
            refused = str(error)
        assert refused is None or "context" in refused
    finally:
        driver.cuCtxPopCurrent()
        driver.cuCtxDestroy(context)
    compare(library, fd.dropout(x, 0.3, rng=rng())[0], expected)


@needs_device("a second device")
def test_second_device(monkeypatch):
    library = Torch(monkeypatch)
    if library.torch.cuda.device_count() < 2:
        pytest.skip("there is one device")
    host = numbers(1003)
    x = library.to(host).to("cuda:1")
    y, ctx = fd.dropout(x, 0.3, rng=rng())
    assert y.device == x.device
    expected, here = fd.dropout(host, 0.3, rng=rng())
    compare(library, (y, ctx.backward(y)), (expected, here.backward(expected)))


@needs_device("2^31 elements, 9 GB")
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_more_elements_than_an_int_counts(monkeypatch, p):
    """The first, those about 2^31, and the last, as the CPU draws them in a region."""
    library, n, few = Torch(monkeypatch), 2**31 + 3003, 5000
    x = library.torch.ones(n, dtype=library.torch.float16, device="cuda")
    y, ctx = fd.dropout(x, p, rng=rng())
    assert ctx.nbytes == (n + 7) // 8
    dx = ctx.backward(x)
    for start in (0, 2**30 - few, 2**31 - few // 2, n - few):
        region = (start,), (n,)
        expected, _ = fd.dropout(np.ones(few, np.float16), p, rng=rng(), region=region)
        part = slice(start, start + few)
        compare(library, (y[part], dx[part]), (expected, expected))


@needs_device("tensors on a GPU, in the adapter for PyTorch")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("p", [0.2, 0.5])
def test_torch_adapter(monkeypatch, dtype, p):
    """`fastdrop.adapters.torch.Dropout` on CUDA tensors: the mask of its twin on the CPU."""
    library = Torch(monkeypatch)
    from fastdrop.adapters.torch import Dropout

    x = library.torch.from_numpy(numbers(9, 130)).to(getattr(library.torch, dtype))
    twins = Dropout(p, seed=5), Dropout(p, seed=5)
    for layer, device in zip(twins, ("cpu", "cuda"), strict=True):
        layer.to(device)
    for _ in range(3):
        here, there = x.clone().requires_grad_(), x.cuda().requires_grad_()
        y_here, y_there = twins[0](here), twins[1](there)
        y_here.backward(x)
        y_there.backward(x.cuda())
        assert_same_bits(library.back(y_there), library.back(y_here))
        assert_same_bits(library.back(there.grad), library.back(here.grad))
