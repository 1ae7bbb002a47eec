"""Arrays in a GPU's memory, whoever made them, and launching kernels on them.

CuPy, PyTorch and Numba arrays are known. What else has ``__cuda_array_interface__`` is taken as it
is, and gets Numba's arrays back, or our own where there is no Numba. What has ``__dlpack__``
instead goes through CuPy and gets its own kind back, without a copy. Importing this module imports
none of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from fastdrop._core import BITS_PAD
from fastdrop.backends.cuda import prebuilt as cuda_prebuilt
from fastdrop.backends.cuda.kernels.elements import ITEMSIZE
from fastdrop.base.devices import on_device
from fastdrop.base.place import c_strides

THREADS = 128  # of a block
MAX_BLOCKS = 8192  # of a grid: some for each multiprocessor; threads take several turns then

INSTALL = "pip install 'fastdrop[numba]'"


def cuda() -> ModuleType:
    """`fastdrop.cuda`, where the operations are, which imports this module and they do."""
    return import_module("fastdrop.cuda")


class Numba:
    """Numba's device arrays; of the kinds below, what makes and reads arrays of one library."""

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        """An array of this shape, dtype and strides (in bytes) on the device of `like`."""
        from numba import cuda

        if dtype == "bfloat16":
            raise TypeError("Numba's device arrays know no bfloat16; use CuPy or PyTorch arrays")
        stream = 0 if like is None else self.stream(like)
        queue = cuda.external_stream(stream) if stream else 0
        return cuda.device_array(shape, np.dtype(dtype), strides=strides, stream=queue)

    def interface(self, x: Any) -> dict:
        if hasattr(x, "__cuda_array_interface__"):
            return x.__cuda_array_interface__
        host = x._ary  # of the CUDA simulator
        return {**host.__array_interface__, "stream": None}

    def stream(self, x: Any) -> int:
        """The stream that x is used on, as CUDA's handle."""
        return self.interface(x).get("stream") or 0

    def device(self, x: Any) -> int | None:
        """Number of the device that x lives on; None: the present one."""
        return None

    def fetch(self, x: Any) -> np.ndarray:
        """A copy in the host's memory."""
        if not hasattr(x, "copy_to_host"):
            from numba import cuda

            x = cuda.as_cuda_array(x)
        return x.copy_to_host()

    def send(self, like: Any, data: np.ndarray) -> Any:
        """A copy of data, in C order, on the device of `like`."""
        from numba import cuda

        return cuda.to_device(data)

    def returned(self, x: Any, source: Any) -> Any:
        """x, which this made, for the caller, who brought `source`. What writes it was launched."""
        return x


class Own(Numba):
    """`cuda_prebuilt.Array`, for what would get Numba's arrays, where there is no Numba."""

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        if dtype == "bfloat16":
            raise TypeError("fastdrop's device arrays know no bfloat16; use CuPy or PyTorch arrays")
        stream = 0 if like is None else self.stream(like)
        # The memory is freed on that stream. CUDA's own, 0 to 2, stay; another is kept with `like`.
        owner = getattr(like, "owner", like) if stream > 2 else None
        return cuda_prebuilt.Array(
            shape, np.dtype(dtype), strides, stream, self.device(like), owner
        )

    def device(self, x: Any) -> int | None:
        return x.number if isinstance(x, cuda_prebuilt.Array) else None

    def fetch(self, x: Any) -> np.ndarray:
        return cuda_prebuilt.to_host(self.interface(x), self.device(x))

    def send(self, like: Any, data: np.ndarray) -> Any:
        strides = tuple(s * data.itemsize for s in c_strides(data.shape))
        made = self.empty(like, data.shape, data.dtype.name, strides)
        return made.copy_from_host(np.ascontiguousarray(data))


class CuPy(Numba):
    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        cupy = sys.modules["cupy"]
        with like.device:
            kind = like.dtype if dtype == like.dtype.name else np.dtype(dtype)
            memory = cupy.cuda.alloc(max(prod(shape), 1) * kind.itemsize)
            return cupy.ndarray(shape, kind, memory, strides)

    def stream(self, x: Any) -> int:
        return import_module("cupy").cuda.get_current_stream(self.device(x)).ptr

    def device(self, x: Any) -> int | None:
        return x.device.id

    def fetch(self, x: Any) -> np.ndarray:
        return x.get()

    def send(self, like: Any, data: np.ndarray) -> Any:
        with like.device:
            return sys.modules["cupy"].asarray(data)


