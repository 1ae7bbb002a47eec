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
from fastdrop.backends.cuda.kernels.targets import U32, U64, target
from fastdrop.base.dtypes import ITEMSIZE

CHUNK = U64(4096)  # FD_TILE: so many columns are added up before they go to the others


@cache
def draw_anywhere(where: str) -> Any:
    """``f(index, draw)``: 16 keep bits from any index on, at any rate."""
    t, of_group = target(where), keep_bits(where).of_group
    device, sixteen = t.device, t.sixteen
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
    """Elements 4 c ... 4 c + 3 of 16, a tuple; `left` of the 16 are there, the others are 0.
    aligned: whether the 16 are at a multiple of 16 bytes.

    ``load(at, left, aligned)``; ``store(at, v, left, aligned)``, ``scaled(s, scale)``: of v or s,
    which has all four quads, its own. ``added(s, k, m, v)``: s + kept m * v, each rounded once,
    where k has the keep bits of the 16.
    """
    p, e = target(where), elements(where, dtype)
    device, decode, encode, zero = p.device, e.decode, e.encode, e.zero
    load1, store1, add, mul = e.load, e.store, e.exact.add, e.exact.mul
    start, end = U64(4 * c * ITEMSIZE[dtype]), U32(4 * c + 4)
    load16, load16d, store16, store16d = p.load16, p.load16d, p.store16, p.store16d
    wide, far = dtype == "float64", U64(16)

    @device
    def store4(at, v):
        raw = encode(v[0]), encode(v[1]), encode(v[2]), encode(v[3])
        if wide:
            store16d(at, (raw[0], raw[1]))
            store16d(at + far, (raw[2], raw[3]))
        else:
            store16(at, raw)

    @device
    def load4(at):
        raw = load16d(at) + load16d(at + far) if wide else load16(at)
        return decode(raw[0]), decode(raw[1]), decode(raw[2]), decode(raw[3])

    @p.four
    def each(j: int) -> Any:
        number, offset = U32(4 * c + j), U64((4 * c + j) * ITEMSIZE[dtype])

        @device
        def load_one(at, left):
            return decode(load1(at + offset)) if number < left else zero

        return load_one

    @p.four
    def puts(j: int) -> Any:
        number, offset = U32(4 * c + j), U64((4 * c + j) * ITEMSIZE[dtype])

        @device
        def store_one(at, v, left):
            if number < left:
                store1(at + offset, encode(v[j]))

        return store_one

    @p.four
    def added(j: int) -> Any:
        bit = U32(1 << 4 * c + j)

        @device
        def add_one(s, k, m, v):
            kept = m[j] if k & bit != U32(0) else zero
            return add(s[c][j], mul(kept, v[j]))

        return add_one

    @p.four
    def scaled(j: int) -> Any:
        @device
        def scale_one(s, scale):
            return mul(s[c][j], scale)

        return scale_one

    @device
    def load(at, left, aligned):
        if aligned and left >= end:
            return load4(at + start)
        return each(at, left)

    @device
    def store(at, v, left, aligned):
        if aligned and left >= end:
            store4(at + start, v[c])
        else:
            puts(at, v[c], left)

    return SimpleNamespace(load=load, store=store, added=added, scaled=scaled)


@cache
def quads(where: str, dtype: str) -> SimpleNamespace:
    """The functions of four `quad`, on a tuple of four tuples for 16 elements. ``scaled_row(s, k,
    row, v, left, aligned)``, ``product(s, k, row, g, left, aligned)``: `added`, of what is at
    `row`, and v or what is at g. Each four are loaded when they are needed, which takes less
    registers.
    """
    t = target(where)
    of = tuple(quad(where, dtype, c) for c in range(4))

    @t.four
    def scaled_row(c: int) -> Any:
        load, added = of[c].load, of[c].added

        @t.device
        def of_quad(s, k, row, v, left, aligned):
            return added(s, k, load(row, left, aligned), (v, v, v, v))

        return of_quad

    @t.four
    def product(c: int) -> Any:
        load, added = of[c].load, of[c].added

        @t.device
        def of_quad(s, k, row, g, left, aligned):
            return added(s, k, load(row, left, aligned), load(g, left, aligned))

        return of_quad

    names = "load", "store", "scaled"
    functions = {name: t.four(lambda c, name=name: getattr(of[c], name)) for name in names}
    return SimpleNamespace(**functions, scaled_row=scaled_row, product=product)


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
    one, q = type(e.zero)(1), quads(where, dtype)
    load, store, scaled, scaled_row = q.load, q.store, q.scaled, q.scaled_row

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
