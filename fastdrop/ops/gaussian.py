"""Gaussian dropout, which multiplies by noise, and Gaussian noise, which adds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop._core import NOISE_ADD, NOISE_SCALE, Draw
from fastdrop.backends import of
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.rng import RngLike, with_draw


class GaussianContext(context.Context):
    """Context of `gaussian_dropout` and `gaussian_noise`: holds nothing that grows with x.

    Attributes
    ----------
    sigma : ndarray or None
        0-d: standard deviation of what y was multiplied by; None if the noise was added, or not
        drawn.
    """

    __slots__ = ("sigma",)
    sigma: npt.NDArray[Any] | None

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """Gradient with respect to x: dy * (1 + sigma * noise) for `gaussian_dropout`, else dy.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of x
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        out, dy = backend.output(out, dy)
        if self.draw is None or self.sigma is None:
            return backend.copy(dy, out)
        return backend.noise(NOISE_SCALE, dy, self.draw, self.sigma, out)

    def _check(self) -> None:
        self._check_place()
        if self.held is not None:
            raise ValueError("held must be None")
        if self.sigma is not None:
            gate.like(self.sigma, "sigma", ())
            if self.draw is None:
                raise ValueError("draw must be there if there is a sigma")


def gaussian_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], GaussianContext]:
    """Multiply by 1 + sqrt(p / (1 - p)) * noise: mean and variance of Bernoulli dropout.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    p : float
        Rate in [0, 1) of the dropout that has this variance.
    rng, training, shared_axes, region, rows, out
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : GaussianContext
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument: p is 1, where the variance is infinite.
    numpy.exceptions.AxisError
        Axis out of range.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    References
    ----------
    N. Srivastava et al.: Dropout. JMLR 15 (2014) 1929-1958, section 10.
    """
    p, training = gate.rate(p), gate.flag(training, "training")
    if p == 1.0 and training:
        raise ValueError(
            "p must be below 1, got 1.0: the noise would have infinite variance; "
            "use fastdrop.dropout to drop everything"
        )
    sigma = float(np.sqrt(p / (1.0 - p))) if training else 0.0
    return _noisy(NOISE_SCALE, x, p, sigma, (rng, training, shared_axes, region, rows, out))


def gaussian_noise(
    x: npt.ArrayLike,
    std: float,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], GaussianContext]:
    """Add std * noise, standard normal.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    std : float
        Standard deviation, in units of x; not negative.
    rng, training, shared_axes, region, rows, out
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : GaussianContext
        ``ctx.backward(dy)`` gives dy.

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
    C. M. Bishop: Training with noise is equivalent to Tikhonov regularization. Neural Computation 7
    (1995) 108-116.
    """
    std, training = gate.real(std, "std", 0.0), gate.flag(training, "training")
    return _noisy(NOISE_ADD, x, 0.0, std, (rng, training, shared_axes, region, rows, out))


def _noisy(
    op: int, x: Any, p: float, sigma: float, arguments: tuple[Any, ...]
) -> tuple[Any, GaussianContext]:
    """The road of both."""
    rng, training, shared_axes, region, rows, out = arguments
    backend = of(x)
    x = backend.array(x)
    place = gate.place(x.shape, shared_axes, region, rows)
    out, x = backend.output(out, x)
    if not training:
        y = backend.copy(x, out)
        return y, GaussianContext.made(x.shape, None, 1.0, None, sigma=None)
    with np.errstate(over="ignore"):
        deviation = np.asarray(sigma, compute_type(x.dtype))
    if np.isinf(deviation):
        raise ValueError(f"std must be finite in {deviation.dtype}, got {sigma!r}")
    kept = deviation if op == NOISE_SCALE else None

    def of_draw(draw: Draw) -> tuple[Any, GaussianContext]:
        y = backend.noise(op, x, draw, deviation, out)
        return y, GaussianContext.made(x.shape, draw, 1.0, None, sigma=kept)

    return with_draw(rng, p, place, of_draw, out, x)
