"""Dropout across MPI ranks: one random state for all of them, and where a rank's shard lies.

What all ranks hold gets the same mask on each, as long as they draw from the same state in the same
order. A shard gets its block of the whole array's mask, by ``region=``. No mask is ever sent, and
none depends on how many ranks there are.

Examples
--------
Data-parallel training: run by ``mpiexec -n N``, each rank has some of the examples. The weights are
those that one rank would learn, but for the order in which gradients are added.

>>> import fastdrop as fd
>>> import numpy as np
>>> from fastdrop.adapters import mpi
>>> from mpi4py import MPI
>>> comm = MPI.COMM_WORLD
>>> draw = np.random.default_rng(0)
>>> X, W, v = draw.normal(size=(64, 8)), draw.normal(size=(8, 32)), np.zeros(32)
>>> x = np.array_split(X, comm.size)[comm.rank]
>>> t = np.sin(x[:, 0])
>>> rng = mpi.broadcast(1, comm)
>>> region = mpi.region((len(x), 32), {0: comm})
>>> for _ in range(150):
...     h, ctx = fd.relu_dropout(x @ W, 0.1, rng=rng, region=region)
...     error = (h @ v - t) / 64
...     dv, dW = h.T @ error, x.T @ ctx.backward(np.outer(error, v))
...     v -= 0.05 * comm.allreduce(dv)
...     W -= 0.05 * comm.allreduce(dW)
>>> mpi.check(rng, comm)
>>> bool(64 * comm.allreduce((error**2).sum()) < 0.1)
True

A layer of `fastdrop.layers` takes its region when it is called, ``layer(h, region=region)``, and
needs none to go back. A layer whose units are split among ranks has ``mpi.region(h.shape, {1:
comm})``, and one whose examples are split, too, ``{0: data, 1: tensor}`` with the communicators of
a grid's two directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import fastdrop as fd
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.rng import RngLike, draw_call

if TYPE_CHECKING:  # importing it for more than its types would start MPI
    from mpi4py.MPI import Comm

__all__ = ["broadcast", "check", "region"]


def broadcast(rng: RngLike, comm: Comm, root: int = 0) -> fd.Rng:
    """A random state that is the same on all ranks.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        That of rank `root` counts.
    comm : mpi4py.MPI.Comm
        All of its ranks must call this.
    root : int

    Returns
    -------
    Rng
        This rank's own, with the seed and next call of root's.
    """
    mine = (rng.seed, rng.call) if isinstance(rng, fd.Rng) else draw_call(rng)
    return fd.Rng(*comm.bcast(mine, root))


def check(rng: fd.Rng, comm: Comm) -> None:
    """Make sure that all ranks would draw the same masks from now on: once a step, or a checkpoint.

    Parameters
    ----------
    rng : Rng
    comm : mpi4py.MPI.Comm
        All of its ranks must call this.

    Raises
    ------
    RuntimeError
        On every rank if one has another seed, or has taken more calls or fewer.
    """
    states = comm.allgather(rng.state)
    for rank, state in enumerate(states):
        if state != states[0]:
            raise RuntimeError(
                f"random states differ: {states[0]} on rank 0, {state} on rank {rank}; "
                "take one from broadcast, and let all ranks call the same operations in one order"
            )


def region(shape: int | Sequence[int], sharded: Mapping[int, Comm]) -> Region:
    """Where this rank's shard lies in the whole array: what ``region=`` takes.

    Parameters
    ----------
    shape : int or tuple of int
        Of the shard. Shards may differ in length, and be empty.
    sharded : dict of int to mpi4py.MPI.Comm
        The axes that are cut, and for each the ranks that together have all of it, in this order;
        they must call this together. An axis that is not cut is not named.

    Returns
    -------
    start, global_shape : tuple of int

    Raises
    ------
    ValueError
        On every rank of a communicator if its shards do not fit together.
    """
    shape = gate.shape(shape)
    start, whole = [0] * len(shape), list(shape)
    axes = gate.axes(tuple(sharded), len(shape), "sharded")
    for axis, comm in zip(axes, sharded.values(), strict=True):
        shapes = comm.allgather(shape)
        for rank, other in enumerate(shapes):
            if other[:axis] + other[axis + 1 :] != shapes[0][:axis] + shapes[0][axis + 1 :]:
                raise ValueError(
                    f"shards must have one shape but along axis {axis}, "
                    f"got {shapes[0]} on rank 0, {other} on rank {rank}"
                )
        lengths = [other[axis] for other in shapes]
        start[axis], whole[axis] = sum(lengths[: comm.rank]), sum(lengths)
    return tuple(start), tuple(whole)
