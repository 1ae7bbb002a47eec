"""DropConnect: a linear layer that drops weights instead of activations.

A mask for each example exists only a few thousand bits at a time, inside the kernel
(`src/drivers/connect.c`); forward and backward both draw it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import DROPOUT
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import cuda, fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import Layer, Rate
from fastdrop.base.place import Block
from fastdrop.base.restore import Restored
from fastdrop.ops.noise import normals
from fastdrop.rng import Rng, RngLike, draw_call, uint64

__all__ = ["DropConnect", "DropConnectContext", "dropconnect", "dropconnect_inference"]

Array = npt.NDArray
Gradients = tuple[Array, Array, Array | None]  # of x, weight, masked bias


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DropConnectContext(Restored):
    """What one call of `dropconnect` leaves for its backward pass. Can be pickled.

    It refers to x, weight and bias: change them in place only after `backward`.

    Attributes
    ----------
    x, weight, bias : ndarray
        bias may be None.
    p : float
        The rate; 0 if ``training=False``.
    seed, call : int or None
        Name the draw; None if nothing was drawn (``training=False``).
    mask_bias, first
        As in `dropconnect`.
    """

    x: Array
    weight: Array
    bias: Array | None
    p: float
    seed: int | None
    call: int | None
    mask_bias: bool
    first: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return tuple(self.x.shape)

    @property
    def scale(self) -> float:
        """What kept weights are multiplied by: 1 / (1 - p), and 0 at p = 1."""
        return _core.scale_of(self.p)

    @property
    def nbytes(self) -> int:
        """Bytes held for the backward pass beside x, weight and bias: always 0."""
        return 0

    def check(self) -> None:
        Restored.check(self)
        _operands(self.x, self.weight, self.bias, cuda().floats if on_device(self.x) else _floats)

    def backward(self, dy: npt.ArrayLike) -> tuple[Array, ...]:
        """Gradients with respect to x, weight and, if there is one, bias.

        Parameters
        ----------
        dy : array_like, shape and dtype of y

        Returns
        -------
        tuple of ndarray
            (dx, dweight), or (dx, dweight, dbias).
        """
        if on_device(dy):
            return cuda().backward_connect(self, dy)
        if on_device(self.x):
            here = {name: fetched(getattr(self, name)) for name in ("x", "weight", "bias")}
            return replace(self, **here).backward(dy)
        dy = _floats(dy, "dy")
        gate.like(dy, "dy", (*self.shape[:-1], self.weight.shape[1]), self.x.dtype)
        dy = _rows(dy)
        dx, dweight, dbias = self._gradients(_rows(self.x), dy)
        dx = dx.reshape(self.shape)
        if self.bias is None:
            return dx, dweight
        return dx, dweight, dbias if self.mask_bias else dy.sum(axis=0)

    @property
    def _masked_bias(self) -> Array | None:
        return self.bias if self.mask_bias else None

    # What follows is the layer of which nothing is dropped; each mode has its own. x and dy have a
    # row for each example, and a bias that is not masked is left out.

    def _forward(self, x: Array) -> Array:
        return _affine(x, self.weight, self._masked_bias)

    def _gradients(self, x: Array, dy: Array) -> Gradients:
        return dy @ self.weight.T, x.T @ dy, dy.sum(axis=0)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, outputs={self.weight.shape[1]}, "
            f"p={self.p}, seed={self.seed}, call={self.call})"
        )


class NothingKept(DropConnectContext):
    """p = 1: zeros, whatever x is."""

    __slots__ = ()

    def _forward(self, x: Array) -> Array:
        return np.zeros((len(x), self.weight.shape[1]), x.dtype)

    def _gradients(self, x: Array, dy: Array) -> Gradients:
        return np.zeros_like(x), np.zeros_like(self.weight), np.zeros(dy.shape[1], dy.dtype)


class PerExample(DropConnectContext):
    """A mask for each example."""

    __slots__ = ()

    def _forward(self, x: Array) -> Array:
        y = np.empty((len(x), self.weight.shape[1]), x.dtype)
        draw = self.seed, self.call, self.p, self.first
        cpu.connect(x, self.weight, self._masked_bias, y, *draw)
        y *= self.scale
        return y

    def _gradients(self, x: Array, dy: Array) -> Gradients:
        bias = self._masked_bias
        dx, dweight = np.zeros_like(x), np.empty_like(self.weight)
        dbias = None if bias is None else np.empty_like(bias)
        draw = self.seed, self.call, self.p, self.first
        cpu.connect_back(x, self.weight, bias, dy, dx, dweight, dbias, *draw)
        for gradient in (dx, dweight, dbias):
            if gradient is not None:
                gradient *= self.scale
        return dx, dweight, dbias


class PerBatch(DropConnectContext):
    """One mask for all examples: that of the first."""

    __slots__ = ()

    def _forward(self, x: Array) -> Array:
        return _affine(x, self._kept(self.weight), self._kept(self._masked_bias))

    def _gradients(self, x: Array, dy: Array) -> Gradients:
        dbias = None if self._masked_bias is None else self._kept(dy.sum(axis=0))
        return dy @ self._kept(self.weight).T, self._kept(x.T @ dy), dbias

    def _kept(self, parameter: Array | None) -> Array | None:
        """`dropout` of the weights, of the bias, or of the gradient of one of them."""
        if parameter is None:
            return None
        block = None
        if parameter.ndim == 1:  # the bits of the bias are behind those of the weights
            start = self.weight.size
            block = Block(parameter.shape, (), ((start,), (start + parameter.size,)))
        parameter = np.ascontiguousarray(parameter)
        kept = np.empty_like(parameter)
        draw = self.seed, self.call, self.p, block
        cpu.forward(DROPOUT, parameter, None, None, kept, *draw, False, self.scale)
        return kept


class Gaussian(DropConnectContext):
    """Normal variates with the mean and the variance of what masks would make."""

    __slots__ = ()

    def _forward(self, x: Array) -> Array:
        mean, sigma = _moments(x, self.weight, self._masked_bias, self.p)
        return mean + sigma * self._noise(mean)

    def _gradients(self, x: Array, dy: Array) -> Gradients:
        weight, bias = self.weight, self._masked_bias
        mean, sigma = _moments(x, weight, bias, self.p)
        h = np.zeros_like(mean)  # the variance's gradient; where that is 0, none
        np.divide(dy * self._noise(mean), 2.0 * sigma, out=h, where=sigma > 0.0)
        h *= 2.0 * self.p / (1.0 - self.p)
        dx = dy @ weight.T + x * (h @ (weight * weight).T)
        dweight = x.T @ dy + weight * ((x * x).T @ h)
        dbias = None if bias is None else dy.sum(axis=0) + bias * h.sum(axis=0)
        return dx, dweight, dbias

    def _noise(self, mean: Array) -> Array:
        return normals(mean.shape, self.seed, self.call, self.first).astype(mean.dtype, copy=False)


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
    there = on_device(x)
    x, weight, bias = _operands(x, weight, bias, cuda().floats if there else _floats)
    p, first = gate.rate(p), uint64(first, "first")
    if (first + prod(x.shape[:-1])) * (weight.size + weight.shape[1]) > gate.MAX_INDEX:
        raise ValueError(f"first must leave room for masks of 2**62 bits in all, got {first}")
    kind = {0.0: DropConnectContext, 1.0: NothingKept}.get(p, MODES[mode])
    if there:
        x, weight, bias = (a and a.array for a in (x, weight, bias))
        if training and kind is Gaussian:
            raise TypeError(
                'x is a CUDA array, for which mode "gaussian" has no kernels; copy it to the host'
            )
    if training:
        ctx = kind(x, weight, bias, p, *draw_call(rng), bool(mask_bias), first)
    else:
        ctx = DropConnectContext(x, weight, bias, 0.0, None, None, bool(mask_bias), first)
    if there:
        return cuda().connect(ctx), ctx
    y = ctx._forward(_rows(x))
    if bias is not None and not mask_bias:
        y += bias
    return y.reshape(*x.shape[:-1], weight.shape[1]), ctx


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
    x, weight, bias = _operands(x, weight, bias)
    p, samples = gate.rate(p), gate.count(samples, "samples")
    examples = _rows(x)
    if p < 1.0:
        mean, sigma = _moments(examples, weight, bias if mask_bias else None, p)
    else:
        mean = sigma = np.zeros((len(examples), weight.shape[1]), x.dtype)
    if bias is not None and not mask_bias:
        mean = mean + bias
    shape = *x.shape[:-1], weight.shape[1]
    total = 0.0
    for own in Rng(*draw_call(rng)).spawn(samples):
        u = normals(mean.shape, *own.take()).astype(mean.dtype, copy=False)
        total += activation((mean + sigma * u).reshape(shape))
    return total / samples


class DropConnect(Layer):
    """`dropconnect` as a layer, with weights and bias that are learned.

    Parameters
    ----------
    inputs, outputs : int
    p : float or callable
        Drop rate in [0, 1], or a function of the step; see `Layer`.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An int seeds an `Rng` of the layer's own. Its first call draws the weights.
    bias : bool
        Whether there is one.
    mode, mask_bias
        As in `fastdrop.dropconnect`.
    dtype : float32 or float64

    Attributes
    ----------
    weight : ndarray, shape (inputs, outputs)
        Begins as normal variates of variance 2 / inputs (He et al. 2015).
    bias : ndarray, shape (outputs,), or None
        Begins as zeros.
    """

    learned = ("weight", "bias")

    def __init__(
        self,
        inputs: int,
        outputs: int,
        p: Rate = 0.5,
        *,
        rng: RngLike = None,
        bias: bool = True,
        mode: str = "example",
        mask_bias: bool = True,
        dtype: npt.DTypeLike = np.float32,
    ) -> None:
        super().__init__(rng, p)
        self.mode = gate.choice(mode, tuple(MODES), "mode")
        self.mask_bias = bool(mask_bias)
        shape = gate.count(inputs, "inputs"), gate.count(outputs, "outputs")
        gate.choice(np.dtype(dtype).name, ("float32", "float64"), "dtype")
        self.bias = np.zeros(shape[1], dtype) if bias else None
        if not bias:
            self.learned = ("weight",)
        init = np.random.default_rng(draw_call(self.rng))
        self.weight = (init.standard_normal(shape) * np.sqrt(2.0 / inputs)).astype(dtype)

    def share_batch(self) -> None:
        """One mask for the whole batch; see `Layer.share_batch`."""
        self.mode = "batch"

    def __call__(self, x: npt.ArrayLike) -> Array:
        """y, shape (..., outputs)."""
        y, self.ctx = dropconnect(
            x,
            self.weight,
            self.bias,
            self.rate(),
            rng=self.rng,
            training=self.training,
            mode=self.mode,
            mask_bias=self.mask_bias,
        )
        return y

    def __repr__(self) -> str:
        inputs, outputs = self.weight.shape
        return (
            f"DropConnect({inputs}, {outputs}, p={self.p}, bias={self.bias is not None}, "
            f"mode={self.mode!r}, mask_bias={self.mask_bias})"
        )


def _floats(value: npt.ArrayLike, name: str) -> Array:
    """C-contiguous float32 or float64."""
    value = gate.host(value, name)
    native = value.dtype.newbyteorder("=")
    if native not in (np.float32, np.float64):
        raise TypeError(
            f"{name} must be float32 or float64, got {value.dtype}; convert it with .astype"
        )
    return np.require(value, native, ("C", "A"))


def _operands(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None,
    floats: Callable = _floats,
) -> tuple[Array, Array, Array | None]:
    """x, weight and bias, checked; `floats`: what makes them arrays."""
    x, weight = floats(x, "x"), floats(weight, "weight")
    if not x.ndim:
        raise ValueError("x must have at least one axis, that of the inputs, got 0-d")
    if weight.ndim != 2 or weight.shape[0] != x.shape[-1]:
        raise ValueError(
            f"weight must have shape ({x.shape[-1]}, outputs) for x of shape {x.shape}, "
            f"got {weight.shape}"
        )
    gate.like(weight, "weight", weight.shape, x.dtype)
    if bias is not None:
        bias = floats(bias, "bias")
        gate.like(bias, "bias", weight.shape[1:], x.dtype)
    return x, weight, bias


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
