"""Arrays in a GPU's memory, whoever made them, and launching kernels on them.

CuPy, PyTorch and Numba arrays are known. What else has ``__cuda_array_interface__`` is taken as it
is, and gets Numba arrays back. What has ``__dlpack__`` instead goes through CuPy and gets its own
kind back, without a copy. Importing this module imports none of them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from fastdrop._core import BITS_PAD
from fastdrop.block import c_strides

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
THREADS = 128  # of a block
MAX_BLOCKS = 8192  # of a grid: some for each multiprocessor; threads take several turns then

DLPACK_CUDA = 2  # kDLCUDA

INSTALL = "pip install 'fastdrop[numba]'"


def on_device(x: Any) -> bool:
    """Whether x lives in a GPU's memory."""
    if type(x) is np.ndarray or isinstance(x, np.ndarray | np.generic | float | int | list | tuple):
        return False
    is_cuda = getattr(x, "is_cuda", None)  # PyTorch; its interface knows no bfloat16
    if isinstance(is_cuda, bool):
        return is_cuda
    try:
        if hasattr(x, "__cuda_array_interface__") or hasattr(x, "copy_to_host"):  # the simulator's
            return True
        return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == DLPACK_CUDA
    except Exception:  # an array library's own words on an array it cannot export
        return False


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
        return cuda.device_array(shape, np.dtype(dtype), strides=strides)

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
        return x.copy_to_host()

    def send(self, like: Any, data: np.ndarray) -> Any:
        """A copy of data, in C order, on the device of `like`."""
        from numba import cuda

        return cuda.to_device(data)


class CuPy(Numba):
    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        cupy = sys.modules["cupy"]
        with like.device:
            kind = like.dtype if dtype == like.dtype.name else np.dtype(dtype)
            memory = cupy.cuda.alloc(max(prod(shape), 1) * kind.itemsize)
            return cupy.ndarray(shape, kind, memory, strides)

    def stream(self, x: Any) -> int:
        return sys.modules["cupy"].cuda.get_current_stream().ptr

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
        made = super().empty(self._seen(like), shape, dtype, strides)
        return like.__array_namespace__().from_dlpack(made)

    def interface(self, x: Any) -> dict:
        return self._seen(x).__cuda_array_interface__

    def device(self, x: Any) -> int | None:
        return int(x.__dlpack_device__()[1])

    def fetch(self, x: Any) -> np.ndarray:
        return self._seen(x).get()

    def send(self, like: Any, data: np.ndarray) -> Any:
        return like.__array_namespace__().from_dlpack(super().send(self._seen(like), data))


KINDS: dict[str, Numba] = {"numba": Numba(), "cupy": CuPy(), "torch": PyTorch()}


def itemsize(dtype: str) -> int:
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


class DeviceArray:
    """Where an array is and how it is laid out.

    Attributes
    ----------
    array : object
        The caller's array, or one that was made for the caller.
    kind : Numba
        Its library.
    source : object
        The array on whose stream it is used: the caller's that it was made for, or itself.
    address, shape, strides, dtype
        strides are in bytes; dtype is a name.
    """

    __slots__ = ("address", "array", "dtype", "kind", "shape", "source", "strides", "writeable")

    def __init__(self, array: Any, source: Any = None) -> None:
        self.array = array
        self.source = array if source is None else source
        kind = KINDS.get(type(array).__module__.partition(".")[0])
        if kind is None:
            kind = KINDS["numba"] if hasattr(array, "__cuda_array_interface__") else DLPack()
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
        return DeviceArray(self.kind.empty(self.array, like, dtype, strides), self.source)


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
    return DeviceArray(x if on_device(x) else like.kind.send(like.array, x), like.source)


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

    @property
    def nbytes(self) -> int:
        return (self.n + 7) // 8

    def fetch(self) -> bytes:
        if self._host is None:
            held = self.bits.kind.fetch(self.bits.array)
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


@cache
def why_not() -> str | None:
    """Why kernels cannot run on a GPU here; None if they can."""
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


@cache
def where() -> str:
    """What the kernels are compiled for: the GPU, or Numba's simulator of one."""
    if reason := why_not():
        raise RuntimeError(f"fastdrop.cuda cannot run: {reason}")
    from numba.core import config

    return "python" if config.ENABLE_CUDASIM else "cuda"


@cache
def _kernel(target: str, name: str, dtype: str, options: tuple) -> tuple[Any, list]:
    from fastdrop import cuda_table

    if name in cuda_table.OF_NO_DTYPE:
        dtype = "float32"
    kinds = {"u32": np.uint32, "u64": np.uint64, "f32": np.float32, "f64": np.float64}
    kernel, parameters = cuda_table.kernel(target, name, dtype, **dict(options))
    return kernel, [(n, kinds[kind], length) for n, kind, length in parameters]


def launch(
    name: str, like: DeviceArray, threads: int, options: dict[str, Any], **arguments: Any
) -> None:
    """Start a kernel of `fastdrop.cuda_table` on the caller's stream, and do not wait for it.

    threads: how many have something to do. Arguments that are not given are 0.
    """
    target = where()
    kernel, parameters = _kernel(target, name, like.dtype, tuple(sorted(options.items())))
    values = []
    for n, kind, length in parameters:
        value = arguments.get(n, 0)
        if isinstance(value, DeviceArray):
            value = value.address
        if length is None:
            values.append(kind(value))
        else:
            values.append(tuple(map(kind, value or (0,) * length)))
    if target == "njit":
        kernel(*values)
        return
    from numba import cuda

    blocks = min(max(1, (threads + THREADS - 1) // THREADS), MAX_BLOCKS)
    stream = like.stream
    queue = cuda.external_stream(stream) if stream and target == "cuda" else 0
    number = like.kind.device(like.array) if target == "cuda" else None
    present = number is None or number == cuda.get_current_device().id
    with nullcontext() if present else cuda.gpus[number]:
        kernel[blocks, THREADS, queue](*values)


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
