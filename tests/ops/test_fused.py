"""The fused ops against the reference, and GELU against exact numbers."""

import pickle
from decimal import Decimal, localcontext

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import _core, reference

ADDING = ["dropout_add", "bias_dropout_add"]
BIASED = ["bias_dropout_add", "bias_relu_dropout", "bias_gelu_dropout"]
OPS = [*ADDING, "relu_dropout", "bias_relu_dropout", "bias_gelu_dropout"]


def operands_of(op, x, bias, residual):
    """Those that this op takes."""
    return [x, *[bias] * (op in BIASED), *[residual] * (op in ADDING)]


def listed(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def operands(shape, dtype, seed=0):
    generator = np.random.default_rng(seed)
    x, residual, dy = (generator.standard_normal(shape).astype(dtype) for _ in range(3))
    bias = generator.standard_normal(shape[-1:]).astype(dtype)  # one for each of the last axis
    return x, bias, residual, dy


def call(op, x, bias, residual, p, **arguments):
    """y, ctx, and the reference's y and mask of gradients."""
    y, ctx = getattr(fd, op)(*operands_of(op, x, bias, residual), p, **arguments)
    where = arguments.get("shared_axes", ()), arguments.get("region")
    p = p if arguments.get("training", True) else 0.0
    mask = reference.keep(reference.element_index(x.shape, *where), p, 5, 0)
    add_bias = bias if op in BIASED else None
    if "relu" in op:
        expected = reference.fused(x, mask, p, bias=add_bias, relu=True)
        with np.errstate(all="ignore"):
            scaled = reference.fused(x, np.ones_like(mask), p, bias=add_bias)
            mask = mask & ~(scaled <= 0)
    elif "gelu" in op:
        expected = reference.fused(x, mask, p, bias=bias, with_gelu=True)
    else:
        expected = reference.fused(x, mask, p, bias=add_bias, residual=residual)
    return y, ctx, expected, mask


def check(op, x, bias, residual, dy, p, **arguments):
    y, ctx, expected, mask = call(op, x, bias, residual, p, rng=5, **arguments)
    assert_same_bits(y, expected)
    dx, *grads = listed(ctx.backward(dy))
    if "gelu" in op:
        assert_same_bits(dx, reference.fused_gelu_gradient(dy, mask, ctx.p, x, bias))
    else:
        assert_same_bits(dx, reference.fused(dy, mask, ctx.p))
    if op in ADDING:
        assert_same_bits(grads[-1], dy)
    if op in BIASED:
        assert grads[0].shape == bias.shape
        assert grads[0].dtype == x.dtype
        axes = tuple(range(x.ndim - 1))
        wide = dx.astype(np.float64)
        exact = wide.sum(axis=axes)
        size = np.abs(wide[np.isfinite(wide)]).sum()
        eps = float(2.0**-8 if x.dtype.name == "bfloat16" else np.finfo(x.dtype).eps)
        np.testing.assert_allclose(grads[0].astype(np.float64), exact, rtol=eps, atol=1e-14 * size)


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
    _, ctx, expected, _ = call(op, x, bias, residual, 0.3, rng=5)
    before = listed(ctx.backward(dy))
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
    dx, strided = dy.copy(), np.zeros((50, 200), np.float32)[:, ::2]
    given = [{}, {"out": np.empty_like(dy)}, {"out": strided}, {"out": dx}]
    for to in given:
        grads = listed(ctx.backward(dx, **to))
        assert grads[0] is to.get("out", grads[0])
        for a, b in zip(grads, before, strict=True):
            assert_same_bits(np.ascontiguousarray(a), b)


@pytest.mark.parametrize("op", [*ADDING, "bias_gelu_dropout"])
def test_seed_instead_of_bits(op):
    x, bias, residual, dy = operands((50, 100), np.float32)
    _, bits, _, _ = call(op, x, bias, residual, 0.3, rng=5)
    _, seed, _, _ = call(op, x, bias, residual, 0.3, rng=5, save="seed")
    held = 4 * (5000 + 100) if "gelu" in op else 0  # x and the bias
    assert (bits.nbytes, seed.nbytes) == (625 + held, held)
    for a, b in zip(bits.backward(dy), seed.backward(dy), strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("op", OPS)
def test_gradients_by_central_differences(op):
    x, bias, residual, dy = operands((4, 5), np.float64)
    arrays = operands_of(op, x, bias, residual)

    def value():
        y, ctx = getattr(fd, op)(*arrays, 0.4, rng=9)
        return np.vdot(y, dy), ctx

    grads = listed(value()[1].backward(dy))
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


@pytest.mark.parametrize("op", BIASED)
def test_bias_gradient_does_not_depend_on_threads_or_isa(op):
    x, bias, residual, dy = operands((3000, 70), np.float32)
    threads, isa = fd.get_num_threads(), _core.get_isa()
    results = []
    try:
        for name in _core.available_isas():
            _core.set_isa(name)
            for n in (1, 2, 5):
                fd.set_num_threads(n)
                _, ctx, _, _ = call(op, x, bias, residual, 0.3, rng=5)
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


@pytest.mark.parametrize("op", ["bias_relu_dropout", "bias_gelu_dropout"])
def test_a_bias_before_an_activation(op):
    op, x = getattr(fd, op), operands((6, 5), np.float32)[0]
    y, ctx = op(x, x[:1], 0.3, rng=1)
    assert_same_bits(y, op(x, x[0], 0.3, rng=1)[0])
    assert ctx.backward(x)[1].shape == (5,)
    with pytest.raises(ValueError, match=r"bias must have shape \(5,\), got \(4,\)"):
        op(x, x[0, 1:], 0.3, rng=1)
    with pytest.raises(ValueError, match="x must have at least one axis"):
        op(x[0, 0], x[0], 0.3, rng=1)


def exactly(u):
    """GELU of a float and its slope, to 40 digits."""
    with localcontext(prec=60):
        u, pi = Decimal(float(u)), Decimal("3.14159265358979323846264338327950288419716939937511")
        c, k = (8 / pi).sqrt(), Decimal("0.044715")
        odds = (-c * (u + k * u**3)).exp()
        s = 1 / (1 + odds)
        return u * s, s + u * c * (1 + 3 * k * u * u) * s * (odds * s)


@pytest.mark.parametrize(
    ("dtype", "of_u", "of_slope"), [(np.float32, 1.3e-7, 3e-7), (np.float64, 2.3e-16, 5e-16)]
)
def test_gelu_is_as_exact_as_the_docs_say(isa, dtype, of_u, of_slope):
    u = np.concatenate([np.linspace(-25, 25, 1501), np.linspace(-4, 6, 1501)])
    u = np.append(u, [1e-30, -1e-30, 1e-3, -1e-3, 1e30, -1e30]).astype(dtype)
    bias, ones = np.zeros_like(u), np.ones_like(u)
    y, ctx = fd.bias_gelu_dropout(u, bias, 0.0)
    dx, _ = ctx.backward(ones)
    for v, a, b in zip(u, y, dx, strict=True):
        if abs(v) < 30:
            value, slope = exactly(v)
            assert abs(Decimal(float(a)) - value) <= Decimal(of_u) * abs(Decimal(float(v)))
            assert abs(Decimal(float(b)) - slope) <= Decimal(of_slope)
        else:
            assert (a, b) == (max(v, 0), v > 0)


@pytest.mark.filterwarnings("error")
def test_where_gelu_saturates(isa, any_dtype):
    huge = 6e4 if any_dtype == np.float16 else 3e38
    u = np.array([-np.inf, -huge, -50, -0.0, 0.0, 50, huge, np.inf, np.nan], any_dtype)
    bias = np.full_like(u, -0.0)  # which leaves -0
    y, ctx = fd.bias_gelu_dropout(u, bias, 0.0)
    zero, expected = any_dtype(-0.0), [0.0, 0.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, np.nan]
    assert_same_bits(y, np.array([zero, zero, zero, *u[3:]], any_dtype))
    assert_same_bits(ctx.backward(np.ones_like(u))[0], np.array(expected, any_dtype))


def test_an_optimiser_may_change_the_bias():
    x, bias, _, dy = operands((6, 5), np.float32)
    _, ctx = fd.bias_gelu_dropout(x, bias, 0.3, rng=1)
    before = ctx.backward(dy)
    bias += 1
    for a, b in zip(ctx.backward(dy), before, strict=True):
        assert_same_bits(a, b)
    with pytest.raises(TypeError, match="dy must have dtype float32 as x has"):
        ctx.backward(dy.astype(float))
