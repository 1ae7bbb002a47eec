"""Softmax and dropout: the kernel against the reference, bit for bit, and what it computes."""

import pickle
from decimal import Decimal

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop import _core, reference

SHAPES = [(1,), (5, 1), (3, 31), (4, 3, 32), (2, 33), (3, 64, 64), (2, 1023), (3, 1024), (2, 2081)]


def scores(shape, dtype, seed=0):
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(dtype)


def tril(shape):
    """Which scores a causal softmax has."""
    return np.broadcast_to(np.tril(np.ones(shape[-2:], bool)), shape)


def check(x, dy, p, part=True, factor=1.0, **arguments):
    part = np.broadcast_to(part, x.shape)
    for save in ("bits", "seed"):
        y, ctx = fd.softmax_dropout(x, p, scale=factor, rng=fd.Rng(5, 3), save=save, **arguments)
        keep = ctx.mask()
        expected, weights = reference.softmax_dropout(x, part, keep, factor, ctx.scale)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.weights, weights)
        dx = reference.softmax_dropout_backward(dy, weights, keep, factor, ctx.scale)
        assert_same_bits(ctx.backward(dy), dx)
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).backward(dy), dx)
        where = {k: v for k, v in arguments.items() if k in ("shared_axes", "region", "rows")}
        _, of_dropout = fd.dropout(x, p, rng=fd.Rng(5, 3), **where)
        np.testing.assert_array_equal(keep, of_dropout.mask())  # the mask is dropout's
        assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (5, 3, p, x.shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_the_reference(isa, any_dtype, shape):
    x, dy = scores(shape, any_dtype), scores(shape, any_dtype, 1)
    for p in (0.0, 0.2, 0.5):
        check(x, dy, p, factor=0.3)
    part = np.random.default_rng(2).random(shape) < 0.7
    check(x, dy, 0.2, part, mask=part)
    if len(shape) > 1:
        check(x, dy, 0.2, tril(shape), causal=True)
        check(x, dy, 0.2, part & tril(shape), mask=part, causal=True)


@pytest.mark.parametrize("p", [1e-9, 0.25, 0.9, 1])
def test_rates(isa, p):
    check(scores((5, 70), np.float32), scores((5, 70), np.float32, 1), p)


def test_threads(threads, any_dtype):
    x, dy = scores((4, 300, 300), any_dtype), scores((4, 300, 300), any_dtype, 1)
    check(x, dy, 0.2, tril(x.shape), factor=0.1, causal=True)


@pytest.mark.filterwarnings("error")
def test_special_values(isa, any_dtype):
    """What takes no part is 0 whatever it is, and nothing takes part in a row of -inf."""
    inf, nan = np.inf, np.nan
    huge = 6e4 if any_dtype == np.float16 else 3e38
    rows = [
        [-inf] * 4,
        [nan, 1, 2, -inf],
        [inf, 1, -inf, 2],
        [-huge, -huge, huge, huge],
        [-huge, -inf, -huge, -inf],
        [0.0, -0.0, -87.6, -88.1],
        [0.0, -86.9, -87.2, -87.4],
    ]
    x = np.tile(np.array(rows, any_dtype), (1, 20))
    part = np.arange(80) % 4 != 0
    dy = scores(x.shape, any_dtype)
    check(x, dy, 0.3)
    check(x, dy, 0.3, part, mask=part)
    y, _ = fd.softmax_dropout(x, 0.0, mask=part)
    assert (y[:, ~part] == 0).all()
    assert (fd.softmax_dropout(x, 0.0)[0][0] == 0).all()
    y, ctx = fd.softmax_dropout(x, 0.3, mask=np.zeros_like(part), rng=1)
    assert (y == 0).all()
    assert (ctx.backward(dy) == 0).all()


def test_extreme_scales(isa):
    x, dy = scores((3, 50), np.float32), scores((3, 50), np.float32, 1)
    for factor in (0.0, -1.0, 1e30, 1e-30):
        check(x, dy, 0.2, factor=factor)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float32, 4e-7), (np.float64, 8e-16)])
