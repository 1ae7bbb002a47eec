"""The operations: ``y, ctx = op(x, ..., rng=rng)`` forward, ``ctx.backward(dy)`` back.

This is the only layer that raises. What it hands on, a backend can do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, DROPOUT, Saved
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import cuda
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import OpLayer, Rate
from fastdrop.base.place import NO_AXES, Block
from fastdrop.rng import RngLike, draw_call, uint64

__all__ = ["Context", "Dropout", "dropout", "keep_mask"]

Region = tuple[Sequence[int], Sequence[int]]  # start, global shape


class Context(Saved):
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
        What kept elements were multiplied by: 1 / (1 - p), and 0 at p = 1, where an op does not
        say otherwise.
    shape : tuple of int
        Shape of x.
    """

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes."""
        held = self._held
        if held is None:
            return 0
        return len(held) - BITS_PAD if type(held) is bytes else held.nbytes

    def mask(self) -> npt.NDArray[np.bool_]:
        """The keep mask: bool array of x's shape, True where the element was kept."""
        bits = self._bits
        if bits is None and self.p == 0.0:
            return np.ones(self.shape, np.bool_)
        if bits is None:
            bits = cpu.draw(self.seed, self.call, self.p, self._block or prod(self.shape))
        return _unpack(bits, self.shape, self._block)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
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
        if not _core.admits(dy, self.p, out):
            if on_device(dy):
                return cuda().backward(self, dy, out)
            dy = gate.array(dy, "dy")
            dy, out = gate.output(dy, out)
        if dy.shape != self.shape:
            raise ValueError(f"dy must have the shape of x, {self.shape}, got {dy.shape}")
        if out is None:
            out = _core.empty_like(dy)
        if self._bits is not None:
            cpu.backward(dy, out, self._bits, self.scale, self._block)
        elif self.p == 0.0:
            np.copyto(out, dy)
        else:
            draw = self.seed, self.call, self.p, self._block
            cpu.forward(DROPOUT, dy, None, None, out, *draw, False, self.scale)
        return out

    def __reduce__(self) -> tuple:
        block = self._block and (self._block.shared_axes, self._block.region)
        bits = self._bits and self._bits[:-BITS_PAD]
        draw = self.p, self.seed, self.call
        return _restore, (type(self), self.shape, *draw, block, bits, self.scale)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, p={self.p}, seed={self.seed}, "
            f"call={self.call}, nbytes={self.nbytes})"
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
    return masked(DROPOUT, x, p, rng, training, shared_axes, region, out, save)


INVERTED = -1.0, 0.0, 0.0  # scale, shift, value of what is dropped: that of the rate, none, none


def masked(
    op: int,
    x: Any,
    p: Any,
    rng: RngLike,
    training: bool,
    shared_axes: int | Sequence[int],
    region: Region | None,
    out: Any,
    save: str,
    constants: Callable[[float], tuple[float, float, float]] | None = None,
) -> tuple[npt.NDArray, Context]:
    """The ops that drop elements of one array: checks, draws and calls the kernel.

    constants: scale, shift and value of what is dropped, from the rate; else `INVERTED`.
    """
    keep = save == "bits"
    if not keep:
        gate.choice(save, ("bits", "seed"), "save")
    if not _core.admits(x, p, out):
        if on_device(x):
            arguments = x, p, rng, training, shared_axes, region, out, save, constants
            return cuda().masked(op, *arguments)
        x, p = gate.array(x), gate.rate(p)
        x, out = gate.output(x, out)
    plain = region is None and shared_axes is NO_AXES
    block = None if plain else gate.block(x.shape, shared_axes, region)
    if out is None:
        out = _core.empty_like(x)
    seed, call = draw_call(rng) if training else (None, None)
    if not training or p == 0.0:
        np.copyto(out, x)
        return out, Context(x.shape, 0.0, seed, call, None, None)
    scale, shift, dropped = constants(p) if constants else INVERTED
    bits = cpu.forward(op, x, None, None, out, seed, call, p, block, keep, scale, shift, dropped)
    return out, Context(x.shape, p, seed, call, block, bits, scale)


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

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    dims = gate.shape(shape)
    p = gate.rate(p)
    plain = region is None and shared_axes is NO_AXES
    block = None if plain else gate.block(dims, shared_axes, region)
    bits = cpu.draw(*draw_call(rng), p, block or prod(dims))
    if packed and (block is None or block.shape == dims):
        return np.frombuffer(bits, np.uint8, len(bits) - BITS_PAD).copy()
    mask = _unpack(bits, dims, block)
    return np.packbits(mask, bitorder="little") if packed else mask


@dataclass(eq=False)
class Dropout(OpLayer):
    """`dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An `Rng` is shared with others. An int seeds one of the layer's own, so two layers with the
        same int draw the same masks: give one `Rng` to all layers of a model.
    shared_axes, save
        As in `fastdrop.dropout`.
    """

    op = dropout

    p: Rate = 0.5
    _: KW_ONLY
    shared_axes: int | Sequence[int] = ()
    save: str = "bits"


def _unpack(bits: bytes, shape: tuple[int, ...], block: Block | None) -> npt.NDArray[np.bool_]:
    """Packed mask to bools of x's shape."""
    drawn = block.shape if block else shape
    packed = np.frombuffer(bits, np.uint8)
    mask = np.unpackbits(packed, count=prod(drawn), bitorder="little").view(np.bool_).reshape(drawn)
    return mask if drawn == shape else np.broadcast_to(mask, shape).copy()


def _restore(
    kind: type[Context],
    shape: tuple[int, ...],
    p: float,
    seed: int | None,
    call: int | None,
    block: tuple | None,
    bits: bytes | None,
    scale: float,
) -> Context:
    """A context from its pickle, which may come from anywhere: no kernel sees a wrong size."""
    if not issubclass(kind, Context):
        raise TypeError(f"pickled context must be a Context, got {kind!r}")
    shape, p, scale = gate.shape(shape), gate.rate(p), gate.real(scale, "scale", 0.0)
    if seed is not None or p != 0.0:
        seed, call = uint64(seed, "seed"), uint64(call, "call")
    where = None if block is None else gate.block(shape, *block)
    if bits is not None:
        if type(bits) is not bytes:
            raise TypeError(f"pickled context must hold its mask as bytes, got {bits!r:.40}")
        bits += bytes(BITS_PAD)
    return kind(shape, p, seed, call, where, bits, scale)
