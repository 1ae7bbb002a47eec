"""Variational dropout: Gaussian noise whose variance is learned, and the sparse linear layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from fastdrop._core import NOISE_SCALE
from fastdrop.backends.cuda.arrays import cuda, fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import Layer
from fastdrop.base.restore import Restored
from fastdrop.ops.noise import Draw, NoiseContext, compute_type, forward, normals
from fastdrop.rng import RngLike, draw_call

__all__ = [
    "SparseVariationalContext",
    "SparseVariationalLinear",
    "VariationalContext",
    "VariationalDropout",
    "sparse_variational_kl",
    "sparse_variational_linear",
    "variational_dropout",
    "variational_kl",
]


@dataclass(frozen=True, slots=True, eq=False)
class VariationalContext(NoiseContext):
    """Context of `variational_dropout`: refers to x."""

    x: npt.NDArray
    log_alpha: npt.NDArray  # its own copy: an optimiser changes the other in place
    draw: Draw | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return tuple(self.x.shape)

    @property
    def p(self) -> npt.NDArray:
        """The rates whose dropout has the same variance: alpha / (1 + alpha); 0 in eval mode."""
        if self.draw is None:
            return np.zeros_like(self.log_alpha)
        alpha = np.exp(np.minimum(self.log_alpha, 0))
        return np.asarray(alpha / (1 + alpha))

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: x itself, or nothing in eval mode."""
        return self.x.nbytes if self.draw is not None else 0

    def check(self) -> None:
        NoiseContext.check(self)
        sigma = self.log_alpha if self.draw is None else self.draw.sigma
        gate.like(self.log_alpha, "log_alpha", sigma.shape)

    def backward(self, dy: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
        """(dx, dlog_alpha): dx like dy, dlog_alpha like log_alpha and 0 where that was clipped.

        Parameters
        ----------
        dy : array_like, shape and dtype of x
        """
        if on_device(dy):
            return cuda().backward_variational(self, dy)
        if on_device(self.x):
            return replace(self, x=fetched(self.x)).backward(dy)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.x.shape, self.x.dtype)
        if self.draw is None:
            return dy.copy(), np.zeros_like(self.log_alpha)
        group = None if self.log_alpha.shape == self.x.shape else max(self.log_alpha.size, 1)
        dx, dsigma = self.draw.backward(self.x, np.asarray(dy, order="C"), group)
        # sigma = exp(log_alpha / 2)
        dlog_alpha = np.where(self.log_alpha > 0, 0.0, 0.5 * self.draw.sigma * dsigma)
        return dx, np.asarray(dlog_alpha, self.log_alpha.dtype)


def variational_dropout(
    x: npt.ArrayLike,
    log_alpha: npt.ArrayLike,
    *,
    rng: RngLike = None,
    training: bool = True,
) -> tuple[npt.NDArray, VariationalContext]:
    """Multiply by 1 + sqrt(alpha) * noise, standard normal, with a learned alpha.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        Activations or weights. The context refers to it: do not change it before `backward`.
    log_alpha : array_like of float
        ln(alpha): 0-d for one of the layer, shape (x.shape[-1],) for one a neuron, x.shape for one
        an element (a weight, if x are weights). Above 0 it counts as 0, where the approximation of
        the divergence ends. In the host's memory, where x may be on a GPU; its gradient is there.
    rng, training
        As in `fastdrop.dropout`. Without training y is a copy of x.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : VariationalContext
        ``ctx.backward(dy)`` gives (dx, dlog_alpha).

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    D. P. Kingma, T. Salimans, M. Welling: Variational dropout and the local reparameterization
    trick. NeurIPS 2015, section 3.
    """
    there = on_device(x)
    x = x if there else np.asarray(gate.array(x), order="C")
    shape, dtype = cuda().described(x, None) if there else (x.shape, x.dtype)
    log_alpha = gate.array(log_alpha, "log_alpha").copy()
    if np.isnan(log_alpha).any():
        raise ValueError(f"log_alpha must not be NaN, got {log_alpha!r:.200}")
    if log_alpha.shape not in ((), shape[-1:], shape):
        raise ValueError(
            f"log_alpha must have shape (), {shape[-1:]} or {shape}, got {log_alpha.shape}"
        )
    if not training:
        return forward(None, x, None), VariationalContext(x, log_alpha, None)
    sigma = np.exp(np.minimum(log_alpha, 0) / 2).astype(compute_type(dtype))
    block = gate.block(shape, ())
    draw = Draw(NOISE_SCALE, *draw_call(rng), block, np.asarray(sigma))
    return forward(draw, x, None), VariationalContext(x, log_alpha, draw)


