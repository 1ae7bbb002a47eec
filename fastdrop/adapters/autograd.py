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
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
from autograd.extend import defjvp, defvjp, primitive

import fastdrop as fd
from fastdrop.base.gate import Region
from fastdrop.rng import RngLike

__all__ = ["dropout"]


def dropout(
    x: npt.ArrayLike,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
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

    Notes
    -----
    autograd runs a function again for each derivative, and `autograd.checkpoint` runs it twice for
    one: an int as `rng`, or ``Rng(seed, call)`` made inside the function, gives all of them one
    mask, as second derivatives by composition need.
    """
    options = {
        "rng": rng,
        "training": training,
        "shared_axes": shared_axes,
        "region": region,
        "save": save,
    }
    return _forward(x, p, options, [])


@primitive
def _forward(x: npt.ArrayLike, p: float, options: dict, contexts: list) -> npt.NDArray:
    """y; its context goes to the list, as a primitive returns one value."""
    y, ctx = fd.dropout(x, p, **options)
    contexts.append(ctx)
    return y


@primitive
def _backward(dy: npt.ArrayLike, ctx: fd.Context) -> npt.NDArray:
    return ctx.backward(dy)


# Dropout is linear and diagonal: transposed or not, it does the same, and so does its derivative.
defvjp(
    _forward, lambda y, x, p, options, contexts: lambda dy: _backward(dy, *contexts), argnums=[0]
)
defjvp(_forward, lambda dx, y, x, p, options, contexts: _backward(dx, *contexts), argnums=[0])
defvjp(_backward, lambda dx, dy, ctx: lambda ddx: _backward(ddx, ctx), argnums=[0])
defjvp(_backward, lambda ddy, dx, dy, ctx: _backward(ddy, ctx), argnums=[0])
