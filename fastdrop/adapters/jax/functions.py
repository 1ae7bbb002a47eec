"""The functions: arguments are checked here, and become operands of the primitive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fastdrop._core import Place
from fastdrop.adapters.jax import draws, primitive
from fastdrop.base import gate

Axes = int | Sequence[int]
Region = tuple[Sequence[Any], Sequence[int]]  # the start may be traced


def dropout(
    x: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """`fastdrop.dropout` as a pure function.

    Nothing is kept for the backward pass but the draw, whose mask is made again there.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p : float, or traced number
        Drop rate in [0, 1], which derivatives take for a constant. One of float32 is taken as it
        is: ``jnp.float32(0.1)`` is 1.5e-9 more than 0.1.
    key : JAX key, or int
        ``jax.random.key(seed)`` and an int seed draw the mask of ``fastdrop.Rng(seed, call)``. A
        key of another implementation than Threefry draws the seed. Raw keys are taken, too.
    call : int, or traced integer
        Number of the call; another number gives another mask. May be that of the step.
    training : bool
        If False, x is returned; not traced.
    shared_axes : int or tuple of int
        Axes along which one draw is shared, as in `fastdrop.dropout`.
    region : (start, global_shape), optional
        x is the block that begins at `start`, a tuple of ints or traced integers, of an array of
        this shape, and gets its part of the larger array's mask.

    Returns
    -------
    jax.Array
        Shape, dtype and sharding of x.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Rate outside [0, 1] or NaN, more keys than one, a region that does not contain x.
    jax.errors.JaxRuntimeError
        The same of traced values, when they run; or no memory for a mask.
    """
    how = key, call, training, shared_axes, region
    return _elementwise(primitive.DROPOUT, p, how, x)


def dropout_add(
    x: jax.typing.ArrayLike,
    residual: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """residual + dropout(x) in one pass, as `fastdrop.dropout_add`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    residual : array_like
        Shape and dtype of x.
    p, key, call, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`; and a residual of another shape or dtype.
    """
    how = key, call, training, shared_axes, region
    return _elementwise(primitive.DROPOUT_ADD, p, how, x, residual)


def bias_dropout_add(
    x: jax.typing.ArrayLike,
    bias: jax.typing.ArrayLike,
    residual: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """residual + dropout(x + bias) in one pass, as `fastdrop.bias_dropout_add`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64, at least 1-d
    bias : array_like
        Shape (x.shape[-1],), dtype of x.
    residual : array_like
        Shape and dtype of x.
    p, key, call, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`; and a bias or residual of another shape or dtype.
    """
    how = key, call, training, shared_axes, region
    return _elementwise(primitive.BIAS_DROPOUT_ADD, p, how, x, residual, bias)


def relu_dropout(
    x: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """dropout(relu(x)) in one pass, as `fastdrop.relu_dropout`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p, key, call, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`.
    """
    how = key, call, training, shared_axes, region
    return _elementwise(primitive.RELU_DROPOUT, p, how, x)


def alpha_dropout(
    x: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """`fastdrop.alpha_dropout`, for self-normalizing networks.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p, key, call, training, shared_axes, region
        As in `dropout`. With the axes of a map shared it is `fastdrop.feature_alpha_dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`.
    """
    how = key, call, training, shared_axes, region
    return _elementwise(primitive.ALPHA_DROPOUT, p, how, x)


def gaussian_dropout(
    x: jax.typing.ArrayLike,
    p: Any = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """x * (1 + sqrt(p / (1 - p)) * noise), as `fastdrop.gaussian_dropout`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p : float, or traced number
        Rate in [0, 1) of the dropout that has this variance.
    key, call, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`; and a rate of 1.
    """
    x, p = _floating(x, "x"), draws.rate(p)
    if not gate.flag(training, "training"):
        return x
    if not draws.traced(p) and p == 1.0:
        raise ValueError(
            "p must be below 1, got 1.0: the noise would have infinite variance; "
            "use fastdrop.adapters.jax.dropout to drop everything"
        )
    factor = _noise(primitive.GAUSSIAN_DROPOUT, p, x, key, call, shared_axes, region)
    return (x.astype(factor.dtype) * factor).astype(x.dtype)


def gaussian_noise(
    x: jax.typing.ArrayLike,
    std: Any,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: Axes = (),
    region: Region | None = None,
) -> jax.Array:
    """x + std * noise, as `fastdrop.gaussian_noise`.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    std : float, or traced number
        Standard deviation, not negative, which derivatives take for a constant.
    key, call, training, shared_axes, region
        As in `dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError, jax.errors.JaxRuntimeError
        As `dropout`.
    """
    x, std = _floating(x, "x"), draws.rate(std, "std", float(jnp.finfo(jnp.float32).max))
    if not gate.flag(training, "training"):
        return x
    noise = _noise(primitive.GAUSSIAN_NOISE, std, x, key, call, shared_axes, region)
    return (x.astype(noise.dtype) + noise).astype(x.dtype)


def _floating(x: Any, name: str) -> jax.Array:
    x = gate.read(x, name, jnp.asarray)
    if x.dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}")
    return x


def _elementwise(op: int, p: Any, how: Any, x: Any, *others: Any) -> jax.Array:
    """The road of all ops that drop elements. others: residual, bias."""
    key, call, training, shared_axes, region = how
    x, p = _floating(x, "x"), draws.rate(p)
    if op == primitive.BIAS_DROPOUT_ADD and not x.ndim:
        raise ValueError("x must have at least one axis, along which bias is added, got 0-d")
    others = tuple(
        _floating(v, name) for v, name in zip(others, ("residual", "bias"), strict=False)
    )
    for v, name, shape in zip(others, ("residual", "bias"), (x.shape, x.shape[-1:]), strict=False):
        gate.like(v, name, shape, x.dtype)
    axes = gate.axes(shared_axes, x.ndim, "shared_axes")
    if not gate.flag(training, "training"):
        if op in (primitive.DROPOUT, primitive.ALPHA_DROPOUT):
            return x
        p, key, call, region = 0.0, 0, 0, None
    start, whole = _place(x.shape, axes, region)
    draw = draws.words(key, call, p, start)
    return primitive.drop(
        x, *others, draw, op=op, of=x.shape, whole=whole, shared=axes, result=None
    )


def _noise(op: int, rate: Any, x: jax.Array, key: Any, call: Any, shared: Any, region: Any) -> Any:
    """The noise of x, with length 1 along axes that share it, in the type x is computed in."""
    axes = gate.axes(shared, x.ndim, "shared_axes")
    start, whole = _place(x.shape, axes, region)

    def once(values: Any, one: int) -> tuple[Any, ...]:
        return tuple(one if d in axes else n for d, n in enumerate(values))

    of = once(x.shape, 1)
    draw = draws.words(key, call, rate, once(start, 0))
    result = of, jnp.promote_types(x.dtype, jnp.float32)
    return primitive.drop(draw, op=op, of=of, whole=once(whole, 1), shared=(), result=result)


def _place(shape: tuple[int, ...], axes: tuple[int, ...], region: Any) -> tuple[Any, Any]:
    """Where x begins, and in an array of which shape; what is traced is checked when it runs."""
    if region is None:
        Place(shape, axes)
        return (0,) * len(shape), shape
    words = "(start, global_shape), two tuples of ints"
    parts = gate.items(region, "region", words)
    if len(parts) != 2:
        raise TypeError(f"region must be {words}, got {gate.shown(region)}")
    start = tuple(draws.index(n, "region") for n in gate.items(parts[0], "region", words))
    whole = gate.integers(parts[1], "region", words)
    known = tuple(0 if draws.traced(n) else n for n in start)
    Place(shape, axes, (known, whole))
    return start, whole
