"""Linear layers on a GPU, with a mask for each example or without masks."""

from __future__ import annotations

from math import prod
from typing import Any

from fastdrop import _core
from fastdrop._core import Draw
from fastdrop.backends.cuda.arrays import DeviceArray, sent
from fastdrop.backends.cuda.launch import launch
from fastdrop.backends.cuda.masks import contiguous, keys, threshold


class _Masks:
    """Where each example's masks are: of the weights, then of the bias."""

    def __init__(
        self, weight: DeviceArray, bias: DeviceArray | None, draw: Draw | None, first: int
    ) -> None:
        self.outputs = weight.shape[1]
        self.draw: dict[str, Any] = {}
        self.scale, self.length, self.start = 1.0, 0, 0
        if draw is not None:
            self.scale = _core.scale_of(draw.p)
            self.length = weight.size + (0 if bias is None else self.outputs)
            self.start = first * self.length
            self.draw = {"keys": keys(draw.seed), "call": draw.call, **threshold(draw.p)}
        self.of_bias = self.start + weight.size


def linear(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, draw: Draw | None, first: int
) -> DeviceArray:
    """x @ weight + bias; with a draw, each example has its own mask, and all is scaled."""
    masks = _Masks(weight, bias, draw, first)
    inputs, outputs = weight.shape
    y = x.new(shape=(*x.shape[:-1], outputs))
    bits = {"bits_i": masks.length, "bits_j": outputs, **masks.draw}
    last = masks.scale if bias is None else 1.0  # the sum goes on with the bias
    _add(y, weight, inputs, x=x, x_i=inputs, x_j=1, start=masks.start, scale=last, **bits)
    if bias is not None:
        _add(y, bias, 1, more=1, start=masks.of_bias, scale=masks.scale, **bits)
    return y


def linear_gradients(
    x: DeviceArray,
    weight: DeviceArray,
    bias: DeviceArray | None,
    dy: DeviceArray,
    draw: Draw | None,
    first: int,
) -> tuple[DeviceArray, DeviceArray, DeviceArray | None]:
    """Of x, weight and bias."""
    masks, dy = _Masks(weight, bias, draw, first), contiguous(dy)
    batch, (inputs, outputs) = prod(x.shape[:-1]), weight.shape
    dx, dweight, dbias = x.new(), weight.new(), None
    if dx.size:
        launch(
            "connect_back",
            dy,
            dx.size,
            {},
            m=weight,
            g=dy,
            y=dx,
            rows=batch,
            terms=inputs,
            columns=outputs,
            start=masks.start,
            bits_i=masks.length,
            scale=masks.scale,
            **masks.draw,
        )
    bits = {"bits_j": masks.length, "scale": masks.scale, **masks.draw}
    of_x = {"x": x, "x_i": 1, "x_j": inputs, "bits_i": outputs, "start": masks.start}
    _add(dweight, dy, batch, **of_x, **bits)
    if bias is not None:
        dbias = bias.new()
        _add(dbias, dy, batch, start=masks.of_bias, **bits)
    return dx, dweight, dbias


def add_bias(result: Any, bias: DeviceArray) -> DeviceArray:
    """y += bias."""
    y = sent(result, bias)
    _add(y, bias, 1, more=1, scale=1.0)
    return y


def column_sums(dy: DeviceArray) -> DeviceArray:
    """Sums over all axes except the last."""
    dy = contiguous(dy)
    sums = dy.new(shape=dy.shape[-1:])
    _add(sums, dy, prod(dy.shape[:-1]), scale=1.0)
    return sums


def _add(y: DeviceArray, m: DeviceArray, terms: int, **more: Any) -> None:
    """y[i, o] = scale * sum over `terms` j of kept m[j, o] * x[i, j], or of kept m[j, o]."""
    if y.size:
        columns = m.shape[-1]
        rows = y.size // columns
        threads = rows * -(-columns // 16)
        arguments = {"m": m, "y": y, "rows": rows, "terms": terms, "columns": columns}
        launch("connect", y, threads, {}, **arguments, **more)
