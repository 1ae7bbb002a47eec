"""Dropout for equinox, in place of ``equinox.nn.Dropout``.

Examples
--------
>>> import equinox as eqx
>>> import jax, jax.numpy as jnp
>>> from fastdrop.adapters.jax.equinox import Dropout
>>> k1, k2 = jax.random.split(jax.random.key(0))
>>> net = eqx.nn.Sequential([
...     eqx.nn.Linear(10, 64, key=k1), eqx.nn.Lambda(jax.nn.relu), Dropout(0.2),
...     eqx.nn.Linear(64, 1, key=k2),
... ])
>>> x = jax.random.normal(jax.random.key(0), (256, 10))
>>> t = x.sum(axis=1, keepdims=True)
>>> def loss(net, key=None):
...     if key is None:
...         return jnp.mean((jax.vmap(net)(x) - t) ** 2)
...     y = jax.vmap(lambda x, key: net(x, key=key))(x, jax.random.split(key, len(x)))
...     return jnp.mean((y - t) ** 2)
>>> @eqx.filter_jit
... def step(net, number):
...     grads = eqx.filter_grad(loss)(net, jax.random.fold_in(jax.random.key(1), number))
...     return eqx.apply_updates(net, jax.tree.map(lambda g: -0.03 * g, grads))
>>> for number in range(300):
...     net = step(net, jnp.asarray(number))
>>> bool(loss(eqx.nn.inference_mode(net)) < 0.1 * t.var())
True
"""

from __future__ import annotations

from typing import Any

import equinox as eqx

from fastdrop.adapters.jax import dropout

__all__ = ["Dropout"]


class Dropout(eqx.nn.Dropout):
    """`fastdrop.adapters.jax.dropout` as a module.

    Parameters
    ----------
    p, inference
        As those of ``equinox.nn.Dropout``; ``equinox.nn.inference_mode`` switches it.
    """

    def __call__(self, x: Any, *, key: Any = None, inference: bool | None = None) -> Any:
        """x with some elements dropped; as it is in inference.

        Parameters
        ----------
        x : jax.Array of float16, bfloat16, float32 or float64
        key : JAX key
            Wanted where not in inference and p is not 0.
        inference : bool, optional
            Else that of the module.

        Raises
        ------
        RuntimeError
            No key.
        """
        inference = self.inference if inference is None else inference
        if inference or (isinstance(self.p, float | int) and self.p == 0):
            return x
        if key is None:
            raise RuntimeError("Dropout needs a key where it is not in inference")
        return dropout(x, self.p, key=key)
