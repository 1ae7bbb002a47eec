"""``mask=``: mask and scale with a mask of the caller's."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference

GENERATOR = np.random.default_rng(0)


def numbers(*shape, dtype=np.float32):
    return GENERATOR.standard_normal(shape).astype(dtype)


def random_mask(*shape):
    return GENERATOR.random(shape) < 0.6


def packed(mask):
    return np.packbits(mask, bitorder="little")


LAYOUTS = {"C": np.asarray, "F": np.asfortranarray, "sliced": lambda a: np.repeat(a, 2, 1)[:, ::2]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (64, 64), (70, 513), (0, 4), (2, 3, 4)], ids=str)
def test_dropout(isa, any_dtype, shape, layout):
    x, mask = LAYOUTS[layout](numbers(*shape).astype(any_dtype)), random_mask(*shape)
    expected = reference.fused(np.ascontiguousarray(x), mask, 0.3)
    for given in (mask, np.asfortranarray(mask), packed(mask)):
        y, ctx = fd.dropout(x, 0.3, mask=given)
        assert_same_bits(y, expected)
        for c in (ctx, pickle.loads(pickle.dumps(ctx))):
            assert_same_bits(c.backward(x), expected)
            assert (c.mask() == mask).all()
            assert (c.seed, c.call, c.p, c.scale) == (None, None, 0.3, 1 / (1 - 0.3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fused(isa, any_dtype, layout):
    x, residual = (LAYOUTS[layout](numbers(40, 70).astype(any_dtype)) for _ in range(2))
    bias, mask = numbers(70).astype(any_dtype), random_mask(40, 70)
    dense, added = np.ascontiguousarray(x), np.ascontiguousarray(residual)
    of = reference.fused
    y, ctx = fd.dropout_add(x, residual, 0.3, mask=mask)
    assert_same_bits(y, of(dense, mask, 0.3, residual=added))
    assert_same_bits(ctx.backward(x)[0], of(dense, mask, 0.3))
    y, ctx = fd.bias_dropout_add(x, bias, residual, 0.3, mask=packed(mask))
    assert_same_bits(y, of(dense, mask, 0.3, residual=added, bias=bias))
    dx, dbias, _ = ctx.backward(x)
    assert_same_bits(dx, of(dense, mask, 0.3))
    sums = dx.sum(axis=0, dtype=np.float64)
    np.testing.assert_allclose(dbias.astype(float), sums.astype(any_dtype).astype(float), 1e-13)
    y, ctx = fd.relu_dropout(x, 0.3, mask=mask)
    assert_same_bits(y, of(dense, mask, 0.3, relu=True))
    assert (ctx.mask() == (mask & (dense > 0))).all()
    assert_same_bits(ctx.backward(x), of(dense, mask & (dense > 0), 0.3))
    y, ctx = fd.bias_gelu_dropout(x, bias, 0.3, mask=mask)
    assert_same_bits(y, of(dense, mask, 0.3, bias=bias, with_gelu=True))
    gradient = reference.fused_gelu_gradient(dense, mask, 0.3, dense, bias)
    assert_same_bits(ctx.backward(x)[0], gradient)


@pytest.mark.parametrize("columns", [1, 3, 64, 70, 2048, 4096, 5000])
def test_a_bias_repeats_to_the_end(isa, columns):
    """Also behind the piece of it that the kernels find in one place."""
    x, mask = numbers(90_000 // columns, columns), random_mask(90_000 // columns, columns)
    bias = numbers(columns)
    y, _ = fd.bias_dropout_add(x, bias, x, 0.3, mask=mask)
    assert_same_bits(y, reference.fused(x, mask, 0.3, residual=x, bias=bias))
    y, ctx = fd.bias_gelu_dropout(x, bias, 0.3, mask=mask)
    assert_same_bits(y, reference.fused(x, mask, 0.3, bias=bias, with_gelu=True))
    gradient = reference.fused_gelu_gradient(x, mask, 0.3, x, bias)
    assert_same_bits(ctx.backward(x)[0], gradient)


def test_another_call_can_be_replayed():
    x = numbers(100, 50)
    y, ctx = fd.dropout(x, 0.4, rng=1)
    for mask in (ctx.mask(), fd.keep_mask(x.shape, 0.4, rng=1, packed=True)):
        assert_same_bits(fd.dropout(x, 0.4, mask=mask)[0], y)


def test_p_gives_the_scale_alone():
    x, mask = np.ones((8, 9)), random_mask(8, 9)
    for p, scale in ((0.0, 1.0), (0.75, 4.0), (1.0, 0.0)):
        y, ctx = fd.dropout(x, p, mask=mask)
        assert_same_bits(y, np.where(mask, scale, 0.0))
        assert_same_bits(ctx.backward(x), y)
        assert_same_bits(fd.relu_dropout(x, p, mask=mask)[0], y)


def test_no_call_is_taken():
    rng, x = fd.Rng(1), np.ones((3, 4))
    fd.dropout(x, 0.5, rng=rng, mask=np.ones((3, 4), bool))
    assert rng.call == 0


def test_evaluation_has_no_mask():
    x = np.ones((3, 4))
    mask = np.zeros((3, 4), bool)
    assert (fd.dropout(x, 0.5, mask=mask, training=False)[0] == 1).all()
    assert (fd.relu_dropout(x, 0.5, mask=mask, training=False)[0] == 1).all()


def test_in_place_and_layers():
    x, mask = numbers(30, 40), random_mask(30, 40)
    expected = reference.apply(x, mask, 0.5)
    assert_same_bits(fd.layers.Dropout(0.5)(x, mask=mask), expected)
    mine = x.copy()
    assert fd.dropout(mine, 0.5, mask=mask, out=mine)[0] is mine
    assert_same_bits(mine, expected)


def test_bits_behind_the_end_do_not_count():
    x, mask = np.ones(13), np.ones(13, bool)
    junk = packed(mask) | np.array([0, 0xE0], np.uint8)
    assert fd.dropout(x, 0.5, mask=junk)[1].held == fd.dropout(x, 0.5, mask=mask)[1].held


def test_a_context_without_its_bits_is_refused():
    ctx = fd.dropout(np.ones(9), 0.5, mask=np.ones(9, bool))[1]
    with pytest.raises(ValueError, match="bits must be held of a mask that no seed draws again"):
        fd.Context(ctx.shape, ctx.draw, ctx.scale, None)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "mask must be bool, or uint8 with packed bits", {"mask": np.ones((3, 4))}),
        (TypeError, "mask must be bool, or uint8 with packed bits", {"mask": np.ones((3, 4), int)}),
        (ValueError, r"mask must have shape \(3, 4\), got \(4,\)", {"mask": np.ones(4, bool)}),
        (ValueError, "packed in 2 bytes", {"mask": np.ones((3, 4), np.uint8)}),
        (TypeError, "masked array", {"mask": np.ma.masked_array(np.ones((3, 4), bool))}),
        (ValueError, "leave out", {"mask": np.ones((3, 4), bool), "shared_axes": 0}),
        (ValueError, "leave out", {"mask": np.ones((3, 4), bool), "rows": [0, 1, 2]}),
        (ValueError, "leave out", {"mask": np.ones((3, 4), bool), "region": ((0, 0), (3, 4))}),
        (ValueError, "save must be 'bits'", {"mask": np.ones((3, 4), bool), "save": "seed"}),
    ],
)
def test_errors(error, words, options):
    out = np.full((3, 4), 7.0)
    with pytest.raises(error, match=words):
        fd.dropout(np.ones((3, 4)), 0.5, out=out, **options)
    assert (out == 7).all()