def test_it_is_as_exact_as_the_docs_say(isa, dtype, bound):
    x = np.concatenate([np.linspace(-60, 0, 200), scores(200, float)]).astype(dtype)
    weights, _ = fd.softmax_dropout(x, 0.0)
    below = [Decimal(float(z)) - Decimal(float(x.max())) for z in x]
    exact = [z.exp() for z in below]
    total = sum(exact)
    for z, e, w in zip(below, exact, weights, strict=True):
        rounded = abs(z) * Decimal(float(np.finfo(dtype).eps)) / 2  # that difference
        assert abs(Decimal(float(w)) * total / e - 1) <= Decimal(bound) + rounded
    assert abs(float(weights.astype(float).sum()) - 1) < len(x) * bound


@pytest.mark.parametrize("axis", [0, 1, -2, 2, -1])
def test_along_another_axis(any_dtype, axis):
    shape = (6, 40, 9)
    x, dy = scores(shape, any_dtype), scores(shape, any_dtype, 1)
    part = np.random.default_rng(2).random(shape) < 0.7
    for save in ("bits", "seed"):
        y, ctx = fd.softmax_dropout(x, 0.3, axis=axis, mask=part, rng=fd.Rng(5, 3), save=save)
        moved = [np.moveaxis(a, axis, -1) for a in (x, part, ctx.mask(), dy)]
        expected, weights = reference.softmax_dropout(*moved[:3], 1.0, ctx.scale)
        assert_same_bits(np.moveaxis(y, axis, -1), expected)
        dx = reference.softmax_dropout_backward(moved[3], weights, moved[2], 1.0, ctx.scale)
        assert_same_bits(np.moveaxis(ctx.backward(dy), axis, -1), dx)
        np.testing.assert_array_equal(ctx.mask(), fd.keep_mask(shape, 0.3, rng=fd.Rng(5, 3)))


@pytest.mark.parametrize(
    "where",
    [{"shared_axes": (1,)}, {"shared_axes": (0, 3)}, {"rows": [7, 7, 2, 0]}],
    ids=str,
)
def test_places(dtype, where):
    shape = (4, 2, 20, 40)
    x, dy = scores(shape, dtype), scores(shape, dtype, 1)
    check(x, dy, 0.3, tril(shape), causal=True, **where)


def test_a_region_is_a_part_of_the_whole():
    """Batches, heads and queries can be cut, and causal knows where a query is."""
    shape = (4, 3, 50, 50)
    x, dy = scores(shape, np.float32), scores(shape, np.float32, 1)
    whole, ctx = fd.softmax_dropout(x, 0.3, causal=True, rng=7)
    gradient = ctx.backward(dy)
    for part in (np.s_[1:3], np.s_[:, 2:], np.s_[:, :, 17:41], np.s_[2:, 1:2, 30:]):
        start = [0 if s.start is None else s.start for s in (*np.index_exp[part], *[np.s_[:]] * 4)]
        y, ctx = fd.softmax_dropout(x[part], 0.3, causal=True, rng=7, region=(start[:4], shape))
        assert_same_bits(y, whole[part].copy())
        assert_same_bits(ctx.backward(dy[part]), gradient[part].copy())
    flat, _ = fd.softmax_dropout(x[0, 0], 0.3, causal=True, rng=7)
    rows = [31, 2, 49, 31]
    y, _ = fd.softmax_dropout(x[0, 0][rows], 0.3, causal=True, rng=7, rows=rows)
    assert_same_bits(y, flat[rows])
    rows = [31, 32, 33]
    y, _ = fd.softmax_dropout(x[0, 0][rows], 0.3, causal=True, rng=7, rows=rows)
    assert_same_bits(y, flat[rows])


