"""Arrays and packed masks in a GPU's memory, as the kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from fastdrop._core import BITS_PAD
from fastdrop.backends.cuda.libraries import Library, library_of
from fastdrop.backends.cuda.prebuilt import c_strides
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.dtypes import ITEMSIZE


def itemsize(dtype: str) -> int:
    return ITEMSIZE.get(dtype) or np.dtype(dtype).itemsize


class DeviceArray:
    """Where an array is and how it is laid out.

    Attributes
    ----------
    held : object
        The caller's array, or what was made for the caller.
    kind : Library
        Its library.
    source : object
        The array on whose stream it is used: the caller's that it was made for, or itself.
    address, shape, strides, dtype
        strides are in bytes; dtype is a name, or what NumPy writes for another byte order.
    """

    __slots__ = ("address", "dtype", "held", "kind", "shape", "source", "strides", "writeable")

    def __init__(self, array: Any, source: Any = None, kind: Library | None = None) -> None:
        self.held = array
        self.source = array if source is None else source
        self.kind = kind or library_of(array)
        known = self.kind.interface(array)
        self.address, readonly = known["data"]
        self.writeable = not readonly
        self.shape = tuple(known["shape"])
        dtype = known.get("dtype")
        if dtype is None:
            dtype = getattr(getattr(array, "dtype", None), "name", None)
            if dtype != "bfloat16":
                found = np.dtype(known["typestr"])
                dtype = found.name if found.isnative else found.str  # a name knows no byte order
        self.dtype = dtype
        strides = known.get("strides")
        if strides is None:
            strides = tuple(s * self.itemsize for s in c_strides(self.shape))
        self.strides = tuple(strides)

    @property
    def array(self) -> Any:
        """The array as the caller's library has it; to be asked for after the last launch."""
        return self.kind.returned(self.held, self.source)

    def fetched(self) -> np.ndarray:
        """A copy in the host's memory, for which this waits."""
        return self.kind.fetch(self.array)

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

    def new(
        self, dtype: str | None = None, shape: tuple[int, ...] | None = None, order: Any = None
    ) -> Any:
        """A `DeviceArray` of the caller's kind on the same device; C order, if not said."""
        like = self.shape if shape is None else shape
        dtype = dtype or self.dtype
        size = itemsize(dtype)
        strides = tuple(s * size for s in c_strides(like))
        strides = strides if order is None else self.dense(order)
        made = self.kind.empty(self.held, like, dtype, strides)
        return DeviceArray(made, self.source, self.kind)


def seen(x: Any, name: str, source: Any = None) -> DeviceArray:
    """An array of the caller's, where it says that it is; it may be none, or of a library that
    needs another that is not there.
    """
    try:
        return DeviceArray(x, source)
    except Exception as error:
        raise TypeError(
            f"{name} says that it is on a GPU, and where cannot be told of a "
            f"{type(x).__module__}.{type(x).__name__}: {error!r}"
        ) from error


def array(x: Any, name: str = "x") -> DeviceArray:
    """A floating-point array on the device."""
    if not on_device(x):
        raise TypeError(
            f"{name} must be a CUDA array (CuPy, PyTorch, Numba) as the others are, "
            f"got {type(x).__module__}.{type(x).__name__}; copy it to the device first"
        )
    view = seen(x, name)
    if view.dtype not in ITEMSIZE:
        is_complex = view.dtype.startswith("complex")
        remedy = "copy it to the host" if is_complex else "convert it with .astype"
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64 on a GPU, got {view.dtype}; "
            + remedy
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


def nbytes(x: Any) -> int:
    """What an array's elements take, if its library does not say, too."""
    view = DeviceArray(x)
    return view.size * view.itemsize


def output(out: Any, x: DeviceArray) -> DeviceArray:
    """out, checked as `gate.output` does."""
    if not on_device(out):
        raise TypeError(f"out must be a CUDA array as x is, got {type(out).__name__}")
    view = seen(out, "out")
    gate.output(view, x, view.writeable)
    gate.distinct(view)
    return view


class DeviceBits:
    """A packed mask on the device. `fetch` gives what the CPU's kernels take, and waits for it.

    On the device there are two bytes for each 16 elements.
    """

    __slots__ = ("_host", "bits", "n")

    def __init__(self, n: int, bits: DeviceArray) -> None:
        self.n, self.bits = n, bits
        self._host: bytes | None = None
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


def overlap(x: DeviceArray, y: DeviceArray) -> bool:
    """Whether the spans of memory of two arrays meet."""

    def span(a: DeviceArray) -> tuple[int, int]:
        reaches = [(n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)]
        low = a.address + sum(r for r in reaches if r < 0)
        return low, a.address + sum(r for r in reaches if r > 0) + a.itemsize

    (a, b), (c, d) = span(x), span(y)
    return bool(x.size) and a < d and c < b
