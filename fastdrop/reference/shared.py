"""Dropout that shares a draw, written as loops over what is dropped as a whole."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastdrop.reference.dropout import apply, compute_type, keep, rounded, scale

__all__ = [
    "drop_path",
    "embedding_dropout",
    "embedding_gradient",
    "locked_dropout",
    "spatial_dropout",
]


def spatial_dropout(
    x: npt.NDArray, p: float, seed: int, call: int, channels_last: bool = False
) -> npt.NDArray:
    """Map c of example n is kept as element n * channels + c of the keystream is."""
    y = np.empty_like(x, order="C")
    maps, y_maps = (np.moveaxis(a, -1, 1) if channels_last else a for a in (x, y))
    batch, channels = maps.shape[:2]
    kept = keep(np.arange(batch * channels), p, seed, call)
    for n in range(batch):
        for c in range(channels):
            mask = np.full(maps.shape[2:], kept[n * channels + c])
            y_maps[n, c] = apply(maps[n, c], mask, p)
    return y


def locked_dropout(
    x: npt.NDArray, p: float, seed: int, call: int, time_axis: int = 1
) -> npt.NDArray:
    """Each step is dropped as the first is."""
    steps = np.moveaxis(x, time_axis, 0)
    mask = keep(np.arange(steps[0].size).reshape(steps[0].shape), p, seed, call)
    return np.stack([apply(step, mask, p) for step in steps], axis=time_axis)


def embedding_dropout(
    weight: npt.NDArray, p: float, seed: int, call: int, ids: npt.NDArray | None = None
) -> npt.NDArray:
    """Row i of the table is kept as element i of the keystream is; then rows are looked up."""
    y = np.empty_like(weight, order="C")
    kept = keep(np.arange(len(weight)), p, seed, call)
    for i, row in enumerate(weight):
        y[i] = apply(row, np.full(row.shape, kept[i]), p)
    return y if ids is None else y[ids]


def embedding_gradient(
    dy: npt.NDArray, weight_shape: tuple[int, ...], ids: npt.NDArray, p: float, seed: int, call: int
) -> npt.NDArray[np.float64]:
    """Of the table: the scaled sum of what a row got wherever it was looked up, if it is kept."""
    dweight = np.zeros(weight_shape)
    kept = keep(np.arange(len(dweight)), p, seed, call)
    for at in np.ndindex(ids.shape):
        if kept[ids[at]]:
            dweight[ids[at]] += dy[at].astype(np.float64)
    return dweight * scale(p)


def drop_path(
    x: npt.NDArray, p: float, seed: int, call: int, mode: str = "row", scale_by_keep: bool = True
) -> npt.NDArray:
    """Example n is kept as element n of the keystream is; in mode "batch", all as element 0 is."""
    kind = compute_type(x.dtype).type
    factor = kind(scale(p) if scale_by_keep else 1.0)
    y = np.zeros(x.shape, x.dtype)
    kept = keep(np.arange(max(len(x), 1)), p, seed, call)
    for n, example in enumerate(x):
        if kept[n if mode == "row" else 0]:
            y[n] = rounded(np.asarray(example.astype(kind) * factor), x.dtype)
    return y
