"""Gaussian dropout, which multiplies by noise, and Gaussian noise, which adds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
import numpy.typing as npt

from fastdrop._core import NOISE_ADD, NOISE_SCALE
from fastdrop.backends.cuda.arrays import cuda
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import OpLayer, Rate
from fastdrop.ops.dropout import Region
from fastdrop.ops.noise import Draw, NoiseContext, compute_type, forward
from fastdrop.rng import RngLike, draw_call

__all__ = [
    "GaussianContext",
    "GaussianDropout",
    "GaussianNoise",
    "gaussian_dropout",
    "gaussian_noise",
]


@dataclass(frozen=True, slots=True, eq=False)
class GaussianContext(NoiseContext):
    """Context of `gaussian_dropout` and `gaussian_noise`: holds nothing that grows with x."""

    ops = NOISE_SCALE, NOISE_ADD
    shape: tuple[int, ...]
    p: float
    draw: Draw | None

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: nothing, the noise is drawn again."""
        return 0

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """Gradient with respect to x: dy * (1 + sigma * noise) for `gaussian_dropout`, else dy.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of x
        out : ndarray, optional
            Where to write; shape and dtype of `dy`. May be `dy` itself.
        """
        if not on_device(dy):
            dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        draw = self.draw if self.draw is not None and self.draw.op == NOISE_SCALE else None
        return forward(draw, dy, out)


def gaussian_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
) -> tuple[npt.NDArray, GaussianContext]:
    """Multiply by 1 + sqrt(p / (1 - p)) * noise: mean and variance of Bernoulli dropout.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    p : float
        Rate in [0, 1) of the dropout that has this variance.
    rng, training, shared_axes, region, out
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : GaussianContext
        ``ctx.backward(dy)`` gives the gradient.

    Raises
    ------
    ValueError
        p is 1, where the variance is infinite.

    References
    ----------
    N. Srivastava et al.: Dropout. JMLR 15 (2014) 1929-1958, section 10.
    """
    p = gate.rate(p)
    if p == 1.0 and training:
        raise ValueError(
            "p must be below 1, got 1.0: the noise would have infinite variance; "
            "use fastdrop.dropout to drop everything"
        )
    sigma = float(np.sqrt(p / (1.0 - p))) if training else 0.0
    return _run(NOISE_SCALE, x, p, sigma, rng, training, shared_axes, region, out)


def gaussian_noise(
    x: npt.ArrayLike,
    std: float,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
) -> tuple[npt.NDArray, GaussianContext]:
    """Add std * noise, standard normal.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    std : float
        Standard deviation, in units of x; not negative.
    rng, training, shared_axes, region, out
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

    References
    ----------
    C. M. Bishop: Training with noise is equivalent to Tikhonov regularization. Neural Computation 7
    (1995) 108-116.
    """
    std = gate.real(std, "std", 0.0)
    return _run(NOISE_ADD, x, 0.0, std, rng, training, shared_axes, region, out)


def _run(
    op: int,
    x: npt.ArrayLike,
    p: float,
    sigma: float,
    rng: RngLike,
    training: bool,
    shared_axes: int | Sequence[int],
    region: Region | None,
    out: npt.NDArray | None,
) -> tuple[npt.NDArray, GaussianContext]:
    if not on_device(x):
        x = gate.array(x)
        x, out = gate.output(x, out)
    shape, dtype = (tuple(x.shape), x.dtype) if not on_device(x) else cuda().described(x, out)
    block = gate.block(shape, shared_axes, region)
    if not training:
        return forward(None, x, out), GaussianContext(shape, 0.0, None)
    draw = Draw(op, *draw_call(rng), block, np.asarray(sigma, compute_type(dtype)))
    return forward(draw, x, out), GaussianContext(shape, p, draw)


@dataclass(eq=False)
class GaussianDropout(OpLayer):
    """`gaussian_dropout` as a layer.

    Parameters
    ----------
    p : float or callable
        Rate in [0, 1), or a function of the step; see `Layer`.
    rng, shared_axes
        As in `Dropout`.
    """

    op = gaussian_dropout

    p: Rate = 0.5
    _: KW_ONLY
    shared_axes: int | Sequence[int] = ()


@dataclass(eq=False)
class GaussianNoise(OpLayer):
    """`gaussian_noise` as a layer.

    Parameters
    ----------
    std : float
        Standard deviation; ``layer.std`` can be assigned between calls.
    rng, shared_axes
        As in `Dropout`.
    """

    op = gaussian_noise

    std: float
    _: KW_ONLY
    shared_axes: int | Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        gate.real(self.std, "std", 0.0)
