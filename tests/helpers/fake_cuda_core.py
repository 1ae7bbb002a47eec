"""A driver and cuda-core where there is no GPU: a launch executes the PTX of the fatbin, in memory
that the fake arrays of the tests lie in."""

import ctypes
import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import numpy as np

from helpers import fake_device
from helpers.ptx import Kernel, Memory

NO_ERROR = 0
PTX_KIND = 1


def parts(fatbin):
    """Kind (1: PTX, 2: cubin), architecture and content of each part of a fatbin, none of which
    are compressed. The layout is that which cuobjdump reads: a header of 16 bytes, and one for each
    part, which says how long itself and the content are.
    """
    magic, _, header, size = struct.unpack_from("<IHHQ", fatbin)
    assert magic == 0xBA55ED50
    assert header + size == len(fatbin)
    found, at = [], header
    while at < header + size:
        kind, _, own, length = struct.unpack_from("<HHIQ", fatbin, at)
        (arch,) = struct.unpack_from("<I", fatbin, at + 28)
        found.append((kind, arch, fatbin[at + own : at + own + length]))
        at += own + length
    return found


def ptx_of(fatbin):
    (text,) = (content for kind, _, content in parts(fatbin) if kind == PTX_KIND)
    return text.rstrip(b"\0").decode()


class HostMemory(Memory):
    """Device memory at the addresses that it has in this process."""

    def __init__(self, nbytes=1 << 24):
        super().__init__(nbytes + 256)
        begin = -self.bytes.ctypes.data % 256
        self.bytes = self.bytes[begin : begin + nbytes]
        self.BASE = self.bytes.ctypes.data

    def allocate(self, nbytes, offset=0):
        """Bytes from `offset` behind a multiple of 256 on, with gaps around that nobody may touch;
        nothing may rely on zeros.
        """
        held = np.full(nbytes, 0xFF, np.uint8)
        start = self.put(held, offset) - self.BASE
        return self.bytes[start : start + nbytes]

    def placed(self, host):
        """A copy of the array with its layout, unless it is here already."""
        low, high = np.lib.array_utils.byte_bounds(host)
        if not host.size or self.BASE <= low < self.BASE + self.bytes.size:
            return host
        held = self.allocate(high - low, low % 256)
        ctypes.memmove(held.ctypes.data, low, high - low)
        place = host.ctypes.data - low
        copy = np.ndarray(host.shape, host.dtype, held.data, place, host.strides)
        copy.flags.writeable = host.flags.writeable
        return copy


class Stream:
    def __init__(self, handle):
        self.handle = handle

    @staticmethod
    def from_handle(handle):
        assert handle
        return Stream(handle)

    def sync(self):
        pass


class ObjectCode:
    @staticmethod
    def from_fatbin(module, *, name=""):
        assert type(module) is bytes
        made = ObjectCode()
        made.text = ptx_of(module)
        return made

    def get_kernel(self, name):
        return Kernel(self.text, name)


class LaunchConfig:
    def __init__(self, grid, block):
        self.grid, self.block = grid, block


class Core:
    """What `cuda.core` and `cuda.bindings.driver` are replaced by, and what was launched."""

    def __init__(self, memory):
        self.memory, self.launched, self.present = memory, [], 0  # no context is present
        self.capability = 9, 0

    def launch(self, stream, config, kernel, *arguments):
        assert self.present, "no device is present"
        types = [str(t) for t, _ in kernel.parameters.values()]
        assert types == [str(a.dtype) for a in arguments]
        self.launched.append((config.grid, config.block, stream.handle))
        kernel.launch(self.memory, config.grid, config.block, *map(int_or_float, arguments))

    def device(self, number=None):
        if number is None:  # the present one
            assert self.present
            number = self.present - 1

        def set_current():
            self.present = number + 1

        def allocate(size, *, stream):
            assert self.present == number + 1
            held = self.memory.allocate(size)
            return SimpleNamespace(handle=held.ctypes.data, held=held)

        memory = SimpleNamespace(allocate=allocate)
        return SimpleNamespace(set_current=set_current, memory_resource=memory, device_id=number)

    def modules(self):
        core, bindings, driver = (
            ModuleType(name) for name in ("cuda.core", "cuda.bindings", "cuda.bindings.driver")
        )
        core.ObjectCode, core.LaunchConfig, core.Stream = ObjectCode, LaunchConfig, Stream
        core.LEGACY_DEFAULT_STREAM, core.Device, core.launch = Stream(1), self.device, self.launch
        bindings.driver = driver

        def set_context(context):
            self.present = int(context)
            return (NO_ERROR,)

        def copied(to, source, nbytes, stream):
            assert self.present
            ctypes.memmove(to, source, nbytes)
            return (NO_ERROR,)

        driver.cuInit = lambda flags: (NO_ERROR,)
        driver.cuDeviceGetCount = lambda: (NO_ERROR, 1)
        driver.cuDeviceGet = lambda number: (NO_ERROR, number)
        driver.cuDeviceGetAttribute = lambda which, device: (NO_ERROR, self.capability[which])
        driver.CUdevice_attribute = SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1,
        )
        driver.cuCtxGetCurrent = lambda: (NO_ERROR, self.present)
        driver.cuCtxSetCurrent = set_context
        driver.cuMemcpyDtoHAsync = driver.cuMemcpyHtoDAsync = copied
        for module in (core, bindings, driver):
            module.__spec__ = ModuleSpec(module.__name__, None)
        return {module.__name__: module for module in (core, bindings, driver)}

    def install(self, monkeypatch):
        """In place of the real ones, whether they are there or not; arrays are in its memory."""
        monkeypatch.setattr(fake_device, "allocate", self.memory.allocate)
        monkeypatch.setattr(fake_device, "placed", self.memory.placed)
        modules = self.modules()
        parent = sys.modules.get("cuda") or ModuleType("cuda")
        monkeypatch.setitem(sys.modules, "cuda", parent)
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
            if name.count(".") == 1:
                monkeypatch.setattr(parent, name.rpartition(".")[2], module, raising=False)


def int_or_float(scalar):
    assert isinstance(scalar, np.generic)
    return scalar.item()
