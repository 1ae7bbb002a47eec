"""Dropout and the ops fused with it: equal to the kernels bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import normalize_axis_tuple

from fastdrop import rng
from fastdrop.reference.activation import gelu, gelu_slope

__all__ = [
    "apply",
    "compute_type",
    "dropout",
    "element_index",
    "fused",
    "fused_gelu_gradient",
    "keep",
    "rounded",
    "scale",
    "threshold",
]

Region = tuple[Sequence[int], Sequence[int]]  # start, global shape


def threshold(p: float) -> int:
    """T = round(p * 2**32), half to even: an element is dropped with chance T / 2**32."""
    return round(p * 2.0**32)


def scale(p: float) -> float:
    """1 / (1 - p); 0 at p = 1, where nothing is left to scale."""
    return 1.0 / (1.0 - p) if p < 1.0 else 0.0


def keep(index: npt.ArrayLike, p: float, seed: int, call: int) -> npt.NDArray[np.bool_]:
    """Which elements of these indices (uint64, any shape) are kept."""
    i = np.asarray(index, np.uint64)
    T = threshold(p)
    if T == 0 or T == 2**32:
        return np.full(i.shape, T == 0)
    if T == 2**31:  # one bit an element
        word = rng.words_at(seed, call, rng.BITS, i >> np.uint64(5))
        return (word >> (i & np.uint64(31)).astype(np.uint32) & np.uint32(1)).astype(bool)
    t, f = T >> 24, T & 0xFFFFFF
    word = rng.words_at(seed, call, rng.BYTES, i >> np.uint64(2))
    byte = word >> (np.uint32(8) * (i & np.uint64(3)).astype(np.uint32)) & np.uint32(0xFF)
    refinement = rng.words_at(seed, call, rng.REFINEMENT, i) >> np.uint32(8)
    return ~((byte < t) | ((byte == t) & (refinement < f)))


def element_index(
    shape: Sequence[int],
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> npt.NDArray[np.uint64]:
    """Keystream index of every element: its C-order position in the (global) mask array. rows: the
    positions along axis 0, if they do not follow each other.
    """
    shared = normalize_axis_tuple(shared_axes, len(shape))
    start, whole = region if region is not None else ((0,) * len(shape), shape)
    index = np.zeros(shape, np.uint64)
    stride = 1
    for d in reversed(range(len(shape))):
        if d not in shared:
            position = np.uint64(start[d]) + np.arange(shape[d], dtype=np.uint64)
            if rows is not None and d == 0:
                position = np.asarray(rows, np.uint64)
            index += (position * np.uint64(stride)).reshape(-1, *(1,) * (len(shape) - d - 1))
            stride *= whole[d]
    return index


def compute_type(dtype: np.dtype) -> np.dtype:
    """float64 for float64, float32 for all others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def rounded(y: npt.NDArray[Any], dtype: np.dtype) -> npt.NDArray[Any]:
    """To nearest even. A bfloat16 NaN keeps its payload, as NumPy's other NaN do."""
    if dtype.name != "bfloat16":
        return y.astype(dtype)
    u = y.view(np.uint32)
    odd = u >> np.uint32(16) & np.uint32(1)
    return (u + np.uint32(0x7FFF) + odd >> np.uint32(16)).astype(np.uint16).view(dtype)


def apply(x: npt.NDArray[Any], mask: npt.NDArray[np.bool_], p: float) -> npt.NDArray[Any]:
    """Kept elements times the scale, in the compute type, rounded once; dropped ones +0. The parts
    of a complex number share its draw.
    """
    if x.dtype.kind == "c":
        y = np.empty_like(x)
        y.real, y.imag = apply(x.real, mask, p), apply(x.imag, mask, p)
        return y
    return x.copy() if p == 0.0 else fused(x, mask, p)


def dropout(
    x: npt.NDArray[Any],
    p: float,
    seed: int,
    call: int,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """y and the keep mask; backward is `apply` of dy with that mask."""
    mask = keep(element_index(x.shape, shared_axes, region, rows), p, seed, call)
    return apply(x, mask, p), mask


def fused(
    x: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    p: float,
    *,
    bias: npt.NDArray[Any] | None = None,
    residual: npt.NDArray[Any] | None = None,
    relu: bool = False,
    with_gelu: bool = False,
) -> npt.NDArray[Any]:
    """residual + relu(kept(gelu(x + bias)) * scale), each step rounded in the compute type."""
    compute = compute_type(x.dtype).type
    with np.errstate(all="ignore"):
        y = x.astype(compute)
        if bias is not None:
            y = y + bias.astype(compute)
        y = gelu(y) if with_gelu else y
        y = np.where(mask, y * compute(scale(p)), compute(0))
        if relu:
            y = np.where(y <= 0, compute(0), y)
        if residual is not None:
            y = residual.astype(compute) + y
        return rounded(y, x.dtype)


def fused_gelu_gradient(
    dy: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_],
    p: float,
    x: npt.NDArray[Any],
    bias: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """dx of kept(gelu(x + bias)) * scale, each step rounded in the compute type."""
    compute = compute_type(x.dtype).type
    with np.errstate(all="ignore"):
        slope = gelu_slope(x.astype(compute) + bias.astype(compute))
        dx = dy.astype(compute) * compute(scale(p)) * slope
        return rounded(np.where(mask, dx, compute(0)), x.dtype)
