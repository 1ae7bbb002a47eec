"""What every rank asserts; test_mpi.py runs it as ``mpiexec -n N python -m mpi4py``, which ends all
ranks where one fails."""

import json
import sys

import numpy as np
from mpi4py import MPI

import fastdrop as fd
from fastdrop.adapters import mpi

x = np.random.default_rng(0).standard_normal((12, 7, 34)).astype(np.float32)


def cut(a, comm, axis):
    """This rank's shard, the first rank's being longer by far, and one of four empty."""
    n = a.shape[axis]
    ends = [n - n // 3 * i // max(1, comm.size - 1) for i in range(comm.size)][::-1]
    return np.split(a, ends[:-1], axis)[comm.rank]


def same(a, b):
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def replicated(comm):
    """What all ranks hold has one mask; each op takes the next."""
    rng = mpi.broadcast(fd.Rng(3, 7) if comm.rank == 0 else None, comm)
    assert rng.state == fd.Rng(3, 7).state
    for call in (7, 8):
        same(fd.dropout(x, 0.2, rng=rng)[0], fd.dropout(x, 0.2, rng=fd.Rng(3, call))[0])
    mpi.check(rng, comm)


def fresh(comm):
    """Entropy of one rank's, and another root."""
    seeds = comm.allgather(mpi.broadcast(None, comm).seed)
    assert len(set(seeds)) == 1
    assert mpi.broadcast(comm.rank, comm, root=comm.size - 1).seed == comm.size - 1


def sharded(comm):
    """Shards along any axis, put together, are the whole: forward, backward, other ops."""
    for axis in (0, 1, 2, -1):
        for p in (0.2, 0.5):
            whole, ctx_whole = fd.dropout(x, p, rng=3)
            shard = cut(x, comm, axis)
            region = mpi.region(shard.shape, {axis: comm})
            y, ctx = fd.dropout(shard, p, rng=3, region=region)
            same(y, cut(whole, comm, axis))
            same(ctx.backward(shard), cut(ctx_whole.backward(x), comm, axis))
            same(np.concatenate(comm.allgather(y), axis), whole)
            relu = fd.relu_dropout(shard, p, rng=3, region=region)[0]
            same(relu, cut(fd.relu_dropout(x, p, rng=3)[0], comm, axis))
            spatial = fd.spatial_dropout(shard, p, rng=3, region=region)[0]
            same(spatial, cut(fd.spatial_dropout(x, p, rng=3)[0], comm, axis))


def grid(comm):
    """Examples by rows of ranks, features by columns."""
    data, tensor = directions(comm)
    shard = cut(cut(x, data, 0), tensor, 2)
    region = mpi.region(shard.shape, {0: data, 2: tensor})
    expected = cut(cut(fd.dropout(x, 0.2, rng=3)[0], data, 0), tensor, 2)
    same(fd.dropout(shard, 0.2, rng=3, region=region)[0], expected)


def directions(comm):
    ranks = comm.Create_cart(MPI.Compute_dims(comm.size, 2))
    return ranks.Sub([True, False]), ranks.Sub([False, True])


def differing(comm):
    """A rank that has another state, or took a call more, is found out by all."""
    for rng in (fd.Rng(3, int(comm.rank == 1)), fd.Rng(3 + comm.rank)):
        error = raised(RuntimeError, mpi.check, rng, comm)
        assert (error is None) == (comm.size == 1)
        assert error is None or "on rank 1;" in error


def misfits(comm):
    """Shards that cannot be parts of one array."""
    error = raised(ValueError, mpi.region, (4, 5 + comm.rank), {0: comm})
    assert (error is None) == (comm.size == 1)
    assert error is None or "but along axis 0, got (4, 5) on rank 0, (4, 6) on rank 1" in error
    assert raised(np.exceptions.AxisError, mpi.region, (4, 5), {2: comm})


def raised(kind, call, *args):
    try:
        call(*args)
    except kind as error:
        return str(error)
    return None


def training(comm):
    """Two layers over a grid of ranks learn what one rank does."""
    serial = train(MPI.COMM_SELF, MPI.COMM_SELF)
    data, tensor = directions(comm)
    for mine, (whole, axis) in zip(
        train(data, tensor), zip(serial, (1, 0), strict=True), strict=True
    ):
        np.testing.assert_allclose(mine, cut(whole, tensor, axis), rtol=1e-9)


def train(data, tensor):
    """Units are split among the ranks of one communicator, examples among those of the other."""
    draw = np.random.default_rng(1)
    X, V, W = (draw.standard_normal(shape) for shape in ((24, 8), (8, 16), (16, 3)))
    t, v, w = cut(np.sin(X[:, :3]), data, 0), cut(V, tensor, 1), cut(W, tensor, 0)
    a = cut(X, data, 0)
    rng = mpi.broadcast(5, data)
    layer = fd.layers.Dropout(0.5, rng=rng)  # of the same state as the function
    for _ in range(10):
        first, _ = fd.dropout(a, 0.1, rng=rng, region=mpi.region(a.shape, {0: data}))
        z = first @ v
        h = layer(np.maximum(z, 0), region=mpi.region(z.shape, {0: data, 1: tensor}))
        error = (tensor.allreduce(h @ w) - t) / len(X)
        v, w = (
            v - 0.1 * data.allreduce(first.T @ (layer.backward(error @ w.T) * (z > 0))),
            w - 0.1 * data.allreduce(h.T @ error),
        )
        mpi.check(rng, data)
        mpi.check(rng, tensor)
    assert not np.allclose(w, cut(W, tensor, 0))
    return v, w


def elastic(comm):
    """A checkpoint of all ranks is taken up by the first two: the same masks follow."""
    rng = mpi.broadcast(3, comm)
    shard = cut(x, comm, 0)
    region = mpi.region(shard.shape, {0: comm})
    fd.dropout(shard, 0.2, rng=rng, region=region)
    checkpoint = json.dumps(rng.state)
    expected = np.concatenate(comm.allgather(fd.dropout(shard, 0.2, rng=rng, region=region)[0]))
    fewer = comm.Split(comm.rank < 2)
    restored = fd.Rng()
    restored.state = json.loads(checkpoint)
    shard = cut(x, fewer, 2)
    region = mpi.region(shard.shape, {2: fewer})
    same(fd.dropout(shard, 0.2, rng=restored, region=region)[0], cut(expected, fewer, 2))


if __name__ == "__main__":
    comm = MPI.COMM_WORLD
    assert comm.size == int(sys.argv[1]), "mpiexec and mpi4py are of different MPIs"
    for case in (replicated, fresh, sharded, grid, differing, misfits, training, elastic):
        case(comm)
        comm.barrier()
        if comm.rank == 0:
            print("passed:", case.__name__, flush=True)
