"""Continuous noise: the kernels against the reference, the reference against exact functions, and
the distributions against theory."""

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from scipy import special, stats

from fastdrop import _core, reference, rng
from fastdrop._core import LOGISTIC, NORMAL, Draw, Place
from fastdrop.backends.cpu import normals

REFERENCE = {NORMAL: reference.normals, LOGISTIC: reference.logistics}


def drawn(kind, place, seed=7, call=9):
    noise = np.empty(place.shape, np.float32)
    _core.draw_noise(kind, Draw(seed, call, 0.0, place), noise)
    return noise


def normal(n, seed, call):
    return normals(Draw(seed, call, 0.0, Place((n,))))


@pytest.mark.parametrize("kind", REFERENCE)
@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 2**34 - 5, 2**62 - 70_001])
def test_bits(isa, kind, start):
    for n in (1, 3, 4, 63, 64, 65, 4096, 9001):
        place = Place((n,), (), ((start,), (2**62,)))
        index = np.arange(n, dtype=np.uint64) + np.uint64(start)
        assert_same_bits(drawn(kind, place), REFERENCE[kind](index, 7, 9))


@pytest.mark.parametrize("kind", REFERENCE)
def test_blocks_and_threads(kind, threads):
    whole = drawn(kind, Place((40, 30, 50)))
    for shared, region in [
        ((), ((3, 4, 5), (40, 30, 50))),
        ((), ((3, 0, 0), (40, 30, 50))),
        ((1,), None),
        ((2,), None),
        ((0, 2), None),
    ]:
        place = Place((20, 20, 30), shared, region)
        index = reference.element_index((20, 20, 30), shared, region)
        noise = np.broadcast_to(drawn(kind, place), (20, 20, 30))
        assert_same_bits(noise.copy(), REFERENCE[kind](index, 7, 9))
    assert_same_bits(drawn(kind, Place((60_000,))), whole.reshape(-1))


def test_known_variates():
    """So that no later release changes them together with the reference."""
    expected = [
        0.128443643450737,
        -1.8645164966583252,
        0.053595397621393204,
        -0.6756946444511414,
        1.388409972190857,
        0.40588727593421936,
        -1.2981231212615967,
        1.1083875894546509,
    ]
    assert normal(8, 1234, 5).tolist() == expected
    logistic = drawn(LOGISTIC, Place((4,)), 1234, 5)
    assert logistic.tolist() == [
        -0.5331663489341736,
        -1.4419035911560059,
        1.319087028503418,
        -1.9675859212875366,
    ]


def test_normals_are_box_and_muller():
    """Against exact functions of the same words: off by 8e-7 at most."""
    n = 400_000
    words = rng.blocks(7, 9, rng.NORMALS, np.arange(n // 4, dtype=np.uint64)).astype(np.int64)
    k = (words[:, :2] >> 1).astype(np.float32)  # 24 bits of the 31, the smallest whole
    u = (k + np.float32(0.5)).astype(np.float64) / 2.0**31
    quarter = ((words[:, 2:] << 34) >> 34) / 2.0**30  # -1/2 ... 1/2
    half_turn, swap = words[:, 2:] >> 30 & 1, words[:, 2:] >> 31
    cos = np.cos(np.pi / 2 * quarter) * (1 - 2 * half_turn)
    sin = np.sin(np.pi / 2 * quarter)
    r = np.sqrt(-2 * np.log(u))
    pairs = [r * np.where(swap, sin, cos), r * np.where(swap, cos, sin)]
    error = normal(n, 7, 9) - np.concatenate(pairs, axis=1).reshape(-1)
    assert np.abs(error).max() < 8e-7


def test_polynomials():
    """Their errors against NumPy's float64 functions, as the reference states them."""
    x = np.geomspace(2.0**-24, 2.0**31, 1_000_001).astype(np.float32)
    e, ln = reference.log(x)
    exact = np.log(x.astype(np.float64)) - e * np.log(2)
    some = exact != 0
    assert np.abs(ln[some] / exact[some] - 1).max() < 1.6e-7
    x = np.linspace(-np.pi / 4, np.pi / 4, 1_000_001).astype(np.float32)
    sin, cos = reference.sincos(x)
    np.testing.assert_allclose(sin, np.sin(x.astype(np.float64)), rtol=1e-7)
    np.testing.assert_allclose(cos, np.cos(x.astype(np.float64)), rtol=1e-7)
    x = np.linspace(-87, 87, 1_000_001).astype(np.float32)
    np.testing.assert_allclose(reference.exp(x), np.exp(x.astype(np.float64)), rtol=1.1e-7)
    x = np.linspace(-700, 700, 1_000_001)
    np.testing.assert_allclose(reference.exp(x), np.exp(x), rtol=5e-16)


def anderson_darling(log_below, log_above):
    """A^2 of sorted samples from the logarithms of their distribution and its complement."""
    n = len(log_below)
    total = 0.0
    for i in range(0, n, 1_000_000):
        j = np.arange(i, min(i + 1_000_000, n))
        total += np.dot(2 * j + 1.0, log_below[j] + log_above[n - 1 - j])
    return -n - total / n


@pytest.mark.parametrize("n", [10**6, pytest.param(10**8, marks=pytest.mark.slow)])
def test_normal_distribution(n):
    """Kolmogorov and Smirnov, Anderson and Darling, moments: each would fail by chance once in a
    thousand seeds, and this seed does not."""
    z = np.sort(normal(n, 2024, 0))
    below, log_below, log_above = (np.empty(n) for _ in range(3))
    for i in range(0, n, 1_000_000):
        part = slice(i, i + 1_000_000)
        wide = z[part].astype(np.float64)
        below[part] = special.ndtr(wide)
        log_below[part], log_above[part] = special.log_ndtr(wide), special.log_ndtr(-wide)
    steps = np.arange(n + 1) / n
    distance = max(np.max(steps[1:] - below), np.max(below - steps[:-1]))
    assert stats.kstwobign.sf(distance * np.sqrt(n)) > 1e-3
    assert anderson_darling(log_below, log_above) < 6.0  # 0.1 % are above
    mean = z.mean(dtype=np.float64)
    assert abs(mean) < 3.3 / np.sqrt(n)
    assert abs(np.mean(np.square(z, dtype=np.float64)) - 1) < 3.3 * np.sqrt(2 / n)


def test_logistic_distribution():
    e = drawn(LOGISTIC, Place((10**6,)))
    assert stats.kstest(e, "logistic").pvalue > 1e-3
    assert np.abs(e).max() < 16.65


def test_normals_of_shared_axes():
    """All of what comes back is drawn, nothing is left as memory was."""
    for shared, shape in (((0,), (1, 50)), ((1,), (40, 1)), ((0, 1), (1, 1)), ((), (40, 50))):
        noise = normals(Draw(1, 2, 0.0, Place((40, 50), shared)))
        alone = np.empty(shape, np.float32)
        _core.draw_noise(_core.NORMAL, Draw(1, 2, 0.0, Place((40, 50), shared)), alone)
        np.testing.assert_array_equal(noise, np.broadcast_to(alone, (40, 50)))
