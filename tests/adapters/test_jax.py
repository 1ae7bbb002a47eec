"""JAX: fastdrop's masks under its transformations."""

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from fastdrop.adapters.jax import (  # noqa: E402
    alpha_dropout,
    bias_dropout_add,
    dropout,
    dropout_add,
    gaussian_dropout,
    gaussian_noise,
    relu_dropout,
)

DTYPES = [jnp.float32, jnp.float16, jnp.bfloat16, jnp.float64]


@pytest.fixture(params=DTYPES, ids=lambda dtype: dtype.__name__)
def dtype(request):
    with jax.enable_x64(request.param is jnp.float64):
        yield request.param


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("shared_axes", [(), (1,)])
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_the_same_bits_as_numpy(dtype, p, shared_axes):
    """Forward and backward, compiled or not."""
    x, dy = normal(30, 40, dtype=dtype), normal(40, 30, dtype=dtype).T + dtype(1)
    more = {"shared_axes": shared_axes}
    expected, ctx = fd.dropout(x, p, rng=fd.Rng(2**64 - 1, 2**40), **more)

    def function(x):
        return dropout(x, p, key=2**64 - 1, call=2**40, **more)

    for f in (function, jax.jit(function)):
        y, pull = jax.vjp(f, jnp.asarray(x))
        assert y.dtype == x.dtype
        assert_same_bits(np.asarray(y), expected)
        assert_same_bits(np.asarray(pull(jnp.asarray(dy))[0]), ctx.backward(dy))


def test_keys():
    x = jnp.ones(300)
    expected, _ = fd.dropout(np.ones(300, np.float32), 0.5, rng=fd.Rng(1234, 5))
    raw = jax.random.PRNGKey(1234)
    assert raw.shape == (2,)
    for key in (1234, jax.random.key(1234), raw, np.asarray(raw), jnp.uint32(1234)):
        assert_same_bits(np.asarray(dropout(x, key=key, call=5)), expected)
        again = jax.jit(dropout)(x, key=key, call=jnp.int32(5))
        assert_same_bits(np.asarray(again), expected)
    others = [
        dropout(x, key=jax.random.key(1234), call=6),
        dropout(x, key=jax.random.fold_in(jax.random.key(1234), 1), call=5),
        dropout(x, key=jax.random.key(1234, impl="rbg"), call=5),
        dropout(x, key=jax.random.split(jax.random.key(1234, impl="rbg"))[1], call=5),
    ]
    for k, y in enumerate(others):
        assert float((y == 0).mean()) == pytest.approx(0.5, abs=0.1)
        for other in [expected, *others[:k]]:
            assert (np.asarray(y) != np.asarray(other)).any()
    with jax.enable_x64(True):
        large = dropout(x, key=jnp.uint64(2**40 + 1), call=jnp.int64(2**33))
    expected, _ = fd.dropout(np.ones(300, np.float32), 0.5, rng=fd.Rng(2**40 + 1, 2**33))
    assert_same_bits(np.asarray(large), expected)


def test_wrong_keys_and_calls():
    x = jnp.ones(3)
    with pytest.raises(ValueError, match=r"key must be one key, got \(2,\)"):
        dropout(x, key=jax.random.split(jax.random.key(1)))
    with pytest.raises(TypeError, match="call must be an int, got an array of float32"):
        dropout(x, key=1, call=jnp.ones(()))
    with pytest.raises(ValueError, match=r"call must be in 0 ... 2\*\*64 - 1, got -1"):
        dropout(x, key=1, call=-1)
    with pytest.raises(TypeError, match="key must be an int, got None"):
        dropout(x, key=None)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64, got int"):
        dropout(jnp.arange(3), key=1)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        dropout(jnp.ones(3), 1.5, key=1)
    with pytest.raises(TypeError, match="p must be a real number"):
        dropout(jnp.ones(3), "0.5", key=1)
    with pytest.raises(
        TypeError, match=r"p must be a real number, got an array of float32, \(2,\)"
    ):
        jax.jit(lambda p: dropout(jnp.ones(3), p, key=1))(jnp.ones(2))
    with pytest.raises(ValueError, match=r"residual must have shape \(3,\), got \(2,\)"):
        dropout_add(jnp.ones(3), jnp.ones(2), key=1)
    with pytest.raises(TypeError, match="bias must have dtype float32 as x has, got bfloat16"):
        bias_dropout_add(jnp.ones(3), jnp.ones(3, jnp.bfloat16), jnp.ones(3), key=1)
    with pytest.raises(ValueError, match="x must have at least one axis"):
        bias_dropout_add(jnp.ones(()), jnp.ones(1), jnp.ones(()), key=1)
    with pytest.raises(ValueError, match="p must be below 1"):
        gaussian_dropout(jnp.ones(3), 1.0, key=1)
    with pytest.raises(ValueError, match="std must be in"):
        gaussian_noise(jnp.ones(3), -1.0, key=1)
    with pytest.raises(ValueError, match="region must contain a part"):
        dropout(jnp.ones(3), key=1, region=((2,), (4,)))
    with pytest.raises(ValueError, match="shared_axes"):
        dropout(jnp.ones(3), key=1, shared_axes=1)


