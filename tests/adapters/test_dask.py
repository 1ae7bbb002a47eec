"""dask: every chunking, threads, and processes of which one is killed."""

import doctest
import os
import pickle
import signal
from inspect import signature

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

pytest.importorskip("dask.array")
pytest.importorskip("distributed")
import dask.array as da
import distributed

from fastdrop.adapters import dask as adapter
from fastdrop.adapters.dask import dropout

x = np.random.default_rng(0).standard_normal((60, 5, 34)).astype(np.float32)
CHUNKS = [-1, 1000, (1, 5, 34), (60, 1, 7), ((1, 50, 9), (2, 3), (33, 1)), ((0, 60), 5, (34, 0))]


def test_example():
    failed, attempted = doctest.testmod(adapter)
    assert attempted > 5
    assert not failed


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
@pytest.mark.parametrize("p", [0, 0.2, 0.5, 1])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_any_chunks(chunks, p, scheduler):
    expected, ctx = fd.dropout(x, p, rng=fd.Rng(3, 7))
    lazy = da.from_array(x, chunks=chunks)
    y, lazy_ctx = dropout(lazy, p, rng=fd.Rng(3, 7))
    assert (y.chunks, y.dtype) == (lazy.chunks, x.dtype)
    assert_same_bits(y.compute(scheduler=scheduler), expected)
    for dy in (lazy, x, da.from_array(x, chunks=(7, 2, 20))):
        dx = lazy_ctx.backward(dy).compute(scheduler=scheduler)
        assert_same_bits(dx, ctx.backward(x))


@pytest.mark.parametrize("shared_axes", [0, 1, (0, 2), (0, 1, 2), -1])
def test_shared_axes(shared_axes):
    how = {"rng": 3, "shared_axes": shared_axes}
    expected, ctx = fd.dropout(x, 0.5, **how)
    y, lazy_ctx = dropout(da.from_array(x, chunks=(7, 2, 20)), 0.5, **how)
    assert_same_bits(y.compute(), expected)
    assert_same_bits(lazy_ctx.backward(x).compute(), ctx.backward(x))


def test_dtypes(any_dtype):
    a = x.astype(any_dtype)
    y, _ = dropout(da.from_array(a, chunks=(7, 2, 20)), 0.2, rng=3)
    assert_same_bits(y.compute(), fd.dropout(a, 0.2, rng=3)[0])


def test_foreign_byte_order():
    """What dask says of y's dtype is what it computes."""
    a = x.astype(x.dtype.newbyteorder())
    y, _ = dropout(da.from_array(a, chunks=20), 0.2, rng=3)
    assert y.dtype == y.compute().dtype == x.dtype
    assert_same_bits(y.compute(), fd.dropout(x, 0.2, rng=3)[0])


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_small_shapes(shape):
    a = np.ones(shape)
    y, _ = dropout(da.from_array(a), 0.5, rng=3)
    assert_same_bits(y.compute(), fd.dropout(a, 0.5, rng=3)[0])


columns = (20, (2, 3), 20)
APPLIED = {
    "relu": (fd.relu_dropout, [x], {"p": 0.3}),
    "add": (fd.dropout_add, [x, x[::-1]], {"p": 0.3}),
    "bias": (fd.bias_dropout_add, [x, x[0, 0], x[::-1]], {"p": 0.3}),
    "bias, relu": (fd.bias_relu_dropout, [x, x[0, 0]], {"p": 0.3}),
    "bias, gelu": (fd.bias_gelu_dropout, [x, x[0, 0]], {"p": 0.3}),
    "softmax": (fd.softmax_dropout, [x], {"p": 0.3}),
    "alpha": (fd.alpha_dropout, [x], {"p": 0.3, "shared_axes": 1}),
    "feature alpha": (fd.feature_alpha_dropout, [x], {"p": 0.3}),
    "gaussian": (fd.gaussian_dropout, [x], {"p": 0.3}),
    "noise": (fd.gaussian_noise, [x], {"std": 0.3}),
    "spatial": (fd.spatial_dropout, [x], {"p": 0.3}),
    "zoneout": (fd.zoneout, [x, x[::-1]], {"p": 0.3}),
    "concrete": (fd.concrete_dropout, [x, np.float32(0.3)], {}),
    "variational": (fd.variational_dropout, [x, np.float32(-0.3)], {}),
    "variational, neurons": (fd.variational_dropout, [x, -np.abs(x[0, 0])], {}),
    "variational, elements": (fd.variational_dropout, [x, -np.abs(x)], {}),
    "targeted": (fd.targeted_dropout, [x], {"p": 0.4, "targeted": 0.7}),
    "adversarial": (fd.adversarial_dropout, [x, x[::-1]], {"delta": 0.2, "p": 0.3}),
    "locked": (fd.locked_dropout, [x], {"p": 0.3}),
    "path": (fd.drop_path, [x], {"p": 0.3}),
    "block": (fd.drop_block, [x[..., None]], {"p": 0.3, "block_size": 3}),
}