# c of KL = -(log_alpha / 2 + c1 alpha + c2 alpha^2 + c3 alpha^3) + constant: Kingma et al., eq. 14.
_CUBIC = 1.16145124, -1.50204118, 0.58629921


def variational_kl(log_alpha: npt.ArrayLike) -> tuple[float, npt.NDArray]:
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
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

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


class VariationalDropout(Layer):
    """`variational_dropout` as a layer; learns ``layer.log_alpha``.

    Parameters
    ----------
    shape : tuple of int
        Of log_alpha: () for one of the layer, (features,) for one a neuron, or x's shape.
    alpha : float
        To begin with, above 0 and at most 1: the variance, p / (1 - p) of the dropout like it.
    rng
        As in `Dropout`.
    """

    learned = ("log_alpha",)

    def __init__(
        self, shape: tuple[int, ...] = (), alpha: float = 0.5, *, rng: RngLike = None
    ) -> None:
        super().__init__(rng)
        alpha = gate.real(alpha, "alpha", 0.0, 1.0)
        if alpha == 0.0:
            raise ValueError("alpha must be above 0 to be learned, got 0.0")
        self.log_alpha = np.full(gate.shape(shape), np.log(alpha))

    def __call__(self, x: npt.ArrayLike) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = variational_dropout(x, self.log_alpha, rng=self.rng, training=self.training)
        return y

    def kl(self) -> tuple[float, npt.NDArray]:
        """`variational_kl` of the layer, and its gradient."""
        return variational_kl(self.log_alpha)

    def __repr__(self) -> str:
        return f"VariationalDropout(shape={self.log_alpha.shape})"


_TINY = 1e-8  # keeps the variance of an activation and log(weight^2) away from 0
_LOG_ALPHA_LIMIT = 8.0
_PRUNE = 3.0  # log_alpha from which on a weight is noise: p > 0.95
_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


@dataclass(frozen=True, slots=True, eq=False)
class SparseVariationalContext(Restored):
    """Context of `sparse_variational_linear`: refers to its arguments, draws the noise again."""

    x: npt.NDArray
    weight: npt.NDArray
    log_variance: npt.NDArray
    bias: npt.NDArray | None
    deviation: npt.NDArray | None
    seed: int | None
    call: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return self.x.shape

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass beyond the arguments, in bytes."""
        return 0 if self.deviation is None else self.deviation.nbytes

    def check(self) -> None:
        _fit(self.x, self.weight, self.log_variance, self.bias)
        if self.deviation is not None:
            shape = len(_rows(self.x)), self.weight.shape[1]
            gate.like(self.deviation, "deviation", shape, self.x.dtype)
            Restored.check(self)

    def backward(self, dy: npt.ArrayLike) -> tuple[npt.NDArray, ...]:
        """(dx, dweight, dlog_variance), and dbias if there is a bias.

        Parameters
        ----------
        dy : array_like, shape of y, dtype of x
        """
        dy = gate.array(dy, "dy")
        shape = (*self.x.shape[:-1], self.weight.shape[1])
        gate.like(dy, "dy", shape, self.x.dtype)
        x, g = _rows(self.x), _rows(dy)
        if self.deviation is None:
            kept = _kept(self.weight, self.log_variance)
            dx, dweight = g @ (kept * self.weight).T, kept * (x.T @ g)
            dlog_variance = np.zeros_like(self.log_variance)
        else:
            noise = normals(g.shape, self.seed, self.call).astype(x.dtype, copy=False)
            h = g * noise / (2 * self.deviation)
            variance = np.exp(self.log_variance)
            dx = g @ self.weight.T + 2 * x * (h @ variance.T)
            dweight = x.T @ g
            dlog_variance = variance * ((x * x).T @ h)
        grads = dx.reshape(self.x.shape), dweight, dlog_variance
        return grads if self.bias is None else (*grads, g.sum(axis=0))


def sparse_variational_linear(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    log_variance: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    rng: RngLike = None,
    training: bool = True,
) -> tuple[npt.NDArray, SparseVariationalContext]:
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

    Returns
    -------
    y : ndarray, shape (..., outputs)
    ctx : SparseVariationalContext
        ``ctx.backward(dy)`` gives (dx, dweight, dlog_variance), and dbias if there is a bias.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    D. Molchanov, A. Ashukha, D. Vetrov: Variational dropout sparsifies deep neural networks. ICML
    2017, equations 12 to 17.
    """
    x, weight = gate.array(x), gate.array(weight, "weight")
    log_variance = gate.array(log_variance, "log_variance")
    bias = None if bias is None else gate.array(bias, "bias")
    _fit(x, weight, log_variance, bias)
    rows = _rows(x)
    if training:
        seed, call = draw_call(rng)
        y = rows @ weight
        deviation = np.sqrt((rows * rows) @ np.exp(log_variance) + x.dtype.type(_TINY))
        y += deviation * normals(y.shape, seed, call)
    else:
        seed = call = deviation = None
        y = rows @ (_kept(weight, log_variance) * weight)
    if bias is not None:
        y += bias
    ctx = SparseVariationalContext(x, weight, log_variance, bias, deviation, seed, call)
    return y.reshape(*x.shape[:-1], weight.shape[1]), ctx


