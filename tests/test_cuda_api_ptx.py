"""The tests of cuda_sim.py once more, where every launch executes the compiled PTX: what the host
passes to which kernel, and what the compiler made of that kernel, together.
"""

import ctypes
from functools import cache

import numpy as np
import pytest
from ptx import Kernel, Memory

from fastdrop import cuda, cuda_table, device

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

from cuda_sim import *  # noqa: F403

from fastdrop.cuda_compile import compile_ptx

# These need a driver, or look at what `launch` here replaces.
del test_available, test_keep_mask, test_launches, test_whole_blocks_of_threads  # noqa: F821

pytestmark = pytest.mark.slow
CAPABILITY = (9, 0)


@cache
def compiled(name, dtype, options):
    dtype = "float32" if name in cuda_table.OF_NO_DTYPE else dtype
    made = compile_ptx(name, dtype, CAPABILITY, **dict(options))
    return Kernel(made.ptx, made.entry), [parameter for parameter, _ in made.parameters]


def span(array):
    """First address, and the bytes from there on that the elements lie in."""
    size = np.dtype(array.dtype).itemsize if array.dtype != "bfloat16" else 2
    if not array.size:
        return array.address, 0
    reaches = [(n - 1) * s for n, s in zip(array.shape, array.strides, strict=True)]
    low = array.address + sum(r for r in reaches if r < 0)
    return low, size + sum(map(abs, reaches))


def launch(name, like, threads, options, **arguments):
    """In place of `device.launch`: to a memory of its own, and back."""
    kernel, names = compiled(name, like.dtype, tuple(sorted(options.items())))
    memory, placed = Memory(1 << 22), {}
    values = dict.fromkeys(names, 0)
    for key, value in arguments.items():
        if isinstance(value, device.DeviceArray):
            low, nbytes = span(value)
            if (low, nbytes) not in placed:
                held = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(low))
                placed[low, nbytes] = held, memory.put(held, low % 256)
            values[key] = placed[low, nbytes][1] + value.address - low
        elif isinstance(value, tuple):
            values |= {f"{key}[{k}]": v for k, v in enumerate(value)}
        else:
            values[key] = value
    blocks = min(max(1, -(-threads // device.THREADS)), device.MAX_BLOCKS)
    kernel.launch(memory, blocks, device.THREADS, *(values[name] for name in names))
    for held, address in placed.values():
        held[:] = memory.get(address)


@pytest.fixture(autouse=True)
def launched_as_ptx(monkeypatch):
    for module in (device, cuda):
        monkeypatch.setattr(module, "launch", launch)
        monkeypatch.setattr(module, "where", lambda: "cuda")
