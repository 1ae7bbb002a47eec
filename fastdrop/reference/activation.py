"""GELU in its tanh form and its slope, of which every bit is defined: only operations that IEEE 754
rounds exactly, in the order written here, and `fastdrop.reference.noise.exp`.

With a = -2 sqrt(2 / pi) (u + 0.044715 u^3), gelu(u) = u (1 + tanh(-a / 2)) / 2 = u / (1 + e^a): one
exponential and one division, and no difference of numbers that are nearly the same.

D. Hendrycks, K. Gimpel: Gaussian error linear units. arXiv:1606.08415 (2016), section 2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop.reference.noise import exp

__all__ = ["gelu", "gelu_slope"]

Floats = npt.NDArray[Any]

LINEAR = -1.5957691216057308  # -2 sqrt(2 / pi)
CUBIC = LINEAR * 0.044715


def limits(wide: bool) -> tuple[float, float]:
    """Where e^a becomes infinite, and 0: the 2^n in it does, with n = 128 and -127, or 1024 and
    -1023.
    """
    return (-21.16015625, 21.15234375) if wide else (-10.0625, 10.03125)


def gelu(u: Floats) -> Floats:
    """u / (1 + e^a), of float32 or float64; -0 below the lower limit, u above the upper one."""
    kind = u.dtype.type
    least, most = map(kind, limits(u.dtype == np.float64))
    v = np.maximum(least, u)
    return v / (kind(1) + _odds(np.minimum(most, v)))


def gelu_slope(u: Floats) -> Floats:
    """The derivative of `gelu`: s - u a' s (1 - s) with s = 1 / (1 + e^a)."""
    kind, wide = u.dtype.type, u.dtype == np.float64
    least, most = map(kind, limits(wide))
    v = np.minimum(most, np.maximum(least, u))
    odds = _odds(v)
    s = kind(1) / (kind(1) + odds)
    rest = np.minimum(odds, kind(2.0 ** (1022 if wide else 126))) * s  # 1 - s
    slope = kind(LINEAR) + kind(3 * CUBIC) * (v * v)
    return s * (kind(1) - v * slope * rest)


def _odds(u: Floats) -> Floats:
    """e^a of a u within the limits."""
    kind = u.dtype.type
    return exp(u * (kind(LINEAR) + kind(CUBIC) * (u * u)))