def _fit(
    x: npt.NDArray, weight: npt.NDArray, log_variance: npt.NDArray, bias: npt.NDArray | None
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


def _log_alpha(weight: npt.NDArray, log_variance: npt.NDArray) -> npt.NDArray:
    """Of the noise relative to the weight, clipped to +-8."""
    log_alpha = log_variance - np.log(weight * weight + weight.dtype.type(_TINY))
    return np.clip(log_alpha, -_LOG_ALPHA_LIMIT, _LOG_ALPHA_LIMIT)


def _kept(weight: npt.NDArray, log_variance: npt.NDArray) -> npt.NDArray[np.bool_]:
    """Which weights evaluation uses."""
    return _log_alpha(weight, log_variance) < _PRUNE


def _rows(x: npt.NDArray) -> npt.NDArray:
    """x of shape (..., features) as (examples, features)."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def sparse_variational_kl(
    weight: npt.ArrayLike, log_variance: npt.ArrayLike
) -> tuple[float, npt.NDArray, npt.NDArray]:
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
    |log_alpha| <= 8.
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


class SparseVariationalLinear(Layer):
    """`sparse_variational_linear` as a layer; learns weight, log_variance and bias.

    Parameters
    ----------
    inputs, outputs : int
    bias : bool
    dtype : float32 or float64
    rng
        As in `Dropout`; also draws the initial weights.

    Notes
    -----
    Weights begin normal with standard deviation sqrt(2 / inputs), log_variance at -10.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: RngLike = None,
    ) -> None:
        super().__init__(rng)
        inputs, outputs = gate.count(inputs, "inputs", 0), gate.count(outputs, "outputs", 0)
        gate.choice(np.dtype(dtype).name, ("float32", "float64"), "dtype")
        scale = np.sqrt(2.0 / max(inputs, 1))
        self.weight = (normals((inputs, outputs), *draw_call(self.rng)) * scale).astype(dtype)
        self.log_variance = np.full((inputs, outputs), -10.0, dtype)
        self.bias = np.zeros(outputs, dtype) if bias else None
        self.learned = ("weight", "log_variance", *(("bias",) if bias else ()))

    def __call__(self, x: npt.ArrayLike) -> npt.NDArray:
        """y of shape (..., outputs)."""
        y, self.ctx = sparse_variational_linear(
            x, self.weight, self.log_variance, self.bias, rng=self.rng, training=self.training
        )
        return y

    def kl(self) -> tuple[float, npt.NDArray, npt.NDArray]:
        """`sparse_variational_kl` of the layer, and its gradients."""
        return sparse_variational_kl(self.weight, self.log_variance)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights that evaluation leaves out."""
        pruned = ~_kept(self.weight, self.log_variance)
        return float(pruned.mean()) if pruned.size else 0.0

    def __repr__(self) -> str:
        inputs, outputs = self.weight.shape
        return f"SparseVariationalLinear({inputs}, {outputs}, bias={self.bias is not None})"
