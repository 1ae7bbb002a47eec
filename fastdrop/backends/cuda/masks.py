"""Copies and masks on a GPU: from arrays of any layout to the kernels, which take dense ones."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from fastdrop import _core
from fastdrop._core import (
    ALPHA_DROPOUT,
    ANY_LAYOUT,
    BIAS_DROPOUT_ADD,
    BIAS_GELU_BACKWARD,
    BIAS_GELU_DROPOUT,
    BIAS_RELU_DROPOUT,
    DROPOUT,
    DROPOUT_ADD,
    RELU_DROPOUT,
    ZONEOUT,
    Draw,
    Place,
)
from fastdrop.backends.cuda.arrays import (
    DeviceArray,
    DeviceBits,
    array,
    collapsed,
    overlap,
    seen,
    sent,
)
from fastdrop.backends.cuda.launch import launch
from fastdrop.backends.cuda.libraries import default_kind
from fastdrop.backends.cuda.prebuilt import c_strides
from fastdrop.backends.interface import Constants
from fastdrop.base.devices import on_device

OPS = {
    DROPOUT: "dropout",
    DROPOUT_ADD: "dropout_add",
    BIAS_DROPOUT_ADD: "bias_dropout_add",
    RELU_DROPOUT: "relu_dropout",
    ALPHA_DROPOUT: "alpha_dropout",
    ZONEOUT: "zoneout",
    BIAS_RELU_DROPOUT: "bias_relu_dropout",
    BIAS_GELU_DROPOUT: "bias_gelu_dropout",
    BIAS_GELU_BACKWARD: "bias_gelu_backward",
}
U64 = 2**64 - 1  # strides may be negative
ALL, NONE = 0xFFFF, 0  # keep bits of 16 elements


def copy(x: DeviceArray, y: DeviceArray) -> None:
    """y = x, whatever their layouts; they do not overlap, unless they are the same."""
    if not x.size or (x.address == y.address and x.strides == y.strides):
        return
    order = y.order()
    shape, strides, to = collapsed(
        [x.shape[d] for d in order], [x.strides[d] for d in order], [y.strides[d] for d in order]
    )
    launch(
        "copy",
        x,
        x.size,
        {"axes": len(shape), "small": x.size < 2**32},
        x=x,
        y=y,
        n=x.size,
        shape=shape,
        strides=tuple(s & U64 for s in strides),
        to=tuple(s & U64 for s in to),
    )


def duplicate(x: DeviceArray, order: Sequence[int] | None = None) -> DeviceArray:
    """A copy without gaps whose axes follow in this order in memory, or in C order."""
    y = x.new(order=order)
    copy(x, y)
    return y


def dense(x: DeviceArray, order: Sequence[int] | None = None) -> DeviceArray:
    """x, copied only if it has gaps or its axes follow in another order."""
    return x if x.has_strides(x.dense(order)) else duplicate(x, order)


def contiguous(x: DeviceArray) -> DeviceArray:
    """x in C order, copied only if it is not."""
    return dense(x)


def copied(x: DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
    """A copy in x's memory order, or in out."""
    y = x.new(order=x.order()) if out is None else out
    copy(duplicate(x, x.order()) if askew(x, y) else x, y)
    return delivered(y, out)


def kept_from(x: DeviceArray, out: Any) -> DeviceArray:
    """x, or a copy if writing to out, an array of the caller, would change it."""
    overwritten = out is not None and on_device(out) and overlap(x, seen(out, "out"))
    return duplicate(x, x.order()) if overwritten else x


def floats(x: Any, name: str) -> DeviceArray:
    """float32 or float64 in C order."""
    x = array(x, name)
    if x.dtype not in ("float32", "float64"):
        raise TypeError(
            f"{name} must be float32 or float64, got {x.dtype}; convert it with .astype"
        )
    return contiguous(x)


def bring(x: Any, like: DeviceArray) -> DeviceArray | None:
    """An array of a context, on the device of `like` and in C order."""
    return None if x is None else contiguous(sent(x, like))


def askew(x: DeviceArray, y: DeviceArray) -> bool:
    """Whether they share memory, except element by element."""
    return (x.address != y.address or not x.has_strides(y.strides)) and overlap(x, y)


