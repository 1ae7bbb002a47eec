"""The primitive `drop_p`: one call of XLA's handler, and JAX's rules for it.

Operands are what the op computes with (x, residual, bias), then the draw in words (`draws.py`); of
noise, the draw alone. `src/runtime/xla_ffi.c` is what runs.

- *Derivatives*: all ops are linear in what they drop, so that their tangents, and the gradients of
  those, are dropout with the same draw.
- *vmap*: a batch of draws is one call with a part of y for each; a batch of x with one draw shares
  it along a new axis in front.
- *Sharding*: an element's index says all, so that a shard needs to know nothing but which one it
  is. XLA is told that the op is elementwise, and each device runs it on its shard, with the shard's
  number along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from math import prod
from string import ascii_lowercase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.dispatch import prim_requires_devices_during_lowering  # no public names for these
from jax._src.sharding_impls import parse_flatten_op_sharding
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from fastdrop import _core

# Numbers of xla_ffi.c.
DROPOUT, DROPOUT_ADD, BIAS_DROPOUT_ADD, RELU_DROPOUT, ALPHA_DROPOUT = range(5)
GAUSSIAN_DROPOUT, GAUSSIAN_NOISE, ALPHA_SLOPE = range(32, 35)

TARGET = "fastdrop_dropout"
jax.ffi.register_ffi_target(TARGET, _core._XLA_DROPOUT, platform="cpu")

drop_p = Primitive("fastdrop")


def drop(*operands: Any, **how: Any) -> jax.Array:
    """y of an op.

    Parameters
    ----------
    operands : arrays
        With the draw last.
    op : int
    of : tuple of int
        Shape of x.
    whole : tuple of int
        Shape of the array whose mask it is.
    shared : tuple of int
        Axes that share a draw.
    result : (shape, dtype) or None
        Of noise; None: that of x.
    """
    return drop_p.bind(*_varying(operands), **how)


def _varying(operands: tuple[Any, ...]) -> list[Any]:
    """Inside shard_map, all vary over the axes that one of them varies over."""
    axes = [set(jax.typeof(v).manual_axis_type.varying) for v in operands]
    union = set().union(*axes)
    return [
        jax.lax.pcast(v, tuple(sorted(union - own)), to="varying") if union - own else v
        for v, own in zip(operands, axes, strict=True)
    ]


@drop_p.def_abstract_eval
def _result(*operands: Any, result: Any, **how: Any) -> Any:
    if result is None:
        return operands[0].update(weak_type=False)
    draw, (shape, dtype) = operands[-1], result
    shape = (*draw.shape[:-1], *shape)
    spec = PartitionSpec(*draw.sharding.spec[:-1], *[None] * (len(shape) - draw.ndim + 1))
    return draw.update(shape=shape, dtype=dtype, sharding=draw.sharding.update(spec=spec))


@drop_p.def_impl
def _run(*operands: Any, **how: Any) -> jax.Array:
    return _compiled(tuple(sorted(how.items())))(*operands)


@cache
def _compiled(how: tuple[tuple[str, Any], ...]) -> Any:
    return jax.jit(partial(drop_p.bind, **dict(how)))


# Derivatives.


def _tangent(primals: Any, tangents: Any, *, op: int, **how: Any) -> tuple[Any, Any]:
    y = drop_p.bind(*primals, op=op, **how)
    draw, dx, added = primals[-1], tangents[0], []
    if op == BIAS_DROPOUT_ADD:
        dbias = tangents[2]
        if type(dbias) is not ad.Zero:
            bias, x = jnp.asarray(dbias), primals[0]
            wide = bias.reshape(*bias.shape[:-1], *[1] * (x.ndim - bias.ndim), bias.shape[-1])
            dx = ad.add_tangents(dx, jnp.broadcast_to(wide, x.shape))
    if op in (DROPOUT_ADD, BIAS_DROPOUT_ADD):
        added.append(tangents[1])
    if type(dx) is not ad.Zero:
        if op == RELU_DROPOUT:
            dx = jnp.where(primals[0] <= 0, jnp.zeros_like(dx), dx)
        linear = ALPHA_SLOPE if op in (ALPHA_DROPOUT, ALPHA_SLOPE) else DROPOUT
        added.append(drop(dx, draw, op=linear, **how))
    dy: Any = ad.Zero(jax.typeof(y).to_tangent_aval())
    for term in added:
        dy = ad.add_tangents(dy, term)
    return y, dy


def _gradient(dy: Any, x: Any, draw: Any, **how: Any) -> tuple[Any, None]:
    """Of DROPOUT and ALPHA_SLOPE, which are diagonal: transposed or not, they do the same."""
    if type(dy) is ad.Zero:
        return ad.Zero(x.aval), None
    return drop(dy, draw, **how), None


ad.primitive_jvps[drop_p] = _tangent
ad.primitive_transposes[drop_p] = _gradient


# vmap.


def _batch(operands: Any, axes: Any, **how: Any) -> tuple[jax.Array, int]:
    """Axes in front: those of a batch of draws, then those that share one, then x's own."""
    size = next(v.shape[d] for v, d in zip(operands, axes, strict=True) if d is not None)
    *given, draw = [
        v if d is None else jnp.moveaxis(v, d, 0) for v, d in zip(operands, axes, strict=True)
    ]
    batched = [d is not None for d in axes]
    bias = len(given) == 3
    if bias and (batched[2] or given[2].ndim > 1) and not batched[3]:
        draw, batched[3] = jnp.broadcast_to(draw, (size, *draw.shape)), True  # a row for each draw
    if batched[-1]:
        many = [i for i in range(len(given)) if i < 2 or given[2].ndim > 1 or batched[2]]
        for i in many:
            if not batched[i]:
                given[i] = jnp.broadcast_to(given[i], (size, *given[i].shape))
        if bias and batched[2] and given[2].ndim < draw.ndim:
            between = [1] * (draw.ndim - given[2].ndim)
            row = given[2].reshape(size, *between, given[2].shape[-1])
            given[2] = jnp.broadcast_to(row, (*draw.shape[:-1], row.shape[-1]))
        return drop(*given, draw, **how), 0
    place = draw.ndim - 1  # behind the axes of draws
    for i in range(min(len(given), 2)):
        if batched[i]:
            given[i] = jnp.moveaxis(given[i], 0, place)
        else:
            shape = (*given[i].shape[:place], size, *given[i].shape[place:])
            given[i] = jnp.broadcast_to(jnp.expand_dims(given[i], place), shape)
    return drop(*given, draw, **how), place


