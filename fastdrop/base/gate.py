"""The gate: every argument of a public function is checked here, once, before anything is drawn or
written. An error names the argument, its value and the remedy; what is behind the gate cannot fail.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from fastdrop import _core
from fastdrop.base.devices import on_device
from fastdrop.base.place import Block, Region

MAX_INDEX = 2**62  # element indices the stream can address


def real(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite real number in [low, high] as a float."""
    left = "(-inf" if low == -math.inf else f"[{low:g}"
    right = "inf)" if high == math.inf else f"{high:g}]"
    if type(value) is not float:
        value = _real(value, f"{name} must be a real number in {left}, {right}")
    if not low <= value <= high or math.isinf(value):  # not: true for NaN, too
        raise ValueError(f"{name} must be in {left}, {right}, got {value!r}")
    return value


def rate(p: Any, name: str = "p") -> float:
    """A drop rate as a float in [0, 1]."""
    return real(p, name, 0.0, 1.0)


def positive(value: Any, name: str) -> float:
    """A positive number as a float."""
    number = _real(value, f"{name} must be a positive real number")
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number!r}")
    return number


def count(value: Any, name: str, least: int = 1) -> int:
    """A number of things, or with least = 0 a position among them."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    return number


def _real(value: Any, words: str) -> float:
    """A real number, a 0-d array of one included, as a float."""
    real = isinstance(value, numbers.Real) or (
        isinstance(value, np.ndarray | np.generic)
        and value.ndim == 0
        and (value.dtype.kind in "fiu" or value.dtype.name == "bfloat16")
    )
    if not real or isinstance(value, bool | np.bool_):
        raise TypeError(f"{words}, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{words}, got a larger number than a float can be") from None


def host(x: Any, name: str) -> npt.NDArray:
    """x as an array of any dtype, if it is not on a GPU."""
    if type(x) is not np.ndarray and on_device(x):
        raise TypeError(
            f"{name} is a CUDA array, for which this operation has no kernels, or of which it "
            "has others in the host's memory; copy it to the host"
        )
    if isinstance(x, tuple) and len(x) == 2 and hasattr(x[1], "backward"):
        raise TypeError(f"{name} is what an op returns, y and its context; give it y, the first")
    return np.asarray(x)


def array(x: Any, name: str = "x") -> npt.NDArray:
    """A floating-point array that the kernels can read, copied only if they could not."""
    if type(x) is not np.ndarray:
        x = host(x, name)
    if _core.has_kernels(x):
        return x
    if x.dtype.name == "bfloat16" and x.dtype.itemsize == 2:  # of ml_dtypes, if that is installed
        _core.use_bfloat16(x.dtype.num)
        return x
    native = x.dtype.newbyteorder("=")
    if native not in (np.float16, np.float32, np.float64):
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}"
            + ("" if x.dtype == object else "; convert it with .astype")
        )
    return x.astype(native)


def output(x: npt.NDArray, out: Any) -> tuple[npt.NDArray, npt.NDArray | None]:
    """x, copied if writing to out would change it too early, and out."""
    if out is None:
        return x, None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
    if out.shape != x.shape:
        raise ValueError(f"out must have shape {x.shape}, got {out.shape}")
    if out.dtype is not x.dtype and out.dtype != x.dtype:
        raise TypeError(f"out must have dtype {x.dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; pass a writeable array or a copy")
    if out is not x and _core.overlaps_otherwise(x, out):
        x = x.copy()
    return x, out


def like(
    value: npt.NDArray,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype | None = None,
    other: str = "x",
) -> None:
    """An array of a certain shape and, if given, dtype: that of the other."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype} as {other} has, got {value.dtype}")


def shape(value: Any, name: str = "shape") -> tuple[int, ...]:
    """A shape as NumPy takes it."""
    try:
        dims = (operator.index(value),)
    except TypeError:
        try:
            dims = tuple(operator.index(n) for n in value)
        except TypeError:
            raise TypeError(f"{name} must be an int or a tuple of ints, got {value!r}") from None
    if len(dims) > 64 or any(n < 0 for n in dims):
        raise ValueError(f"{name} must have at most 64 lengths, none negative, got {value!r}")
    if prod(dims) > MAX_INDEX:
        raise ValueError(f"{name} must have at most 2**62 elements, got {value!r}")
    return dims


def axes(value: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Axes of an array, none of them negative."""
    try:
        return normalize_axis_tuple(value, ndim, name)
    except TypeError:
        raise TypeError(f"{name} must be an int or a tuple of ints, got {value!r}") from None


def block(shape: tuple[int, ...], shared_axes: int | Sequence[int], region: Any = None) -> Block:
    """The block of the mask array that belongs to x of this shape."""
    shared = axes(shared_axes, len(shape), "shared_axes")
    if region is not None:
        region = _region(region, shape)
    return Block(shape, shared, region)


def _region(value: Any, block: tuple[int, ...]) -> Region:
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
