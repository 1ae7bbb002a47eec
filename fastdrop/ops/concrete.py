"""Concrete dropout: a relaxed mask whose rate is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp, log, log1p

import numpy as np
import numpy.typing as npt

from fastdrop._core import CONCRETE
from fastdrop.backends.cuda.arrays import cuda, fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import Layer
from fastdrop.ops.dropout import Region
from fastdrop.ops.noise import Draw, NoiseContext, compute_type, forward
from fastdrop.rng import RngLike, draw_call

__all__ = ["ConcreteContext", "ConcreteDropout", "concrete_dropout", "concrete_regularizer"]

LOGIT_LIMIT = 40.0  # float32 can tell no more: beyond, exp of 87 is what it clips at
Real = float | np.floating | npt.NDArray[np.floating]


def sigmoid(logit: float) -> float:
    """1 / (1 + exp(-logit)), without overflow for |logit| <= LOGIT_LIMIT."""
    return 1.0 / (1.0 + exp(-logit))


@dataclass(frozen=True, slots=True, eq=False)
class ConcreteContext(NoiseContext):
    """Context of `concrete_dropout`: refers to x, which the rate's gradient needs."""

    ops = (CONCRETE,)
    x: npt.NDArray
    p: float
    draw: Draw | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return tuple(self.x.shape)

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: x itself, or nothing in eval mode."""
        return self.x.nbytes if self.draw is not None else 0

    def backward(self, dy: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray[np.float64]]:
        """(dx, dlogit): gradients with respect to x and, float64 and 0-d, the rate's logit.

        Parameters
        ----------
        dy : array_like, shape and dtype of x
        """
        if on_device(dy):
            return cuda().backward_concrete(self, dy)
        if on_device(self.x):
            return replace(self, x=fetched(self.x)).backward(dy)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.x.shape, self.x.dtype)
        if self.draw is None:
            return dy.copy(), np.zeros(())
        dx, dlogit = self.draw.backward(self.x, np.asarray(dy, order="C"), 1)
        return dx, np.asarray(dlogit)


def concrete_dropout(
    x: npt.ArrayLike,
    logit: Real,
    temperature: float = 0.1,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
) -> tuple[npt.NDArray, ConcreteContext]:
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
        Of the relaxation, above 0: a smaller one is nearer to a mask of zeros and ones.
    rng, training, shared_axes, region
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

    References
    ----------
    Y. Gal, J. Hron, A. Kendall: Concrete dropout. NeurIPS 2017, equation 5. The authors' code adds
    1e-7 inside the logarithms; here u is never 0 or 1.
    """
    there = on_device(x)
    x = x if there else np.asarray(gate.array(x), order="C")
    shape = cuda().described(x, None)[0] if there else x.shape
    logit = gate.real(logit, "logit", -LOGIT_LIMIT, LOGIT_LIMIT)
    temperature = gate.positive(temperature, "temperature")
    block = gate.block(shape, shared_axes, region)
    if not training:
        return forward(None, x, None), ConcreteContext(x, 0.0, None)
    p = sigmoid(logit)
    relaxed = logit, p, 1.0 / temperature, 1.0 + exp(logit)
    draw = Draw(CONCRETE, *draw_call(rng), block, relaxed=relaxed)
    return forward(draw, x, None), ConcreteContext(x, p, draw)


def concrete_regularizer(
    logit: Real,
    weight: npt.NDArray,
    features: int,
    *,
    weight_regularizer: float = 1e-6,
    dropout_regularizer: float = 1e-5,
) -> tuple[float, float, npt.NDArray]:
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
    norm = w * float(np.sum(np.square(weight, dtype=np.float64))) / q
    log_q = -log1p(exp(logit)) if logit < 0 else -logit - log1p(exp(-logit))
    value = norm + d * (p * (log_q + logit) + q * log_q)
    dweight = weight * compute_type(weight.dtype)(2.0 * w / q)
    return value, norm * p + d * p * q * logit, dweight.astype(weight.dtype)


class ConcreteDropout(Layer):
    """`concrete_dropout` as a layer; learns ``layer.logit``.

    Parameters
    ----------
    p : float
        Rate to begin with, strictly between 0 and 1; ``layer.p`` is the present one.
    temperature : float
    rng, shared_axes
        As in `Dropout`.
    weight_regularizer, dropout_regularizer : float
        As in `concrete_regularizer`.

    Examples
    --------
    >>> layer = fastdrop.layers.ConcreteDropout(0.1)
    >>> y = layer(x)
    >>> dx = layer.backward(dy)
    >>> value, dweight = layer.regularize(weight, features=x.shape[1])
    >>> layer.logit -= rate * layer.gradients["logit"]
    """

    learned = ("logit",)

    def __init__(
        self,
        p: float = 0.1,
        temperature: float = 0.1,
        *,
        rng: RngLike = None,
        shared_axes: int | Sequence[int] = (),
        weight_regularizer: float = 1e-6,
        dropout_regularizer: float = 1e-5,
    ) -> None:
        super().__init__(rng)
        p = gate.rate(p)
        if p in (0.0, 1.0):
            raise ValueError(f"p must be strictly between 0 and 1 to be learned, got {p}")
        self.logit = np.asarray(log(p) - log1p(-p))
        self.temperature = gate.positive(temperature, "temperature")
        self.shared_axes = shared_axes
        self.weight_regularizer = gate.real(weight_regularizer, "weight_regularizer", 0.0)
        self.dropout_regularizer = gate.real(dropout_regularizer, "dropout_regularizer", 0.0)

    @property
    def p(self) -> float:  # type: ignore[override]
        """The rate that has been learned so far."""
        return sigmoid(float(np.clip(self.logit, -LOGIT_LIMIT, LOGIT_LIMIT)))

    def __call__(self, x: npt.ArrayLike) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = concrete_dropout(
            x,
            self.logit,
            self.temperature,
            rng=self.rng,
            training=self.training,
            shared_axes=self.shared_axes,
        )
        return y

    def regularize(self, weight: npt.NDArray, features: int) -> tuple[float, npt.NDArray]:
        """Add the regularizer's gradient to that of the logit, after `backward`.

        Returns
        -------
        value : float
        dweight : ndarray
        """
        value, dlogit, dweight = concrete_regularizer(
            self.logit,
            weight,
            features,
            weight_regularizer=self.weight_regularizer,
            dropout_regularizer=self.dropout_regularizer,
        )
        if "logit" not in self.gradients:
            raise RuntimeError("regularize needs a backward call of the layer before it")
        self.gradients["logit"] = self.gradients["logit"] + dlogit
        return value, dweight

    def __repr__(self) -> str:
        return f"ConcreteDropout(p={self.p:.6g}, temperature={self.temperature})"
