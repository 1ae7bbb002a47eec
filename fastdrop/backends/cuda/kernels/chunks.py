"""`operation` on 16 elements at a time, loaded and stored 16 bytes, a *chunk*, at once.

A chunk has no time for a CPU's NaN: where there may be one in y nothing is stored, and the caller
does its elements one by one.
"""

from __future__ import annotations

from functools import cache, reduce
from types import SimpleNamespace
from typing import Any

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.operations import BIAS, RELU, RESIDUAL, operation
from fastdrop.backends.cuda.kernels.targets import U32, U64, target
from fastdrop.base.dtypes import ITEMSIZE

NONE = U32(0)


@cache
def chunk(where: str, dtype: str, op: str, c: int) -> Any:
    """`operation` on the c-th chunk: ``f(operands, k, constants)`` to (y, nan, active).

    operands: x, residual and bias; they and y are four words each, or two U64 with float64. k and
    active: the bits of all 16 elements; active has those of this chunk. nan: whether there may be
    one in y, which then is not to be used.
    """
    t = target(where)
    item = ITEMSIZE[dtype]
    if item == 2:
        return _of_pairs(where, dtype, op, c)
    device, e = t.device, elements(where, dtype)
    decode, encode, element = e.decode, e.encode, operation(where, dtype, op, False)

    def at(j: int) -> Any:
        """Of the chunk's element j."""
        bit = U32(1 << (16 // item * c + j))

        @device
        def one(operands, k, constants):
            x, r, b = operands
            keep = k & bit != NONE
            y, active = element((decode(x[j]), decode(r[j]), decode(b[j])), keep, constants)
            return encode(y), y != y, U32(active * bit)

        return one

    if item == 8:
        first, second = at(0), at(1)

        @device
        def whole(operands, k, constants):
            y0, nan0, a0 = first(operands, k, constants)
            y1, nan1, a1 = second(operands, k, constants)
            return (y0, y1), nan0 | nan1, U32(a0 | a1)

        return whole
    return _joined(t, t.four(at))


def _joined(t: SimpleNamespace, words: Any) -> Any:
    """What ``words(operands, k, constants)`` gives of four words, of the four together."""

    @t.device
    def whole(operands, k, constants):
        (y0, nan0, a0), (y1, nan1, a1), (y2, nan2, a2), (y3, nan3, a3) = words(
            operands, k, constants
        )
        active = U32((a0 | a1) | (a2 | a3))
        return (y0, y1, y2, y3), (nan0 | nan1) | (nan2 | nan3), active

    return whole


def _of_pairs(where: str, dtype: str, op: str, c: int) -> Any:
    """`chunk` with two elements a word."""
    t = target(where)
    joined = _joined(t, t.four(lambda j: _of_pair(where, dtype, op, c, j)))

    @t.device
    def whole(operands, k, constants):
        k = U32(k | k << 15)  # odd elements' from bit 16 on
        y, nan, active = joined(operands, k, constants)
        return y, nan, U32((active | active >> 15) & U32(0xFFFF))

    return whole


def _of_pair(where: str, dtype: str, op: str, c: int, j: int) -> Any:
    """`operation` on word j, two elements: ``f(operands, k, constants)`` to (y, nan, active). What
    is dropped is masked out of the operands, which is less work, where y is then what it has to be.
    """
    t, e = target(where), elements(where, dtype)
    device = t.device
    element = operation(where, dtype, op, False)
    decode, value, pack, half = e.decode, e.value, e.pack, t.half
    of_gelu = op == "bias_gelu_backward"  # a dropped x may have an infinite slope, or none
    signs, up = (t.upper_signs if c else t.lower_signs), U32(7 - 2 * j)
    down, with_active = U32(15 - 8 * c - 2 * j), op in RELU

    @device
    def active_of(y):
        """The bits of those that are not 0, where k has them; y has no signs, and nothing above 0
        becomes 0 by a scale of 1 or more; nor does a sum, which is a multiple of the smallest
        number."""
        above = U32((y + U32(0x7FFF7FFF)) & U32(0x80008000))
        return U32(above >> down) if with_active else NONE

    @device
    def is_nan(a, b):
        return (a != a) | (b != b)

    @device
    def mask(k):
        """Of the two elements, all bits or none."""
        return signs(U32(k << up))

    if dtype == "float16":

        @device
        def both(w):
            return half(U32(w & U32(0xFFFF))), half(U32(w >> 16))

        @device
        def has_nan(w):
            above = (w & U32(0x7FFF7FFF)) + U32(0x03FF03FF)
            return above & U32(0x80008000) != NONE

    else:

        @device
        def both(w):
            return decode(w), value(U32(w & U32(0xFFFF0000)))

        @device
        def has_nan(w):  # zoneout asks, and leaves them as they are
            return False

    @device
    def zoneout(operands, k, constants):
        m = mask(k)
        y = U32(operands[0][j] & m | operands[1][j] & ~m)
        return y, has_nan(y), NONE

    @device
    def alpha_dropout(operands, k, constants):
        m, dropped = mask(k), constants[2]
        x0, x1 = both(operands[0][j])
        y0, _ = element((x0, x0, x0), True, constants)
        y1, _ = element((x1, x1, x1), True, constants)
        y = U32(pack(y0, y1) & m | pack(dropped, dropped) & ~m)
        return y, is_nan(y0, y1), NONE

    @device
    def others(operands, k, constants):
        x, r, b = operands
        m = mask(k)
        x0, x1 = both(U32(x[j] & m))
        r0, r1 = both(U32(r[j] & m) if of_gelu else r[j])
        b0, b1 = both(U32(b[j] & m))
        y0, _ = element((x0, r0, b0), True, constants)
        y1, _ = element((x1, r1, b1), True, constants)
        y = pack(y0, y1)
        return y, is_nan(y0, y1), active_of(y)

    return {"zoneout": zoneout, "alpha_dropout": alpha_dropout}.get(op, others)


@cache
def chunks(where: str, dtype: str, op: str) -> Any:
    """`operation` on 16 elements at multiples of 16 bytes: ``f(arrays, k, constants)`` to (missing,
    active), bits of elements. arrays: addresses of x, residual, bias and y. Of chunks with a NaN
    all are missing: y is as it was there.
    """
    # What more would take in registers, threads would miss.
    at_once = 2 if op in ("dropout", "alpha_dropout") else 1
    device = target(where).device

    def joined(f: Any, g: Any) -> Any:
        @device
        def both(arrays, k, constants):
            missing, active = f(arrays, k, constants)
            more, a = g(arrays, k, constants)
            return U32(missing | more), U32(active | a)

        return both

    starts = range(0, ITEMSIZE[dtype], at_once)
    return reduce(joined, (_stored(where, dtype, op, c, at_once) for c in starts))


def _stored(where: str, dtype: str, op: str, c: int, count: int) -> Any:
    """One or two chunks from c on. Loads come before stores: y may be x or residual."""
    t, load = target(where), _operands(where, dtype, op)
    device, put = t.device, t.store16d if dtype == "float64" else t.store16
    per = 16 // ITEMSIZE[dtype]  # elements of a chunk
    f0, at0, bits0 = chunk(where, dtype, op, c), U64(16 * c), U32(((1 << per) - 1) << c * per)

    @device
    def one(arrays, k, constants):
        y0, nan0, a0 = f0(load(arrays, at0), k, constants)
        if not nan0:
            put(arrays[3] + at0, y0)
        return (bits0 if nan0 else NONE), a0

    if count == 1:
        return one
    f1, at1, bits1 = chunk(where, dtype, op, c + 1), at0 + U64(16), bits0 << U32(per)

    @device
    def two(arrays, k, constants):
        operands0, operands1 = load(arrays, at0), load(arrays, at1)
        y0, nan0, a0 = f0(operands0, k, constants)
        y1, nan1, a1 = f1(operands1, k, constants)
        if not nan0:
            put(arrays[3] + at0, y0)
        if not nan1:
            put(arrays[3] + at1, y1)
        missing = (bits0 if nan0 else NONE) | (bits1 if nan1 else NONE)
        return U32(missing), U32(a0 | a1)

    return two


def _operands(where: str, dtype: str, op: str) -> Any:
    """``f(arrays, at)``: 16 bytes each of what the op reads."""
    t, wide = target(where), dtype == "float64"
    load16, nothing = (t.load16d, (U64(0), U64(0))) if wide else (t.load16, (NONE,) * 4)
    has_bias, has_residual = op in BIAS, op in RESIDUAL

    @t.device
    def load(arrays, at):
        x, residual, bias, _ = arrays
        return (
            load16(x + at),
            load16(residual + at) if has_residual else nothing,
            load16(bias + at) if has_bias else nothing,
        )

    return load