class PyTorch(Numba):
    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        torch = sys.modules["torch"]
        size = torch.empty((), dtype=getattr(torch, dtype)).element_size()
        steps = [s // size for s in strides]
        return torch.empty_strided(shape, steps, dtype=getattr(torch, dtype), device=like.device)

    def interface(self, x: Any) -> dict:
        dtype = str(x.dtype).removeprefix("torch.")
        size = x.element_size()
        return {
            "data": (x.data_ptr(), False),
            "shape": tuple(x.shape),
            "strides": tuple(s * size for s in x.stride()),
            "dtype": dtype,
        }

    def stream(self, x: Any) -> int:
        return sys.modules["torch"].cuda.current_stream(x.device).cuda_stream

    def device(self, x: Any) -> int | None:
        return x.device.index

    def fetch(self, x: Any) -> np.ndarray:
        x = x.detach().cpu()
        if x.dtype != sys.modules["torch"].bfloat16:
            return x.numpy()
        bfloat16 = import_module("ml_dtypes").bfloat16  # PyTorch exports none
        return x.view(sys.modules["torch"].int16).numpy().view(bfloat16)

    def send(self, like: Any, data: np.ndarray) -> Any:
        torch = sys.modules["torch"]
        if data.dtype.name != "bfloat16":
            return torch.from_numpy(data).to(like.device)
        return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).to(like.device)


class DLPack(CuPy):
    """What exchanges arrays by DLPack alone: CuPy sees the same memory."""

    def _seen(self, x: Any) -> Any:
        return import_module("cupy").from_dlpack(x)

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        return super().empty(self._seen(like), shape, dtype, strides)

    def interface(self, x: Any) -> dict:
        return self._seen(x).__cuda_array_interface__

    def device(self, x: Any) -> int | None:
        return int(x.__dlpack_device__()[1])

    def fetch(self, x: Any) -> np.ndarray:
        return self._seen(x).get()

    def send(self, like: Any, data: np.ndarray) -> Any:
        return super().send(self._seen(like), data)

    def returned(self, x: Any, source: Any) -> Any:
        # Its stream waits here for CuPy's: not before what writes x is in that.
        same = type(x) is type(source)
        return x if same else source.__array_namespace__().from_dlpack(x)


KINDS: dict[str, Numba] = {
    "numba": Numba(),
    "fastdrop": Own(),
    "cupy": CuPy(),
    "torch": PyTorch(),
}


def default_kind() -> Numba:
    """What makes arrays for callers who brought none that could tell."""
    return KINDS["numba" if find_spec("numba") else "fastdrop"]


def itemsize(dtype: str) -> int:
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


class DeviceArray:
    """Where an array is and how it is laid out.

    Attributes
    ----------
    held : object
        The caller's array, or what was made for the caller.
    kind : Numba
        Its library.
    source : object
        The array on whose stream it is used: the caller's that it was made for, or itself.
    address, shape, strides, dtype
        strides are in bytes; dtype is a name.
    """

    __slots__ = ("address", "dtype", "held", "kind", "shape", "source", "strides", "writeable")

    def __init__(self, array: Any, source: Any = None, kind: Numba | None = None) -> None:
        self.held = array
        self.source = array if source is None else source
        kind = kind or KINDS.get(type(array).__module__.partition(".")[0])
        if kind is None:
            kind = default_kind() if hasattr(array, "__cuda_array_interface__") else DLPack()
        self.kind = kind
        known = self.kind.interface(array)
        self.address, readonly = known["data"]
        self.writeable = not readonly
        self.shape = tuple(known["shape"])
        dtype = known.get("dtype")
        if dtype is None:
            dtype = getattr(getattr(array, "dtype", None), "name", None)
            dtype = dtype if dtype == "bfloat16" else np.dtype(known["typestr"]).name
        self.dtype = dtype
        strides = known.get("strides")
        if strides is None:
            strides = tuple(s * self.itemsize for s in c_strides(self.shape))
        self.strides = tuple(strides)

    @property
    def array(self) -> Any:
        """The array as the caller's library has it; to be asked for after the last launch."""
        return self.kind.returned(self.held, self.source)

    @property
    def itemsize(self) -> int:
        return itemsize(self.dtype)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def stream(self) -> int:
        return self.kind.stream(self.source)

    def order(self) -> list[int]:
        """The axes as they follow in memory, the slowest first."""
        return sorted(range(self.ndim), key=lambda d: (-abs(self.strides[d]), d))

    def dense(self, order: Sequence[int] | None = None) -> tuple[int, ...]:
        """The strides, in bytes, of an array without gaps whose axes follow in this order."""
        order = range(self.ndim) if order is None else order
        steps = c_strides(tuple(self.shape[d] for d in order))
        return tuple(s * self.itemsize for _, s in sorted(zip(order, steps, strict=True)))

    def has_strides(self, strides: tuple[int, ...]) -> bool:
        """Whether this is its layout, but for axes of length 1."""
        pairs = zip(self.shape, self.strides, strides, strict=True)
        return not self.size or all(n == 1 or a == b for n, a, b in pairs)

    def new(self, dtype: str | None = None, shape: tuple | None = None, order: Any = None) -> Any:
        """A `DeviceArray` of the caller's kind on the same device; C order, if not said."""
        like = self.shape if shape is None else shape
        dtype = dtype or self.dtype
        size = itemsize(dtype)
        strides = tuple(s * size for s in c_strides(like))
        strides = strides if order is None else self.dense(order)
        made = self.kind.empty(self.held, like, dtype, strides)
        return DeviceArray(made, self.source, self.kind)