@pytest.mark.parametrize("shape", [(6, 5, 40, 40), (1, 1, 1, 40), (6, 1, 40, 1), (40, 40), (1,)])
def test_masks_that_broadcast(shape):
    x, dy = scores((6, 5, 40, 40), np.float32), scores((6, 5, 40, 40), np.float32, 1)
    mask = np.random.default_rng(0).random(shape) < 0.6
    check(x, dy, 0.3, mask, mask=mask)
    check(x, dy, 0.3, mask, mask=np.asfortranarray(mask))


def test_layouts_and_out():
    wide = scores((60, 70), np.float32)
    x, dy = wide[::2, ::-1], scores((30, 70), np.float32, 1)
    expected, ctx = fd.softmax_dropout(x.copy(), 0.3, rng=1)
    dx = ctx.backward(dy)
    for out in (np.empty((30, 70), np.float32), np.empty((70, 30), np.float32).T, x, x.copy()):
        given = x.copy() if out is x else x
        target = given if out is x else out
        y, ctx = fd.softmax_dropout(given, 0.3, rng=1, out=target)
        assert y is target
        assert_same_bits(y.copy(), expected)
        out = dy.copy()
        assert ctx.backward(out, out) is out
        assert_same_bits(out, dx)
    x = scores((4, 2000), np.float32)  # in place a row is read again before it is written
    expected, _ = fd.softmax_dropout(x.copy(), 0.3, rng=1)
    assert_same_bits(fd.softmax_dropout(x, 0.3, rng=1, out=x)[0], expected)
    for shape in ((0, 4), (4, 0), (2, 0, 3)):
        y, ctx = fd.softmax_dropout(np.ones(shape), rng=1, causal=True)
        assert y.shape == shape == ctx.backward(y).shape


def test_evaluation_draws_nothing():
    x, dy, rng = scores((3, 20), np.float32), scores((3, 20), np.float32, 1), fd.Rng(1)
    y, ctx = fd.softmax_dropout(x, 0.3, training=False, rng=rng)
    assert (rng.call, ctx.p, ctx.seed) == (0, 0, None)
    part, keep = np.ones(x.shape, bool), np.ones(x.shape, bool)
    assert_same_bits(y, reference.softmax_dropout(x, part, keep, 1.0, 1.0)[0])
    assert ctx.weights is not y
    assert_same_bits(
        ctx.backward(dy), reference.softmax_dropout_backward(dy, ctx.weights, keep, 1.0, 1.0)
    )
    assert ctx.mask().all()


def test_gradient():
    """Against differences, with causal, mask and dropout."""
    x, weights = scores((2, 6, 6), float), scores((2, 6, 6), float, 1)
    mask = np.random.default_rng(3).random((6, 6)) < 0.8

    def loss():
        y, _ = fd.softmax_dropout(x, 0.3, scale=0.7, causal=True, mask=mask, rng=fd.Rng(1, 0))
        return (y * weights).sum()

    _, ctx = fd.softmax_dropout(x, 0.3, scale=0.7, causal=True, mask=mask, rng=fd.Rng(1, 0))
    assert_gradient(loss, x, ctx.backward(weights))


