"""The operations: ``y, ctx = op(x, ..., rng=rng)`` forward, ``ctx.backward(dy)`` back.

This is the only layer that raises. What it hands on, a backend can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import cpu, gate
from fastdrop.draw import Draw
from fastdrop.reference import Region, scale, threshold
from fastdrop.rng import RngLike, draw_call

__all__ = ["Context", "dropout", "keep_mask"]


class Context:
    """What one call of `dropout` leaves for its backward pass.

    Made by `dropout`; can be pickled.

    Attributes
    ----------
    seed, call : int or None
        Name the draw: ``Rng(seed, call)`` draws the same mask again. None if nothing was drawn
        (``training=False``).
    p : float
        The rate at which elements were dropped; 0 if ``training=False``.
    scale : float
        What kept elements were multiplied by: 1 / (1 - p), and 0 at p = 1.
    shape : tuple of int
        Shape of x.
    nbytes : int
        What is held for the backward pass.
    """

    __slots__ = ("_bits", "_draw", "p", "scale", "shape")

    def __init__(
        self,
        shape: tuple[int, ...],
        p: float,
        scale: float,
        draw: Draw | None,
        bits: npt.NDArray[np.uint8] | None,
    ) -> None:
        self.shape = shape
        self.p = p
        self.scale = scale
        self._draw = draw
        self._bits = bits

    @property
    def seed(self) -> int | None:
        return None if self._draw is None else self._draw.seed

    @property
    def call(self) -> int | None:
        return None if self._draw is None else self._draw.call

    @property
    def nbytes(self) -> int:
        return 0 if self._bits is None else (self._draw.size + 7) // 8

    def mask(self) -> npt.NDArray[np.bool_]:
        """The keep mask: bool array of x's shape, True where the element was kept."""
        if self.p == 0.0:
            return np.ones(self.shape, np.bool_)
        bits = cpu.keep_bits(self._draw) if self._bits is None else self._bits
        return _unpack(bits, self._draw, self.shape)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """Gradient with respect to x.

        Parameters
        ----------
        dy : array_like of float32 or float64, shape of x
            Gradient with respect to y, in any layout.
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.

        Returns
        -------
        ndarray
            dy * scale where the element was kept, +0 where it was dropped; dtype of `dy`.
        """
        dy = gate.array(dy, "dy")
        if dy.shape != self.shape:
            raise ValueError(f"dy must have the shape of x, {self.shape}, got {dy.shape}")
        out, dy = gate.output(out, dy)
        if self.p == 0.0:
            np.copyto(out, dy)
        elif self._bits is None:
            cpu.forward(dy, out, self._draw, self.scale, save=False)
        else:
            cpu.backward(dy, out, self._bits, self._draw.shape, self.scale)
        return out

    def __reduce__(self) -> tuple:
        held = None if self._bits is None else self._bits[: self.nbytes].tobytes()
        draw = None if self._draw is None else tuple(self._draw)
        return _restore, (self.shape, self.p, draw, held)

    def __repr__(self) -> str:
        return (
            f"Context(shape={self.shape}, p={self.p}, seed={self.seed}, call={self.call}, "
            f"nbytes={self.nbytes})"
        )


def dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, Context]:
    """Inverted dropout: drops each element with chance p, multiplies the others by 1 / (1 - p).

    Parameters
    ----------
    x : array_like of float32 or float64, any shape and layout
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
        x is the block that begins at index tuple `start` of an array of shape `global_shape`, and
        gets that block of the larger array's mask. So the result does not depend on how a tensor
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
    x = gate.array(x)
    p = gate.rate(p)
    gate.choice(save, ("bits", "seed"), "save")
    axes = gate.shared_axes(shared_axes, x.ndim) if shared_axes != () else ()
    block = gate.region(region, x.shape) if region is not None else None
    out, x = gate.output(out, x)
    draw = _draw(rng, p, x.shape, axes, block) if training else None
    if draw is None or p == 0.0:
        np.copyto(out, x)
        return out, Context(x.shape, 0.0, 1.0, draw, None)
    factor = scale(p)
    bits = cpu.forward(x, out, draw, factor, save == "bits")
    return out, Context(x.shape, p, factor, draw, bits)


def keep_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    rng: RngLike,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    packed: bool = False,
) -> npt.NDArray:
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
    """
    dims = gate.shape(shape)
    p = gate.rate(p)
    axes = gate.shared_axes(shared_axes, len(dims)) if shared_axes != () else ()
    block = gate.region(region, dims) if region is not None else None
    draw = _draw(rng, p, dims, axes, block)
    bits = cpu.keep_bits(draw)
    if not packed:
        return _unpack(bits, draw, dims)
    if draw.shape == dims:
        return bits[: (draw.size + 7) // 8]
    return np.packbits(_unpack(bits, draw, dims), bitorder="little")


def _draw(
    rng: RngLike,
    p: float,
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    block: tuple[tuple[int, ...], tuple[int, ...]] | None,
) -> Draw:
    """The draw of one call; takes its number from rng."""
    seed, call = draw_call(rng)
    key = seed, call, threshold(p)
    if not axes and block is None:
        return Draw(*key, shape)
    return Draw.of_block(key, shape, axes, block)


def _unpack(
    bits: npt.NDArray[np.uint8], draw: Draw, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Packed mask to bools of x's shape."""
    flat = np.unpackbits(bits, count=draw.size, bitorder="little").view(np.bool_)
    mask = flat.reshape(draw.shape)
    return mask if draw.shape == shape else np.broadcast_to(mask, shape).copy()


def _restore(
    shape: tuple[int, ...], p: float, draw: tuple | None, held: bytes | None
) -> Context:
    """A context from its pickle, which may come from anywhere: no kernel sees a wrong size."""
    shape, p = gate.shape(shape), gate.rate(p)
    if draw is not None:
        draw = gate.draw(Draw(*draw), shape, p)
    elif held is not None or p != 0.0:
        raise ValueError("pickled context has a rate or a mask but no draw")
    bits = None
    if held is not None:
        if type(held) is not bytes or len(held) != (draw.size + 7) // 8:
            raise ValueError(f"pickled context must hold one bit an element of {draw.shape}")
        bits = cpu.empty_bits(draw.size)
        bits[: len(held)] = np.frombuffer(held, np.uint8)
    return Context(shape, p, scale(p), draw, bits)
