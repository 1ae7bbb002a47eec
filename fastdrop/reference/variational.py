"""The sparse variational linear layer; variational dropout is a matter of noise_scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import Region, element_index
from fastdrop.reference.noise import normals

__all__ = ["sparse_variational_gradients", "sparse_variational_kl", "sparse_variational_linear"]

Floats = npt.NDArray[np.float64]


def _noise(
    shape: tuple[int, ...], draw: tuple[int, int], region: Region | None, rows: npt.ArrayLike | None
) -> Floats:
    return normals(element_index(shape, (), region, rows), *draw).astype(np.float64)


def sparse_variational_linear(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    log_variance: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    draw: tuple[int, int] | None,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> Floats:
    """x of shape (batch, inputs), all in float64; draw None: pruned weights, no noise. region and
    rows are those of y.
    """
    x, weight, log_variance = (np.asarray(a, np.float64) for a in (x, weight, log_variance))
    y = np.zeros((x.shape[0], weight.shape[1]))
    noise = y if draw is None else _noise(y.shape, draw, region, rows)
    for b in range(y.shape[0]):
        for j in range(y.shape[1]):
            if draw is None:
                kept = log_variance[:, j] - np.log(weight[:, j] ** 2 + 1e-8) < 3
                y[b, j] = np.sum(x[b] * weight[:, j] * kept)
            else:
                variance = np.sum(x[b] ** 2 * np.exp(log_variance[:, j])) + 1e-8
                y[b, j] = np.sum(x[b] * weight[:, j]) + np.sqrt(variance) * noise[b, j]
    return y if bias is None else y + np.asarray(bias, np.float64)


def sparse_variational_gradients(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    log_variance: npt.NDArray[Any],
    draw: tuple[int, int],
    dy: npt.NDArray[Any],
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Of x, weight, log_variance and bias, term by term in float64."""
    x, weight, v, dy = (np.asarray(a, np.float64) for a in (x, weight, log_variance, dy))
    dx, dweight, dv = np.zeros_like(x), np.zeros_like(weight), np.zeros_like(weight)
    noise = _noise(dy.shape, draw, region, rows)
    for b in range(dy.shape[0]):
        for j in range(dy.shape[1]):
            deviation = np.sqrt(np.sum(x[b] ** 2 * np.exp(v[:, j])) + 1e-8)
            h = dy[b, j] * noise[b, j] / (2 * deviation)  # of the variance
            dx[b] += dy[b, j] * weight[:, j] + h * 2 * x[b] * np.exp(v[:, j])
            dweight[:, j] += dy[b, j] * x[b]
            dv[:, j] += h * x[b] ** 2 * np.exp(v[:, j])
    return dx, dweight, dv, dy.sum(axis=0)


def sparse_variational_kl(weight: float, log_variance: float) -> float:
    """Of one weight: Molchanov et al. 2017, equation 14."""
    log_alpha = np.clip(log_variance - np.log(weight**2 + 1e-8), -8, 8)
    sigmoid = 1 / (1 + np.exp(-(1.87320 + 1.48695 * log_alpha)))
    return -(0.63576 * sigmoid - 0.5 * np.log1p(np.exp(-log_alpha)) - 0.63576)
