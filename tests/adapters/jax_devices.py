"""JAX on several devices: run by test_jax.py, in a process that has eight.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/adapters/jax_devices.py issue | all
"""

import sys
from importlib.util import find_spec
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fastdrop as fd
from fastdrop.adapters.jax import (
    alpha_dropout,
    bias_dropout_add,
    dropout,
    dropout_add,
    gaussian_dropout,
    gaussian_noise,
    relu_dropout,
)

KEY = jax.random.key(0)
SENT = "all-gather", "all-to-all", "collective-permute", "all-reduce"
OPS = {
    "dropout": lambda x: dropout(x, 0.3, key=KEY),
    "half": lambda x: dropout(x, 0.5, key=KEY),
    "shared rows": lambda x: dropout(x, 0.3, key=KEY, shared_axes=0),
    "shared columns": lambda x: dropout(x, 0.3, key=KEY, shared_axes=1),
    "region": lambda x: dropout(x, 0.3, key=KEY, region=((3, 5), (100, 200))),
    "add": lambda x: dropout_add(x, jnp.sin(x), 0.3, key=KEY),
    "bias": lambda x: bias_dropout_add(x, jnp.arange(x.shape[1]) / 7, x, 0.3, key=KEY),
    "relu": lambda x: relu_dropout(x, 0.3, key=KEY),
    "alpha": lambda x: alpha_dropout(x, 0.3, key=KEY),
    "gaussian": lambda x: gaussian_dropout(x, 0.3, key=KEY),
    "noise of rows": lambda x: gaussian_noise(x, 0.3, key=KEY, shared_axes=1),
    "gradient": lambda x: jax.grad(lambda x: (dropout(x, 0.3, key=KEY) ** 2).sum())(x),
    "vmap": lambda x: jax.vmap(lambda x: dropout(x, 0.3, key=KEY))(x),
}


def put(mesh, a, *spec):
    return jax.device_put(a, NamedSharding(mesh, P(*spec)))


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


def issue():
    mesh = jax.make_mesh((8,), ("d",))
    weights, x = put(mesh, jnp.ones((128, 64)) / 50), put(mesh, jnp.ones((64, 128)), "d")
    drop = jax.jit(lambda x: dropout(x, 0.3, key=KEY))
    text = drop.lower(x).compile().as_text()
    assert not [word for word in SENT if word in text]
    assert "f32[8,128]" in text, "each device has its rows"
    y = drop(x)
    same(y, fd.dropout(np.ones((64, 128), np.float32), 0.3, rng=fd.Rng(0))[0])
    assert y.sharding.is_equivalent_to(x.sharding, 2)

    def gradient(weights, x):
        key = jax.random.fold_in(KEY, jax.lax.axis_index("d"))

        def loss(weights):
            return (dropout(x @ weights, 0.3, key=key) ** 2).mean()

        return jax.lax.pmean(jax.grad(loss)(weights), "d")

    specs = {"in_specs": (P(), P("d")), "out_specs": P()}
    found = jax.jit(jax.shard_map(gradient, mesh=mesh, **specs))(weights, x)

    def folded(weights):
        parts = [
            (dropout(x @ weights, 0.3, key=jax.random.fold_in(KEY, d)) ** 2).mean()
            for d, x in enumerate(jnp.split(jnp.ones((64, 128)), 8))
        ]
        return sum(parts) / 8

    # `weights` are not varying: the gradient is summed over the devices already.
    expected = 8 * jax.grad(folded)(jnp.ones((128, 64)) / 50)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def sharded():
    """Every op, cut in every way: nothing is sent, the bits are those of one device."""
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    cuts = [
        ((8,), "a", ("a",)),
        ((8,), "a", (None, "a")),
        ((4, 2), "ab", ("a", "b")),
        ((4, 2), "ab", ("b", "a")),
        ((4, 2), "ab", (("a", "b"),)),
        ((4, 2), "ab", (None, ("b", "a"))),
        ((4, 2), "ab", ("b",)),
    ]
    for name, f in OPS.items():
        expected = jax.jit(f)(x)
        for shape, names, spec in cuts:
            for kind in (AxisType.Auto, AxisType.Explicit):
                if kind == AxisType.Explicit and name == "vmap":
                    continue  # wants spmd_axis_name, as all of JAX does
                mesh = jax.make_mesh(shape, tuple(names), axis_types=(kind,) * len(shape))
                cut = put(mesh, x, *spec)
                compiled = jax.jit(f).lower(cut).compile()
                sent = [word for word in SENT if word in compiled.as_text()]
                assert not sent, (name, spec, kind, sent)
                y = jax.jit(f)(cut)
                assert y.sharding.is_equivalent_to(cut.sharding, 2), (name, spec, y.sharding)
                if name == "bias" and kind == AxisType.Auto:
                    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
                else:
                    same(y, expected)
    mesh = jax.make_mesh((8,), ("d",))
    cut = put(mesh, x, "d")
    eager = dropout(cut, 0.3, key=KEY)
    assert eager.sharding.is_equivalent_to(cut.sharding, 2)
    same(eager, dropout(x, 0.3, key=KEY))


