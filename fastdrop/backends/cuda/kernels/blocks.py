"""GPU kernels of `fastdrop.drop_block`: from where blocks begin to keep bits, and their scales.

The keep bits of an example are those of its maps, one run of `size` bits at the begin of `row`, a
multiple of 64; bits behind them are 0. A block begins only where it fits, so no shift, along a row
or by whole rows, carries it across an edge.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastdrop._core import PARTS
from fastdrop.backends.cuda.kernels.all import U32, U64, elements, packed
from fastdrop.backends.cuda.kernels.targets import target


@cache
def place_kernel(where: str, dtype: str) -> Any:
    """n bits of examples: 1 where a block begins. dtype is ignored.

    given: zeros are such places, in an array of shape (..., rows, columns); maps are height x
    width.
    """
    p = target(where)
    first, step, store_u16, bit = p.first, p.step, p.store_u16, packed(where).one

    @p.device
    def places(given, i, row, size, rows, columns, height, width):
        example = U64(i // row)
        at = U64(i - U64(example * row))
        line = U64(at // width)  # of all maps
        w = U64(at - U64(line * width))
        each = U64(height * width)
        begin = U64(U64(example * U64(size // each)) + U64(at // each))  # map of all examples
        h = U64(line % height)
        k = U32(0)
        j = U64(0)
        while j < U64(16) and U64(at + j) < size:
            if h < rows and w < columns:
                index = U64(U64(U64(U64(begin * rows) + h) * columns) + w)
                k = U32(k | U32(U32(bit(given, index) ^ U32(1)) << U32(j)))
            w = U64(w + U64(1))
            if w == width:
                w = U64(0)
                h = U64(h + U64(1))
                if h == height:
                    h = U64(0)
                    begin = U64(begin + U64(1))
            j = U64(j + U64(1))
        return k

    def place(given, saved, n, row, size, rows, columns, height, width):
        group = first()
        while U64(group << U64(4)) < n:
            k = places(given, U64(group << U64(4)), row, size, rows, columns, height, width)
            store_u16(U64(saved + U64(group << U64(1))), k)
            group = U64(group + step())

    return p.kernel(place)


@cache
def widen_kernel(where: str, dtype: str) -> Any:
    """Bit i of an example becomes the or of bits i, i - far, ... i - (k - 1) * far. dtype is
    ignored. keep: whether zeros and ones change places then.
    """
    p = target(where)
    first, step, load_u16, store_u16 = p.first, p.step, p.load_u16, p.store_u16
    sixteen = packed(where).sixteen

    @p.device
    def wider(given, i, at, far, k):
        """16 bits from the at-th of an example on."""
        bits = U32(0)
        back = U64(0)
        while k > U64(0) and back < U64(at + U64(16)):
            if back <= at:
                bits = U32(bits | sixteen(given, U64(i - back)))
            else:
                begin = load_u16(U64(given + U64(U64(i - at) >> U64(3))))
                bits = U32(bits | U32(begin << U32(back - at)))
            back = U64(back + far)
            k = U64(k - U64(1))
        return U32(bits & U32(0xFFFF))

    def widen(given, saved, n, row, size, far, k, keep):
        group = first()
        while U64(group << U64(4)) < n:
            i = U64(group << U64(4))
            at = U64(i % row)
            bits = wider(given, i, at, far, k)
            if keep != U64(0):
                left = U64(size - at) if at < size else U64(0)
                ones = U32(0xFFFF)
                if left < U64(16):
                    ones = U32(U32(U32(1) << U32(left)) - U32(1))
                bits = U32(U32(~bits) & ones)
            store_u16(U64(saved + U64(group << U64(1))), bits)
            group = U64(group + step())

    return p.kernel(widen)


@cache
def count_kernel(where: str, dtype: str) -> Any:
    """How many bits of n examples are 1, in parts: sums has PARTS uint64 for each. dtype is
    ignored.
    """
    p = target(where)
    first, step, load_u64, store_u64 = p.first, p.step, p.load_u64, p.store_u64
    parts = U64(PARTS)
    pairs, fours, eights = (
        U64(0x5555555555555555),
        U64(0x3333333333333333),
        U64(0x0F0F0F0F0F0F0F0F),
    )

    @p.device
    def ones(v):
        v = U64(v - U64(U64(v >> U64(1)) & pairs))
        v = U64(U64(v & fours) + U64(U64(v >> U64(2)) & fours))
        v = U64(U64(v + U64(v >> U64(4))) & eights)
        v = U64(v + U64(v >> U64(8)))
        v = U64(v + U64(v >> U64(16)))
        return U64(U64(v + U64(v >> U64(32))) & U64(0x7F))

    def count(given, sums, n, row):
        i = first()
        words = U64(row >> U64(6))
        while i < U64(n * parts):
            example = U64(i // parts)
            word = U64(i - U64(example * parts))
            total = U64(0)
            while word < words:
                at = U64(U64(example * words) + word)
                total = U64(total + ones(load_u64(U64(given + U64(at << U64(3))))))
                word = U64(word + parts)
            store_u64(U64(sums + U64(i << U64(3))), total)
            i = U64(i + step())

    return p.kernel(count)


@cache
def scale_kernel(where: str, dtype: str) -> Any:
    """From what `count_kernel` counted to n scales, of the compute type: size / ones, or 0."""
    p = target(where)
    e = elements(where, dtype)
    first, step, load_u64, f64 = p.first, p.step, p.load_u64, p.f64
    div, sub, real_item = p.div64, p.sub64, e.real_item
    parts, two52, two52_bits = U64(PARTS), np.float64(2**52), U64(0x4330000000000000)
    wide, bits, narrow = dtype == "float64", e.bits, p.narrow
    store = p.store_u64 if wide else p.store_u32

    @p.device
    def number(v):
        """Of v < 2^52, exact."""
        return sub(f64(U64(v | two52_bits)), two52)

    if wide:

        @p.device
        def real(v):
            return v

    else:

        @p.device
        def real(v):
            return narrow(v)

    def scale(sums, y, n, size):
        i = first()
        while i < n:
            total = U64(0)
            part = U64(0)
            while part < parts:
                at = U64(U64(i * parts) + part)
                total = U64(total + load_u64(U64(sums + U64(at << U64(3)))))
                part = U64(part + U64(1))
            quotient = div(number(size), number(total)) if total != U64(0) else number(total)
            store(U64(y + U64(i * real_item)), bits(real(quotient)))
            i = U64(i + step())

    return p.kernel(scale)
