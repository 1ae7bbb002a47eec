"""Which kernels there are, of which dtypes and options, and what they take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdrop.backends.cuda.kernels import all as cuda_kernels
from fastdrop.backends.cuda.kernels import blocks as cuda_blocks
from fastdrop.backends.cuda.kernels import connect as cuda_connect
from fastdrop.backends.cuda.kernels import rows as cuda_rows
from fastdrop.backends.cuda.kernels.all import (
    ITEMSIZE,
    OPS,
    copy_kernel,
    draw_kernel,
    dropout_kernel,
    noise_kernel,
    spread_kernel,
    sums_kernel,
    total_kernel,
    unpack_kernel,
    weighted_kernel,
)

# A variate takes so long that divisions by the lengths of axes that are not there do not count: one
# noise kernel serves for up to so many.
NOISE_AXES = 4

MODULES = cuda_kernels, cuda_rows, cuda_blocks, cuda_connect  # where they are

# Parameters of the kernels: name, type, and length where it is a tuple. "real" is the compute type,
# "axes" the number of axes, at least one. Addresses are of global memory.
_KEYS = [("keys", "u32", 14), ("call", "u64", None)]
_RATE = [("t", "u32", None), ("f", "u32", None)]
_AXES = [("shape", "u64", "axes"), ("strides", "u64", "axes")]


def _each(kind: str, names: str) -> list[Any]:
    return [(name, kind, None) for name in names.split()]


# Each kernel's function, its options' defaults, and its parameters.
KERNELS: dict[str, tuple[Any, dict[str, Any], list[Any]]] = {
    "dropout": (
        dropout_kernel,
        {"op": "dropout", "source": "bytes", "shifted": False},
        [
            *_each("u64", "x residual bias y given saved own n row words start"),
            *_KEYS,
            *_RATE,
            *_each("real", "scale shift dropped"),
        ],
    ),
    "draw": (
        draw_kernel,
        {"source": "bytes", "shifted": False, "axes": 0, "small": True},
        [*_each("u64", "saved n start"), *_AXES, *_KEYS, *_RATE],
    ),
    "spread": (
        spread_kernel,
        {"axes": 1, "small": True},
        [*_each("u64", "given saved n"), *_AXES],
    ),
    "copy": (
        copy_kernel,
        {"axes": 1, "small": True},
        [*_each("u64", "x y n"), *_AXES, ("to", "u64", "axes")],
    ),
    "unpack": (unpack_kernel, {}, _each("u64", "given y n")),
    "noise": (
        noise_kernel,
        {"op": "scale", "axes": 0, "small": True},
        [
            *_each("u64", "x g y sigmas n row start"),
            *_AXES,
            *_KEYS,
            *_each("real", "sigma logit rate inverse scale"),
        ],
    ),
    "weighted": (weighted_kernel, {}, _each("u64", "weights x y n wide")),
    "sums": (sums_kernel, {"by": "rows"}, _each("u64", "x sums n row")),
    "total": (total_kernel, {"single": False}, _each("u64", "sums y row")),
    "ids": (cuda_rows.ids_kernel, {"axes": 1}, [*_each("u64", "x y n width signed words"), *_AXES]),
    "place": (
        cuda_blocks.place_kernel,
        {},
        _each("u64", "given saved n row size rows columns height width"),
    ),
    "widen": (cuda_blocks.widen_kernel, {}, _each("u64", "given saved n row size far k keep")),
    "count": (cuda_blocks.count_kernel, {}, _each("u64", "given sums n row")),
    "scale": (cuda_blocks.scale_kernel, {}, _each("u64", "sums y n size")),
    "connect": (
        cuda_connect.connect_kernel,
        {},
        [
            *_each("u64", "x m y rows terms columns start bits_i bits_j x_i x_j more"),
            *_KEYS,
            *_RATE,
            ("scale", "real", None),
        ],
    ),
    "connect_back": (
        cuda_connect.connect_back_kernel,
        {},
        [
            *_each("u64", "m g y rows terms columns start bits_i"),
            *_KEYS,
            *_RATE,
            ("scale", "real", None),
        ],
    ),
    "sort": (cuda_rows.sort_kernel, {}, _each("u64", "x y n run")),
    "add_rows": (
        cuda_rows.add_rows_kernel,
        {},
        [*_each("u64", "order x given y n row words"), ("scale", "f64", None)],
    ),
}


_DRAWN = ("bytes", "bits")
_SOURCES = (*_DRAWN, "given", "same", "rows", "examples")
_OF_RUNS = ("scales", "slope")  # noise ops that take no region
_CHOICES: dict[str, dict[str, Sequence[Any]]] = {
    "dropout": {"op": (*OPS, "mean"), "source": _SOURCES},
    "draw": {"source": _DRAWN},
    "noise": {"op": ("scale", "add", "concrete", "gradient", *_OF_RUNS)},
    "sums": {"by": ("rows", "tiles")},
    "scale": {"dtype": ("float32", "float64")},
    "connect": {"dtype": ("float32", "float64")},
    "connect_back": {"dtype": ("float32", "float64")},
}
# Compiled for float32, whatever the arrays are.
_OF_NO_DTYPE = ("draw", "spread", "unpack", "ids", "sort", "place", "widen", "count")


def dtype_of(name: str, dtype: str) -> str:
    """The dtype that a kernel is compiled for, if the arrays are of this one."""
    if name in _OF_NO_DTYPE:
        return "float32"
    return "float16" if name == "copy" and dtype == "bfloat16" else dtype


def choices(name: str, axes: int) -> dict[str, Sequence[Any]]:
    """The values of a kernel's dtype and options, on arrays of up to so many axes."""
    least = KERNELS[name][1].get("axes", 0)  # 0 where there is a kernel for runs
    both = (False, True)
    counts = (0, *range(NOISE_AXES, axes + 1)) if name == "noise" else range(least, axes + 1)
    general = {"shifted": both, "small": both, "single": both, "axes": counts}
    dtypes = tuple(dict.fromkeys(dtype_of(name, dtype) for dtype in ITEMSIZE))
    return general | {"dtype": dtypes} | _CHOICES.get(name, {})


def is_launched(name: str, options: dict[str, Any]) -> bool:
    """Whether `fastdrop.cuda` has a use for these options together."""
    if name != "dropout":  # small counts for axes, shifted for none
        axes = options.get("axes", 1)
        if options.get("op") in _OF_RUNS and axes:
            return False
        return not options.get("shifted") if axes else bool(options["small"])
    op, source = options["op"], options["source"]
    if options["shifted"] and source not in _DRAWN:
        return False
    if source == "same" or op == "mean":
        return source == "same" and op in ("mean", "dropout")
    return source not in ("rows", "examples") or op == "dropout"


def parameters(name: str, dtype: str, options: dict[str, Any]) -> list[tuple[str, str, int | None]]:
    """What a kernel takes: name, type, and length of a tuple or None, of each."""
    real = "f64" if dtype == "float64" else "f32"
    axes = max(options.get("axes", 0), 1)
    return [
        (n, real if kind == "real" else kind, axes if length == "axes" else length)
        for n, kind, length in KERNELS[name][2]
    ]


def kernel(where: str, name: str, dtype: str, **options: Any) -> Any:
    """A kernel by name, for a target of `fastdrop.backends.cuda.kernels.targets`."""
    build, defaults, _ = KERNELS[name]
    return build(where, dtype, **(defaults | options))
