"""Dropout for HIPS autograd: differentiable any number of times, in reverse and forward mode.

Examples
--------
A perceptron learns the parity of three bits:

>>> import autograd.numpy as np
>>> import fastdrop as fd
>>> import numpy
>>> from autograd import value_and_grad
>>> from fastdrop.adapters.autograd import dropout
>>> x = np.array([[i >> 2, i >> 1 & 1, i & 1] for i in range(8)]) * 2.0 - 1
>>> t = x.prod(axis=1)
>>> rng, init = fd.Rng(1), numpy.random.default_rng(1)
>>> params = [init.normal(size=(3, 64)), init.normal(size=64), np.zeros(64)]
>>> def loss(params, training=True):
...     W, b, v = params
...     h = dropout(np.tanh(x @ W + b), 0.1, rng=rng, training=training)
...     return np.mean((h @ v - t) ** 2)
>>> for _ in range(400):
...     _, grads = value_and_grad(loss)(params)
...     params = [p - 0.01 * g for p, g in zip(params, grads)]
>>> bool(loss(params, training=False) < 0.05)
True

Notes
-----
autograd runs a function again for each derivative: an int as `rng`, or ``Rng(seed, call)`` made
inside the function, gives all of them one mask, as second derivatives by composition need.
`autograd.checkpoint` runs it twice for one derivative; where the second run would draw another
mask, as that of an `Rng` which has gone on, it raises RuntimeError.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

import autograd.numpy as anp
import numpy.typing as npt
from autograd import checkpoint
from autograd.extend import defjvp, defvjp, primitive

import fastdrop as fd
from fastdrop.base.gate import Region
from fastdrop.rng import RngLike

__all__ = ["bias_dropout_add", "dropout", "dropout_add", "relu_dropout"]

Axes = int | Sequence[int]


def dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
    save: str = "bits",
) -> Any:
    """`fastdrop.dropout` as an autograd primitive.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, or what stands for it
        What derivatives are taken of.
    p, rng, training, shared_axes, region, save
        As in `fastdrop.dropout`.

    Returns
    -------
    ndarray, or what stands for it
        y alone: autograd holds the context.

    Raises
    ------
    TypeError, ValueError
        As `fastdrop.dropout`.
    RuntimeError
        `autograd.checkpoint` computes it again, and it would have another mask.
    """
    how = {"rng": rng, "training": training, "shared_axes": shared_axes, "region": region}
    return _run(fd.dropout, (x,), p, how | {"save": save})


def dropout_add(
    x: npt.ArrayLike,
    residual: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
    save: str = "bits",
) -> Any:
    """`fastdrop.dropout_add`, residual + dropout(x); see `dropout`.

    Parameters
    ----------
    x, residual : array_like, or what stands for it
        What derivatives are taken of.
    p, rng, training, shared_axes, region, save
        As in `dropout`.

    Returns
    -------
    ndarray, or what stands for it

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `dropout`.
    """
    how = {"rng": rng, "training": training, "shared_axes": shared_axes, "region": region}
    return _run(fd.dropout_add, (x, residual), p, how | {"save": save})


def bias_dropout_add(
    x: npt.ArrayLike,
    bias: npt.ArrayLike,
    residual: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
    save: str = "bits",
) -> Any:
    """`fastdrop.bias_dropout_add`, residual + dropout(x + bias); see `dropout`.

    Parameters
    ----------
    x, bias, residual : array_like, or what stands for it
        What derivatives are taken of.
    p, rng, training, shared_axes, region, save
        As in `dropout`.

    Returns
    -------
    ndarray, or what stands for it

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `dropout`.
    """
    how = {"rng": rng, "training": training, "shared_axes": shared_axes, "region": region}
    return _run(fd.bias_dropout_add, (x, bias, residual), p, how | {"save": save})


def relu_dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> Any:
    """`fastdrop.relu_dropout`, dropout(relu(x)); see `dropout`.

    Parameters
    ----------
    x : array_like, or what stands for it
        What derivatives are taken of.
    p, rng, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    ndarray, or what stands for it

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `dropout`.
    """
    how = {"rng": rng, "training": training, "shared_axes": shared_axes, "region": region}
    return _run(fd.relu_dropout, (x,), p, how)


def _run(
    op: Callable[..., Any], operands: tuple[Any, ...], p: float, options: dict[str, Any]
) -> Any:
    """y of an op; its context goes to a list, as a primitive returns one value."""
    contexts: list[Any] = []
    forward = {1: _forward, 2: _forward_add, 3: _forward_bias_add}[len(operands)]
    y = forward(*operands, op, p, options, contexts)
    _not_another_mask(contexts[0])
    return y


def _value(*arguments: Any) -> npt.NDArray[Any]:
    *operands, op, p, options, contexts = arguments
    y, ctx = op(*operands, p, **options)
    contexts.append(ctx)
    return y


# One for each number of operands, as they are differentiated differently.
_forward = primitive(lambda *arguments: _value(*arguments))
_forward_add = primitive(lambda *arguments: _value(*arguments))
_forward_bias_add = primitive(lambda *arguments: _value(*arguments))


@primitive
def _backward(dy: npt.ArrayLike, ctx: fd.Context) -> npt.NDArray[Any]:
    """dx."""
    grads = ctx.backward(dy)
    return grads[0] if isinstance(grads, tuple) else grads


def _of_bias(dx: Any) -> Any:
    """The gradient of what was added to each row."""
    return anp.sum(anp.reshape(dx, (-1, dx.shape[-1])), axis=0)


# Dropout is linear and diagonal: transposed or not, it does the same, and so does its derivative.
defvjp(_forward, lambda y, *a: lambda dy: _backward(dy, *a[-1]), argnums=[0])
defjvp(_forward, lambda dx, y, *a: _backward(dx, *a[-1]), argnums=[0])
defvjp(
    _forward_add,
    lambda y, *a: lambda dy: _backward(dy, *a[-1]),
    lambda y, *a: lambda dy: dy,
    argnums=[0, 1],
)
defjvp(
    _forward_add,
    lambda dx, y, *a: _backward(dx, *a[-1]),
    lambda dresidual, y, *a: dresidual,
    argnums=[0, 1],
)
defvjp(
    _forward_bias_add,
    lambda y, *a: lambda dy: _backward(dy, *a[-1]),
    lambda y, *a: lambda dy: _of_bias(_backward(dy, *a[-1])),
    lambda y, *a: lambda dy: dy,
    argnums=[0, 1, 2],
)
defjvp(
    _forward_bias_add,
    lambda dx, y, *a: _backward(dx, *a[-1]),
    lambda dbias, y, *a: _backward(dbias + anp.zeros(y.shape), *a[-1]),
    lambda dresidual, y, *a: dresidual,
    argnums=[0, 1, 2],
)
defvjp(_backward, lambda dx, dy, ctx: lambda ddx: _backward(ddx, ctx), argnums=[0])
defjvp(_backward, lambda ddy, dx, dy, ctx: _backward(ddy, ctx), argnums=[0])


# What autograd.checkpoint calls when it computes a function again, and the draws before that.
AGAIN = next(code for code in checkpoint.__code__.co_consts if isinstance(code, CodeType))
DRAWS: OrderedDict[tuple[int | None, int | None], None] = OrderedDict()
MOST_DRAWS = 65536


def _not_another_mask(ctx: fd.Context) -> None:
    """Refuses a draw in a function that is computed again, if it was not drawn before."""
    draw = ctx.seed, ctx.call
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not AGAIN:
        frame = frame.f_back
    if frame is None:
        DRAWS[draw] = None
        if len(DRAWS) > MOST_DRAWS:
            DRAWS.popitem(last=False)
    elif draw not in DRAWS:
        raise RuntimeError(
            "autograd.checkpoint computes dropout again, with another mask: its rng has gone on; "
            "give an int, or fastdrop.Rng(seed, call) made inside the function"
        )
