"""Targeted dropout, one column at a time."""

from __future__ import annotations

from fractions import Fraction
from math import floor, hypot, nan
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, element_index, keep

__all__ = ["targeted_dropout", "targets"]


def targets(weight: npt.NDArray[Any], targeted: float, mode: str) -> npt.NDArray[np.bool_]:
    """Which weights may be dropped: bools of weight's shape."""
    columns = weight.astype(np.float64).reshape(-1, weight.shape[-1]).T
    if mode == "weight":
        chosen = np.array([smaller(np.abs(column), targeted) for column in columns])
    else:
        norms = np.array([nan if np.isnan(column).any() else hypot(*column) for column in columns])
        chosen = np.repeat(smaller(norms, targeted)[:, None], columns.shape[1], axis=1)
    return chosen.T.reshape(weight.shape)


def smaller(values: npt.NDArray[Any], fraction: float) -> npt.NDArray[np.bool_]:
    """Which are smaller than the one of rank floor(fraction * length); all at fraction 1. A product
    that differs from a whole number by rounding alone is that number; a NaN is the largest.
    """
    product = Fraction(fraction) * len(values)
    nearest = round(product)
    rank = nearest if abs(product - nearest) < nearest * Fraction(2) ** -51 else floor(product)
    if rank == len(values):
        return np.ones(len(values), np.bool_)
    limit = np.sort(values)[rank]
    return ~np.isnan(values) if np.isnan(limit) else values < limit


def targeted_dropout(
    weight: npt.NDArray[Any],
    p: float,
    targeted: float,
    mode: str,
    seed: int,
    call: int,
    region: Region | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """y and the keep mask; backward selects dy by that mask. region: whole along ranked axes."""
    shared = range(weight.ndim - 1) if mode == "unit" else ()
    drawn = keep(element_index(weight.shape, shared, region), p, seed, call)
    kept = drawn | ~targets(weight, targeted, mode)
    return np.where(kept, weight, weight.dtype.type(0)), kept