def parts_of_axes():
    """An axis of the mesh that is cut in two, by a reshape, and shards that are not full."""
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    for shape in ((2, 4, 8, 128), (4, 2, 8, 128), (2, 32, 128)):
        f = jax.jit(lambda x, shape=shape: dropout(x.reshape(shape), 0.3, key=KEY))
        same(f(put(mesh, x, "d")), dropout(x.reshape(shape), 0.3, key=KEY))
    whole = NamedSharding(mesh, P("d"))
    for n in (3, 10):
        f = jax.jit(lambda x: dropout(jax.lax.with_sharding_constraint(x, whole), 0.3, key=KEY))
        same(f(x[:n]), dropout(x[:n], 0.3, key=KEY))


def partly_manual():
    """shard_map that leaves axes to XLA, which cuts in every order: bits, nothing is sent."""
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)
    square = lambda f: lambda x: (f(x) ** 2).sum()  # noqa: E731
    expected = dropout(x, 0.3, key=KEY), jax.grad(square(lambda x: dropout(x, 0.3, key=KEY)))(x)
    cases = [  # sizes of a, b, c; those of the shard_map; what rows and columns are cut along
        ((2, 2, 2), "a", [("abc", ""), ("a", "bc"), ("a", "cb"), ("ab", "c"), ("ac", "b")]),
        ((2, 2, 2), "b", [("bac", ""), ("b", "ca"), ("bc", "a")]),
        ((2, 4, 1), "a", [("a", "b")]),
        ((2, 1, 4), "bc", [("bca", ""), ("bc", "a")]),
        ((4, 2, 1), "ab", [("ab", "")]),
    ]
    for sizes, own, cuts in cases:
        mesh = jax.make_mesh(sizes, tuple("abc"), axis_types=(AxisType.Auto,) * 3)
        rows = 64 // prod(mesh.shape[name] for name in own)

        def block(x, own=own, rows=rows):
            start = rows * jax.lax.axis_index(tuple(own)), 0
            return dropout(x, 0.3, key=KEY, region=(start, (64, 128)))

        specs = {"in_specs": P(tuple(own)), "out_specs": P(tuple(own))}
        blocks = jax.shard_map(block, mesh=mesh, axis_names=set(own), **specs)
        for spec in cuts:
            cut = put(mesh, x, *map(tuple, spec))
            compiled = jax.jit(blocks).lower(cut).compile()
            sent = [word for word in SENT if word in compiled.as_text()]
            assert not sent, (sizes, own, spec, sent)
            y = compiled(cut)
            assert y.sharding.is_equivalent_to(cut.sharding, 2), (sizes, own, spec)
            same(y, expected[0])
            same(jax.jit(jax.grad(square(blocks)))(cut), expected[1])


def memory():
    """What a device needs beside its shards of x and y: no more than with flax's dropout."""
    from flax import linen

    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    x = put(mesh, jnp.ones((4096, 1024)), "d")

    def theirs(x):
        return linen.Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": KEY})

    def room(f):
        return jax.jit(f).lower(x).compile().memory_analysis().temp_size_in_bytes

    def gradient(f):
        return jax.grad(lambda x: (f(x) ** 2).sum())

    assert room(OPS["dropout"]) <= 4096
    for of in (lambda f: f, gradient):
        ours, other = room(of(OPS["dropout"])), room(of(theirs))
        print(f"bytes on a device: {ours}, with flax {other}")
        assert ours <= other


