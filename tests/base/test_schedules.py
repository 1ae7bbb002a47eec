"""Rates as functions of the step."""

import math
import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from hypothesis import given
from hypothesis import strategies as st

import fastdrop as fd
from fastdrop import schedules as s

EVERY = [
    s.constant(0.3),
    s.curriculum(0.5, 1e-3),
    s.anti_curriculum(0.5, 1e-3),
    s.switch(0.5, 100),
    s.linear(0.1, 0.3, 70),
    s.linear(1, 0, 3),
    s.cosine(0.3, 0.1, 70),
    s.steps([0.1, 0.5, 0.2], [10, 30]),
    s.early(0.5, 100),
    s.early(0.5, 100, "linear"),
    s.late(0.5, 100),
]
every = pytest.mark.parametrize("schedule", EVERY, ids=repr)


def rates(schedule, n):
    return [schedule(t) for t in range(n)]


def test_curriculum():
    """The formulas in the paper, for the rate at which elements are kept."""
    p, gamma = 0.5, 1e-3
    assert s.curriculum(p, gamma)(1000) == pytest.approx(0.3160603, abs=5e-8)
    for t in (0, 1, 700, 10**4):
        kept = (1 - (1 - p)) * math.exp(-gamma * t) + (1 - p)
        assert s.curriculum(p, gamma)(t) == pytest.approx(1 - kept, abs=1e-15)
        kept = 1 - (1 - (1 - p)) * math.exp(-gamma * t)
        assert s.anti_curriculum(p, gamma)(t) == pytest.approx(1 - kept, abs=1e-15)
    assert s.curriculum(p, gamma)(0) == 0.0
    assert s.anti_curriculum(p, gamma)(0) == p
    assert s.curriculum(p, gamma)(10**9) == p
    assert s.anti_curriculum(p, gamma)(10**9) == 0.0


def test_gamma_of_ten_over_the_length_ends_near_p():
    assert 1 - s.curriculum(1, 10 / 5000)(5000) < 5e-5


def test_switch_early_and_late():
    assert rates(s.switch(0.5, 3), 5) == [0, 0, 0, 0.5, 0.5]
    assert rates(s.late(0.5, 3), 5) == [0, 0, 0, 0.5, 0.5]
    assert rates(s.early(0.5, 3), 5) == [0.5, 0.5, 0.5, 0, 0]


@pytest.mark.parametrize("cutoff", [1, 2, 7])
def test_early_in_a_straight_line(cutoff):
    got = rates(s.early(0.4, cutoff, "linear"), cutoff + 2)
    np.testing.assert_allclose(got, [*np.linspace(0.4, 0, cutoff), 0, 0], rtol=0, atol=1e-16)


def test_linear_and_cosine():
    np.testing.assert_allclose(rates(s.linear(0.2, 0.7, 10), 11), np.linspace(0.2, 0.7, 11))
    turn = (1 - np.cos(np.pi * np.arange(11) / 10)) / 2
    np.testing.assert_allclose(rates(s.cosine(0.7, 0.2, 10), 11), 0.7 - 0.5 * turn)
    for schedule in (s.linear(0.8, 0.1, 7), s.cosine(0.8, 0.1, 7)):
        assert [schedule(0), schedule(7), schedule(8), schedule(10**12)] == [0.8, 0.1, 0.1, 0.1]


def test_steps():
    assert rates(s.steps([0.1, 0.5, 0.2], [2, 3]), 5) == [0.1, 0.1, 0.5, 0.2, 0.2]
    assert rates(s.steps([0.1], []), 3) == rates(s.constant(0.1), 3)


def test_depth():
    """1 - p_l = 1 - l / L (1 - p_L), where p is the rate at which layers survive."""
    p = 0.5
    expected = [1 - (1 - layer / 6 * (1 - (1 - p))) for layer in range(1, 7)]
    np.testing.assert_allclose(s.depth_linear(p, 6), expected)
    assert s.depth_linear(0.3, 1) == [0.3]
    assert s.depth_linear(1, 49)[-1] == 1.0
    np.testing.assert_allclose([0, *s.depth_linear(p, 11)], np.linspace(0, p, 12))  # timm's


