"""Dropout that shares a draw along axes: of feature maps, over time, of words, of whole branches.

Each is `dropout` with `shared_axes` chosen, and draws the same mask; see there for what all share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import DROPOUT
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import cuda, fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import Layer, OpLayer, Rate
from fastdrop.base.restore import Restored
from fastdrop.ops.dropout import Context, Region, keep_mask, masked
from fastdrop.rng import Rng, RngLike, draw_call

__all__ = [
    "DropPath",
    "EmbeddingContext",
    "EmbeddingDropout",
    "LockedDropout",
    "SpatialDropout",
    "drop_path",
    "embedding_dropout",
    "locked_dropout",
    "spatial_axes",
    "spatial_dropout",
]


def spatial_axes(ndim: int, channels_last: bool) -> tuple[int, ...]:
    """The spatial axes of (batch, channels, ...) or (batch, ..., channels): 1 to 3 of them."""
    if not 3 <= ndim <= 5:
        raise ValueError(
            f"x must have a batch axis, a channel axis and 1 to 3 spatial axes, got {ndim} axes; "
            "fastdrop.dropout with shared_axes takes any"
        )
    return tuple(range(1, ndim - 1) if channels_last else range(2, ndim))


def spatial_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    channels_last: bool = False,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, Context]:
    """Drop whole feature maps: neighbours in a map are so alike that one stands in for another.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, ...) with 1 to 3 spatial axes, or (batch, ..., channels). The draw
        of a map is the same in both layouts.
    channels_last : bool
        Whether the last axis is that of the channels, not the second.
    p, rng, training, shared_axes, region, out, save
        As in `fastdrop.dropout`; `shared_axes` beside those of a map.

    Returns
    -------
    y : ndarray
        A map is +0 as a whole with chance p, else multiplied by 1 / (1 - p).
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    ValueError
        x has no spatial axis, or more than 3.

    References
    ----------
    J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler: Efficient object localization using
    convolutional networks. CVPR 2015, section 3.2.
    """
    x = x if on_device(x) else gate.array(x)
    axes = spatial_axes(x.ndim, channels_last), gate.axes(shared_axes, x.ndim, "shared_axes")
    return masked(DROPOUT, x, p, rng, training, _union(*axes), region, out, save)


def locked_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    time_axis: int = 1,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, Context]:
    """Dropout with one mask for all steps of a sequence.

    A recurrent state, of which one step is at hand at a time, gets such a mask from
    ``dropout(h, p, rng=Rng(seed, call))`` with the same seed and call at each step.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        A sequence: (batch, time, features), if `time_axis` does not say otherwise.
    time_axis : int
        The axis of the steps.
    shared_axes : int or tuple of int
        Further axes that share a draw: 0 for the same mask in all sequences.
    p, rng, training, region, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    numpy.exceptions.AxisError
        x has no such axis.

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016. S. Merity, N. S. Keskar, R. Socher: Regularizing and optimizing LSTM
    language models. ICLR 2018, section 4.
    """
    x = x if on_device(x) else gate.array(x)
    axes = gate.axes(time_axis, x.ndim, "time_axis"), gate.axes(shared_axes, x.ndim, "shared_axes")
    return masked(DROPOUT, x, p, rng, training, _union(*axes), region, out, save)


def _union(*axes: tuple[int, ...]) -> tuple[int, ...]:
    """Each axis once."""
    return tuple(sorted(set().union(*axes)))


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingContext(Restored):
    """Context of `embedding_dropout` with ids.

    Attributes
    ----------
    shape : tuple of int
        Of the table.
    p, seed, call
        As in `Context`.
    ids : ndarray of int64
        On the device if that is where they came from.
    """

    shape: tuple[int, ...]
    p: float
    seed: int | None
    call: int | None
    ids: npt.NDArray[np.int64]

    def check(self) -> None:
        Restored.check(self)
        if not on_device(self.ids):
            _in_table(self.ids, self.shape)

    @property
    def scale(self) -> float:
        """What kept rows were multiplied by: 1 / (1 - p), and 0 at p = 1."""
        return _core.scale_of(self.p)

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: the ids."""
        return 8 * prod(self.ids.shape)

    def kept(self) -> npt.NDArray[np.bool_]:
        """Which rows of the table are kept: bool, shape (words,)."""
        if self.p == 0.0:
            return np.ones(self.shape[0], np.bool_)
        return keep_mask(self.shape[0], self.p, rng=Rng(self.seed, self.call))

    def backward(self, dy: npt.ArrayLike) -> npt.NDArray:
        """Gradient with respect to the table: its shape, dtype of `dy`.

        The rows of dy that belong to one word are added in float64, in the order of the ids.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        if on_device(dy):
            return cuda().backward_embedding(self, dy)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", (*self.ids.shape, *self.shape[1:]))
        ids = fetched(self.ids)
        _in_table(ids, self.shape)
        words, ids = np.unique(ids, return_inverse=True)
        sums = np.zeros((words.size, *self.shape[1:]))
        cpu.add_rows(np.asarray(dy, order="C"), np.ascontiguousarray(ids, np.int64), sums)
        kept = self.kept()[words]
        dweight = np.zeros(self.shape, dy.dtype)
        dweight[words[kept]] = sums[kept] * self.scale
        return dweight


def embedding_dropout(
    weight: npt.ArrayLike,
    p: float = 0.1,
    *,
    ids: npt.ArrayLike | None = None,
    rng: RngLike = None,
    training: bool = True,
) -> tuple[npt.NDArray, Context | EmbeddingContext]:
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
        The table with rows dropped; with ids, its rows: shape (*ids.shape, *weight.shape[1:]).
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

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016, section 4.2. S. Merity, N. S. Keskar, R. Socher: Regularizing and
    optimizing LSTM language models. ICLR 2018, section 4.
    """
    there = on_device(weight)
    weight, p = weight if there else gate.array(weight, "weight"), gate.rate(p)
    if weight.ndim < 2:
        raise ValueError(f"weight must have shape (words, ...), got {weight.shape}")
    if ids is None:
        axes = tuple(range(1, weight.ndim))
        return masked(DROPOUT, weight, p, rng, training, axes, None, None, "bits")
    if there:
        return cuda().lookup(weight, p, ids, rng, training)
    ids = rows_of(ids, weight.shape)
    seed, call = draw_call(rng) if training else (None, None)
    ctx = EmbeddingContext(weight.shape, p if training else 0.0, seed, call, ids)
    y = np.empty((*ids.shape, *weight.shape[1:]), weight.dtype)
    if ctx.p == 0.0:
        np.take(weight, ids, axis=0, out=y, mode="clip")
    else:
        bits = cpu.draw(seed, call, p, len(weight))
        cpu.lookup(np.asarray(weight, order="C"), ids, bits, y, ctx.scale)
    return y, ctx