def manual():
    """shard_map: a region is a block of the whole array's mask; scan; a data-parallel step."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)

    def block(x):
        n, m = x.shape
        start = n * jax.lax.axis_index("a"), m * jax.lax.axis_index("b")
        return dropout(x, 0.3, key=KEY, region=(start, (64, 128)))

    specs = {"in_specs": P("a", "b"), "out_specs": P("a", "b")}
    found = jax.jit(jax.shard_map(block, mesh=mesh, **specs))(x)
    same(found, dropout(x, 0.3, key=KEY))
    pulled = jax.grad(lambda x: (jax.shard_map(block, mesh=mesh, **specs)(x) ** 2).sum())(x)
    same(pulled, jax.grad(lambda x: (dropout(x, 0.3, key=KEY) ** 2).sum())(x))

    def steps(x):
        def body(x, number):
            key = jax.random.fold_in(KEY, jax.lax.axis_index("a"))
            return dropout(x, 0.1, key=key, call=number), x.sum()

        return jax.lax.scan(body, x, jnp.arange(3))[0]

    found = jax.jit(jax.shard_map(steps, mesh=mesh, in_specs=P("a"), out_specs=P("a")))(x)
    for d, part in enumerate(np.split(x, 4)):
        for number in range(3):
            part = dropout(part, 0.1, key=jax.random.fold_in(KEY, d), call=number)
        same(found[16 * d : 16 * d + 16], part)

    fixed = dropout(jnp.ones(3), 0.3, key=KEY)  # shards that do not differ
    found = jax.shard_map(
        lambda: dropout(jnp.ones(3), 0.3, key=KEY), mesh=mesh, in_specs=(), out_specs=P()
    )()
    same(found, fixed)
    for random in (
        lambda key: dropout(jnp.ones(3), 0.3, key=key),
        lambda key: jax.random.normal(key, (3,)),
    ):
        with pytest.raises(ValueError, match="out_specs"):
            jax.shard_map(
                lambda random=random: random(jax.random.fold_in(KEY, jax.lax.axis_index("a"))),
                mesh=mesh,
                in_specs=(),
                out_specs=P(),
            )()


def step():
    """A data-parallel step of training by shard_map is that of one device, with region=."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.standard_normal((64, 16)), jnp.float32)
    t = x.sum(axis=1)
    first = [jnp.asarray(draw.standard_normal(s) / 4, jnp.float32) for s in ((16, 32), (32,))]

    def loss(w, x, t, number, start):
        where = (start, 0), (64, 32)
        h = relu_dropout(x @ w[0], 0.2, key=KEY, call=number, region=where)
        return ((h @ w[1] - t) ** 2).sum() / 64

    def one(w, number):
        grads = jax.grad(loss)(w, x, t, number, 0)
        return [v - 0.1 * g for v, g in zip(w, grads, strict=True)]

    def many(w, x, t, number):
        start = len(x) * jax.lax.axis_index("d")
        grads = jax.grad(loss)(w, x, t, number, start)  # summed over the devices, as w is theirs
        return [v - 0.1 * g for v, g in zip(w, grads, strict=True)]

    specs = {"in_specs": (P(), P("d"), P("d"), P()), "out_specs": P()}
    parallel = jax.jit(jax.shard_map(many, mesh=mesh, **specs))
    alone, together, losses = first, first, []
    for number in range(40):
        losses.append(float(loss(alone, x, t, number, 0)))
        alone, together = jax.jit(one)(alone, number), parallel(together, x, t, number)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)
    assert losses[-1] < 0.5 * losses[0]


if __name__ == "__main__":
    assert jax.device_count() == 8
    issue()
    if sys.argv[1] == "all":
        sharded()
        parts_of_axes()
        partly_manual()
        if find_spec("flax"):
            memory()
        manual()
        step()
