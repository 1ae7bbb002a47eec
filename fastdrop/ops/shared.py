"""Dropout that shares a draw along axes: of feature maps, over time, of words, of whole branches.

Each is `dropout` with `shared_axes` chosen, and draws the same mask; see there for what all share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import DROPOUT, Draw, Place
from fastdrop.backends import of
from fastdrop.backends.cpu import unpacked
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.ops.dropout import Context, inverted, masked
from fastdrop.rng import RngLike, with_draw


def spatial_axes(ndim: int, channels_last: bool) -> tuple[int, ...]:
    """The spatial axes of (batch, channels, ...) or (batch, ..., channels): 1 to 3 of them."""
    if not 3 <= ndim <= 5:
        raise ValueError(
            f"x must have a batch axis, a channel axis and 1 to 3 spatial axes, got {ndim} axes; "
            "fastdrop.dropout with shared_axes takes any"
        )
    return tuple(range(1, ndim - 1) if channels_last else range(2, ndim))


def map_axes(channels_last: bool) -> Callable[[Any, Any], tuple[int, ...]]:
    """Of the gated x and shared_axes: the axes of a feature map, and those."""

    channels_last = gate.flag(channels_last, "channels_last")

    def axes(x: Any, shared_axes: Any) -> tuple[int, ...]:
        return _union(spatial_axes(x.ndim, channels_last), shared_axes, x)

    return axes


def _union(axes: tuple[int, ...], shared_axes: Any, x: Any) -> tuple[int, ...]:
    """Each axis once."""
    return tuple(sorted({*axes, *gate.axes(shared_axes, x.ndim, "shared_axes")}))


def spatial_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    channels_last: bool = False,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], Context]:
    """Drop whole feature maps: neighbours in a map are so alike that one stands in for another.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, ...) with 1 to 3 spatial axes, or (batch, ..., channels). The draw
        of a map is the same in both layouts.
    channels_last : bool
        Whether the last axis is that of the channels, not the second.
    p, rng, training, shared_axes, region, rows, out, save
        As in `fastdrop.dropout`; `shared_axes` beside those of a map.

    Returns
    -------
    y : ndarray
        A map is +0 as a whole with chance p, else multiplied by 1 / (1 - p).
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument: x has no spatial axis, or more than 3.
    numpy.exceptions.AxisError
        Axis out of range.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    References
    ----------
    J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler: Efficient object localization using
    convolutional networks. CVPR 2015, section 3.2.
    """
    how = rng, training, shared_axes, region, rows, out, save
    return masked(DROPOUT, x, p, how, None, map_axes(channels_last))


def locked_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    time_axis: int | None = None,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], Context]:
    """Dropout with one mask for all steps of a sequence.

    A recurrent state, of which one step is at hand at a time, gets such a mask from
    ``dropout(h, p, rng=Rng(seed, call))`` with the same seed and call at each step.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        A sequence: (batch, time, features), if `time_axis` does not say otherwise.
    time_axis : int, optional
        The axis of the steps. 1 if omitted, where x has three axes or more: of two, it could be
        either.
    shared_axes : int or tuple of int
        Further axes that share a draw: 0 for the same mask in all sequences.
    p, rng, training, region, rows, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    numpy.exceptions.AxisError
        x has no such axis.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016. S. Merity, N. S. Keskar, R. Socher: Regularizing and optimizing LSTM
    language models. ICLR 2018, section 4.
    """

    def axes(x: Any, shared_axes: Any) -> tuple[int, ...]:
        if time_axis is None and x.ndim < 3:
            raise ValueError(
                f"x must have the axes (batch, time, ...), got shape {x.shape}; for another form "
                "say which axis is that of the steps: time_axis=0 for (time, features)"
            )
        steps = 1 if time_axis is None else time_axis
        return _union(gate.axes(steps, x.ndim, "time_axis"), shared_axes, x)

    return masked(DROPOUT, x, p, (rng, training, shared_axes, region, rows, out, save), None, axes)


class EmbeddingContext(context.Context):
    """Context of `embedding_dropout` with ids.

    Attributes
    ----------
    shape : tuple of int
        Of the table.
    p, seed, call
        As in `Context`.
    scale : float
        What kept rows were multiplied by: 1 / (1 - p), and 0 at p = 1.
    ids : ndarray of int64
        On the device if that is where they came from.
    """

    __slots__ = ()

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self.held

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: the ids."""
        return 8 * int(np.prod(self.ids.shape))

    def kept(self) -> npt.NDArray[np.bool_]:
        """Which rows of the table are kept: bool, shape (words,)."""
        draw = self._drops
        if draw is None:
            return np.ones(self.shape[0], np.bool_)
        return unpacked(_core.draw_bits(draw), draw)

    def backward(self, dy: npt.ArrayLike) -> Any:
        """Gradient with respect to the table: its shape, dtype of `dy`.

        The rows of dy that belong to one word are added in float64, in the order of the ids.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        gate.like(dy, "dy", (*self.ids.shape, *self.shape[1:]))
        return backend.add_rows(dy, self.ids, self.shape, self._drops, self.scale)

    def backward_rows(self, dy: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """The rows of the gradient that are not zero, as sparse optimisers want them.

        Takes time and memory for the ids, and of the table a bit for each word. On the CPU alone.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y

        Returns
        -------
        words : ndarray of int64, shape (n,)
            Numbers of the rows that were looked up and kept, each once, in ascending order.
        rows : ndarray, shape (n, ...)
            ``backward(dy)[words]``.
        """
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", (*self.ids.shape, *self.shape[1:]))
        backend: Any = of(dy)
        return backend.sum_rows(dy, self.ids, self.shape, self._drops, self.scale)

    @property
    def _drops(self) -> Draw | None:
        return self.draw if self.p > 0.0 else None

    def _check(self) -> None:
        if self.draw is not None and self.draw.place.of != self.shape[:1]:
            raise ValueError(f"draw must be of the rows of {self.shape}")
        if type(self.ids) is not np.ndarray or self.ids.dtype != np.int64:
            raise TypeError(f"ids must be an int64 array, got {gate.shown(self.ids)}")
        gate.row_numbers(self.ids, self.shape[0])


def embedding_dropout(
    weight: npt.ArrayLike,
    p: float = 0.1,
    *,
    ids: npt.ArrayLike | None = None,
    rng: RngLike = None,
    training: bool = True,
) -> tuple[npt.NDArray[Any], Context | EmbeddingContext]:
    """Drop whole rows of an embedding table: a dropped word is dropped wherever it stands.

    Parameters
    ----------
    weight : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (words, ...)
        The table.
    ids : array_like of int, any shape, optional
        Rows to look up, 0 to words - 1. Only they are read and multiplied then. With a table on a
        GPU they may be there, too, and nothing waits for them: y is NaN where an id is not in the
        table.
    p, rng, training
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        The table with rows dropped; with ids, its rows: shape ``(*ids.shape, *weight.shape[1:])``.
    ctx : Context or, with ids, EmbeddingContext
        ``ctx.backward(dy)`` gives the gradient with respect to the table.

    Raises
    ------
    TypeError
        Ids that are not integers, or on a GPU where the table is not.
    ValueError
        A table of less than two axes.
    IndexError
        An id that is not in the table.
    RuntimeError
        weight is on a GPU, where no kernel can run here.

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016, section 4.2. S. Merity, N. S. Keskar, R. Socher: Regularizing and
    optimizing LSTM language models. ICLR 2018, section 4.
    """
    backend = of(weight)
    if ids is None:
        backend.array(weight, "weight")  # refuses complex numbers, which `masked` would take
        how = rng, training, (), None, None, None, "bits"
        return masked(DROPOUT, weight, p, how, None, _row_axes, "weight")
    table, p = _words(backend.array(weight, "weight")), gate.rate(p)
    ids, training = backend.numbers(ids, table), gate.flag(training, "training")
    scale, *_ = inverted(p if training else 0.0)

    def of_draw(draw: Draw | None) -> tuple[Any, EmbeddingContext]:
        ctx = EmbeddingContext.made(table.shape, draw, scale, ids)
        return backend.lookup(table, ids, ctx._drops, scale), ctx

    place = Place(table.shape[:1])
    return with_draw(rng, p, place, of_draw, of=table) if training else of_draw(None)


def _row_axes(table: Any, _: Any) -> tuple[int, ...]:
    return tuple(range(1, _words(table).ndim))


def _words(table: Any) -> Any:
    if table.ndim < 2:
        raise ValueError(f"weight must have shape (words, ...), got {table.shape}")
    return table


def drop_path(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    mode: str = "row",
    scale_by_keep: bool = True,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], Context]:
    """Drop a residual branch, as a whole, for some of the examples: stochastic depth.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (batch, ...)
        What the branch adds.
    mode : {"row", "batch"}
        One draw for each example, or one for the whole batch, which has no rows then.
    scale_by_keep : bool
        Whether kept examples are multiplied by 1 / (1 - p).
    p, rng, training, region, rows, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument: another mode, or x without axes.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    References
    ----------
    G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger: Deep networks with stochastic depth. ECCV
    2016, section 3. G. Larsson, M. Maire, G. Shakhnarovich: FractalNet. ICLR 2017.
    """
    gate.choice(mode, ("row", "batch"), "mode")

    def axes(x: Any, _: Any) -> tuple[int, ...]:
        if not x.ndim:
            raise ValueError("x must have a batch axis, got a 0-d array")
        return tuple(range(mode == "row", x.ndim))

    constants = inverted if gate.flag(scale_by_keep, "scale_by_keep") else _unscaled
    return masked(DROPOUT, x, p, (rng, training, (), region, rows, out, save), constants, axes)


def _unscaled(p: float) -> tuple[float, float, float]:
    return 1.0, 0.0, 0.0