def rows_of(ids: npt.ArrayLike, shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Ids of rows of a table of this shape, checked."""
    ids = gate.host(ids, "ids")
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    _in_table(ids, shape)
    return np.array(ids, np.int64, order="C")  # a copy: the caller's may change before backward


def _in_table(ids: npt.NDArray, shape: tuple[int, ...]) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < shape[0]:
        raise IndexError(f"ids must be in 0 ... {shape[0] - 1}, got {ids.min()} ... {ids.max()}")


def drop_path(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    mode: str = "row",
    scale_by_keep: bool = True,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, Context]:
    """Drop a residual branch, as a whole, for some of the examples: stochastic depth.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (batch, ...)
        What the branch adds.
    mode : {"row", "batch"}
        One draw for each example, or one for the whole batch.
    scale_by_keep : bool
        Whether kept examples are multiplied by 1 / (1 - p).
    p, rng, training, region, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : Context
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    ValueError
        Another mode, or x without axes.

    References
    ----------
    G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger: Deep networks with stochastic depth. ECCV
    2016, section 3. G. Larsson, M. Maire, G. Shakhnarovich: FractalNet. ICLR 2017.
    """
    gate.choice(mode, ("row", "batch"), "mode")
    x = x if on_device(x) else gate.array(x)
    if not x.ndim:
        raise ValueError("x must have a batch axis, got a 0-d array")
    axes = tuple(range(mode == "row", x.ndim))
    constants = None if scale_by_keep else _unscaled
    return masked(DROPOUT, x, p, rng, training, axes, region, out, save, constants)


def _unscaled(p: float) -> tuple[float, float, float]:
    return 1.0, 0.0, 0.0


@dataclass(eq=False)
class SpatialDropout(OpLayer):
    """`spatial_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    channels_last, shared_axes, save
        As in `spatial_dropout`.
    rng
        As in `Dropout`.
    """

    op = spatial_dropout

    p: Rate = 0.5
    _: KW_ONLY
    channels_last: bool = False
    shared_axes: int | Sequence[int] = ()
    save: str = "bits"


@dataclass(eq=False)
class LockedDropout(OpLayer):
    """`locked_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    time_axis, shared_axes, save
        As in `locked_dropout`.
    rng
        As in `Dropout`.
    """

    op = locked_dropout

    p: Rate = 0.5
    _: KW_ONLY
    time_axis: int = 1
    shared_axes: int | Sequence[int] = ()
    save: str = "bits"


class EmbeddingDropout(Layer):
    """An embedding table whose rows are dropped; learns ``layer.weight``.

    Parameters
    ----------
    weight : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (words, ...)
        The table; kept as it is, not copied.
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng
        As in `Dropout`.
    """

    learned = ("weight",)

    def __init__(self, weight: npt.ArrayLike, p: Rate = 0.1, *, rng: RngLike = None) -> None:
        super().__init__(rng, p)
        self.weight = gate.array(weight, "weight")

    def __call__(self, ids: npt.ArrayLike) -> npt.NDArray:
        """Rows of the table: shape (*ids.shape, *weight.shape[1:])."""
        y, self.ctx = embedding_dropout(
            self.weight, self.rate(), ids=ids, rng=self.rng, training=self.training
        )
        return y

    def share_batch(self) -> None:
        """A word is dropped in all examples as it is; see `Layer.share_batch`."""

    def backward(self, dy: npt.ArrayLike) -> None:  # type: ignore[override]
        """The table's gradient goes to `gradients`; ids have none."""
        if self.ctx is None:
            raise RuntimeError("backward needs a forward call of the layer before it")
        self.gradients = {"weight": self.ctx.backward(dy)}

    def __repr__(self) -> str:
        return f"EmbeddingDropout(weight of {self.weight.shape}, p={self.p})"


@dataclass(eq=False)
class DropPath(OpLayer):
    """`drop_path` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    mode, scale_by_keep, save
        As in `drop_path`.
    rng
        As in `Dropout`.
    """

    op = drop_path

    p: Rate = 0.5
    _: KW_ONLY
    mode: str = "row"
    scale_by_keep: bool = True
    save: str = "bits"

    def __post_init__(self) -> None:
        super().__post_init__()
        gate.choice(self.mode, ("row", "batch"), "mode")

    def share_batch(self) -> None:
        """One draw for the whole batch; see `Layer.share_batch`."""
        self.mode = "batch"
