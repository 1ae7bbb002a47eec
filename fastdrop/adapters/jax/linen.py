"""Dropout for flax linen, in place of ``flax.linen.Dropout``.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> import flax.linen as nn
>>> from fastdrop.adapters.jax.linen import Dropout
>>> class Net(nn.Module):
...     @nn.compact
...     def __call__(self, x, training):
...         x = nn.relu(nn.Dense(64)(x))
...         return nn.Dense(1)(Dropout(0.2, deterministic=not training)(x))
>>> x = jax.random.normal(jax.random.key(0), (256, 10))
>>> t, net = x.sum(axis=1, keepdims=True), Net()
>>> def loss(params, training=True, **rngs):
...     return jnp.mean((net.apply(params, x, training, **rngs) - t) ** 2)
>>> @jax.jit
... def step(params, number):
...     rngs = {"dropout": jax.random.fold_in(jax.random.key(1), number)}
...     return jax.tree.map(lambda w, g: w - 0.03 * g, params, jax.grad(loss)(params, rngs=rngs))
>>> params = net.init(jax.random.key(2), x, training=False)
>>> for number in range(300):
...     params = step(params, number)
>>> bool(loss(params, training=False) < 0.1 * t.var())
True
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn

from fastdrop.adapters.jax import dropout

__all__ = ["Dropout"]


class Dropout(nn.Dropout):
    """`fastdrop.adapters.jax.dropout` as a module.

    Parameters
    ----------
    rate, broadcast_dims, deterministic, rng_collection
        As those of ``flax.linen.Dropout``; the rate may be traced, too.
    """

    @nn.compact
    def __call__(self, inputs: Any, deterministic: bool | None = None, rng: Any = None) -> Any:
        """The inputs with some elements dropped; as they are if `deterministic`.

        Parameters
        ----------
        inputs : jax.Array of float16, bfloat16, float32 or float64
        deterministic : bool, optional
            If the module was made without.
        rng : JAX key, optional
            Else one of the collection.
        """
        fixed = nn.merge_param("deterministic", self.deterministic, deterministic)
        if fixed or (isinstance(self.rate, float | int) and self.rate == 0):
            return inputs
        key = self.make_rng(self.rng_collection) if rng is None else rng
        return dropout(inputs, self.rate, key=key, shared_axes=tuple(self.broadcast_dims))
