"""The variants beside plain dropout, forward and backward: ``pytest --benchmark-only``.

A group is one size and rate, float32, one thread; each call draws a new mask or new noise. What a
variant shares its draw along is named with it.
"""

import math

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.tools import bench


def pair(op, *operands, **options):
    """Forward and backward of an op."""
    rng = fd.Rng(1)
    y, ctx = op(*operands, rng=rng, **options)
    dy = np.ones_like(y)
    return lambda: op(*operands, rng=rng, **options), lambda: ctx.backward(dy)


def variants(e, p):
    """Forward and backward of each op on 2^e elements."""
    x, other = bench.arrays(2**e, np.float32)
    other[:] = x[::-1]
    table, rows = x.reshape(-1, 64), other.reshape(-1, 64)
    ids = np.random.default_rng(0).integers(0, len(table), len(table))
    odds = p / (1 - p)
    return {
        "dropout": pair(fd.dropout, x, p),
        "spatial_dropout 8x8": pair(fd.spatial_dropout, x.reshape(4, -1, 8, 8), p),
        "spatial_dropout 8x8, channels last": pair(
            fd.spatial_dropout, x.reshape(4, 8, 8, -1), p, channels_last=True
        ),
        "locked_dropout, 16 steps": pair(fd.locked_dropout, x.reshape(4, 16, -1), p),
        "embedding_dropout": pair(fd.embedding_dropout, table, p),
        "embedding_dropout, ids": pair(fd.embedding_dropout, table, p, ids=ids),
        "drop_path, 16 examples": pair(fd.drop_path, x.reshape(16, -1), p),
        "alpha_dropout": pair(fd.alpha_dropout, x, p),
        "softmax_dropout": pair(fd.softmax_dropout, x.reshape(-1, 64), p),
        "zoneout": pair(fd.zoneout, x, other, p),
        "gaussian_dropout": pair(fd.gaussian_dropout, x, p),
        "gaussian_noise": pair(fd.gaussian_noise, x, p),
        "variational_dropout": pair(fd.variational_dropout, x, math.log(odds)),
        "sparse_variational_linear": pair(
            fd.sparse_variational_linear, table, rows[:64], np.full_like(rows[:64], -10)
        ),
        "concrete_dropout": pair(fd.concrete_dropout, x, math.log(odds)),
        "targeted_dropout": pair(fd.targeted_dropout, table, p),
        "adversarial_dropout": pair(fd.adversarial_dropout, table, rows, 0.05, p),
    }


FUNCTIONS = [
    pytest.param((e, p), (name, direction), id=f"n{e:02}-p={p}-{name}-{direction}")
    for e in (12, 16, 20)
    for p in (0.2, 0.5)
    for name in variants(12, p)
    for direction in ("forward", "backward")
]


@pytest.fixture(scope="module")
def case(request):
    """The functions of one size and rate."""
    before = fd.get_num_threads()
    fd.set_num_threads(1)
    yield request.param, variants(*request.param)
    fd.set_num_threads(before)


@pytest.mark.parametrize(("case", "name"), FUNCTIONS, indirect=["case"])
@pytest.mark.benchmark(min_rounds=3, max_time=0.03, warmup=False)
def test_variant(benchmark, case, name):
    (e, p), functions = case
    op, direction = name
    benchmark.group = f"2^{e} p={p} {direction}"
    benchmark(functions[op][direction == "backward"])
    ns, gbs = bench.throughput(benchmark.stats.stats.min, 2**e, "float32")
    benchmark.extra_info.update({"ns/element": round(ns, 4), "GB/s": round(gbs, 2)})
