"""Adversarial dropout, one example at a time, and the divergences as they are written."""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, compute_type, element_index, keep, rounded

__all__ = ["adversarial_dropout", "adversarial_mask", "kl_divergence", "squared_divergence"]


def adversarial_mask(
    J: npt.NDArray[Any], mask: npt.NDArray[np.bool_], delta: float
) -> npt.NDArray[np.bool_]:
    """The mask of one example (1-d) after the flips."""
    candidate = ((J > 0) & ~mask) | ((J < 0) & mask)
    size = np.where(candidate, np.abs(J), 0)
    limit = floor(delta * len(J))
    bound = sorted([*size, 0], reverse=True)[limit]  # the largest that may not be flipped
    return mask ^ (size > bound)


def adversarial_dropout(
    x: npt.NDArray[Any],
    gradient: npt.NDArray[Any],
    delta: float,
    p: float,
    seed: int,
    call: int,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """y, the keep mask and the scale of each example; backward multiplies dy by both.
    region: of whole examples.
    """
    compute = compute_type(x.dtype).type
    base = keep(element_index(x.shape, (), region, rows), p, seed, call)
    mask = np.empty(x.shape, np.bool_)
    scale = np.zeros(len(x))
    y = np.zeros(x.shape, compute)
    for i in range(len(x)):
        J = gradient[i].astype(compute) * x[i].astype(compute)
        if p == 1.0:
            J = np.zeros_like(J)
        mask[i] = adversarial_mask(J.ravel(), base[i].ravel(), delta).reshape(J.shape)
        if mask[i].any():
            scale[i] = mask[i].size / mask[i].sum()
        y[i][mask[i]] = x[i][mask[i]].astype(compute) * compute(scale[i])
    return rounded(y, x.dtype), mask, scale


def softmax(z: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Over the last axis, in float64."""
    e = np.exp(z.astype(np.float64))
    return e / e.sum(axis=-1, keepdims=True)


def probabilities(target: npt.NDArray[Any], classes: int) -> npt.NDArray[np.float64]:
    """Of labels (integers) or logits."""
    return np.eye(classes)[target] if target.dtype.kind in "iu" else softmax(target)


def kl_divergence(target: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    """Mean over the batch of sum t log(t / s), where 0 log 0 = 0."""
    s = softmax(logits)
    t = probabilities(target, s.shape[-1])
    return float(np.mean(np.sum(t * np.log(np.where(t > 0, t, s) / s), axis=-1)))


def squared_divergence(target: npt.NDArray[Any], logits: npt.NDArray[Any]) -> float:
    """Mean over batch and classes of (t - s)**2."""
    s = softmax(logits)
    return float(np.mean((probabilities(target, s.shape[-1]) - s) ** 2))
