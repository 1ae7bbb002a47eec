"""Spatial, locked and embedding dropout and DropPath: against the reference and plain dropout."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.differences import assert_gradient

import fastdrop as fd
from fastdrop import _core, reference
from fastdrop.ops.shared import spatial_axes

MAPS = [(5, 6, 7), (3, 20, 7, 9), (2, 5, 3, 4, 10)]


def array(shape, dtype, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def check(op, x, dy, p, shared_axes, model, **options):
    """Forward and back against `model`, and against plain dropout, whose context it has."""
    for save in ("bits", "seed"):
        y, ctx = op(x, p, rng=fd.Rng(5, 3), save=save, **options)
        assert_same_bits(y, model(x))
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).backward(dy), model(dy))
        _, plain = fd.dropout(x, p, rng=fd.Rng(5, 3), shared_axes=shared_axes, save=save)
        np.testing.assert_array_equal(ctx.mask(), plain.mask())
        for name in ("seed", "call", "p", "shape", "nbytes"):
            assert getattr(ctx, name) == getattr(plain, name)


@pytest.mark.parametrize("shape", MAPS, ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_spatial(any_dtype, shape, channels_last):
    axes = spatial_axes(len(shape), channels_last)
    for p in (0.3, 0.5, 1):

        def model(x, p=p):
            return reference.spatial_dropout(x, p, 5, 3, channels_last)

        x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
        check(fd.spatial_dropout, x, dy, p, axes, model, channels_last=channels_last)


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_maps_are_dropped_as_a_whole(shape, dtype):
    x = array(shape, dtype)
    y, ctx = fd.spatial_dropout(x, 0.4, rng=1)
    scaled = x * x.dtype.type(ctx.scale)
    dropped = 0
    for at in np.ndindex(shape[:2]):
        if y[at].any():
            assert_same_bits(y[at], scaled[at])
        else:
            assert_same_bits(y[at], np.zeros_like(x[at]))
            dropped += 1
    assert 0 < dropped < shape[0] * shape[1]


@pytest.mark.parametrize("shape", MAPS, ids=str)
def test_channels_first_and_last_drop_the_same_maps(shape):
    x = array(shape, np.float32)
    first, _ = fd.spatial_dropout(x, 0.4, rng=1)
    for last in (np.moveaxis(x, 1, -1), np.moveaxis(x, 1, -1).copy()):  # strided, contiguous
        y, _ = fd.spatial_dropout(last, 0.4, rng=1, channels_last=True)
        assert_same_bits(np.moveaxis(y, -1, 1).copy(), first)


def test_rate_counts_maps():
    y, _ = fd.spatial_dropout(np.ones((300, 400, 2)), 0.2, rng=1)
    n = 300 * 400
    assert abs((y[..., 0] == 0).mean() - 0.2) < 4 * np.sqrt(0.2 * 0.8 / n)


def test_shards():
    x = array((4, 6, 50, 3), np.float32)
    whole, _ = fd.spatial_dropout(x, 0.4, rng=1)
    part, ctx = fd.spatial_dropout(x[1:3, 2:5], 0.4, rng=1, region=((1, 2, 0, 0), x.shape))
    assert_same_bits(part, whole[1:3, 2:5].copy())
    assert_same_bits(ctx.backward(x[1:3, 2:5]), part)
    rows = array((40, 30), np.float32)
    whole, _ = fd.drop_path(rows, 0.4, rng=1)
    part, _ = fd.drop_path(rows[7:20], 0.4, rng=1, region=((7, 0), rows.shape))
    assert_same_bits(part, whole[7:20])


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 49, 56, 57, 63, 64, 65, 100, 129, 600])
def test_runs_of_every_length(channels, threads):
    """Rows of the mask that begin and end anywhere in a byte and in a tile, repeated or filled."""
    steps = 20_000 // channels
    for shape, axes in [
        ((3, steps, channels), (1,)),
        ((3, steps, channels), (2,)),
        ((7, 3, steps, channels), (1, 3)),
        ((7, 3, steps, channels), (0, 2)),
    ]:
        drawn = [1 if d in axes else n for d, n in enumerate(shape)]
        mask = np.broadcast_to(fd.keep_mask(drawn, 0.4, rng=1), shape)
        x = array(shape, np.float32)
        y, ctx = fd.dropout(x, 0.4, rng=1, shared_axes=axes)
        assert_same_bits(y, reference.apply(x, mask, 0.4))
        np.testing.assert_array_equal(ctx.mask(), mask)


@pytest.mark.parametrize("time_axis", [0, 1, -2])
def test_locked(any_dtype, time_axis):
    for shape in ((9, 11, 70), (2, 3, 5, 33), (4, 0, 3)):
        for p in (0.3, 0.5, 1):

            def model(x, p=p):
                return reference.locked_dropout(x, p, 5, 3, time_axis)

            x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
            if x.size:
                check(fd.locked_dropout, x, dy, p, time_axis, model, time_axis=time_axis)
            else:
                assert fd.locked_dropout(x, p, rng=1, time_axis=time_axis)[0].shape == shape


def test_locked_mask_step_by_step():
    """The same (seed, call) at each step of a loop is the mask of the whole sequence."""
    x = array((4, 9, 70), np.float32)
    y, ctx = fd.locked_dropout(x, 0.3, rng=fd.Rng(5, 3))
    for t in range(9):
        step, _ = fd.dropout(x[:, t], 0.3, rng=fd.Rng(ctx.seed, ctx.call))
        assert_same_bits(step, y[:, t].copy())


IDS = [np.array(5), np.zeros((0, 3), int), np.arange(12), np.array([[7, 7, 0], [11, 7, 3]], "u1")]


@pytest.mark.parametrize("features", [(3,), (70,), (4, 5), (5000,), (0,)], ids=str)
def test_embedding(any_dtype, features):
    weight = array((12, *features), any_dtype)
    for p in (0, 0.3, 1):
        y, ctx = fd.embedding_dropout(weight, p, rng=fd.Rng(5, 3))
        table = reference.embedding_dropout(weight, p, 5, 3)
        assert_same_bits(y, table)
        assert_same_bits(ctx.backward(weight), table)
        for ids in IDS:
            y, ctx = fd.embedding_dropout(weight, p, ids=ids, rng=fd.Rng(5, 3))
            assert_same_bits(y, table[ids])
            ctx = pickle.loads(pickle.dumps(ctx))
            assert (ctx.seed, ctx.call, ctx.p, ctx.shape) == (5, 3, p, weight.shape)
            assert ctx.nbytes == 8 * ids.size
            dy = array(y.shape, any_dtype, 1)
            dweight = ctx.backward(dy)
            expected = reference.embedding_gradient(dy, weight.shape, ids, p, 5, 3)
            assert_same_bits(dweight, expected.astype(any_dtype))


@pytest.mark.parametrize("training", [True, False])
def test_rows_of_an_embeddings_gradient(any_dtype, training):
    weight = np.random.default_rng(0).standard_normal((50, 7)).astype(any_dtype)
    ids = np.array([[3, 8, 3], [49, 0, 21]])
    y, ctx = fd.embedding_dropout(weight, 0.5, ids=ids, rng=1, training=training)
    dy = np.random.default_rng(1).standard_normal(y.shape).astype(any_dtype)
    words, rows = ctx.backward_rows(dy)
    assert words.tolist() == [i for i in (0, 3, 8, 21, 49) if ctx.kept()[i]]
    dense = ctx.backward(dy)
    assert_same_bits(rows, dense[words])
    dense[words] = 0
    assert not dense.any()
    _, none = fd.embedding_dropout(weight, 0.5, ids=np.zeros((0, 3), int), rng=1)
    words, rows = none.backward_rows(np.zeros((0, 3, 7), any_dtype))
    assert (words.shape, rows.shape) == ((0,), (0, 7))
    with pytest.raises(ValueError, match="dy must have shape"):
        ctx.backward_rows(dy[0])


def test_embedding_of_many_ids(threads):
    weight = array((4096, 64), np.float32)
    ids = np.random.default_rng(0).integers(0, 4096, (70, 80))
    y, ctx = fd.embedding_dropout(weight, 0.2, ids=ids, rng=1)
    table, _ = fd.embedding_dropout(weight, 0.2, rng=1)
    assert_same_bits(y, table[ids])
    np.testing.assert_array_equal(ctx.kept(), table.any(axis=1))
    ids[:] = 0  # the context has its own
    dweight = ctx.backward(np.ones_like(y))
    assert (dweight.any(axis=1) <= ctx.kept()).all()
    assert abs(dweight.mean() * 4096 / 5600 - 1) < 0.1


def test_embedding_layouts():
    weight, ids = array((40, 30), np.float64), np.array([[1, 1], [2, 9]])
    expected = reference.embedding_dropout(weight, 0.5, 1, 0)[ids]
    wide = np.empty((80, 60))[::2, ::-2]
    wide[...] = weight
    for same in (np.asfortranarray(weight), wide, weight.astype(">f8"), weight.tolist()):
        y, ctx = fd.embedding_dropout(same, 0.5, ids=ids.tolist(), rng=1)
        assert_same_bits(y, expected)
        dy = array((30, 2, 2), np.float64).T
        assert_same_bits(ctx.backward(dy), ctx.backward(dy.copy()))
        assert_same_bits(fd.embedding_dropout(same, 0.5, ids=ids, training=False)[0], weight[ids])


def test_a_dropped_word_has_no_trace():
    """Neither of an infinite row nor of an infinite gradient; a kept row keeps them."""
    weight = np.full((50, 9), np.nan, np.float32)
    ids = np.tile(np.arange(50), 2)
    y, ctx = fd.embedding_dropout(weight, 0.5, ids=ids, rng=1)
    kept = ctx.kept()
    assert 0 < kept.sum() < 50
    assert_same_bits(y[~kept[ids]], np.zeros_like(y[~kept[ids]]))
    assert np.isnan(y[kept[ids]]).all()
    dweight = ctx.backward(np.full_like(y, np.inf))
    assert_same_bits(dweight[~kept], np.zeros_like(weight[~kept]))
    assert np.isinf(dweight[kept]).all()
    y, ctx = fd.embedding_dropout(weight, 1, ids=ids, rng=1)
    assert not y.any()
    assert not ctx.backward(np.full_like(y, np.nan)).any()


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_drop_path(any_dtype, mode, scale_by_keep):
    for shape in ((9,), (9, 5), (4, 3, 1700), (0, 4)):
        for p in (0.3, 0.5, 1):

            def model(x, p=p):
                return reference.drop_path(x, p, 5, 3, mode, scale_by_keep)

            axes = tuple(range(mode == "row", len(shape)))
            x, dy = array(shape, any_dtype), array(shape, any_dtype, 1)
            options = {"mode": mode, "scale_by_keep": scale_by_keep}
            check(fd.drop_path, x, dy, p, axes, model, **options)
    _, ctx = fd.drop_path(np.ones((4, 3), any_dtype), 0.2, rng=1, **options)
    assert ctx.scale == (1 / (1 - 0.2) if scale_by_keep else 1.0)


def test_special_values(isa, dtype):
    """Dropped means +0 whatever was there; kept, a NaN or an infinity stays."""
    x = np.tile(np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], dtype), (50, 3, 20))
    for op, model in [
        (fd.spatial_dropout, reference.spatial_dropout),
        (fd.locked_dropout, reference.locked_dropout),
        (fd.drop_path, reference.drop_path),
    ]:
        y, ctx = op(x, 0.5, rng=1)
        assert_same_bits(y, model(x, 0.5, 1, 0))
        assert_same_bits(ctx.backward(x), y)


OPS = {
    "spatial": lambda x, p, **k: fd.spatial_dropout(x.reshape(3, 4, 2), p, **k),
    "channels last": lambda x, p, **k: fd.spatial_dropout(
        x.reshape(3, 2, 4), p, channels_last=True, **k
    ),
    "locked": lambda x, p, **k: fd.locked_dropout(x.reshape(2, 3, 4), p, **k),
    "table": lambda x, p, **k: fd.embedding_dropout(x.reshape(8, 3), p, **k),
    "ids": lambda x, p, **k: fd.embedding_dropout(x.reshape(8, 3), p, ids=[1, 2, 1, 7, 0], **k),
    "drop_path": lambda x, p, **k: fd.drop_path(x.reshape(6, 4), p, **k),
    "unscaled": lambda x, p, **k: fd.drop_path(x.reshape(6, 4), p, scale_by_keep=False, **k),
}


@pytest.mark.parametrize("op", OPS)
def test_gradient(op):
    x = array(24, np.float64)
    y, ctx = OPS[op](x, 0.4, rng=4)
    weights = array(y.shape, np.float64, 1)
    assert 0 < (y == 0).sum() < y.size
    dx = ctx.backward(weights).reshape(24)
    assert_gradient(lambda: (OPS[op](x, 0.4, rng=4)[0] * weights).sum(), x, dx)


@pytest.mark.parametrize("op", OPS)
def test_edges(op):
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0] * 4)
    expected, _ = OPS[op](np.arange(24.0), 0.0, rng=1)
    at = expected.astype(int)  # which of x is where
    rng = fd.Rng(1)
    for arguments, call in [({"p": 0}, 0), ({"p": 0.7, "training": False}, None)]:
        y, ctx = OPS[op](x, rng=rng, **arguments)
        assert_same_bits(y, x[at])
        assert not np.shares_memory(y, x)
        assert (ctx.call, ctx.p, ctx.scale) == (call, 0.0, 1.0)
        if op != "ids":
            assert_same_bits(ctx.backward(y), y)
    y, ctx = OPS[op](x, 1, rng=rng)
    assert_same_bits(y, np.zeros(y.shape))
    assert_same_bits(ctx.backward(np.full(y.shape, np.nan)), np.zeros(ctx.shape))
    assert rng.call == 2


X, TABLE = np.ones((3, 4, 5), np.float32), np.ones((6, 4))


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [
        ("spatial_dropout", {"x": X[0]}, ValueError, "x must have a batch axis, a channel axis"),
        ("spatial_dropout", {"x": X[..., None, None, None]}, ValueError, "got 6 axes; .*shared_ax"),
        ("spatial_dropout", {"x": 1.0}, ValueError, "got 0 axes"),
        ("spatial_dropout", {"x": X, "p": 1.5}, ValueError, r"p must be in \[0, 1\], got 1.5"),
        ("spatial_dropout", {"x": X, "save": "x"}, ValueError, "save must be one of"),
        ("spatial_dropout", {"x": X, "out": X[1:]}, ValueError, "out must have shape"),
        ("spatial_dropout", {"x": X.astype(int)}, TypeError, "x must be float16, .*, got int64"),
        ("locked_dropout", {"x": X, "p": np.nan}, ValueError, r"p must be in \[0, 1\], got nan"),
        (
            "locked_dropout",
            {"x": X, "time_axis": 3},
            np.exceptions.AxisError,
            "time_axis: axis 3 is out of bounds for array of dimension 3",
        ),
        ("locked_dropout", {"x": X[0]}, ValueError, r"axes \(batch, time, ...\), got shape \(4, 5"),
        (
            "locked_dropout",
            {"x": 1.0, "time_axis": 1},
            np.exceptions.AxisError,
            "time_axis: axis 1 is out of bo",
        ),
        ("locked_dropout", {"x": X, "time_axis": 1.0}, TypeError, "time_axis must be an int"),
        ("locked_dropout", {"x": X > 0}, TypeError, "x must be float16, .*, got bool"),
        ("embedding_dropout", {"weight": X[0, 0]}, ValueError, r"weight must have shape \(words, "),
        ("embedding_dropout", {"weight": 1.0, "ids": 0}, ValueError, "weight must have shape"),
        ("embedding_dropout", {"weight": TABLE.astype(int)}, TypeError, "weight must be float16"),
        ("embedding_dropout", {"weight": TABLE, "p": "a"}, TypeError, "p must be a real number"),
        ("embedding_dropout", {"weight": TABLE, "ids": [1.0]}, TypeError, "ids must be integers, "),
        ("embedding_dropout", {"weight": TABLE, "ids": [True]}, TypeError, "integers, got bool"),
        ("embedding_dropout", {"weight": TABLE, "ids": "a"}, TypeError, "ids must be integers"),
        (
            "embedding_dropout",
            {"weight": TABLE, "ids": [0, 6]},
            IndexError,
            r"ids must be in 0 \.\.\. 5, got 0 \.\.\. 6",
        ),
        ("embedding_dropout", {"weight": TABLE, "ids": -1}, IndexError, r"got -1 \.\.\. -1"),
        (
            "embedding_dropout",
            {"weight": TABLE, "ids": np.array([2**64 - 1])},
            IndexError,
            "got 18446744073709551615",
        ),
        ("drop_path", {"x": 1.0}, ValueError, "x must have a batch axis, got a 0-d array"),
        ("drop_path", {"x": X, "mode": "rows"}, ValueError, "mode must be one of 'row', 'batch'"),
        ("drop_path", {"x": X, "p": -1}, ValueError, r"p must be in \[0, 1\], got -1.0"),
        ("drop_path", {"x": X.astype(int)}, TypeError, "x must be float16, .*, got int64"),
    ],
)
def test_errors(op, arguments, error, message):
    rng = fd.Rng(1)
    with pytest.raises(error, match=message):
        getattr(fd, op)(**arguments, rng=rng)
    assert rng.call == 0


def test_errors_of_backward():
    _, ctx = fd.embedding_dropout(TABLE, ids=[[1, 2, 3]], rng=1)
    with pytest.raises(ValueError, match=r"dy must have shape \(1, 3, 4\), got \(3, 4\)"):
        ctx.backward(np.ones((3, 4)))
    with pytest.raises(TypeError, match="dy must be float16"):
        ctx.backward(np.ones((1, 3, 4), int))


@pytest.mark.parametrize(
    ("layer", "op", "options", "shown"),
    [
        (
            "SpatialDropout",
            fd.spatial_dropout,
            {"channels_last": True, "save": "seed"},
            "channels_last=True, shared_axes=()",
        ),
        (
            "LockedDropout",
            fd.locked_dropout,
            {"time_axis": 0, "save": "seed"},
            "time_axis=0, shared_axes=()",
        ),
        ("DropPath", fd.drop_path, {"mode": "batch"}, "mode='batch', scale_by_keep=True"),
        ("DropPath", fd.drop_path, {"scale_by_keep": False}, "mode='row', scale_by_keep=False"),
    ],
)
def test_layers(layer, op, options, shown):
    name, layer = layer, getattr(fd.layers, layer)(0.4, rng=7, **options)
    x, rng = array((20, 30, 8), np.float32), fd.Rng(7)
    for _ in range(3):
        y, ctx = op(x, 0.4, rng=rng, **options)
        assert_same_bits(layer(x), y)
        assert_same_bits(layer.backward(x), ctx.backward(x))
        assert layer.ctx.nbytes == ctx.nbytes
    assert_same_bits(layer.eval()(x), x)
    assert layer.rng.call == 3
    out = np.empty_like(x)
    assert layer.train()(x, out=out) is out
    save = options.get("save", "bits")
    assert repr(layer) == f"{name}(p=0.4, {shown}, save={save!r})"


def test_layers_refuse_bad_options():
    for kind in (fd.layers.SpatialDropout, fd.layers.LockedDropout):
        with pytest.raises(ValueError, match="save must be one of"):
            kind(save="x")
    with pytest.raises(ValueError, match="mode must be one of"):
        fd.layers.DropPath(mode="x")
    with pytest.raises(TypeError, match="weight must be float16"):
        fd.layers.EmbeddingDropout(np.ones((3, 4), int))


def test_embedding_layer_learns_its_table():
    weight = array((30, 8), np.float32)
    layer = fd.layers.EmbeddingDropout(weight, 0.4, rng=7)
    ids = np.array([[3, 3], [29, 0]])
    with pytest.raises(RuntimeError, match="forward"):
        layer.backward(np.ones((2, 2, 8)))
    y, ctx = fd.embedding_dropout(weight, 0.4, ids=ids, rng=7)
    assert_same_bits(layer(ids), y)
    assert layer.backward(y) is None
    assert_same_bits(layer.gradients["weight"], ctx.backward(y))
    assert layer.parameters["weight"] is weight
    weight += 1  # learned in place
    assert_same_bits(layer.eval()(ids), weight[ids])
    assert repr(layer) == "EmbeddingDropout(weight of (30, 8), p=0.4)"


def test_gradient_of_the_table_is_the_same_for_any_threads_and_isa():
    weight, dy = array((50, 70), np.float32), array((400, 70), np.float32, 1)
    ids = np.random.default_rng(0).integers(0, 50, 400)
    _, ctx = fd.embedding_dropout(weight, 0.3, ids=ids, rng=1)
    before, isa = fd.get_num_threads(), _core.get_isa()
    found = set()
    for name in _core.available_isas():
        for n in (1, 2):
            _core.set_isa(name)
            fd.set_num_threads(n)
            found.add(ctx.backward(dy).tobytes())
    fd.set_num_threads(before)
    _core.set_isa(isa)
    assert len(found) == 1
