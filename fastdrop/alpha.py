"""Alpha dropout, which keeps the mean and variance that self-normalizing networks rely on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy.typing as npt

from fastdrop import gate
from fastdrop._core import ALPHA_DROPOUT
from fastdrop.device import on_device
from fastdrop.functional import Context, Region, masked
from fastdrop.rng import RngLike
from fastdrop.shared import spatial_axes
from fastdrop.stateful import Layer, Rate

__all__ = ["AlphaDropout", "FeatureAlphaDropout", "alpha_dropout", "feature_alpha_dropout"]

# SELU of minus infinity: -lambda * alpha of Klambauer et al., equation 14.
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


def alpha_dropout(
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
    """Set elements to SELU's saturation value and transform all so that mean 0, variance 1 stay.

    y = a * x + b where kept and a * s + b where dropped, s = -1.7581; see `affine` for a and b.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    p, rng, training, shared_axes, region, out, save
        As in `fastdrop.dropout`. At p = 1 y is zero.

    Returns
    -------
    y : ndarray
    ctx : Context
        ``ctx.backward(dy)`` gives a * dy where kept, else 0; a is ``ctx.scale``.

    References
    ----------
    G. Klambauer, T. Unterthiner, A. Mayr, S. Hochreiter: Self-normalizing neural networks. NeurIPS
    2017, "New dropout technique".
    """
    return masked(ALPHA_DROPOUT, x, p, rng, training, shared_axes, region, out, save, affine)


def feature_alpha_dropout(
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
    """`alpha_dropout` of whole feature maps.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Shape (batch, channels, ...) with 1 to 3 spatial axes, or (batch, ..., channels).
    channels_last : bool
    p, rng, training, region, out, save
        As in `alpha_dropout`.

    Returns
    -------
    y : ndarray
    ctx : Context
    """
    x = x if on_device(x) else gate.array(x)
    axes = spatial_axes(x.ndim, channels_last)
    return alpha_dropout(
        x, p, rng=rng, training=training, shared_axes=axes, region=region, out=out, save=save
    )


class AlphaDropout(Layer):
    """`alpha_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng, shared_axes, save
        As in `Dropout`.
    """

    def __init__(
        self,
        p: Rate = 0.5,
        *,
        rng: RngLike = None,
        shared_axes: int | Sequence[int] = (),
        save: str = "bits",
    ) -> None:
        super().__init__(rng, p)
        self.shared_axes = shared_axes
        self.save = gate.choice(save, ("bits", "seed"), "save")

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = alpha_dropout(
            x,
            self.rate(),
            rng=self.rng,
            training=self.training,
            shared_axes=self.shared_axes,
            out=out,
            save=self.save,
        )
        return y

    def __repr__(self) -> str:
        return f"AlphaDropout(p={self.p}, shared_axes={self.shared_axes}, save={self.save!r})"


class FeatureAlphaDropout(Layer):
    """`feature_alpha_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    channels_last, save
        As in `feature_alpha_dropout`.
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
        y, self.ctx = feature_alpha_dropout(
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
        return f"FeatureAlphaDropout(p={self.p}, channels_last={self.channels_last})"
