"""DropBlock, one block at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import compute_type, element_index, keep, rounded

__all__ = ["block_mask", "block_seeds", "drop_block", "rescaled"]


def block_seeds(size: Sequence[int], p: float, block_size: int) -> tuple[int, list[int], float]:
    """For maps of this size: k, where in a map a block may begin (from 0 up to these lengths), and
    gamma, the chance that one does (equation 1).
    """
    k = min(block_size, *size)
    places = [n - k + 1 for n in size]
    gamma = 1.0 if p == 1 else p * prod(size) / (k ** len(size) * prod(places))
    return k, places, gamma


def block_mask(
    shape: Sequence[int], p: float, block_size: int, seed: int, call: int
) -> npt.NDArray[np.bool_]:
    """Which elements of maps (batch, channels, ...) are kept."""
    batch, channels, *size = shape
    k, places, gamma = block_seeds(size, p, block_size)
    begins = ~keep(element_index((batch, channels, *places)), gamma, seed, call)
    mask = np.ones(shape, np.bool_)
    for n, c, *corner in np.argwhere(begins):
        mask[n, c, *(slice(i, i + k) for i in corner)] = False
    return mask


def rescaled(x: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Kept elements times elements / kept elements of their example, rounded once."""
    compute = compute_type(x.dtype).type
    y = np.zeros(x.shape, x.dtype)
    for i, m in enumerate(mask):
        if m.any():
            with np.errstate(all="ignore"):
                scaled = rounded(x[i].astype(compute) * compute(m.size / m.sum()), x.dtype)
            y[i][m] = scaled[m]
    return y


def drop_block(
    x: npt.NDArray[Any], p: float, block_size: int, seed: int, call: int, per_channel: bool = True
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """y and the keep mask for x of shape (batch, channels, ...); backward is `rescaled` of dy with
    that mask.
    """
    batch, channels, *size = x.shape
    drawn = block_mask((batch, channels if per_channel else 1, *size), p, block_size, seed, call)
    mask = np.broadcast_to(drawn, x.shape).copy()
    return rescaled(x, mask), mask
