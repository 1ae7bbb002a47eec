"""GPU kernels of `fastdrop.dropconnect`: sums of products with weights of which masks are drawn 16
at a time, where they are used, and stored nowhere.

All additions are those of src/connect.h in its order. A sum that is NaN is the one NaN of a GPU.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from fastdrop.backends.cuda.kernels.all import ITEMSIZE, U32, U64, elements, philox
from fastdrop.backends.cuda.kernels.targets import target

CHUNK = U64(4096)  # FD_TILE: so many columns are added up before they go to the others


@cache
def draw_anywhere(where: str) -> Any:
    """``f(index, t, f, keys, call)``: 16 keep bits from any index on, at any rate."""
    device, draws = target(where).device, philox(where).draws
    by_bytes, by_bits = draws["bytes"], draws["bits"]

    @device
    def keep16(index, t, f, keys, call):
        if U32(t | f) == U32(0):
            return U32(0xFFFF)
        even = t == U32(128) and f == U32(0)
        number = U64(index >> U64(4))
        at = U32(U32(index) & U32(15))
        k = shift = U32(0)
        last = U32(0) if at == U32(0) else U32(16)
        while shift <= last:
            one = by_bits(number, t, f, keys, call) if even else by_bytes(number, t, f, keys, call)
            k = U32(k | U32(one << shift))
            number = U64(number + U64(1))
            shift = U32(shift + U32(16))
        return U32(U32(k >> at) & U32(0xFFFF))

    return keep16


@cache
def quad(where: str, dtype: str, c: int) -> SimpleNamespace:
    """Elements 4 c ... 4 c + 3 of 16, of which `left` are there; the others are 0.

    ``load(address, left, aligned)`` and ``store(address, v, left, aligned)`` a tuple; aligned:
    whether the 16 are at a multiple of 16 bytes. ``added(s, k, m, v)``: s + kept m * v, each
    rounded once, where k has the keep bits of the 16.
    """
    p = target(where)
    e = elements(where, dtype)
    device, decode, encode, item, zero = p.device, e.decode, e.encode, e.item, e.zero
    load1, store1, add, mul = e.load, e.store, e.exact.add, e.exact.mul
    load16, store16, load16d, store16d = p.load16, p.store16, p.load16d, p.store16d
    start, end = U64(4 * c * ITEMSIZE[dtype]), U32(4 * c + 4)
    numbers = U32(4 * c), U32(4 * c + 1), U32(4 * c + 2), U32(4 * c + 3)
    bits = tuple(U32(1 << n) for n in numbers)

    if dtype == "float64":

        @device
        def load4(address):
            a, b = load16d(address), load16d(U64(address + U64(16)))
            return decode(a[0]), decode(a[1]), decode(b[0]), decode(b[1])

        @device
        def store4(address, v):
            store16d(address, encode(v[0]), encode(v[1]))
            store16d(U64(address + U64(16)), encode(v[2]), encode(v[3]))

    else:

        @device
        def load4(address):
            a = load16(address)
            return decode(a[0]), decode(a[1]), decode(a[2]), decode(a[3])

        @device
        def store4(address, v):
            store16(address, encode(v[0]), encode(v[1]), encode(v[2]), encode(v[3]))

    @device
    def one(address, number, left):
        at = U64(address + U64(U64(number) * item))
        return decode(load1(at)) if number < left else zero

    @device
    def put(address, number, v, left):
        if number < left:
            store1(U64(address + U64(U64(number) * item)), encode(v))

    @device
    def load(address, left, aligned):
        if aligned and left >= end:
            return load4(U64(address + start))
        return (
            one(address, numbers[0], left),
            one(address, numbers[1], left),
            one(address, numbers[2], left),
            one(address, numbers[3], left),
        )

    @device
    def store(address, v, left, aligned):
        if aligned and left >= end:
            store4(U64(address + start), v)
        else:
            put(address, numbers[0], v[0], left)
            put(address, numbers[1], v[1], left)
            put(address, numbers[2], v[2], left)
            put(address, numbers[3], v[3], left)

    @device
    def kept(k, bit, m):
        return m if U32(k & bit) != U32(0) else zero

    @device
    def added(s, k, m, v):
        return (
            add(s[0], mul(kept(k, bits[0], m[0]), v[0])),
            add(s[1], mul(kept(k, bits[1], m[1]), v[1])),
            add(s[2], mul(kept(k, bits[2], m[2]), v[2])),
            add(s[3], mul(kept(k, bits[3], m[3]), v[3])),
        )

    return SimpleNamespace(load=load, store=store, added=added)


@cache
def connect_kernel(where: str, dtype: str) -> Any:
    """y[i, o] = scale * (sum over j of kept m[j, o] * x[i, j]); a thread does 16 columns of a row.

    m[j, o] is kept as bit `start` + i * bits_i + j * bits_j + o says. y has `rows` rows, m has
    `terms`, of `columns` elements each; x[i, j] is element i * x_i + j * x_j, or 1 if x is 0. more:
    whether y itself is the first summand.
    """
    p = target(where)
    e = elements(where, dtype)
    first, step, keep16 = p.first, p.step, draw_anywhere(where)
    load1, decode, item, zero = e.load, e.decode, e.item, e.zero
    mul, one = e.exact.mul, type(e.zero)(1)
    q0, q1, q2, q3 = (quad(where, dtype, c) for c in range(4))
    load_a, load_b, load_c, load_d = q0.load, q1.load, q2.load, q3.load
    add_a, add_b, add_c, add_d = q0.added, q1.added, q2.added, q3.added
    store_a, store_b, store_c, store_d = q0.store, q1.store, q2.store, q3.store

    @p.device
    def scaled(s, scale):
        return mul(s[0], scale), mul(s[1], scale), mul(s[2], scale), mul(s[3], scale)

    def connect(
        x, m, y, rows, terms, columns, start, bits_i, bits_j, x_i, x_j, more,
        keys, call, t, f, scale,
    ):  # fmt: skip
        unit = first()
        aligned = U64(U64(U64(m | y) | U64(columns * item)) & U64(15)) == U64(0)
        while unit < U64(rows * U64(U64(columns + U64(15)) >> U64(4))):
            group = U64(unit // rows)  # neighbours read the same of m
            i = U64(unit - U64(group * rows))
            o = U64(group << U64(4))
            left = U32(16) if U64(columns - o) >= U64(16) else U32(columns - o)
            to = U64(y + U64(U64(U64(i * columns) + o) * item))
            sa = sb = sc = sd = (zero, zero, zero, zero)
            if more != U64(0):
                sa, sb = load_a(to, left, aligned), load_b(to, left, aligned)
                sc, sd = load_c(to, left, aligned), load_d(to, left, aligned)
            index = U64(U64(start + U64(i * bits_i)) + o)
            at = U64(x + U64(U64(i * x_i) * item))
            row = U64(m + U64(o * item))
            j = U64(0)
            while j < terms:
                k = keep16(index, t, f, keys, call)
                v = decode(load1(at)) if x != U64(0) else one
                v4 = (v, v, v, v)
                sa = add_a(sa, k, load_a(row, left, aligned), v4)
                sb = add_b(sb, k, load_b(row, left, aligned), v4)
                sc = add_c(sc, k, load_c(row, left, aligned), v4)
                sd = add_d(sd, k, load_d(row, left, aligned), v4)
                index = U64(index + bits_j)
                at = U64(at + U64(x_j * item))
                row = U64(row + U64(columns * item))
                j = U64(j + U64(1))
            store_a(to, scaled(sa, scale), left, aligned)
            store_b(to, scaled(sb, scale), left, aligned)
            store_c(to, scaled(sc, scale), left, aligned)
            store_d(to, scaled(sd, scale), left, aligned)
            unit = U64(unit + step())

    return p.kernel(connect, None)


@cache
def connect_back_kernel(where: str, dtype: str) -> Any:
    """y[i, r] = scale * (sum over o of kept m[r, o] * g[i, o]); a thread does one element.

    m[r, o] is kept as bit `start` + i * bits_i + r * columns + o says. y has `rows` rows of `terms`
    elements, as many as m has rows. Of each 4096 columns there are 32 sums, the l-th of each 32nd
    column from l on; then the upper half of them is added to the lower until one is left.
    """
    p = target(where)
    e = elements(where, dtype)
    first, step, keep16 = p.first, p.step, draw_anywhere(where)
    store1, encode, item, zero = e.store, e.encode, e.item, e.zero
    add, mul = e.exact.add, e.exact.mul
    q0, q1, q2, q3 = (quad(where, dtype, c) for c in range(4))
    load_a, load_b, load_c, load_d = q0.load, q1.load, q2.load, q3.load
    add_a, add_b, add_c, add_d = q0.added, q1.added, q2.added, q3.added

    @p.device
    def sixteen(s, index, row, g, o, end, aligned, t, f, keys, call):
        """16 sums, and what columns from o on add to them."""
        left = U32(16) if U64(end - o) >= U64(16) else U32(end - o)
        k = keep16(U64(index + o), t, f, keys, call)
        row = U64(row + U64(o * item))
        g = U64(g + U64(o * item))
        return (
            add_a(s[0], k, load_a(row, left, aligned), load_a(g, left, aligned)),
            add_b(s[1], k, load_b(row, left, aligned), load_b(g, left, aligned)),
            add_c(s[2], k, load_c(row, left, aligned), load_c(g, left, aligned)),
            add_d(s[3], k, load_d(row, left, aligned), load_d(g, left, aligned)),
        )

    @p.device
    def pairs(a, b):
        return add(a[0], b[0]), add(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3])

    @p.device
    def total_of(s, z):
        a, b = pairs(s[0], z[0]), pairs(s[1], z[1])
        c, d = pairs(s[2], z[2]), pairs(s[3], z[3])
        four = pairs(pairs(a, c), pairs(b, d))
        return add(add(four[0], four[2]), add(four[1], four[3]))

    def connect_back(m, g, y, rows, terms, columns, start, bits_i, keys, call, t, f, scale):
        unit = first()
        aligned = U64(U64(U64(m | g) | U64(columns * item)) & U64(15)) == U64(0)
        none = (zero, zero, zero, zero)
        while unit < U64(rows * terms):
            i = U64(unit // terms)
            r = U64(unit - U64(i * terms))
            row = U64(m + U64(U64(r * columns) * item))
            own = U64(g + U64(U64(i * columns) * item))
            index = U64(U64(start + U64(i * bits_i)) + U64(r * columns))
            total = zero
            begin = U64(0)
            while begin < columns:
                end = U64(begin + CHUNK) if U64(columns - begin) > CHUNK else columns
                s = z = (none, none, none, none)
                o = begin
                while o < end:
                    s = sixteen(s, index, row, own, o, end, aligned, t, f, keys, call)
                    o = U64(o + U64(16))
                    if o < end:
                        z = sixteen(z, index, row, own, o, end, aligned, t, f, keys, call)
                    o = U64(o + U64(16))
                total = add(total, total_of(s, z))
                begin = end
            store1(U64(y + U64(unit * item)), encode(mul(total, scale)))
            unit = U64(unit + step())

    return p.kernel(connect_back, None)