def test_vmap_is_a_loop():
    x = normal(6, 5, 7)
    keys = jax.random.split(jax.random.key(1), 30).reshape(6, 5)

    def function(x, key):
        return dropout(x, 0.3, key=key)

    def loop(f, *args):
        return jnp.stack([f(*each) for each in zip(*args, strict=True)])

    own = jax.vmap(function)(x, keys[:, 0])
    assert_same_bits(np.asarray(own), np.asarray(loop(function, x, keys[:, 0])))
    same = jax.vmap(function, (0, None))(x, keys[0, 0])
    assert_same_bits(np.asarray(same), np.asarray(loop(lambda x: function(x, keys[0, 0]), x)))
    nested = jax.jit(jax.vmap(jax.vmap(function)))(x, keys)
    looped = loop(lambda x, k: loop(function, x, k), x, keys)
    assert_same_bits(np.asarray(nested), np.asarray(looped))
    one = jax.vmap(function, (None, 0))(x, keys[0])
    assert_same_bits(np.asarray(one), np.asarray(loop(lambda k: function(x, k), keys[0])))
    inner = jax.vmap(jax.vmap(function, (1, None), 1))(x, keys[:, 0])
    rows = [loop(lambda x, k=k: function(x, k), a.T).T for a, k in zip(x, keys[:, 0], strict=True)]
    assert_same_bits(np.asarray(inner), np.asarray(jnp.stack(rows)))


def test_gradient_under_vmap():
    x, keys = normal(6, 40), jax.random.split(jax.random.key(1), 6)

    def loss(x, key):
        return jnp.sum(dropout(x, 0.3, key=key) ** 2)

    batch = jax.jit(jax.vmap(jax.grad(loss)))(x, keys)
    expected = jnp.stack([jax.grad(loss)(a, k) for a, k in zip(x, keys, strict=True)])
    assert_same_bits(np.asarray(batch), np.asarray(expected))


