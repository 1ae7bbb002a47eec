"""JAX: fastdrop's masks under its transformations."""

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

jax = pytest.importorskip("jax")
import jax.numpy as jnp  # noqa: E402

from fastdrop.adapters.jax import dropout  # noqa: E402

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
        jax.jit(lambda p: dropout(jnp.ones(3), p, key=1))(0.5)
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


@pytest.mark.parametrize("shared_axes", [(), (0,)])
def test_gradients(shared_axes):
    """First and second order, by central differences."""
    from jax.test_util import check_grads

    with jax.enable_x64(True):
        x = jnp.asarray(normal(5, 4, dtype=np.float64))

        def function(x):
            return dropout(x, 0.3, key=5, shared_axes=shared_axes) * jnp.sin(x)

        check_grads(function, (x,), order=2, modes="rev", rtol=1e-6, atol=1e-6)


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


def test_training():
    """The module's example, in full."""

    def loss(w, x, t, key):
        h = dropout(jax.nn.relu(x @ w[0]), 0.2, key=key)
        return jnp.mean((h @ w[1] - t) ** 2)

    @jax.jit
    def step(w, x, t, number):
        key = jax.random.fold_in(jax.random.key(1234), number)
        return jax.tree.map(lambda v, g: v - 0.03 * g, w, jax.grad(loss)(w, x, t, key))

    w = [jnp.asarray(normal(10, 64)) / 3, jnp.asarray(normal(64, 1)) / 8]
    x = normal(256, 10)
    t = x.sum(1, keepdims=True)
    for number in range(500):
        w = step(w, x, t, number)
    assert jnp.mean((jax.nn.relu(x @ w[0]) @ w[1] - t) ** 2) < 0.1 * t.var()
