"""Noise ops: what the noise e of an element makes of it, and the kernel that draws and applies it.

"scale", "scales": x (1 + sigma e); "add": x + sigma e; "concrete": x w; "gradient": what x, with dy
in g, adds to the gradient of concrete dropout's logit; "slope": to that of sigma. See
``fd_noise_op`` in src/fastdrop.h.

Groups of parameters: ``arrays = x, g, y`` and ``relaxed = logit, rate, inverse, scale``, those of
concrete dropout; e and s below are four noises and four sigmas.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.exponential import exponential
from fastdrop.backends.cuda.kernels.layout import positions
from fastdrop.backends.cuda.kernels.targets import U32, U64, target
from fastdrop.backends.cuda.kernels.variates import variates
from fastdrop.base.dtypes import ITEMSIZE

# A variate takes so long that divisions by the lengths of axes that are not there do not count: one
# noise kernel serves for up to so many.
NOISE_AXES = 4

GRADIENTS = ("gradient", "slope")  # ops that read g and write the compute type


@cache
def noise_kernel(
    where: str, dtype: str, op: str = "scale", axes: int = 0, small: bool = True
) -> Any:
    """A noise op on n contiguous elements, whose indices are as in `draw_kernel`.

    axes = 0: `start` is a multiple of 4. "scales" takes `sigmas`, of the compute type, which repeat
    after `row` elements, for sigma.
    """
    p, e = target(where), elements(where, dtype)
    first, step, item = p.first, p.step, e.item
    kind = "logistic" if op in ("concrete", "gradient") else "normal"
    variates4, together = getattr(variates(where), kind), _together(where, dtype, op)
    one, (sigma_at, four_sigmas) = _one(where, dtype, op), _sigmas(where, dtype, op)
    fourth, wide_stores = p.fourth, op not in GRADIENTS

    if axes:
        position, _ = positions(where, axes, small, rows=True)

        def noise(arrays, deviations, run, layout, draw, sigma, relaxed):
            n, start = run
            i = first()
            while i < n:
                index = start + position(i, layout)
                own = fourth(variates4(index >> 2, draw), index)
                one(i, arrays, own, sigma_at(deviations, i, sigma), relaxed)
                i += step()

    else:

        def noise(arrays, deviations, run, layout, draw, sigma, relaxed):
            x, _, y = arrays
            n, start = run
            group, groups = first(), n + U64(3) >> 2
            aligned = wide_stores and (x | y) & U64(15) == U64(0)
            while group < groups:
                i = group << 2
                e = variates4(start + i >> 2, draw)
                left = n - i
                s = four_sigmas(deviations, i, sigma)
                if aligned and left >= U64(4):
                    together(x + i * item, y + i * item, e, s, relaxed)
                else:
                    one(i, arrays, e[0], s[0], relaxed)
                    if left > U64(1):
                        one(i + U64(1), arrays, e[1], s[1], relaxed)
                    if left > U64(2):
                        one(i + U64(2), arrays, e[2], s[2], relaxed)
                    if left > U64(3):
                        one(i + U64(3), arrays, e[3], s[3], relaxed)
                group += step()

    return p.kernel(noise)


def _one(where: str, dtype: str, op: str) -> Any:
    """``f(i, arrays, noise, sigma, relaxed)``: element i."""
    e = elements(where, dtype)
    load, store, decode, encode, bits = e.load, e.store, e.decode, e.encode, e.bits
    item, real_item, store_real, zero = e.item, e.real_item, e.store_real, e.zero
    weight_of, applied = weight(where, dtype, op), _applied(where, dtype, op)
    gradient = op in GRADIENTS

    @target(where).device
    def one(i, arrays, noise, sigma, relaxed):
        x, g, y = arrays
        at = i * item
        w = weight_of(noise, sigma, relaxed)
        dy = decode(load(g + at)) if gradient else zero
        v = applied(decode(load(x + at)), dy, w)
        if gradient:
            store_real(y + i * real_item, bits(v))
        else:
            store(y + at, encode(v))

    return one


def _together(where: str, dtype: str, op: str) -> Any:
    """``f(x, y, e, s, relaxed)``: four elements at these addresses, multiples of their size."""
    p, el = target(where), elements(where, dtype)
    device, decode, encode, encode2, zero = p.device, el.decode, el.encode, el.encode2, el.zero
    load16, store16, load_u64, store_u64 = p.load16, p.store16, p.load_u64, p.store_u64
    load16d, store16d, far, half = p.load16d, p.store16d, U64(16), U32(0xFFFF)
    weight_of, applied = weight(where, dtype, op), _applied(where, dtype, op)

    # Weights before loads: what is loaded would take registers while they are computed.
    @p.four
    def weights(j: int) -> Any:
        @device
        def of_one(e, s, relaxed):
            return weight_of(e[j], s[j], relaxed)

        return of_one

    @p.four
    def all4(j: int) -> Any:
        @device
        def to_one(raw, w):
            return applied(decode(raw[j]), zero, w[j])

        return to_one

    @device
    def of_4_bytes(x, y, e, s, relaxed):
        w = weights(e, s, relaxed)
        v = all4(load16(x), w)
        store16(y, (encode(v[0]), encode(v[1]), encode(v[2]), encode(v[3])))

    @device
    def of_2_bytes(x, y, e, s, relaxed):
        w = weights(e, s, relaxed)
        a = load_u64(x)
        low, high = U32(a), U32(a >> 32)
        v = all4((U32(low & half), U32(low >> 16), U32(high & half), U32(high >> 16)), w)
        store_u64(y, U64(encode2(v[0], v[1])) | U64(encode2(v[2], v[3])) << 32)

    @device
    def two(x, y, e, s, relaxed):
        w0, w1 = weight_of(e[0], s[0], relaxed), weight_of(e[1], s[1], relaxed)
        raw = load16d(x)
        v0, v1 = applied(decode(raw[0]), zero, w0), applied(decode(raw[1]), zero, w1)
        store16d(y, (encode(v0), encode(v1)))

    @device
    def of_8_bytes(x, y, e, s, relaxed):
        two(x, y, (e[0], e[1]), (s[0], s[1]), relaxed)
        two(x + far, y + far, (e[2], e[3]), (s[2], s[3]), relaxed)

    return {2: of_2_bytes, 4: of_4_bytes, 8: of_8_bytes}[ITEMSIZE[dtype]]


def _sigmas(where: str, dtype: str, op: str) -> tuple[Any, Any]:
    """``f(deviations, i, sigma)``: of element i, and of elements i ... i + 3; ``deviations =
    sigmas, row``.
    """
    device, e = target(where).device, elements(where, dtype)
    load_real, real_item, value = e.load_real, e.real_item, e.value

    if op == "scales":

        @device
        def of_column(deviations, column):
            """That of a column, and the next column."""
            sigmas, row = deviations
            sigma = value(load_real(sigmas + column * real_item))
            column += U64(1)
            return sigma, (column if column < row else U64(0))

        @device
        def sigma_at(deviations, i, sigma):
            own, _ = of_column(deviations, i % deviations[1])
            return own

        @device
        def four_sigmas(deviations, i, sigma):
            s0, column = of_column(deviations, i % deviations[1])
            s1, column = of_column(deviations, column)
            s2, column = of_column(deviations, column)
            s3, column = of_column(deviations, column)
            return s0, s1, s2, s3

    else:

        @device
        def sigma_at(deviations, i, sigma):
            return sigma

        @device
        def four_sigmas(deviations, i, sigma):
            return sigma, sigma, sigma, sigma

    return sigma_at, four_sigmas


@cache
def weight(where: str, dtype: str, op: str) -> Any:
    """``f(noise, sigma, relaxed)``, of a variate, which is a float32, in the compute type."""
    t, exact = target(where), elements(where, dtype).exact
    device, wide_of, odds_of = t.device, t.wide, _odds(where, dtype)
    add, sub, mul, div = exact.add, exact.sub, exact.mul, exact.div
    wide = dtype == "float64"
    one = (np.float64 if wide else np.float32)(1)

    @device
    def real(noise):
        return wide_of(noise) if wide else noise

    @device
    def scaled(noise, sigma, relaxed):
        return add(one, mul(sigma, real(noise)))

    @device
    def added(noise, sigma, relaxed):
        return mul(sigma, real(noise))

    @device
    def concrete(noise, sigma, relaxed):
        logit, _, inverse, scale = relaxed
        return div(scale, add(one, odds_of(real(noise), logit, inverse)))

    @device
    def gradient(noise, sigma, relaxed):
        logit, rate, inverse, scale = relaxed
        odds = odds_of(real(noise), logit, inverse)
        total = add(one, odds)
        w = div(scale, total)
        return mul(w, sub(rate, mul(div(odds, total), inverse)))

    @device
    def slope(noise, sigma, relaxed):
        return real(noise)

    known = {"scale": scaled, "scales": scaled, "add": added, "concrete": concrete}
    return (known | {"gradient": gradient, "slope": slope})[op]


def _applied(where: str, dtype: str, op: str) -> Any:
    """``f(x, g, weight)``."""
    device, e = target(where).device, elements(where, dtype)
    mul, with_weight = e.mul, e.add if op == "add" else e.mul
    gradient = op in GRADIENTS

    @device
    def applied(x, g, weight):
        return mul(mul(x, g), weight) if gradient else with_weight(x, weight)

    return applied


@cache
def _odds(where: str, dtype: str) -> Any:
    """``f(noise, logit, inverse)``: e^((logit + noise) * inverse), not beyond what has a
    reciprocal.
    """
    device, exact = target(where).device, elements(where, dtype).exact
    add, mul, exp = exact.add, exact.mul, exponential(where, dtype)
    wide = dtype == "float64"
    most = (np.float64 if wide else np.float32)(700 if wide else 87)

    @device
    def odds_of(noise, logit, inverse):
        a = mul(add(logit, noise), inverse)
        a = a if a > -most else -most
        return exp(a if a < most else most)

    return odds_of