def test_memory_and_the_same_mask_on_another_array():
    x = scores((8, 64), np.float32)
    _, ctx = fd.softmax_dropout(x, 0.3, rng=1)
    assert ctx.nbytes == x.nbytes + 64
    _, seed = fd.softmax_dropout(x, 0.3, rng=1, save="seed")
    assert seed.nbytes == x.nbytes
    for c in (ctx, seed):
        assert_same_bits(c.apply(x), fd.dropout(x, 0.3, rng=1)[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scores": np.float32(1)}, ValueError, "scores must have at least one axis"),
        ({"scores": [1, 2]}, TypeError, "scores must be float16"),
        ({"scale": np.inf}, ValueError, "scale must be"),
        ({"causal": 1}, TypeError, "causal must be True or False"),
        ({"causal": True, "axis": 0}, ValueError, "causal needs queries before the keys"),
        ({"scores": np.ones(3), "causal": True}, ValueError, "causal needs queries"),
        ({"axis": 2}, np.exceptions.AxisError, "axis"),
        ({"axis": (0, 1)}, TypeError, "axis must be an int"),
        ({"mask": np.ones((3, 4))}, TypeError, "mask must be bool.*added to scores"),
        ({"mask": np.ones((3, 4), int)}, TypeError, "mask must be bool.*astype"),
        ({"scale": 1e300, "scores": np.ones((3, 4), "f4")}, ValueError, "scale must be finite in"),
        ({"mask": np.ones((3, 5), bool)}, ValueError, "mask must have a shape that broadcasts"),
        ({"mask": np.ones((1, 3, 4), bool)}, ValueError, "mask must have a shape that broadcasts"),
        ({"region": ((0, 2), (3, 9))}, ValueError, "region must hold all of axis 1"),
        ({"axis": 0, "rows": [0, 1, 2]}, ValueError, "rows must not be given along axis 0"),
    ],
)
def test_errors(arguments, error, message):
    rng = fd.Rng(1)
    with pytest.raises(error, match=message):
        fd.softmax_dropout(**{"scores": np.ones((3, 4)), "rng": rng} | arguments)
    assert rng.call == 0


def test_more_axes_than_packbits_has():
    x = scores((1,) * 38 + (3, 40), np.float32)
    mask = np.random.default_rng(0).random((3, 1)) < 0.5
    check(x, x, 0.3, mask, mask=mask)
    check(x, x, 0.3, tril(x.shape), causal=True)


def test_the_last_query_alone(isa):
    """As with a cache of keys: causal knows its place by the region."""
    x = scores((2, 9, 9), np.float32)
    whole, _ = fd.softmax_dropout(x, 0.3, causal=True, rng=1)
    last = ((0, 8, 0), x.shape)
    y, _ = fd.softmax_dropout(x[:, 8:], 0.3, causal=True, rng=1, region=last)
    assert_same_bits(y, whole[:, 8:].copy())


def test_the_layer_takes_its_mask_by_name():
    x, mask = scores((3, 5), np.float32), np.ones((3, 5), bool)
    layer = fd.layers.SoftmaxDropout(0.3, rng=1)
    with pytest.raises(TypeError, match="give mask= and out= by name"):
        layer(x, mask)
    assert_same_bits(layer(x, mask=mask), fd.softmax_dropout(x, 0.3, rng=1)[0])
    for wrong in ({"scale": np.nan}, {"causal": 1}, {"axis": 0.5}):
        with pytest.raises((TypeError, ValueError), match=f"{next(iter(wrong))} must be"):
            fd.layers.SoftmaxDropout(0.3, **wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": np.ones((3, 4))}, "weights must have shape"),
        ({"axis": 2}, "axis must be one of"),
        ({"axis": -1}, "axis must be at least 0"),
        ({"factor": np.nan}, "factor must be"),
        ({"weights": None}, "weights"),
    ],
)
def test_a_context_of_a_pickle_is_checked(change, message):
    _, ctx = fd.softmax_dropout(np.ones((3, 5)), 0.3, rng=1)
    kind, fields = ctx.__reduce__()
    names = ["shape", "draw", "scale", "held", "axis", "factor", "weights"]
    with pytest.raises((TypeError, ValueError), match=message):
        kind(*(change.get(name, value) for name, value in zip(names, fields, strict=True)))
    with pytest.raises(TypeError, match="dy must have dtype float64 as scores has"):
        ctx.backward(np.ones((3, 5), np.float32))


@pytest.mark.parametrize("bad", [[-1, 5, 5], [5, 6, 5], [2, 2]])
def test_the_compiled_module_refuses_numbers_that_cannot_be(bad):
    x = np.ones((3, 5))
    with pytest.raises(ValueError, match="live must"):
        _core.softmax(x, None, None, (np.array(bad), None, None), 1.0, 1.0)
    masks = np.zeros((6, 9), np.uint8)
    with pytest.raises(ValueError, match="mask_row must"):
        _core.softmax(x, None, None, (None, masks, np.array(bad)), 1.0, 1.0)
