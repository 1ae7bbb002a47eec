"""Zoneout: equal to the kernel bit for bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, compute_type, element_index, keep, rounded

__all__ = ["zoneout", "zoneout_gradient", "zoneout_mean"]


def zoneout(
    previous: npt.NDArray,
    new: npt.NDArray,
    p: float,
    seed: int,
    call: int,
    region: Region | None = None,
) -> tuple[npt.NDArray, npt.NDArray[np.bool_]]:
    """y and where the new value was taken: what `dropout` keeps."""
    mask = keep(element_index(new.shape, (), region), p, seed, call)
    return np.where(mask, new, previous), mask


def zoneout_gradient(
    dy: npt.NDArray, mask: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray, npt.NDArray]:
    """(dprevious, dnew): dy goes to the value that was taken, the other gets +0."""
    zero = dy.dtype.type(0)
    return np.where(mask, zero, dy), np.where(mask, dy, zero)


def zoneout_mean(previous: npt.NDArray, new: npt.NDArray, p: float) -> npt.NDArray:
    """p * previous + (1 - p) * new, each step rounded in the compute type."""
    if p in (0.0, 1.0):
        return (previous if p == 1.0 else new).copy()
    kind = compute_type(new.dtype).type
    kept, taken = previous.astype(kind) * kind(p), new.astype(kind) * kind(1.0 - p)
    return rounded(np.asarray(kept + taken), new.dtype)
