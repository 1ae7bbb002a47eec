"""Continuous noise on a GPU, and sums in the order of the CPU's."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdrop._core import BIAS_GELU_BACKWARD, CONCRETE, NOISE_ADD, NOISE_SCALE, PARTS, Draw
from fastdrop.backends.cuda.arrays import DeviceArray, sent
from fastdrop.backends.cuda.launch import launch
from fastdrop.backends.cuda.masks import (
    contiguous,
    delivered,
    draw_bits,
    drawn_axes,
    forward,
    keys,
    place_to_write,
    row_numbers,
    select,
)
from fastdrop.base.dtypes import compute_type

OPS = {NOISE_SCALE: "scale", NOISE_ADD: "add", CONCRETE: "concrete"}


def noise(
    op: int, x: DeviceArray, draw: Draw, constants: Any, out: DeviceArray | None = None
) -> DeviceArray:
    """One of the noise ops."""
    x = contiguous(x)
    y = place_to_write(x, out)
    _apply(OPS[op], x, y, draw, constants)
    return delivered(y, out)


def noise_gradients(
    op: int, x: DeviceArray, dy: DeviceArray, draw: Draw, constants: Any, group: int | None
) -> tuple[DeviceArray, DeviceArray]:
    """dx, and the gradient of sigma or logit, as `Backend.noise_gradients` says."""
    x, dy = contiguous(x), contiguous(dy)
    dx, terms = dy.new(), x.new(compute_type(x.dtype).__name__)
    _apply(OPS[op], dy, dx, draw, constants)
    _apply("gradient" if op == CONCRETE else "slope", x, terms, draw, constants, g=dy)
    if group is None:
        return dx, terms
    single = group == 1
    return dx, summed(terms, 512 if single else group, "tiles", single, "float64")


def select_and_sum(
    dy: DeviceArray,
    out: DeviceArray | None,
    draw: Draw,
    bits: Any,
    scale: float,
    x: DeviceArray | None = None,
    bias: DeviceArray | None = None,
) -> tuple[DeviceArray, DeviceArray]:
    """`select`, and the sums of its columns; with x and bias, times the slope of GELU."""
    if x is None:
        dx = select(dy, out, draw, bits, scale)
    else:
        given = draw_bits(draw, dy) if bits is None else bits
        constants = scale, 0.0, 0.0
        dx, _ = forward(BIAS_GELU_BACKWARD, dy, draw, constants, out, False, x, bias, given)
    return dx, summed(contiguous(dx), dy.shape[-1], "rows", False)


def chain(weights: np.ndarray, slopes: DeviceArray, dtype: Any) -> DeviceArray:
    """weights * slopes, and 0 where a weight is negative."""
    y = slopes.new(np.dtype(dtype).name, np.shape(weights))
    if y.size:
        launch(
            "weighted",
            y,
            y.size,
            {},
            weights=sent(np.asarray(weights, np.float64, order="C"), slopes),
            x=slopes,
            y=y,
            n=y.size,
            wide=slopes.dtype == "float64",
        )
    return y


def summed(
    x: DeviceArray, row: int, by: str, single: bool, dtype: str | None = None
) -> DeviceArray:
    """Sums of x's columns, `row` elements apart, in x's dtype; or, single, of all, in float64."""
    result = x.new("float64", ()) if single else x.new(dtype, (row,))
    sums = x.new("float64", (PARTS, row))
    if row:
        launch("sums", x, PARTS * row, {"by": by}, x=x, sums=sums, n=x.size, row=row)
        threads = 1 if single else row
        launch("total", result, threads, {"single": single}, sums=sums, y=result, row=row)
    return result


def _apply(
    op: str,
    x: DeviceArray,
    y: DeviceArray,
    draw: Draw,
    constants: Any,
    g: DeviceArray | None = None,
) -> None:
    """A noise kernel on arrays in C order."""
    from fastdrop.backends.cuda.kernels.noise import NOISE_AXES

    place, n = draw.place, x.size
    if not n:
        return
    more: dict[str, Any] = {"row": 1}
    if isinstance(constants, tuple):
        more |= zip(("logit", "rate", "inverse", "scale"), constants, strict=True)
    elif np.ndim(constants):
        sigma = np.asarray(constants, compute_type(x.dtype), order="C")
        more = {"sigmas": sent(sigma, x), "row": sigma.size}
        op = "scales" if op == "scale" else op
    else:
        more["sigma"] = float(constants)
    run = place.is_run and place.start % 4 == 0
    shape, strides = drawn_axes(place, x.shape, NOISE_AXES)
    launch(
        "noise",
        x,
        (n + 3) // 4 if run else n,
        {"op": op, "axes": 0 if run else len(shape), "small": run or n < 2**32},
        x=x,
        g=g or 0,
        y=y,
        n=n,
        start=place.start,
        shape=() if run else shape,
        strides=() if run else strides,
        rows=row_numbers(place, x),
        keys=keys(draw.seed),
        call=draw.call,
        **more,
    )
