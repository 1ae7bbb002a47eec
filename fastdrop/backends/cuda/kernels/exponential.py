"""e^x, and GELU with its slope, as `fastdrop.reference` defines them, step by step."""

from __future__ import annotations

from functools import cache
from math import factorial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.targets import U32, U64, target
from fastdrop.reference import activation


@cache
def exponential(where: str, dtype: str) -> Any:
    """``f(x)``: `fastdrop.reference.noise.exp`."""
    device, e = target(where).device, elements(where, dtype)
    add, sub, mul, bits, value = e.exact.add, e.exact.sub, e.exact.mul, e.bits, e.value
    wide = dtype == "float64"
    real, word, mantissa = (np.float64, U64, U64(52)) if wide else (np.float32, U32, U32(23))
    one_bits = word(0x3FF0000000000000 if wide else 0x3F800000)
    magic = real(1.5 * 2.0 ** int(mantissa))
    high = real(0.69314718036912381649 if wide else 0.693145751953125)
    low = real(1.90821492927058770002e-10 if wide else 1.4286068202862268e-06)
    log2e = real(1 / np.log(2))
    terms = tuple(real(1 / factorial(k)) for k in range(14 if wide else 8))

    @device
    def two_steps(v, x, c1, c0):
        return add(mul(add(mul(v, x), c1), x), c0)

    @device
    def last_terms(v, x):
        v = two_steps(two_steps(v, x, terms[5], terms[4]), x, terms[3], terms[2])
        return two_steps(v, x, terms[1], terms[0])

    if wide:

        @device
        def taylor(x):
            v = two_steps(add(mul(terms[13], x), terms[12]), x, terms[11], terms[10])
            v = two_steps(two_steps(v, x, terms[9], terms[8]), x, terms[7], terms[6])
            return last_terms(v, x)

    else:

        @device
        def taylor(x):
            return last_terms(add(mul(terms[7], x), terms[6]), x)

    @device
    def exp(x):
        shifted = add(mul(x, log2e), magic)
        n = sub(shifted, magic)
        r = sub(sub(x, mul(n, high)), mul(n, low))
        return mul(taylor(r), value(word((bits(shifted) << mantissa) + one_bits)))

    return exp


@cache
def gelu(where: str, dtype: str) -> SimpleNamespace:
    """``of(u)``, ``slope(u)``: `fastdrop.reference.activation`; of a NaN u, that u."""
    device, exact = target(where).device, elements(where, dtype).exact
    add, sub, mul, div, exp = exact.add, exact.sub, exact.mul, exact.div, exponential(where, dtype)
    wide = dtype == "float64"
    real = np.float64 if wide else np.float32
    limits = activation.limits(wide)
    least, most = real(limits[0]), real(limits[1])
    linear, cubic, three = (
        real(activation.LINEAR),
        real(activation.CUBIC),
        real(3 * activation.CUBIC),
    )
    one, finite = real(1), real(2.0 ** (1022 if wide else 126))

    @device
    def odds_of(u):
        return exp(mul(u, add(linear, mul(cubic, mul(u, u)))))

    @device
    def of(u):
        v = least if u < least else u
        y = div(v, add(one, odds_of(most if v > most else v)))
        return y if u == u else u

    @device
    def slope(u):
        v = least if u < least else u
        v = most if v > most else v
        odds = odds_of(v)
        s = div(one, add(one, odds))
        rest = mul(finite if odds > finite else odds, s)
        r = mul(s, sub(one, mul(mul(v, add(linear, mul(three, mul(v, v)))), rest)))
        return r if u == u else u

    return SimpleNamespace(of=of, slope=slope)
