"""The kernels of `fastdrop.cuda`: one source that Numba compiles for the GPU, and tests for CPUs.

Numba makes ``uint32 + uint32`` a uint64, and ``uint64 + int64`` a float64: so every operation is
wrapped in the type it has, and every constant has one. What is not in the target's primitives
(`targets`) is plain Python on NumPy's scalars, which the CUDA simulator runs.

A thread owns 16 elements at a time, the Philox block that decides them and their 2 bytes of the
packed mask; it loads and stores 16 bytes at once. What is called *raw* is the bits of an element:
uint64 for float64, else uint32.
"""

from __future__ import annotations

from functools import cache, reduce
from math import factorial
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdrop import rng
from fastdrop._core import PARTS
from fastdrop.backends.cuda.kernels.targets import target
from fastdrop.reference import noise

U32, U64 = np.uint32, np.uint64

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
OPS = ("dropout", "dropout_add", "bias_dropout_add", "relu_dropout", "alpha_dropout", "zoneout")
RESIDUAL = ("dropout_add", "bias_dropout_add", "zoneout", "mean")  # the ops that read it

# What an invalid operation gives on x86, which the CPU's kernels leave as it is.
NAN32, NAN64 = U32(0xFFC00000), U64(0xFFF8000000000000)
QUIET32, QUIET64 = U32(0x00400000), U64(0x0008000000000000)
INF16, QUIET16, SIGN16 = U32(0x7C00), U32(0x0200), U32(0x8000)


def round_keys(seed: int) -> tuple[np.uint32, ...]:
    """The two words of each round's key."""
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    weyl = ((r * 0x9E3779B9, r * 0xBB67AE85) for r in range(rng.ROUNDS))
    return tuple(U32(k & 0xFFFFFFFF) for a, b in weyl for k in (k0 + a, k1 + b))


@cache
def philox(where: str) -> SimpleNamespace:
    """Philox4x32 with 7 rounds, and from its blocks to keep bits.

    keys: those of the rounds, see `round_keys`. As kernel arguments they cost no registers.
    """
    t = target(where)
    device = t.device
    high, clz, funnel = t.high, t.clz, t.funnel
    m0, m1 = U32(0xD2511F53), U32(0xCD9E8D57)
    bytes_domain, refinement_domain, bits_domain = (
        U32(d << 28) for d in (rng.BYTES, rng.REFINEMENT, rng.BITS)
    )

    @device
    def round_of(c0, c1, c2, c3, k0, k1):
        return (
            U32(U32(high(c2, m1) ^ c1) ^ k0),
            U32(c2 * m1),
            U32(U32(high(c0, m0) ^ c3) ^ k1),
            U32(c0 * m0),
        )

    @device
    def block(number, domain, keys, call):
        """The four words of a block; domain is in the upper 4 bits of its word."""
        c0 = U32(number)
        c1 = U32(U32(number >> U64(32)) | domain)
        c2 = U32(call)
        c3 = U32(call >> U64(32))
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[0], keys[1])
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[2], keys[3])
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[4], keys[5])
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[6], keys[7])
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[8], keys[9])
        c0, c1, c2, c3 = round_of(c0, c1, c2, c3, keys[10], keys[11])
        return round_of(c0, c1, c2, c3, keys[12], keys[13])

    @device
    def word(index, domain, keys, call):
        """Word `index` of a keystream."""
        a, b, c, d = block(U64(index >> U64(2)), domain, keys, call)
        at = U32(index)
        lower = b if U32(at & U32(1)) != U32(0) else a
        upper = d if U32(at & U32(1)) != U32(0) else c
        return upper if U32(at & U32(2)) != U32(0) else lower

    @device
    def at_least(w, low, under):
        """Bits 7, 15, 23, 31: whether bytes 0 ... 3 of w are at least t. low: t in each byte, less
        128 if t is not below; under: all bits set if t is below 128, else none.
        """
        above = U32(U32(w | U32(0x80808080)) - low)
        most = U32(U32(w & above) | U32(under & U32(w | above)))  # of three bits, what two are
        return U32(most & U32(0x80808080))

    @device
    def gathered(flags):
        """Bits 7, 15, 23, 31 as bits 28 ... 31."""
        return U32(flags * U32(0x00204081))

    @device
    def equal(w, tie):
        """Bits 0, 8, 16, 24: whether bytes 0 ... 3 of the two words are equal."""
        v = U32(w ^ tie)
        v = U32(U32(U32(v & U32(0x7F7F7F7F)) + U32(0x7F7F7F7F)) | v)
        return U32(U32(~U32(v | U32(0x7F7F7F7F))) >> U32(7))

    @device
    def refined(keep, w0, w1, w2, w3, number, t, f, keys, call):
        """Keep bits of 16 elements, of which those whose byte equals t are looked at again."""
        tie = U32(t * U32(0x01010101))
        # Element 4 j + k has bit 8 k + j here.
        ties = U32(U32(equal(w0, tie) | U32(equal(w1, tie) << U32(1))))
        ties = U32(ties | U32(U32(equal(w2, tie) << U32(2)) | U32(equal(w3, tie) << U32(3))))
        while ties != U32(0):
            # The highest first, wherever it is, so that the threads of a warp go together.
            bit = U32(U32(31) - clz(ties))
            ties = U32(ties ^ U32(U32(1) << bit))
            at = U32(U32(U32(bit & U32(3)) << U32(2)) | U32(bit >> U32(3)))
            w = word(U64(U64(number << U64(4)) | U64(at)), refinement_domain, keys, call)
            if U32(w >> U32(8)) < f:
                keep = U32(keep & U32(~U32(U32(1) << at)))
        return keep

    @device
    def keep_bytes(number, t, f, keys, call):
        """Keep bits of elements 16 * number ... 16 * number + 15, at any rate but 1/2."""
        w0, w1, w2, w3 = block(number, bytes_domain, keys, call)
        half = U32(t >> U32(7)) != U32(0)
        low = U32(U32(t - U32(128) if half else t) * U32(0x01010101))
        under = U32(0) if half else U32(0xFFFFFFFF)
        keep = U32(gathered(at_least(w3, low, under)) >> U32(28))
        keep = funnel(keep, gathered(at_least(w2, low, under)), U32(4))
        keep = funnel(keep, gathered(at_least(w1, low, under)), U32(4))
        keep = funnel(keep, gathered(at_least(w0, low, under)), U32(4))
        if f != U32(0):
            keep = refined(keep, w0, w1, w2, w3, number, t, f, keys, call)
        return keep

    @device
    def keep_bits(number, t, f, keys, call):
        """The same at rate 1/2."""
        w = word(U64(number >> U64(1)), bits_domain, keys, call)
        return U32(U32(w >> U32(U32(U32(number) & U32(1)) << U32(4))) & U32(0xFFFF))

    draws = {"bytes": keep_bytes, "bits": keep_bits}

    def any_start(draw: Any) -> Any:
        """The draw of 16 elements from any index."""

        @device
        def keep(index, t, f, keys, call):
            number = U64(index >> U64(4))
            low = draw(number, t, f, keys, call)
            high = draw(U64(number + U64(1)), t, f, keys, call)
            both = U32(low | U32(high << U32(16)))
            return U32(U32(both >> U32(U32(index) & U32(15))) & U32(0xFFFF))

        return keep

    return SimpleNamespace(
        block=block,
        word=word,
        draws=draws,
        any_start={route: any_start(draw) for route, draw in draws.items()},
    )