SHAPE = 5, 4
NETWORKS = {
    "dropout": lambda x: dropout(x, 0.3, key=5) * jnp.sin(x),
    "shared": lambda x: dropout(x, 0.3, key=5, shared_axes=0) * jnp.sin(x),
    "region": lambda x: dropout(x, 0.3, key=5, region=((1, 2), (9, 9))) * jnp.sin(x),
    "add": lambda x: dropout_add(jnp.sin(x), jnp.cos(x), 0.3, key=5),
    "bias": lambda x: bias_dropout_add(jnp.sin(x), jnp.sin(x[0]), jnp.cos(x), 0.3, key=5) ** 2,
    "relu": lambda x: relu_dropout(x, 0.3, key=5) * jnp.sin(x),
    "alpha": lambda x: alpha_dropout(x, 0.3, key=5) * jnp.sin(x),
    "gaussian": lambda x: gaussian_dropout(x, 0.3, key=5) * jnp.sin(x),
    "noise": lambda x: gaussian_noise(x, 0.3, key=5) * jnp.sin(x),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_derivatives(name):
    """First and second order in both modes, by central differences; compositions of them agree."""
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        f, x = jax.jit(NETWORKS[name]), jnp.asarray(normal(*SHAPE, dtype=np.float64))
        check_grads(f, (x,), order=2, modes=("fwd", "rev"), rtol=1e-6, atol=1e-6)

        def total(x):
            return (f(x) ** 2).sum()

        first = jax.grad(total)(x)
        np.testing.assert_allclose(jax.jacfwd(total)(x), first, rtol=1e-12, atol=1e-12)
        second = jax.hessian(total)(x)
        for other in (jax.jacrev(jax.grad(total)), jax.jacfwd(jax.jacfwd(total))):
            np.testing.assert_allclose(other(x), second, rtol=1e-12, atol=1e-12)
        _, tangent = jax.jvp(jax.grad(total), (x,), (x,))
        product = jnp.tensordot(second, x, 2)
        np.testing.assert_allclose(tangent, product, rtol=1e-12, atol=1e-12)
        many = jnp.stack([x, x + 1])
        batch = jax.vmap(jax.grad(total))(many)
        np.testing.assert_allclose(
            batch, [jax.grad(total)(x) for x in many], rtol=1e-12, atol=1e-12
        )


def test_the_hessian_of_the_issue():
    key = jax.random.key(0)
    found = jax.hessian(lambda x: (dropout(x, 0.3, key=key) ** 2).sum())(jnp.ones(4))
    kept, _ = fd.dropout(np.ones(4, np.float32), 0.3, rng=fd.Rng(0))
    np.testing.assert_allclose(found, np.diag(2 * kept**2), rtol=1e-6)


OPERANDS = {
    "dropout": (dropout, fd.dropout, 0.3, 1),
    "dropout_add": (dropout_add, fd.dropout_add, 0.3, 2),
    "bias_dropout_add": (bias_dropout_add, fd.bias_dropout_add, 0.3, 3),
    "relu_dropout": (relu_dropout, fd.relu_dropout, 0.3, 1),
    "alpha_dropout": (alpha_dropout, fd.alpha_dropout, 0.3, 1),
    "gaussian_dropout": (gaussian_dropout, fd.gaussian_dropout, 0.3, 1),
    "gaussian_noise": (gaussian_noise, fd.gaussian_noise, 1.5, 1),
}


def operands(count, *shape, dtype=np.float32):
    """x, bias, residual: so many of them, in the order of the functions."""
    draw = np.random.default_rng(1)
    x, residual = (draw.standard_normal(shape).astype(dtype) for _ in range(2))
    bias = draw.standard_normal(shape[-1:]).astype(dtype)
    return {1: [x], 2: [x, residual], 3: [x, bias, residual]}[count]


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize(
    "more",
    [{}, {"shared_axes": (0, 2)}, {"region": ((1, 0, 3), (9, 40, 50))}, {"training": False}],
    ids=["plain", "shared", "region", "evaluation"],
)
def test_every_op_has_the_bits_of_numpy(dtype, name, more):
    ours, theirs, p, count = OPERANDS[name]
    given = operands(count, 3, 40, 30, dtype=dtype)
    expected, ctx = theirs(*given, p, rng=fd.Rng(7, 2**33), **more)
    y, pull = jax.vjp(jax.jit(lambda *a: ours(*a, p, key=7, call=2**33, **more)), *given)
    assert y.dtype == dtype
    assert_same_bits(np.asarray(y), expected)
    dy = operands(1, 3, 40, 30, dtype=dtype)[0] + dtype(1)
    grads, wanted = pull(jnp.asarray(dy)), ctx.backward(dy)
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    assert_same_bits(np.asarray(grads[0]), wanted[0])
    for found, want in zip(grads[1:], wanted[1:], strict=True):  # sums in another order
        np.testing.assert_allclose(found.astype(float), want.astype(float), rtol=0.03, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("batched", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1)])
