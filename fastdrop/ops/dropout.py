"""Dropout, and what all ops that drop elements of one array share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, DROPOUT, Draw, Place
from fastdrop.backends import of
from fastdrop.backends.complex import of_numbers
from fastdrop.backends.cpu import host_bits, unpacked
from fastdrop.backends.interface import Constants
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops import context, sparse
from fastdrop.rng import RngLike, with_draw

_common_call = _core.common_call  # looked up once


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
        (``training=False``, or a mask was given).
    p : float
        The rate at which elements were dropped, or that of a given mask; 0 if ``training=False``.
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
        dy : array_like of a floating or complex dtype, or sparse array, shape of x
            Gradient with respect to y, in any layout.
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.

        Returns
        -------
        ndarray
            dy * scale where the element was kept, +0 where it was dropped; dtype of `dy`. Of a
            sparse array its stored entries: one like it.
        """
        if (dx := _core.common_backward(self, dy, out)) is not None:
            return dx
        return self._select(dy, out, "dy")

    def apply(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """The same mask on another array: for all steps of a sequence, or two branches.

        Its gradient is that of this context, too. Of an op that does more than dropout, this is
        what its dropout does.

        Parameters
        ----------
        x : array_like of a floating or complex dtype, or sparse array, of this context's shape
        out : ndarray, optional
            Where to write; shape and dtype of `x`. May be `x` itself.

        Returns
        -------
        ndarray
            x * scale where the mask keeps the element, +0 where not.

        Raises
        ------
        TypeError
            Kind or dtype of an argument; or what the op dropped depends on its own x.
        ValueError
            Another shape.
        """
        if (y := _core.common_backward(self, x, out)) is not None:
            return y
        return self._select(x, out, "x")

    def _select(self, x: Any, out: Any, name: str) -> Any:
        """What is kept of an array, scaled."""
        if gate.is_sparse(x):
            return self._select_stored(x, out, name)
        backend = of_numbers(x, name)
        x = backend.array(x, name)
        out, x = backend.output(out, x)
        self._check_shape(x, name)
        if (draw := self._drops) is None:
            return backend.copy(x, out)
        return backend.select(x, out, draw, self.held, self.scale)

    def _select_stored(self, x: Any, out: Any, name: str) -> Any:
        """Of a sparse array; time and memory for its stored entries alone."""
        if out is not None:
            raise TypeError("out is not taken with sparse arrays; leave it out")
        self._check_shape(x, name)
        entries = sparse.stored(x, name)
        entries = of_numbers(entries).array(entries, name)
        return self._of_stored(x, entries, sparse.positions(x))

    def _of_stored(self, dy: Any, entries: Any, where: tuple[npt.NDArray[Any], ...]) -> Any:
        """One like dy with these gated entries, which are at these positions, selected."""
        backend = of_numbers(entries)
        if (draw := self._drops) is None:
            return sparse.with_entries(dy, backend.copy(entries))
        flat, bits = entries.reshape(-1), None
        place = place_of(gate.elements(draw.place, where, "indices"))
        if draw.given:  # no seed draws it again
            bits = gate.own_mask(self.mask()[where].reshape(-1), Place(flat.shape), True)
        drawn = Draw(draw.seed, draw.call, draw.p, place)
        dx = backend.select(flat, None, drawn, bits, self.scale)
        return sparse.with_entries(dy, dx.reshape(entries.shape))

    @property
    def _drops(self) -> Draw | None:
        """The draw, if it may drop something."""
        return None if self.held is None and self.p == 0.0 else self.draw

    def _check_shape(self, dy: Any, name: str = "dy") -> None:
        if dy.shape != self.shape:
            of = "of x" if name == "dy" else "of this context"
            raise ValueError(f"{name} must have the shape {of}, {self.shape}, got {dy.shape}")

    def _check(self) -> None:
        self._check_place()
        if self.held is None:
            return
        if self.draw is None or not context.is_bits(self.held, self.draw.place.size):
            raise ValueError("bits must hold one for each element that is drawn")


How = tuple[RngLike, bool, Any, Region | None, Any, Any, str]
"""rng, training, shared_axes, region, rows, out and save, as the caller gave them."""


def dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], Context]:
    """Inverted dropout: drops each element with chance p, multiplies the others by 1 / (1 - p).

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, any shape and layout
        Or complex64 or complex128, one draw a number. Or an array of `scipy.sparse` (COO, CSR, CSC
        or BSR), whose stored entries get the dense array's mask, in time and memory for these
        alone: y stores zeros where they are dropped, and the context keeps the seed. It takes no
        `out` and no `mask`.
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
    rows : array_like of int, shape (x.shape[0],), optional
        Row i of x is row ``rows[i]`` of the mask array, 0 or more, in any order, some more than
        once: a mask belongs to an example then, not to its place in the batch. The other axes are
        x's, or those of a region, which begins at 0 along axis 0. Not where axis 0 shares a draw.
    mask : array_like, optional
        Your own keep mask instead of a drawn one: bool of x's shape, or uint8 of length
        ceil(size / 8), packed as `keep_mask` packs it. No random call is taken; `p` gives the
        scale, and `rng` is not looked at.
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
    how = rng, training, shared_axes, region, rows, out, save
    if mask is None and (done := _common_call(DROPOUT, x, p, how, None, Context)):
        return done
    if gate.is_sparse(x):
        return _of_stored(x, p, how, mask)
    return _looked_at(DROPOUT, x, p, how, None, None, "x", mask, Context)


def _of_stored(x: Any, p: Any, how: How, mask: Any) -> tuple[Any, Context]:
    """`dropout` of a sparse array: the backward pass is the same selection."""
    rng, training, shared_axes, region, rows, out, save = how
    gate.keeps_bits(save)
    if out is not None or mask is not None:
        raise TypeError("out and mask are not taken with sparse arrays; leave them out")
    entries = sparse.stored(x, "x")
    entries, where = of_numbers(entries).array(entries), sparse.positions(x)
    p, place = gate.rate(p), gate.place(x.shape, shared_axes, region, rows)
    training = gate.flag(training, "training")

    def of_draw(draw: Draw | None) -> tuple[Any, Context]:
        scale = inverted(p)[0] if draw is not None else 1.0
        ctx = _core.saved(Context, x.shape, draw, scale, None)
        return ctx._of_stored(x, entries, where), ctx

    return with_draw(rng, p, place, of_draw, of=(entries, *where)) if training else of_draw(None)


def inverted(p: float) -> Constants:
    """What inverted dropout does at this rate: kept elements are divided by 1 - p."""
    return _core.scale_of(p), 0.0, 0.0


def masked(
    op: int,
    x: Any,
    p: Any,
    how: How,
    constants: Callable[[float], Constants] | None = None,
    axes: Callable[[Any, Any], tuple[int, ...]] | None = None,
    name: str = "x",
    kind: type[Context] = Context,
) -> tuple[Any, Any]:
    """The road of all ops that drop elements of one array.

    constants: of the rate; those of inverted dropout if None. axes: of the gated x and shared_axes,
    those that share a draw. name: of x in errors. kind: of the context.
    """
    if axes is None and (done := _common_call(op, x, p, how, constants, kind)):
        return done
    return _looked_at(op, x, p, how, constants, axes, name, None, kind)


def _looked_at(
    op: int,
    x: Any,
    p: Any,
    how: How,
    constants: Callable[[float], Constants] | None,
    axes: Callable[[Any, Any], tuple[int, ...]] | None,
    name: str,
    mask: Any,
    kind: type[Context],
) -> tuple[Any, Any]:
    """What `masked` does where the gate has to look. Apart, as a function whose variables others
    use, as `of_draw` does, takes longer from its first line on.
    """
    rng, training, shared_axes, region, rows, out, save = how
    keep = gate.keeps_bits(save)
    backend = of_numbers(x, name) if op == DROPOUT else of(x)
    x, p = backend.array(x, name), gate.rate(p)
    shared = shared_axes if axes is None else axes(x, shared_axes)
    place = gate.place(x.shape, shared, region, rows)
    training = gate.flag(training, "training")
    given = gate.own_mask(mask, place, keep) if training else None
    out, x = backend.output(out, x)

    def of_draw(draw: Draw | None) -> tuple[Any, Context]:
        if draw is None or (p == 0.0 and given is None):
            return backend.copy(x, out), _core.saved(kind, x.shape, draw, 1.0, None)
        numbers = (constants or inverted)(p)
        y, bits = backend.forward(op, x, draw, numbers, out, keep, given=given)
        return y, _core.saved(kind, x.shape, draw, numbers[0], bits)

    if not training or given is not None:
        return of_draw(Draw(None, None, p, place) if training else None)
    return with_draw(rng, p, place, of_draw, out, x if p else None)


def keep_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    rng: RngLike,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    at: npt.ArrayLike | tuple[npt.ArrayLike, ...] | None = None,
    packed: bool = False,
) -> npt.NDArray[Any]:
    """The mask that `dropout` applies to an array of this shape.

    Parameters
    ----------
    shape : int or tuple of int
    p, rng, shared_axes, region, rows
        As in `dropout`.
    at : array_like of int, or tuple of them, optional
        Of which elements alone the mask is wanted: their C-order positions in an array of `shape`,
        or an array of positions along each axis, as in ``mask[at]``. Takes time and memory for
        these only, whatever the shape: for sparse arrays of any format.
    packed : bool
        One bit an element instead of one byte: the layout of
        ``np.packbits(mask, bitorder="little")``.

    Returns
    -------
    ndarray
        bool of `shape`, or with `at` of the shape of the positions, True where kept; or uint8 of
        length ceil(size / 8) if packed.

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

    def of_draw(draw: Draw, wanted: tuple[int, ...]) -> npt.NDArray[Any]:
        bits = _core.draw_bits(draw)
        if packed and draw.place.shape == draw.place.of:
            return np.frombuffer(bits, np.uint8, len(bits) - BITS_PAD).copy()
        mask = unpacked(bits, draw)
        return np.packbits(mask, bitorder="little") if packed else mask.reshape(wanted)

    return with_mask(of_draw, shape, p, rng, shared_axes, region, rows, at)


def with_mask(
    of_draw: Callable[[Draw, tuple[int, ...]], Any],
    shape: Any,
    p: Any,
    rng: RngLike,
    shared_axes: Any,
    region: Any,
    rows: Any,
    at: Any,
) -> Any:
    """What is made of the draw of a mask alone, and the mask's shape."""
    dims, p = gate.shape(shape), gate.rate(p)
    place = gate.place(dims, shared_axes, region, rows)
    if at is not None:
        index = gate.elements(place, at, "at")
        dims, place = index.shape, place_of(index)
    return with_draw(rng, p, place, lambda draw: of_draw(draw, dims))


def place_of(index: npt.NDArray[np.int64]) -> Place:
    """Of single elements of a mask array, by their indices."""
    return Place((index.size,), (), None, index.reshape(-1))
