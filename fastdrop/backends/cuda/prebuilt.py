"""GPU kernels that came with the package: loaded and launched through cuda-core, compiled when the
wheel was built.

They are in an archive, ``kernels.zip``, a fatbin each: cubins for some architectures, and PTX for
later ones. dev/gpu/cuda_build.py makes it; setup.py, which puts it into a wheel, runs this file
alone to see whether it is stale, so what is imported here is of the standard library. Nearly all
who import fastdrop read no archive: what reads one is imported where it does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import cache
from math import prod
from typing import Any

FOLDER = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))  # of the package
FILE = os.path.join(FOLDER, "kernels.zip")

INSTALL = "pip install 'fastdrop[cuda13]', or [cuda12] for a driver of CUDA 12"


def c_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of an array in C order, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def member(name: str, dtype: str, options: Sequence[tuple[str, Any]]) -> str:
    """A kernel's file in the archive; options are sorted by name, and complete."""
    values = (f"{key}={int(v) if isinstance(v, bool) else v}" for key, v in options)
    return "-".join((name, dtype, *values)) + ".fatbin"


def read_manifest(file: str) -> dict[str, Any]:
    """What the archive says of itself."""
    import json
    from zipfile import ZipFile

    with ZipFile(file) as archive:
        return json.loads(archive.read("manifest.json"))


def stale(manifest: dict[str, Any], folder: str) -> str | None:
    """Which source of the kernels is not what they were compiled from; None if all are."""
    from hashlib import sha256

    for name, expected in manifest["sources"].items():
        with open(os.path.join(folder, name), encoding="utf-8", newline=None) as source:
            if sha256(source.read().encode()).hexdigest() != expected:
                return name
    return None


@cache
def manifest() -> dict[str, Any] | None:
    """That of this installation's archive; None if there is none."""
    return read_manifest(FILE) if os.path.exists(FILE) else None


@cache
def why_not() -> str | None:
    """Why these kernels cannot run here; None if they can."""
    found = manifest()
    if found is None:
        return "this build of fastdrop has none"
    if source := stale(found, FOLDER):
        return f"{source} has changed since they were compiled: python dev/gpu/cuda_build.py"
    from fastdrop._core import PARTS

    if found["parts"] != PARTS:
        return f"they add in {found['parts']} parts, not in {PARTS}: python dev/gpu/cuda_build.py"
    try:
        import cuda.core  # noqa: F401
        from cuda.bindings import driver
    except ImportError:
        return f"cuda-core is not installed: {INSTALL}"
    try:  # before anything else of cuda-core, which does not take it well if there is no driver
        _checked(driver.cuInit(0))
        devices = range(_checked(driver.cuDeviceGetCount()))
        newest = max(map(_capability, devices), default=None)
    except Exception as error:
        return " ".join(str(error).split())
    if newest is None:
        return "there is no CUDA device"
    if newest < (least := min(int(code.partition("_")[2]) for code in found["code"])):
        return f"they are for compute capability {least / 10} on, and this is {newest / 10}"
    return None


def _capability(number: int) -> int:
    """Of a device: 75 for 7.5."""
    from cuda.bindings import driver

    device, known = _checked(driver.cuDeviceGet(number)), driver.CUdevice_attribute
    major = known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    minor = known.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
    tens, ones = (_checked(driver.cuDeviceGetAttribute(a, device)) for a in (major, minor))
    return 10 * tens + ones


def _checked(result: tuple) -> Any:
    """Of what a function of the driver gives, all but the error, which is raised."""
    error, *values = result
    if int(error):
        raise RuntimeError(f"CUDA driver: {error!r}")
    return values[0] if values else None


def kernel(name: str, dtype: str, options: tuple[tuple[str, Any], ...]) -> Any:
    """A `cuda.core.Kernel`; None if the archive has no such kernel."""
    from zipfile import ZipFile

    from cuda.core import ObjectCode

    file = member(name, dtype, options)
    found = manifest()
    if found is None or file not in found["kernels"]:
        return None
    with ZipFile(FILE) as archive:
        code = ObjectCode.from_fatbin(archive.read(file), name=file)
    return code.get_kernel(found["kernels"][file])


