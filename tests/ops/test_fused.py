"""dropout_add, bias_dropout_add and relu_dropout against the reference."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import _core, reference

OPS = ["dropout_add", "bias_dropout_add", "relu_dropout"]


def operands(shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    x, residual, dy = (generator.standard_normal(shape).astype(dtype) for _ in range(3))
    bias = generator.standard_normal(shape[-1:]).astype(dtype)  # one for each of the last axis
    return x, bias, residual, dy


def call(op, x, bias, residual, p, **arguments):
    """y, ctx, and the reference's y and mask of gradients."""
    given = {"dropout_add": (residual,), "bias_dropout_add": (bias, residual), "relu_dropout": ()}
    y, ctx = getattr(fd, op)(x, *given[op], p, **arguments)
    where = arguments.get("shared_axes", ()), arguments.get("region")
    p = p if arguments.get("training", True) else 0.0
    mask = reference.keep(reference.element_index(x.shape, *where), p, 5, 0)
    if op == "relu_dropout":
        expected = reference.fused(x, mask, p, relu=True)
        with np.errstate(all="ignore"):
            scaled = reference.fused(x, np.ones_like(mask), p)
            mask = mask & ~(scaled <= 0)
    else:
        add_bias = bias if op == "bias_dropout_add" else None
        expected = reference.fused(x, mask, p, bias=add_bias, residual=residual)
    return y, ctx, expected, mask


def check(op, x, bias, residual, dy, p, **arguments):
    y, ctx, expected, mask = call(op, x, bias, residual, p, rng=5, **arguments)
    assert_same_bits(y, expected)
    grads = ctx.backward(dy)
    dx = grads if op == "relu_dropout" else grads[0]
    assert_same_bits(dx, reference.fused(dy, mask, ctx.p))
    if op != "relu_dropout":
        assert_same_bits(grads[-1], dy)
    if op == "bias_dropout_add":
        assert grads[1].shape == bias.shape
        assert grads[1].dtype == x.dtype
        axes = tuple(range(x.ndim - 1))
        wide = dx.astype(np.float64)
        exact = wide.sum(axis=axes)
        size = np.abs(wide[np.isfinite(wide)]).sum()
        eps = float(2.0**-8 if x.dtype.name == "bfloat16" else np.finfo(x.dtype).eps)
        np.testing.assert_allclose(grads[1].astype(np.float64), exact, rtol=eps, atol=1e-14 * size)


@pytest.mark.parametrize("op", OPS)
def test_against_the_reference(isa, any_dtype, p, op):
    for shape in (
        (1,),
        (3, 5),
        (7, 64),
        (2, 3, 130),
        (40, 513),
        (1, 9001),
        (5000, 3),
        (0, 4),
        (4, 0),
        (3, 0, 2),
    ):
        check(op, *operands(shape, any_dtype), p)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "where",
    [
        {"shared_axes": (1,)},
        {"shared_axes": (0, 2)},
        {"region": ((1, 2, 3), (9, 40, 99))},
        {"region": ((4, 0, 0), (19, 30, 70))},
        {"shared_axes": (1,), "region": ((1, 2, 3), (9, 40, 99))},
    ],
    ids=str,
)
def test_shared_axes_and_region(isa, op, training, where):
    check(op, *operands((4, 30, 70), np.float32), 0.3, training=training, **where)


@pytest.mark.parametrize("op", OPS)
def test_layouts_are_copied(op):
    x, bias, residual, dy = operands((30, 40), np.float32)
    for view in (np.asfortranarray, lambda a: a[::-1, ::2], lambda a: a[5:, 3:]):
        v = [view(a) for a in (x, residual, dy)]
        check(op, v[0], bias[: v[0].shape[1]], v[1], v[2], 0.3)


@pytest.mark.parametrize("op", OPS)
def test_special_values(isa, any_dtype, op):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, 1.0, -1.5], np.float64)
    with np.errstate(all="ignore"):
        x = np.resize(special, (40, 9 * 7)).astype(any_dtype)
        ones = np.ones_like(x)
        check(op, x, ones[0], ones, x, 0.3)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("target", ["x", "residual", "other", "strided", "overlap"])
