"""Dropout fused with what stands beside it in a network: one pass over memory each.

All take the arguments of `fastdrop.dropout`; those with ReLU always save bits, so they have no
`save`. Arrays that are not C-contiguous are copied first. 16-bit types are computed in float32 and
rounded once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop._core import (
    BIAS_DROPOUT_ADD,
    BIAS_GELU_DROPOUT,
    BIAS_RELU_DROPOUT,
    DROPOUT_ADD,
    RELU_DROPOUT,
    Draw,
    Place,
    common_backward,
    common_call,
)
from fastdrop.backends import nbytes, of
from fastdrop.backends.cpu import host_bits, unpacked
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops.context import array, is_bits
from fastdrop.ops.dropout import Context, How, inverted
from fastdrop.rng import RngLike, with_draw


class AddContext(Context):
    """Context of `dropout_add`."""

    __slots__ = ()

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """(dx, dresidual); dx goes to `out` if given, dresidual is dy itself."""
        if (dx := common_backward(self, dy, out, "apart")) is not None:
            return dx, dy
        backend = of(dy)
        dy = backend.array(dy, "dy")
        dresidual = backend.apart(dy, out)
        out, dy = backend.output(out, dy)
        self._check_shape(dy)
        if (draw := self._drops) is None:
            return backend.copy(dy, out), dresidual
        return backend.select(dy, out, draw, self.held, self.scale), dresidual


class BiasAddContext(Context):
    """Context of `bias_dropout_add`."""

    __slots__ = ()

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """(dx, dbias, dresidual); dx goes to `out` if given, dresidual is dy itself.

        dbias is summed in float64 in an order that does not depend on the number of threads.
        """
        if (found := common_backward(self, dy, out, "columns")) is not None:
            return *found, dy
        backend = of(dy)
        dy = backend.array(dy, "dy")
        dresidual = backend.apart(dy, out)
        out, dy = backend.output(out, dy)
        self._check_shape(dy)
        draw = self.draw or _nothing(self.shape)
        dx, dbias = backend.select_and_sum(dy, out, draw, self.held, self.scale)
        return dx, dbias, dresidual


class ReluContext(Context):
    """Context of `relu_dropout`: holds a bit per element, whatever shares a draw."""

    __slots__ = ()

    def mask(self) -> npt.NDArray[np.bool_]:
        """Which elements have a gradient: kept, and not x <= 0."""
        return unpacked(host_bits(self.held), _nothing(self.shape))

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """dx; arguments as in `Context.backward`."""
        if (dx := common_backward(self, dy, out, "each")) is not None:
            return dx
        backend = of(dy)
        dy = backend.array(dy, "dy")
        out, dy = backend.output(out, dy)
        self._check_shape(dy)
        return backend.select(dy, out, _nothing(self.shape), self.held, self.scale)

    def apply(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """Not here: what is held tells what was dropped or not positive, not which of both."""
        raise TypeError("x of ReLU decides with the mask; apply dropout's context instead")

    def _check(self) -> None:
        self._check_place()
        if not is_bits(self.held, prod(self.shape)):
            raise ValueError("bits must hold one for each element of x")


class BiasReluContext(ReluContext):
    """Context of `bias_relu_dropout`: holds a bit per element, as that of `relu_dropout`."""

    __slots__ = ()

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """(dx, dbias); dx goes to `out` if given.

        dbias is summed in float64 in an order that does not depend on the number of threads.
        """
        if (found := common_backward(self, dy, out, "each columns")) is not None:
            return found
        backend = of(dy)
        dy = backend.array(dy, "dy")
        out, dy = backend.output(out, dy)
        self._check_shape(dy)
        return backend.select_and_sum(dy, out, _nothing(self.shape), self.held, self.scale)


class BiasGeluContext(Context):
    """Context of `bias_gelu_dropout`: refers to x.

    Attributes
    ----------
    x : ndarray
        That of the call; a copy if y was written to it.
    bias : ndarray
        A copy of its own, as an optimiser changes the other in place.
    """

    __slots__ = ("bias", "x")
    bias: Any
    x: Any

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: x, the bias, and the packed mask, if it is
        held.
        """
        return super().nbytes + nbytes(self.x) + nbytes(self.bias)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """(dx, dbias); dx goes to `out` if given.

        dbias is summed in float64 in an order that does not depend on the number of threads.

        Parameters
        ----------
        dy : array_like, shape and dtype of x
        out : ndarray, optional
            Where to write; may be `dy` itself.
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        x, bias = backend.bring(self.x, dy), backend.bring(self.bias, dy)
        gate.like(dy, "dy", x.shape, x.dtype)
        out, dy, x = backend.output(out, dy, x)
        draw = self._drops or _nothing(self.shape)
        return backend.select_and_sum(dy, out, draw, self.held, self.scale, x, bias)

    def _check(self) -> None:
        super()._check()
        if not self.shape or tuple(self.x.shape) != self.shape:
            raise ValueError(f"x must have shape {self.shape}, got {self.x.shape}")
        gate.like(array(self.bias, "bias"), "bias", self.shape[-1:], self.x.dtype)


def dropout_add(
    x: npt.ArrayLike,
    residual: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], AddContext]:
    """residual + dropout(x), as at the end of a transformer's block.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    residual : array_like, shape and dtype of x
    out : ndarray, optional
        Where to write y. May be x or residual itself.
    p, rng, training, shared_axes, region, rows, mask, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        residual + x * scale where kept, residual + 0 where dropped; C-contiguous.
    ctx : AddContext
        ``ctx.backward(dy)`` gives (dx, dresidual); dresidual is dy itself.

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
    """
    how = rng, training, shared_axes, region, rows, out, save
    if mask is None and (done := common_call(DROPOUT_ADD, x, p, how, None, AddContext, residual)):
        return done
    return _looked_at(DROPOUT_ADD, AddContext, x, p, how, mask, residual)


def bias_dropout_add(
    x: npt.ArrayLike,
    bias: npt.ArrayLike,
    residual: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], BiasAddContext]:
    """residual + dropout(x + bias): the bias of the linear layer that made x comes along.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, at least 1-d
    bias : array_like of x's dtype, shape (x.shape[-1],) or (1, x.shape[-1])
    residual : array_like, shape and dtype of x
    out : ndarray, optional
        Where to write y. May be x or residual itself.
    p, rng, training, shared_axes, region, rows, mask, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : BiasAddContext
        ``ctx.backward(dy)`` gives (dx, dbias, dresidual); dbias has the shape (x.shape[-1],), and
        dresidual is dy itself.

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
    M. Shoeybi et al.: Megatron-LM. arXiv:1909.08053 (2019), section 5.1: the fused kernel.
    """
    how = rng, training, shared_axes, region, rows, out, save
    operation, kind = BIAS_DROPOUT_ADD, BiasAddContext
    if mask is None and (done := common_call(operation, x, p, how, None, kind, residual, bias)):
        return done
    return _looked_at(operation, kind, x, p, how, mask, residual, bias)


def relu_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], ReluContext]:
    """dropout(relu(x)), as in a perceptron's hidden layer.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    p, rng, training, shared_axes, region, rows, mask, out
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        x * scale where kept and not x <= 0 (so a NaN stays), else +0; C-contiguous.
    ctx : ReluContext
        ``ctx.backward(dy)`` gives dx. It holds one bit an element: kept, and not x <= 0; that is
        what ``ctx.mask()`` tells. There is no ``save``, as the sign of x has to be remembered.

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
    """
    how = rng, training, shared_axes, region, rows, out, "bits"
    if mask is None and (done := common_call(RELU_DROPOUT, x, p, how, None, ReluContext)):
        return done
    return _looked_at(RELU_DROPOUT, ReluContext, x, p, how, mask)


def bias_relu_dropout(
    x: npt.ArrayLike,
    bias: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[Any], BiasReluContext]:
    """dropout(relu(x + bias)): what follows the product of matrices in a perceptron's hidden layer.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, at least 1-d
    bias : array_like of x's dtype, shape (x.shape[-1],) or (1, x.shape[-1])
    out : ndarray, optional
        Where to write y. May be x itself.
    p, rng, training, shared_axes, region, rows, mask
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        (x + bias) * scale where kept and not x + bias <= 0 (so a NaN stays), else +0; C-contiguous.
    ctx : BiasReluContext
        ``ctx.backward(dy)`` gives (dx, dbias); dbias has the shape (x.shape[-1],). It holds one bit
        an element, as that of `relu_dropout`, so there is no ``save``.

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
    """
    how = rng, training, shared_axes, region, rows, out, "bits"
    operation, kind = BIAS_RELU_DROPOUT, BiasReluContext
    if mask is None and (done := common_call(operation, x, p, how, None, kind, None, bias)):
        return done
    return _looked_at(operation, kind, x, p, how, mask, bias=bias)


def bias_gelu_dropout(
    x: npt.ArrayLike,
    bias: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    mask: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], BiasGeluContext]:
    """dropout(gelu(x + bias)), with GELU in its tanh form, as in a transformer's hidden layer.

    gelu(u) = u / 2 * (1 + tanh(sqrt(2 / pi) * (u + 0.044715 u^3))). It is computed of operations
    that IEEE 754 rounds exactly, so its bits are the same everywhere. Its error, before the scale,
    is at most 1.3e-7 abs(u) in float32 and 2.3e-16 abs(u) in float64, that of its slope 3e-7 and
    5e-16.
    From u = -10.06 on downwards (-21.16 in float64) it is -0, and so at -inf.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, at least 1-d
        The context refers to it: do not change it before the backward pass, except by `out`.
    bias : array_like of x's dtype, shape (x.shape[-1],) or (1, x.shape[-1])
    out : ndarray, optional
        Where to write y. May be x itself; then the context has a copy of x.
    p, rng, training, shared_axes, region, rows, mask, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        gelu(x + bias) * scale where kept, else +0; C-contiguous.
    ctx : BiasGeluContext
        ``ctx.backward(dy)`` gives (dx, dbias); dbias has the shape (x.shape[-1],).

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
    D. Hendrycks, K. Gimpel: Gaussian error linear units. arXiv:1606.08415 (2016), section 2.
    """
    how = rng, training, shared_axes, region, rows, out, save
    operation, kind = BIAS_GELU_DROPOUT, BiasGeluContext
    if mask is None and (done := common_call(operation, x, p, how, None, kind, None, bias)):
        return done
    return _looked_at(operation, kind, x, p, how, mask, bias=bias)


def _nothing(shape: tuple[int, ...]) -> Draw:
    """A draw that drops nothing: a fused op runs its kernel in evaluation, too."""
    return Draw(0, 0, 0.0, Place(shape))


def _looked_at(
    op: int,
    kind: type[Context],
    x: Any,
    p: Any,
    how: How,
    mask: Any,
    residual: Any = None,
    bias: Any = None,
) -> tuple[Any, Any]:
    """The road of all fused ops where the gate has to look."""
    rng, training, shared_axes, region, rows, out, save = how
    keep = gate.keeps_bits(save)
    backend = of(x)
    x, p = backend.array(x), gate.rate(p)
    if op in (DROPOUT_ADD, BIAS_DROPOUT_ADD):
        residual = backend.array(residual, "residual")
        gate.like(residual, "residual", x.shape, x.dtype)
    if op not in (DROPOUT_ADD, RELU_DROPOUT):
        if not x.ndim:
            raise ValueError("x must have at least one axis, along which bias is added, got 0-d")
        bias = backend.array(bias, "bias")
        if bias.ndim == 2 and bias.shape[0] == 1:
            bias = bias.reshape(-1)
        gate.like(bias, "bias", x.shape[-1:], x.dtype)
    place = gate.place(x.shape, shared_axes, region, rows)
    training = gate.flag(training, "training")
    given = gate.own_mask(mask, place, keep) if training else None
    more = {}
    if op == BIAS_GELU_DROPOUT:
        more = {"x": backend.apart(x, out), "bias": backend.copy(bias)}
    out, x, residual = backend.output(out, x, residual)
    constants = inverted(p if training else 0.0)

    def of_draw(draw: Draw | None) -> tuple[Any, Any]:
        drawn = draw or _nothing(x.shape)
        kept = keep and draw is not None and (p > 0.0 or given is not None)
        y, bits = backend.forward(op, x, drawn, constants, out, kept, residual, bias, given)
        return y, kind.made(x.shape, draw, constants[0], bits, **more)

    if not training or given is not None:
        return of_draw(Draw(None, None, p, place) if training else None)
    return with_draw(rng, p, place, of_draw, out, x if p else None)
