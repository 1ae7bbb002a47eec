"""Rows of a table on a GPU, by number."""

from __future__ import annotations

from math import prod
from typing import Any

from fastdrop._core import Draw
from fastdrop.backends.cuda.arrays import DeviceArray, collapsed, seen, sent
from fastdrop.backends.cuda.launch import launch
from fastdrop.backends.cuda.masks import U64, cleared, contiguous, draw_bits
from fastdrop.base import gate
from fastdrop.base.devices import on_device


def numbers(ids: Any, weight: DeviceArray) -> Any:
    """Integers on the device, or in the host's memory, as int64 in C order. Nothing waits for those
    on the device: a number that is not in the table becomes its length.
    """
    words = weight.shape[0]
    if not on_device(ids):
        return gate.row_numbers(ids, words)
    ids = seen(ids, "ids", weight.source)
    if ids.dtype.rstrip("0123456789") not in ("int", "uint"):
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    y = ids.new("int64")
    if ids.size:
        shape, strides = collapsed(ids.shape, ids.strides)
        launch(
            "ids",
            ids,
            ids.size,
            {"axes": len(shape)},
            x=ids,
            y=y,
            n=ids.size,
            width=8 * ids.itemsize,
            signed=ids.dtype[0] == "i",
            words=words,
            shape=shape,
            strides=tuple(s & U64 for s in strides),
        )
    return y


def lookup(weight: DeviceArray, ids: Any, draw: Draw | None, scale: float) -> DeviceArray:
    """Rows of the table, scaled if kept, else 0."""
    weight, own = contiguous(weight), sent(ids, weight)
    y = weight.new(shape=(*own.shape, *weight.shape[1:]))
    if y.size:
        launch(
            "dropout",
            weight,
            (y.size + 15) // 16,
            {"op": "dropout", "source": "rows", "shifted": False},
            x=weight,
            y=y,
            given=_kept(draw, weight),
            own=own,
            n=y.size,
            row=prod(weight.shape[1:]),
            words=weight.shape[0],
            scale=scale,
        )
    return y


def add_rows(
    dy: DeviceArray, ids: Any, shape: tuple[int, ...], draw: Draw | None, scale: float
) -> DeviceArray:
    """The table's gradient."""
    dy, ids = contiguous(dy), sent(ids, dy)
    dweight = cleared(dy.new(shape=shape))
    if dy.size:
        launch(
            "add_rows",
            dy,
            dy.size,
            {},
            order=_sorted(ids),
            x=dy,
            given=_kept(draw, dy),
            y=dweight,
            n=ids.size,
            row=prod(shape[1:]),
            words=shape[0],
            scale=scale,
        )
    return dweight


def _kept(draw: Draw | None, like: DeviceArray) -> Any:
    """A keep bit for each row of the table; 0 if none is dropped."""
    return 0 if draw is None else draw_bits(draw, like).bits


def _sorted(ids: DeviceArray) -> DeviceArray:
    """ids[i] * n + i of n ids, in ascending order."""
    from fastdrop.backends.cuda.kernels.rows import WAYS

    x, run = ids, 1
    while run == 1 or run < ids.size:
        y = ids.new()
        launch("sort", ids, ids.size, {}, x=x, y=y, n=ids.size, run=run)
        x, run = y, run * WAYS
    return x
