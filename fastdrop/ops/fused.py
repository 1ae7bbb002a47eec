"""Dropout fused with what stands beside it in a network: one pass over memory each.

All take the arguments of `fastdrop.dropout`; `relu_dropout` always saves bits, so it has no `save`.
Arrays that are not C-contiguous are copied first. 16-bit types are computed in float32 and rounded
once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BIAS_DROPOUT_ADD, BIAS_ROOM, DROPOUT_ADD, PARTS, RELU_DROPOUT
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import cuda
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.place import NO_AXES
from fastdrop.ops.dropout import Context, Region
from fastdrop.rng import RngLike, draw_call

__all__ = ["bias_dropout_add", "dropout_add", "relu_dropout"]


class AddContext(Context):
    """Context of `dropout_add`."""

    __slots__ = ()

    def backward(  # type: ignore[override]
        self, dy: npt.ArrayLike, out: npt.NDArray | None = None
    ) -> tuple[npt.NDArray, npt.NDArray]:
        """(dx, dresidual); dx goes to `out` if given, dresidual is dy itself."""
        if on_device(dy):
            return cuda().backward_add(self, dy, out)
        dy = _own(dy, out)
        return super().backward(dy, out), dy


class BiasAddContext(Context):
    """Context of `bias_dropout_add`."""

    __slots__ = ()

    def backward(  # type: ignore[override]
        self, dy: npt.ArrayLike, out: npt.NDArray | None = None
    ) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray]:
        """(dx, dbias, dresidual); dx goes to `out` if given, dresidual is dy itself.

        dbias is summed in float64 in an order that does not depend on the number of threads.
        """
        if on_device(dy):
            return cuda().backward_bias(self, dy, out)
        dy = _own(dy, out)
        row = self.shape[-1]
        sums = np.zeros((PARTS, row))
        one_bit_each = self._bits is not None and (self._block is None or self._block.is_run)
        if out is None and one_bit_each and dy.shape == self.shape:
            dy = np.ascontiguousarray(gate.array(dy, "dy"))
            dx = np.empty_like(dy)
            _core.backward_sums(dy, dx, self._bits, self.scale, sums)
        else:
            dx = super().backward(dy, out)
            flat = np.ascontiguousarray(dx)
            _core.backward_sums(flat, flat, None, self.scale, sums)
        return dx, sums[0].astype(dx.dtype), dy


def _own(dy: npt.ArrayLike, out: npt.NDArray | None) -> npt.NDArray:
    """dy as an array that writing dx to out leaves as it is."""
    dy = np.asarray(dy)
    overwritten = isinstance(out, np.ndarray) and np.may_share_memory(dy, out)
    return dy.copy() if overwritten else dy


def dropout_add(
    x: npt.ArrayLike,
    residual: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, AddContext]:
    """residual + dropout(x), as at the end of a transformer's block.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    residual : array_like, shape and dtype of x
    out : ndarray, optional
        Where to write y. May be x or residual itself.
    p, rng, training, shared_axes, region, save
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
    """
    gate.choice(save, ("bits", "seed"), "save")
    arguments = p, rng, training, shared_axes, region, out, save
    return _run(DROPOUT_ADD, AddContext, x, residual, None, *arguments)


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
    out: npt.NDArray | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, BiasAddContext]:
    """residual + dropout(x + bias): the bias of the linear layer that made x comes along.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, at least 1-d
    bias : array_like of x's dtype, shape (x.shape[-1],)
    residual : array_like, shape and dtype of x
    out : ndarray, optional
        Where to write y. May be x or residual itself.
    p, rng, training, shared_axes, region, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x; C-contiguous.
    ctx : BiasAddContext
        ``ctx.backward(dy)`` gives (dx, dbias, dresidual); dresidual is dy itself.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    M. Shoeybi et al.: Megatron-LM. arXiv:1909.08053 (2019), section 5.1: the fused kernel.
    """
    gate.choice(save, ("bits", "seed"), "save")
    arguments = p, rng, training, shared_axes, region, out, save
    return _run(BIAS_DROPOUT_ADD, BiasAddContext, x, residual, bias, *arguments)


def relu_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    out: npt.NDArray | None = None,
) -> tuple[npt.NDArray, Context]:
    """dropout(relu(x)), as in a perceptron's hidden layer.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
    p, rng, training, shared_axes, region, out
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        x * scale where kept and not x <= 0 (so a NaN stays), else +0; C-contiguous.
    ctx : Context
        ``ctx.backward(dy)`` gives dx. It holds one bit an element: kept, and not x <= 0; that is
        what ``ctx.mask()`` tells. There is no ``save``, as the sign of x has to be remembered.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    arguments = p, rng, training, shared_axes, region, out, "bits"
    return _run(RELU_DROPOUT, Context, x, None, None, *arguments)


def _run(
    op: int,
    kind: type[Context],
    x: Any,
    residual: Any,
    bias: Any,
    p: float,
    rng: RngLike,
    training: bool,
    shared_axes: int | Sequence[int],
    region: Region | None,
    out: Any,
    save: str,
) -> tuple[npt.NDArray, Any]:
    """Check, draw and call the kernel of one op."""
    if on_device(x):
        arguments = x, residual, bias, p, rng, training, shared_axes, region, out, save
        return cuda().run_fused(op, kind, *arguments)
    x, p = gate.array(x), gate.rate(p)
    if op != RELU_DROPOUT:
        residual = gate.array(residual, "residual")
        gate.like(residual, "residual", x.shape, x.dtype)
    if op == BIAS_DROPOUT_ADD:
        if not x.ndim:
            raise ValueError("x must have at least one axis, along which bias is added, got 0-d")
        bias = gate.array(bias, "bias")
        gate.like(bias, "bias", x.shape[-1:], x.dtype)
        bias = np.resize(bias, bias.size + BIAS_ROOM) if bias.size else None
    plain = region is None and shared_axes is NO_AXES
    block = None if plain else gate.block(x.shape, shared_axes, region)
    x, out = gate.output(x, out)
    if residual is not None:
        residual, out = gate.output(residual, out)
        residual = np.asarray(residual, order="C")
    x = np.asarray(x, order="C")
    in_place = out is not None and out.flags.c_contiguous
    y = out if in_place else np.empty(x.shape, x.dtype)
    seed, call = draw_call(rng) if training else (None, None)
    rate = p if training else 0.0
    keep_bits = save == "bits" and rate > 0.0
    draw = seed or 0, call or 0, rate, block
    bits = cpu.forward(op, x, residual, bias, y, *draw, keep_bits, _core.scale_of(rate))
    if out is not None and not in_place:
        np.copyto(out, y)
        y = out
    if op == RELU_DROPOUT:
        block = None  # its bits are its own, one an element
    return y, kind(x.shape, rate, seed, call, block, bits)
