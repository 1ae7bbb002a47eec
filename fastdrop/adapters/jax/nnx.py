"""Dropout for flax nnx, in place of ``flax.nnx.Dropout``.

Examples
--------
>>> import jax, jax.numpy as jnp
>>> from flax import nnx
>>> from fastdrop.adapters.jax.nnx import Dropout
>>> rngs = nnx.Rngs(0)
>>> net = nnx.Sequential(
...     nnx.Linear(10, 64, rngs=rngs), nnx.relu,
...     Dropout(0.2, rngs=rngs), nnx.Linear(64, 1, rngs=rngs),
... )
>>> x = jax.random.normal(jax.random.key(0), (256, 10))
>>> t = x.sum(axis=1, keepdims=True)
>>> def loss(net):
...     return jnp.mean((net(x) - t) ** 2)
>>> @nnx.jit
... def step(net):
...     grads = nnx.grad(loss)(net)
...     nnx.update(net, jax.tree.map(lambda w, g: w - 0.03 * g, nnx.state(net, nnx.Param), grads))
>>> for _ in range(300):
...     step(net)
>>> net.eval()
>>> bool(loss(net) < 0.1 * t.var())
True
"""

from __future__ import annotations

from typing import Any

from flax import nnx

from fastdrop.adapters.jax import dropout

__all__ = ["Dropout"]


class Dropout(nnx.Dropout):
    """`fastdrop.adapters.jax.dropout` as a module.

    Parameters
    ----------
    rate, broadcast_dims, deterministic, rng_collection, rngs
        As those of ``flax.nnx.Dropout``; ``model.train()``, ``model.eval()`` and ``nnx.view``
        switch it.
    """

    def __call__(self, inputs: Any, *, deterministic: bool | None = None, rngs: Any = None) -> Any:
        """The inputs with some elements dropped; as they are if `deterministic`.

        Parameters
        ----------
        inputs : jax.Array of float16, bfloat16, float32 or float64
        deterministic : bool, optional
            Else that of the module.
        rngs : nnx.Rngs, nnx.RngStream or JAX key, optional
            Else those of the module.

        Raises
        ------
        ValueError
            Neither the module nor the call has a `deterministic`, or `rngs` where it is False.
        """
        fixed = self.deterministic if deterministic is None else deterministic
        if fixed is None:
            raise ValueError("deterministic must be given to Dropout, or when it is called")
        if fixed or self.rate == 0:
            return inputs
        rngs = self.rngs if rngs is None else rngs
        if rngs is None:
            raise ValueError("rngs must be given to Dropout, or when it is called")
        key = rngs[self.rng_collection]() if isinstance(rngs, nnx.Rngs) else rngs
        if isinstance(key, nnx.RngStream):
            key = key()
        return dropout(inputs, self.rate, key=key, shared_axes=tuple(self.broadcast_dims))
