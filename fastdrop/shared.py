"""Dropout that shares a draw along axes: of feature maps, over time, of words, of whole branches.

Each is `dropout` with `shared_axes` chosen, and runs through the same kernel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdrop import _core, gate
from fastdrop._core import DROPOUT
from fastdrop.block import Block
from fastdrop.device import on_device
from fastdrop.functional import Context, Region, keep_mask, masked
from fastdrop.noise import compute_type
from fastdrop.rng import Rng, RngLike, draw_call
from fastdrop.stateful import Layer, Rate

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
            "x must have a batch axis, a channel axis and 1 to 3 spatial axes, "
            f"got {ndim} axes in all"
        )
    return tuple(range(1, ndim - 1) if channels_last else range(2, ndim))


def spatial_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    channels_last: bool = False,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, Context]:
    """Drop whole feature maps, because neighbours in a map are correlated.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, ...) with 1 to 3 spatial axes, or (batch, ..., channels). The draw
        of a map is the same in both layouts.
    channels_last : bool
    p, rng, training, region, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
    ctx : Context

    References
    ----------
    J. Tompson, R. Goroshin, A. Jain, Y. LeCun, C. Bregler: Efficient object localization using
    convolutional networks. CVPR 2015, section 3.2.
    """
    x = x if on_device(x) else gate.array(x)
    axes = spatial_axes(x.ndim, channels_last)
    return masked(DROPOUT, x, p, rng, training, axes, region, out, save)


def locked_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    time_axis: int = 1,
    rng: RngLike = None,
    training: bool = True,
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
    p, rng, training, region, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
    ctx : Context

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016. S. Merity, N. S. Keskar, R. Socher: Regularizing and optimizing LSTM
    language models. ICLR 2018, section 4.
    """
    return masked(DROPOUT, x, p, rng, training, time_axis, region, out, save)