def array(x: Any, name: str = "x") -> DeviceArray:
    """A floating-point array on the device."""
    if not on_device(x):
        raise TypeError(
            f"{name} must be a CUDA array (CuPy, PyTorch, Numba) as the others are, "
            f"got {type(x).__module__}.{type(x).__name__}; copy it to the device first"
        )
    view = DeviceArray(x)
    if view.dtype not in ITEMSIZE:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {view.dtype}; "
            "convert it with .astype"
        )
    return view


def sent(x: np.ndarray | Any, like: DeviceArray) -> DeviceArray:
    """x on the device and the stream of `like`; copied there from the host's memory."""
    if on_device(x):
        return DeviceArray(x, like.source)
    return DeviceArray(like.kind.send(like.held, x), like.source, like.kind)


def fetched(x: Any) -> Any:
    """An array or a packed mask in the host's memory, for which this waits; else x itself."""
    if isinstance(x, DeviceBits):
        return x.fetch()
    return DeviceArray(x).kind.fetch(x) if on_device(x) else x


def output(x: DeviceArray, out: Any) -> DeviceArray | None:
    """out, checked as `gate.output` does."""
    if out is None:
        return None
    if not on_device(out):
        raise TypeError(f"out must be a CUDA array as x is, got {type(out).__name__}")
    view = DeviceArray(out)
    if view.shape != x.shape:
        raise ValueError(f"out must have shape {x.shape}, got {view.shape}")
    if view.dtype != x.dtype:
        raise TypeError(f"out must have dtype {x.dtype}, got {view.dtype}")
    if not view.writeable:
        raise ValueError("out is read-only; pass a writeable array or a copy")
    return view


