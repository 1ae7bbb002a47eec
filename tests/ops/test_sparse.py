"""Stored entries of SciPy's sparse arrays, and complex numbers."""

import pickle
from functools import partial

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference

sp = pytest.importorskip("scipy.sparse")

RNG = partial(fd.Rng, 3, 8)
FORMATS = ["coo", "csr", "csc", "bsr"]


def numbers(shape=(40, 60), density=0.3, dtype=np.float32, kind=sp.csr_array):
    generator = np.random.default_rng(0)
    dense = generator.standard_normal(shape) * (generator.random(shape) < density)
    return kind(dense.astype(dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_the_mask_of_the_dense_array(kind, p, dtype):
    for made in (sp.csr_array, sp.csr_matrix):
        x = numbers(dtype=dtype, kind=made).asformat(kind)
        expected, ctx_dense = fd.dropout(x.toarray(), p, rng=RNG())
        y, ctx = fd.dropout(x, p, rng=RNG())
        assert type(y) is type(x)
        assert y.dtype == x.dtype
        assert y.nnz == x.nnz
        assert_same_bits(y.toarray(), expected + 0)
        assert (ctx.nbytes, ctx.shape, ctx.seed, ctx.call) == (0, x.shape, 3, 8)
        for c in (ctx, ctx_dense, pickle.loads(pickle.dumps(ctx))):
            for dy in (x, numbers(dtype=dtype, density=0.1).asformat("csc")):
                gradient = c.backward(dy)
                assert gradient.format == dy.format
                assert_same_bits(gradient.toarray(), c.backward(dy.toarray()) + 0)


def test_every_format_drops_the_same_entries():
    x = numbers()
    expected = fd.dropout(x, 0.4, rng=1)[0].toarray()
    for kind in FORMATS:
        assert (fd.dropout(x.asformat(kind), 0.4, rng=1)[0].toarray() == expected).all()
    blocks = sp.bsr_array(x.toarray(), blocksize=(4, 3))
    assert (fd.dropout(blocks, 0.4, rng=1)[0].toarray() == expected).all()


@pytest.mark.parametrize(
    "place",
    [
        {"shared_axes": 0},
        {"shared_axes": (1,)},
        {"region": ((3, 5), (99, 80))},
        {"rows": np.arange(40) * 3 % 40},
    ],
    ids=str,
)
def test_places(place):
    x = numbers()
    expected, _ = fd.dropout(x.toarray(), 0.4, rng=RNG(), **place)
    y, ctx = fd.dropout(x, 0.4, rng=RNG(), save="seed", **place)
    assert (y.toarray() == expected).all()
    assert (ctx.backward(x).toarray() == expected).all()


def test_time_and_memory_are_those_of_the_stored_entries():
    where = np.array([0, 2**30 - 1, 17]), np.array([5, 2**30 - 1, 0])
    x = sp.coo_array((np.ones(3, np.float32), where), shape=(2**30, 2**30))
    y, ctx = fd.dropout(x, 0.5, rng=RNG())
    index = where[0] * 2**30 + where[1]
    assert ((y.data != 0) == reference.keep(index, 0.5, 3, 8)).all()
    assert (ctx.backward(x).data == y.data).all()


def test_entries_stored_twice_and_no_entries():
    x = sp.coo_array((np.ones(4), ([1, 1, 2, 0], [3, 3, 0, 1])), shape=(3, 4))
    assert (fd.dropout(x, 0.5, rng=1)[0].toarray() == fd.dropout(x.toarray(), 0.5, rng=1)[0]).all()
    empty = sp.csr_array((5, 0), dtype=np.float32)
    assert fd.dropout(empty, 0.5, rng=1)[0].shape == (5, 0)
    room = sp.csr_array((np.ones(9), np.zeros(9, int), np.array([0, 1, 2])), shape=(2, 3))
    assert fd.dropout(room, 0.0, rng=1)[0].toarray().sum() == 2


def test_the_input_stays():
    x = numbers()
    before = x.copy()
    y, _ = fd.dropout(x, 0.9, rng=1)
    y.eliminate_zeros()
    y.data[:] = 7
    assert (x != before).nnz == 0


def test_evaluation_and_calls():
    x, rng = numbers(), fd.Rng(1)
    y, ctx = fd.dropout(x, 0.5, rng=rng, training=False)
    assert (rng.call, (y != x).nnz, (ctx.backward(x) != x).nnz) == (0, 0, 0)
    fd.dropout(x, 0.5, rng=rng)
    assert rng.call == 1


def test_a_given_mask_selects_stored_entries():
    x = numbers()
    mask = np.random.default_rng(2).random(x.shape) < 0.5
    _, ctx = fd.dropout(x.toarray(), 0.5, mask=mask)
    assert (ctx.backward(x).toarray() == np.where(mask, x.toarray() * 2, 0)).all()


def test_arrays_with_one_axis():
    dense = np.where(np.arange(50) % 3, 0, 1.0)
    for kind in (sp.coo_array, sp.csr_array):
        y, _ = fd.dropout(kind(dense), 0.5, rng=RNG())
        assert (y.toarray() == fd.dropout(dense, 0.5, rng=RNG())[0]).all()


@pytest.mark.parametrize(
    ("error", "words", "make", "options"),
    [
        (TypeError, r"coo, csr, csc, bsr, got lil; convert it", sp.lil_array, {}),
        (TypeError, r"coo, csr, csc, bsr, got dia; convert it", sp.dia_array, {}),
        (TypeError, "x must be float16", lambda x: x.astype(int), {}),
        (TypeError, "out and mask are not taken", sp.csr_array, {"out": np.ones((40, 60))}),
        (TypeError, "out and mask are not taken", sp.csr_array, {"mask": np.ones((40, 60), bool)}),
        (ValueError, "p must be in", sp.csr_array, {"p": 2.0}),
        (ValueError, "save must be", sp.csr_array, {"save": "all"}),
    ],
)
def test_errors(error, words, make, options):
    rng = fd.Rng(1)
    with pytest.raises(error, match=words):
        fd.dropout(make(numbers()), rng=rng, **options)
    assert rng.call == 0
    _, ctx = fd.dropout(numbers(), 0.5, rng=1)
    with pytest.raises(ValueError, match="dy must have the shape of x"):
        ctx.backward(numbers((3, 4)))
    with pytest.raises(TypeError, match="out is not taken"):
        ctx.backward(numbers(), np.ones((40, 60), np.float32))


class TestComplex:
    @pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
    @pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize(
        "layout",
        [
            np.asarray,
            np.asfortranarray,
            lambda x: x[::-1, 2:, ::3],
            lambda x: x.transpose(1, 0, 2),
        ],
    )
    def test_one_draw_a_number(self, isa, layout, p, dtype):
        generator = np.random.default_rng(0)
        x = layout(generator.standard_normal((6, 50, 9)) + 1j).astype(dtype, order="K")
        x.imag[...] = generator.standard_normal(x.shape)
        ids = list(range(x.shape[0], 0, -1))
        for place in ({}, {"shared_axes": (1,)}, {"rows": ids}, {"region": ((1, 2, 3), (99,) * 3)}):
            mask = fd.keep_mask(x.shape, p, rng=RNG(), **place)
            for save in ("bits", "seed"):
                y, ctx = fd.dropout(x, p, rng=RNG(), save=save, **place)
                assert y.strides == np.empty_like(x).strides
                assert (y == reference.apply(x, mask, p)).all()
                assert (ctx.mask() == mask).all()
                assert (ctx.backward(x) == y).all()
                assert (pickle.loads(pickle.dumps(ctx)).backward(x) == y).all()
                assert (ctx.backward(x.real) == y.real).all()
        out = np.empty(x.shape, dtype)
        assert fd.dropout(x, p, rng=RNG(), out=out)[0] is out
        assert (out == fd.dropout(x, p, rng=RNG())[0]).all()
        mine = x.copy()
        fd.dropout(mine, p, rng=RNG(), out=mine)
        assert (mine == out).all()

    def test_zeros_and_sizes(self):
        for shape in ((), (0,), (3, 0), (1, 1)):
            y, ctx = fd.dropout(np.ones(shape, np.complex64), 0.5, rng=1)
            assert y.shape == ctx.backward(y).shape == shape
        y, _ = fd.dropout(np.full(9, complex(np.nan, np.inf)), 1.0, rng=1)
        assert_same_bits(y.view(float), np.zeros(18))

    def test_lists_and_numbers(self):
        expected, _ = fd.dropout(np.array([1 + 2j, 3, 5]), 0.5, rng=1)
        assert_same_bits(fd.dropout([1 + 2j, 3, 5], 0.5, rng=1)[0], expected)
        assert_same_bits(fd.dropout((1 + 2j, 3.0, 5), 0.5, rng=1)[0], expected)
        y, ctx = fd.dropout(1 + 2j, 0.0, rng=1)
        assert (y, ctx.backward(1 + 2j)) == (1 + 2j, 1 + 2j)
        assert fd.locked_dropout([[[1j]]], 1.0, rng=1)[0].dtype == complex

    def test_a_mask_of_ones_own_and_spatial(self):
        x = np.full((2, 3, 4), 1 + 2j)
        mask = np.random.default_rng(0).random(x.shape) < 0.5
        assert (fd.dropout(x, 0.5, mask=mask)[0] == np.where(mask, 2 * x, 0)).all()
        y, _ = fd.spatial_dropout(x, 0.5, rng=1)
        assert (y.real == fd.spatial_dropout(x.real, 0.5, rng=1)[0]).all()

    def test_errors(self):
        with pytest.raises(TypeError, match="x must be float16"):
            fd.alpha_dropout(np.ones(3, complex), 0.5, rng=1)
        with pytest.raises(TypeError, match="locked_dropout and drop_path take complex numbers"):
            fd.dropout_add([1j], [1j], 0.5, rng=1)
        with pytest.raises(TypeError, match="x must be complex64 or complex128"):
            fd.dropout(np.ones(3, np.clongdouble), 0.5, rng=1)
        with pytest.raises(ValueError, match="out must"):
            fd.dropout(np.ones(3, complex), 0.5, rng=1, out=np.ones(4, complex))


def test_where_no_sparse_array_is_taken():
    x = numbers()
    for op in (fd.relu_dropout, fd.alpha_dropout, fd.gaussian_dropout, fd.targeted_prune):
        with pytest.raises(TypeError, match=r"is a sparse array, .* with .toarray\(\)"):
            op(x, 0.5)
    with pytest.raises(TypeError, match="residual is a sparse array"):
        fd.dropout_add(x.toarray(), x, 0.5)
    wrong = sp.csr_array((np.ones(1, np.float32), [7], [0, 1]), shape=(1, 4))
    with pytest.raises(ValueError, match=r"indices must be in 0 \.\.\. 3, got 7"):
        fd.dropout(wrong, 0.5)
