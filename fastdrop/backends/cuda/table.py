"""Which kernels there are, of which dtypes and options, and what they take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from inspect import signature
from typing import Any

import numpy as np

from fastdrop.backends.cuda.kernels import (
    blocks,
    chunks,
    connect,
    dropout,
    elements,
    exponential,
    layout,
    masks,
    noise,
    operations,
    philox,
    rows,
    sums,
    variates,
)
from fastdrop.base.dtypes import ITEMSIZE

# Where kernels are, in the order of their imports.
MODULES = (
    *(philox, elements, exponential, layout, masks, operations, chunks, dropout, variates),
    *(noise, sums, rows, blocks, connect),
)

KINDS = {"u32": np.uint32, "u64": np.uint64, "f32": np.float32, "f64": np.float64}


@dataclass(frozen=True)
class Parameter:
    """A number, or a tuple of `length` numbers, that a kernel takes.

    kind: one of `KINDS`, or "real", the compute type. length: None for a number; "axes": the number
    of axes, at least one.
    """

    name: str
    kind: str
    length: int | str | None = None


def _each(kind: str, names: str) -> tuple[Parameter, ...]:
    return tuple(Parameter(name, kind) for name in names.split())


_u64, _real = partial(_each, "u64"), partial(_each, "real")
_RUN = _u64("n start")
_LAYOUT = Parameter("shape", "u64", "axes"), Parameter("strides", "u64", "axes")
_PLACE = *_LAYOUT, Parameter("rows", "u64")
_TO = Parameter("to", "u64", "axes")
_KEYS = Parameter("keys", "u32", 14), Parameter("call", "u64")
_DRAW = *_KEYS, Parameter("t", "u32"), Parameter("f", "u32")

# Each kernel's function, whose options have defaults, and what it takes: parameters, or tuples of
# them that are one parameter. Addresses are of global memory.
KERNELS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "dropout": (
        dropout.dropout_kernel,
        (
            *(_u64("x residual bias y"), _u64("given saved"), _u64("own row words"), _RUN),
            *(_DRAW, _real("scale shift dropped")),
        ),
    ),
    "draw": (masks.draw_kernel, (*_u64("saved"), _RUN, _PLACE, _DRAW)),
    "spread": (masks.spread_kernel, (*_u64("given saved n"), _LAYOUT)),
    "copy": (layout.copy_kernel, (*_u64("x y n"), *_LAYOUT, _TO)),
    "unpack": (masks.unpack_kernel, _u64("given y n")),
    "noise": (
        noise.noise_kernel,
        (
            *(_u64("x g y"), _u64("sigmas row"), _RUN, _PLACE, _KEYS),
            *(*_real("sigma"), _real("logit rate inverse scale")),
        ),
    ),
    "weighted": (sums.weighted_kernel, _u64("weights x y n wide")),
    "sums": (sums.sums_kernel, _u64("x sums n row")),
    "total": (sums.total_kernel, _u64("sums y row")),
    "ids": (rows.ids_kernel, (*_u64("x y n"), _u64("width signed"), *_u64("words"), _LAYOUT)),
    "sort": (rows.sort_kernel, _u64("x y n run")),
    "add_rows": (
        rows.add_rows_kernel,
        (*_u64("order x given y n row words"), Parameter("scale", "f64")),
    ),
    "place": (
        blocks.place_kernel,
        (*_u64("given saved n"), _u64("row size"), _u64("rows columns"), _u64("height width")),
    ),
    "widen": (blocks.widen_kernel, (*_u64("given saved n"), _u64("row size"), *_u64("far k keep"))),
    "count": (blocks.count_kernel, _u64("given sums n row")),
    "scale": (blocks.scale_kernel, _u64("sums y n size")),
    "connect": (
        connect.connect_kernel,
        (
            *(_u64("x m y"), _u64("rows terms columns"), _u64("start bits_i bits_j")),
            *(_u64("x_i x_j"), *_u64("more"), _DRAW, *_real("scale")),
        ),
    ),
    "connect_back": (
        connect.connect_back_kernel,
        (_u64("m g y"), _u64("rows terms columns"), _u64("start bits_i"), _DRAW, *_real("scale")),
    ),
}


_DRAWN = ("bytes", "bits")
_SOURCES = (*_DRAWN, "given", "same", "rows", "examples")
_CHOICES: dict[str, dict[str, Sequence[Any]]] = {
    "dropout": {"op": (*operations.OPS, *operations.OTHERS), "source": _SOURCES},
    "draw": {"source": _DRAWN},
    "noise": {"op": ("scale", "scales", "add", "concrete", "gradient", "slope")},
    "sums": {"by": ("rows", "tiles")},
    "scale": {"dtype": ("float32", "float64")},
    "connect": {"dtype": ("float32", "float64")},
    "connect_back": {"dtype": ("float32", "float64")},
}
# Compiled for float32, whatever the arrays are.
_OF_NO_DTYPE = ("draw", "spread", "unpack", "ids", "sort", "place", "widen", "count")


def defaults(name: str) -> dict[str, Any]:
    """A kernel's options, and what they are if not given."""
    known = signature(KERNELS[name][0]).parameters.values()
    return {p.name: p.default for p in known if p.default is not p.empty}


