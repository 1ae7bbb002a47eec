"""Alpha dropout, which keeps the mean and variance that self-normalizing networks rely on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from fastdrop._core import ALPHA_DROPOUT
from fastdrop.backends import of
from fastdrop.base.gate import Region
from fastdrop.ops.dropout import Context, masked
from fastdrop.ops.shared import map_axes
from fastdrop.rng import RngLike

# SELU of minus infinity: -lambda * alpha of Klambauer et al., equations 2 and 14.
SATURATION = -1.7580993408473766


def affine(p: float) -> tuple[float, float, float]:
    """a, b, and what stands for a dropped element: a * SATURATION + b. All 0 at p = 1.

    a = ((1 - p) (1 + p SATURATION^2))^(-1/2), b = -a p SATURATION
    """
    if p == 1.0:
        return 0.0, 0.0, 0.0
    a = ((1.0 - p) * (1.0 + p * SATURATION * SATURATION)) ** -0.5
    b = -a * p * SATURATION
    return a, b, a * SATURATION + b


class AlphaContext(Context):
    """Context of `alpha_dropout`."""

    __slots__ = ()

    def apply(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """`alpha_dropout` of another array with the same mask; arguments as in `Context.apply`."""
        backend = of(x)
        x = backend.array(x)
        out, x = backend.output(out, x)
        self._check_shape(x, "x")
        if (draw := self._drops) is None:
            return backend.copy(x, out)
        return backend.forward(ALPHA_DROPOUT, x, draw, affine(self.p), out, given=self.held)[0]


def alpha_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], AlphaContext]:
    """Set elements to where SELU saturates, and all so that mean 0 and variance 1 are preserved.

    y = a * x + b where kept and a * s + b where dropped, with s = -1.7581,
    a = ((1 - p) (1 + p s^2))^(-1/2) and b = -a p s.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, any shape and layout
    p, rng, training, shared_axes, region, rows, out, save
        As in `fastdrop.dropout`. At p = 1 there is no such a: y is zero.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : AlphaContext
        ``ctx.backward(dy)`` gives a * dy where kept, else 0; a is ``ctx.scale``.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    numpy.exceptions.AxisError
        Axis out of range.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    References
    ----------
    G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter: Self-normalizing neural networks. NeurIPS
    2017, "New dropout technique".
    """
    how = rng, training, shared_axes, region, rows, out, save
    return masked(ALPHA_DROPOUT, x, p, how, affine, kind=AlphaContext)


def feature_alpha_dropout(
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
) -> tuple[npt.NDArray[Any], AlphaContext]:
    """`alpha_dropout` of whole feature maps.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, ...) with 1 to 3 spatial axes, or (batch, ..., channels).
    channels_last : bool
        Whether the last axis is that of the channels, not the second.
    shared_axes : int or tuple of int
        Further axes that share a draw: 0 for the same maps in all examples.
    p, rng, training, region, rows, out, save
        As in `alpha_dropout`.

    Returns
    -------
    y : ndarray
        Shape, dtype and memory order of x.
    ctx : AlphaContext
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
    """
    how = rng, training, shared_axes, region, rows, out, save
    axes = map_axes(channels_last)
    return masked(ALPHA_DROPOUT, x, p, how, affine, axes, kind=AlphaContext)
