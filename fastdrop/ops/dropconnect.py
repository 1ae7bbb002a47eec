"""DropConnect: a linear layer that drops weights instead of activations.

A mask for each example exists only a few thousand bits at a time, inside the kernel
(`src/drivers/connect.c`); forward and backward both draw it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import DROPOUT, Draw, Place
from fastdrop.backends import of
from fastdrop.backends.cpu import CPU, normals
from fastdrop.backends.interface import Backend
from fastdrop.base import gate
from fastdrop.ops import context
from fastdrop.rng import Rng, RngLike, uint64, with_draw

Array = npt.NDArray[Any]
Operands = tuple[Any, Any, Any]  # x, weight, masked bias or None
Gradients = tuple[Any, Any, Any]  # of those


class DropConnectContext(context.Context):
    """What one call of `dropconnect` leaves for its backward pass. Can be pickled.

    It refers to x, weight and bias: change them in place only after `backward`.

    Attributes
    ----------
    x, weight, bias : ndarray
        bias may be None.
    p : float
        The rate; 0 if ``training=False``.
    scale : float
        What kept weights are multiplied by: 1 / (1 - p), and 0 at p = 1.
    seed, call : int or None
        Name the draw; None if nothing was drawn (``training=False``).
    mask_bias, first
        As in `dropconnect`.
    nbytes : int
        Bytes held for the backward pass beside x, weight and bias: always 0.
    """

    __slots__ = ("bias", "first", "mask_bias", "weight", "x")
    bias: Any
    first: int
    mask_bias: bool
    weight: Any
    x: Any

    def backward(self, dy: npt.ArrayLike) -> tuple[Any, ...]:
        """Gradients with respect to x, weight and, if there is one, bias.

        Parameters
        ----------
        dy : array_like, shape and dtype of y

        Returns
        -------
        tuple of ndarray
            (dx, dweight), or (dx, dweight, dbias).
        """
        backend = of(dy)
        dy = backend.floats(dy, "dy")
        x, weight, bias = (backend.bring(a, dy) for a in (self.x, self.weight, self.bias))
        gate.like(dy, "dy", (*self.shape[:-1], weight.shape[1]), x.dtype)
        operands = x, weight, bias if self.mask_bias else None
        dx, dweight, dbias = self._gradients(backend, operands, dy)
        if bias is None:
            return dx, dweight
        return dx, dweight, dbias if self.mask_bias else backend.column_sums(dy)

    # What follows is the layer that drops nothing; each mode has its own. A bias that is not masked
    # is left out.

    def _forward(self, backend: Backend, operands: Operands) -> Any:
        return backend.linear(*operands, None, 0)

    def _gradients(self, backend: Backend, operands: Operands, dy: Any) -> Gradients:
        return backend.linear_gradients(*operands, dy, None, 0)

    def _check(self) -> None:
        backend = of(self.x)
        x, weight, _ = _operands(backend, self.x, self.weight, self.bias)
        _check_first(self.first, x, weight)
        if x.shape != self.shape or self.held is not None:
            raise ValueError(f"x must have shape {self.shape}, got {x.shape}")
        outputs = prod(x.shape[:-1]), weight.shape[1]
        if self.draw is not None and self.draw.place.of != outputs:
            raise ValueError(f"draw must be for shape {outputs}, got {self.draw.place.of}")

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, outputs={self.weight.shape[1]}, "
            f"p={self.p}, seed={self.seed}, call={self.call})"
        )


class Masked(DropConnectContext):
    """What the modes share that draw."""

    __slots__ = ()
    draw: Draw  # always there, as seed and call are
    seed: int
    call: int

    def _check(self) -> None:
        super()._check()
        if self.draw is None:
            raise ValueError("draw must be there, as this mode draws")


class NothingKept(Masked):
    """p = 1: zeros, whatever x is."""

    __slots__ = ()

    def _forward(self, backend: Backend, operands: Operands) -> Any:
        x, weight, _ = operands
        return backend.zeros_like(x, shape=(*x.shape[:-1], weight.shape[1]))

    def _gradients(self, backend: Backend, operands: Operands, dy: Any) -> Gradients:
        x, weight, bias = operands
        dbias = None if bias is None else backend.zeros_like(bias)
        return backend.zeros_like(x), backend.zeros_like(weight), dbias


class PerExample(Masked):
    """A mask for each example."""

    __slots__ = ()

    def _forward(self, backend: Backend, operands: Operands) -> Any:
        return backend.linear(*operands, self.draw, self.first)

    def _gradients(self, backend: Backend, operands: Operands, dy: Any) -> Gradients:
        return backend.linear_gradients(*operands, dy, self.draw, self.first)


class PerBatch(Masked):
    """One mask for all examples: that of the first."""

    __slots__ = ()

    def _forward(self, backend: Backend, operands: Operands) -> Any:
        return backend.linear(*self._kept_operands(backend, operands), None, 0)

    def _gradients(self, backend: Backend, operands: Operands, dy: Any) -> Gradients:
        kept = self._kept_operands(backend, operands)
        dx, *rest = backend.linear_gradients(*kept, dy, None, 0)
        start, gradients = 0, []
        for gradient, parameter in zip(rest, operands[1:], strict=True):
            if parameter is not None:
                gradient = self._kept(backend, backend.bring(gradient, dy), start)
                start += parameter.size
            gradients.append(gradient)
        return dx, *gradients

    def _kept_operands(self, backend: Backend, operands: Operands) -> Operands:
        """The bits of the bias are behind those of the weights."""
        x, weight, bias = operands
        kept = backend.bring(self._kept(backend, weight, 0), x)
        if bias is not None:
            bias = backend.bring(self._kept(backend, bias, weight.size), x)
        return x, kept, bias

    def _kept(self, backend: Backend, parameter: Any, start: int) -> Any:
        """`dropout` of the weights, of the bias, or of the gradient of one of them."""
        place = Place(parameter.shape)
        if parameter.ndim == 1:
            place = Place(parameter.shape, (), ((start,), (start + parameter.size,)))
        draw = Draw(self.seed, self.call, self.p, place)
        constants = self.scale, 0.0, 0.0
        return backend.forward(DROPOUT, parameter, draw, constants)[0]


class Gaussian(Masked):
    """Normal variates with the mean and the variance of what masks would make."""

    __slots__ = ()

    def _check(self) -> None:
        super()._check()
        if self.p == 1.0:
            raise ValueError("p must be below 1 in this mode; at 1 nothing is kept")

    def _forward(self, backend: Backend, operands: Operands) -> Any:
        x, weight, bias = operands
        mean, sigma = _moments(_rows(x), weight, bias, self.p)
        y = mean + sigma * self._noise(mean)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    def _gradients(self, backend: Backend, operands: Operands, dy: Any) -> Gradients:
        x, weight, bias = operands
        shape, x, dy = x.shape, _rows(x), _rows(dy)
        mean, sigma = _moments(x, weight, bias, self.p)
        h = np.zeros_like(mean)  # the variance's gradient; where that is 0, none
        np.divide(dy * self._noise(mean), 2.0 * sigma, out=h, where=sigma > 0.0)
        h *= 2.0 * self.p / (1.0 - self.p)
        dx = dy @ weight.T + x * (h @ (weight * weight).T)
        dweight = x.T @ dy + weight * ((x * x).T @ h)
        dbias = None if bias is None else dy.sum(axis=0) + bias * h.sum(axis=0)
        return dx.reshape(shape), dweight, dbias

    def _noise(self, mean: Array) -> Array:
        whole = self.first + len(mean), mean.shape[1]
        place = Place(mean.shape, (), ((self.first, 0), whole))
        noise = normals(Draw(self.seed, self.call, self.p, place))
        return noise.astype(mean.dtype, copy=False)


MODES = {"example": PerExample, "batch": PerBatch, "gaussian": Gaussian}


def dropconnect(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    mode: str = "example",
    mask_bias: bool = True,
    first: int = 0,
) -> tuple[Array, DropConnectContext]:
    """A linear layer each of whose weights is dropped with chance p.

    Example i gets ``y[i] = (x[i] @ (mask_i * weight) + bias_mask_i * bias) / (1 - p)``.

    Parameters
    ----------
    x : array_like of float32 or float64, shape (..., inputs)
        The leading axes count examples, in C order.
    weight : array_like of x's dtype, shape (inputs, outputs)
    bias : array_like of x's dtype, shape (outputs,), optional
    p : float
        Drop rate in [0, 1], exact to 2**-32.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Names the draw; see `fastdrop.Rng`.
    training : bool
        If False, y = x @ weight + bias, and no random call is taken.
    mode : {"example", "batch", "gaussian"}
        A mask for each example; one for all of them; or, without masks, normal variates that have
        the mean and the variance that a mask for each example gives y (with 0 where that is 0).
    mask_bias : bool
        If False, no bias is dropped or scaled: it is added to the rest.
    first : int
        Number of x's first example, where x is a shard of a larger batch: it gets those masks.
        Has no effect in mode "batch".

    Returns
    -------
    y : ndarray of x's dtype, shape (..., outputs)
    ctx : DropConnectContext
        ``ctx.backward(dy)`` gives (dx, dweight), or (dx, dweight, dbias).

    Raises
    ------
    TypeError
        dtypes other than float32 and float64, or not the same; a rate that is not a real number.
    ValueError
        Shapes that do not fit, rate outside [0, 1] or NaN, unknown mode, first out of range.
    RuntimeError
        x is on a GPU, where no kernel can run here.

    Notes
    -----
    A mask lists the weights in C order, then the bias if it is masked; the masks of examples follow
    each other: ``keep_mask((batch, inputs + 1, outputs), p, rng=Rng(ctx.seed, ctx.call))`` draws
    them, the bias as last input (without it if it is not masked). They are never stored: the
    temporaries are smaller than x, weight and y together.

    In mode "example" every sum has one order, so y and the gradients are the same bits for any
    instruction set and number of threads, and y[i] for any batch around it. A dropped weight is
    gone, even an infinite one; but as in any linear layer, an infinite x makes y NaN where it meets
    a 0. The other modes leave sums to BLAS; on a GPU they have one order, too, and mode "gaussian"
    has no kernels.

    References
    ----------
    L. Wan, M. Zeiler, S. Zhang, Y. LeCun, R. Fergus: Regularization of neural networks using
    DropConnect. ICML 2013. Its mask rate is 1 - p, and it does not divide by that in training.

    Examples
    --------
    >>> y, ctx = fastdrop.dropconnect(x, weight, bias, 0.5, rng=rng)
    >>> dx, dweight, dbias = ctx.backward(dy)
    """
    gate.choice(mode, tuple(MODES), "mode")
    p, first = gate.rate(p), uint64(first, "first")
    training, mask_bias = gate.flag(training, "training"), gate.flag(mask_bias, "mask_bias")
    kind: type[DropConnectContext] = MODES[mode]
    if not training or p == 0.0:
        kind = DropConnectContext
    elif p == 1.0:
        kind = NothingKept
    backend = CPU if kind is Gaussian else of(x)
    x, weight, bias = _operands(backend, x, weight, bias)
    _check_first(first, x, weight)
    outputs = prod(x.shape[:-1]), weight.shape[1]
    held = (None if a is None else backend.held(a) for a in (x, weight, bias))
    kept = dict(zip(("x", "weight", "bias"), held, strict=True), mask_bias=mask_bias)
    scale = _core.scale_of(p if training else 0.0)

    def of_draw(draw: Draw | None) -> tuple[Array, DropConnectContext]:
        ctx = kind.made(x.shape, draw, scale, None, first=first, **kept)
        if bias is None or mask_bias:
            return ctx._forward(backend, (x, weight, bias)), ctx
        return backend.add_bias(ctx._forward(backend, (x, weight, None)), bias), ctx

    return with_draw(rng, p, Place(outputs), of_draw, of=(x, weight)) if training else of_draw(None)


def dropconnect_inference(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    p: float,
    activation: Callable[[Array], Array],
    samples: int = 1000,
    *,
    rng: RngLike = None,
    mask_bias: bool = True,
) -> Array:
    """The paper's inference: the mean of activation(u) over normal variates u that have the mean
    and the variance of a DropConnect layer's output.

    Parameters
    ----------
    x, weight, bias, p, mask_bias
        As in `dropconnect`.
    activation : callable
        Takes an array of shape (..., outputs), which it may overwrite, and returns an array.
    samples : int
        How many variates each mean is taken over; one of them is held at a time.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        One call is taken for all samples.

    Returns
    -------
    ndarray
        What the activation returns, averaged.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    L. Wan et al.: Regularization of neural networks using DropConnect. ICML 2013, section 3.2 and
    algorithm 2.
    """
    x, weight, bias = _operands(CPU, x, weight, bias)
    p, samples = gate.rate(p), gate.count(samples, "samples")
    mask_bias = gate.flag(mask_bias, "mask_bias")
    gate.function(activation, "activation")
    examples = _rows(x)
    if p < 1.0:
        mean, sigma = _moments(examples, weight, bias if mask_bias else None, p)
    else:
        mean = sigma = np.zeros((len(examples), weight.shape[1]), x.dtype)
    if bias is not None and not mask_bias:
        mean = mean + bias
    shape = *x.shape[:-1], weight.shape[1]

    def of_draw(draw: Draw) -> Array:
        total: Any = 0.0
        for own in Rng(draw.seed, draw.call).spawn(samples):
            u = normals(Draw(own.seed, 0, 0.0, Place(mean.shape)))
            total += activation((mean + sigma * u.astype(mean.dtype, copy=False)).reshape(shape))
        return total / samples

    return with_draw(rng, 0.0, Place(()), of_draw)


def _operands(
    backend: Backend, x: npt.ArrayLike, weight: npt.ArrayLike, bias: npt.ArrayLike | None
) -> tuple[Any, Any, Any]:
    """x, weight and bias, checked."""
    x, weight = backend.floats(x, "x"), backend.floats(weight, "weight")
    if not x.ndim:
        raise ValueError("x must have at least one axis, that of the inputs, got 0-d")
    if weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape ({x.shape[-1]}, outputs) for x of shape {x.shape}, "
            f"got {weight.shape}"
        )
    gate.like(weight, "weight", weight.shape, x.dtype)
    if bias is not None:
        bias = backend.floats(bias, "bias")
        gate.like(bias, "bias", weight.shape[1:], x.dtype)
    return x, weight, bias


def _check_first(first: int, x: Any, weight: Any) -> None:
    if (first + prod(x.shape[:-1])) * (weight.size + weight.shape[1]) > gate.MAX_INDEX:
        raise ValueError(f"first must leave room for masks of 2**62 bits in all, got {first}")


def _rows(x: Array) -> Array:
    """A row for each example."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _affine(x: Array, weight: Array, bias: Array | None) -> Array:
    y = x @ weight
    if bias is not None:
        y += bias
    return y


def _moments(x: Array, weight: Array, bias: Array | None, p: float) -> tuple[Array, Array]:
    """Mean and standard deviation of y over the masks."""
    variance = _affine(x * x, weight * weight, None if bias is None else bias * bias)
    variance *= p / (1.0 - p)
    return _affine(x, weight, bias), np.sqrt(variance, out=variance)