batching.primitive_batchers[drop_p] = _batch


# From here to XLA.


def _lower(context: Any, *operands: Any, **how: Any) -> Any:
    """A call of the handler; on several devices, one that XLA knows how to cut."""
    axes = context.module_context.axis_context
    if manual := getattr(axes, "manual_axes", None):  # of a shard_map: XLA cuts along the others
        devices = prod(n for name, n in axes.mesh.shape.items() if name not in manual)
    else:
        devices = getattr(axes, "num_devices", 1)
    if devices == 1:
        return jax.ffi.ffi_lowering(TARGET)(context, *operands, **_attributes(**how))
    whole = _partitioned(tuple(sorted(how.items())), devices)
    return mlir.lower_fun(whole, multiple_results=False)(context, *operands)


def _attributes(
    op: int, of: tuple[int, ...], whole: tuple[int, ...], shared: tuple[int, ...], result: Any
) -> dict[str, Any]:
    """As the handler reads them."""
    return {
        "of": np.array(of, np.int64),
        "op": np.int64(op),
        "shared": np.uint64(sum(1 << d for d in shared)),
        "whole": np.array(whole, np.int64),
    }


def _call(how: dict[str, Any], of: Sequence[int], *operands: Any) -> Any:
    """y, of an x of this shape, if there is none."""
    *given, draw = operands
    if given:
        y = jax.ShapeDtypeStruct(given[0].shape, given[0].dtype)
    else:
        y = jax.ShapeDtypeStruct((*draw.shape[:-1], *of), how["result"][1])
    return jax.ffi.ffi_call(TARGET, y)(*operands, **_attributes(**how))


