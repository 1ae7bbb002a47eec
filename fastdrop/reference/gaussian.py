"""Multiplying by and adding noise: Gaussian dropout, Gaussian noise, variational dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import compute_type, rounded

__all__ = ["noise_add", "noise_gradient", "noise_scale"]


def noise_scale(
    x: npt.NDArray[Any], sigma: npt.ArrayLike, noise: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """x * (1 + sigma * noise), each step rounded in the compute type."""
    kind = compute_type(x.dtype).type
    factor = kind(1) + np.asarray(sigma, kind) * noise.astype(kind)
    return rounded(x.astype(kind) * factor, x.dtype)


def noise_add(
    x: npt.NDArray[Any], sigma: npt.ArrayLike, noise: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """x + sigma * noise, each step rounded in the compute type."""
    kind = compute_type(x.dtype).type
    return rounded(x.astype(kind) + np.asarray(sigma, kind) * noise.astype(kind), x.dtype)


def noise_gradient(
    x: npt.NDArray[Any], dy: npt.NDArray[Any], noise: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Of sigma in noise_scale, element by element, in the compute type."""
    kind = compute_type(x.dtype).type
    return x.astype(kind) * dy.astype(kind) * noise.astype(kind)
