"""Variational dropout: Gaussian noise whose variance is learned, and the sparse linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop._core import NOISE_SCALE, Draw
from fastdrop.backends import nbytes, of
from fastdrop.backends.cpu import normals
from fastdrop.base import gate, watch
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.rng import RngLike, with_draw


class VariationalContext(context.Context):
    """Context of `variational_dropout`: refers to x.

    Attributes
    ----------
    x : ndarray
    log_alpha : ndarray
        A copy of its own, as an optimiser changes the other in place.
    sigma : ndarray or None
        sqrt(alpha), in x's compute type; None in evaluation.
    """

    __slots__ = ("log_alpha", "sigma", "x")
    log_alpha: npt.NDArray[Any]
    sigma: npt.NDArray[Any] | None
    x: Any

    @property
    def p(self) -> Any:
        """The rates whose dropout has the same variance: alpha / (1 + alpha); 0 in evaluation."""
        if self.draw is None:
            return np.zeros_like(self.log_alpha)
        alpha = np.exp(np.minimum(self.log_alpha, 0))
        return np.asarray(alpha / (1 + alpha))

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: x itself, or nothing in evaluation."""
        return nbytes(self.x) if self.draw is not None else 0

    def backward(self, dy: npt.ArrayLike) -> Any:
        """(dx, dlog_alpha): dx like dy, dlog_alpha like log_alpha and 0 where that was clipped.

        Parameters
        ----------
        dy : array_like, shape and dtype of x
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        x, log_alpha = backend.bring(self.x, dy), self.log_alpha
        gate.like(dy, "dy", x.shape, x.dtype)
        if self.draw is None or self.sigma is None:
            zeros = backend.zeros_like(dy, log_alpha.dtype.name, log_alpha.shape)
            return backend.copy(dy), zeros
        group = None if log_alpha.shape == self.shape else max(log_alpha.size, 1)
        draw, sigma = self.draw, self.sigma
        dx, dsigma = backend.noise_gradients(NOISE_SCALE, x, dy, draw, sigma, group)
        weights = np.where(log_alpha > 0, -1.0, 0.5 * sigma)  # as sigma = exp(log_alpha / 2)
        return dx, backend.chain(weights, dsigma, log_alpha.dtype)

    def _check(self) -> None:
        self._check_place()
        if tuple(self.x.shape) != self.shape or self.held is not None:
            raise ValueError(f"x must have shape {self.shape}, got {self.x.shape}")
        if (self.draw is None) != (self.sigma is None):
            raise ValueError("sigma must be there if there is a draw")
        if self.log_alpha.shape not in ((), self.shape[-1:], self.shape):
            raise ValueError(f"log_alpha must have shape {self.shape} or its end")
        if self.sigma is not None:
            gate.like(self.sigma, "sigma", self.log_alpha.shape)


def variational_dropout(
    x: npt.ArrayLike,
    log_alpha: npt.ArrayLike,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], VariationalContext]:
    """Multiply by 1 + sqrt(alpha) * noise, standard normal, with a learned alpha.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Activations or weights. The context refers to it: do not change it before `backward`.
    log_alpha : array_like of float
        ln(alpha): 0-d for one of the layer, shape (x.shape[-1],) for one a neuron, x.shape for one
        an element (a weight, if x are weights). Above 0 it counts as 0, where the approximation of
        the divergence ends. In the host's memory, where x may be on a GPU; its gradient is there.
        A shard has those of its own neurons or elements.
    rng, training, shared_axes, region, rows
        As in `fastdrop.dropout`. Without training y is a copy of x.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : VariationalContext
        ``ctx.backward(dy)`` gives (dx, dlog_alpha); of a shard, dlog_alpha is its part of the sum.

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
    D. P. Kingma, T. Salimans, M. Welling: Variational dropout and the local reparameterization
    trick. NeurIPS 2015, section 3.
    """
    backend = of(x)
    x = backend.array(x)
    log_alpha = gate.array(log_alpha, "log_alpha").copy()
    if np.isnan(log_alpha).any():
        raise ValueError(f"log_alpha must not be NaN, got {gate.shown(log_alpha)}")
    if log_alpha.shape not in ((), x.shape[-1:], x.shape):
        raise ValueError(
            f"log_alpha must have shape (), {x.shape[-1:]} or {x.shape}, got {log_alpha.shape}"
        )
    place = gate.place(x.shape, shared_axes, region, rows)
    held = {"x": backend.held(x), "log_alpha": log_alpha}
    if not gate.flag(training, "training"):
        ctx = VariationalContext.made(x.shape, None, 1.0, None, sigma=None, **held)
        return backend.copy(x), ctx
    sigma = np.asarray(np.exp(np.minimum(log_alpha, 0) / 2), compute_type(x.dtype))

    def of_draw(draw: Draw) -> tuple[Any, VariationalContext]:
        y = backend.noise(NOISE_SCALE, x, draw, sigma)
        return y, VariationalContext.made(x.shape, draw, 1.0, None, sigma=sigma, **held)

    return with_draw(rng, 0.0, place, of_draw, of=x)


# c of KL = -(log_alpha / 2 + c1 alpha + c2 alpha^2 + c3 alpha^3) + constant: Kingma et al., eq. 14.
_CUBIC = 1.16145124, -1.50204118, 0.58629921


def variational_kl(log_alpha: npt.ArrayLike) -> tuple[float, npt.NDArray[Any]]:
    """Divergence of the posterior of `variational_dropout` from the log-uniform prior, summed.

    Parameters
    ----------
    log_alpha : array_like of float
        Above 0 it counts as 0, and its gradient is 0. Multiply by how many weights share one.

    Returns
    -------
    kl : float
        Up to a constant.
    dlog_alpha : ndarray like log_alpha

    Raises
    ------
    TypeError
        Kind or dtype of log_alpha.

    References
    ----------
    D. P. Kingma, T. Salimans, M. Welling: Variational dropout and the local reparameterization
    trick. NeurIPS 2015, equation 14.
    """
    log_alpha = gate.array(log_alpha, "log_alpha")
    clipped = np.minimum(log_alpha.astype(np.float64), 0)
    alpha = np.exp(clipped)
    c1, c2, c3 = _CUBIC
    kl = -np.sum(0.5 * clipped + alpha * (c1 + alpha * (c2 + alpha * c3)))
    gradient = -(0.5 + alpha * (c1 + alpha * (2 * c2 + alpha * 3 * c3)))
    return float(kl), np.asarray(np.where(log_alpha > 0, 0, gradient), log_alpha.dtype)


_TINY = 1e-8  # keeps the variance of an activation and log(weight^2) away from 0
_LOG_ALPHA_LIMIT = 8.0
_PRUNE = 3.0  # log_alpha from which on a weight is noise: p > 0.95
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


class SparseVariationalContext(context.Context):
    """Context of `sparse_variational_linear`: refers to its arguments, draws the noise again.

    Attributes
    ----------
    held : ndarray or None
        Standard deviation of each activation; None in evaluation.
    x, weight, log_variance, bias : ndarray
        bias may be None.
    """

    __slots__ = ("bias", "log_variance", "weight", "x")
    bias: npt.NDArray[Any] | None
    log_variance: npt.NDArray[Any]
    weight: npt.NDArray[Any]
    x: npt.NDArray[Any]

    def _check(self) -> None:
        _fit(self.x, self.weight, self.log_variance, self.bias)
        gate.like(self.x, "x", self.shape)
        if (self.draw is None) != (self.held is None):
            raise ValueError("the deviation must be there if there is a draw")
        if self.draw is not None:
            outputs = self.weight.shape[1]
            shape = len(_rows(self.x)), outputs
            if type(self.held) is not np.ndarray:
                raise TypeError(f"deviation must be an array, got {gate.shown(self.held)}")
            gate.like(self.held, "deviation", shape, self.x.dtype)
            whole = *self.shape[:-1], outputs
            if self.draw.place.of not in (whole, shape):  # earlier pickles count examples
                raise ValueError(f"draw must be for shape {whole}, got {self.draw.place.of}")

    def backward(self, dy: npt.ArrayLike) -> tuple[npt.NDArray[Any], ...]:
        """(dx, dweight, dlog_variance), and dbias if there is a bias.

        Parameters
        ----------
        dy : array_like, shape of y, dtype of x
        """
        dy = gate.array(dy, "dy")
        shape = (*self.shape[:-1], self.weight.shape[1])
        gate.like(dy, "dy", shape, self.x.dtype)
        x, g = _rows(self.x), _rows(dy)
        if self.draw is None:
            kept = kept_weights(self.weight, self.log_variance)
            dx, dweight = g @ (kept * self.weight).T, kept * (x.T @ g)
            dlog_variance = np.zeros_like(self.log_variance)
        else:
            watch.drawn_again(self.draw)
            noise = _rows(normals(self.draw)).astype(x.dtype, copy=False)
            h = g * noise / (2 * self.held)
            variance = np.exp(self.log_variance)
            dx = g @ self.weight.T + 2 * x * (h @ variance.T)
            dweight = x.T @ g
            dlog_variance = variance * ((x * x).T @ h)
        grads = dx.reshape(self.shape), dweight, dlog_variance
        return grads if self.bias is None else (*grads, g.sum(axis=0))


def sparse_variational_linear(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    log_variance: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], SparseVariationalContext]:
    """Linear layer with a learned variance a weight, sampled by its activations.

    y = x @ weight + sqrt(x^2 @ exp(log_variance) + 1e-8) * noise + bias, standard normal noise.
    Without training, y = x @ weight + bias with those weights left out whose
    log_alpha = log_variance - ln(weight^2) is 3 or more (p > 0.95).

    Parameters
    ----------
    x : array_like of float32 or float64, shape (..., inputs)
        The context refers to it: do not change it before the backward pass.
    weight, log_variance : array_like of x's dtype, shape (inputs, outputs)
    bias : array_like of x's dtype, shape (outputs,), optional
    rng, training
        As in `fastdrop.dropout`.
    region, rows
        As in `fastdrop.dropout`, but of y: a region's tuples have the axes (..., outputs). A shard
        of the outputs has their weights; inputs are whole.

    Returns
    -------
    y : ndarray, shape (..., outputs)
    ctx : SparseVariationalContext
        ``ctx.backward(dy)`` gives (dx, dweight, dlog_variance), and dbias if there is a bias. Of a
        shard of the examples, all of them but dx are its part of a sum; of a shard of the outputs,
        dx alone is.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    Notes
    -----
    The noise of a shard has the bits of the whole's. Sums are left to BLAS, which may add those of
    a shard in another order: y agrees to rounding.

    References
    ----------
    D. Molchanov, A. Ashukha, D. Vetrov: Variational dropout sparsifies deep neural networks. ICML
    2017, equations 12 to 17.
    """
    x, weight = gate.array(x), gate.array(weight, "weight")
    log_variance = gate.array(log_variance, "log_variance")
    bias = None if bias is None else gate.array(bias, "bias")
    _fit(x, weight, log_variance, bias)
    examples, shape = _rows(x), (*x.shape[:-1], weight.shape[1])
    place, training = gate.place(shape, (), region, rows), gate.flag(training, "training")
    operands = {"x": x, "weight": weight, "log_variance": log_variance, "bias": bias}

    def of_draw(draw: Draw | None) -> tuple[npt.NDArray[Any], SparseVariationalContext]:
        if draw is None:
            deviation = None
            y = examples @ (kept_weights(weight, log_variance) * weight)
        else:
            squares = (examples * examples) @ np.exp(log_variance)
            deviation = np.sqrt(squares + x.dtype.type(_TINY))
            y = examples @ weight
            y += deviation * _rows(normals(draw))
        if bias is not None:
            y += bias
        ctx = SparseVariationalContext.made(x.shape, draw, 1.0, deviation, **operands)
        return y.reshape(shape), ctx

    return with_draw(rng, 0.0, place, of_draw, of=x) if training else of_draw(None)


def _fit(
    x: npt.NDArray[Any],
    weight: npt.NDArray[Any],
    log_variance: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
) -> None:
    """Checks that these are operands of one linear layer."""
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x must be float32 or float64, got {x.dtype}; convert it with .astype")
    if weight.ndim != 2 or x.ndim == 0 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape (x.shape[-1], outputs), got {weight.shape} for x of shape "
            f"{x.shape}"
        )
    gate.like(weight, "weight", weight.shape, x.dtype)
    gate.like(log_variance, "log_variance", weight.shape, x.dtype)
    if bias is not None:
        gate.like(bias, "bias", weight.shape[1:], x.dtype)


def _log_alpha(weight: npt.NDArray[Any], log_variance: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of the noise relative to the weight, clipped to +-8."""
    log_alpha = log_variance - np.log(weight * weight + weight.dtype.type(_TINY))
    return np.clip(log_alpha, -_LOG_ALPHA_LIMIT, _LOG_ALPHA_LIMIT)


