"""Arrays of which `fastdrop.cuda` believes that a GPU holds them: the simulator's and the CPU's
kernels can reach them, and nothing else of fastdrop takes them.
"""

import numpy as np

from fastdrop.backends.cuda import libraries


def allocate(nbytes, offset=0):
    """Bytes from `offset` behind a multiple of 16 on; nothing may rely on zeros."""
    memory = np.full(nbytes + offset + 16, 0xFF, np.uint8)
    begin = -memory.ctypes.data % 16 + offset
    return memory[begin : begin + nbytes]


def placed(host):
    """The array, where kernels can reach it."""
    return host


class FakeArray:
    def __init__(self, host, stream=None):
        self.host = placed(host)
        self.used_on = stream

    @property
    def __cuda_array_interface__(self):
        known = self.host.__array_interface__
        return {
            "shape": self.host.shape,
            "strides": None if self.host.flags.c_contiguous else self.host.strides,
            "typestr": known["typestr"],
            "data": (self.host.ctypes.data, not self.host.flags.writeable),
            "version": 3,
            "stream": self.used_on,
        }

    @property
    def shape(self):
        return self.host.shape

    @property
    def ndim(self):
        return self.host.ndim

    @property
    def dtype(self):
        return self.host.dtype

    def part(self, begin, end):
        """Of an array of one axis, in the same memory."""
        return FakeArray(self.host[begin:end])

    def __array__(self, *args, **kwargs):
        raise AssertionError("copied to the host")


class FakeLibrary(libraries.Library):
    def empty(self, like, shape, dtype, strides):
        if dtype == "bfloat16":
            dtype = like.dtype
        memory = allocate(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return FakeArray(np.ndarray(shape, dtype, memory.data, 0, strides))

    def fetch(self, x):
        return x.host.copy()

    def send(self, like, data):
        return to_fake(data)


FakeArray.__module__ = "fake_device"  # by which its library is found
libraries.KINDS["fake_device"] = FakeLibrary()


def to_fake(host, offset=0, stream=None):
    """A copy of host, same strides order, that begins `offset` elements behind a multiple of 16."""
    host = np.asarray(host)
    order = sorted(range(host.ndim), key=lambda d: -abs(host.strides[d]))
    flat = allocate(host.nbytes, offset * host.itemsize).view(host.dtype)
    dense = flat.reshape([host.shape[d] for d in order]).transpose(np.argsort(order))
    dense = dense.reshape(host.shape) if not host.ndim else dense
    dense[...] = host
    return FakeArray(dense, stream)
