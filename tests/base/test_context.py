"""What a call leaves for its backward pass."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop.ops.dropout import _restore

CASES = [
    {"p": 0.3},
    {"p": 0.3, "save": "seed"},
    {"p": 0.3, "shared_axes": (1,)},
    {"p": 0.5, "shared_axes": (0, 2), "region": ((1, 2, 3), (9, 9, 99)), "save": "seed"},
    {"p": 0.5, "region": ((1, 2, 3), (9, 9, 99))},
    {"p": 0},
    {"p": 1},
    {"p": 0.3, "training": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pickle(case):
    x = np.random.default_rng(0).standard_normal((3, 5, 67))
    y, ctx = fd.dropout(x, rng=4, **case)
    copy = pickle.loads(pickle.dumps(ctx))
    for name in ("seed", "call", "p", "scale", "shape", "nbytes"):
        assert getattr(copy, name) == getattr(ctx, name)
    assert_same_bits(copy.backward(x), y)
    np.testing.assert_array_equal(copy.mask(), ctx.mask())
    assert repr(copy) == repr(ctx)


GOOD = (fd.Context, (3, 50), 0.3, 1, 2, None, bytes(19), 1.25)


@pytest.mark.parametrize(
    "change",
    [
        {0: dict},
        {1: (3, -50)},
        {1: (4, 50)},  # more elements than bits
        {1: "ab"},
        {2: 1.5},
        {2: None},
        {3: 2**64},
        {3: None},
        {4: -1},
        {5: ((5,), None)},
        {5: ((), ((0,), (9,)))},
        {6: bytes(18)},
        {6: bytearray(19)},
        {6: np.zeros(19, np.uint8)},
        {7: -1.0},
        {7: "1"},
    ],
    ids=str,
)
def test_hostile_pickles_are_refused(change):
    _restore(*GOOD)
    with pytest.raises((TypeError, ValueError)):
        _restore(*(change.get(i, value) for i, value in enumerate(GOOD)))


def test_eval_context_has_no_draw():
    _, ctx = fd.dropout(np.ones(3), 0.5, rng=1, training=False)
    assert ctx.seed is ctx.call is None
    assert (ctx.p, ctx.scale, ctx.nbytes, ctx.shape) == (0.0, 1.0, 0, (3,))


def test_made_by_hand():
    """No kernel reads behind the end of a mask, whoever made the context."""
    _, ctx = fd.dropout(np.ones((3, 64)), 0.3, rng=4, shared_axes=(1,), region=((0, 0), (9, 99)))
    assert fd.Context(ctx.shape, 0.3, 4, 0, ctx._block, ctx._bits).nbytes == 1
    for bits in (b"", ctx._bits[:-1], ctx._bits + b"x"):
        with pytest.raises(ValueError, match="bits must hold one for each element"):
            fd.Context(ctx.shape, 0.3, 4, 0, ctx._block, bits)
        with pytest.raises(ValueError, match="bits must hold one for each element"):
            fd.Context((1000,), 0.3, 4, 0, None, bits)
    with pytest.raises(ValueError, match="shape must be that of the block"):
        fd.Context((3, 65), 0.3, 4, 0, ctx._block, ctx._bits)