@cache
def _partitioned(items: tuple[tuple[str, Any], ...], devices: int) -> Any:
    """The op as a function of whole arrays that XLA may cut along any axis.

    Which shard a device has is read from one more operand for each of x's axes, the numbers 0, 1,
    ... that are cut as that axis is. The number of the device itself would not tell: in a shard_map
    that leaves axes to XLA, XLA counts devices in an order of its own.
    """
    how = dict(items)
    mesh = AbstractMesh(*_smallest_axes(devices))

    def run(*operands: Any) -> Any:
        return _call(how, how["of"], *operands[: len(operands) - len(how["of"])])

    def cut(*operands: Any) -> Any:
        numbers = [jnp.arange(devices, dtype=jnp.uint32) for _ in how["of"]]
        return whole(*operands, *numbers)

    def rule(_: Any, operands: Any, results: Any) -> Any:
        names = [f"{a}{b}" for a in ascii_lowercase for b in ascii_lowercase]
        y = names[: len(results[0].shape)]
        numbers = [f"number{d}" for d in range(len(how["of"]))]
        *given, draw = [len(v.shape) for v in operands[: len(operands) - len(numbers)]]
        like = [y for _ in given[:2]] + [[*y[: n - 1], *y[-1:]] for n in given[2:]]
        each = [*like, [*y[: draw - 1], "words"], *[[n] for n in numbers]]
        text = ", ".join(map(" ".join, each)) + " -> " + " ".join(y)
        return text, {"need_replication_factors": ("words", *numbers)}

    def partition(_: Any, operands: Any, result: Any) -> Any:
        ndim, own = len(result.shape), len(how["of"])
        hlo = result.sharding._to_xla_hlo_sharding(ndim)
        [spec] = parse_flatten_op_sharding(hlo, mesh)
        spec = (*spec, *[None] * (ndim - len(spec)))

        def on(*spec: Any) -> Any:
            return NamedSharding(mesh, PartitionSpec(*spec))

        *given, draw = operands[: len(operands) - own]
        leading = len(draw.shape) - 1
        parts = [on(*spec) for _ in given[:2]]
        parts += [on(*spec[: len(v.shape) - 1], spec[-1]) for v in given[2:]]
        parts += [on(*spec[:leading], None), *map(on, spec[ndim - own :])]

        def run_shard(*shards: Any) -> Any:
            (*given, draw), numbers = shards[: len(operands) - own], shards[len(operands) - own :]
            of = [-(-n * k.size // devices) for n, k in zip(how["of"], numbers, strict=True)]
            if own:
                shared = [jnp.uint32(0)] * (ndim - leading - own)  # vmap's axes, with one draw
                shard = jnp.stack([*shared, *[k[0] // k.size for k in numbers]])
                shard = jnp.broadcast_to(shard, (*draw.shape[:-1], len(shard)))
                draw = jnp.concatenate([draw, shard], axis=-1)
            return _call(how, of, *given, draw)

        return mesh, run_shard, on(*spec), tuple(parts)

    whole = custom_partitioning(run)
    whole.def_partition(partition, sharding_rule=rule, decode_shardings=False)
    return cut


def _smallest_axes(devices: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Sizes, which are prime, and names: XLA may cut along a part of an axis of the user's mesh."""
    sizes, n = [], 2
    while devices > 1:
        while devices % n == 0:
            sizes.append(n)
            devices //= n
        n += 1
    return tuple(sizes), tuple(f"axis{d}" for d in range(len(sizes)))


mlir.register_lowering(drop_p, _lower, platform="cpu")
prim_requires_devices_during_lowering.add(drop_p)
