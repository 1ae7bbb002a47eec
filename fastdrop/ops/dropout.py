"""Dropout, and what all ops that drop elements of one array share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, DROPOUT, Draw
from fastdrop.backends import of
from fastdrop.backends.cpu import host_bits, unpacked
from fastdrop.backends.interface import Constants
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.rng import RngLike, draw_of


class Context(context.Context):
    """What one call of `dropout`, or of another op that drops elements, leaves for its backward
    pass. Can be pickled.

    Ops make contexts. The constructor is for pickles, and checks what it is given.

    Attributes
    ----------
    shape : tuple of int
        Shape of x.
    seed, call : int or None
        Name the draw: ``Rng(seed, call)`` draws the same mask again. None if nothing was drawn
        (``training=False``).
    p : float
        The rate at which elements were dropped; 0 if ``training=False``.
    scale : float
        What kept elements were multiplied by: 1 / (1 - p), and 0 at p = 1, where an op does not
        say otherwise.

    Raises
    ------
    TypeError
        Kind of a field.
    ValueError
        Value of a field, or fields that do not fit each other.
    """

    __slots__ = ()

    def mask(self) -> npt.NDArray[np.bool_]:
        """The keep mask: bool array of x's shape, True where the element was kept."""
        if (draw := self._drops) is None:
            return np.ones(self.shape, np.bool_)
        bits = _core.draw_bits(draw) if self.held is None else host_bits(self.held)
        return unpacked(bits, draw)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """Gradient with respect to x.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of x
            Gradient with respect to y, in any layout.
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.

        Returns
        -------
        ndarray
            dy * scale where the element was kept, +0 where it was dropped; dtype of `dy`.
        """
        if (dx := _core.common_backward(self, dy, out)) is not None:
            return dx
        backend = of(dy)
        dy = backend.array(dy, "dy")
        out, dy = backend.output(out, dy)
        self._check_shape(dy)
        if (draw := self._drops) is None:
            return backend.copy(dy, out)
        return backend.select(dy, out, draw, self.held, self.scale)

    @property
    def _drops(self) -> Draw | None:
        """The draw, if it may drop something."""
        return None if self.held is None and self.p == 0.0 else self.draw

    def _check_shape(self, dy: Any) -> None:
        if dy.shape != self.shape:
            raise ValueError(f"dy must have the shape of x, {self.shape}, got {dy.shape}")

    def _check(self) -> None:
        self._check_place()
        if self.held is None:
            return
        if self.draw is None or not context.is_bits(self.held, self.draw.place.size):
            raise ValueError("bits must hold one for each element that is drawn")


def dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], Context]:
    """Inverted dropout: drops each element with chance p, multiplies the others by 1 / (1 - p).

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, any shape and layout
    p : float
        Drop rate in [0, 1], exact to 2**-32.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Names the draw; see `fastdrop.Rng`. An int gives the same mask each time, None a new one.
    training : bool
        If False, y is a copy of x and no random call is taken.
    shared_axes : int or tuple of int
        Axes along which one draw is shared: ``(0,)`` for one mask for the whole batch, ``(2, 3)``
        for whole feature maps of an (N, C, H, W) array.
    region : (start, global_shape), optional
        x is the part that begins at index tuple `start` of an array of shape `global_shape`, and
        gets that part of the larger array's mask. So the result does not depend on how a tensor
        is cut into shards or chunks.
    out : ndarray, optional
        Where to write y: shape and dtype of x. May be x itself.
    save : {"bits", "seed"}
        What the context holds for the backward pass: one bit an element, or nothing but the seed,
        from which the mask is drawn again.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        dtype that is not supported, rate that is not a real number, wrong kind of argument.
    ValueError
        Rate outside [0, 1] or NaN, `out` read-only or of another shape, region outside its array.
    numpy.exceptions.AxisError
        Axis out of range.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    Notes
    -----
    Whether an element is kept depends on seed, call and its C-order index alone: the mask is the
    same for any memory layout, instruction set, thread count and cut into regions. A dropped
    element is +0 even if x is infinite or NaN there.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov: Dropout: a simple way
    to prevent neural networks from overfitting. JMLR 15 (2014) 1929-1958.

    Examples
    --------
    >>> rng = fastdrop.Rng(1234)
    >>> y, ctx = fastdrop.dropout(x, 0.2, rng=rng)
    >>> dx = ctx.backward(dy)
    """
    how = rng, training, shared_axes, region, out, save
    return masked(DROPOUT, x, p, how)


def inverted(p: float) -> Constants:
    """What inverted dropout does at this rate: kept elements are divided by 1 - p."""
    return _core.scale_of(p), 0.0, 0.0


How = tuple[RngLike, bool, Any, Region | None, Any, str]
"""rng, training, shared_axes, region, out and save, as the caller gave them."""


def masked(
    op: int,
    x: Any,
    p: Any,
    how: How,
    constants: Callable[[float], Constants] | None = None,
    axes: Callable[[Any, Any], tuple[int, ...]] | None = None,
    name: str = "x",
) -> tuple[Any, Context]:
    """The road of all ops that drop elements of one array.

    constants: of the rate; those of inverted dropout if None. axes: of the gated x and shared_axes,
    those that share a draw. name: of x in errors.
    """
    if axes is None and (done := _core.common_call(op, x, p, how, constants, Context)):
        return done
    rng, training, shared_axes, region, out, save = how
    keep = gate.keeps_bits(save)
    backend = of(x)
    x, p = backend.array(x, name), gate.rate(p)
    place = gate.place(x.shape, shared_axes if axes is None else axes(x, shared_axes), region)
    out, x = backend.output(out, x)
    draw = draw_of(rng, p, place) if gate.flag(training, "training") else None
    if draw is None or p == 0.0:
        return backend.copy(x, out), _core.saved(Context, x.shape, draw, 1.0, None)
    numbers = (constants or inverted)(p)
    y, bits = backend.forward(op, x, draw, numbers, out, keep)
    return y, _core.saved(Context, x.shape, draw, numbers[0], bits)


def keep_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    rng: RngLike,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    packed: bool = False,
) -> npt.NDArray[Any]:
    """The mask that `dropout` applies to an array of this shape.

    Parameters
    ----------
    shape : int or tuple of int
    p, rng, shared_axes, region
        As in `dropout`.
    packed : bool
        One bit an element instead of one byte: the layout of
        ``np.packbits(mask, bitorder="little")``.

    Returns
    -------
    ndarray
        bool of `shape`, True where kept; or uint8 of length ceil(size / 8) if packed.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    numpy.exceptions.AxisError
        Axis out of range.
    """
    packed = gate.flag(packed, "packed")
    draw = drawn(shape, p, rng, shared_axes, region)
    bits = _core.draw_bits(draw)
    if packed and draw.place.shape == draw.place.of:
        return np.frombuffer(bits, np.uint8, len(bits) - BITS_PAD).copy()
    mask = unpacked(bits, draw)
    return np.packbits(mask, bitorder="little") if packed else mask


def drawn(
    shape: Any, p: Any, rng: RngLike, shared_axes: Any = gate.NO_AXES, region: Region | None = None
) -> Draw:
    """The draw of a mask alone."""
    dims, p = gate.shape(shape), gate.rate(p)
    return draw_of(rng, p, gate.place(dims, shared_axes, region))
