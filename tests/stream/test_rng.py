"""Rng, and what ``rng=`` accepts."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import rng as stream

X = np.ones(200, np.float32)


def mask(rng):
    return fd.dropout(X, 0.5, rng=rng)[1].mask().tobytes()


def test_hands_out_one_call_per_op_whatever_the_rate():
    rng = fd.Rng(1)
    for number, p in enumerate([0.0, 0.3, 0.5, 1.0]):
        _, ctx = fd.dropout(X, p, rng=rng)
        assert (ctx.seed, ctx.call) == (1, number)
    fd.keep_mask(3, 0.1, rng=rng)
    assert rng.call == 5


def test_eval_takes_no_call():
    rng, generator = fd.Rng(1), np.random.default_rng(0)
    before = generator.bit_generator.state
    fd.dropout(X, 0.5, rng=rng, training=False)
    fd.dropout(X, 0.5, rng=generator, training=False)
    assert rng.call == 0
    assert generator.bit_generator.state == before


def test_bad_arguments_take_no_call():
    rng = fd.Rng(1)
    with pytest.raises(ValueError, match="p must be"):
        fd.dropout(X, 2.0, rng=rng)
    with pytest.raises(ValueError, match="out must have shape"):
        fd.dropout(X, 0.5, rng=rng, out=np.ones(3, np.float32))
    assert rng.call == 0


def test_context_names_the_draw():
    rng = fd.Rng(77, 5)
    _, ctx = fd.dropout(X, 0.3, rng=rng)
    again = fd.keep_mask(X.shape, 0.3, rng=fd.Rng(ctx.seed, ctx.call))
    np.testing.assert_array_equal(again, ctx.mask())


def test_state_round_trip_is_json_safe():
    rng = fd.Rng(2**64 - 1, 2**40)
    rng.take()
    state = json.loads(json.dumps(rng.state))
    other = fd.Rng()
    other.state = state
    assert mask(other) == mask(rng)
    assert other.state == rng.state


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"seed": 1, "call": 2},
        {"stream_version": 2, "seed": 1, "call": 2},
        {"stream_version": 1, "seed": -1, "call": 2},
        {"stream_version": 1, "seed": 1, "call": 2**64 + 1},
        [1, 2],
    ],
)
def test_bad_state_is_refused_and_changes_nothing(state):
    rng = fd.Rng(5, 6)
    with pytest.raises(ValueError, match=r"state|seed|call"):
        rng.state = state
    assert (rng.seed, rng.call) == (5, 6)


def test_pickle():
    rng = fd.Rng(5, 6)
    copy = pickle.loads(pickle.dumps(rng))
    assert copy.state == rng.state
    assert mask(copy) == mask(rng)


def test_spawn():
    rng = fd.Rng(5)
    first, second = rng.spawn(3), rng.spawn(3)
    seeds = {child.seed for child in first + second}
    assert len(seeds) == 6
    assert 5 not in seeds
    assert rng.call == 2
    assert [c.seed for c in fd.Rng(5).spawn(3)] == [c.seed for c in first]
    assert fd.Rng(5).spawn(0) == []
    with pytest.raises(ValueError, match="n must be at least 0, got -1"):
        rng.spawn(-1)


def test_fresh_entropy():
    assert fd.Rng().seed != fd.Rng().seed
    assert mask(None) != mask(None)


@pytest.mark.parametrize(
    "use",
    [
        lambda rng: rng.take(),
        lambda rng: rng.spawn(2),
        lambda rng: fd.dropout(np.ones(9, "f"), 0.5, rng=rng),
        lambda rng: fd.gaussian_noise(np.ones(9, "f"), 0.5, rng=rng),
        lambda rng: fd.keep_mask(9, 0.5, rng=rng),
    ],
)
def test_last_call_is_followed_by_none(use):
    """There is no call after 2**64 - 1; the first is not drawn again."""
    rng = fd.Rng(1, 2**64 - 1)
    use(rng)
    assert rng.call == 2**64
    for spent in (rng, copy.copy(rng), pickle.loads(pickle.dumps(rng)), fd.Rng(1, 2**64)):
        with pytest.raises(ValueError, match=r"rng has given all its calls.*another seed"):
            use(spent)
        assert spent.state == rng.state
    rng.state = fd.Rng(1, 3).state
    assert rng.take() == (1, 3)
    for call in (2**64 + 1, float(2**64), -1):
        with pytest.raises((ValueError, TypeError), match="call must be"):
            fd.Rng(1, call)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies(copied):
    """One whose seed is the caller's stays where it is, as NumPy's; others have nothing to keep."""
    assert copied(fd.Rng(3, 5)).take() == (3, 5)
    rng = fd.Rng()
    assert len({rng.seed, copied(rng).seed, copied(copied(rng)).seed}) == 3
    assert pickle.loads(pickle.dumps(rng)).state == rng.state
    assert [r.spawn(1)[0].seeded for r in (rng, fd.Rng(3))] == [False, True]


def test_int_and_seed_sequence_stand_for_themselves():
    assert mask(7) == mask(7) == mask(fd.Rng(7)) == mask(np.int64(7))
    assert mask(np.random.SeedSequence(7)) == mask(np.random.SeedSequence(7)) != mask(7)


@pytest.mark.parametrize("bits", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_generators_are_asked_for_a_seed(bits):
    def make():
        return getattr(np.random, bits)(3)

    generator, same = np.random.Generator(make()), np.random.Generator(make())
    first = mask(generator)
    assert first == mask(same) == mask(make())
    assert first != mask(generator)
    seed, call = stream.draw_call(np.random.Generator(make()))
    expected = np.random.Generator(make()).integers(0, 2**64, dtype=np.uint64)
    assert (seed, call) == (expected, 0)


def test_global_numpy_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002, that is what must not change
    mask(None)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("bad", [1.5, "7", True, np.random.RandomState(1), object(), [1]])
def test_other_kinds_are_refused(bad):
    with pytest.raises(TypeError, match="rng must be None, an int, a SeedSequence"):
        fd.dropout(X, 0.5, rng=bad)


@pytest.mark.parametrize("bad", [-1, 2**64])
def test_seeds_outside_64_bits_are_refused(bad):
    with pytest.raises(ValueError, match=rf"rng must be in 0 ... 2\*\*64 - 1, got {bad}"):
        fd.dropout(X, 0.5, rng=bad)
    with pytest.raises(ValueError, match="seed must be in"):
        fd.Rng(bad)
    with pytest.raises(ValueError, match="call must be in"):
        fd.Rng(0, bad + (bad > 0))
    with pytest.raises(TypeError, match="seed must be an int"):
        fd.Rng(1.0)


def test_two_threads_never_get_the_same_call():
    rng = fd.Rng(1)

    def take_many(_):
        return [rng.take()[1] for _ in range(20_000)]

    with ThreadPoolExecutor(4) as pool:
        calls = list(chain.from_iterable(pool.map(take_many, range(4))))
    assert sorted(calls) == list(range(80_000))


class Named(fd.Rng):
    """A subclass with a constructor of its own."""

    def __init__(self, name, *, seed=None):
        super().__init__(seed)
        self.name = name


class Slotted(fd.Rng):
    __slots__ = ("names",)

    def __init__(self, names):
        super().__init__(7)
        self.names = names


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_copies_of_subclasses(copied):
    rng = Named(["a"], seed=5)
    rng.take()
    other = copied(rng)
    assert type(other) is Named
    assert (other.name, other.state, other.seeded) == (["a"], rng.state, True)
    assert (other.name is rng.name) == (copied is copy.copy)
    other = copied(Slotted("b"))
    assert (other.names, other.seed) == ("b", 7)
    fresh = Named("a")
    if copied in (copy.copy, copy.deepcopy):
        assert copied(fresh).seed != fresh.seed
        assert not copied(fresh).seeded


def test_pickles_of_before_are_read():
    """They name the class and (seed, call)."""
    assert fd.Rng(*fd.Rng(3, 4).peek()).state == fd.Rng(3, 4).state
    assert stream.LayerRng(3, 4).state == fd.Rng(3, 4).state
