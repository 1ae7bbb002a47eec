"""The libraries whose arrays in a GPU's memory are taken. Importing this imports none of them.

CuPy, PyTorch and Numba arrays are known. What else has ``__cuda_array_interface__`` is taken as it
is, and gets Numba's arrays back, or our own where there is no Numba. What has ``__dlpack__``
instead goes through CuPy and gets its own kind back, without a copy.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from fastdrop.backends.cuda import prebuilt
from fastdrop.backends.cuda.prebuilt import c_strides


class Library:
    """What makes, finds and reads the arrays of one library."""

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        """An array of this shape, dtype and strides (in bytes) on the device of `like`."""
        raise NotImplementedError

    def fetch(self, x: Any) -> np.ndarray:
        """A copy in the host's memory."""
        raise NotImplementedError

    def send(self, like: Any, data: np.ndarray) -> Any:
        """A copy of data, in C order, on the device of `like`."""
        raise NotImplementedError

    def interface(self, x: Any) -> dict:
        """Where x is, as ``__cuda_array_interface__`` tells it."""
        if hasattr(x, "__cuda_array_interface__"):
            return x.__cuda_array_interface__
        host = x._ary  # of the CUDA simulator
        return {**host.__array_interface__, "stream": None}

    def stream(self, x: Any) -> int:
        """The CUDA stream that x is used on, as a handle."""
        return self.interface(x).get("stream") or 0

    def device(self, x: Any) -> int | None:
        """Number of the device that x lives on; None: the present one."""
        return None

    def returned(self, x: Any, source: Any) -> Any:
        """x, which this made, for the caller, who brought `source`. What writes it was launched."""
        return x


class Numba(Library):
    """Numba's device arrays."""

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        from numba import cuda

        if dtype == "bfloat16":
            raise TypeError("Numba's device arrays know no bfloat16; use CuPy or PyTorch arrays")
        stream = 0 if like is None else self.stream(like)
        queue = cuda.external_stream(stream) if stream else 0
        return cuda.device_array(shape, np.dtype(dtype), strides=strides, stream=queue)

    def fetch(self, x: Any) -> np.ndarray:
        if not hasattr(x, "copy_to_host"):
            from numba import cuda

            x = cuda.as_cuda_array(x)
        return x.copy_to_host()

    def send(self, like: Any, data: np.ndarray) -> Any:
        from numba import cuda

        return cuda.to_device(data)


class Own(Library):
    """`prebuilt.Array`, for what would get Numba's arrays, where there is no Numba."""

    def empty(self, like: Any, shape: tuple, dtype: str, strides: tuple) -> Any:
        if dtype == "bfloat16":
            raise TypeError("fastdrop's device arrays know no bfloat16; use CuPy or PyTorch arrays")
        stream = 0 if like is None else self.stream(like)
        # The memory is freed on that stream. CUDA's own, 0 to 2, stay; another is kept with `like`.
        owner = getattr(like, "owner", like) if stream > 2 else None
        return prebuilt.Array(shape, np.dtype(dtype), strides, stream, self.device(like), owner)

    def device(self, x: Any) -> int | None:
        return x.number if isinstance(x, prebuilt.Array) else None

    def fetch(self, x: Any) -> np.ndarray:
        return prebuilt.to_host(self.interface(x), self.device(x))

    def send(self, like: Any, data: np.ndarray) -> Any:
        strides = tuple(s * data.itemsize for s in c_strides(data.shape))
        made = self.empty(like, data.shape, data.dtype.name, strides)
        return made.copy_from_host(np.ascontiguousarray(data))


class CuPy(Library):
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


class PyTorch(Library):
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


KINDS: dict[str, Library] = {
    "numba": Numba(),
    "fastdrop": Own(),
    "cupy": CuPy(),
    "torch": PyTorch(),
}


def default_kind() -> Library:
    """What makes arrays for callers who brought none that could tell."""
    return KINDS["numba" if find_spec("numba") else "fastdrop"]


def library_of(x: Any) -> Library:
    """The library of an array on a device."""
    kind = KINDS.get(type(x).__module__.partition(".")[0])
    if kind is None:
        kind = default_kind() if hasattr(x, "__cuda_array_interface__") else DLPack()
    return kind