def dtype_of(name: str, dtype: str) -> str:
    """The dtype that a kernel is compiled for, if the arrays are of this one."""
    if name in _OF_NO_DTYPE:
        return "float32"
    return "float16" if name == "copy" and dtype == "bfloat16" else dtype


def choices(name: str, axes: int) -> dict[str, Sequence[Any]]:
    """The values of a kernel's dtype and options, on arrays of up to so many axes."""
    least = defaults(name).get("axes", 0)  # 0 where there is a kernel for runs
    both = (False, True)
    counts = (0, *range(noise.NOISE_AXES, axes + 1)) if name == "noise" else range(least, axes + 1)
    general = {"shifted": both, "small": both, "single": both, "axes": counts}
    dtypes = tuple(dict.fromkeys(dtype_of(name, dtype) for dtype in ITEMSIZE))
    return general | {"dtype": dtypes} | _CHOICES.get(name, {})


def is_launched(name: str, options: dict[str, Any]) -> bool:
    """Whether `fastdrop.cuda` has a use for these options together."""
    if name != "dropout":  # small counts for axes, shifted for none
        axes = options.get("axes", 1)
        return not options.get("shifted") if axes else bool(options["small"])
    op, source = options["op"], options["source"]
    if options["shifted"] and source not in _DRAWN:
        return False
    if source == "same" or op in operations.OTHERS:
        return source == "same" and op in ("dropout", *operations.OTHERS)
    if op == "bias_gelu_backward":
        return source == "given"
    return source not in ("rows", "examples") or op == "dropout"


def parameters(name: str, dtype: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a kernel takes: a `Parameter`, of a kind of `KINDS` and a length that is known, or a
    tuple of these, each.
    """
    real = "f64" if dtype == "float64" else "f32"
    axes = max(options.get("axes", 0), 1)

    def resolved(p: Any) -> Any:
        if isinstance(p, tuple):
            return tuple(map(resolved, p))
        kind = real if p.kind == "real" else p.kind
        return Parameter(p.name, kind, axes if p.length == "axes" else p.length)

    return resolved(KERNELS[name][1])


@cache
def _parameters(name: str, dtype: str, options: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    return parameters(name, dtype_of(name, dtype), dict(options))


def values(
    name: str,
    dtype: str,
    options: tuple[tuple[str, Any], ...],
    arguments: Mapping[str, Any],
) -> tuple[Any, ...]:
    """What a kernel is called with: NumPy's numbers, in tuples as `parameters` are; `flattened`,
    what compiled code takes. Arguments that are not there are 0.
    """

    def value(p: Any) -> Any:
        if isinstance(p, tuple):
            return tuple(map(value, p))
        given, kind = arguments.get(p.name, 0), KINDS[p.kind]
        if p.length is None:
            return kind(given)
        return tuple(map(kind, given or (0,) * p.length))

    return value(_parameters(name, dtype, options))


def flattened(items: tuple[Any, ...]) -> Iterator[Any]:
    """What is in a tuple of tuples, in order."""
    for item in items:
        if isinstance(item, tuple):
            yield from flattened(item)
        else:
            yield item


def kernel(where: str, name: str, dtype: str, **options: Any) -> Any:
    """A kernel by name, for a target of `fastdrop.backends.cuda.kernels.targets`."""
    return KERNELS[name][0](where, dtype, **options)
