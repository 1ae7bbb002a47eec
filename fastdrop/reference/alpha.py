"""Alpha dropout: equal to the kernel bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, compute_type, element_index, keep, rounded

__all__ = ["alpha_affine", "alpha_dropout", "alpha_gradient"]

SATURATION = -1.0507009873554805 * 1.6732632423543772  # -lambda * alpha of SELU


def alpha_affine(p: float) -> tuple[float, float]:
    """a and b, with which a * x + b has mean 0 and variance 1 if x has, dropped ones included."""
    if p == 1.0:
        return 0.0, 0.0
    a = ((1.0 - p) * (1.0 + p * SATURATION * SATURATION)) ** -0.5
    return a, -a * p * SATURATION


def alpha_dropout(
    x: npt.NDArray[Any],
    p: float,
    seed: int,
    call: int,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    """y and the keep mask: a * x + b, of dropped ones a * SATURATION + b; x itself at p = 0."""
    mask = keep(element_index(x.shape, shared_axes, region, rows), p, seed, call)
    if p == 0.0:
        return x.copy(), mask
    kind = compute_type(x.dtype).type
    a, b = alpha_affine(p)
    with np.errstate(all="ignore"):
        kept = x.astype(kind) * kind(a) + kind(b)
        return rounded(np.where(mask, kept, kind(a * SATURATION + b)), x.dtype), mask


def alpha_gradient(dy: npt.NDArray[Any], mask: npt.NDArray[np.bool_], p: float) -> npt.NDArray[Any]:
    """a * dy where kept, else +0; dy itself at p = 0."""
    if p == 0.0:
        return dy.copy()
    kind = compute_type(dy.dtype).type
    with np.errstate(all="ignore"):
        kept = dy.astype(kind) * kind(alpha_affine(p)[0])
        return rounded(np.where(mask, kept, kind(0)), dy.dtype)