CUT = {
    fd.drop_block: (20, -1, -1, -1),  # its squares want whole examples
    fd.softmax_dropout: (20, (2, 3), -1),  # along its last axis is the softmax
    fd.targeted_dropout: (-1, -1, 20),  # along the others weights are ranked
    fd.adversarial_dropout: (20, -1, -1),  # the elements of an example are ranked
}


def test_every_op_that_takes_a_region_is_below():
    public = [op for op in vars(fd).values() if callable(op) and not isinstance(op, type)]
    taking = {op for op in public if "region" in signature(op).parameters}
    others = {fd.dropout, fd.keep_mask, fd.sparse_variational_linear}
    assert taking == {op for op, *_ in APPLIED.values()} | others


@pytest.mark.parametrize("name", APPLIED)
@pytest.mark.parametrize("chunks", [-1, columns], ids=["whole", "cut"])
def test_every_op_that_takes_a_region(name, chunks):
    op, given, more = APPLIED[name]
    expected, ctx = op(*given, rng=fd.Rng(3, 7), **more)
    first, *others = given
    if chunks != -1:
        chunks = CUT.get(op, chunks)
    lazy = [da.from_array(first, chunks=chunks), *others]
    rng = fd.Rng(3, 7)
    y, lazy_ctx = adapter.apply(op, *lazy, rng=rng, **more)
    assert rng.call == 8
    assert y.chunks == lazy[0].chunks
    assert_same_bits(y.compute(), expected)
    found, wanted = lazy_ctx.backward(first + 1), ctx.backward(first + 1)
    if not isinstance(wanted, tuple):
        found, wanted = (found,), (wanted,)
    for a, b in zip(found, wanted, strict=True):
        if np.shape(b) == first.shape:
            assert_same_bits(a.compute(), b)
        else:
            np.testing.assert_allclose(a.compute(), b, rtol=1e-4)


def test_what_cannot_be_applied():
    with pytest.raises(TypeError, match="op must take region= and rng="):
        adapter.apply(fd.embedding_dropout, x, 0.5)
    square = np.ones((4, 4))
    with pytest.raises(TypeError, match="op must give y of x's shape"):
        adapter.apply(fd.sparse_variational_linear, square, square, square)
    with pytest.raises(TypeError, match="op must be a function"):
        adapter.apply("dropout", x)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
        adapter.apply(fd.relu_dropout, x, 1.5, rng=1)
    with pytest.raises(ValueError, match="operands must have the shape of x's last axes"):
        adapter.apply(fd.dropout_add, x, x[:, :3], 0.5, rng=1)
    with pytest.raises(ValueError, match="dy must have shape"):
        adapter.apply(fd.relu_dropout, x, 0.5, rng=1)[1].backward(x[:3])
    for name, value in {"region": None, "rows": [1], "mask": square, "out": square}.items():
        with pytest.raises(TypeError, match=f"{name} must not be given: each chunk has its part"):
            adapter.apply(fd.dropout, x, 0.5, rng=1, **{name: value})
    with pytest.raises(TypeError, match=r"log_alpha must be no array; .* comes by position"):
        adapter.apply(fd.variational_dropout, x, log_alpha=x, rng=1)


@pytest.mark.parametrize("op", CUT)
def test_chunks_that_cut_what_is_whole(op):
    op, given, more = next(each for each in APPLIED.values() if each[0] is op)
    rng = fd.Rng(3)
    lazy = da.from_array(given[0], chunks=(7, 2, 20, 1)[: given[0].ndim])
    with pytest.raises(ValueError, match=f"chunks that cut what {op.__name__} needs whole.*chunk"):
        adapter.apply(op, lazy, *given[1:], rng=rng, **more)
    assert rng.call == 0


def test_without_training_no_call_is_taken():
    rng = fd.Rng(3)
    y, ctx = adapter.apply(
        fd.relu_dropout, da.from_array(x, chunks=20), 0.5, rng=rng, training=False
    )
    expected, whole = fd.relu_dropout(x, 0.5, training=False)
    assert rng.call == 0
    assert_same_bits(y.compute(), expected)
    assert_same_bits(ctx.backward(x).compute(), whole.backward(x))


