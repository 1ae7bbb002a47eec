"""DropBlock on a GPU."""

from __future__ import annotations

from math import prod
from typing import Any

from fastdrop._core import PARTS, Draw
from fastdrop.backends.cuda.arrays import DeviceArray, DeviceBits
from fastdrop.backends.cuda.launch import launch
from fastdrop.backends.cuda.masks import copy, delivered, dense, draw_bits, place_to_write, spread
from fastdrop.backends.interface import Squares
from fastdrop.base.dtypes import compute_type


def _row(squares: Squares) -> int:
    """Keep bits of an example, which begins with a 64-bit word."""
    return -(-prod(squares.drawn[1:]) // 64) * 64


def keep_squares(draw: Draw, squares: Squares, like: DeviceArray) -> DeviceBits:
    """Keep bits of all examples: from where squares begin, widened along rows, then columns."""
    batch, maps, height, width = squares.drawn
    *_, rows, columns = draw.place.shape
    row = _row(squares)
    n, size = batch * row, maps * height * width
    bits = draw_bits(draw, like)
    for name, more in (
        ("place", {"rows": rows, "columns": columns, "height": height, "width": width}),
        ("widen", {"far": 1, "k": squares.sides[1]}),
        ("widen", {"far": width, "k": squares.sides[0], "keep": 1}),
    ):
        before, bits = bits.bits, DeviceBits.empty(n, like)
        arguments: dict[str, Any] = {"given": before, "saved": bits.bits}
        launch(name, like, n // 16, {}, n=n, row=row, size=size, **arguments, **more)
    return bits


def apply_squares(
    x: DeviceArray, out: DeviceArray | None, held: Any, squares: Squares
) -> DeviceArray:
    """x times the scale of its example where kept, else 0."""
    batch, maps, height, width = squares.drawn
    row = _row(squares)
    bits = DeviceBits.of(held, batch * row, x)
    sums, scales = x.new("int64", (batch, PARTS)), x.new(compute_type(x.dtype).__name__, (batch,))
    launch("count", x, batch * PARTS, {}, given=bits.bits, sums=sums, n=batch, row=row)
    size = maps * height * width
    launch("scale", scales, batch, {}, sums=sums, y=scales, n=batch, size=size)

    order = x.order()
    as_given = order.copy()
    if order[0]:  # the kernel takes examples that are behind each other
        order.remove(0)
        order.insert(0, 0)
    channels = height * width if squares.per_channel else 0
    steps = [row, width, 1] if x.ndim == 4 else [row, 1]
    steps.insert(x.ndim - 1 if squares.channels_last else 1, channels)
    each = spread(bits, x.shape, order, steps, x)
    source = dense(x, order)
    y = place_to_write(source, out)
    launch(
        "dropout",
        source,
        (x.size + 15) // 16,
        {"op": "dropout", "source": "examples", "shifted": False},
        x=source,
        y=y,
        given=each.bits,
        own=scales,
        n=x.size,
        row=x.size // batch,
    )
    if out is None and order != as_given:
        out = x.new(order=as_given)
        copy(y, out)
        return out
    return delivered(y, out)
