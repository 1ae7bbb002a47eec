"""Dropout for JAX on the CPU, through XLA's foreign function interface.

Pure functions that can be compiled, differentiated (any order, both modes), mapped and sharded. Who
is dropped is decided by a key, as in `jax.random`, and the number of a call. Modules for flax and
equinox are in `linen`, `nnx` and `equinox`, which are imported by name.

Examples
--------
A perceptron learns a sum, compiled:

>>> import jax, jax.numpy as jnp
>>> from fastdrop.adapters.jax import dropout, relu_dropout
>>> x = jax.random.normal(jax.random.key(0), (256, 10))
>>> t = x.sum(axis=1, keepdims=True)
>>> def loss(w, key, training=True):
...     h = relu_dropout(x @ w[0], 0.2, key=key, training=training)
...     return jnp.mean((h @ w[1] - t) ** 2)
>>> @jax.jit
... def step(w, number):
...     key = jax.random.fold_in(jax.random.key(1234), number)
...     return jax.tree.map(lambda v, g: v - 0.03 * g, w, jax.grad(loss)(w, key))
>>> k1, k2 = jax.random.split(jax.random.key(1))
>>> w = [jax.random.normal(k1, (10, 64)) / 3, jax.random.normal(k2, (64, 1)) / 8]
>>> for number in range(500):
...     w = step(w, number)
>>> bool(loss(w, None, training=False) < 0.1 * t.var())
True

Notes
-----
- *Sharded arrays*: each device drops its shard of the whole array's mask; nothing is sent. The bits
  are those of the array on one device, for automatic and explicit meshes.
- *shard_map*: x is a shard there, and has a mask of its own. ``region=(start, global_shape)`` gives
  it its block of the whole array's mask, with a start made of `jax.lax.axis_index`. Otherwise fold
  that index into the key, as two devices with one key drop the same elements of their shards. Axes
  of the mesh that the shard_map leaves to XLA are cut as if there were no shard_map.
- *vmap* gives the result of a loop: a batch of keys gives each example a mask of its own, one key
  gives all of them the same.
- *Rates* may be traced (a schedule under `jit`), and are taken for constants by derivatives.
- *Values that are traced* are checked when they run: a negative call, a rate outside [0, 1] or a
  region that does not contain x raise `jax.errors.JaxRuntimeError`, whose message names the
  argument.
- *Export*: `jax.export` keeps the call of fastdrop by name, which it wants to be told:
  ``disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("fastdrop_dropout")]``. Whoever runs
  what was exported imports `fastdrop.adapters.jax` before. A function for several devices is
  exported only if dropout is inside a `jax.shard_map`, as what tells XLA how to cut it is a
  function of this process.
"""

from fastdrop.adapters.jax.functions import (
    alpha_dropout,
    bias_dropout_add,
    dropout,
    dropout_add,
    gaussian_dropout,
    gaussian_noise,
    relu_dropout,
)

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "dropout",
    "dropout_add",
    "gaussian_dropout",
    "gaussian_noise",
    "relu_dropout",
]