@dataclass(frozen=True, slots=True)
class EmbeddingContext:
    """Context of `embedding_dropout` with ids."""

    shape: tuple[int, ...]
    p: float
    seed: int | None
    call: int | None
    ids: npt.NDArray

    @property
    def scale(self) -> float:
        """What kept rows were multiplied by: 1 / (1 - p), and 0 at p = 1."""
        return _core.scale_of(self.p)

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: the ids."""
        return self.ids.nbytes

    def kept(self) -> npt.NDArray[np.bool_]:
        """Which rows of the table are kept: bool, shape (words,)."""
        if self.p == 0.0:
            return np.ones(self.shape[0], np.bool_)
        return keep_mask(self.shape[0], self.p, rng=Rng(self.seed, self.call))

    def apply(self, rows: npt.NDArray) -> npt.NDArray:
        """Drop and scale looked-up rows, of shape (*ids.shape, ...), in place."""
        if self.p > 0.0:
            bits = np.packbits(self.kept()[self.ids], bitorder="little").tobytes()
            axes = tuple(range(self.ids.ndim, rows.ndim))
            padded = bits + bytes(_core.BITS_PAD)
            _core.backward(rows, rows, padded, self.scale, Block(rows.shape, axes, None))
        return rows

    def backward(self, dy: npt.ArrayLike) -> npt.NDArray:
        """Gradient with respect to the table: its shape, dtype of `dy`.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", (*self.ids.shape, *self.shape[1:]))
        rows = self.apply(dy.copy("C")).reshape(self.ids.size, -1)
        # Rows in the order of their ids: those of one id are a run to be summed.
        order = np.argsort(self.ids, axis=None, kind="stable")
        ids, first = np.unique(self.ids.reshape(-1)[order], return_index=True)
        dweight = np.zeros(self.shape, dy.dtype)
        if ids.size:
            sums = np.add.reduceat(rows[order], first, axis=0, dtype=compute_type(dy.dtype))
            dweight[ids] = sums.reshape(-1, *self.shape[1:])
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
    ids : array_like of int, optional
        Rows to look up, 0 to words - 1. Only they are read and multiplied then.
    p, rng, training
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        The table with rows dropped; with ids, its rows: shape (*ids.shape, *weight.shape[1:]).
    ctx : Context or EmbeddingContext
        ``ctx.backward(dy)`` gives the gradient with respect to the table.

    Raises
    ------
    IndexError
        An id that is not in the table.

    References
    ----------
    Y. Gal, Z. Ghahramani: A theoretically grounded application of dropout in recurrent neural
    networks. NeurIPS 2016, section 4.2. S. Merity, N. S. Keskar, R. Socher: Regularizing and
    optimizing LSTM language models. ICLR 2018, section 4.
    """
    weight, p = gate.array(weight, "weight"), gate.rate(p)
    if weight.ndim < 2:
        raise ValueError(f"weight must have shape (words, ...), got {weight.shape}")
    if ids is None:
        axes = tuple(range(1, weight.ndim))
        return masked(DROPOUT, weight, p, rng, training, axes, None, None, "bits")
    ids = np.array(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    if ids.size and not 0 <= ids.min() <= ids.max() < len(weight):
        raise IndexError(f"ids must be in 0 ... {len(weight) - 1}, got {ids.min()} ... {ids.max()}")
    seed, call = draw_call(rng) if training else (None, None)
    ctx = EmbeddingContext(weight.shape, p if training else 0.0, seed, call, ids)
    return ctx.apply(np.ascontiguousarray(weight[ids])), ctx


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
        One draw an example, or one for the whole batch.
    scale_by_keep : bool
        Whether kept examples are multiplied by 1 / (1 - p).
    p, rng, training, region, out, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
    ctx : Context

    References
    ----------
    G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger: Deep networks with stochastic depth. ECCV
    2016. G. Larsson, M. Maire, G. Shakhnarovich: FractalNet. ICLR 2017.
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


class SpatialDropout(Layer):
    """`spatial_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    channels_last, save
        As in `spatial_dropout`.
    rng
        As in `Dropout`.
    """

    def __init__(
        self,
        p: Rate = 0.5,
        *,
        channels_last: bool = False,
        rng: RngLike = None,
        save: str = "bits",
    ) -> None:
        super().__init__(rng, p)
        self.channels_last = channels_last
        self.save = gate.choice(save, ("bits", "seed"), "save")

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = spatial_dropout(
            x,
            self.rate(),
            channels_last=self.channels_last,
            rng=self.rng,
            training=self.training,
            out=out,
            save=self.save,
        )
        return y

    def __repr__(self) -> str:
        return f"SpatialDropout(p={self.p}, channels_last={self.channels_last})"


class LockedDropout(Layer):
    """`locked_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    time_axis, save
        As in `locked_dropout`.
    rng
        As in `Dropout`.
    """

    def __init__(
        self, p: Rate = 0.5, *, time_axis: int = 1, rng: RngLike = None, save: str = "bits"
    ) -> None:
        super().__init__(rng, p)
        self.time_axis = time_axis
        self.save = gate.choice(save, ("bits", "seed"), "save")

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = locked_dropout(
            x,
            self.rate(),
            time_axis=self.time_axis,
            rng=self.rng,
            training=self.training,
            out=out,
            save=self.save,
        )
        return y

    def __repr__(self) -> str:
        return f"LockedDropout(p={self.p}, time_axis={self.time_axis})"


class EmbeddingDropout(Layer):
    """An embedding table whose rows are dropped; learns ``layer.weight``.

    Parameters
    ----------
    weight : array_like, shape (words, features)
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
        """Rows of the table: shape (*ids.shape, features)."""
        y, self.ctx = embedding_dropout(
            self.weight, self.rate(), ids=ids, rng=self.rng, training=self.training
        )
        return y

    def backward(self, dy: npt.ArrayLike, out: None = None) -> None:
        """The table's gradient goes to `gradients`; ids have none."""
        if self.ctx is None:
            raise RuntimeError("backward needs a forward call of the layer before it")
        self.gradients = {"weight": self.ctx.backward(dy)}

    def __repr__(self) -> str:
        return f"EmbeddingDropout(weight of {self.weight.shape}, p={self.p})"


class DropPath(Layer):
    """`drop_path` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    mode, scale_by_keep
        As in `drop_path`.
    rng
        As in `Dropout`.
    """

    def __init__(
        self,
        p: Rate = 0.5,
        *,
        mode: str = "row",
        scale_by_keep: bool = True,
        rng: RngLike = None,
    ) -> None:
        super().__init__(rng, p)
        self.mode = gate.choice(mode, ("row", "batch"), "mode")
        self.scale_by_keep = scale_by_keep

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = drop_path(
            x,
            self.rate(),
            mode=self.mode,
            scale_by_keep=self.scale_by_keep,
            rng=self.rng,
            training=self.training,
            out=out,
        )
        return y

    def __repr__(self) -> str:
        return f"DropPath(p={self.p}, mode={self.mode!r}, scale_by_keep={self.scale_by_keep})"
