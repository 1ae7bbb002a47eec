"""A draw as an array of words: who is dropped, as `xla_ffi.c` reads it.

uint32: the low and high words of the seed and of the call, whether one of them was negative, three
float32 whose sum is the rate, and the low and high words of the index where x begins along each
axis.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastdrop.base import gate
from fastdrop.rng import uint64


def words(key: Any, call: Any, rate: Any, start: tuple[Any, ...]) -> jax.Array:
    """The draw of a gated rate, or index."""
    seed, seed_wrong = _seed(key)
    number, call_wrong = _natural(call, "call")
    along = [_words(n) for n in start]
    return jnp.concatenate([seed, number, seed_wrong | call_wrong, _terms(rate), *along])


def traced(value: Any) -> bool:
    """Whether this is a number that is only known when it runs."""
    return isinstance(value, jax.core.Tracer)


def concrete(value: Any) -> Any:
    """A 0-d array whose number is known as NumPy's, for the gate; else the value."""
    return np.asarray(value) if isinstance(value, jax.Array) and not traced(value) else value


def rate(p: Any, name: str = "p", high: float = 1.0) -> Any:
    """A float, checked, or a traced one, which is checked when it runs."""
    if not traced(p):
        return gate.real(concrete(p), name, 0.0, high)
    if p.ndim or not (
        jnp.issubdtype(p.dtype, jnp.floating) or jnp.issubdtype(p.dtype, jnp.integer)
    ):
        raise TypeError(f"{name} must be a real number, got an array of {p.dtype}, {p.shape}")
    return jax.lax.stop_gradient(p)


def index(value: Any, name: str) -> Any:
    """An int, or a traced one."""
    if not traced(value):
        return gate.integer(concrete(value), name, "an int")
    return _integer(value, name)


def _integer(value: Any, name: str) -> Any:
    if value.ndim or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be an int, got an array of {value.dtype}, {value.shape}")
    return value


def _terms(value: Any) -> jax.Array:
    """Three float32 with the sum of a float64, as their bits: each is what is left, rounded."""
    wide = np.float64(value) if not traced(value) else value
    if traced(value) and value.dtype != jnp.float64:
        wide = value.astype(jnp.float32)
    terms = []
    for _ in range(3):
        terms.append(wide.astype(np.float32))
        wide = wide - terms[-1].astype(wide.dtype)
    if not traced(value):
        return jnp.asarray(np.array(terms).view(np.uint32))
    return jax.lax.bitcast_convert_type(jnp.stack(terms), jnp.uint32)


def _words(value: Any) -> jax.Array:
    """The low and high word of a number in two's complement."""
    if not isinstance(value, jax.Array):
        return jnp.array([value & 0xFFFFFFFF, value >> 32 & 0xFFFFFFFF], jnp.uint32)
    if value.dtype.itemsize == 8:
        high = value >> 32
    else:
        high = jnp.where(value < 0, -1, jnp.zeros((), jnp.int32))
    return jnp.stack([value.astype(jnp.uint32), high.astype(jnp.uint32)])


def _natural(value: Any, name: str) -> tuple[jax.Array, jax.Array]:
    """The words of a number from 0 to 2**64 - 1, and whether it is negative, shape (1,)."""
    value = concrete(value)
    if not traced(value):
        if isinstance(value, np.ndarray):
            _integer(value, name)
        return _words(uint64(value, name)), jnp.zeros(1, jnp.uint32)
    value = _integer(value, name)
    return _words(value), (value < 0).astype(jnp.uint32)[None]


def _seed(key: Any) -> tuple[jax.Array, jax.Array]:
    """The words of a key, if it has two; else two words drawn with it."""
    right = jnp.zeros(1, jnp.uint32)
    if isinstance(key, np.ndarray) and key.ndim:  # of a checkpoint
        key = gate.read(key, "key", jnp.asarray)
    if not isinstance(key, jax.Array):
        return _natural(key, "key")
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0 or key.dtype != jnp.uint32:
            return _natural(key, "key")
        raw, key = key, _wrapped(key)
        if key is None:
            raise ValueError(f"key must be one key, got an array of uint32, {raw.shape}")
    if key.ndim:
        raise ValueError(f"key must be one key, got {key.shape}; vmap over them")
    data = jax.random.key_data(key)
    return data[::-1] if data.size == 2 else jax.random.bits(key, (2,), jnp.uint32), right


def _wrapped(raw: jax.Array) -> Any:
    """The key of what `jax.random.PRNGKey` gives: the default's, or the one with so many words."""
    for impl in (jax.config.jax_default_prng_impl, "threefry2x32", "rbg"):
        if jax.random.key_data(jax.random.key(0, impl=impl)).shape == raw.shape:
            return jax.random.wrap_key_data(raw, impl=impl)
    return None
