"""What would make fastdrop faster on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ctypes.util import find_library
from importlib.util import find_spec

from fastdrop._core import BUILD
from fastdrop.backends.cpu import cpu_features, cpus, get_num_threads
from fastdrop.backends.cuda import launch

FAST = "avx512", "avx2", "neon"
GPU_DRIVERS = "cuda", "nvcuda"  # the name of its library on Linux, and on Windows


def advice() -> Iterator[str]:
    """A sentence for each thing that is in the way, with what to do about it."""
    features = cpu_features()
    isa, best = features["isa"], features["available"][0]
    if isa != best:
        yield f"FASTDROP_ISA chooses {isa} kernels: unset it for {best}"
    elif isa not in FAST:
        yield (
            f"the kernels are {isa}, the slowest: this CPU has no AVX2, or the compiler built none "
            "for it; try another CPU, or GCC or Clang"
        )
    if "without optimisation" in BUILD:
        yield "the package was compiled without optimisation: build it again without -O0 in CFLAGS"
    threads, allowed = get_num_threads(), cpus()
    if threads < allowed:
        yield (
            f"calls use {threads} of the {allowed} CPUs that this process may use: unset "
            "FASTDROP_NUM_THREADS, or call fastdrop.set_num_threads"
        )
    elif threads > allowed:
        yield f"{threads} threads share {allowed} CPUs: unset FASTDROP_NUM_THREADS"
    elif allowed == 1:
        yield "this process may use one CPU: allow it more, and large arrays are shared among them"
    if os.environ.get("FASTDROP_DEBUG") == "1":
        yield "FASTDROP_DEBUG compares what each draw is for: unset it where you need no check"
    if not find_spec("ml_dtypes"):
        yield (
            "ml_dtypes is not installed, so there is no bfloat16, which moves half the bytes of "
            "float32: pip install ml_dtypes"
        )
    if not find_spec("threadpoolctl"):
        yield (
            "threadpoolctl is not installed, which `train` needs to share the CPUs with NumPy's "
            "BLAS: pip install threadpoolctl"
        )
    if any(map(find_library, GPU_DRIVERS)) and (reason := launch.why_not()):
        yield f"there is a GPU's driver, and its kernels cannot run: {reason}"
