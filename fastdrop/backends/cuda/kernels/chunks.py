"""`operation` on 16 elements at a time, loaded and stored 16 bytes, a *chunk*, at once.

A thread draws the keep bits of 16 elements that follow each other, a group. It applies those of 16
others: neighbouring threads of a warp have neighbouring chunks, as memory likes it (on an H100
float32 takes 1.3 times as long where each has its own group). `share` says which.

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
def share(where: str, dtype: str, lanes: int) -> SimpleNamespace:
    """Which of the elements of a warp's groups a thread applies: chunk c of its `count`, each of
    `per` elements, is the (c * lanes + lane)-th of the warp. lanes: those that share; 1: a thread
    has its own group.

    ``taken(bits, lane)``: from bits of this thread's group those of the elements that it applies;
    ``given_back(bits, lane)``: the other way. All threads of the warp have to call these.
    ``position(j, lane)``: where element j of those that it applies is, behind the first of the
    warp's.
    """
    t, count = target(where), ITEMSIZE[dtype]
    device, from_lane, per = t.device, t.from_lane, 16 // count
    apart = max(lanes // count, 1)  # threads that a chunk c has its bits from
    of_chunk, down, last = U32((1 << per) - 1), U32(count.bit_length() - 1), U32(count - 1)
    wrap, turn = U32(lanes - 1), U32(apart.bit_length() - 1)
    in_chunk, which = U32(per - 1), U32(per.bit_length() - 1)

    def all_chunks(part: Any) -> Any:
        def joined(f: Any, g: Any) -> Any:
            @device
            def both(bits, lane):
                return U32(f(bits, lane) | g(bits, lane))

            return both

        return reduce(joined, map(part, range(count)))

    def taken(c: int) -> Any:
        first, up = U32(c * apart), U32(c * per)

        @device
        def bits_of(bits, lane):
            there = from_lane(bits, U32(first + (lane >> down)))
            return U32((there >> U32(U32(per) * (lane & last)) & of_chunk) << up)

        return bits_of

    def given_back(c: int) -> Any:
        up = U32(c * per)

        @device
        def bits_of(bits, lane):
            there = from_lane(bits, U32(((lane << down) + U32(c)) & wrap))
            return U32((there >> U32(U32(per) * (lane >> turn)) & of_chunk) << up)

        return bits_of

    @device
    def position(j, lane):
        return U64((U32(j >> which) * U32(lanes) + lane) * U32(per) + (j & in_chunk))

    @device
    def itself(bits, lane):
        return bits

    shared = lanes > 1
    return SimpleNamespace(
        taken=all_chunks(taken) if shared else itself,
        given_back=all_chunks(given_back) if shared else itself,
        position=position,
    )


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
def chunks(where: str, dtype: str, op: str, lanes: int) -> Any:
    """`operation` on 16 elements at multiples of 16 bytes: ``f(arrays, run, k, constants)`` to
    (missing, active), bits of elements. arrays: addresses of x, residual, bias and y. run: the
    bytes from the first element on to the end of y; its place in bias, and how long that is; with
    lanes > 1 what follows are the other chunks of `share`. Chunks with a NaN, or beyond the end,
    are missing: y is as it was there.
    """
    # What more would take in registers, threads would miss.
    at_once = 2 if op in ("dropout", "alpha_dropout") else 1
    device = target(where).device

    def joined(f: Any, g: Any) -> Any:
        @device
        def both(arrays, run, k, constants):
            missing, active = f(arrays, run, k, constants)
            more, a = g(arrays, run, k, constants)
            return U32(missing | more), U32(active | a)

        return both

    starts = range(0, ITEMSIZE[dtype], at_once)
    return reduce(joined, (_stored(where, dtype, op, lanes, c, at_once) for c in starts))


def _stored(where: str, dtype: str, op: str, lanes: int, c: int, count: int) -> Any:
    """One or two chunks from c on. Loads come before stores: y may be x or residual."""
    t = target(where)
    device, put = t.device, t.store16d if dtype == "float64" else t.store16
    per = 16 // ITEMSIZE[dtype]  # elements of a chunk
    bits = ((1 << per) - 1) << c * per

    def one_of(c: int) -> tuple[Any, ...]:
        return chunk(where, dtype, op, c), _operands(where, dtype, op, lanes, c)

    f0, load0 = one_of(c)
    at0, bits0, end0 = U64(16 * lanes * c), U32(bits), U64(16 * lanes * c + 16)

    @device
    def one(arrays, run, k, constants):
        missing, active = bits0, NONE
        if run[0] >= end0:
            y0, nan0, active = f0(load0(arrays, run), k, constants)
            if not nan0:
                put(arrays[3] + at0, y0)
                missing = NONE
        return U32(missing), U32(active)

    if count == 1:
        return one
    f1, load1 = one_of(c + 1)
    at1, bits1, end1 = at0 + U64(16 * lanes), bits0 << U32(per), end0 + U64(16 * lanes)

    @device
    def two(arrays, run, k, constants):
        missing, active = U32(bits0 | bits1), NONE
        if run[0] >= end1:
            operands0, operands1 = load0(arrays, run), load1(arrays, run)
            y0, nan0, a0 = f0(operands0, k, constants)
            y1, nan1, a1 = f1(operands1, k, constants)
            active = U32(a0 | a1)
            if not nan0:
                put(arrays[3] + at0, y0)
                missing = U32(missing & bits1)
            if not nan1:
                put(arrays[3] + at1, y1)
                missing = U32(missing & bits0)
        return missing, active

    return two


def _operands(where: str, dtype: str, op: str, lanes: int, c: int) -> Any:
    """``f(arrays, run)``: 16 bytes each of what the op reads, of chunk c."""
    t, wide = target(where), dtype == "float64"
    load16, nothing = (t.load16d, (U64(0), U64(0))) if wide else (t.load16, (NONE,) * 4)
    has_bias, has_residual, reads = op in BIAS, op in RESIDUAL, op != "zero"
    at, item = U64(16 * lanes * c), U64(ITEMSIZE[dtype])
    further, around = U32(16 // ITEMSIZE[dtype] * lanes * c), lanes > 1

    @t.device
    def bias_at(run):
        _, column, row = run
        column = U32(column + further)
        return U64(column % row if around else column) * item

    @t.device
    def load(arrays, run):
        x, residual, bias, _ = arrays
        return (
            load16(x + at) if reads else nothing,
            load16(residual + at) if has_residual else nothing,
            load16(bias + bias_at(run)) if has_bias else nothing,
        )

    return load
