"""The tests of device_cases.py once more, with kernels that were built ahead: every launch goes
through cuda-core as on a GPU, and executes the compiled PTX. With FASTDROP_KERNELS=FILE in the
environment that PTX is what is embedded in that archive.
"""

import os
from functools import cache

import pytest
from helpers.fake_cuda_core import Core, HostMemory
from helpers.ptx import Kernel

from fastdrop.backends.cuda import launch
from fastdrop.backends.cuda import prebuilt as cuda_prebuilt

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

from cuda_compile import compile_ptx
from device_cases import *  # noqa: F403
from numba import cuda as numba_cuda  # noqa: F401, before a test replaces what it imports

# These need Numba's arrays, or look at how Numba launches.
del test_available, test_keep_mask, test_launches, test_whole_blocks_of_threads  # noqa: F821

pytestmark = pytest.mark.slow
CAPABILITY = (8, 0)
ARCHIVE = os.environ.get("FASTDROP_KERNELS")
from_archive = cuda_prebuilt.kernel


@cache
def kernel(name, dtype, options):
    if ARCHIVE and (found := from_archive(name, dtype, options)):
        return found
    made = compile_ptx(name, dtype, CAPABILITY, **dict(options))
    return Kernel(made.ptx, made.entry)


@pytest.fixture(autouse=True)
def prebuilt(monkeypatch):
    core = Core(HostMemory())
    core.install(monkeypatch)
    monkeypatch.setattr(cuda_prebuilt, "kernel", kernel)
    if ARCHIVE:
        monkeypatch.setattr(cuda_prebuilt, "FILE", ARCHIVE)
    monkeypatch.setattr(launch, "where", lambda: "prebuilt")
    return core