def start(
    kernel: Any, blocks: int, threads: int, stream: int, number: int | None, values: Sequence[Any]
) -> None:
    """Launch it, and do not wait for it.

    stream: CUDA's handle. number: of the device; None: the present one. values: NumPy scalars.
    """
    from cuda.core import LaunchConfig, launch

    with _present(number):
        launch(_stream(stream), LaunchConfig(grid=blocks, block=threads), kernel, *values)


def _stream(handle: int) -> Any:
    from cuda.core import LEGACY_DEFAULT_STREAM, Stream

    return Stream.from_handle(handle) if handle > 1 else LEGACY_DEFAULT_STREAM


@contextmanager
def _present(number: int | None) -> Iterator[Any]:
    """Let this be the thread's present device for a while."""
    from cuda.bindings import driver
    from cuda.core import Device

    before = _checked(driver.cuCtxGetCurrent())
    if number is None and int(before):
        yield Device()
        return
    device = Device(number or 0)
    device.set_current()
    try:
        yield device
    finally:
        if int(before):
            _checked(driver.cuCtxSetCurrent(before))


class Array:
    """Elements in a device's memory, with ``__cuda_array_interface__``: what fastdrop makes where
    no array library is asked for another. strides: in bytes; stream: CUDA's handle; number: of the
    device, the present one if None; owner: what keeps a stream that is not one of CUDA's own.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        strides: tuple[int, ...],
        stream: int = 0,
        number: int | None = None,
        owner: Any = None,
    ) -> None:
        self.shape, self.dtype, self.strides, self.stream = shape, dtype, strides, stream
        self.nbytes, self.owner = prod(shape) * dtype.itemsize, owner
        with _present(number) as device:
            self.number = device.device_id
            # Of the device: who has made its context present does not count.
            memory = device.memory_resource
            self.buffer = memory.allocate(max(self.nbytes, 1), stream=_stream(stream))

    @property
    def address(self) -> int:
        return int(self.buffer.handle)

    def __getitem__(self, part: slice) -> Array:
        """The first elements of an array of one axis, in the same memory."""
        first, end, step = part.indices(*self.shape)
        if first or step != 1:
            raise IndexError(f"only [:n] is known here, got {part}; convert it with cupy.asarray")
        other = copy(self)
        other.shape, other.nbytes = (end,), end * self.dtype.itemsize
        return other

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": self.stream or 1,  # the default stream; None would say that all is done
        }

    def copy_to_host(self) -> Any:
        """A NumPy array with the same elements, for which this waits."""
        return to_host(self.__cuda_array_interface__, self.number)

    def copy_from_host(self, data: Any) -> Array:
        """Take the elements of a NumPy array of the same layout."""
        from cuda.bindings import driver

        if self.nbytes:
            stream = _stream(self.stream)
            address = self.address, data.ctypes.data
            with _present(self.number):
                _checked(driver.cuMemcpyHtoDAsync(*address, self.nbytes, stream.handle))
                stream.sync()  # data may go away
        return self


def to_host(interface: dict[str, Any], number: int | None) -> Any:
    """A NumPy array with the elements that a ``__cuda_array_interface__`` tells of, in their
    layout; this waits for them.
    """
    import numpy as np
    from cuda.bindings import driver

    shape, dtype = interface["shape"], np.dtype(interface["typestr"])
    strides = interface.get("strides") or tuple(s * dtype.itemsize for s in c_strides(shape))
    far = [(n - 1) * s for n, s in zip(shape, strides, strict=True)]
    before = -sum(min(f, 0) for f in far) if prod(shape) else 0
    after = sum(max(f, 0) for f in far) + dtype.itemsize if prod(shape) else 0
    host = np.empty(before + after, np.uint8)
    stream = _stream(interface.get("stream") or 0)
    with _present(number):
        if host.size:
            address = host.ctypes.data, interface["data"][0] - before
            _checked(driver.cuMemcpyDtoHAsync(*address, host.size, stream.handle))
        stream.sync()
    return np.ndarray(shape, dtype, host.data, before, strides)
