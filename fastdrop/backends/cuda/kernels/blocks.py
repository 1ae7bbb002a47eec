"""GPU kernels of `fastdrop.drop_block`: from where squares begin to keep bits, and their scales.

The keep bits of an example are those of its maps, one run of `size` bits at the begin of `row`, a
multiple of 64; bits behind them are 0; ``example = row, size``. A square begins only where it fits,
so no shift, along a row or by whole rows, carries it across an edge.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastdrop._core import PARTS
from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.masks import packed
from fastdrop.backends.cuda.kernels.targets import U32, U64, target

EACH_PART = U64(PARTS)  # of what is counted


@cache
def place_kernel(where: str, dtype: str) -> Any:
    """n bits of examples: 1 where a square begins. dtype is ignored.

    given: zeros are such places, in an array of shape (..., rows, columns); maps are height x
    width.
    """
    p = target(where)
    first, step, store_u16, bit = p.first, p.step, p.store_u16, packed(where).one

    @p.device
    def places(given, i, example, begins, sides):
        (row, size), (rows, columns), (height, width) = example, begins, sides
        number = i // row
        at = i - number * row
        line = at // width  # of all maps
        w = at - line * width
        each = height * width
        begin = number * (size // each) + at // each  # map of all examples
        h = line % height
        k = U32(0)
        j = U64(0)
        while j < U64(16) and at + j < size:
            if h < rows and w < columns:
                place = (begin * rows + h) * columns + w
                k = U32(k | (bit(given, place) ^ U32(1)) << j)
            w += U64(1)
            if w == width:
                w = U64(0)
                h += U64(1)
                if h == height:
                    h = U64(0)
                    begin += U64(1)
            j += U64(1)
        return k

    def place(given, saved, n, example, begins, sides):
        group = first()
        while group << 4 < n:
            k = places(given, group << 4, example, begins, sides)
            store_u16(saved + (group << 1), k)
            group += step()

    return p.kernel(place)


@cache
def widen_kernel(where: str, dtype: str) -> Any:
    """Bit i of an example becomes the or of bits i, i - far, ... i - (k - 1) * far. dtype is
    ignored. keep: whether zeros and ones change places then.
    """
    p = target(where)
    first, step, load_u16, store_u16 = p.first, p.step, p.load_u16, p.store_u16
    sixteen, ones = packed(where).sixteen, p.ones

    @p.device
    def wider(given, i, at, far, k):
        """16 bits from the at-th of an example on."""
        bits = U32(0)
        back = U64(0)
        while k > U64(0) and back < at + U64(16):
            if back <= at:
                bits = U32(bits | sixteen(given, i - back))
            else:
                bits = U32(bits | load_u16(given + (i - at >> 3)) << (back - at))
            back += far
            k -= U64(1)
        return U32(bits & U32(0xFFFF))

    def widen(given, saved, n, example, far, k, keep):
        row, size = example
        group = first()
        while group << 4 < n:
            i = group << 4
            at = i % row
            bits = wider(given, i, at, far, k)
            if keep != U64(0):
                left = size - at if at < size else U64(0)
                bits = U32(~bits & ones(min(left, U64(16))))
            store_u16(saved + (group << 1), bits)
            group += step()

    return p.kernel(widen)


@cache
def count_kernel(where: str, dtype: str) -> Any:
    """How many bits of n examples are 1, in parts: sums has PARTS uint64 for each. dtype is
    ignored.
    """
    p = target(where)
    first, step, load_u64, store_u64 = p.first, p.step, p.load_u64, p.store_u64
    pairs, fours = U64(0x5555555555555555), U64(0x3333333333333333)
    eights, whole = U64(0x0F0F0F0F0F0F0F0F), U64(0x7F)

    @p.device
    def ones_of(v):
        v = v - (v >> 1 & pairs)
        v = (v & fours) + (v >> 2 & fours)
        v = v + (v >> 4) & eights
        v = v + (v >> 8)
        v = v + (v >> 16)
        return v + (v >> 32) & whole

    def count(given, sums, n, row):
        i = first()
        words = row >> 6
        while i < n * EACH_PART:
            example = i // EACH_PART
            word = i - example * EACH_PART
            total = U64(0)
            while word < words:
                total += ones_of(load_u64(given + (example * words + word << 3)))
                word += EACH_PART
            store_u64(sums + (i << 3), total)
            i += step()

    return p.kernel(count)


@cache
def scale_kernel(where: str, dtype: str) -> Any:
    """From what `count_kernel` counted to n scales, of the compute type: size / ones, or 0."""
    p, e = target(where), elements(where, dtype)
    first, step, load_u64, f64, narrow = p.first, p.step, p.load_u64, p.f64, p.narrow
    div, sub, real_item, store, bits = p.div64, p.sub64, e.real_item, e.store_real, e.bits
    two52, two52_bits = np.float64(2**52), U64(0x4330000000000000)
    wide = dtype == "float64"

    @p.device
    def number(v):
        """Of v < 2^52, exact."""
        return sub(f64(v | two52_bits), two52)

    @p.device
    def real(v):
        return v if wide else narrow(v)

    def scale(sums, y, n, size):
        i = first()
        while i < n:
            total = U64(0)
            part = U64(0)
            while part < EACH_PART:
                total += load_u64(sums + (i * EACH_PART + part << 3))
                part += U64(1)
            quotient = div(number(size), number(total)) if total != U64(0) else number(total)
            store(y + i * real_item, bits(real(quotient)))
            i += step()

    return p.kernel(scale)