def test_lazy_dtypes_of_gradients():
    """What dask says of them is what it computes."""
    ones = da.ones((4, 4), chunks=2, dtype=np.float32)
    _, ctx = adapter.apply(fd.variational_dropout, ones, np.zeros((4, 4)) - 1, rng=1)
    for gradient, dtype in zip(ctx.backward(ones), ("float32", "float64"), strict=True):
        assert gradient.dtype == gradient.compute().dtype == dtype


@pytest.mark.parametrize("shared_axes", [(), 1])
def test_mask(shared_axes):
    how = {"rng": fd.Rng(3, 7), "shared_axes": shared_axes}
    _, ctx = dropout(da.from_array(x, chunks=20), 0.3, **how)
    expected = fd.dropout(x, 0.3, rng=fd.Rng(3, 7), shared_axes=shared_axes)[1].mask()
    for chunks in ("auto", (7, 2, 20)):
        np.testing.assert_array_equal(ctx.mask(chunks), expected)
    for nothing in (dropout(x, 0.0)[1], dropout(x, 0.3, training=False)[1]):
        assert nothing.mask().compute().all()
    assert ctx.mask().dtype == bool


def test_axes_of_xarray_go_by_their_names():
    xarray = pytest.importorskip("xarray")
    values = np.random.default_rng(1).standard_normal((6, 6))
    a = xarray.DataArray(da.from_array(values, chunks=3), dims=("a", "b"), name="level")
    for y, ctx in (dropout(a, 0.5, rng=1), adapter.apply(fd.dropout, a, 0.5, rng=1)):
        assert_same_bits(ctx.backward(y.T).T.values.T, ctx.backward(y).values)
        assert ctx.backward(y.T).dims == ("a", "b")
        with pytest.raises(ValueError, match=r"dy must have the axes \('a', 'b'\), as x has"):
            ctx.backward(y.rename(b="c"))
    expected, _ = fd.dropout_add(values, values.T, 0.5, rng=1)
    turned = xarray.DataArray(values.T, dims=("a", "b"))
    for residual in (turned, turned.transpose("b", "a")):
        y, ctx = adapter.apply(fd.dropout_add, a, residual, 0.5, rng=1)
        assert_same_bits(y.values, expected)
        assert all(gradient.dims == a.dims for gradient in ctx.backward(y))
    with pytest.raises(ValueError, match="an operand must have the axes"):
        adapter.apply(fd.bias_relu_dropout, a, a[:, 0], 0.5, rng=1)


def test_xarray():
    xarray = pytest.importorskip("xarray")
    expected, ctx = fd.dropout(x, 0.3, rng=3)
    for chunks in ({}, {"time": 7, "place": 20}):
        named = xarray.DataArray(
            x,
            dims=("time", "kind", "place"),
            coords={"kind": list("abcde")},
            name="level",
            attrs={"unit": "m"},
        )
        named = named.chunk(chunks) if chunks else named
        y, lazy_ctx = dropout(named, 0.3, rng=3)
        assert_same_bits(y.values, expected)
        xarray.testing.assert_identical(y.copy(data=x), named.compute())
        dx = lazy_ctx.backward(named)
        assert_same_bits(dx.values, ctx.backward(x))
        assert dx.dims == named.dims
        same = xarray.apply_ufunc(lambda a: dropout(a, 0.3, rng=3)[0], named, dask="allowed")
        assert_same_bits(same.values, expected)
        z, again = adapter.apply(fd.relu_dropout, named, 0.3, rng=3)
        assert_same_bits(z.values, fd.relu_dropout(x, 0.3, rng=3)[0])
        assert again.backward(named).dims == named.dims


def test_lazy():
    def fail(block):
        raise RuntimeError("computed")

    lazy = da.ones((9, 9), chunks=3).map_blocks(fail, dtype=float, meta=np.ones((0, 0)))
    y, ctx = dropout(lazy, 0.5, rng=3)
    dx = ctx.backward(y)
    with pytest.raises(RuntimeError, match="computed"):
        dx.compute()


def test_more_than_memory():
    """Of 2^40 elements only the chunk in the middle is computed."""
    p, whole = 0.2, (2**20, 2**20)
    chunks = (2**19 - 8, 16, 2**19 - 8), (2**20 - 32, 32)
    y, _ = dropout(da.ones(whole, chunks=chunks, dtype=np.float32), p, rng=3)
    index = fd.reference.element_index((16, 32), region=((2**19 - 8, 2**20 - 32), whole))
    np.testing.assert_array_equal(y.blocks[1, 1].compute() != 0, fd.reference.keep(index, p, 3, 0))