@cache
def elements(where: str, dtype: str) -> SimpleNamespace:
    """Arithmetic on elements of one dtype, in its compute type, NaN as on a CPU.

    A GPU makes every NaN the same; here the first operand that is one is the result, with its
    payload, as on x86. ``load``, ``store``: one raw element. ``decode``, ``encode``: raw to compute
    type and back. ``times(v, s)``: v * s for an s that is neither NaN nor 0 nor infinite.
    """
    t = target(where)
    device = t.device
    wide = dtype == "float64"
    suffix = "64" if wide else "32"
    bits, value = (t.b64, t.f64) if wide else (t.b32, t.f32)
    add, sub, mul, div = (getattr(t, name + suffix) for name in ("add", "sub", "mul", "div"))
    raw, quiet, invalid = (U64, QUIET64, NAN64) if wide else (U32, QUIET32, NAN32)
    zero = (np.float64 if wide else np.float32)(0)
    half, pack = t.half, (t.halves if dtype == "float16" else t.bfloats)

    def careful(operation: Any) -> Any:
        @device
        def result(a, b):
            r = operation(a, b)
            if r != r:
                if a != a:
                    r = value(raw(bits(a) | quiet))
                elif b != b:
                    r = value(raw(bits(b) | quiet))
                else:
                    r = value(invalid)
            return r

        return result

    @device
    def times(v, s):
        r = mul(v, s)
        return r if v == v else value(raw(bits(v) | quiet))

    if dtype == "float16":

        @device
        def decode(x):
            v = half(x)
            if U32(x & U32(0x7FFF)) > U32(0x7C00):
                payload = U32(U32(x & U32(0x3FF)) << U32(13))
                sign = U32(U32(x & U32(0x8000)) << U32(16))
                v = value(U32(U32(payload | sign) | U32(0x7FC00000)))
            return v

        @device
        def nan16(v):
            u = bits(v)
            payload = U32(U32(u >> U32(13)) & U32(0x3FF))
            return U32(U32(payload | U32(U32(u >> U32(16)) & U32(0x8000))) | U32(0x7E00))

    elif dtype == "bfloat16":

        @device
        def decode(x):
            return value(U32(x << U32(16)))

        @device
        def nan16(v):
            return U32(bits(v) >> U32(16))

    if ITEMSIZE[dtype] == 2:

        @device
        def encode2(low, high):
            """Two values to a word."""
            word = pack(low, high)
            if low != low:
                word = U32(U32(word & U32(0xFFFF0000)) | nan16(low))
            if high != high:
                word = U32(U32(word & U32(0x0000FFFF)) | U32(nan16(high) << U32(16)))
            return word

        @device
        def encode(v):
            return U32(encode2(v, zero) & U32(0xFFFF))

    else:
        decode, encode, encode2 = value, bits, None

    item = ITEMSIZE[dtype]
    return SimpleNamespace(
        zero=zero,
        nan=type(zero)(np.nan),
        item=U64(item),
        real_item=U64(8 if wide else 4),
        load_real=t.load_u64 if wide else t.load_u32,
        load=getattr(t, f"load_u{8 * item}"),
        store=getattr(t, f"store_u{8 * item}"),
        decode=decode,
        encode=encode,
        encode2=encode2,
        pack=pack,
        bits=bits,
        value=value,
        times=times,
        add=careful(add),
        mul=careful(mul),
        exact=SimpleNamespace(add=add, sub=sub, mul=mul, div=div),
    )


@cache
def operation(where: str, dtype: str, op: str, careful: bool) -> Any:
    """``f(x, residual, bias, keep, scale, shift, dropped)`` to (y, active), in the compute type.

    active: 1 where `relu_dropout` lets a gradient through. Not careful: of a NaN in y nothing
    counts but that it is one.
    """
    device = target(where).device
    e = elements(where, dtype)
    zero, no, yes = e.zero, U32(0), U32(1)
    add, mul, times = (e.add, e.mul, e.times) if careful else (e.exact.add, *2 * [e.exact.mul])

    if op == "dropout":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            # dropped is 0, which the compiler does not know: of a selection, which is one
            # instruction, it would make a mask of bits, which is three.
            y = times(x, scale)
            return (y if keep else dropped), no

    elif op == "dropout_add":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            v = times(x, scale)
            return add(residual, v if keep else zero), no

    elif op == "bias_dropout_add":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            v = times(add(x, bias), scale)
            return add(residual, v if keep else zero), no

    elif op == "relu_dropout":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            v = times(x, scale)
            active = keep and not (v <= zero)
            return (v if active else zero), (yes if active else no)

    elif op == "alpha_dropout":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            v = add(times(x, scale), shift)
            return (v if keep else dropped), no

    elif op == "mean":

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            return add(mul(residual, shift), mul(x, scale)), no

    else:  # zoneout

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            return (x if keep else residual), no

    return element


