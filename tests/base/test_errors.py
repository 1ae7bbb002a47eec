"""Bad input: an error that names the argument and its value; nothing drawn, nothing written."""

import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

import fastdrop as fd

X = np.ones((3, 4), np.float32)


def refuses(error, words, **arguments):
    """The call fails as it should, draws nothing and leaves out as it was."""
    rng = fd.Rng(1)
    out = arguments.setdefault("out", np.full((3, 4), 7, np.float32))
    before = out.copy() if isinstance(out, np.ndarray) else None
    x = arguments.pop("x", X)
    with pytest.raises(error, match=re.escape(words)):
        fd.dropout(x, rng=rng, **arguments)
    assert rng.call == 0
    if before is not None:
        np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), -1, 2, Fraction(3, 2)])
def test_rate_out_of_range(p):
    refuses(ValueError, f"p must be in [0, 1], got {float(p)!r}", p=p)
    with pytest.raises(ValueError, match="p must be in"):
        fd.keep_mask(3, p, rng=1)
    with pytest.raises(ValueError, match="p must be in"):
        fd.layers.Dropout(p)


def test_rate_that_no_float_can_be():
    refuses(ValueError, "p must be a real number in [0, 1], got a larger number", p=10**400)


@pytest.mark.parametrize(
    "p", [0.5j, True, np.True_, "0.5", None, [0.5], np.array([0.5]), np.array(True), Decimal("0.5")]
)
def test_rate_of_another_kind(p):
    refuses(TypeError, f"p must be a real number in [0, 1], got {p!r}", p=p)


@pytest.mark.parametrize("dtype", [int, np.int8, bool, np.longdouble, "U3", "M8[s]", object, "V4"])
def test_dtype_without_kernels(dtype):
    x = np.zeros((3, 4), dtype)
    refuses(TypeError, f"x must be float16, bfloat16, float32 or float64, got {x.dtype}", x=x)
    _, ctx = fd.dropout(X, 0.5, rng=1)
    with pytest.raises(TypeError, match="dy must be float16, bfloat16, float32 or float64"):
        ctx.backward(x)


def test_what_an_op_returns_is_no_input():
    refuses(TypeError, "x is what an op returns, y and its context", x=fd.dropout(X, 0.5, rng=1))


def test_out():
    read_only = np.full((3, 4), 7, np.float32)
    read_only.flags.writeable = False
    refuses(ValueError, "out is read-only", out=read_only)
    refuses(ValueError, "out must have shape (3, 4), got (4, 3)", out=np.ones((4, 3), np.float32))
    refuses(ValueError, "out must have shape (3, 4), got (12,)", out=np.ones(12, np.float32))
    refuses(TypeError, "out must have dtype float32, got float64", out=np.ones((3, 4)))
    swapped = np.ones((3, 4), np.dtype(np.float32).newbyteorder())
    for x in (X, X.astype(swapped.dtype)):
        words = f"out must have dtype float32, got {swapped.dtype}: its byte order is not this mach"
        refuses(TypeError, words, x=x, out=swapped)
    refuses(TypeError, "out must be a NumPy array, got list", out=[[1.0] * 4] * 3)


MASKED = np.ma.array([1.0, 2.0, 3.0], mask=[0, 1, 0])


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: fd.kl_divergence(np.ma.array([1], mask=[1]), [[1.0, 2.0]]), "target"),
        (lambda: fd.kl_divergence(MASKED, [1.0, 2.0, 3.0]), "target"),
        (lambda: fd.squared_divergence([MASKED], [[1.0, 2.0, 3.0]]), "target"),
        (lambda: fd.dropout([MASKED, MASKED], 0.5), "x"),
        (lambda: fd.dropout([[1.0, np.ma.masked]], 0.5), "x"),
        (lambda: fd.dropout(([[2, (3.0, np.ma.masked)]],), 0.5), "x"),
        (lambda: fd.dropout(X, np.ma.array(0.5, mask=True)), "p"),
        (lambda: fd.concrete_dropout(X, np.ma.array(0.5, mask=True)), "logit"),
        (lambda: fd.gaussian_noise(X, np.ma.array(0.5)), "std"),
        (lambda: fd.variational_kl(MASKED), "log_alpha"),
        (lambda: fd.schedules.steps(MASKED, [1, 2]), "values"),
        (lambda: fd.embedding_dropout(np.ones((3, 2)), ids=np.ma.array([1], mask=[1])), "ids"),
        (lambda: fd.mc.Moments().update(MASKED), "y"),
    ],
)
def test_masked_arrays(call, name):
    with pytest.raises(TypeError, match=f"{name} is a masked array, whose mask would get lost"):
        call()


def test_a_number_of_axes_is_no_mask():
    refuses(TypeError, "shared_axes must be an int or a", shared_axes=True)
    refuses(np.exceptions.AxisError, "shared_axes: axis is out of bounds", shared_axes=2**70)
    refuses(np.exceptions.AxisError, "shared_axes: axis -9 is out of", shared_axes=-9)


def test_axes():
    for axes, words in [((2,), "axis 2 is out of bounds"), (-3, "axis -3 is out of bounds")]:
        refuses(np.exceptions.AxisError, words, shared_axes=axes)
    refuses(ValueError, "shared_axes must name each axis once", shared_axes=(0, 0))
    for axes in (np.int64(1), np.array(1), np.array([1]), [1]):
        mask = fd.keep_mask((3, 4), 0.5, rng=1, shared_axes=axes)
        np.testing.assert_array_equal(mask, fd.keep_mask((3, 4), 0.5, rng=1, shared_axes=(1,)))
        for op, more in ((fd.dropout, ()), (fd.dropout_add, (X,)), (fd.relu_dropout, ())):
            _, ctx = op(X, *more, 0.5, rng=1, shared_axes=axes)
            np.testing.assert_array_equal(ctx.mask(), mask)
    refuses(TypeError, "shared_axes must be an int or a tuple of ints, got 'no'", shared_axes="no")


def test_region():
    inside = "region must contain a part of shape (3, 4)"
    refuses(ValueError, inside, region=((0, 0), (2, 4)))
    refuses(ValueError, inside, region=((1, 0), (3, 4)))
    refuses(ValueError, inside, region=((-1, 0), (9, 9)))
    refuses(ValueError, "region must have 2 axes", region=((0,), (9,)))
    refuses(TypeError, "region must be (start, global_shape)", region=5)
    refuses(TypeError, "region must be (start, global_shape)", region=((0, 0.5), (9, 9)))
    refuses(TypeError, "region must be (start, global_shape)", region=((0, 0), (9, 9), (1, 1)))
    refuses(ValueError, "at most 2**62", region=((0, 0), (2**31, 2**32)))


def test_save():
    refuses(ValueError, "save must be one of 'bits', 'seed', got 'all'", save="all")


def test_shape_of_keep_mask():
    for shape, error in [((-1,), ValueError), (1.5, TypeError), ("ab", TypeError)]:
        with pytest.raises(error, match="shape must"):
            fd.keep_mask(shape, 0.5, rng=1)


def test_backward():
    _, ctx = fd.dropout(X, 0.5, rng=1)
    words = "dy must have the shape of x, (3, 4), got (4,)"
    with pytest.raises(ValueError, match=re.escape(words)):
        ctx.backward(np.ones(4, np.float32))
    with pytest.raises(ValueError, match=re.escape("out must have shape (3, 4), got (4, 3)")):
        ctx.backward(X, out=np.ones((4, 3), np.float32))
