"""Complex numbers on the CPU: the two parts of a number share its draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import Draw, Place
from fastdrop.backends import of
from fastdrop.backends.cpu import Cpu, host_bits
from fastdrop.backends.interface import Backend, Constants
from fastdrop.base import gate, watch

Array = npt.NDArray[Any]


class Complex(Cpu):
    """The `Cpu` backend for what drops elements of complex64 and complex128."""

    @staticmethod
    def array(x: Any, name: str = "x") -> Array:
        x = gate.host(x, name)
        native = x.dtype.newbyteorder("=")
        if native not in (np.complex64, np.complex128):
            raise TypeError(f"{name} must be complex64 or complex128, got {x.dtype}")
        return x.astype(native, copy=False)

    @staticmethod
    def forward(
        op: int,
        x: Array,
        draw: Draw,
        constants: Constants,
        out: Array | None = None,
        keep: bool = False,
        residual: Array | None = None,
        bias: Array | None = None,
        given: Any = None,
    ) -> tuple[Array, bytes | None]:
        to = None if out is None else _parts(out)
        drawn = Draw(draw.seed, draw.call, draw.p, _of_parts(draw.place))
        bits = None if given is None else host_bits(given)
        y, bits = _core.forward(op, _parts(x), None, None, to, drawn, keep, constants, bits)
        return y.view(x.dtype)[..., 0] if out is None else out, bits

    @classmethod
    def select(cls, dy: Array, out: Array | None, draw: Draw, bits: Any, scale: float) -> Array:
        constants = scale, 0.0, 0.0
        return cls.forward(_core.DROPOUT, dy, draw, constants, out, given=bits)[0]


COMPLEX = Complex()


def of_numbers(x: Any, name: str = "x") -> Backend:
    """The backend of x, complex numbers included."""
    if isinstance(x, list | tuple | complex):
        x = gate.host(x, name)
    if not isinstance(x, np.ndarray | np.generic) or x.dtype.kind != "c":
        return of(x)
    return COMPLEX if watch.record is None else watch.Watched(COMPLEX)


def _parts(x: Array) -> Array:
    """Real and imaginary parts along a last axis of their own; a view."""
    half = x.itemsize // 2
    real = x.real
    return np.lib.stride_tricks.as_strided(real, (*x.shape, 2), (*real.strides, half))


def _of_parts(place: Place) -> Place:
    """Of numbers to that of their parts, which has the same indices."""
    region = place.region
    if region is not None:
        start, whole = region
        region = (*start, 0), (*whole, 2)
    return Place((*place.of, 2), (*place.shared_axes, len(place.of)), region, place.rows)
