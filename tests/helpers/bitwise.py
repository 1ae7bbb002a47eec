"""Equality of every bit: NaN payloads and the sign of zero count."""

import numpy as np


def assert_same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    parts = 2 if actual.dtype.kind == "c" else 1  # a complex number has two
    unsigned = f"u{actual.dtype.itemsize // parts}"
    actual, expected = (np.ascontiguousarray(a).view(unsigned) for a in (actual, expected))
    np.testing.assert_array_equal(actual, expected)
