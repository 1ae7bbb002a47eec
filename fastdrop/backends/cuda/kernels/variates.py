"""Continuous noise as `fastdrop.reference.noise` defines it, step by step, in float32."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np

from fastdrop import rng
from fastdrop.backends.cuda.kernels.philox import philox
from fastdrop.backends.cuda.kernels.targets import U32, target
from fastdrop.reference import noise

F32 = np.float32
ONE, HALF, TWO24 = F32(1), F32(0.5), F32(2**24)
LN2, TWO_LN2, QUARTER_TURN = noise.LN2, F32(noise.LN2 + noise.LN2), F32(np.pi / 4 * 2.0**-31)
LOG, SIN, COS = (tuple(map(F32, c)) for c in (noise.LOG, noise.SIN, noise.COS))
NORMALS, UNIFORMS = U32(rng.NORMALS << 28), U32(rng.UNIFORMS << 28)


@cache
def series(where: str) -> SimpleNamespace:
    """``log(x)``: exponent, as int32 in uint32, and logarithm of the rest. ``sin(s)`` over x and
    ``cos(s)``, of s = x^2 for x up to an eighth of a turn.
    """
    t = target(where)
    device, add, sub, mul, f32, b32 = t.device, t.add32, t.sub32, t.mul32, t.f32, t.b32

    @device
    def horner4(v, x, c3, c2, c1, c0):
        """Four steps of Horner's rule."""
        v = add(mul(add(mul(v, x), c3), x), c2)
        return add(mul(add(mul(v, x), c1), x), c0)

    @device
    def shifted_as_int32(x):
        up = U32(x >> 23)
        return U32(up | U32(0xFFFFFE00)) if up & U32(0x100) else up

    @device
    def log(x):
        bits = b32(x)
        e = shifted_as_int32(U32(bits - U32(0x3F3504F3)))
        f = sub(f32(U32(bits - (e << 23))), ONE)
        v = horner4(LOG[8], f, LOG[7], LOG[6], LOG[5], LOG[4])
        return e, mul(f, horner4(v, f, LOG[3], LOG[2], LOG[1], LOG[0]))

    @device
    def sin(s):
        v = add(mul(SIN[3], s), SIN[2])
        return add(mul(add(mul(v, s), SIN[1]), s), SIN[0])

    @device
    def cos(s):
        return horner4(COS[4], s, COS[3], COS[2], COS[1], COS[0])

    return SimpleNamespace(log=log, sin=sin, cos=cos)


@cache
def variates(where: str) -> SimpleNamespace:
    """``normal(number, draw)``, ``logistic(number, draw)``: the four variates of a Philox block;
    ``draw = keys, call``.
    """
    t, four = target(where), philox(where).four
    device, add, sub, mul, div, sqrt = t.device, t.add32, t.sub32, t.mul32, t.div32, t.sqrt32
    f32, b32, float_of = t.f32, t.b32, t.float_of
    log, sin, cos = series(where).log, series(where).sin, series(where).cos

    @device
    def pair(radius, angle):
        """Radius times cosine, radius times sine."""
        u = add(float_of(U32(radius >> 1)), HALF)
        e, ln = log(u)
        r = sqrt(sub(mul(float_of(U32(U32(31) - e)), TWO_LN2), add(ln, ln)))
        x = mul(float_of(U32(angle << 2)), QUARTER_TURN)
        square = mul(x, x)
        s = mul(x, sin(square))
        c = f32(U32(b32(cos(square)) ^ angle << 1 & U32(0x80000000)))
        swapped = angle >> 31 != U32(0)
        return mul(r, s if swapped else c), mul(r, c if swapped else s)

    @device
    def normal(number, draw):
        w0, w1, w2, w3 = four(number, NORMALS, draw[0], draw[1])
        a, c = pair(w0, w2)
        b, d = pair(w1, w3)
        return a, b, c, d

    @device
    def logistic_of(w):
        odd = float_of(U32((w >> 9 << 1) + U32(1)))
        e, ln = log(div(odd, sub(TWO24, odd)))
        return add(mul(float_of(e), LN2), ln)

    @device
    def logistic(number, draw):
        w = four(number, UNIFORMS, draw[0], draw[1])
        return logistic_of(w[0]), logistic_of(w[1]), logistic_of(w[2]), logistic_of(w[3])

    return SimpleNamespace(normal=normal, logistic=logistic)