def place_to_write(x: DeviceArray, out: DeviceArray | None, *others: DeviceArray) -> DeviceArray:
    """out, if a kernel that reads x and others can write there; else a new array laid out as x."""
    if out is None or not x.has_strides(out.strides) or any(askew(a, out) for a in (x, *others)):
        return x.new(order=x.order())
    return out


def delivered(y: DeviceArray, out: DeviceArray | None) -> DeviceArray:
    """y where the caller wants it."""
    if out is None:
        return y
    if y is not out:
        copy(y, out)
    _core.delivered()
    return out


def threshold(p: float) -> dict[str, int]:
    """t and f of the rate."""
    T = round(p * 2.0**32)
    return {"t": T >> 24, "f": T & 0xFFFFFF}


def _source(p: float) -> str:
    return "bits" if round(p * 2.0**32) == 2**31 else "bytes"


def keys(seed: int) -> tuple[Any, ...]:
    """Philox's round keys."""
    from fastdrop.backends.cuda.kernels.philox import round_keys

    return round_keys(seed)


def draw_bits(draw: Draw, like: DeviceArray) -> DeviceBits:
    """The packed mask of a draw."""
    place = draw.place
    n = place.size
    bits = DeviceBits.empty(n, like)
    if not n:
        return bits
    shape, strides = drawn_axes(place, place.shape)
    run = not place.scattered and shape == (n,) and (n == 1 or strides == (1,))
    launch(
        "draw",
        like,
        (n + 15) // 16,
        {
            "source": _source(draw.p),
            "shifted": run and place.start % 16 != 0,
            "axes": 0 if run else len(shape),
            "small": run or n < 2**32,
        },
        saved=bits.bits,
        n=n,
        start=place.start,
        shape=() if run else shape,
        strides=() if run else strides,
        rows=row_numbers(place, like),
        keys=keys(draw.seed),
        call=draw.call,
        **threshold(draw.p),
    )
    return bits


def drawn_axes(place: Place, of: Sequence[int], least: int = 1) -> tuple[tuple[int, ...], ...]:
    """Shape, and strides in the mask array, of a walk over an array of this shape: 0 along axes
    that share a draw. At least so many axes; the first is that of the rows if they are scattered.
    """
    strides = [0 if n == 1 else s for n, s in zip(place.shape, place.strides, strict=True)]
    front = int(place.scattered)
    shape, steps = collapsed(of[front:], strides[front:])
    missing = max(least - front - len(shape), 0)
    shape, steps = (1,) * missing + shape, (0,) * missing + steps
    return tuple(of[:front]) + shape, (*place.strides[:front], *steps)


def row_numbers(place: Place, like: DeviceArray) -> Any:
    """Numbers of scattered rows, on the device."""
    return sent(place.rows, like) if place.scattered else 0


def steps_of(place: Place) -> list[int]:
    """How far apart, in the packed mask of a place, neighbours along each axis are."""
    return [0 if n == 1 else s for n, s in zip(place.shape, c_strides(place.shape), strict=True)]


def spread(
    bits: DeviceBits,
    shape: Sequence[int],
    order: Sequence[int],
    steps: Sequence[int],
    like: DeviceArray,
) -> DeviceBits:
    """A packed mask as one bit per element of x, in the order of its memory."""
    shape, strides = collapsed([shape[d] for d in order], [steps[d] for d in order])
    n = prod(shape)
    if not n or (shape == (n,) and (n == 1 or strides == (1,))):
        return bits
    each = DeviceBits.empty(n, like)
    launch(
        "spread",
        like,
        (n + 15) // 16,
        {"axes": len(shape), "small": n < 2**32},
        given=bits.bits,
        saved=each.bits,
        n=n,
        shape=shape,
        strides=strides,
    )
    return each


