"""Zoneout: equal to the kernel bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, compute_type, element_index, keep, rounded

__all__ = ["zoneout", "zoneout_gradient", "zoneout_mean"]


def zoneout(
    previous: npt.NDArray[Any],
    new: npt.NDArray[Any],
    p: float,
    seed: int,
    call: int,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """y and where the new value was taken: what `dropout` keeps."""
    mask = keep(element_index(new.shape, (), region, rows), p, seed, call)
    return np.where(mask, new, previous), mask


def zoneout_gradient(
    dy: npt.NDArray[Any], mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """(dprevious, dnew): dy goes to the value that was taken, the other gets +0."""
    zero = dy.dtype.type(0)
    return np.where(mask, zero, dy), np.where(mask, dy, zero)


def zoneout_mean(previous: npt.NDArray[Any], new: npt.NDArray[Any], p: float) -> npt.NDArray[Any]:
    """p * previous + (1 - p) * new, each step rounded in the compute type."""
    if p in (0.0, 1.0):
        return (previous if p == 1.0 else new).copy()
    kind = compute_type(new.dtype).type
    kept, taken = previous.astype(kind) * kind(p), new.astype(kind) * kind(1.0 - p)
    return rounded(np.asarray(kept + taken), new.dtype)
