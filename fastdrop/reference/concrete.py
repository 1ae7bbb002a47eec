"""Concrete dropout."""

from __future__ import annotations

from math import exp
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import compute_type, rounded
from fastdrop.reference.noise import exp as noise_exp

__all__ = ["concrete", "concrete_gradient"]


def _odds(
    logit: float, temperature: float, noise: npt.NDArray[Any], kind: type
) -> npt.NDArray[Any]:
    """z / (1 - z) of the relaxed drop mask z, within what exp can do."""
    most = kind(700 if kind is np.float64 else 87)
    a = (kind(logit) + noise.astype(kind)) * kind(1 / temperature)
    return noise_exp(np.clip(a, -most, most))


def concrete(
    x: npt.NDArray[Any], logit: float, temperature: float, noise: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """x * (1 - z) / (1 - p), each step rounded in the compute type."""
    kind = compute_type(x.dtype).type
    scale = kind(1 + exp(logit))  # 1 / (1 - p)
    weight = scale / (kind(1) + _odds(logit, temperature, noise, kind))
    return rounded(x.astype(kind) * weight, x.dtype)


def concrete_gradient(
    x: npt.NDArray[Any],
    dy: npt.NDArray[Any],
    logit: float,
    temperature: float,
    noise: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Of logit: dy * x * (1 - z) * (p - z / temperature) / (1 - p), element by element, in the
    compute type.
    """
    kind = compute_type(x.dtype).type
    odds = _odds(logit, temperature, noise, kind)
    weight = kind(1 + exp(logit)) / (kind(1) + odds)
    p = kind(1 / (1 + exp(-logit)))
    rest = p - odds / (kind(1) + odds) * kind(1 / temperature)
    return x.astype(kind) * dy.astype(kind) * (weight * rest)
