"""The gate: every argument of a public function is checked here, once, before anything is drawn or
written. An error names the argument, its value and the remedy; what is behind the gate cannot fail.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from fastdrop.cpu import DTYPES
from fastdrop.draw import Draw
from fastdrop.reference import threshold
from fastdrop.rng import uint64

MAX_INDEX = 2**62  # element indices the stream can address


def rate(p: Any, name: str = "p") -> float:
    """A drop rate as a float in [0, 1]."""
    if type(p) is not float:
        real = isinstance(p, numbers.Real) or (
            isinstance(p, np.ndarray) and p.ndim == 0 and p.dtype.kind in "fiu"
        )
        if not real or isinstance(p, bool | np.bool_):
            raise TypeError(f"{name} must be a real number in [0, 1], got {p!r}")
        p = float(p)
    if not 0.0 <= p <= 1.0:  # false for NaN, too
        raise ValueError(f"{name} must be in [0, 1], got {p!r}")
    return p


def array(x: Any, name: str = "x") -> npt.NDArray:
    """A floating-point array that the kernels can read, copied only if they could not."""
    if type(x) is not np.ndarray:
        x = np.asarray(x)
    dtype = x.dtype
    if dtype.num not in DTYPES:
        raise TypeError(f"{name} must be float32 or float64, got {dtype}; convert it with .astype")
    return x if dtype.isnative else x.astype(dtype.newbyteorder("="))


def output(out: Any, x: npt.NDArray) -> tuple[npt.NDArray, npt.NDArray]:
    """out, made if None, and x, copied if writing to out would change it too early."""
    if out is None:
        return np.empty_like(x), x
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"out must have shape {x.shape}, got {out.shape}")
    if out.dtype != x.dtype or not out.dtype.isnative:
        raise TypeError(f"out must have dtype {x.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writeable array or a copy")
    same = out is x or (
        out.__array_interface__["data"][0] == x.__array_interface__["data"][0]
        and out.strides == x.strides
    )
    if not same and np.may_share_memory(out, x):
        x = x.copy()
    return out, x


def shared_axes(axes: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """Axes in 0 ... ndim - 1, each once."""
    return normalize_axis_tuple(axes, ndim, "shared_axes")


def shape(value: Any) -> tuple[int, ...]:
    """A shape as NumPy takes it."""
    try:
        dims = (operator.index(value),)
    except TypeError:
        try:
            dims = tuple(operator.index(n) for n in value)
        except TypeError:
            raise TypeError(f"shape must be an int or a tuple of ints, got {value!r}") from None
    if len(dims) > 64 or any(n < 0 for n in dims):
        raise ValueError(f"shape must have at most 64 lengths, none negative, got {value!r}")
    return dims


def region(
    value: Any, block: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(start, global_shape) of a block of this shape inside a larger array."""
    try:
        start, whole = (tuple(operator.index(n) for n in part) for part in value)
    except (TypeError, ValueError):
        raise TypeError(
            f"region must be (start, global_shape), two tuples of ints, got {value!r}"
        ) from None
    if len(start) != len(block) or len(whole) != len(block):
        raise ValueError(f"region must have {len(block)} axes as x has, got {value!r}")
    for s, n, w in zip(start, block, whole, strict=True):
        if s < 0 or s + n > w:
            raise ValueError(f"region must contain the block of shape {block}, got {value!r}")
    if prod(whole) > MAX_INDEX:
        raise ValueError(f"region must have a global size of at most 2**62, got {value!r}")
    return start, whole


def choice(value: Any, options: tuple[str, ...], name: str) -> str:
    """One of a few words."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def draw(value: Draw, block: tuple[int, ...], p: float) -> Draw:
    """A draw that fits x of shape `block`, from a pickle."""
    seed, call = uint64(value.seed, "seed"), uint64(value.call, "call")
    mask = shape(value.shape)
    strides = (0,) * len(mask) if value.strides is None else shape(value.strides)
    fits = len(mask) == len(block) == len(strides) and all(
        m in (1, n) for m, n in zip(mask, block, strict=True)
    )
    start = operator.index(value.start)
    last = start + sum((n - 1) * s for n, s in zip(mask, strides, strict=True))
    if not fits or value.threshold != threshold(p) or start < 0 or last + prod(mask) > MAX_INDEX:
        raise ValueError(f"pickled context must describe a draw for shape {block}, got {value!r}")
    return Draw(seed, call, value.threshold, mask, start, value.strides)