def log_variance_range(weight: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Where log_alpha is within +-8 and the divergence has a gradient: least and largest values."""
    middle = np.log(weight * weight + weight.dtype.type(_TINY))
    return middle - _LOG_ALPHA_LIMIT, middle + _LOG_ALPHA_LIMIT


def kept_weights(weight: npt.NDArray[Any], log_variance: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which weights evaluation uses."""
    return _log_alpha(weight, log_variance) < _PRUNE


def _rows(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """x of shape (..., features) as (examples, features)."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def sparse_variational_kl(
    weight: npt.ArrayLike, log_variance: npt.ArrayLike
) -> tuple[float, npt.NDArray[Any], npt.NDArray[Any]]:
    """Divergence of `sparse_variational_linear`'s posterior from the log-uniform prior, summed.

    Parameters
    ----------
    weight, log_variance : array_like of float, one shape

    Returns
    -------
    kl : float
        To be weighted against the mean loss by 1 / (training examples), often warmed up from 0.
    dweight, dlog_variance : ndarray
        0 where log_alpha is clipped to +-8.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    D. Molchanov, A. Ashukha, D. Vetrov: Variational dropout sparsifies deep neural networks. ICML
    2017, equation 14. The approximation is within 0.0094 of the exact divergence for
    abs(log_alpha) <= 8.
    """
    weight, log_variance = gate.array(weight, "weight"), gate.array(log_variance, "log_variance")
    gate.like(log_variance, "log_variance", weight.shape, weight.dtype)
    kl, size = 0.0, 16384  # at a time, so that what is between stays in the cache
    dweight, dlog_variance = (
        np.empty(weight.size, weight.dtype),
        np.empty(weight.size, weight.dtype),
    )
    kind = compute_type(weight.dtype)
    for i in range(0, weight.size, size):
        part = slice(i, i + size)
        w = weight.reshape(-1)[part].astype(kind, copy=False)
        v = log_variance.reshape(-1)[part].astype(kind, copy=False)
        square = w * w + kind(_TINY)
        free = v - np.log(square)
        log_alpha = np.clip(free, -_LOG_ALPHA_LIMIT, _LOG_ALPHA_LIMIT)
        u = 1 / (1 + np.exp(-_K3 * log_alpha - _K2))
        odds = np.exp(-log_alpha)
        kl += np.sum(_K1 - _K1 * u + 0.5 * np.log(1 + odds), dtype=np.float64)
        gradient = _K1 * _K3 * u * (u - 1) - 0.5 * odds / (1 + odds)
        gradient *= free == log_alpha
        dlog_variance[part] = gradient
        dweight[part] = -2 * gradient * w / square
    return float(kl), dweight.reshape(weight.shape), dlog_variance.reshape(weight.shape)