class DeviceBits:
    """A packed mask on the device. `fetch` gives what the CPU's kernels take, and waits for it.

    On the device there are two bytes for each 16 elements.
    """

    __slots__ = ("_host", "bits", "n")

    def __init__(self, n: int, bits: DeviceArray) -> None:
        self.n, self.bits, self._host = n, bits, None
        bits.source = bits.held  # not the caller's x: a context must not hold its memory

    @property
    def nbytes(self) -> int:
        return (self.n + 7) // 8

    def fetch(self) -> bytes:
        if self._host is None:
            held = self.bits.kind.fetch(self.bits.held)
            self._host = held.tobytes()[: self.nbytes] + bytes(BITS_PAD)
        return self._host

    @staticmethod
    def of(held: Any, n: int, like: DeviceArray) -> DeviceBits:
        """A context's bits on the device of `like`."""
        if isinstance(held, DeviceBits):
            return held
        data = np.frombuffer(held, np.uint8, (n + 7) // 8)
        data = np.concatenate([data, np.zeros(-len(data) % 2, np.uint8)])
        return DeviceBits(n, sent(data, like))

    @staticmethod
    def empty(n: int, like: DeviceArray) -> DeviceBits:
        return DeviceBits(n, like.new("uint8", (max(1, (n + 15) // 16) * 2,)))


def collapsed(shape: Sequence[int], *strides: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Shape and strides with neighbouring axes made one where all strides allow; at least one."""
    kept = [[n, *steps] for n, *steps in zip(shape, *strides, strict=True) if n != 1]
    axes: list[list[int]] = []
    for n, *steps in kept:
        if axes and all(o == n * s for o, s in zip(axes[-1][1:], steps, strict=True)):
            axes[-1] = [axes[-1][0] * n, *steps]
        else:
            axes.append([n, *steps])
    return tuple(zip(*(axes or [[1] + [0] * len(strides)]), strict=True))


def _numba_why_not() -> str | None:
    """Why Numba cannot compile and run kernels here; None if it can."""
    try:
        from numba import cuda
    except ImportError:
        return f"Numba is not installed: {INSTALL}"
    try:
        if cuda.is_available():
            return None
        error = getattr(cuda, "cuda_error", lambda: None)()
    except Exception as raised:
        error = raised
    return f"Numba finds no CUDA device or driver ({' '.join(str(error or 'no device').split())})"


ROUTES = "prebuilt", "numba"


@cache
def _route(name: str) -> str | None:
    asked = os.environ.get("FASTDROP_CUDA")
    if asked not in (None, "", *ROUTES):
        raise ValueError(f"FASTDROP_CUDA must be prebuilt or numba, got {asked!r}")
    if asked and asked != name:
        return f"FASTDROP_CUDA={asked} is set"
    if name == "numba":
        return _numba_why_not()
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return "NUMBA_ENABLE_CUDASIM is set"
    return cuda_prebuilt.why_not()


def routes() -> dict[str, str | None]:
    """The ways to run kernels on a GPU, in the order of preference: why not here, or None.

    "prebuilt": those that came with the package; "numba": compiled at their first use. The
    environment variable ``FASTDROP_CUDA`` names one to leave the other out.
    """
    return {name: _route(name) for name in ROUTES}


def why_not() -> str | None:
    """Why kernels cannot run on a GPU here; None if they can."""
    if any(_route(name) is None for name in ROUTES):  # and Numba is imported only if it is needed
        return None
    return "; ".join(f"{name} kernels: {reason}" for name, reason in routes().items())


@cache
def where() -> str:
    """How kernels run: "prebuilt", or what Numba compiles them for, which may be its simulator."""
    if reason := why_not():
        raise RuntimeError(f"fastdrop.cuda cannot run: {reason}")
    return "prebuilt" if _route("prebuilt") is None else _compiled_for()


def _compiled_for() -> str:
    from numba.core import config

    return "python" if config.ENABLE_CUDASIM else "cuda"


@cache
def _kernel(target: str, name: str, dtype: str, options: tuple) -> Any:
    """A kernel of `fastdrop.backends.cuda.table`; None if it should be prebuilt and is not."""
    from fastdrop.backends.cuda import table as cuda_table

    dtype = cuda_table.dtype_of(name, dtype)
    if target == "prebuilt":
        return cuda_prebuilt.kernel(name, dtype, options)
    return cuda_table.kernel(target, name, dtype, **dict(options))


def launch(
    name: str, like: DeviceArray, threads: int, options: dict[str, Any], **arguments: Any
) -> None:
    """Start a kernel on the caller's CUDA stream, and do not wait for it; see `table`.

    threads: how many have something to do. Arguments that are not given are 0.
    """
    from fastdrop.backends.cuda import table as cuda_table

    target, key = where(), (name, like.dtype, tuple(sorted(options.items())))
    given = {n: v.address if isinstance(v, DeviceArray) else v for n, v in arguments.items()}
    values = cuda_table.values(*key, given)
    if target == "njit":
        _kernel(target, *key)(*values)
        return
    blocks = min(max(1, (threads + THREADS - 1) // THREADS), MAX_BLOCKS)
    stream, number = like.stream, like.kind.device(like.held)
    if target == "prebuilt":
        if kernel := _kernel(target, *key):
            flat = list(cuda_table.flattened(values))
            cuda_prebuilt.start(kernel, blocks, THREADS, stream, number, flat)
            return
        if reason := _route("numba"):
            raise RuntimeError(
                f"no kernel {name!r} for {like.dtype} was built ahead with {options} (axes: those "
                f"of an array, after joining what can be one), and none can be compiled: {reason}"
            )
        target = _compiled_for()
    from numba import cuda

    if target == "python":
        _kernel(target, *key)[blocks, THREADS](*values)
        return
    queue = cuda.external_stream(stream) if stream else 0
    present = number is None or number == cuda.get_current_device().id
    with nullcontext() if present else cuda.gpus[number]:
        if cuda.get_current_device().compute_capability < (8, 0):
            target = "turing"
        _kernel(target, *key)[blocks, THREADS, queue](*values)


def copy(x: DeviceArray, y: DeviceArray) -> None:
    """y = x, whatever their layouts; they do not overlap, unless they are the same."""
    if not x.size or (x.address == y.address and x.strides == y.strides):
        return
    order = y.order()
    shape, strides, to = collapsed(
        [x.shape[d] for d in order], [x.strides[d] for d in order], [y.strides[d] for d in order]
    )
    mask = 2**64 - 1  # strides may be negative
    launch(
        "copy",
        x,
        x.size,
        {"axes": len(shape), "small": x.size < 2**32},
        x=x,
        y=y,
        n=x.size,
        shape=shape,
        strides=tuple(s & mask for s in strides),
        to=tuple(s & mask for s in to),
    )


def contiguous(x: DeviceArray) -> DeviceArray:
    """x in C order, copied only if it is not."""
    if x.has_strides(x.dense()):
        return x
    y = x.new()
    copy(x, y)
    return y


def overlap(x: DeviceArray, y: DeviceArray) -> bool:
    """Whether the spans of memory of two arrays meet."""

    def span(a: DeviceArray) -> tuple[int, int]:
        reaches = [(n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)]
        low = a.address + sum(r for r in reaches if r < 0)
        return low, a.address + sum(r for r in reaches if r > 0) + a.itemsize

    (a, b), (c, d) = span(x), span(y)
    return bool(x.size) and a < d and c < b