def test_every_op_under_vmap_is_a_loop(name, batched):
    """batched: the first operand, the others, the key."""
    ours, _, p, count = OPERANDS[name]
    given = operands(count, 5, 6)
    keys = jax.random.split(jax.random.key(1), 4)
    which = [batched[0], *[batched[1]] * (count - 1), batched[2]]
    if not any(which):
        return
    scales = jnp.arange(1.0, 5)
    many = [jnp.stack([v * s for s in scales]) for v in given] + [keys]
    args = [v if b else v[0] for v, b in zip(many, which, strict=True)]

    def f(*args):
        return jax.value_and_grad(lambda *a: (ours(*a[:-1], p, key=a[-1]) ** 2).sum())(*args)

    found = jax.jit(jax.vmap(f, [0 if b else None for b in which]))(*args)
    for i in range(4):
        expected = f(*[v[i] if b else v for v, b in zip(args, which, strict=True)])
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-5)
    twice = jax.vmap(jax.vmap(lambda x: ours(x, *args[1:-1], p, key=keys[0])))
    if not batched[1]:
        x = jnp.asarray(operands(1, 2, 3, 5, 6)[0])
        loop = [[ours(x[i, j], *args[1:-1], p, key=keys[0]) for j in range(3)] for i in range(2)]
        assert_same_bits(np.asarray(twice(x)), np.asarray(jnp.stack([jnp.stack(r) for r in loop])))


def test_rates_that_are_traced():
    x, drop = jnp.ones(2000), jax.jit(lambda x, p: dropout(x, p, key=3))
    for p in (0.0, 0.1, 0.5, 1.0, 2.0**-30):
        rounded = float(np.float32(p))
        expected, _ = fd.dropout(np.ones(2000, np.float32), rounded, rng=3)
        assert_same_bits(np.asarray(drop(x, p)), expected)
        assert_same_bits(np.asarray(dropout(x, jnp.float32(p), key=3)), expected)
        assert_same_bits(np.asarray(dropout(x, np.float32(p), key=3)), expected)
    rates = jnp.array([0.1, 0.5, 0.9])
    many = jax.vmap(drop, (None, 0))(x, rates)
    for y, p in zip(many, rates, strict=True):
        assert_same_bits(np.asarray(y), np.asarray(drop(x, p)))
    schedule = jax.jit(lambda step: dropout(x, jnp.minimum(0.5, step / 100), key=3))
    assert_same_bits(np.asarray(schedule(25)), np.asarray(drop(x, 0.25)))
    assert jax.grad(lambda p: dropout(x, p, key=3).sum())(0.3) == 0
    with jax.enable_x64(True):
        wide = jax.jit(lambda p: dropout(x, p, key=3))(0.1)
    assert_same_bits(np.asarray(wide), np.asarray(dropout(x, 0.1, key=3)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda n: dropout(jnp.ones(3), key=1, call=-n),
            "call, and key if it is an int, must be in 0",
        ),
        (lambda n: dropout(jnp.ones(3), key=-n), "call, and key if it is an int, must be in 0"),
        (lambda n: dropout(jnp.ones(3), n + 0.5, key=1), r"p must be in \[0, 1\]"),
        (lambda n: dropout(jnp.ones(3), n * jnp.nan, key=1), r"p must be in \[0, 1\]"),
        (lambda n: gaussian_dropout(jnp.ones(3), n, key=1), "p must be below 1"),
        (lambda n: gaussian_noise(jnp.ones(3), -n, key=1), "std must be in"),
        (lambda n: dropout(jnp.ones(3), key=1, region=((n,), (3,))), "region must contain x"),
        (lambda n: dropout(jnp.ones(3), key=1, region=((-n,), (9,))), "region must contain x"),
    ],
)
def test_what_is_traced_is_checked_when_it_runs(function, words):
    with pytest.raises(jax.errors.JaxRuntimeError, match=words):
        jax.jit(function)(1).block_until_ready()


