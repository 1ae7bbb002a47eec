"""How kernels run on a GPU, and starting them."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import cache
from typing import Any

from fastdrop.backends.cuda import prebuilt
from fastdrop.backends.cuda.arrays import DeviceArray

THREADS = 128  # of a thread block
MAX_BLOCKS = 8192  # of a grid: some for each multiprocessor; threads take several turns then

INSTALL = "pip install 'fastdrop[numba]'"


def _numba_why_not() -> str | None:
    """Why Numba cannot compile and run kernels here; None if it can."""
    try:
        from numba import cuda
    except ImportError:
        return f"Numba is not installed: {INSTALL}"
    try:
        if cuda.is_available():
            return None
        error = getattr(cuda, "cuda_error", lambda: None)()
    except Exception as raised:
        error = raised
    return f"Numba finds no CUDA device or driver ({' '.join(str(error or 'no device').split())})"


ROUTES = "prebuilt", "numba"


@cache
def _route(name: str) -> str | None:
    asked = os.environ.get("FASTDROP_CUDA")
    if asked not in (None, "", *ROUTES):
        raise ValueError(f"FASTDROP_CUDA must be prebuilt or numba, got {asked!r}")
    if asked and asked != name:
        return f"FASTDROP_CUDA={asked} is set"
    if name == "numba":
        return _numba_why_not()
    if os.environ.get("NUMBA_ENABLE_CUDASIM", "0") != "0":
        return "NUMBA_ENABLE_CUDASIM is set"
    return prebuilt.why_not()


def routes() -> dict[str, str | None]:
    """The ways to run kernels on a GPU, in the order of preference: why not here, or None.

    "prebuilt": those that came with the package; "numba": compiled at their first use. The
    environment variable ``FASTDROP_CUDA`` names one to leave the other out.
    """
    return {name: _route(name) for name in ROUTES}


def why_not() -> str | None:
    """Why kernels cannot run on a GPU here; None if they can."""
    if any(_route(name) is None for name in ROUTES):  # and Numba is imported only if it is needed
        return None
    return "; ".join(f"{name} kernels: {reason}" for name, reason in routes().items())


@cache
def where() -> str:
    """How kernels run: "prebuilt", or what Numba compiles them for, which may be its simulator."""
    if reason := why_not():
        raise RuntimeError(f"fastdrop.cuda cannot run: {reason}")
    return "prebuilt" if _route("prebuilt") is None else _compiled_for()


def _compiled_for() -> str:
    from numba.core import config

    return "python" if config.ENABLE_CUDASIM else "cuda"


@cache
def _kernel(target: str, name: str, dtype: str, options: tuple) -> Any:
    """A kernel of `fastdrop.backends.cuda.table`; None if it should be prebuilt and is not."""
    from fastdrop.backends.cuda import table

    dtype = table.dtype_of(name, dtype)
    if target == "prebuilt":
        return prebuilt.kernel(name, dtype, options)
    return table.kernel(target, name, dtype, **dict(options))


def launch(
    name: str, like: DeviceArray, threads: int, options: dict[str, Any], **arguments: Any
) -> None:
    """Start a kernel on the caller's CUDA stream, and do not wait for it; see `table`.

    threads: how many have something to do. Arguments that are not given are 0.
    """
    from fastdrop.backends.cuda import table

    target, key = where(), (name, like.dtype, tuple(sorted(options.items())))
    given = {n: v.address if isinstance(v, DeviceArray) else v for n, v in arguments.items()}
    values = table.values(*key, given)
    if target == "njit":
        _kernel(target, *key)(*values)
        return
    blocks = min(max(1, (threads + THREADS - 1) // THREADS), MAX_BLOCKS)
    stream, number = like.stream, like.kind.device(like.held)
    if target == "prebuilt":
        if kernel := _kernel(target, *key):
            flat = list(table.flattened(values))
            prebuilt.start(kernel, blocks, THREADS, stream, number, flat)
            return
        if reason := _route("numba"):
            raise RuntimeError(
                f"no kernel {name!r} for {like.dtype} was built ahead with {options} (axes: those "
                f"of an array, after joining what can be one), and none can be compiled: {reason}"
            )
        target = _compiled_for()
    from numba import cuda

    if target == "python":
        _kernel(target, *key)[blocks, THREADS](*values)
        return
    queue = cuda.external_stream(stream) if stream else 0
    present = number is None or number == cuda.get_current_device().id
    with nullcontext() if present else cuda.gpus[number]:
        if cuda.get_current_device().compute_capability < (8, 0):
            target = "turing"
        _kernel(target, *key)[blocks, THREADS, queue](*values)
