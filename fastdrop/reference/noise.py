"""Continuous noise, of which every bit is defined: only operations that IEEE 754 rounds exactly
(+, -, *, /, square root, integer to float) on float32, in the order written here, and polynomials
whose coefficients are written here. No library's log, exp, sin or cos has a say.

Errors against exact arithmetic, measured over all inputs: log1p_ratio 1.2e-7, sincos 9e-8, exp
2e-7 (float32) relative; a normal is off by at most 8e-7 (tests/stream/test_noise.py).
"""

from __future__ import annotations

from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import rng

__all__ = ["exp", "log", "logistics", "normals", "sincos"]

Floats = npt.NDArray[np.float32]

# Minimax (Lawson), rounded to float32 one after another from the lowest; relative error 3.0e-8 of
# ln(1 + f) / f on [sqrt(1/2) - 1, sqrt(2) - 1], 4.0e-9 of sin(x) / x and 1.2e-10 of cos(x) as
# polynomials of x^2 for |x| <= pi/4.
LOG = [
    1.0,
    -0.4999999,
    0.33333948,
    -0.25001782,
    0.19962151,
    -0.16570109,
    0.14916925,
    -0.1430936,
    0.087394305,
]
SIN = [
    1.0,
    -0.16666655,
    0.008332189,
    -0.00019518292,
]
COS = [
    1.0,
    -0.5,
    0.041666646,
    -0.001388731,
    2.4432327e-05,
]

LN2 = np.float32(np.log(2))
SQRT_HALF = np.uint32(0x3F3504F3)


def polynomial(coefficients: list[Any], x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Horner's rule, a rounding after each multiplication and each addition."""
    kind = x.dtype.type
    value = np.full_like(x, kind(coefficients[-1]))
    for c in reversed(coefficients[:-1]):
        value = value * x + kind(c)
    return value


@np.errstate(over="ignore")  # NumPy warns when a 0-d integer wraps around
def log(x: Floats) -> tuple[npt.NDArray[np.int32], Floats]:
    """x = 2^e (1 + f) with 1 + f between sqrt(1/2) and sqrt(2): e and ln(1 + f)."""
    bits = np.asarray(x).view(np.uint32)
    e = (bits - SQRT_HALF).view(np.int32) >> np.int32(23)
    f = (bits - (e.view(np.uint32) << np.uint32(23))).view(np.float32) - np.float32(1)
    return e, f * polynomial(LOG, f)


def sincos(x: Floats) -> tuple[Floats, Floats]:
    """sin and cos for |x| <= pi/4."""
    square = x * x
    return x * polynomial(SIN, square), polynomial(COS, square)


@np.errstate(over="ignore")
def exp(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """e^x in float32 for |x| <= 87 and in float64 for |x| <= 700: 2^n times Taylor's series."""
    wide = x.dtype == np.float64
    kind: Any
    unsigned: Any
    kind, unsigned, mantissa, terms = (
        (np.float64, np.uint64, 52, 14) if wide else (np.float32, np.uint32, 23, 8)
    )
    # Adding 1.5 * 2^mantissa leaves the nearest integer in the lowest bits.
    magic = kind(1.5 * 2.0**mantissa)
    shifted = x * kind(1 / np.log(2)) + magic
    n = shifted - magic
    # ln(2) = high + low, and n * high is exact
    high = kind(0.69314718036912381649 if wide else 0.693145751953125)
    low = kind(1.90821492927058770002e-10 if wide else 1.4286068202862268e-06)
    r = (x - n * high) - n * low
    power = (shifted.view(unsigned) << unsigned(mantissa)) + kind(1).view(unsigned)
    return polynomial([1 / factorial(k) for k in range(terms)], r) * power.view(kind)


def normals(index: npt.ArrayLike, seed: int, call: int) -> Floats:
    """Standard normal variates of these indices (uint64, any shape), by Box and Muller.

    Words 0 and 1 of a block in domain 3 give two radii, words 2 and 3 two angles; elements 0 and 1
    of the block are radius times cosine, elements 2 and 3 radius times sine. The largest is 6.66.
    """
    i = np.asarray(index, np.uint64)
    first = i & ~np.uint64(2)  # 0 or 1 of its block
    radius = rng.words_at(seed, call, rng.NORMALS, first)
    angle = rng.words_at(seed, call, rng.NORMALS, first | np.uint64(2))
    # u = (k + 1/2) / 2^31 from 31 bits; -2 ln(u) = 2 (31 - e) ln(2) - 2 ln(1 + f)
    u = (radius >> np.uint32(1)).astype(np.float32) + np.float32(0.5)
    e, ln = log(u)
    r = np.sqrt((np.int32(31) - e).astype(np.float32) * (LN2 + LN2) - (ln + ln))
    # 30 bits within a quarter of the circle, one exchanges its axes, one turns it round.
    turn = (angle << np.uint32(2)).view(np.int32).astype(np.float32)
    sin, cos = sincos(turn * np.float32(np.pi / 4 * 2.0**-31))
    cos = (cos.view(np.uint32) ^ (angle << np.uint32(1) & np.uint32(1 << 31))).view(np.float32)
    cosine = (i & np.uint64(2) == 0) ^ (angle >> np.uint32(31)).astype(bool)
    return r * np.where(cosine, cos, sin)


def logistics(index: npt.ArrayLike, seed: int, call: int) -> Floats:
    """Standard logistic variates, ln(u / (1 - u)), of these indices (uint64, any shape).

    u = (k + 1/2) / 2^23 with k the upper 23 bits of the index's word in domain 4: numerator and
    denominator are exact. The largest is 16.64.
    """
    k = rng.words_at(seed, call, rng.UNIFORMS, index) >> np.uint32(9)
    odd = (k + k + np.uint32(1)).astype(np.float32)
    e, ln = log(odd / (np.float32(2**24) - odd))
    return e.astype(np.float32) * LN2 + ln