def forward(
    op: int,
    x: DeviceArray,
    draw: Draw,
    constants: Constants,
    out: DeviceArray | None = None,
    keep: bool = False,
    residual: DeviceArray | None = None,
    bias: DeviceArray | None = None,
    given: Any = None,
    *,
    inverted: bool = False,
) -> tuple[DeviceArray, DeviceBits | None]:
    """One of the ops, and its packed mask if it is to be kept. given: the mask of the place instead
    of a draw; inverted: its complement.
    """
    given = None if given is None else DeviceBits.of(given, draw.place.size, x)
    relu, n, order = op in (RELU_DROPOUT, BIAS_RELU_DROPOUT), x.size, x.order()
    if op not in ANY_LAYOUT:
        order = list(range(x.ndim))
    x = dense(x, order)
    residual, bias = (None if a is None else contiguous(a) for a in (residual, bias))
    y = place_to_write(x, out, *(a for a in (residual, bias) if a is not None))
    saved = None
    if given is None and not (draw.place.is_run and x.has_strides(x.dense())):
        given = draw_bits(draw, x)
    bits = given if keep and not relu else None
    each = None if given is None else spread(given, x.shape, order, steps_of(draw.place), x)
    if relu or (keep and given is None):
        saved = bits = DeviceBits.empty(n, x)
    scale, shift, dropped = constants
    options = {"op": OPS[op], "source": "given", "shifted": False}
    more: dict[str, Any] = {"t": ALL if inverted else NONE}
    if each is None:
        options |= {"source": _source(draw.p), "shifted": draw.place.start % 16 != 0}
        more = {"start": draw.place.start, "keys": keys(draw.seed), "call": draw.call}
        more |= threshold(draw.p)
    if n:
        launch(
            "dropout",
            x,
            (n + 15) // 16,
            options,
            x=x,
            residual=residual or 0,
            bias=bias or 0,
            y=y,
            given=each.bits if each else 0,
            saved=saved.bits if saved else 0,
            n=n,
            row=1 if bias is None else max(bias.size, 1),
            scale=scale,
            shift=shift,
            dropped=dropped,
            **more,
        )
    return delivered(y, out), bits


def keep_mask(shape: Sequence[int], draw: Draw, packed: bool) -> Any:
    """The mask itself, in an array that any library can take."""
    like, of = DeviceArray(default_kind().empty(None, (1,), "float32", (4,))), draw.place.of
    bits = spread(draw_bits(draw, like), of, range(len(of)), steps_of(draw.place), like)
    n = prod(of)
    if packed:
        return bits.bits.array[: (n + 7) // 8]
    mask = like.new("bool", tuple(shape))
    if n:
        launch("unpack", like, (n + 15) // 16, {}, given=bits.bits, y=mask, n=n)
    return mask


def select(
    dy: DeviceArray, out: DeviceArray | None, draw: Draw, bits: Any, scale: float
) -> DeviceArray:
    """dy * scale where the mask keeps it, else 0."""
    return forward(DROPOUT, dy, draw, (scale, 0.0, 0.0), out, given=bits)[0]


def split(dy: DeviceArray, draw: Draw, bits: Any) -> tuple[DeviceArray, DeviceArray]:
    """dy where the mask drops it, else 0; and where it keeps it."""
    given = draw_bits(draw, dy) if bits is None else bits
    of = DROPOUT, dy, draw, (1.0, 0.0, 0.0)
    return forward(*of, given=given, inverted=True)[0], forward(*of, given=given)[0]


def zeros_like(x: DeviceArray, dtype: Any = None, shape: Any = None) -> DeviceArray:
    """Zeros on x's device."""
    return cleared(x.new(dtype, shape))


def cleared(y: DeviceArray) -> DeviceArray:
    """y, an array in C order, full of zeros; what was there is not read."""
    _without_a_draw("zero", y, y)
    return y


def weighted(x: DeviceArray, weight: float) -> DeviceArray:
    """weight * x; zeros without a weight."""
    if not weight:
        return zeros_like(x)
    x, y = contiguous(x), x.new()
    _without_a_draw("dropout", x, y, t=ALL, scale=weight)
    return y


def blend(a: DeviceArray, b: DeviceArray, weight: float) -> DeviceArray:
    """weight * a + (1 - weight) * b, where only what has a weight counts."""
    if weight in (0.0, 1.0):
        return duplicate(a if weight else b)
    a, b = contiguous(a), contiguous(b)
    y = b.new()
    _without_a_draw("mean", b, y, residual=a, t=ALL, scale=1.0 - weight, shift=weight)
    return y


def _without_a_draw(op: str, x: DeviceArray, y: DeviceArray, **more: Any) -> None:
    """A kernel for which t has the keep bits of all."""
    if x.size:
        options = {"op": op, "source": "same", "shifted": False}
        launch("dropout", x, (x.size + 15) // 16, options, x=x, y=y, n=x.size, row=1, **more)
