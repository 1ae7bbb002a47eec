"""The GPU backend: `fastdrop.backends.interface.Backend` for arrays in a device's memory.

Kernels go to the CUDA stream that is the caller's present one, and nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastdrop._core import DROPOUT, Draw
from fastdrop.backends.cuda import launch, linear, masks, noise, rows, squares
from fastdrop.backends.cuda.arrays import (
    DeviceArray,
    DeviceBits,
    array,
    fetched,
    output,
    overlap,
    sent,
)
from fastdrop.backends.interface import Constants, Squares
from fastdrop.base.devices import on_device

__all__ = ["CUDA"]

PLAIN = 1.0, 0.0, 0.0  # nothing is scaled


class Cuda:
    """Operands are `DeviceArray`; results are arrays of the caller's library."""

    @staticmethod
    def require() -> None:
        """Raises RuntimeError where no kernel can run."""
        launch.where()

    fetched = staticmethod(fetched)

    # Gate.

    array = staticmethod(array)

    @staticmethod
    def floats(x: Any, name: str) -> DeviceArray:
        x = array(x, name)
        if x.dtype not in ("float32", "float64"):
            raise TypeError(
                f"{name} must be float32 or float64, got {x.dtype}; convert it with .astype"
            )
        return masks.contiguous(x)

    numbers = staticmethod(rows.numbers)

    @staticmethod
    def output(out: Any, x: DeviceArray, *others: Any) -> tuple[Any, ...]:
        return (None if out is None else output(out, x), x, *others)  # kernels see to overlaps

    @staticmethod
    def bring(x: Any, like: DeviceArray) -> Any:
        return None if x is None else masks.contiguous(sent(x, like))

    @staticmethod
    def held(x: DeviceArray) -> Any:
        return x.array

    # Copies.

    @staticmethod
    def copy(x: DeviceArray, out: DeviceArray | None = None) -> Any:
        y = x.new(order=x.order()) if out is None else out
        masks.copy(masks.apart(x, y), y)
        return y.array

    @staticmethod
    def apart(x: DeviceArray, out: Any) -> Any:
        overwritten = out is not None and on_device(out) and overlap(x, DeviceArray(out))
        return (masks.duplicate(x, x.order()) if overwritten else x).array

    @staticmethod
    def zeros_like(x: DeviceArray, dtype: Any = None, shape: Any = None) -> Any:
        made = x.new(dtype, shape)
        return masks.scaled(made, 0.0, made).array

    @staticmethod
    def result(x: DeviceArray) -> Any:
        return x.array

    # Masks.

    @staticmethod
    def forward(
        op: int, x: DeviceArray, draw: Draw, constants: Constants, *more: Any
    ) -> tuple[Any, DeviceBits | None]:
        y, bits = masks.forward(op, x, draw, constants, *more)
        return y.array, bits

    @staticmethod
    def select(dy: DeviceArray, out: Any, draw: Draw, bits: Any, scale: float) -> Any:
        return _select(dy, out, draw, bits, scale).array

    @staticmethod
    def split(dy: DeviceArray, draw: Draw, bits: Any) -> tuple[Any, Any]:
        given = masks.draw_bits(draw, dy) if bits is None else _given(bits, draw, dy)
        of = dy, draw, PLAIN
        dropped, _ = masks.forward(DROPOUT, *of, given=given, inverted=True)
        kept, _ = masks.forward(DROPOUT, *of, given=given)
        return dropped.array, kept.array

    @staticmethod
    def select_and_sum(
        dy: DeviceArray, out: Any, draw: Draw, bits: Any, scale: float
    ) -> tuple[Any, Any]:
        dx = _select(dy, out, draw, bits, scale)
        flat = masks.contiguous(dx)
        return dx.array, noise.summed(flat, dy.shape[-1], "rows", False).array

    @staticmethod
    def blend(a: DeviceArray, b: DeviceArray, weight: float) -> Any:
        return masks.blend(a, b, weight).array

    @staticmethod
    def weighted(x: DeviceArray, weight: float) -> Any:
        return masks.scaled(masks.contiguous(x), weight).array

    @staticmethod
    def keep_mask(shape: Sequence[int], draw: Draw, packed: bool) -> Any:
        """The mask itself, in an array that any library can take."""
        return masks.keep_mask(shape, draw, packed)

    # Continuous noise.

    @staticmethod
    def noise(op: int, x: DeviceArray, draw: Draw, constants: Any, out: Any = None) -> Any:
        return noise.noise(op, x, draw, constants, out).array

    @staticmethod
    def noise_gradients(
        op: int, x: Any, dy: DeviceArray, draw: Draw, constants: Any, group: int | None
    ) -> tuple[Any, DeviceArray]:
        dx, terms = noise.noise_gradients(op, x, dy, draw, constants, group)
        return dx.array, terms

    @staticmethod
    def chain(weights: Any, slopes: DeviceArray, dtype: Any) -> Any:
        return noise.chain(weights, slopes, dtype).array

    # Rows of a table.

    @staticmethod
    def lookup(weight: DeviceArray, ids: Any, draw: Draw | None, scale: float) -> Any:
        return rows.lookup(weight, ids, draw, scale).array

    @staticmethod
    def add_rows(
        dy: DeviceArray, ids: Any, shape: tuple[int, ...], draw: Draw | None, scale: float
    ) -> Any:
        return rows.add_rows(dy, ids, shape, draw, scale).array

    # DropBlock.

    keep_squares = staticmethod(squares.keep_squares)

    @staticmethod
    def apply_squares(x: DeviceArray, out: Any, bits: Any, of: Squares) -> Any:
        return squares.apply_squares(x, out, bits, of).array

    # Linear layers.

    @staticmethod
    def linear(
        x: DeviceArray, weight: DeviceArray, bias: Any, draw: Draw | None, first: int
    ) -> Any:
        return linear.linear(x, weight, bias, draw, first).array

    @staticmethod
    def linear_gradients(
        x: Any, weight: Any, bias: Any, dy: DeviceArray, draw: Draw | None, first: int
    ) -> tuple[Any, ...]:
        gradients = linear.linear_gradients(x, weight, bias, dy, draw, first)
        return tuple(None if g is None else g.array for g in gradients)

    @staticmethod
    def add_bias(y: Any, bias: DeviceArray) -> Any:
        return linear.add_bias(DeviceArray(y, bias.source), bias).array

    @staticmethod
    def column_sums(dy: DeviceArray) -> Any:
        return linear.column_sums(dy).array


CUDA = Cuda()


def _given(bits: Any, draw: Draw, like: DeviceArray) -> DeviceBits | None:
    """A context's bits on the device of `like`."""
    return None if bits is None else DeviceBits.of(bits, draw.place.size, like)


def _select(
    dy: DeviceArray, out: DeviceArray | None, draw: Draw, bits: Any, scale: float
) -> DeviceArray:
    given, constants = _given(bits, draw, dy), (scale, 0.0, 0.0)
    return masks.forward(DROPOUT, dy, draw, constants, out=out, given=given)[0]