@every
def test_is_a_value(schedule):
    assert isinstance(schedule(0), float)
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule == eval(repr(schedule), vars(s))
    assert hash(again) == hash(schedule)
    assert rates(again, 200) == rates(schedule, 200)


@every
def test_stays_at_the_last_rate(schedule):
    assert schedule(10**9) == schedule(10**9 + 1) == schedule(10**15)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 1000), st.integers(0, 1200))
def test_is_a_rate(start, stop, n, step):
    for schedule in (
        s.linear(start, stop, n),
        s.cosine(start, stop, n),
        s.early(start, n, "linear"),
        s.curriculum(start, 1 / n),
        s.anti_curriculum(start, 1 / n),
    ):
        assert 0 <= schedule(step) <= 1
    assert all(0 <= p <= 1 for p in s.depth_linear(start, n))


@every
def test_drives_a_layer(schedule):
    layer = fd.layers.Dropout(schedule, rng=7)
    x, rng = np.ones(300), fd.Rng(7)
    for t in range(120):
        assert layer.step == t
        assert_same_bits(layer(x), fd.dropout(x, schedule(t), rng=rng)[0])
        assert layer.ctx.p == schedule(t)
    layer.eval()(x)
    assert layer.step == 120  # evaluation is no step
    layer.train().step = 60
    layer(x)
    assert layer.ctx.p == schedule(60)
    assert repr(schedule) in repr(layer)


@every
@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (-1, ValueError, "step must be at least 0, got -1"),
        (1.0, TypeError, "step must be an int, got 1.0"),
        (True, TypeError, "step must be an int, got True"),
        ("1", TypeError, "step must be an int, got '1'"),
    ],
)
def test_bad_step(schedule, step, error, words):
    with pytest.raises(error, match=words):
        schedule(step)
    assert schedule(np.int64(3)) == schedule(3)


NAN = float("nan")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: s.constant(1.1), ValueError, r"p must be in \[0, 1\], got 1.1"),
        (lambda: s.constant(None), TypeError, r"p must be a real number in \[0, 1\], got None"),
        (lambda: s.curriculum(NAN, 1), ValueError, "p must be in"),
        (lambda: s.curriculum(0.5, 0), ValueError, "gamma must be positive and finite, got 0.0"),
        (lambda: s.curriculum(0.5, math.inf), ValueError, "gamma must be positive and finite"),
        (lambda: s.anti_curriculum(0.5, -1), ValueError, "gamma must be positive"),
        (lambda: s.anti_curriculum(0.5, "1"), TypeError, "gamma must be a positive real number"),
        (lambda: s.switch(2, 1), ValueError, "p must be in"),
        (lambda: s.switch(0.5, 0), ValueError, "at must be at least 1, got 0"),
        (lambda: s.switch(0.5, 1.5), TypeError, "at must be an int, got 1.5"),
        (lambda: s.linear(-1, 0, 1), ValueError, "start must be in"),
        (lambda: s.linear(0, 2, 1), ValueError, "stop must be in"),
        (lambda: s.linear(0, 1, 0), ValueError, "steps must be at least 1, got 0"),
        (lambda: s.cosine(0, True, 1), TypeError, "stop must be a real number"),
        (lambda: s.cosine(0, 1, 3.0), TypeError, "steps must be an int, got 3.0"),
        (lambda: s.steps([0.1, 3], [1]), ValueError, r"values\[1\] must be in"),
        (lambda: s.steps([0.1, 0.2], [0]), ValueError, r"boundaries\[0\] must be at least 1"),
        (lambda: s.steps([0.1], [1]), ValueError, "values must have one rate more .* got 1 and 1"),
        (lambda: s.steps([0.1] * 3, [2, 2]), ValueError, r"boundaries must increase, got \(2, 2\)"),
        (lambda: s.early(0.5, -1), ValueError, "cutoff must be at least 1"),
        (lambda: s.early(0.5, 1, "x"), ValueError, "shape must be one of 'constant', 'linear'"),
        (lambda: s.late(0.5, 0), ValueError, "start must be at least 1"),
        (lambda: s.late(1.5, 1), ValueError, "p must be in"),
        (lambda: s.depth_linear(0.5, 0), ValueError, "depth must be at least 1"),
        (lambda: s.depth_linear(-0.5, 1), ValueError, "p must be in"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()
