"""The sparse variational linear layer; variational dropout is a matter of noise_scale."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdrop.reference.noise import normals

__all__ = ["sparse_variational_linear"]


def sparse_variational_linear(
    x: npt.NDArray,
    weight: npt.NDArray,
    log_variance: npt.NDArray,
    bias: npt.NDArray | None,
    seed: int | None,
    call: int | None,
) -> npt.NDArray[np.float64]:
    """x of shape (batch, inputs), all in float64; seed None: pruned weights, no noise."""
    x, weight, log_variance = (np.asarray(a, np.float64) for a in (x, weight, log_variance))
    y = np.zeros((x.shape[0], weight.shape[1]))
    for b in range(y.shape[0]):
        for j in range(y.shape[1]):
            if seed is None:
                kept = log_variance[:, j] - np.log(weight[:, j] ** 2 + 1e-8) < 3
                y[b, j] = np.sum(x[b] * weight[:, j] * kept)
            else:
                variance = np.sum(x[b] ** 2 * np.exp(log_variance[:, j])) + 1e-8
                noise = normals(b * y.shape[1] + j, seed, call)
                y[b, j] = np.sum(x[b] * weight[:, j]) + np.sqrt(variance) * noise
    return y if bias is None else y + np.asarray(bias, np.float64)
