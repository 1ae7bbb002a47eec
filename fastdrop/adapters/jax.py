"""Dropout for JAX on the CPU, through XLA's foreign function interface: `dropout`.

A training step::

    from fastdrop.adapters.jax import dropout

    def loss(w, x, t, key):
        h = dropout(jax.nn.relu(x @ w[0]), 0.5, key=key)
        return jnp.mean((h @ w[1] - t) ** 2)

    @jax.jit
    def step(w, x, t, number):
        key = jax.random.fold_in(jax.random.key(1234), number)
        return jax.tree.map(lambda v, g: v - 0.1 * g, w, jax.grad(loss)(w, x, t, key))
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdrop import _core
from fastdrop.base import gate
from fastdrop.rng import uint64

__all__ = ["dropout"]

TARGET = "fastdrop_dropout"
jax.ffi.register_ffi_target(TARGET, _core._XLA_DROPOUT, platform="cpu")


def dropout(
    x: jax.typing.ArrayLike,
    p: float = 0.5,
    *,
    key: Any,
    call: Any = 0,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
) -> jax.Array:
    """`fastdrop.dropout` as a pure function that can be compiled and differentiated.

    Nothing is kept for the backward pass but the draw, whose mask is made again there. Under `vmap`
    the result is that of a loop, as always in JAX: a batch of keys gives each example a mask of its
    own, one key gives all of them the same. Forward-mode differentiation is not supported.

    Parameters
    ----------
    x : array_like of float16, bfloat16, float32 or float64
    p : float
        Drop rate in [0, 1]; not traced.
    key : JAX key, or int
        ``jax.random.key(seed)`` and an int seed draw the mask of ``fastdrop.Rng(seed, call)``.
    call : int, or traced integer
        Number of the call; another number gives another mask. May be that of the step.
    training : bool
        If False, x is returned; not traced.
    shared_axes : int or tuple of int
        Axes along which one draw is shared, as in `fastdrop.dropout`.

    Returns
    -------
    jax.Array
        Shape and dtype of x.

    Raises
    ------
    TypeError
        dtype that is not supported, rate that is traced or not a real number.
    ValueError
        Rate outside [0, 1] or NaN, more keys than one.
    """
    x, p = gate.read(x, "x", jnp.asarray), gate.rate(p)
    if x.dtype not in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
        raise TypeError(f"x must be float16, bfloat16, float32 or float64, got {x.dtype}")
    axes = gate.axes(shared_axes, x.ndim, "shared_axes")
    if not gate.flag(training, "training"):
        return x
    draw = jnp.concatenate([_seed(key), _words(call, "call")])
    if not axes:
        return _dropout(x, draw, p)
    wide = jnp.promote_types(x.dtype, jnp.float32)  # 16-bit types are rounded once, at the end
    ones = jnp.ones([1 if d in axes else n for d, n in enumerate(x.shape)], wide)
    scale = _dropout(ones, draw, p)
    return jnp.where(scale == 0, 0, x.astype(wide) * scale).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropout(x: jax.Array, draw: jax.Array, p: float) -> jax.Array:
    """draw: the low and high words of the seed, then of the call."""
    y = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.ffi.ffi_call(TARGET, y, vmap_method="broadcast_all")(x, draw, p=np.float64(p))


def _forward(x: jax.Array, draw: jax.Array, p: float) -> tuple[jax.Array, jax.Array]:
    return _dropout(x, draw, p), draw


def _backward(p: float, draw: jax.Array, dy: jax.Array) -> tuple[jax.Array, None]:
    return _dropout(dy, draw, p), None


_dropout.defvjp(_forward, _backward)


def _words(value: Any, name: str) -> jax.Array:
    """The low and high word of a number; a traced one has at most 32 bits, or what JAX gives it."""
    if not isinstance(value, jax.Array):
        number = uint64(value, name)
        return jnp.array([number & 0xFFFFFFFF, number >> 32], jnp.uint32)
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be an int, got an array of {value.dtype}, {value.shape}")
    high = value >> 32 if value.dtype.itemsize == 8 else jnp.zeros_like(value)
    return jnp.stack([value, high]).astype(jnp.uint32)


def _seed(key: Any) -> jax.Array:
    """The words of a key, if it has two; else two words drawn with it."""
    if isinstance(key, np.ndarray) and key.ndim:  # of a checkpoint
        key = gate.read(key, "key", jnp.asarray)
    if not isinstance(key, jax.Array):
        return _words(key, "key")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim:
            raise ValueError(f"key must be one key, got {key.shape}; vmap over them")
        words = jax.random.key_data(key)
        return words[::-1] if words.size == 2 else jax.random.bits(key, (2,), jnp.uint32)
    if key.shape == (2,) and key.dtype == jnp.uint32:  # of jax.random.PRNGKey
        return key[::-1]
    return _words(key, "key")
