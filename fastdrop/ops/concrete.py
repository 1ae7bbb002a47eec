"""Concrete dropout: a relaxed mask whose rate is learned."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log1p
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop._core import CONCRETE, Draw
from fastdrop.backends import nbytes, of
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.rng import RngLike, with_draw

LEAST_TEMPERATURE = 1e-30  # its reciprocal, times a logit, is finite in float32
LOGIT_LIMIT = 40.0  # float32 can tell no more: beyond, exp of 87 is what it clips at
Real = float | np.floating | npt.NDArray[np.floating]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow for |logit| <= LOGIT_LIMIT."""
    return 1.0 / (1.0 + exp(-logit))


class ConcreteContext(context.Context):
    """Context of `concrete_dropout`: refers to x, which the rate's gradient needs.

    Attributes
    ----------
    x : ndarray
    relaxed : tuple of float or None
        logit, p, 1 / temperature and 1 / (1 - p); None in evaluation.
    """

    __slots__ = ("relaxed", "x")
    relaxed: tuple[float, ...] | None
    x: Any

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: x itself, or nothing in evaluation."""
        return nbytes(self.x) if self.draw is not None else 0

    def backward(self, dy: npt.ArrayLike) -> Any:
        """(dx, dlogit): gradients with respect to x and, float64 and 0-d, the rate's logit.

        Parameters
        ----------
        dy : array_like, shape and dtype of x
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        x = backend.bring(self.x, dy)
        gate.like(dy, "dy", x.shape, x.dtype)
        if self.draw is None:
            return backend.copy(dy), backend.zeros_like(dy, "float64", ())
        dx, dlogit = backend.noise_gradients(CONCRETE, x, dy, self.draw, self.relaxed, 1)
        return dx, backend.result(dlogit)

    def _check(self) -> None:
        self._check_place()
        if tuple(self.x.shape) != self.shape or self.held is not None:
            raise ValueError(f"x must have shape {self.shape}, got {self.x.shape}")
        if (self.draw is None) != (self.relaxed is None) or len(self.relaxed or range(4)) != 4:
            raise ValueError(f"relaxed must be four numbers for a draw, got {self.relaxed}")


def concrete_dropout(
    x: npt.ArrayLike,
    logit: Real,
    temperature: float = 0.1,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], ConcreteContext]:
    """Dropout with a learned rate p = sigmoid(logit) and a relaxed mask.

    The relaxed drop mask is z = sigmoid((logit + e) / temperature), e = ln(u / (1 - u)) standard
    logistic; y = x * (1 - z) / (1 - p). P(z > 1/2) = p, but E[(1 - z) / (1 - p)] is 1 only at
    p = 1/2 (0.9987 at p = 0.1, 1.0118 at p = 0.9, temperature 0.1).

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        The context refers to it: do not change it before the backward pass.
    logit : float or 0-d ndarray
        ln(p / (1 - p)), within +-40.
    temperature : float
        Of the relaxation, at least 1e-30: a smaller one is nearer to a mask of zeros and ones.
    rng, training, shared_axes, region, rows
        As in `fastdrop.dropout`. Without training y is a copy of x.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : ConcreteContext
        ``ctx.backward(dy)`` gives (dx, dlogit).

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
    Y. Gal, J. Hron, A. Kendall: Concrete dropout. NeurIPS 2017, equation 5. The authors' code adds
    1e-7 inside the logarithms; here u is never 0 or 1.
    """
    backend = of(x)
    x = backend.array(x)
    logit = gate.real(logit, "logit", -LOGIT_LIMIT, LOGIT_LIMIT)
    temperature = gate.positive(temperature, "temperature", LEAST_TEMPERATURE)
    place = gate.place(x.shape, shared_axes, region, rows)
    if not gate.flag(training, "training"):
        ctx = ConcreteContext.made(x.shape, None, 1.0, None, x=backend.held(x), relaxed=None)
        return backend.copy(x), ctx
    p = sigmoid(logit)
    relaxed = logit, p, 1.0 / temperature, 1.0 + exp(logit)

    def of_draw(draw: Draw) -> tuple[Any, ConcreteContext]:
        y = backend.noise(CONCRETE, x, draw, relaxed)
        held = backend.held(x)
        return y, ConcreteContext.made(x.shape, draw, relaxed[3], None, x=held, relaxed=relaxed)

    return with_draw(rng, p, place, of_draw, of=x)


def concrete_regularizer(
    logit: Real,
    weight: npt.NDArray[Any],
    features: int,
    *,
    weight_regularizer: float = 1e-6,
    dropout_regularizer: float = 1e-5,
) -> tuple[float, float, npt.NDArray[Any]]:
    """What the loss gains by a concrete dropout layer in front of `weight`.

    R = w ||W||^2 / (1 - p) + d * D * (p ln p + (1 - p) ln(1 - p)) with p = sigmoid(logit): the
    weights' prior, and the negative entropy of the masks.

    Parameters
    ----------
    logit : float or 0-d ndarray
        Within +-40.
    weight : ndarray of float
        The weights that follow the dropout.
    features : int
        D, features of an example (channels, for a convolution).
    weight_regularizer, dropout_regularizer : float
        w = l^2 / (tau N) and d = 2 / (tau N), with prior length scale l, precision tau of the
        observations and N examples.

    Returns
    -------
    value, dlogit : float
    dweight : ndarray, shape and dtype of weight

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    Y. Gal, J. Hron, A. Kendall: Concrete dropout. NeurIPS 2017, equations 3 and 4.
    """
    logit = gate.real(logit, "logit", -LOGIT_LIMIT, LOGIT_LIMIT)
    weight = gate.array(weight, "weight")
    w = gate.real(weight_regularizer, "weight_regularizer", 0.0)
    d = gate.real(dropout_regularizer, "dropout_regularizer", 0.0)
    d *= gate.count(features, "features", 0)
    p, q = sigmoid(logit), sigmoid(-logit)
    with np.errstate(over="ignore"):
        norm = w * float(np.sum(np.square(weight, dtype=np.float64))) / q
        dweight = weight * compute_type(weight.dtype)(2.0 * w / q)
        dweight = dweight.astype(weight.dtype)
    log_q = -log1p(exp(logit)) if logit < 0 else -logit - log1p(exp(-logit))
    value = norm + d * (p * (log_q + logit) + q * log_q)
    return value, norm * p + d * p * q * logit, dweight
