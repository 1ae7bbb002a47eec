"""The kernels of `fastdrop.cuda`: one source that Numba compiles for the GPU, and tests for CPUs.

Numba makes ``uint32 + uint32`` a uint64, and ``uint64 + int64`` a float64: so every operation is
wrapped in the type it has, and every constant has one. What is not in the target's primitives
(`fastdrop.cuda_targets`) is plain Python on NumPy's scalars, which the CUDA simulator runs.

A thread owns 16 elements at a time, the Philox block that decides them and their 2 bytes of the
packed mask; it loads and stores 16 bytes at once. What is called *raw* is the bits of an element:
uint64 for float64, else uint32.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdrop import rng
from fastdrop.cuda_targets import target

U32, U64 = np.uint32, np.uint64

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
OPS = ("dropout", "dropout_add", "bias_dropout_add", "relu_dropout", "alpha_dropout", "zoneout")

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
    high, clz = t.high, t.clz
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
    def at_least(w, complement):
        """Bits 0, 1, 16, 17: whether bytes 0 ... 3 of w are at least t = 256 - complement."""
        even = U32(U32(w & U32(0x00FF00FF)) + complement)
        odd = U32(U32(U32(w >> U32(8)) & U32(0x00FF00FF)) + complement)
        return U32(
            U32(U32(even >> U32(8)) & U32(0x00010001)) | U32(U32(odd >> U32(7)) & U32(0x00020002))
        )

    @device
    def equal(w, tie):
        """Bits 0, 8, 16, 24: whether bytes 0 ... 3 of the two words are equal."""
        v = U32(w ^ tie)
        v = U32(U32(U32(v & U32(0x7F7F7F7F)) + U32(0x7F7F7F7F)) | v)
        return U32(U32(~U32(v | U32(0x7F7F7F7F))) >> U32(7))

    @device
    def refined(keep, w0, w1, w2, w3, index, t, f, keys, call):
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
            w = word(U64(index | U64(at)), refinement_domain, keys, call)
            if U32(w >> U32(8)) < f:
                keep = U32(keep & U32(~U32(U32(1) << at)))
        return keep

    @device
    def keep_bytes(index, t, f, keys, call):
        """Keep bits of elements index ... index + 15, a multiple of 16, at any rate but 1/2."""
        w0, w1, w2, w3 = block(U64(index >> U64(4)), bytes_domain, keys, call)
        complement = U32(U32(U32(256) - t) * U32(0x00010001))
        # Each has its bits in 0, 1 and 16, 17; those in the upper half come behind the lower.
        a = U32(at_least(w0, complement) | U32(at_least(w1, complement) << U32(4)))
        b = U32(at_least(w2, complement) | U32(at_least(w3, complement) << U32(4)))
        keep = U32(a | U32(b << U32(8)))
        keep = U32(U32(keep | U32(keep >> U32(14))) & U32(0xFFFF))
        if f != U32(0):
            keep = refined(keep, w0, w1, w2, w3, index, t, f, keys, call)
        return keep

    @device
    def keep_bits(index, t, f, keys, call):
        """The same at rate 1/2."""
        w = word(U64(index >> U64(5)), bits_domain, keys, call)
        return U32(U32(w >> U32(U32(index) & U32(16))) & U32(0xFFFF))

    draws = {"bytes": keep_bytes, "bits": keep_bits}

    def any_start(draw: Any) -> Any:
        """The draw of 16 elements from any index."""

        @device
        def keep(index, t, f, keys, call):
            first = U64(index & U64(0xFFFFFFFFFFFFFFF0))
            low = draw(first, t, f, keys, call)
            high = draw(U64(first + U64(16)), t, f, keys, call)
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
        item=U64(item),
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
def operation(where: str, dtype: str, op: str) -> Any:
    """``f(x, residual, bias, keep, scale, shift, dropped)`` to (y, active), in the compute type.

    active: 1 where `relu_dropout` lets a gradient through.
    """
    device = target(where).device
    e = elements(where, dtype)
    zero, add, times = e.zero, e.add, e.times
    no, yes = U32(0), U32(1)

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

    else:  # zoneout

        @device
        def element(x, residual, bias, keep, scale, shift, dropped):
            return (x if keep else residual), no

    return element


@cache
def quads(where: str, dtype: str, op: str) -> Any:
    """`operation` on the words of 16 bytes: ``f(x, residual, bias, k, scale, shift, dropped)`` to
    (y, active), where x, residual, bias and y are four words each, and k and active bit 0 and up.
    """
    device = target(where).device
    e = elements(where, dtype)
    element = operation(where, dtype, op)
    decode, encode, encode2 = e.decode, e.encode, e.encode2
    pack, times, half = e.pack, target(where).mul32, target(where).half
    item = ITEMSIZE[dtype]

    @device
    def is_set(k, bit):
        return U32(k & U32(U32(1) << bit)) != U32(0)

    if item == 8:

        @device
        def pair(low, high):
            return decode(U64(U64(low) | U64(U64(high) << U64(32))))

        @device
        def quad(x, r, b, k, scale, shift, dropped):
            v0, a0 = element(
                pair(x[0], x[1]),
                pair(r[0], r[1]),
                pair(b[0], b[1]),
                is_set(k, U32(0)),
                scale,
                shift,
                dropped,
            )
            v1, a1 = element(
                pair(x[2], x[3]),
                pair(r[2], r[3]),
                pair(b[2], b[3]),
                is_set(k, U32(1)),
                scale,
                shift,
                dropped,
            )
            y0, y1 = encode(v0), encode(v1)
            y = U32(y0), U32(y0 >> U64(32)), U32(y1), U32(y1 >> U64(32))
            return y, U32(a0 | U32(a1 << U32(1)))

        return quad

    if item == 4:

        @device
        def word(x, r, b, k, scale, shift, dropped):
            v, active = element(
                decode(x), decode(r), decode(b), is_set(k, U32(0)), scale, shift, dropped
            )
            return encode(v), active

    elif op == "dropout":
        # NaN and what is dropped are two elements' work at a time.
        half_type = dtype == "float16"
        nan_above, quiet = (
            (U32(0x03FF03FF), U32(0x02000200)) if half_type else (U32(0x007F007F), U32(0x00400040))
        )

        @device
        def both(flags):
            """0xffff for bit 0, 0xffff0000 for bit 16."""
            return U32(U32(flags & U32(0x00010001)) * U32(0xFFFF))

        @device
        def word(x, r, b, k, scale, shift, dropped):
            if half_type:
                low, high = half(U32(x & U32(0xFFFF))), half(U32(x >> U32(16)))
            else:
                low, high = decode(x), decode(U32(x >> U32(16)))
            y = pack(times(low, scale), times(high, scale))
            magnitude = U32(x & U32(0x7FFF7FFF))
            nan = both(U32(U32(magnitude + nan_above) >> U32(15)))
            y = U32(U32(y & U32(~nan)) | U32(U32(x | quiet) & nan))
            return U32(y & both(U32(k | U32(k << U32(15))))), U32(0)

    else:

        @device
        def word(x, r, b, k, scale, shift, dropped):
            low = U32(0xFFFF)
            v0, a0 = element(
                decode(U32(x & low)),
                decode(U32(r & low)),
                decode(U32(b & low)),
                is_set(k, U32(0)),
                scale,
                shift,
                dropped,
            )
            v1, a1 = element(
                decode(U32(x >> U32(16))),
                decode(U32(r >> U32(16))),
                decode(U32(b >> U32(16))),
                is_set(k, U32(1)),
                scale,
                shift,
                dropped,
            )
            return encode2(v0, v1), U32(a0 | U32(a1 << U32(1)))

    per = 4 // item  # elements of a word
    s1, s2, s3 = U32(per), U32(2 * per), U32(3 * per)

    @device
    def quad(x, r, b, k, scale, shift, dropped):
        y0, a0 = word(x[0], r[0], b[0], k, scale, shift, dropped)
        y1, a1 = word(x[1], r[1], b[1], U32(k >> s1), scale, shift, dropped)
        y2, a2 = word(x[2], r[2], b[2], U32(k >> s2), scale, shift, dropped)
        y3, a3 = word(x[3], r[3], b[3], U32(k >> s3), scale, shift, dropped)
        active = U32(U32(a0 | U32(a1 << s1)) | U32(U32(a2 << s2) | U32(a3 << s3)))
        return (y0, y1, y2, y3), active

    return quad


@cache
def dropout_kernel(
    where: str, dtype: str, op: str, source: str, shifted: bool, save: bool, vector: bool
) -> Any:
    """The kernel of one op on contiguous arrays of n elements.

    Parameters
    ----------
    source : {"bytes", "bits", "given"}
        Whether keep bits are drawn, at any rate but 1/2 or at 1/2, or read from `given`.
    shifted : bool
        Whether `start`, the index of element 0, may be no multiple of 16.
    save : bool
        Whether to write keep bits (for relu_dropout: those of active elements) to `saved`.
    vector : bool
        Whether all arrays begin at multiples of 16 bytes, and rows of bias are multiples of 16
        elements. Packed bits begin at multiples of 2 bytes and have an even number of them.

    Of the kernel's parameters, those are ignored that op and source have no use for. bias repeats
    after `row` elements; t and f are the upper 8 (9, at rate 1) and the lower 24 bits of the rate's
    threshold; with `given`, t is what its bits are XORed with, 16 at a time.
    """
    p = target(where)
    e = elements(where, dtype)
    element, quad = operation(where, dtype, op), quads(where, dtype, op)
    decode, encode = e.decode, e.encode
    first, step, load16, store16 = p.first, p.step, p.load16, p.store16
    load_u16, store_u16, load, store = p.load_u16, p.store_u16, e.load, e.store
    item, zero, active_bits = e.item, e.zero, op == "relu_dropout"
    has_residual = op in ("dropout_add", "bias_dropout_add", "zoneout")
    has_bias = op == "bias_dropout_add"
    nothing = (U32(0), U32(0), U32(0), U32(0))
    half = U64(16)

    if source == "given":

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return U32(load_u16(U64(given + U64(group << U64(1)))) ^ t)

    else:
        draw = (philox(where).any_start if shifted else philox(where).draws)[source]

        @p.device
        def keep16(given, group, start, t, f, keys, call):
            return draw(U64(start + U64(group << U64(4))), t, f, keys, call)

    if has_bias:

        @p.device
        def operands(x, r, b):
            return load16(x), load16(r), load16(b)

    elif has_residual:

        @p.device
        def operands(x, r, b):
            return load16(x), load16(r), nothing

    else:

        @p.device
        def operands(x, r, b):
            return load16(x), nothing, nothing

    per = 16 // ITEMSIZE[dtype]  # elements of 16 bytes
    s1 = U32(per)

    @p.device
    def vectors(x, r, b, y, k, scale, shift, dropped):
        """32 bytes of each. Loads come before stores: y may be x or residual."""
        x0, r0, b0 = operands(x, r, b)
        x1, r1, b1 = operands(U64(x + half), U64(r + half), U64(b + half))
        y0, a0 = quad(x0, r0, b0, k, scale, shift, dropped)
        y1, a1 = quad(x1, r1, b1, U32(k >> s1), scale, shift, dropped)
        store16(y, y0[0], y0[1], y0[2], y0[3])
        store16(U64(y + half), y1[0], y1[1], y1[2], y1[3])
        return U32(a0 | U32(a1 << s1))

    def twice(f: Any, elements: int) -> Any:
        """From a function on so many elements to one on two times as many."""
        shift_by, next_one = U32(elements), U64(elements * ITEMSIZE[dtype])

        @p.device
        def g(x, r, b, y, k, scale, shift, dropped):
            a0 = f(x, r, b, y, k, scale, shift, dropped)
            x, r, b, y = U64(x + next_one), U64(r + next_one), U64(b + next_one), U64(y + next_one)
            a1 = f(x, r, b, y, U32(k >> shift_by), scale, shift, dropped)
            return U32(a0 | U32(a1 << shift_by))

        return g

    group_of, count = vectors, 2 * per
    while count < 16:
        group_of, count = twice(group_of, count), 2 * count

    @p.device
    def scalars(x, residual, bias, y, i, m, row, k, scale, shift, dropped):
        """m <= 16 elements from i on, one after another."""
        active = U32(0)
        j = U64(0)
        while j < m:
            at = U64(U64(i + j) * item)
            r, b = zero, zero
            if has_residual:
                r = decode(load(U64(residual + at)))
            if has_bias:
                b = decode(load(U64(bias + U64(U64(U64(i + j) % row) * item))))
            keep = U32(U32(k >> U32(j)) & U32(1)) != U32(0)
            v, a = element(decode(load(U64(x + at))), r, b, keep, scale, shift, dropped)
            store(U64(y + at), encode(v))
            active = U32(active | U32(a << U32(j)))
            j = U64(j + U64(1))
        return active

    def dropout(
        x, residual, bias, y, given, saved, n, row, start, keys, call, t, f, scale, shift, dropped
    ):
        group = first()
        whole = U64(n >> U64(4))
        while group < whole:
            i = U64(group << U64(4))
            k = keep16(given, group, start, t, f, keys, call)
            if vector:
                at = U64(i * item)
                b = U64(bias + U64(U64(i % row) * item)) if has_bias else bias
                active = group_of(
                    U64(x + at), U64(residual + at), b, U64(y + at), k, scale, shift, dropped
                )
            else:
                active = scalars(x, residual, bias, y, i, U64(16), row, k, scale, shift, dropped)
            if save:
                store_u16(U64(saved + U64(group << U64(1))), active if active_bits else k)
            group = U64(group + step())
        m = U64(n & U64(15))
        if group == whole and m != U64(0):
            k = keep16(given, group, start, t, f, keys, call)
            k = U32(k & U32(U32(U32(1) << U32(m)) - U32(1)))
            i = U64(group << U64(4))
            active = scalars(x, residual, bias, y, i, m, row, k, scale, shift, dropped)
            if save:
                store_u16(U64(saved + U64(group << U64(1))), active if active_bits else k)

    return p.kernel(dropout)


# Parameters of the kernels: name, type, and length where it is a tuple. "real" is the compute type,
# "axes" the number of axes.
_DRAW = [("keys", "u32", 14), ("call", "u64", None), ("t", "u32", None), ("f", "u32", None)]
_ADDRESSES = [(name, "u64", None) for name in ("x", "residual", "bias", "y", "given", "saved")]
_NUMBERS = [(name, "u64", None) for name in ("n", "row", "start")]
_REALS = [(name, "real", None) for name in ("scale", "shift", "dropped")]

KERNELS: dict[str, tuple[Any, list]] = {
    "dropout": (dropout_kernel, [*_ADDRESSES, *_NUMBERS, *_DRAW, *_REALS]),
}
DEFAULTS = {
    "dropout": {
        "op": "dropout",
        "source": "bytes",
        "shifted": False,
        "save": True,
        "vector": True,
    },
}


def kernel(where: str, name: str, dtype: str, **options: Any) -> tuple[Any, list]:
    """A kernel by name, and its parameters: (name, type, length of a tuple or None) each."""
    build, parameters = KERNELS[name]
    options = DEFAULTS[name] | options
    real = "f64" if dtype == "float64" else "f32"
    given = [
        (n, real if kind == "real" else kind, options["axes"] if length == "axes" else length)
        for n, kind, length in parameters
    ]
    return build(where, dtype, **options), given
