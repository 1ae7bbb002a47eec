"""``rows=``: a mask that belongs to an example, wherever it stands in a batch."""

import pickle
from functools import partial

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import _core, reference

IDS = np.array([5, 0, 17, 5, 2, 1000])
RNG = partial(fd.Rng, 3, 8)
SHAPE = 6, 4, 5, 7


def numbers(shape=SHAPE, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def of_rows(op, x, *more, **options):
    """By its definition: each row as the region of that row."""
    ys = []
    for i, row in enumerate(options.pop("rows")):
        start, whole = (row, *[0] * (x.ndim - 1)), (2000, *x.shape[1:])
        operands = (m[i : i + 1] if isinstance(m, np.ndarray) else m for m in more)
        region = {"region": (start, whole)}
        ys.append(op(x[i : i + 1], *operands, rng=RNG(), **region, **options)[0])
    return np.concatenate(ys)


def gradients(ctx, dy):
    found = ctx.backward(dy)
    return found if isinstance(found, tuple) else (found,)


OPS = {
    "dropout": lambda x, **how: fd.dropout(x, 0.3, **how),
    "half": lambda x, **how: fd.dropout(x, 0.5, **how),
    "shared": lambda x, **how: fd.dropout(x, 0.3, shared_axes=(1, 3), **how),
    "spatial": lambda x, **how: fd.spatial_dropout(x, 0.3, **how),
    "locked": lambda x, **how: fd.locked_dropout(x, 0.3, **how),
    "path": lambda x, **how: fd.drop_path(x, 0.3, **how),
    "alpha": lambda x, **how: fd.alpha_dropout(x, 0.3, **how),
    "maps": lambda x, **how: fd.feature_alpha_dropout(x, 0.3, **how),
    "add": lambda x, **how: fd.dropout_add(x, x, 0.3, **how),
    "relu": lambda x, **how: fd.relu_dropout(x, 0.3, **how),
    "gaussian": lambda x, **how: fd.gaussian_dropout(x, 0.3, **how),
    "noise": lambda x, **how: fd.gaussian_noise(x, 0.3, **how),
    "shared noise": lambda x, **how: fd.gaussian_noise(x, 0.3, shared_axes=(2,), **how),
    "concrete": lambda x, **how: fd.concrete_dropout(x, -1.0, **how),
    "variational": lambda x, **how: fd.variational_dropout(x, -1.0, **how),
    "zoneout": lambda x, **how: fd.zoneout(x, -x, 0.3, **how),
    "softmax": lambda x, **how: fd.softmax_dropout(x, 0.3, **how),
    "bias relu": lambda x, **how: fd.bias_relu_dropout(x, x[0, 0, 0] * 0 + 1, 0.3, **how),
    "bias gelu": lambda x, **how: fd.bias_gelu_dropout(x, x[0, 0, 0] * 0 + 1, 0.3, **how),
    "bias": lambda x, **how: fd.bias_dropout_add(x, x[0, 0, 0] * 0 + 1, x, 0.3, **how),
}
WHOLE = {  # of examples that nothing may cut
    "adversarial": lambda x, **how: fd.adversarial_dropout(x, x[..., ::-1], 0.2, 0.3, **how),
}
LAYOUTS = {
    "C": np.asarray,
    "F": np.asfortranarray,
    "reversed": lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS | WHOLE)
def test_each_row_is_its_region(isa, op, layout):
    op, x = (OPS | WHOLE)[op], LAYOUTS[layout](numbers())
    y, ctx = op(x, rng=RNG(), rows=IDS)
    assert_same_bits(y, of_rows(op, numbers(), rows=IDS))
    again = op(x, rng=RNG(), rows=list(IDS))[1]
    loaded = pickle.loads(pickle.dumps(ctx))
    for other in (again, loaded):
        for a, b in zip(gradients(ctx, x), gradients(other, x), strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_whole_pieces_of_the_mask_array(isa, any_dtype, op, streamed):
    """Rows of 128 elements, 256 ... are drawn and applied in one loop, as are those of a region."""
    op, x = OPS[op], numbers((37, 3, 1, 128)).astype(any_dtype)
    rows = np.random.default_rng(1).permutation(1000)[:37]
    wide = (0, 1, 0, 0), (37, 5, 1, 128)
    before = _core.set_non_temporal_bytes(0 if streamed else 2**62)
    try:
        assert_same_bits(op(x, rng=RNG(), rows=rows)[0], of_rows(op, x, rows=rows))
        cut = [op(x[i : i + 1], rng=RNG(), region=((i, *wide[0][1:]), wide[1])) for i in range(37)]
        y, ctx = op(x, rng=RNG(), region=wide)
        assert_same_bits(y, np.concatenate([y for y, _ in cut]))
        dx = [gradients(c, x[i : i + 1])[0] for i, (_, c) in enumerate(cut)]
        assert_same_bits(gradients(ctx, x)[0], np.concatenate(dx))
    finally:
        _core.set_non_temporal_bytes(before)


@pytest.mark.parametrize("p", [0.2, 0.25, 0.5, 1.0])
@pytest.mark.parametrize(
    "shape", [(6,), (6, 1), (6, 3), (6, 128), (6, 300), (6, 5000), (6, 2, 200)], ids=str
)
def test_rows_of_any_length(isa, threads, shape, p):
    x = numbers(shape)
    expected, mask = reference.dropout(x, p, 3, 8, (), None, IDS)
    for save in ("bits", "seed"):
        y, ctx = fd.dropout(x, p, rng=RNG(), rows=IDS, save=save)
        assert_same_bits(y, expected)
        assert_same_bits(ctx.backward(x), expected)
        assert (ctx.mask() == mask).all()
    assert (fd.keep_mask(shape, p, rng=RNG(), rows=IDS) == mask).all()


@pytest.mark.parametrize(
    ("shape", "region"),
    [
        ((6, 4, 70), ((0, 1, 30), (1001, 9, 128))),
        ((6, 2, 128), ((0, 1, 0), (1001, 3, 128))),
        ((6, 2, 128), ((0, 1, 128), (1001, 3, 384))),  # each row is two runs of whole pieces
        ((6, 1, 128), ((0, 0, 72), (1001, 2, 256))),  # whole pieces, except for where they begin
    ],
)
def test_with_a_region_of_the_other_axes(isa, shape, region):
    x = numbers(shape)
    for axes in ((), (1,)):
        index = reference.element_index(x.shape, axes, region, IDS)
        mask = reference.keep(index, 0.3, 3, 8)
        y, ctx = fd.dropout(
            x, 0.3, rng=RNG(), rows=IDS, region=region, shared_axes=axes, save="seed"
        )
        assert (ctx.mask() == mask).all()
        assert_same_bits(y, reference.apply(x, mask, 0.3))
        noisy, _ = fd.gaussian_noise(x, 1.0, rng=RNG(), rows=IDS, region=region, shared_axes=axes)
        assert_same_bits(noisy, x + reference.normals(index, 3, 8))


def test_a_mask_follows_its_example():
    """Through shuffling, other batch sizes, and other numbers of ranks."""
    x, order = numbers((64, 100)), np.random.default_rng(1).permutation(64)
    whole, _ = fd.dropout(x, 0.4, rng=RNG())
    for size in (64, 10, 1):
        for at in np.split(order, range(size, 64, size)):
            assert_same_bits(fd.dropout(x[at], 0.4, rng=RNG(), rows=at)[0], whole[at])


def test_pieces_without_bits():
    """An array so large, in a layout for which the mask is drawn a piece at a time."""
    rows = np.random.default_rng(0).permutation(5000)[:2100]
    x = np.ones((2100, 2048), np.float32)[:, ::-1]
    y, ctx = fd.dropout(x, 0.3, rng=RNG(), rows=rows, save="seed")
    mask = reference.keep(reference.element_index(x.shape, (), None, rows), 0.3, 3, 8)
    assert ((y != 0) == mask).all()
    assert_same_bits(ctx.backward(x), y)


def test_rows_that_follow_each_other_are_a_region():
    x = numbers((50, 100))
    y, ctx = fd.dropout(x, 0.3, rng=RNG(), rows=np.arange(7, 57))
    assert ctx.draw.place.is_run
    assert ctx.draw.place.start == 700
    assert_same_bits(y, fd.dropout(x, 0.3, rng=RNG(), region=((7, 0), (57, 100)))[0])


def test_numbers_of_any_kind():
    x, ids = numbers((6, 20)), [5, 0, 17, 5, 2, 100]
    expected, _ = fd.dropout(x, 0.3, rng=RNG(), rows=ids)
    for kind in ("u1", "i4", ">i8", "u8", "i8"):
        assert_same_bits(fd.dropout(x, 0.3, rng=RNG(), rows=np.array(ids, kind))[0], expected)
    assert fd.dropout(np.ones((0, 3)), 0.3, rng=1, rows=[])[0].shape == (0, 3)
    far = 2**62 // 20 - 1
    _, ctx = fd.dropout(x[:2], 0.3, rng=RNG(), rows=[far, 0])
    index = reference.element_index((2, 20), (), None, [far, 0])
    assert (ctx.mask() == reference.keep(index, 0.3, 3, 8)).all()


def test_a_context_has_its_own_numbers():
    ids = np.array([4, 2])
    x = np.ones((2, 64), np.float32)
    y, ctx = fd.dropout(x, 0.5, rng=RNG(), rows=ids, save="seed")
    ids[:] = 0
    assert_same_bits(ctx.backward(x), y)
    assert ctx.nbytes == 16
    with pytest.raises(ValueError, match="read-only"):
        ctx.draw.place.rows[0] = 1


def test_layers():
    x = numbers((6, 40))
    layer = fd.layers.Dropout(0.3, rng=RNG())
    expected, _ = fd.dropout(x, 0.3, rng=RNG(), rows=IDS)
    y, ctx = layer.forward(x, rows=IDS)
    assert_same_bits(y, expected)
    assert_same_bits(fd.layers.Dropout(0.3, rng=RNG())(x, rows=IDS), expected)
    assert_same_bits(ctx.backward(x), expected)
    concrete = fd.layers.ConcreteDropout(0.3, rng=RNG())
    logit = concrete.logit.copy()
    for place in ({"rows": IDS}, {"region": ((1, 2), (9, 99))}):
        concrete.rng = RNG()
        expected, _ = fd.concrete_dropout(x, logit, rng=RNG(), **place)
        assert_same_bits(concrete(x, **place), expected)


def test_layers_with_variances_and_gradients():
    x = numbers((6, 40))
    for place in ({"rows": IDS}, {"region": ((1, 2), (9, 99))}):
        layer = fd.layers.VariationalDropout((40,), 0.5, rng=RNG(), shared_axes=1)
        expected, _ = fd.variational_dropout(x, layer.log_alpha, rng=RNG(), shared_axes=1, **place)
        assert_same_bits(layer(x, **place), expected)
        layer = fd.layers.SparseVariationalLinear(40, 30, rng=1)
        layer.rng = RNG()
        y = layer(x, **place)  # log_variance is in its range now
        own = layer.weight, layer.log_variance, layer.bias
        assert_same_bits(y, fd.sparse_variational_linear(x, *own, rng=RNG(), **place)[0])
    for place in ({"rows": IDS}, {"region": ((1, 0), (9, 40))}):
        layer = fd.layers.AdversarialDropout(0.2, 0.3, rng=RNG())
        assert_same_bits(layer(x, **place), fd.dropout(x, 0.3, rng=RNG(), **place)[0])
        expected, _ = fd.adversarial_dropout(x, -x, 0.2, 0.3, rng=RNG(), **place)
        assert_same_bits(layer.search(-x), expected)
    region = (0, 7), (6, 99)
    layer = fd.layers.TargetedDropout(0.5, 0.6, rng=RNG())
    expected, _ = fd.targeted_dropout(x, 0.5, 0.6, rng=RNG(), region=region)
    assert_same_bits(layer(x, region=region), expected)
    assert (fd.layers.TargetedDropout(0.5, 0.6, rng=RNG())(x) != expected).any()


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (TypeError, "rows must be integers, got float64", {"rows": [0.0, 1.0, 2.0]}),
        (TypeError, "rows must be integers, got bool", {"rows": [True, False, True]}),
        (ValueError, "rows must be in 0", {"rows": [0, -1, 2]}),
        (ValueError, "rows must be in 0", {"rows": [0, 1, 2**62]}),
        (ValueError, "rows must be at most 2\\*\\*62", {"rows": np.array([0, 1, 2**63], "u8")}),
        (ValueError, "rows must have a number for each row", {"rows": [0, 1]}),
        (ValueError, "rows must have a number for each row", {"rows": [[0], [1], [2]]}),
        (ValueError, "rows must have a number for each row", {"rows": 3}),
        (
            ValueError,
            "axis 0 of x, of shape .3, 4., shares one draw",
            {"rows": [0, 1, 2], "shared_axes": 0},
        ),
        (ValueError, "rows must be in 0 ... 4", {"rows": [0, 5, 2], "region": ((0, 0), (5, 4))}),
        (ValueError, "begin at 0", {"rows": [0, 1, 2], "region": ((1, 0), (5, 4))}),
        (ValueError, "contain a part", {"rows": [0, 1, 2], "region": ((0, 1), (5, 4))}),
    ],
)
def test_errors(error, words, options):
    rng, out = fd.Rng(1), np.full((3, 4), 7.0)
    with pytest.raises(error, match=words):
        fd.dropout(np.ones((3, 4)), 0.5, rng=rng, out=out, **options)
    assert (rng.call, (out == 7).all()) == (0, True)
    with pytest.raises(ValueError, match="rows must have a number"):
        fd.dropout(np.float32(1), 0.5, rng=rng, rows=3)