def test_region_with_a_traced_start():
    whole = normal(40, 60)
    expected, _ = fd.dropout(whole, 0.3, rng=4)
    block = jax.jit(
        lambda i, j: dropout(
            jax.lax.dynamic_slice(whole, (i, j), (7, 9)), 0.3, key=4, region=((i, j), (40, 60))
        )
    )
    for i, j in ((0, 0), (5, 11), (33, 51)):
        assert_same_bits(np.asarray(block(i, j)), expected[i : i + 7, j : j + 9])
    far = jax.jit(lambda n: dropout(jnp.ones(50, jnp.float32), 0.3, key=4, region=((n,), (2**40,))))
    with jax.enable_x64(True):
        found = far(2**39)
    where = ((2**39,), (2**40,))
    expected, _ = fd.dropout(np.ones(50, np.float32), 0.3, rng=4, region=where)
    assert_same_bits(np.asarray(found), expected)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_raw_keys_are_keys(impl):
    key = jax.random.key(5, impl=impl)
    data = jax.random.key_data(key)
    for raw in (data, np.asarray(data)):
        again = dropout(jnp.ones(99), key=raw)
        assert_same_bits(np.asarray(again), np.asarray(dropout(jnp.ones(99), key=key)))
    with pytest.raises(ValueError, match=r"key must be one key, got an array of uint32, \(3,\)"):
        dropout(jnp.ones(3), key=jnp.zeros(3, jnp.uint32))


def test_export():
    export = pytest.importorskip("jax.export")
    known = [export.DisabledSafetyCheck.custom_call("fastdrop_dropout")]
    f = jax.jit(lambda x: dropout(x, 0.3, key=1))
    with pytest.raises(ValueError, match="fastdrop_dropout"):
        export.export(f)(jnp.ones(99))
    again = export.export(f, disabled_checks=known)(jnp.ones(99)).call(jnp.ones(99))
    assert_same_bits(np.asarray(again), np.asarray(f(jnp.ones(99))))


@pytest.mark.parametrize("case", ["issue", pytest.param("all", marks=pytest.mark.slow)])
def test_eight_devices(case):
    """In a process of its own, as the number of devices is chosen when JAX is imported."""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("jax_devices.py")), case]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    "name", ["", *[pytest.param(n, marks=pytest.mark.slow) for n in (".linen", ".nnx", ".equinox")]]
)
def test_examples(name):
    pytest.importorskip({".equinox": "equinox", "": "jax"}.get(name, "flax"))
    module = importlib.import_module(f"fastdrop.adapters.jax{name}")
    failed, attempted = doctest.testmod(module)
    assert attempted > 5
    assert not failed


def test_rematerialization_draws_the_same_mask():
    x, w = normal(8, 30), normal(30, 30)

    def block(x, w):
        return dropout(jnp.tanh(x @ w), 0.5, key=jax.random.key(3)) @ w

    def loss(block):
        return jax.jit(jax.grad(lambda w: (block(x, w) ** 2).sum()))

    plain, again = loss(block)(w), loss(jax.checkpoint(block))(w)
    np.testing.assert_allclose(again, plain, rtol=1e-5)


def test_scan():
    """The number of the call may be that of a compiled loop."""

    def body(x, number):
        return x, dropout(x, 0.5, key=7, call=number)

    _, ys = jax.jit(lambda x: jax.lax.scan(body, x, jnp.arange(4)))(jnp.ones(300))
    for call, y in enumerate(ys):
        expected, _ = fd.dropout(np.ones(300, np.float32), 0.5, rng=fd.Rng(7, call))
        assert_same_bits(np.asarray(y), expected)


def test_eval_shapes_and_infinities():
    x = jnp.asarray(normal(3, 4))
    assert dropout(x, 0.5, key=1, training=False) is x
    for shape in ((), (0, 3), (1,)):
        assert dropout(jnp.ones(shape), 0.5, key=1).shape == shape
    assert dropout(jnp.ones((0, 3)), 0.5, key=1, shared_axes=0).shape == (0, 3)
    for shared_axes in ((), (0,)):
        y = dropout(jnp.full((2, 500), jnp.inf), 0.5, key=1, shared_axes=shared_axes)
        assert set(np.unique(y)) == {0.0, np.inf}
    large = dropout(jnp.ones(200_001), 0.5, key=1)  # several threads
    assert_same_bits(np.asarray(large), fd.dropout(np.ones(200_001, np.float32), rng=1)[0])