def test_out(isa, op, target):
    x, bias, residual, dy = operands((50, 100), np.float32)
    _, _, expected, _ = call(op, x, bias, residual, 0.3, rng=5)
    room = np.zeros((51, 200), np.float32)
    shifted = np.zeros(50 * 100 + 7, np.float32)
    shifted[:-7] = x.ravel()
    if target == "overlap":
        x = shifted[:-7].reshape(x.shape)
    out = {
        "x": x,
        "residual": residual,
        "other": room.ravel()[:5000].reshape(50, 100),
        "strided": room[1:, ::2],
        "overlap": shifted[7:].reshape(50, 100),
    }[target]
    y, ctx, _, _ = call(op, x, bias, residual, 0.3, rng=5, out=out)
    assert y is out
    assert_same_bits(np.ascontiguousarray(y), expected)
    grads = ctx.backward(dy.copy())
    dx = dy.copy()
    again = ctx.backward(dx, out=dx)
    if op == "relu_dropout":
        assert_same_bits(again, grads)
    else:
        for a, b in zip(again, grads, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("op", OPS[:2])
def test_seed_instead_of_bits(op):
    x, bias, residual, dy = operands((50, 100), np.float32)
    _, bits, _, _ = call(op, x, bias, residual, 0.3, rng=5)
    _, seed, _, _ = call(op, x, bias, residual, 0.3, rng=5, save="seed")
    assert (bits.nbytes, seed.nbytes) == (625, 0)
    for a, b in zip(bits.backward(dy), seed.backward(dy), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("op", OPS)
def test_gradients_by_central_differences(op):
    x, bias, residual, dy = operands((4, 5), np.float64)
    arrays = {"dropout_add": [x, residual], "relu_dropout": [x]}.get(op, [x, bias, residual])

    def value():
        y, ctx = getattr(fd, op)(*arrays, 0.4, rng=9)
        return np.vdot(y, dy), ctx

    grads = value()[1].backward(dy)
    grads = grads if isinstance(grads, tuple) else (grads,)
    h = 1e-6
    for array, grad in zip(arrays, grads, strict=True):
        for i in np.ndindex(array.shape):
            before = array[i]
            array[i] = before + h
            up, _ = value()
            array[i] = before - h
            down, _ = value()
            array[i] = before
            assert grad[i] == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("op", OPS)
def test_contexts_can_be_pickled(op):
    x, bias, residual, dy = operands((4, 50), np.float32)
    _, ctx, _, _ = call(op, x, bias, residual, 0.3, rng=5)
    copy = pickle.loads(pickle.dumps(ctx))
    assert type(copy) is type(ctx)
    for a, b in zip(copy.backward(dy), ctx.backward(dy), strict=True):  # rows, or gradients
        np.testing.assert_array_equal(a, b)


def test_bias_gradient_does_not_depend_on_threads_or_isa():
    x, bias, residual, dy = operands((3000, 70), np.float32)
    threads, isa = fd.get_num_threads(), _core.get_isa()
    results = []
    try:
        for name in _core.available_isas():
            _core.set_isa(name)
            for n in (1, 2, 5):
                fd.set_num_threads(n)
                _, ctx = fd.bias_dropout_add(x, bias, residual, 0.3, rng=5)
                results.append(ctx.backward(dy)[1])
    finally:
        fd.set_num_threads(threads)
        _core.set_isa(isa)
    for result in results:
        assert_same_bits(result, results[0])


def test_operands_are_needed():
    x = np.ones((3, 4), np.float32)
    with pytest.raises(TypeError, match="residual must be float16"):
        fd.dropout_add(x, None, 0.5, rng=1)
    with pytest.raises(TypeError, match="residual must be float16"):
        fd.bias_dropout_add(x, x[0], None, 0.5, rng=1)
    with pytest.raises(TypeError, match="bias must be float16"):
        fd.bias_dropout_add(x, None, x, 0.5, rng=1)


def test_errors_name_the_argument():
    x, bias, residual, _ = operands((3, 4), np.float32)
    rng = fd.Rng(1)
    with pytest.raises(ValueError, match=r"residual must have shape \(3, 4\), got \(4, 3\)"):
        fd.dropout_add(x, residual.T, 0.5, rng=rng)
    with pytest.raises(TypeError, match="residual must have dtype float32 as x has, got float64"):
        fd.dropout_add(x, residual.astype(float), 0.5, rng=rng)
    with pytest.raises(TypeError, match="residual must be float16"):
        fd.dropout_add(x, residual.astype(int), 0.5, rng=rng)
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        fd.bias_dropout_add(x, bias[:3], residual, 0.5, rng=rng)
    with pytest.raises(ValueError, match="x must have at least one axis"):
        fd.bias_dropout_add(x[0, 0], bias, x[0, 0], 0.5, rng=rng)
    with pytest.raises(ValueError, match="p must be in"):
        fd.relu_dropout(x, np.nan, rng=rng)
    with pytest.raises(ValueError, match="save must be one of"):
        fd.dropout_add(x, residual, save="all", rng=rng)
    assert rng.call == 0


def test_a_bias_in_two_dimensions():
    x = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    expected, _ = fd.bias_dropout_add(x, x[0], x, 0.3, rng=1)
    y, ctx = fd.bias_dropout_add(x, x[:1], x, 0.3, rng=1)
    assert_same_bits(y, expected)
    assert ctx.backward(x)[1].shape == (5,)
    for wrong in (x[:2], x[:1, :1], x[None, :1]):
        with pytest.raises(ValueError, match="bias must have shape"):
            fd.bias_dropout_add(x, wrong, x, 0.3, rng=1)
