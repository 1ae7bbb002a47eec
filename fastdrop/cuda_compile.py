"""Kernels to PTX with no driver and no GPU: for what reads, runs or ships the compiled code.

Needs numba-cuda and the compiler's wheels (``pip install 'fastdrop[test-cuda]'``).
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from fastdrop import cuda_kernels as kernels

__all__ = ["Compiled", "compile_ptx"]


class Compiled(NamedTuple):
    """What `compile_ptx` gives.

    Attributes
    ----------
    ptx : str
    entry : str
        Name of the kernel in it.
    parameters : list of (str, str)
        Name and PTX type (``"u32"``, ``"u64"``, ``"f32"``, ``"f64"``) of each, in order; those of
        a tuple are ``"keys[0]"``, ``"keys[1]"``, ....
    """

    ptx: str
    entry: str
    parameters: list[tuple[str, str]]


def compile_ptx(
    kernel_name: str, dtype: str = "float32", cc: tuple[int, int] = (9, 0), **options: Any
) -> Compiled:
    """Compile one kernel of `fastdrop.cuda_kernels`.

    Parameters
    ----------
    kernel_name : str
        A key of ``cuda_kernels.KERNELS``.
    dtype : {"float32", "float64", "float16", "bfloat16"}
    cc : tuple of int
        Compute capability, (8, 0) or later.
    options
        Those of the kernel's function in `fastdrop.cuda_kernels`; else their defaults there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Numba's words on what of it is deprecated
        from numba import cuda, types

        kernel, signature = kernels.kernel("cuda", kernel_name, dtype, **options)
        arguments: list[Any] = []
        parameters: list[tuple[str, str]] = []
        for name, kind, length in signature:
            one = getattr(types, {"u": "uint", "f": "float"}[kind[0]] + kind[1:])
            if length is None:
                arguments.append(one)
                parameters.append((name, kind))
            else:
                arguments.append(types.UniTuple(one, length))
                parameters += [(f"{name}[{k}]", kind) for k in range(length)]
        with _device(cc):
            ptx, _ = cuda.compile(
                kernel.py_func, types.void(*arguments), device=False, abi="numba", cc=cc
            )
    head = re.search(r"\.entry\s+([\w$]+)\([^)]*\)", ptx)
    assert head is not None
    entry = f"fastdrop_{kernel_name}_{dtype}"
    if registers := kernel.targetoptions.get("max_registers"):
        ptx = ptx.replace(head[0], f"{head[0]}\n.maxnreg {registers}")
    return Compiled(ptx.replace(head[1], entry), entry, parameters)


@contextmanager
def _device(cc: tuple[int, int]) -> Iterator[None]:
    """Functions that a kernel calls are compiled for the present device: let it be this one."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=cc)
    with mock.patch.object(dispatcher, "get_current_device", return_value=device):
        yield
