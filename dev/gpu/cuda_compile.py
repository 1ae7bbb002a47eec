"""Kernels to PTX with no driver and no GPU: for what reads, runs or ships the compiled code.

Needs numba-cuda and the compiler's wheels (``pip install 'fastdrop[test-cuda]'``).
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from importlib.metadata import distributions
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

from fastdrop import rng
from fastdrop._core import PARTS
from fastdrop.backends.cuda import table as kernels
from fastdrop.base import dtypes
from fastdrop.reference import noise

__all__ = ["Compiled", "compile_ptx", "sources", "variants"]


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


def variants(axes: int = 4) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every kernel that `fastdrop.cuda` launches on arrays of up to so many axes (after those that
    are one in memory became one): name, dtype and options as `compile_ptx` takes them.
    """
    for name in kernels.KERNELS:
        defaults, choices = kernels.defaults(name), kernels.choices(name, axes)
        for dtype in choices.pop("dtype"):
            for values in product(*(choices[option] for option in defaults)):
                options = dict(zip(defaults, values, strict=True))
                if kernels.is_launched(name, options):
                    yield name, dtype, options


def compile_ptx(
    kernel_name: str, dtype: str = "float32", cc: tuple[int, int] = (9, 0), **options: Any
) -> Compiled:
    """Compile one kernel of `fastdrop.backends.cuda.table`.

    What was compiled is kept in the folder that the environment variable ``FASTDROP_CACHE`` names,
    if it is set, for as long as neither the sources nor the compilers change.

    Parameters
    ----------
    kernel_name : str
        A key of ``cuda_table.KERNELS``.
    dtype : {"float32", "float64", "float16", "bfloat16"}
    cc : tuple of int
        Compute capability, (7, 5) or later.
    options
        Those of the kernel's function; else their defaults.
    """
    folder = os.environ.get("FASTDROP_CACHE")
    if not folder:
        return _compiled(kernel_name, dtype, cc, options)
    made_of = sources(), PARTS, _compilers(), Path(__file__).read_text("utf-8")
    key = repr((kernel_name, dtype, cc, sorted(options.items()), *made_of))
    file = Path(folder, sha256(key.encode()).hexdigest()[:32] + ".json")
    if file.exists():
        ptx, entry, parameters = json.loads(file.read_text())
        return Compiled(ptx, entry, [(name, kind) for name, kind in parameters])
    made = _compiled(kernel_name, dtype, cc, options)
    Path(folder).mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}")  # no other process sees half a file
    part.write_text(json.dumps(made))
    part.replace(file)
    return made


def sources() -> dict[str, str]:
    """What kernels are compiled from: the texts of modules, by their paths in the package."""
    table = Path(str(kernels.__file__))
    files = {f"backends/cuda/{table.name}": table}
    for file in sorted(table.parent.glob("kernels/**/*.py")):
        files[f"backends/cuda/{file.relative_to(table.parent).as_posix()}"] = file
    others = {"rng.py": rng, "reference/noise.py": noise, "base/dtypes.py": dtypes}
    files |= {path: Path(str(module.__file__)) for path, module in others.items()}
    return {path: file.read_text("utf-8") for path, file in files.items()}


@cache
def _compilers() -> list[tuple[str, str]]:
    named = ((d.metadata["Name"], d.version) for d in distributions())
    return sorted(d for d in named if re.match("numba|llvmlite|nvidia-cuda-nv|cuda-", d[0]))


def _compiled(
    kernel_name: str, dtype: str, cc: tuple[int, int], options: dict[str, Any]
) -> Compiled:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Numba's words on what of it is deprecated
        from numba import cuda, types

        where = "cuda" if cc >= (8, 0) else "turing"
        kernel = kernels.kernel(where, kernel_name, dtype, **options)
        taken = kernels.parameters(kernel_name, dtype, options)
        parameters: list[tuple[str, str]] = []
        for p in kernels.flattened(taken):
            names = [p.name] if p.length is None else [f"{p.name}[{k}]" for k in range(p.length)]
            parameters += [(name, p.kind) for name in names]

        def type_of(p: Any) -> Any:
            if isinstance(p, tuple):
                return types.BaseTuple.from_types(tuple(map(type_of, p)))
            one = getattr(types, {"u": "uint", "f": "float"}[p.kind[0]] + p.kind[1:])
            return one if p.length is None else types.UniTuple(one, p.length)

        with _device(cc):
            ptx, _ = cuda.compile(
                kernel.py_func, types.void(*map(type_of, taken)), device=False, abi="numba", cc=cc
            )
    # Nothing refers to these, whose names tell how many functions were compiled before.
    ptx = re.sub(r"^\.common \.global .*\bu64 _ZN08NumbaEnv\w+;\n", "", ptx, flags=re.M)
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
