"""dev/trust/battery.py in small, and that it finds what it looks for."""

import battery
import numpy as np
import pytest

import fastdrop as fd


def test_masks_and_noise_pass():
    results = [
        *battery.test_masks(1 << 21, [1e-5, 1e-3, 0.2, 0.5, 0.9, 1 - 1e-4]),
        *battery.test_refinement(1 << 21),
        *battery.test_across(100, 1 << 12),
        *battery.test_noise(1 << 17),
    ]
    assert len(results) > 700
    assert not battery.holm(results)


def packed(mask):
    return np.packbits(mask, bitorder="little")


def every_17th(mask):
    mask[::17] = True


def echo(mask):
    mask[40:] = np.where(np.arange(len(mask) - 40) % 50 == 0, mask[:-40], mask[40:])


def lane(mask):
    mask[3::128] |= fd.keep_mask(len(mask[3::128]), 0.8, rng=7)


def long_runs(mask):
    at = np.flatnonzero(mask[1:] != mask[:-1])[::40]
    mask[at] = mask[at + 1]


@pytest.mark.parametrize("fault", [every_17th, echo, lane, long_runs])
@pytest.mark.parametrize("q", [0.2, 0.5])
def test_a_fault_is_found(fault, q):
    mask = fd.keep_mask(1 << 21, 1 - q, rng=5)
    assert not battery.holm(list(battery.test_bits(packed(mask), q)))
    fault(mask)
    assert battery.holm(list(battery.test_bits(packed(mask), q)))


def test_a_wrong_rate_is_found():
    mask = packed(fd.keep_mask(1 << 22, 0.7, rng=5))
    assert battery.holm(list(battery.test_bits(mask, 0.303)))


def test_related_rows_are_found():
    rows = np.random.default_rng(0).standard_normal((50, 4096)).astype(np.float32)
    assert not battery.holm(list(battery.test_pairs(rows, "")))
    rows[7] = 0.9 * rows[7] + 0.44 * rows[3]
    assert battery.holm(list(battery.test_pairs(rows, "")))


def test_holm_rejects_in_order():
    assert battery.holm([("a", 1e-9), ("b", 0.5), ("c", 4e-7)]) == [("a", 1e-9), ("c", 4e-7)]
    assert battery.holm([("a", 1e-5), ("b", 1e-12)]) == [("b", 1e-12)]
    assert battery.holm([("a", np.nan)])