@cache
def chunk(where: str, dtype: str, op: str, c: int) -> Any:
    """`operation` on 16 bytes, the c-th of 16 elements:
    ``f(x, residual, bias, k, scale, shift, dropped)`` to (y, nan, active).

    x, residual, bias and y are four words each, or two uint64 with float64. k and active: the bits
    of all 16, of which active has those of this chunk. nan: whether there may be one in y, which
    then is not to be used.
    """
    t = target(where)
    device = t.device
    e = elements(where, dtype)
    element = operation(where, dtype, op, False)
    decode, encode, value, pack, half = e.decode, e.encode, e.value, e.pack, t.half
    item = ITEMSIZE[dtype]
    none = U32(0)

    def flag(k: int) -> Any:
        """Of the chunk's element k, its bit."""
        return U32(1 << (16 // item * c + k))

    @device
    def is_nan(a, b):
        return (a != a) | (b != b)

    if item == 8:
        bit0, bit1 = flag(0), flag(1)

        @device
        def whole(x, r, b, k, scale, shift, dropped):
            keep0, keep1 = U32(k & bit0) != none, U32(k & bit1) != none
            x0, r0, b0 = decode(x[0]), decode(r[0]), decode(b[0])
            x1, r1, b1 = decode(x[1]), decode(r[1]), decode(b[1])
            y0, a0 = element(x0, r0, b0, keep0, scale, shift, dropped)
            y1, a1 = element(x1, r1, b1, keep1, scale, shift, dropped)
            active = U32(U32(a0 * bit0) | U32(a1 * bit1))
            return (encode(y0), encode(y1)), is_nan(y0, y1), active

        return whole

    if item == 4:

        def word_of(bit: Any) -> Any:
            @device
            def word(x, r, b, k, scale, shift, dropped):
                keep = U32(k & bit) != none
                y, a = element(decode(x), decode(r), decode(b), keep, scale, shift, dropped)
                return y, U32(a * bit)

            return word

        word0, word1, word2, word3 = (word_of(flag(k)) for k in range(4))

        @device
        def whole(x, r, b, k, scale, shift, dropped):
            y0, a0 = word0(x[0], r[0], b[0], k, scale, shift, dropped)
            y1, a1 = word1(x[1], r[1], b[1], k, scale, shift, dropped)
            y2, a2 = word2(x[2], r[2], b[2], k, scale, shift, dropped)
            y3, a3 = word3(x[3], r[3], b[3], k, scale, shift, dropped)
            nan = is_nan(y0, y1) | is_nan(y2, y3)
            y = encode(y0), encode(y1), encode(y2), encode(y3)
            return y, nan, U32(U32(a0 | a1) | U32(a2 | a3))

        return whole

    # Two elements a word. What is dropped is masked out of the operands, which is less work, where
    # y is then what it has to be.
    signs = t.upper_signs if c else t.lower_signs

    if dtype == "float16":

        @device
        def both(w):
            return half(U32(w & U32(0xFFFF))), half(U32(w >> U32(16)))

        @device
        def has_nan(w):
            above = U32(U32(w & U32(0x7FFF7FFF)) + U32(0x03FF03FF))
            return U32(above & U32(0x80008000)) != none

    else:

        @device
        def both(w):
            return decode(w), value(U32(w & U32(0xFFFF0000)))

        @device
        def has_nan(w):  # zoneout asks, and leaves them as they are
            return False

    def words_of(j: int) -> Any:
        up, down = U32(7 - 2 * j), U32(15 - 8 * c - 2 * j)

        @device
        def mask(k):
            """Of the two elements, all bits or none. k has those of odd ones from bit 16 on."""
            return signs(U32(k << up))

        if op == "relu_dropout":

            @device
            def active_of(y):
                """The bits of those that are not 0, where `mask` finds them; y has no signs, and
                nothing above 0 becomes 0 by a scale of 1 or more."""
                return U32(U32(U32(y + U32(0x7FFF7FFF)) & U32(0x80008000)) >> down)

        else:

            @device
            def active_of(y):
                return none

        if op == "zoneout":

            @device
            def word(x, r, b, k, scale, shift, dropped):
                m = mask(k)
                y = U32(U32(x & m) | U32(r & U32(~m)))
                return y, has_nan(y), none

        elif op == "alpha_dropout":

            @device
            def word(x, r, b, k, scale, shift, dropped):
                m = mask(k)
                x0, x1 = both(x)
                y0, _ = element(x0, x0, x0, True, scale, shift, dropped)
                y1, _ = element(x1, x1, x1, True, scale, shift, dropped)
                y = U32(pack(y0, y1) & m) | U32(pack(dropped, dropped) & U32(~m))
                return U32(y), is_nan(y0, y1), none

        else:

            @device
            def word(x, r, b, k, scale, shift, dropped):
                m = mask(k)
                x0, x1 = both(U32(x & m))
                r0, r1 = both(r)
                b0, b1 = both(U32(b & m))
                y0, _ = element(x0, r0, b0, True, scale, shift, dropped)
                y1, _ = element(x1, r1, b1, True, scale, shift, dropped)
                y = pack(y0, y1)
                return y, is_nan(y0, y1), active_of(y)

        return word

    word0, word1, word2, word3 = (words_of(j) for j in range(4))

    @device
    def whole(x, r, b, k, scale, shift, dropped):
        k = U32(k | U32(k << U32(15)))
        y0, nan0, a0 = word0(x[0], r[0], b[0], k, scale, shift, dropped)
        y1, nan1, a1 = word1(x[1], r[1], b[1], k, scale, shift, dropped)
        y2, nan2, a2 = word2(x[2], r[2], b[2], k, scale, shift, dropped)
        y3, nan3, a3 = word3(x[3], r[3], b[3], k, scale, shift, dropped)
        nan = (nan0 | nan1) | (nan2 | nan3)
        active = U32(U32(a0 | a1) | U32(a2 | a3))
        return (y0, y1, y2, y3), nan, U32(U32(active | U32(active >> U32(15))) & U32(0xFFFF))

    return whole


@cache
def chunks(where: str, dtype: str, op: str) -> Any:
    """`operation` on 16 elements at multiples of 16 bytes: ``f(x, residual, bias, y, k, scale,
    shift, dropped)`` to (missing, active), bits of elements. Of chunks with a NaN all are missing:
    y is as it was there.
    """
    p = target(where)
    item = ITEMSIZE[dtype]
    per = 16 // item  # elements of a chunk
    has_bias, has_residual = op == "bias_dropout_add", op in RESIDUAL
    none = U32(0)

    if item == 8:
        nothing, load16, store16d = (U64(0), U64(0)), p.load16d, p.store16d

        @p.device
        def put(y, v):
            store16d(y, v[0], v[1])

    else:
        nothing, load16, store16 = (U32(0), U32(0), U32(0), U32(0)), p.load16, p.store16

        @p.device
        def put(y, v):
            store16(y, v[0], v[1], v[2], v[3])

    @p.device
    def operands(x, r, b, at):
        v = load16(U64(x + at))
        return (
            v,
            load16(U64(r + at)) if has_residual else nothing,
            load16(U64(b + at)) if has_bias else nothing,
        )

    def some(c: int, count: int) -> Any:
        """One or two chunks from c on. Loads come before stores: y may be x or residual."""
        f0, at0, bits0 = chunk(where, dtype, op, c), U64(16 * c), U32(((1 << per) - 1) << c * per)

        @p.device
        def one(x, r, b, y, k, scale, shift, dropped):
            x0, r0, b0 = operands(x, r, b, at0)
            y0, nan0, a0 = f0(x0, r0, b0, k, scale, shift, dropped)
            if not nan0:
                put(U64(y + at0), y0)
            return (bits0 if nan0 else none), a0

        if count == 1:
            return one
        f1, at1, bits1 = chunk(where, dtype, op, c + 1), U64(at0 + U64(16)), U32(bits0 << U32(per))

        @p.device
        def two(x, r, b, y, k, scale, shift, dropped):
            x0, r0, b0 = operands(x, r, b, at0)
            x1, r1, b1 = operands(x, r, b, at1)
            y0, nan0, a0 = f0(x0, r0, b0, k, scale, shift, dropped)
            y1, nan1, a1 = f1(x1, r1, b1, k, scale, shift, dropped)
            if not nan0:
                put(U64(y + at0), y0)
            if not nan1:
                put(U64(y + at1), y1)
            missing = U32(U32(bits0 if nan0 else none) | U32(bits1 if nan1 else none))
            return missing, U32(a0 | a1)

        return two

    def joined(f: Any, g: Any) -> Any:
        @p.device
        def both(x, r, b, y, k, scale, shift, dropped):
            missing, active = f(x, r, b, y, k, scale, shift, dropped)
            more, a = g(x, r, b, y, k, scale, shift, dropped)
            return U32(missing | more), U32(active | a)

        return both

    at_once = (
        2 if op in ("dropout", "alpha_dropout") else 1
    )  # what more would take in registers, threads would miss
    return reduce(joined, (some(c, at_once) for c in range(0, item, at_once)))


@cache
def dropout_kernel(where: str, dtype: str, op: str, source: str, shifted: bool) -> Any:
    """The kernel of one op on contiguous arrays of n elements.

    Parameters
    ----------
    op : str
        One of `OPS`, or "mean": x * scale + residual * shift.
    source : {"bytes", "bits", "given", "same", "rows", "examples"}
        Whether keep bits are drawn, at any rate but 1/2 or at 1/2, or read from `given`, or are the
        16 bits of t again and again. "rows": y has rows of x, which is a table, by number, and
        `given` a bit for each row of the table, or is 0 if none is dropped. "examples": as "given",
        and each example has a scale of its own.
    shifted : bool
        Whether `start`, the index of element 0, may be no multiple of 16.

    Of the kernel's parameters, those are ignored that op and source have no use for; addresses are
    0 then. Keep bits (for relu_dropout: those of active elements) go to `saved` if it is not 0.
    Packed bits begin at multiples of 2 bytes and have an even number of them. bias repeats after
    `row` elements; t and f are the upper 8 (9, at rate 1) and the lower 24 bits of the rate's
    threshold; with `given`, t is what its bits are XORed with, 16 at a time. With "rows" and
    "examples" such a one has `row` elements, and `own` their numbers in x, uint64, or their scales,
    of the compute type; x has `words` rows, and what is in none of them is NaN.

    Elements go one by one where there is no whole group of 16 at multiples of 16 bytes, or where
    bias begins anew within it, or a NaN has to be made the one of a CPU.
    """
    p = target(where)
    e = elements(where, dtype)
    careful, whole = operation(where, dtype, op, True), chunks(where, dtype, op)
    decode, encode = e.decode, e.encode
    first, step, clz = p.first, p.step, p.clz
    load_u16, store_u16, load, store, nan = p.load_u16, p.store_u16, e.load, e.store, e.nan
    item, zero, active_bits = e.item, e.zero, op == "relu_dropout"
    has_bias, has_residual = op == "bias_dropout_add", op in RESIDUAL
    rows, examples = source == "rows", source == "examples"
    if source in ("given", "examples"):

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return U32(load_u16(U64(given + U64(group << U64(1)))) ^ t)

    elif source in ("same", "rows"):

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return t

    elif shifted:
        draw = philox(where).any_start[source]

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return draw(U64(start + U64(group << U64(4))), t, f, keys, call)

    else:
        draw = philox(where).draws[source]

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return draw(U64(U64(start >> U64(4)) + group), t, f, keys, call)

    if rows:
        load_u64, bit = p.load_u64, packed(where).one

        @p.device
        def own_of(x, given, own, i, row, words, keep, scale):
            place = U64(i // row)
            number = load_u64(U64(own + U64(place << U64(3))))
            at = U64(U64(number * row) + U64(i - U64(place * row)))
            known = number < words
            keep = U32(0xFFFF)
            if known and given != U64(0):
                keep = U32(U32(0) - bit(given, number))
            return U64(x + U64(at * item)), keep, scale, known

    elif examples:
        load_real, value, size = e.load_real, e.value, e.real_item

        @p.device
        def own_of(x, given, own, i, row, words, keep, scale):
            scale = value(load_real(U64(own + U64(U64(i // row) * size))))
            return U64(x + U64(i * item)), keep, scale, True

    else:

        @p.device
        def own_of(x, given, own, i, row, words, keep, scale):
            """Of element i: its address, keep bits, scale, and whether x has it."""
            return U64(x + U64(i * item)), keep, scale, True

    @p.device
    def single(x, residual, bias, y, given, own, i, row, words, keep, scale, shift, dropped):
        """Element i, whether it is active."""
        at = U64(i * item)
        place, keep, scale, known = own_of(x, given, own, i, row, words, keep, scale)
        r, b = zero, zero
        if has_residual:
            r = decode(load(U64(residual + at)))
        if has_bias:
            b = decode(load(U64(bias + U64(U64(i % row) * item))))
        v = decode(load(place)) if known else nan
        v, active = careful(v, r, b, keep != U32(0), scale, shift, dropped)
        if rows and known and given == U64(0):
            store(U64(y + at), load(place))  # a NaN as it is
        else:
            store(U64(y + at), encode(v))
        return active

    def dropout(
        x, residual, bias, y, given, saved, own, n, row, words, start,
        keys, call, t, f, scale, shift, dropped,
    ):  # fmt: skip
        group = first()
        aligned = U64(U64(U64(x | y) | U64(residual | bias)) & U64(15)) == U64(0)
        column = ahead = U32(0)
        if has_bias:
            aligned = aligned and U64(row & U64(0xFFFFFFFF8000000F)) == U64(0)
            column = U32(U64(group << U64(4)) % row)  # in bias, of this group, if aligned
            ahead = U32(U64(step() << U64(4)) % row)
        if rows or examples:
            aligned = aligned and U64(row & U64(15)) == U64(0)
        while U64(group << U64(4)) < n:
            i = U64(group << U64(4))
            left = U64(n - i)
            k = keep16(given, group, start, t, f, keys, call)
            place, k, s, known = own_of(x, given, own, i, row, words, k, scale)
            if aligned and known and left >= U64(16):
                at = U64(i * item)
                b = U64(bias + U64(U64(column) * item)) if has_bias else bias
                missing, active = whole(
                    place, U64(residual + at), b, U64(y + at), k, s, shift, dropped
                )
            else:
                missing, active = U32(0xFFFF), U32(0)
                if left < U64(16):
                    missing = U32(U32(U32(1) << U32(left)) - U32(1))
                    k = U32(k & missing)
            while missing != U32(0):
                j = U32(U32(31) - clz(missing))
                bit = U32(U32(1) << j)
                missing = U32(missing ^ bit)
                active = U32(active & U32(~bit))
                a = single(
                    x,
                    residual,
                    bias,
                    y,
                    given,
                    own,
                    U64(i + U64(j)),
                    row,
                    words,
                    U32(k & bit),
                    scale,
                    shift,
                    dropped,
                )
                active = U32(active | U32(a << j))
            if saved != U64(0):
                store_u16(U64(saved + U64(group << U64(1))), active if active_bits else k)
            group = U64(group + step())
            if has_bias:
                column = U32(column + ahead)
                column = U32(column - U32(row)) if column >= U32(row) else column

    return p.kernel(dropout)


@cache
def positions(where: str, axes: int, small: bool) -> Any:
    """``f(i, shape, strides)``, the dot product of element i's C-order coordinates and the strides,
    and ``g(i, length)``, how many elements of its row of the last axis begin with it.

    small: i and all lengths are below 2^32, so that the divisions are of 32 bits.
    """
    device = target(where).device

    def behind(outer: Any, d: int) -> Any:
        @device
        def position(i, shape, strides):
            q = U64(U32(U32(i) // U32(shape[d]))) if small else U64(i // shape[d])
            own = U64(U64(i - U64(q * shape[d])) * strides[d])
            return U64(outer(q, shape, strides) + own)

        return position

    @device
    def outermost(i, shape, strides):
        return U64(i * strides[0])

    @device
    def left(i, length):
        if small:
            return U64(U32(length) - U32(U32(i) % U32(length)))
        return U64(length - U64(i % length))

    position = outermost
    for d in range(1, axes):
        position = behind(position, d)
    return position, left


@cache
def draw_kernel(where: str, dtype: str, source: str, shifted: bool, axes: int, small: bool) -> Any:
    """Packed keep bits of n elements: element i's stream index is `start` plus i, or with axes > 0
    plus its position. dtype is ignored.
    """
    p = target(where)
    first, step, store_u16 = p.first, p.step, p.store_u16
    aligned, anywhere = philox(where).draws[source], philox(where).any_start[source]

    if axes:
        position, left_of = positions(where, axes, small)
        last = axes - 1

        @p.device
        def keep16(i, n, start, shape, strides, keys, call, t, f):
            m = U64(n - i)
            m = U64(16) if m > U64(16) else m
            index = U64(start + position(i, shape, strides))
            left = left_of(i, shape[last])
            if left >= m and strides[last] == U64(1):
                return anywhere(index, t, f, keys, call)
            k = U32(0)
            j = U64(0)
            while j < m:
                index = U64(start + position(U64(i + j), shape, strides))
                group = aligned(U64(index >> U64(4)), t, f, keys, call)
                k = U32(k | U32(U32(U32(group >> U32(U32(index) & U32(15))) & U32(1)) << U32(j)))
                j = U64(j + U64(1))
            return k

    elif shifted:

        @p.device
        def keep16(i, n, start, shape, strides, keys, call, t, f):
            return anywhere(U64(start + i), t, f, keys, call)

    else:

        @p.device
        def keep16(i, n, start, shape, strides, keys, call, t, f):
            return aligned(U64(U64(start + i) >> U64(4)), t, f, keys, call)

    def draw(saved, n, start, shape, strides, keys, call, t, f):
        group = first()
        groups = U64(U64(n + U64(15)) >> U64(4))
        while group < groups:
            i = U64(group << U64(4))
            k = keep16(i, n, start, shape, strides, keys, call, t, f)
            if U64(n - i) < U64(16):
                k = U32(k & U32(U32(U32(1) << U32(n - i)) - U32(1)))
            store_u16(U64(saved + U64(group << U64(1))), k)
            group = U64(group + step())

    return p.kernel(draw)


@cache
def packed(where: str) -> SimpleNamespace:
    """``one(given, b)``: bit b of packed bits, 0 or 1; ``sixteen(given, b)``: those from it on."""
    t = target(where)
    load_u8 = t.load_u8

    @t.device
    def one(given, b):
        return U32(U32(load_u8(U64(given + U64(b >> U64(3)))) >> U32(U32(b) & U32(7))) & U32(1))

    @t.device
    def sixteen(given, b):
        byte = U64(given + U64(b >> U64(3)))
        end = U64(given + U64(U64(b + U64(15)) >> U64(3)))
        k = U32(load_u8(byte) | U32(load_u8(U64(byte + U64(1))) << U32(8)))
        return U32(U32(k | U32(load_u8(end) << U32(16))) >> U32(U32(b) & U32(7)))

    return SimpleNamespace(one=one, sixteen=sixteen)


@cache
def spread_kernel(where: str, dtype: str, axes: int, small: bool) -> Any:
    """Packed bits from packed bits: bit i of n is the one at i's position. dtype is ignored."""
    p = target(where)
    first, step, store_u16, last = p.first, p.step, p.store_u16, axes - 1
    bit_at, sixteen = packed(where).one, packed(where).sixteen
    position, left_of = positions(where, axes, small)

    @p.device
    def bits16(given, i, n, shape, strides):
        m = U64(n - i)
        m = U64(16) if m > U64(16) else m
        left = left_of(i, shape[last])
        b = position(i, shape, strides)
        k = U32(0)
        if left >= m and strides[last] == U64(0):
            k = U32(U32(0) - bit_at(given, b))
        elif left >= U64(16) and strides[last] == U64(1):
            k = sixteen(given, b)
        else:
            j = U64(0)
            while j < m:
                k = U32(k | U32(bit_at(given, b) << U32(j)))
                j = U64(j + U64(1))
                left = U64(left - U64(1))
                b = U64(b + strides[last])
                if left == U64(0):
                    b = position(U64(i + j), shape, strides)
                    left = shape[last]
        return U32(k & U32(U32(U32(1) << U32(m)) - U32(1)))

    def spread(given, saved, n, shape, strides):
        group = first()
        groups = U64(U64(n + U64(15)) >> U64(4))
        while group < groups:
            i = U64(group << U64(4))
            store_u16(U64(saved + U64(group << U64(1))), bits16(given, i, n, shape, strides))
            group = U64(group + step())

    return p.kernel(spread)


@cache
def copy_kernel(where: str, dtype: str, axes: int, small: bool) -> Any:
    """n elements from any layout to any other; `strides` and `to` are in bytes."""
    p = target(where)
    e = elements(where, dtype)
    first, step, load, store = p.first, p.step, e.load, e.store
    position, _ = positions(where, axes, small)

    def copy(x, y, n, shape, strides, to):
        i = first()
        while i < n:
            at = U64(y + position(i, shape, to))
            store(at, load(U64(x + position(i, shape, strides))))
            i = U64(i + step())

    return p.kernel(copy)


@cache
def unpack_kernel(where: str, dtype: str) -> Any:
    """Packed bits to n bytes of 0 or 1, at a multiple of 16. dtype is ignored."""
    p = target(where)
    first, step, load_u16, store16, store_u8 = p.first, p.step, p.load_u16, p.store16, p.store_u8

    @p.device
    def bytes_of(k):
        """Bits 0 ... 3 to the lowest bits of four bytes."""
        return U32(U32(U32(k & U32(15)) * U32(0x00204081)) & U32(0x01010101))

    def unpack(given, y, n):
        group = first()
        groups = U64(U64(n + U64(15)) >> U64(4))
        while group < groups:
            i = U64(group << U64(4))
            k = load_u16(U64(given + U64(group << U64(1))))
            if U64(n - i) >= U64(16):
                a, b = bytes_of(k), bytes_of(U32(k >> U32(4)))
                c, d = bytes_of(U32(k >> U32(8))), bytes_of(U32(k >> U32(12)))
                store16(U64(y + i), a, b, c, d)
            else:
                while i < n:
                    store_u8(U64(y + i), U32(k & U32(1)))
                    k = U32(k >> U32(1))
                    i = U64(i + U64(1))
            group = U64(group + step())

    return p.kernel(unpack)


@cache
def variates(where: str) -> SimpleNamespace:
    """Continuous noise as `fastdrop.reference.noise` defines it, step by step, in float32."""
    t = target(where)
    device = t.device
    add, sub, mul, div, sqrt = t.add32, t.sub32, t.mul32, t.div32, t.sqrt32
    f32, b32, float_of = t.f32, t.b32, t.float_of
    block = philox(where).block
    F32 = np.float32
    one, half, ln2, two_ln2 = F32(1), F32(0.5), noise.LN2, F32(noise.LN2 + noise.LN2)
    quarter_turn, two24 = F32(np.pi / 4 * 2.0**-31), F32(2**24)
    normals, uniforms = U32(rng.NORMALS << 28), U32(rng.UNIFORMS << 28)

    logs, sins, cosines = (tuple(map(F32, c)) for c in (noise.LOG, noise.SIN, noise.COS))

    @device
    def horner4(v, x, c3, c2, c1, c0):
        """Four steps of Horner's rule."""
        v = add(mul(add(mul(v, x), c3), x), c2)
        return add(mul(add(mul(v, x), c1), x), c0)

    @device
    def log_series(x):
        v = horner4(logs[8], x, logs[7], logs[6], logs[5], logs[4])
        return horner4(v, x, logs[3], logs[2], logs[1], logs[0])

    @device
    def sin_series(x):
        v = add(mul(sins[3], x), sins[2])
        return add(mul(add(mul(v, x), sins[1]), x), sins[0])

    @device
    def cos_series(x):
        return horner4(cosines[4], x, cosines[3], cosines[2], cosines[1], cosines[0])

    @device
    def arithmetic_shift_23(x):
        """As int32."""
        up = U32(x >> U32(23))
        return U32(up | U32(0xFFFFFE00)) if U32(up & U32(0x100)) != U32(0) else up

    @device
    def log(x):
        bits = b32(x)
        e = arithmetic_shift_23(U32(bits - U32(0x3F3504F3)))
        f = sub(f32(U32(bits - U32(e << U32(23)))), one)
        return e, mul(f, log_series(f))

    @device
    def pair(radius, angle):
        """Radius times cosine, radius times sine."""
        u = add(float_of(U32(radius >> U32(1))), half)
        e, ln = log(u)
        r = sqrt(sub(mul(float_of(U32(U32(31) - e)), two_ln2), add(ln, ln)))
        x = mul(float_of(U32(angle << U32(2))), quarter_turn)
        square = mul(x, x)
        s = mul(x, sin_series(square))
        c = f32(U32(b32(cos_series(square)) ^ U32(U32(angle << U32(1)) & U32(0x80000000))))
        swapped = U32(angle >> U32(31)) != U32(0)
        return mul(r, s if swapped else c), mul(r, c if swapped else s)

    @device
    def normal4(number, keys, call):
        """The four variates of a block."""
        w0, w1, w2, w3 = block(number, normals, keys, call)
        a, c = pair(w0, w2)
        b, d = pair(w1, w3)
        return a, b, c, d

    @device
    def logistic(w):
        k = U32(w >> U32(9))
        odd = float_of(U32(U32(k + k) + U32(1)))
        e, ln = log(div(odd, sub(two24, odd)))
        return add(mul(float_of(e), ln2), ln)

    @device
    def logistic4(number, keys, call):
        w0, w1, w2, w3 = block(number, uniforms, keys, call)
        return logistic(w0), logistic(w1), logistic(w2), logistic(w3)

    return SimpleNamespace(normal=normal4, logistic=logistic4)


@cache
def noisy(where: str, dtype: str, op: str) -> tuple[Any, Any]:
    """A noise op on one element, x, and its noise e: ``f(e, sigma, logit, p, inverse, scale)``,
    its weight, and ``applied(x, g, weight)``.

    "scale", "scales": x (1 + sigma e); "add": x + sigma e; "concrete": x w; "gradient": what x,
    with dy in g, adds to the gradient of concrete dropout's logit; "slope": to that of sigma. See
    ``fd_noise_op`` in src/kernels/table.h.
    """
    t = target(where)
    device = t.device
    e = elements(where, dtype)
    wide = dtype == "float64"
    real, bits, value = (np.float64 if wide else np.float32), e.bits, e.value
    word, mantissa = (U64, U64(52)) if wide else (U32, U32(23))
    add, sub, mul, div = e.exact.add, e.exact.sub, e.exact.mul, e.exact.div
    careful_mul, one = e.mul, real(1)
    one_bits = word(0x3FF0000000000000 if wide else 0x3F800000)
    magic, most, log2e = (
        real(1.5 * 2.0 ** int(mantissa)),
        real(700 if wide else 87),
        real(1 / np.log(2)),
    )
    high = real(0.69314718036912381649 if wide else 0.693145751953125)
    low = real(1.90821492927058770002e-10 if wide else 1.4286068202862268e-06)

    terms = tuple(real(1 / factorial(k)) for k in range(14 if wide else 8))

    @device
    def two_steps(v, x, c1, c0):
        return add(mul(add(mul(v, x), c1), x), c0)

    if wide:

        @device
        def taylor(x):
            v = two_steps(add(mul(terms[13], x), terms[12]), x, terms[11], terms[10])
            v = two_steps(two_steps(v, x, terms[9], terms[8]), x, terms[7], terms[6])
            v = two_steps(two_steps(v, x, terms[5], terms[4]), x, terms[3], terms[2])
            return two_steps(v, x, terms[1], terms[0])

    else:

        @device
        def taylor(x):
            v = two_steps(add(mul(terms[7], x), terms[6]), x, terms[5], terms[4])
            return two_steps(two_steps(v, x, terms[3], terms[2]), x, terms[1], terms[0])

    @device
    def exp(x):
        shifted = add(mul(x, log2e), magic)
        n = sub(shifted, magic)
        r = sub(sub(x, mul(n, high)), mul(n, low))
        return mul(taylor(r), value(word(word(bits(shifted) << mantissa) + one_bits)))

    @device
    def odds_of(noise, logit, inverse):
        a = mul(add(logit, noise), inverse)
        a = a if a > -most else -most
        return exp(a if a < most else most)

    if op in ("scale", "scales"):

        @device
        def weight(noise, sigma, logit, p, inverse, scale):
            return add(one, mul(sigma, noise))

    elif op == "add":

        @device
        def weight(noise, sigma, logit, p, inverse, scale):
            return mul(sigma, noise)

    elif op == "concrete":

        @device
        def weight(noise, sigma, logit, p, inverse, scale):
            return div(scale, add(one, odds_of(noise, logit, inverse)))

    elif op == "slope":

        @device
        def weight(noise, sigma, logit, p, inverse, scale):
            return noise

    else:  # gradient

        @device
        def weight(noise, sigma, logit, p, inverse, scale):
            odds = odds_of(noise, logit, inverse)
            total = add(one, odds)
            w = div(scale, total)
            return mul(w, sub(p, mul(div(odds, total), inverse)))

    if op in ("slope", "gradient"):

        @device
        def applied(x, g, weight):
            return careful_mul(careful_mul(x, g), weight)

    else:
        with_weight = e.add if op == "add" else careful_mul

        @device
        def applied(x, g, weight):
            return with_weight(x, weight)

    return weight, applied


@cache
def noise_kernel(where: str, dtype: str, op: str, axes: int, small: bool) -> Any:
    """A noise op on n contiguous elements, whose indices are as in `draw_kernel`.

    axes = 0: `start` is a multiple of 4. op "gradient" and "slope" write the compute type, and read
    g. "scales" takes `sigmas`, of the compute type, which repeat after `row` elements, for sigma.
    """
    p = target(where)
    e = elements(where, dtype)
    wide, real_item = dtype == "float64", e.real_item
    decode, encode, encode2, load, store = e.decode, e.encode, e.encode2, e.load, e.store
    item, first, step, zero = e.item, p.first, p.step, e.zero
    load16, store16, load_u64, store_u64 = p.load16, p.store16, p.load_u64, p.store_u64
    load16d, store16d = p.load16d, p.store16d
    gradient, load_real, value = op in ("gradient", "slope"), e.load_real, e.value
    weight_of, applied = noisy(where, dtype, op)
    kind = "logistic" if op in ("concrete", "gradient") else "normal"
    four = getattr(variates(where), kind)
    itemsize = ITEMSIZE[dtype]
    wide_of = p.wide
    store_real, bits = (p.store_u64 if wide else p.store_u32), e.bits

    if wide:

        @p.device
        def real(noise):
            return wide_of(noise)

    else:

        @p.device
        def real(noise):
            return noise

    @p.device
    def one(x, g, y, i, noise, sigma, logit, rate, inverse, scale):
        """Element i."""
        at = U64(i * item)
        w = weight_of(real(noise), sigma, logit, rate, inverse, scale)
        dy = decode(load(U64(g + at))) if gradient else zero
        v = applied(decode(load(U64(x + at))), dy, w)
        if gradient:
            store_real(U64(y + U64(i * real_item)), bits(v))
        else:
            store(U64(y + at), encode(v))

    @p.device
    def weights(e0, e1, e2, e3, s, logit, rate, inverse, scale):
        return (
            weight_of(e0, s[0], logit, rate, inverse, scale),
            weight_of(e1, s[1], logit, rate, inverse, scale),
            weight_of(e2, s[2], logit, rate, inverse, scale),
            weight_of(e3, s[3], logit, rate, inverse, scale),
        )

    # Weights before loads: what is loaded would take registers while they are computed.
    if itemsize == 4:

        @p.device
        def together(x, y, e0, e1, e2, e3, s, logit, rate, inverse, scale):
            w = weights(e0, e1, e2, e3, s, logit, rate, inverse, scale)
            a = load16(x)
            v0, v1 = applied(decode(a[0]), zero, w[0]), applied(decode(a[1]), zero, w[1])
            v2, v3 = applied(decode(a[2]), zero, w[2]), applied(decode(a[3]), zero, w[3])
            store16(y, encode(v0), encode(v1), encode(v2), encode(v3))

    elif itemsize == 2:

        @p.device
        def together(x, y, e0, e1, e2, e3, s, logit, rate, inverse, scale):
            w = weights(e0, e1, e2, e3, s, logit, rate, inverse, scale)
            a = load_u64(x)
            low, high, mask = U32(a), U32(a >> U64(32)), U32(0xFFFF)
            v0 = applied(decode(U32(low & mask)), zero, w[0])
            v1 = applied(decode(U32(low >> U32(16))), zero, w[1])
            v2 = applied(decode(U32(high & mask)), zero, w[2])
            v3 = applied(decode(U32(high >> U32(16))), zero, w[3])
            store_u64(y, U64(U64(encode2(v0, v1)) | U64(U64(encode2(v2, v3)) << U64(32))))

    else:

        @p.device
        def two(x, y, e0, e1, s0, s1, logit, rate, inverse, scale):
            w0 = weight_of(wide_of(e0), s0, logit, rate, inverse, scale)
            w1 = weight_of(wide_of(e1), s1, logit, rate, inverse, scale)
            a = load16d(x)
            y0, y1 = applied(decode(a[0]), zero, w0), applied(decode(a[1]), zero, w1)
            store16d(y, encode(y0), encode(y1))

        @p.device
        def together(x, y, e0, e1, e2, e3, s, logit, rate, inverse, scale):
            two(x, y, e0, e1, s[0], s[1], logit, rate, inverse, scale)
            two(U64(x + U64(16)), U64(y + U64(16)), e2, e3, s[2], s[3], logit, rate, inverse, scale)

    if op == "scales":

        @p.device
        def sigmas_of(sigmas, row, column):
            """That of a column, and the next column."""
            sigma = value(load_real(U64(sigmas + U64(column * real_item))))
            column = U64(column + U64(1))
            return sigma, (column if column < row else U64(0))

        @p.device
        def four_sigmas(sigmas, row, i, sigma):
            s0, column = sigmas_of(sigmas, row, U64(i % row))
            s1, column = sigmas_of(sigmas, row, column)
            s2, column = sigmas_of(sigmas, row, column)
            s3, column = sigmas_of(sigmas, row, column)
            return s0, s1, s2, s3

    else:

        @p.device
        def four_sigmas(sigmas, row, i, sigma):
            return sigma, sigma, sigma, sigma

    if axes:
        position, _ = positions(where, axes, small)

        def noise(
            x, g, y, sigmas, n, row, start, shape, strides,
            keys, call, sigma, logit, rate, inverse, scale,
        ):  # fmt: skip
            i = first()
            while i < n:
                index = U64(start + position(i, shape, strides))
                e0, e1, e2, e3 = four(U64(index >> U64(2)), keys, call)
                lower = e1 if U32(U32(index) & U32(1)) != U32(0) else e0
                upper = e3 if U32(U32(index) & U32(1)) != U32(0) else e2
                own = upper if U32(U32(index) & U32(2)) != U32(0) else lower
                one(x, g, y, i, own, sigma, logit, rate, inverse, scale)
                i = U64(i + step())

    else:

        def noise(
            x, g, y, sigmas, n, row, start, shape, strides,
            keys, call, sigma, logit, rate, inverse, scale,
        ):  # fmt: skip
            group = first()
            groups = U64(U64(n + U64(3)) >> U64(2))
            aligned = not gradient and U64(U64(x | y) & U64(15)) == U64(0)
            while group < groups:
                i = U64(group << U64(2))
                e0, e1, e2, e3 = four(U64(U64(start + i) >> U64(2)), keys, call)
                left = U64(n - i)
                s = four_sigmas(sigmas, row, i, sigma)
                if aligned and left >= U64(4):
                    at = U64(i * item)
                    together(
                        U64(x + at), U64(y + at), e0, e1, e2, e3, s, logit, rate, inverse, scale
                    )
                else:
                    one(x, g, y, i, e0, s[0], logit, rate, inverse, scale)
                    if left > U64(1):
                        one(x, g, y, U64(i + U64(1)), e1, s[1], logit, rate, inverse, scale)
                    if left > U64(2):
                        one(x, g, y, U64(i + U64(2)), e2, s[2], logit, rate, inverse, scale)
                    if left > U64(3):
                        one(x, g, y, U64(i + U64(3)), e3, s[3], logit, rate, inverse, scale)
                group = U64(group + step())

    return p.kernel(noise)


@cache
def doubles(where: str, dtype: str) -> SimpleNamespace:
    """``number``: a raw element to float64; ``rounded``: back, as NumPy and ml_dtypes round."""
    t = target(where)
    e = elements(where, dtype)
    device, decode, encode, bits = t.device, e.decode, e.encode, e.bits
    narrow, wide_of, f32, b32, f64, b64 = t.narrow, t.wide, t.f32, t.b32, t.f64, t.b64
    if dtype == "float64":
        return SimpleNamespace(number=decode, rounded=encode)

    # NumPy goes to float16 in one step, ml_dtypes to bfloat16 in two, and loses NaN payloads.
    to_odd = dtype == "float16"
    payload_of = U32(0 if dtype == "bfloat16" else 0x003FFFFF)

    @device
    def number(x):
        v = decode(x)
        r = wide_of(v)
        if v != v:
            u = bits(v)
            payload = U64(U64(u & U32(0x003FFFFF)) << U64(29))
            sign = U64(U64(u & U32(0x80000000)) << U64(32))
            r = f64(U64(U64(payload | sign) | U64(0x7FF8000000000000)))
        return r

    @device
    def rounded(v):
        """By float32; to odd, if then to float16, so that the next rounding is the only one."""
        r = narrow(v)
        if v != v:
            u = b64(v)
            payload = U32(U32(u >> U64(29)) & payload_of)
            sign = U32(U32(u >> U64(32)) & U32(0x80000000))
            r = f32(U32(U32(payload | sign) | U32(0x7FC00000)))
        elif to_odd:
            back = wide_of(r)
            if back != v:
                odd = b32(r)
                if (back > v) == (v > np.float64(0)):
                    odd = U32(odd - U32(1))
                r = f32(U32(odd | U32(1)))
        return encode(r)

    return SimpleNamespace(number=number, rounded=rounded)


@cache
def weighted_kernel(where: str, dtype: str) -> Any:
    """y = weights * x, n elements, or 0 where a weight is negative. weights: float64; x: that if
    `wide`, else float32, as is the product then, before it is rounded to y's dtype.
    """
    p = target(where)
    e = elements(where, dtype)
    first, step, store, item = p.first, p.step, e.store, e.item
    load_u32, load_u64, f64, nothing = p.load_u32, p.load_u64, p.f64, np.float64(0)
    mul, rounded = elements(where, "float64").mul, doubles(where, dtype).rounded
    number, narrow = doubles(where, "float32").number, doubles(where, "float32").rounded

    def weighted(weights, x, y, n, wide):
        i = first()
        while i < n:
            weight = f64(load_u64(U64(weights + U64(i << U64(3)))))
            if wide != U64(0):
                v = mul(weight, f64(load_u64(U64(x + U64(i << U64(3))))))
            else:
                v = mul(weight, number(load_u32(U64(x + U64(i << U64(2))))))
                v = number(narrow(v))
            v = nothing if weight < nothing else v
            store(U64(y + U64(i * item)), rounded(v))
            i = U64(i + step())

    return p.kernel(weighted)


@cache
def sums_kernel(where: str, dtype: str, by: str) -> Any:
    """Sums of n elements over the columns of `row` elements, float64, a part of them each.

    by: "rows" or "tiles", of which each part has as many as any other, but for rounding. sums: one
    row for each of PARTS parts. The order of additions is that of ``fd_backward_sums`` with "rows",
    where n is a multiple of `row`, and of ``fd_noise_backward`` with "tiles".
    """
    p = target(where)
    e = elements(where, dtype)
    first, step, load, item, store_u64, b64 = p.first, p.step, e.load, e.item, p.store_u64, p.b64
    add, number = elements(where, "float64").add, doubles(where, dtype).number
    tiled, parts, nothing = by == "tiles", U64(PARTS), np.float64(0)

    def sums_of(x, sums, n, row):
        i = first()
        unit = U64(4096) if tiled else row
        units = U64(U64(n + U64(unit - U64(1))) // unit)
        while i < U64(parts * row):
            part = U64(i // row)
            column = U64(i - U64(part * row))
            begin = U64(U64(U64(units * part) // parts) * unit)
            end = U64(U64(U64(units * U64(part + U64(1))) // parts) * unit)
            end = n if end > n else end
            at = U64(U64(begin // row) * row + column)
            at = U64(at + row) if at < begin else at
            total = nothing
            while at < end:
                total = add(total, number(load(U64(x + U64(at * item)))))
                at = U64(at + row)
            store_u64(U64(sums + U64(i * U64(8))), b64(total))
            i = U64(i + step())

    return p.kernel(sums_of)


@cache
def total_kernel(where: str, dtype: str, single: bool) -> Any:
    """What `sums_kernel` has left, to one sum: of each column, in dtype, or of all, in float64.

    single: the columns are 512, and added up in the order of NumPy's pairwise summation.
    """
    p = target(where)
    e = elements(where, dtype)
    first, step, store, item = p.first, p.step, e.store, e.item
    load_u64, store_u64, f64, b64 = p.load_u64, p.store_u64, p.f64, p.b64
    add, rounded = elements(where, "float64").add, doubles(where, dtype).rounded
    parts, eight = U64(PARTS), U64(8)

    @p.device
    def column(sums, i, row):
        total = f64(load_u64(U64(sums + U64(i * eight))))
        part = U64(1)
        while part < parts:
            at = U64(U64(U64(part * row) + i) * eight)
            total = add(total, f64(load_u64(U64(sums + at))))
            part = U64(part + U64(1))
        return total

    @p.device
    def strand(sums, begin, row):
        """Every eighth of 128 columns."""
        total = column(sums, begin, row)
        j = U64(8)
        while j < U64(128):
            total = add(total, column(sums, U64(begin + j), row))
            j = U64(j + U64(8))
        return total

    @p.device
    def pairs(sums, begin, row):
        a, b = strand(sums, begin, row), strand(sums, U64(begin + U64(1)), row)
        c = strand(sums, U64(begin + U64(2)), row)
        d = strand(sums, U64(begin + U64(3)), row)
        return add(add(a, b), add(c, d))

    @p.device
    def block128(sums, begin, row):
        return add(pairs(sums, begin, row), pairs(sums, U64(begin + U64(4)), row))

    def total_of(sums, y, row):
        i = first()
        if single:
            if i == U64(0):
                low = add(block128(sums, U64(0), row), block128(sums, U64(128), row))
                high = add(block128(sums, U64(256), row), block128(sums, U64(384), row))
                store_u64(y, b64(add(low, high)))
        else:
            while i < row:
                store(U64(y + U64(i * item)), rounded(column(sums, i, row)))
                i = U64(i + step())

    return p.kernel(total_of)
