"""What a call leaves for its backward pass."""

import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop._core import Draw, Place

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


def test_eval_context_has_no_draw():
    _, ctx = fd.dropout(np.ones(3), 0.5, rng=1, training=False)
    assert ctx.seed is ctx.call is None
    assert (ctx.p, ctx.scale, ctx.nbytes, ctx.shape) == (0.0, 1.0, 0, (3,))


def test_a_context_does_not_change():
    _, ctx = fd.dropout(np.ones(3), 0.5, rng=1)
    for name in ("held", "shape", "draw", "p", "other"):
        with pytest.raises(AttributeError):
            setattr(ctx, name, None)
    for value in (ctx.draw, ctx.draw.place):
        for name in ("p", "seed", "place", "shape", "start", "other"):
            with pytest.raises(AttributeError):
                setattr(value, name, 0)


def test_made_by_hand():
    """No kernel reads behind the end of a mask, whoever made the context."""
    _, ctx = fd.dropout(np.ones((3, 64)), 0.3, rng=4, shared_axes=(1,), region=((0, 0), (9, 99)))
    assert fd.Context(ctx.shape, ctx.draw, 1.25, ctx.held).nbytes == 1
    plain = fd.dropout(np.ones(1000), 0.3, rng=4)[1].draw
    for bits in (b"", ctx.held[:-1], ctx.held + b"x"):
        for shape, draw in ((ctx.shape, ctx.draw), ((1000,), plain)):
            with pytest.raises(ValueError, match="bits must hold one for each element"):
                fd.Context(shape, draw, 1.25, bits)
    with pytest.raises(ValueError, match=r"draw must be for shape \(3, 65\)"):
        fd.Context((3, 65), ctx.draw, 1.25, ctx.held)
    for draw in ((4, 0, 0.3), ctx.draw.place, "draw"):
        with pytest.raises(TypeError, match="draw must be a Draw or None"):
            fd.Context(ctx.shape, draw, 1.25, ctx.held)
    with pytest.raises(TypeError, match="has 4 fields"):
        fd.Context(ctx.shape, ctx.draw)


def test_places_that_cannot_be():
    for arguments in (
        ((2**70,),),
        ((2**40, 2**40),),
        ((-1,),),
        ((1,) * 65,),
        ((3.0,),),
        ((3,), (1,)),
        ((3,), (0, 0)),
        ((3,), (-1,)),
        ((3,), (), ((0,), (2,))),
        ((3,), (), ((1,), (3,))),
        ((3,), (), ((-1,), (9,))),
        ((3,), (), ((0, 0), (9,))),
        ((3,), (), ((2**62,), (2**62,))),
        ((3, 3), (), ((0, 0), (2**32, 2**32))),
    ):
        with pytest.raises((ValueError, OverflowError)):
            Place(*arguments)
    for arguments in (([3],), ((3,), [0]), ((3,), (), [(0,), (3,)]), ((3,), (), (1, 2, 3))):
        with pytest.raises((TypeError, ValueError)):
            Place(*arguments)
    place = Place((3,))
    place.__init__((2**40,))  # has no effect
    assert place.of == (3,)
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="p must be in"):
            Draw(1, 2, p, place)


class TestApply:
    """``ctx.apply``: the same mask on another array."""

    @pytest.mark.parametrize("save", ["bits", "seed"])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
    def test_is_what_the_op_does(self, isa, dtype, save):
        x, other = (np.random.default_rng(k).random((40, 3, 70)).astype(dtype) for k in (0, 1))
        for shared in ((), (1,), (0, 2)):
            _, ctx = fd.dropout(x, 0.3, rng=fd.Rng(3, 8), shared_axes=shared, save=save)
            expected, _ = fd.dropout(other, 0.3, rng=fd.Rng(3, 8), shared_axes=shared)
            for h in (other, np.asfortranarray(other)):
                assert_same_bits(ctx.apply(h), expected)
            out = other.copy()
            assert ctx.apply(out, out) is out
            assert_same_bits(out, expected)

    @pytest.mark.parametrize("op", [fd.spatial_dropout, fd.alpha_dropout, fd.feature_alpha_dropout])
    @pytest.mark.parametrize("training", [True, False])
    def test_of_other_ops(self, op, training):
        x, other = (np.random.default_rng(k).standard_normal((4, 3, 5, 6)) for k in (0, 1))
        _, ctx = op(x, 0.3, rng=fd.Rng(3, 8), training=training)
        expected, _ = op(other, 0.3, rng=fd.Rng(3, 8), training=training)
        assert_same_bits(ctx.apply(other), expected)
        assert_same_bits(pickle.loads(pickle.dumps(ctx)).apply(other), expected)

    def test_steps_of_a_sequence(self):
        """Recurrent dropout: one mask for all steps, and its gradient."""
        h = np.ones((5, 64), np.float32)
        _, ctx = fd.dropout(h, 0.5, rng=1)
        steps = [ctx.apply(h + t) for t in range(4)]
        for t, y in enumerate(steps):
            assert_same_bits(y, np.where(ctx.mask(), 2 * (h + t), 0))
        with fd.debug():
            _, ctx = fd.dropout(h, 0.5, rng=1, save="seed")
            ctx.apply(h + 1)

    def test_adversarial(self):
        x = np.random.default_rng(0).standard_normal((4, 50))
        _, ctx = fd.adversarial_dropout(x, x[::-1], 0.1, 0.4, rng=1)
        assert_same_bits(ctx.apply(x), ctx.backward(x))

    def test_errors(self):
        x = np.ones((3, 4))
        _, ctx = fd.dropout(x, rng=1)
        with pytest.raises(
            ValueError, match=r"x must have the shape of this context, \(3, 4\), got"
        ):
            ctx.apply(np.ones((4, 4)))
        with pytest.raises(TypeError, match="x must be float16"):
            ctx.apply(np.ones((3, 4), int))
        with pytest.raises(ValueError, match="out must have shape"):
            ctx.apply(x, np.ones(3))
        for op in (fd.relu_dropout(x, rng=1), fd.zoneout(x, x, 0.5, rng=1)):
            with pytest.raises(TypeError, match="x of "):
                op[1].apply(x)
