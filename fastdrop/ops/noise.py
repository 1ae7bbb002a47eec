"""Continuous noise by (seed, call, element index), and its ops as the kernels take them.

`fastdrop.reference.noise` is the noise's definition. It is float32 whatever the dtype it is applied
to, so that all dtypes see the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import (
    BIAS_ROOM,
    CONCRETE,
    LOGISTIC,
    NOISE_ADD,
    NOISE_PAD,
    NOISE_SCALE,
    NORMAL,
    PARTS,
)
from fastdrop.backends.cuda.arrays import cuda
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.place import Block
from fastdrop.base.restore import Restored

__all__ = ["Draw", "NoiseContext", "compute_type", "forward", "normals"]


def normals(
    shape: tuple[int, ...], seed: Any, call: Any, first: int = 0
) -> npt.NDArray[np.float32]:
    """Standard normal variates in C order, from row `first` of an array with such rows on."""
    noise = np.empty(shape, np.float32)
    whole = (first + shape[0], *shape[1:])
    block = Block(shape, (), ((first, *(0,) * (len(shape) - 1)), whole))
    _core.draw_noise(NORMAL, seed, call, block, noise)
    return noise


@dataclass(frozen=True, slots=True)
class Draw(Restored):
    """The noise of one call, and what a kernel does with it.

    Attributes
    ----------
    op : int
        NOISE_SCALE, NOISE_ADD or CONCRETE of `fastdrop._core`.
    seed, call : int
    block : Block
        Part of which noise array is drawn.
    sigma : ndarray or None
        Standard deviation: 0-d, one for each of the last axis, or x's shape.
    relaxed : tuple of float or None
        logit, p, 1 / temperature and scale of CONCRETE.
    """

    op: int
    seed: int
    call: int
    block: Block
    sigma: npt.NDArray | None = None
    relaxed: tuple[float, float, float, float] | None = None

    def forward(self, x: npt.NDArray, y: npt.NDArray) -> None:
        """y = op(x); both C-contiguous."""
        sigma, noise, rest = self._operands(x)
        _core.noise_forward(self._kind, self.op, x, y, *sigma, noise, *rest)

    def backward(self, x: npt.NDArray, dy: npt.NDArray, group: int | None) -> tuple:
        """dx, and the gradient of sigma or logit; x and dy are C-contiguous.

        group: how many neighbours (of the last axis) have a parameter each, float64; None: each
        element has one, in the compute type.
        """
        dx = np.empty_like(dy)
        terms = sums = None
        if group is None:
            terms = np.empty(x.shape, compute_type(x.dtype))
        else:  # a single sum is gathered in many columns, so that it is a vector operation
            sums = np.zeros((PARTS, group if group > 1 else 512))
        sigma, noise, rest = self._operands(x)
        _core.noise_backward(self._kind, self.op, x, dy, dx, terms, sums, *sigma, noise, *rest)
        if sums is None:
            return dx, terms
        return dx, sums[0] if group != 1 else sums[0].sum()

    def check(self) -> None:
        Restored.check(self)
        if self.op not in (NOISE_SCALE, NOISE_ADD, CONCRETE):
            raise ValueError(f"op must be that of a noise op, got {self.op}")
        if (self.relaxed is None) != (self.op != CONCRETE) or len(self.relaxed or "four") != 4:
            raise ValueError(f"relaxed must be four numbers for CONCRETE only, got {self.relaxed}")
        if (self.sigma is None) != (self.op == CONCRETE):
            raise ValueError("sigma must be an array for all but CONCRETE")

    @property
    def _kind(self) -> int:
        return LOGISTIC if self.op == CONCRETE else NORMAL

    def _operands(self, x: npt.NDArray) -> tuple[tuple, npt.NDArray | None, tuple]:
        """((sigma, its length), noise if the kernel cannot draw it, the rest) for the kernels."""
        shape, operand, length = x.shape, None, 0
        if self.sigma is not None:
            operand = np.ascontiguousarray(self.sigma, compute_type(x.dtype))
            if self.sigma.ndim == 0:
                operand = np.full(64, operand)
            else:
                length = max(self.sigma.size, 1)
                if self.sigma.shape != shape:  # repeats; longer, so that a tile finds one piece
                    operand = np.resize(operand, self.sigma.size + BIAS_ROOM)
        noise = None
        if not self.block.is_run:
            drawn = np.empty(self.block.shape, np.float32)
            _core.draw_noise(self._kind, self.seed, self.call, self.block, drawn)
            noise = np.zeros(prod(shape) + NOISE_PAD, np.float32)
            noise[:-NOISE_PAD].reshape(shape)[...] = drawn
        return (operand, length), noise, (self.relaxed, self.seed, self.call, self.block.start)


class NoiseContext(Restored):
    """What the contexts of noise ops share. `draw` is None where y has the values of x."""

    __slots__ = ()
    ops: ClassVar[tuple[int, ...]] = (NOISE_SCALE,)
    draw: Draw | None

    def check(self) -> None:
        draw = self.draw
        if draw is None:
            return Restored.check(self)
        if type(draw) is not Draw or draw.op not in self.ops:
            raise ValueError(f"draw must be one of this context's, got {draw!r:.40}")
        shape = tuple(self.shape)  # type: ignore[attr-defined]
        if draw.block.of != shape:
            raise ValueError(f"draw must be for shape {shape}, got {draw.block.of}")
        if draw.sigma is not None and draw.sigma.shape not in ((), shape[-1:], shape):
            raise ValueError(f"sigma must have shape {shape} or its end, got {draw.sigma.shape}")

    @property
    def seed(self) -> int | None:
        """Names the draw, with `call`; None if nothing was drawn (``training=False``)."""
        return self.draw and self.draw.seed

    @property
    def call(self) -> int | None:
        """Names the draw, with `seed`."""
        return self.draw and self.draw.call


def compute_type(dtype: np.dtype | str) -> type[np.floating]:
    """float64 for float64, float32 for all others."""
    return np.float64 if dtype == "float64" else np.float32


def forward(draw: Draw | None, x: npt.NDArray, out: npt.NDArray | None) -> npt.NDArray:
    """The op of the draw on any x, or a copy without one; to `out` if given."""
    if on_device(x):
        return cuda().run_noise(draw, x, out)
    x, out = gate.output(x, out)
    if draw is None:
        y = _core.empty_like(x) if out is None else out
        np.copyto(y, x)
        return y
    x = np.asarray(x, order="C")
    y = out if out is not None and out.flags.c_contiguous else np.empty(x.shape, x.dtype)
    draw.forward(x, y)
    if out is not None and y is not out:
        np.copyto(out, y)
        return out
    return y
