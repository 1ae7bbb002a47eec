"""GPU kernels of `fastdrop.dropconnect`: sums of products with weights of which masks are drawn 16
at a time, where they are used, and stored nowhere.

All additions are those of src/connect.h in its order. A sum that is NaN is the one NaN of a GPU.

Groups of parameters: ``arrays``, addresses; ``sizes = rows, terms, columns``, those of y, of a sum,
and of m; `draw` as in `philox`.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.philox import keep_bits
from fastdrop.backends.cuda.kernels.targets import target
from fastdrop.backends.cuda.kernels.words import U32, U64, words
from fastdrop.base.dtypes import ITEMSIZE

CHUNK = U64(4096)  # FD_TILE: so many columns are added up before they go to the others


@cache
def draw_anywhere(where: str) -> Any:
    """``f(index, draw)``: 16 keep bits from any index on, at any rate."""
    device, of_group = target(where).device, keep_bits(where).of_group
    sixteen = words(where).sixteen
    by_bytes, by_bits = of_group["bytes"], of_group["bits"]

    @device
    def keep16(index, draw):
        _, _, t, f = draw
        if t | f == U32(0):
            return U32(0xFFFF)
        even = t == U32(128) and f == U32(0)
        number = index >> 4
        at = U32(U32(index) & U32(15))
        k = shift = U32(0)
        last = U32(0) if at == U32(0) else U32(16)
        while shift <= last:
            one = by_bits(number, draw) if even else by_bytes(number, draw)
            k = U32(k | one << shift)
            number += U64(1)
            shift = U32(shift + U32(16))
        return sixteen(k, at)

    return keep16


@cache
def quad(where: str, dtype: str, c: int) -> SimpleNamespace:
    """Elements 4 c ... 4 c + 3 of 16; `left` of these are there, the others are 0.

    ``load(address, left, aligned)`` and ``store(address, v, left, aligned)`` a tuple; aligned:
    whether the 16 are at a multiple of 16 bytes. ``added(s, k, m, v)``: s + kept m * v, each
    rounded once, where k has the keep bits of the 16.
    """
    p, e = target(where), elements(where, dtype)
    device, decode, encode, item, zero = p.device, e.decode, e.encode, e.item, e.zero
    load1, store1, add, mul = e.load, e.store, e.exact.add, e.exact.mul
    load4, store4 = _four(where, dtype)
    start, end = U64(4 * c * ITEMSIZE[dtype]), U32(4 * c + 4)
    numbers = U32(4 * c), U32(4 * c + 1), U32(4 * c + 2), U32(4 * c + 3)
    bits = tuple(U32(1 << n) for n in numbers)

    @device
    def one(address, number, left):
        at = address + U64(number) * item
        return decode(load1(at)) if number < left else zero

    @device
    def put(address, number, v, left):
        if number < left:
            store1(address + U64(number) * item, encode(v))

    @device
    def load(address, left, aligned):
        if aligned and left >= end:
            return load4(address + start)
        return (
            one(address, numbers[0], left),
            one(address, numbers[1], left),
            one(address, numbers[2], left),
            one(address, numbers[3], left),
        )

    @device
    def store(address, v, left, aligned):
        if aligned and left >= end:
            store4(address + start, v)
        else:
            put(address, numbers[0], v[0], left)
            put(address, numbers[1], v[1], left)
            put(address, numbers[2], v[2], left)
            put(address, numbers[3], v[3], left)

    @device
    def kept(k, bit, m):
        return m if k & bit != U32(0) else zero

    @device
    def added(s, k, m, v):
        return (
            add(s[0], mul(kept(k, bits[0], m[0]), v[0])),
            add(s[1], mul(kept(k, bits[1], m[1]), v[1])),
            add(s[2], mul(kept(k, bits[2], m[2]), v[2])),
            add(s[3], mul(kept(k, bits[3], m[3]), v[3])),
        )

    return SimpleNamespace(load=load, store=store, added=added)


def _four(where: str, dtype: str) -> tuple[Any, Any]:
    """``load(address)``, ``store(address, v)``: four elements at a multiple of 16 bytes."""
    p, e = target(where), elements(where, dtype)
    device, decode, encode = p.device, e.decode, e.encode
    load16, store16, load16d, store16d = p.load16, p.store16, p.load16d, p.store16d

    if dtype == "float64":

        @device
        def load(address):
            a, b = load16d(address), load16d(address + U64(16))
            return decode(a[0]), decode(a[1]), decode(b[0]), decode(b[1])

        @device
        def store(address, v):
            store16d(address, encode(v[0]), encode(v[1]))
            store16d(address + U64(16), encode(v[2]), encode(v[3]))

    else:

        @device
        def load(address):
            a = load16(address)
            return decode(a[0]), decode(a[1]), decode(a[2]), decode(a[3])

        @device
        def store(address, v):
            store16(address, encode(v[0]), encode(v[1]), encode(v[2]), encode(v[3]))

    return load, store


@cache
def quads(where: str, dtype: str) -> SimpleNamespace:
    """The functions of four `quad`: a tuple of four tuples for 16 elements. ``scaled_row(s, k, row,
    v, left, aligned)``, ``product(s, k, row, g, left, aligned)``: `added`, of what is at `row`, and
    v or what is at g. Each four are loaded when they are needed, which takes less registers.
    """
    device = target(where).device
    q0, q1, q2, q3 = (quad(where, dtype, c) for c in range(4))
    load_a, load_b, load_c, load_d = q0.load, q1.load, q2.load, q3.load
    add_a, add_b, add_c, add_d = q0.added, q1.added, q2.added, q3.added
    store_a, store_b, store_c, store_d = q0.store, q1.store, q2.store, q3.store

    @device
    def load(at, left, aligned):
        return (
            load_a(at, left, aligned),
            load_b(at, left, aligned),
            load_c(at, left, aligned),
            load_d(at, left, aligned),
        )

    @device
    def store(at, v, left, aligned):
        store_a(at, v[0], left, aligned)
        store_b(at, v[1], left, aligned)
        store_c(at, v[2], left, aligned)
        store_d(at, v[3], left, aligned)

    @device
    def scaled_row(s, k, row, v, left, aligned):
        v4 = (v, v, v, v)
        return (
            add_a(s[0], k, load_a(row, left, aligned), v4),
            add_b(s[1], k, load_b(row, left, aligned), v4),
            add_c(s[2], k, load_c(row, left, aligned), v4),
            add_d(s[3], k, load_d(row, left, aligned), v4),
        )

    @device
    def product(s, k, row, g, left, aligned):
        return (
            add_a(s[0], k, load_a(row, left, aligned), load_a(g, left, aligned)),
            add_b(s[1], k, load_b(row, left, aligned), load_b(g, left, aligned)),
            add_c(s[2], k, load_c(row, left, aligned), load_c(g, left, aligned)),
            add_d(s[3], k, load_d(row, left, aligned), load_d(g, left, aligned)),
        )

    return SimpleNamespace(load=load, store=store, scaled_row=scaled_row, product=product)


@cache
def connect_kernel(where: str, dtype: str) -> Any:
    """y[i, o] = scale * (sum over j of kept m[j, o] * x[i, j]); a thread does 16 columns of a row.

    m[j, o] is kept as bit `start` + i * bits_i + j * bits_j + o says. y has `rows` rows, m has
    `terms`, of `columns` elements each; x[i, j] is element i * x_i + j * x_j, or 1 if x is 0. more:
    whether y itself is the first summand.
    """
    p, e = target(where), elements(where, dtype)
    first, step, keep16 = p.first, p.step, draw_anywhere(where)
    load1, decode, item, zero = e.load, e.decode, e.item, e.zero
    mul, one, all16 = e.exact.mul, type(e.zero)(1), quads(where, dtype)
    load, store, scaled_row = all16.load, all16.store, all16.scaled_row

    @p.device
    def scaled4(s, scale):
        return mul(s[0], scale), mul(s[1], scale), mul(s[2], scale), mul(s[3], scale)

    @p.device
    def scaled(s, scale):
        a, b = scaled4(s[0], scale), scaled4(s[1], scale)
        return a, b, scaled4(s[2], scale), scaled4(s[3], scale)

    def connect(arrays, sizes, bits, steps, more, draw, scale):
        (x, m, y), (rows, terms, columns) = arrays, sizes
        (start, bits_i, bits_j), (x_i, x_j) = bits, steps
        unit = first()
        aligned = (m | y | columns * item) & U64(15) == U64(0)
        none = (zero, zero, zero, zero)
        while unit < rows * (columns + U64(15) >> 4):
            group = unit // rows  # neighbours read the same of m
            i = unit - group * rows
            o = group << 4
            left = U32(min(columns - o, U64(16)))
            to = y + (i * columns + o) * item
            s = (none, none, none, none)
            if more != U64(0):
                s = load(to, left, aligned)
            index = start + i * bits_i + o
            at = x + i * x_i * item
            row = m + o * item
            j = U64(0)
            while j < terms:
                k = keep16(index, draw)
                v = decode(load1(at)) if x != U64(0) else one
                s = scaled_row(s, k, row, v, left, aligned)
                index += bits_j
                at += x_j * item
                row += columns * item
                j += U64(1)
            store(to, scaled(s, scale), left, aligned)
            unit += step()

    return p.kernel(connect, None)


@cache
def connect_back_kernel(where: str, dtype: str) -> Any:
    """y[i, r] = scale * (sum over o of kept m[r, o] * g[i, o]); a thread does one element.

    m[r, o] is kept as bit `start` + i * bits_i + r * columns + o says. y has `rows` rows of `terms`
    elements, as many as m has rows. Of each 4096 columns there are 32 sums, the l-th of each 32nd
    column from l on; then the upper half of them is added to the lower until one is left.
    """
    p, e = target(where), elements(where, dtype)
    first, step, keep16 = p.first, p.step, draw_anywhere(where)
    store1, encode, item, zero = e.store, e.encode, e.item, e.zero
    add, mul = e.exact.add, e.exact.mul
    product = quads(where, dtype).product

    @p.device
    def with_columns(s, o, end, places, aligned, draw):
        """16 sums, and what columns from o on add to them; places: of the rows of bits, m and g."""
        index, row, g = places
        left = U32(min(end - o, U64(16)))
        k = keep16(index + o, draw)
        at = o * item
        return product(s, k, row + at, g + at, left, aligned)

    @p.device
    def pairs(a, b):
        return add(a[0], b[0]), add(a[1], b[1]), add(a[2], b[2]), add(a[3], b[3])

    @p.device
    def total_of(s, z):
        a, b = pairs(s[0], z[0]), pairs(s[1], z[1])
        c, d = pairs(s[2], z[2]), pairs(s[3], z[3])
        four = pairs(pairs(a, c), pairs(b, d))
        return add(add(four[0], four[2]), add(four[1], four[3]))

    def connect_back(arrays, sizes, bits, draw, scale):
        (m, g, y), (rows, terms, columns), (start, bits_i) = arrays, sizes, bits
        unit = first()
        aligned = (m | g | columns * item) & U64(15) == U64(0)
        none = (zero, zero, zero, zero)
        while unit < rows * terms:
            i = unit // terms
            r = unit - i * terms
            index = start + i * bits_i + r * columns
            places = index, m + r * columns * item, g + i * columns * item
            total = zero
            begin = U64(0)
            while begin < columns:
                end = begin + CHUNK if columns - begin > CHUNK else columns
                s = z = (none, none, none, none)
                o = begin
                while o < end:
                    s = with_columns(s, o, end, places, aligned, draw)
                    o += U64(16)
                    if o < end:
                        z = with_columns(z, o, end, places, aligned, draw)
                    o += U64(16)
                total = add(total, total_of(s, z))
                begin = end
            store1(y + unit * item, encode(mul(total, scale)))
            unit += step()

    return p.kernel(connect_back, None)
