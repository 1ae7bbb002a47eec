"""DropConnect. A mask per example is equal to the kernels bit for bit: each sum has one order."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import keep, scale

__all__ = [
    "dropconnect",
    "dropconnect_gaussian",
    "dropconnect_gaussian_gradients",
    "dropconnect_gradients",
    "dropconnect_masks",
]

Array = npt.NDArray[Any]
LANES, COLUMNS = 32, 4096  # of the sums in dx: partial sums, and columns they are added up after


def dropconnect_masks(
    shape: tuple[int, int, int], p: float, seed: int, call: int, first: int = 0
) -> npt.NDArray[np.bool_]:
    """Masks of examples first, first + 1, ...: shape (batch, inputs, outputs).

    A bias that is masked, too, is one more row of inputs, the last.
    """
    batch, inputs, outputs = shape
    index = np.arange(batch * inputs * outputs, dtype=np.uint64).reshape(shape)
    return keep(index + np.uint64(first * inputs * outputs), p, seed, call)


def dropconnect(
    x: Array, weight: Array, bias: Array | None, masks: npt.NDArray[np.bool_], p: float
) -> Array:
    """y = (x @ (mask * weight) + mask * bias) * scale, a mask for each example.

    The sum begins at 0, goes through the inputs in their order and ends with the bias. A bias of
    which the masks have no row is added unmasked, behind the scale.
    """
    dtype = x.dtype.type
    rows, factors = _with_bias(x, weight, bias, masks)
    total = np.zeros((len(x), weight.shape[1]), dtype)
    for k, row in enumerate(rows):
        total = total + np.where(masks[:, k], row, dtype(0)) * factors[:, k, None]
    y = total * dtype(scale(p))
    return y if bias is None or len(rows) > len(weight) else y + bias


def dropconnect_gradients(
    x: Array,
    weight: Array,
    bias: Array | None,
    masks: npt.NDArray[np.bool_],
    p: float,
    dy: Array,
) -> tuple[Array, Array, Array | None]:
    """dx, dweight and dbias.

    dx = sum over outputs of mask * weight * dy: 4096 columns at a time, 32 partial sums of every
    32nd of them, of which the upper half is added to the lower until one is left. dweight and
    dbias = sum over examples of mask * dy * x, in their order. Then all are scaled.
    """
    dtype = x.dtype.type
    rows, factors = _with_bias(x, weight, bias, masks)
    dx, drows = np.zeros(factors.shape, dtype), np.zeros(rows.shape, dtype)
    outputs = weight.shape[1]
    for begin in range(0, outputs, COLUMNS):
        lanes = np.zeros((*factors.shape, LANES), dtype)
        for o in range(begin, min(begin + COLUMNS, outputs), LANES):
            at = slice(o, min(o + LANES, outputs))
            kept = np.where(masks[:, :, at], rows[:, at], dtype(0))
            lanes[:, :, : kept.shape[2]] += kept * dy[:, None, at]
        while lanes.shape[2] > 1:
            half = lanes.shape[2] // 2
            lanes = lanes[:, :, :half] + lanes[:, :, half:]
        dx += lanes[:, :, 0]
    for mask, factor, g in zip(masks, factors, dy, strict=True):
        drows += np.where(mask, g, dtype(0)) * factor[:, None]
    dx, drows = dx * dtype(scale(p)), drows * dtype(scale(p))
    inputs = len(weight)
    if len(rows) > inputs:
        return dx[:, :inputs], drows[:inputs], drows[inputs]
    return dx, drows, None if bias is None else dy.sum(axis=0)


def _with_bias(
    x: Array, weight: Array, bias: Array | None, masks: npt.NDArray[np.bool_]
) -> tuple[Array, Array]:
    """Weights and inputs; a masked bias is a weight whose input is 1."""
    if bias is None or masks.shape[1] == len(weight):
        return weight, x
    return np.vstack([weight, bias]), np.hstack([x, np.ones((len(x), 1), x.dtype)])


def dropconnect_gaussian(
    x: Array, weight: Array, bias: Array | None, p: float, noise: Array, mask_bias: bool = True
) -> Array:
    """mean + standard deviation * noise: the first two moments of what a mask makes of x."""
    mean, deviation = _moments(x, weight, bias, p, mask_bias)
    return mean + deviation * noise


def dropconnect_gaussian_gradients(
    x: Array,
    weight: Array,
    bias: Array | None,
    p: float,
    noise: Array,
    dy: Array,
    mask_bias: bool = True,
) -> tuple[Array, Array, Array | None]:
    """dx, dweight and dbias with the noise held fixed; 0 through a deviation of 0."""
    _, deviation = _moments(x, weight, bias, p, mask_bias)
    h = np.where(deviation > 0, dy * noise / np.where(deviation > 0, 2 * deviation, 1), 0)
    ratio = p / (1 - p)
    dx = dy @ weight.T + 2 * ratio * x * (h @ (weight**2).T)
    dweight = x.T @ dy + 2 * ratio * weight * ((x**2).T @ h)
    if bias is None:
        return dx, dweight, None
    return dx, dweight, dy.sum(axis=0) + (2 * ratio * bias * h.sum(axis=0) if mask_bias else 0)


def _moments(
    x: Array, weight: Array, bias: Array | None, p: float, mask_bias: bool
) -> tuple[Array, Array]:
    """Mean and standard deviation over the masks."""
    mean, variance = x @ weight, x**2 @ weight**2
    if bias is not None:
        mean = mean + bias
        if mask_bias:
            variance = variance + bias**2
    return mean, sqrt(p / (1 - p)) * np.sqrt(variance)