def test_linen():
    nn = pytest.importorskip("flax.linen")
    from fastdrop.adapters.jax.linen import Dropout

    x, key = jnp.ones((30, 4, 5)), jax.random.key(3)
    rngs = {"rngs": {"dropout": key}}
    assert Dropout(0.5, deterministic=True).apply({}, x) is x
    assert Dropout(0.5).apply({}, x, deterministic=True) is x
    assert Dropout(0.0).apply({}, x, deterministic=False) is x
    y = Dropout(0.5, broadcast_dims=(1,)).apply({}, x, deterministic=False, **rngs)
    assert ((y[:, :1] == y) & ((y == 0) | (y == 2))).all()
    assert 0.3 < (y == 0).mean() < 0.7
    assert (y != Dropout(0.5).apply({}, x, deterministic=False, **rngs)).any()
    own = Dropout(0.5).apply({}, x, False, key)
    assert_same_bits(np.asarray(own), np.asarray(dropout(x, 0.5, key=key)))
    traced = jax.jit(lambda p: Dropout(p).apply({}, x, False, key))(0.5)
    assert_same_bits(np.asarray(traced), np.asarray(own))
    with pytest.raises(ValueError, match="deterministic"):
        Dropout(0.5).apply({}, x)
    with pytest.raises(Exception, match="dropout"):
        Dropout(0.5).apply({}, x, deterministic=False)

    class Net(nn.Module):
        kind: type

        @nn.compact
        def __call__(self, x):
            return self.kind(0.5, deterministic=True)(nn.Dense(3)(x))

    variables = Net(nn.Dropout).init(key, x)
    assert_same_bits(
        np.asarray(Net(Dropout).apply(variables, x)),
        np.asarray(Net(nn.Dropout).apply(variables, x)),
    )


def test_nnx():
    nnx = pytest.importorskip("flax.nnx")
    from fastdrop.adapters.jax.nnx import Dropout

    x = jnp.ones((30, 4, 5))
    layer = Dropout(0.5, broadcast_dims=(1,), rngs=nnx.Rngs(0))
    first, second = layer(x), layer(x)
    assert ((first[:, :1] == first) & ((first == 0) | (first == 2))).all()
    assert (first != second).any()
    layer.eval()
    assert layer(x) is x
    layer.train()
    assert (layer(x) != second).any()
    assert nnx.view(layer, deterministic=True)(x) is x
    assert layer(x, deterministic=True) is x
    assert Dropout(0.0)(x) is x
    key = jax.random.key(3)
    for rngs in (key, nnx.Rngs(dropout=key), nnx.Rngs(dropout=key).dropout):
        y = Dropout(0.5)(x, rngs=rngs)
        assert (y == 0).any()
    assert_same_bits(np.asarray(Dropout(0.5)(x, rngs=key)), np.asarray(dropout(x, 0.5, key=key)))
    with pytest.raises(ValueError, match="rngs must be given"):
        Dropout(0.5)(x)
    with pytest.raises(ValueError, match="deterministic must be given"):
        Dropout(0.5, deterministic=None)(x)


def test_equinox():
    eqx = pytest.importorskip("equinox")
    from fastdrop.adapters.jax.equinox import Dropout

    x, key = jnp.ones((30, 4)), jax.random.key(3)
    layer = Dropout(0.3)
    assert_same_bits(np.asarray(layer(x, key=key)), np.asarray(dropout(x, 0.3, key=key)))
    again = eqx.filter_jit(lambda layer, key: layer(x, key=key))(layer, key)
    assert_same_bits(np.asarray(again), np.asarray(layer(x, key=key)))
    assert eqx.nn.inference_mode(layer)(x) is x
    assert (eqx.nn.inference_mode(layer)(x, key=key, inference=False) == 0).any()
    assert layer(x, inference=True) is x
    assert Dropout(0.0)(x) is x
    with pytest.raises(RuntimeError, match="needs a key"):
        layer(x)
    changed = eqx.tree_at(lambda layer: layer.p, layer, jnp.float32(0.5))
    y = eqx.filter_jit(lambda layer: layer(x, key=key))(changed)
    assert_same_bits(np.asarray(y), np.asarray(dropout(x, 0.5, key=key)))
