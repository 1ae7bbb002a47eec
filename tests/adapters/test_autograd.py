"""HIPS autograd: derivatives of our primitive."""

import doctest

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

pytest.importorskip("autograd")
import autograd.numpy as anp
from autograd import checkpoint, elementwise_grad, grad, hessian, jacobian, make_jvp
from autograd.core import make_vjp
from autograd.test_util import check_grads

from fastdrop.adapters import autograd as adapter
from fastdrop.adapters.autograd import bias_dropout_add, dropout, dropout_add, relu_dropout

x = np.random.default_rng(0).standard_normal((5, 7))


def test_example():
    failed, attempted = doctest.testmod(adapter)
    assert attempted > 5
    assert not failed


@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1])
@pytest.mark.parametrize("save", ["bits", "seed"])
def test_same_as_fastdrop(p, save, any_dtype):
    a, dy = x.astype(any_dtype), (x + 1).astype(any_dtype)
    y, ctx = fd.dropout(a, p, rng=3, shared_axes=1)
    how = {"rng": 3, "shared_axes": 1, "save": save}
    assert_same_bits(dropout(a, p, **how), y)
    vjp, ans = make_vjp(lambda a: dropout(a, p, **how), a)
    assert_same_bits(ans, y)
    assert_same_bits(vjp(dy), ctx.backward(dy))


@pytest.mark.parametrize("p", [0, 0.3, 0.5, 1])
def test_all_derivatives_of_two_orders(p):
    """By central differences: reverse and forward mode, and each of both."""
    check_grads(lambda a: dropout(a, p, rng=3), modes=["fwd", "rev"], order=2)(x)
    check_grads(lambda a: anp.sin(dropout(a**3, p, rng=3)), modes=["fwd", "rev"], order=2)(x)


def test_second_order_passes():
    """sum(dropout(a)^3) has the Hessian 6 a s^3 on the diagonal where a is kept."""
    a = x[0]
    scale = fd.dropout(np.ones_like(a), 0.3, rng=3)[0]
    cubes = lambda a: anp.sum(dropout(a, 0.3, rng=3) ** 3)  # noqa: E731
    np.testing.assert_allclose(hessian(cubes)(a), np.diag(6 * a * scale**3), rtol=1e-12)
    third = elementwise_grad(elementwise_grad(elementwise_grad(cubes)))(a)
    np.testing.assert_allclose(third, 6 * scale**3, rtol=1e-12)


def test_gradient_penalty():
    """A second pass through the backward pass, its mask drawn in the first: one call in all."""
    rng = fd.Rng(3)
    penalty = lambda a: anp.sum(  # noqa: E731
        grad(lambda a: anp.sum(dropout(a, 0.3, rng=rng) ** 2))(a) ** 2
    )
    value = grad(penalty)(x)
    assert rng.call == 1
    scale = fd.dropout(np.ones_like(x), 0.3, rng=3)[0]
    np.testing.assert_allclose(value, 8 * x * scale**4, rtol=1e-12)


def test_forward_mode_and_jacobian():
    y, dx = make_jvp(lambda a: dropout(a, 0.4, rng=fd.Rng(5)))(x)(x + 1)
    expected, ctx = fd.dropout(x, 0.4, rng=5)
    assert_same_bits(y, expected)
    assert_same_bits(dx, ctx.backward(x + 1))
    diagonal = fd.dropout(np.ones(7), 0.4, rng=5)[0]
    np.testing.assert_array_equal(
        jacobian(lambda a: dropout(a, 0.4, rng=5))(x[0]), np.diag(diagonal)
    )


def test_checkpoint_draws_the_same_mask():
    calls = []

    def block(a):
        calls.append(a)
        return dropout(anp.sin(a), 0.5, rng=7)

    expected = grad(lambda a: anp.sum(block(a) ** 2))(x)
    del calls[:]
    np.testing.assert_array_equal(grad(lambda a: anp.sum(checkpoint(block)(a) ** 2))(x), expected)
    assert len(calls) == 2


@pytest.mark.parametrize("kind", ["Rng", "Generator", "None"])
def test_checkpoint_refuses_another_mask(kind):
    rng = {"Rng": fd.Rng(3), "Generator": np.random.default_rng(3), "None": None}[kind]
    block = checkpoint(lambda a: dropout(anp.sin(a), 0.5, rng=rng))
    block(x)
    with pytest.raises(RuntimeError, match="with another mask: its rng has gone on"):
        grad(lambda a: anp.sum(block(a)))(x)
    inside = checkpoint(lambda a: dropout(anp.sin(a), 0.5, rng=fd.Rng(3, 2**40)))
    expected = grad(lambda a: anp.sum(dropout(anp.sin(a), 0.5, rng=fd.Rng(3, 2**40))))(x)
    np.testing.assert_array_equal(grad(lambda a: anp.sum(inside(a)))(x), expected)


def sine_of(f):
    return lambda a: anp.sin(f(a))


FUSED = {
    "relu": (relu_dropout, fd.relu_dropout, (x,)),
    "add": (dropout_add, fd.dropout_add, (x, x[::-1])),
    "bias": (bias_dropout_add, fd.bias_dropout_add, (x, x[0], x[::-1])),
}


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("more", [{}, {"shared_axes": 1}, {"training": False}], ids=str)
def test_fused_ops(name, more):
    ours, theirs, given = FUSED[name]
    y, ctx = theirs(*given, 0.3, rng=3, **more)
    grads = ctx.backward(x + 1)
    grads = grads if isinstance(grads, tuple) else (grads,)

    def of(k):
        return lambda a: ours(*given[:k], a, *given[k + 1 :], 0.3, rng=3, **more)

    for k, expected in enumerate(grads):
        vjp, ans = make_vjp(of(k), given[k])
        assert_same_bits(ans, y)
        np.testing.assert_allclose(vjp(x + 1), expected, rtol=1e-12)
        check_grads(sine_of(of(k)), modes=["fwd", "rev"], order=2)(given[k])


def test_evaluation_and_calls():
    rng = fd.Rng(1)
    assert_same_bits(dropout(x, 0.5, rng=rng, training=False), x)
    np.testing.assert_array_equal(
        grad(lambda a: anp.sum(dropout(a, 0.5, rng=rng, training=False)))(x), 1
    )
    assert rng.call == 0
    first, second = dropout(x, 0.5, rng=rng), dropout(x, 0.5, rng=rng)
    assert (first != second).any()
    assert rng.call == 2


def test_errors_are_fastdrops():
    with pytest.raises(ValueError, match="p must be in"):
        grad(lambda a: anp.sum(dropout(a, 1.5)))(x)
    with pytest.raises(TypeError, match="x must be"):
        dropout(np.arange(3))