class TestAt:
    """``keep_mask(at=)``: the mask of single elements."""

    SHAPE = 20, 30, 9

    @pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
    @pytest.mark.parametrize(
        "place",
        [
            {},
            {"shared_axes": (1,)},
            {"region": ((3, 5, 1), (99, 40, 10))},
            {"shared_axes": 2, "region": ((3, 5, 0), (99, 40, 9))},
            {"rows": np.arange(20) * 7 % 20},
        ],
        ids=str,
    )
    def test_is_the_mask_there(self, isa, p, place):
        mask = fd.keep_mask(self.SHAPE, p, rng=RNG(), **place)
        generator = np.random.default_rng(0)
        for at in (
            tuple(generator.integers(0, n, (5, 7)) for n in self.SHAPE),
            tuple(generator.integers(0, n, 900) for n in self.SHAPE),
            (generator.integers(0, 20, (8, 1)), 4, generator.integers(0, 9, 3)),
            np.nonzero(mask),
        ):
            assert (fd.keep_mask(self.SHAPE, p, rng=RNG(), at=at, **place) == mask[at]).all()
        flat = generator.integers(0, mask.size, (3, 50))
        found = fd.keep_mask(self.SHAPE, p, rng=RNG(), at=flat, **place)
        assert (found == mask.reshape(-1)[flat]).all()

    def test_of_a_shape_that_no_memory_holds(self):
        at = np.array([2**61, 0, 2**62 - 1])
        found = fd.keep_mask((2**31, 2**31), 0.5, rng=RNG(), at=at)
        assert (found == reference.keep(at, 0.5, 3, 8)).all()

    def test_scalars_packed_and_nothing(self):
        mask = fd.keep_mask((4, 5), 0.5, rng=RNG())
        assert fd.keep_mask((4, 5), 0.5, rng=RNG(), at=(2, 3)) == mask[2, 3]
        assert fd.keep_mask((4, 5), 0.5, rng=RNG(), at=13).shape == ()
        packed = fd.keep_mask((4, 5), 0.5, rng=RNG(), at=np.arange(20), packed=True)
        assert (packed == np.packbits(mask, bitorder="little")).all()
        assert fd.keep_mask((4, 0), 0.5, rng=RNG(), at=[]).shape == (0,)
        with pytest.raises(ValueError, match="at must be empty, as nothing is there, got 0"):
            fd.keep_mask((4, 0), 0.5, rng=RNG(), at=[0])
        assert fd.keep_mask((), 0.5, rng=RNG(), at=()) == fd.keep_mask((), 0.5, rng=RNG())

    @pytest.mark.parametrize(
        ("error", "words", "at"),
        [
            (TypeError, "at must be integers", [0.5]),
            (TypeError, "at must be integers", np.ones((4, 5), bool)),
            (ValueError, r"at must be in 0 ... 19, got -1 ... 3", [3, -1]),
            (ValueError, r"at must be in 0 ... 4, got 5 ... 5", (0, 5)),
            (ValueError, "at must have positions for 2 axes, got 3", (0, 1, 2)),
            (ValueError, "at must have positions of one shape", ([0, 1], [0, 1, 2])),
        ],
    )
    def test_errors(self, error, words, at):
        rng = fd.Rng(1)
        with pytest.raises(error, match=words):
            fd.keep_mask((4, 5), 0.5, rng=rng, at=at)
        assert rng.call == 0
