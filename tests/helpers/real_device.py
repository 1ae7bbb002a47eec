"""In place of fake_device.py, with FASTDROP_GPU in the environment: arrays in the memory of the
device that Numba has, a GPU or its simulator, of any layout and dtype.
"""

import ctypes
from copy import copy

import numpy as np
from numba import cuda

from fastdrop.backends.cuda import libraries


def on_device(data):
    """Bytes, somewhere on the device."""
    return cuda.to_device(np.ascontiguousarray(data, np.uint8).reshape(-1))


class RealArray:
    """A copy of host, at the same distance from a multiple of 16 bytes."""

    def __init__(self, host, stream=None):
        reaches = [(n - 1) * s for n, s in zip(host.shape, host.strides, strict=True)]
        before = -sum(r for r in reaches if r < 0) if host.size else 0
        nbytes = (before + sum(r for r in reaches if r > 0) + host.itemsize) if host.size else 0
        low = host.ctypes.data - before
        self.start = low % 16
        span = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(low))
        self.buffer = on_device(np.concatenate([np.zeros(self.start, np.uint8), span, span[:0]]))
        self.start += before
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.readonly = not host.flags.writeable

    @property
    def __cuda_array_interface__(self):
        address = libraries.KINDS["numba"].interface(self.buffer)["data"][0]
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (address + self.start, self.readonly),
            "version": 3,
            "stream": None,
        }

    @property
    def host(self):
        held = self.buffer.copy_to_host()
        return np.ndarray(self.shape, self.dtype, held.data, self.start, self.strides)

    @property
    def ndim(self):
        return len(self.shape)

    def part(self, begin, end):
        """Of an array of one axis, in the same memory."""
        other = copy(self)
        other.shape, other.start = (end - begin,), self.start + begin * self.dtype.itemsize
        return other

    def __array__(self, *args, **kwargs):
        raise AssertionError("copied to the host")


class RealLibrary(libraries.Library):
    def empty(self, like, shape, dtype, strides):
        dtype = like.dtype if dtype == "bfloat16" else dtype
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = np.full(size + 64, 0xFF, np.uint8)
        return RealArray(np.ndarray(shape, dtype, memory.data, -memory.ctypes.data % 16, strides))

    def fetch(self, x):
        return x.host.copy()

    def send(self, like, data):
        return to_real(data)


RealArray.__module__ = "real_device"  # by which its library is found
libraries.KINDS["real_device"] = RealLibrary()


def to_real(host, offset=0, stream=None):
    """As `fake_device.to_fake`."""
    from helpers.fake_device import to_fake

    return RealArray(to_fake(host, offset).host)