def test_views_of_the_result():
    """Slices, transposes and new chunks of y are those of the whole y."""
    expected, _ = fd.dropout(x, 0.2, rng=3)
    y, _ = dropout(da.from_array(x, chunks=(7, 2, 20)), 0.2, rng=3)
    assert_same_bits(y[5:30, 1].compute(), expected[5:30, 1])
    assert_same_bits(y.T.rechunk(4).compute(), np.ascontiguousarray(expected.T))


def test_calls_and_evaluation():
    rng, lazy = fd.Rng(3), da.from_array(x, chunks=20)
    first, _ = dropout(lazy, 0.5, rng=rng)
    second, _ = dropout(lazy, 0.5, rng=rng)
    assert rng.call == 2
    assert (first != second).any().compute()
    assert first.name != second.name
    assert dropout(lazy, 0.5, rng=fd.Rng(3))[0].name == first.name  # the same work is done once
    y, ctx = dropout(lazy, 0.5, rng=rng, training=False)
    assert rng.call == 2
    assert_same_bits(y.compute(), x)
    assert_same_bits(ctx.backward(x).compute(), x)
    assert (first != dropout(lazy, 0.5)[0]).any().compute()


def test_context():
    _, ctx = dropout(x, 0.2, rng=3, shared_axes=-1)
    assert pickle.loads(pickle.dumps(ctx)) == ctx
    assert (ctx.seed, ctx.call, ctx.p, ctx.shape, ctx.shared_axes) == (3, 0, 0.2, x.shape, (2,))
    assert ctx.nbytes == 0


def test_masked_arrays_are_refused_at_once():
    x = np.ma.array(np.ones((4, 3)), mask=np.eye(4, 3))
    for masked in (x, da.from_array(x, chunks=(2, 3))):
        with pytest.raises(TypeError, match="x is a masked array, whose mask would get lost"):
            dropout(masked, 0.5, rng=1)
        _, ctx = dropout(da.ones((4, 3)), 0.5, rng=1)
        with pytest.raises(TypeError, match="dy is a masked array"):
            ctx.backward(masked)


def test_errors_come_at_once():
    unknown = da.from_array(x, chunks=20)
    unknown = unknown[unknown[:, 0, 0] > 0]
    rng = fd.Rng(3)
    with pytest.raises(ValueError, match=r"known size.*compute_chunk_sizes"):
        dropout(unknown, 0.5, rng=rng)
    with pytest.raises(ValueError, match="p must be in"):
        dropout(x, 1.5, rng=rng)
    with pytest.raises(TypeError, match="x must be float16"):
        dropout(da.arange(5), 0.5, rng=rng)
    with pytest.raises(np.exceptions.AxisError):
        dropout(x, 0.5, rng=rng, shared_axes=3)
    assert rng.call == 0
    _, ctx = dropout(x, 0.5, rng=rng)
    with pytest.raises(ValueError, match="dy must have shape"):
        ctx.backward(x[1:])
    with pytest.raises(ValueError, match="dy must have chunks of known size"):
        ctx.backward(unknown)
    y, _ = dropout(unknown.compute_chunk_sizes(), 0.5, rng=5)
    assert_same_bits(y.compute(), fd.dropout(unknown.compute(), 0.5, rng=5)[0])


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes; one that dies is started anew."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
    ):
        yield cluster


@pytest.mark.parametrize("chunks", CHUNKS[1::2], ids=str)
def test_cluster(cluster, chunks):
    expected, ctx = fd.dropout(x, 0.2, rng=3)
    y, lazy_ctx = dropout(da.from_array(x, chunks=chunks), 0.2, rng=3)
    y, dx = da.compute(y, lazy_ctx.backward(y))
    assert_same_bits(y, expected)
    assert_same_bits(dx, ctx.backward(expected))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_killed_worker_changes_nothing(cluster, tmp_path):
    """Chunks on it are lost, drawn again elsewhere, and are what they were."""

    def kill_once(block, marker):  # inside, or it would go to the workers as a name
        """The first chunk takes its worker with it, and all the results that this one holds."""
        try:
            with open(marker, "x") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return block
        os.kill(os.getpid(), signal.SIGKILL)

    expected, ctx = fd.dropout(x, 0.2, rng=3)
    dx_expected = ctx.backward(expected)
    pids, marker = {nanny.pid for nanny in cluster.workers.values()}, tmp_path / "killed"
    y, ctx = dropout(da.from_array(x, chunks=(6, 5, 34)), 0.2, rng=3)
    y = y.persist()
    distributed.wait(y)
    dx = ctx.backward(y.map_blocks(kill_once, str(marker), dtype=y.dtype, meta=y._meta))
    assert_same_bits(dx.compute(), dx_expected)
    assert_same_bits(y.compute(), expected)
    assert int(marker.read_text()) in pids
