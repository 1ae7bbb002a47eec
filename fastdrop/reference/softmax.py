"""Softmax and dropout of attention, of which every bit is defined: only operations that IEEE 754
rounds exactly, in the order written here, and `fastdrop.reference.noise.exp`.

A. Vaswani et al.: Attention is all you need. NeurIPS 2017, equation 1 and section 5.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.base.dtypes import compute_type
from fastdrop.reference.noise import exp

__all__ = ["softmax", "softmax_dropout", "softmax_dropout_backward"]

Floats = npt.NDArray[Any]
SUMS = 32  # element j of a row is added to sum j % SUMS


def softmax(x: Floats, part: npt.NDArray[np.bool_]) -> Floats:
    """Along the last axis, of the elements that take part; of others 0.

    float32 or float64. e^(x - max) is 0 from 2^-126.5 on downwards, or 2^-1022.5.
    """
    kind = x.dtype.type
    lowest = np.finfo(kind).min  # so that a row of -inf alone is 0
    z = np.where(part, x, -np.inf)
    largest = np.maximum(np.fmax.reduce(z, axis=-1, keepdims=True, initial=-np.inf), lowest)
    least = kind(-709.08984375 if kind is np.float64 else -88.03125)
    with np.errstate(over="ignore", invalid="ignore"):
        e = exp(np.maximum(least, z - largest))
        total = row_sums(e)[..., None]
        inverse = np.where(total == 0.0, 0.0, 1.0 / np.where(total == 0.0, 1.0, total)).astype(kind)
        return np.where(part, e * inverse, kind(0))


def row_sums(x: Floats) -> npt.NDArray[np.float64]:
    """Sums along the last axis in float64, in one order of additions."""
    n = x.shape[-1]
    groups = max(1, -(-n // SUMS))
    padded = np.zeros((*x.shape[:-1], groups * SUMS))
    padded[..., :n] = x
    sums = np.zeros((*x.shape[:-1], SUMS))
    for group in range(groups):
        sums = sums + padded[..., group * SUMS : (group + 1) * SUMS]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def softmax_dropout(
    scores: Floats,
    part: npt.NDArray[np.bool_],
    keep: npt.NDArray[np.bool_],
    factor: float,
    scale: float,
) -> tuple[Floats, Floats]:
    """(y, weights): weights = softmax(scores * factor) along the last axis, y = kept(weights) *
    scale; each is rounded to the dtype of scores once.
    """
    kind = compute_type(scores.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        weights = softmax(scores.astype(kind) * kind(factor), part)
        y = np.where(keep, weights * kind(scale), kind(0))
    return y.astype(scores.dtype), weights.astype(scores.dtype)


def softmax_dropout_backward(
    dy: Floats, weights: Floats, keep: npt.NDArray[np.bool_], factor: float, scale: float
) -> Floats:
    """dscores = factor * w * (g - sum of g w) with g = kept(dy) * scale."""
    kind = compute_type(dy.dtype)
    w = weights.astype(kind)
    with np.errstate(over="ignore", invalid="ignore"):
        g = np.where(keep, dy.astype(kind), kind(0)) * kind(scale)
        mean = row_sums(g * w).astype(kind)[..., None]
        return (w * kind(factor) * (g - mean)).astype(dy.dtype)
