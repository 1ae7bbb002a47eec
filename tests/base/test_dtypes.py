"""16-bit types: widened to float32, multiplied, rounded to nearest even."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import reference

SMALL = [np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=SMALL, ids=lambda dtype: np.dtype(dtype).name)
def small(request):
    return request.param


def patterns(dtype):
    return np.arange(2**16, dtype=np.uint16).view(dtype)


@pytest.mark.parametrize("p", [0.1, 0.5, 1 / 3, 0.9, 0.999])
def test_every_bit_pattern(isa, small, p):
    x = patterns(small)
    y, ctx = fd.dropout(x, p, rng=3)
    expected, mask = reference.dropout(x, p, 3, 0)
    assert_same_bits(y, expected)
    assert_same_bits(ctx.backward(x), expected)
    np.testing.assert_array_equal(ctx.mask(), mask)


def test_every_bit_pattern_is_kept_somewhere(isa, small):
    """Calls until each pattern has been kept at least once."""
    x = patterns(small)
    seen = np.zeros(x.size, np.bool_)
    for call in range(20):
        y, ctx = fd.dropout(x, 0.3, rng=fd.Rng(1, call))
        mask = ctx.mask()
        assert_same_bits(y, reference.apply(x, mask, 0.3))
        seen |= mask
    assert seen.all()


def test_reference_rounds_as_ml_dtypes(small):
    """Its own rounding, but for the payload of a NaN."""
    wide = np.random.default_rng(0).integers(0, 2**32, 10**6, np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        expected = wide.astype(small)
        actual = reference.rounded(wide[~np.isnan(wide)], np.dtype(small))
    assert_same_bits(actual, expected[~np.isnan(wide)])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_lengths_and_misalignment(isa, small, p):
    raw = np.zeros(10_000, np.uint8)
    for n in (*range(140), 255, 256, 257, 1000, 4097):
        for shift in (0, 1, 2, 6):
            x = raw[shift : shift + 2 * n].view(small)
            x[:] = np.arange(n) % 100
            y, ctx = fd.dropout(x, p, rng=3)
            expected, _ = reference.dropout(x.copy(), p, 3, 0)
            assert_same_bits(y, expected)
            assert_same_bits(ctx.backward(x), expected)


def test_layouts(isa, small):
    x = np.arange(6000).reshape(30, 200).astype(small)
    for v in (x.T, x[::-1, ::3], np.asfortranarray(x), np.broadcast_to(x[0], (7, 200))):
        for axes in ((), (0,), (1,)):
            y, _ = fd.dropout(v, 0.3, rng=1, shared_axes=axes)
            assert_same_bits(np.ascontiguousarray(y), reference.dropout(v, 0.3, 1, 0, axes)[0])


def test_the_mask_does_not_depend_on_the_dtype():
    masks = [
        fd.dropout(np.ones(1000, t), 0.3, rng=1)[1].mask() for t in (*SMALL, np.float32, np.float64)
    ]
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])


def test_bfloat16_needs_no_import_before_fastdrop():
    code = """
import sys, fastdrop as fd, numpy as np
assert "ml_dtypes" not in sys.modules
import ml_dtypes
y, _ = fd.dropout(np.ones(9, ml_dtypes.bfloat16), 0.5, rng=1)
assert y.dtype == ml_dtypes.bfloat16
"""
    subprocess.run([sys.executable, "-c", code], check=True)
