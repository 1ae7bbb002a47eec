"""Packed masks: drawn, spread along axes, unpacked. 16 bits, a group, are a thread's, and 2 bytes.

None of these kernels has a dtype: they ignore it.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

from fastdrop.backends.cuda.kernels.layout import positions
from fastdrop.backends.cuda.kernels.philox import keep_bits
from fastdrop.backends.cuda.kernels.targets import U32, U64, target


@cache
def packed(where: str) -> SimpleNamespace:
    """``one(given, b)``: bit b of packed bits, 0 or 1; ``sixteen(given, b)``: those from it on;
    ``put(saved, group, k, n)``: a group's bits, and 0 from the n-th of all on.
    """
    t = target(where)
    load_u8, store_u16, bit, ones = t.load_u8, t.store_u16, t.bit, t.ones

    @t.device
    def one(given, b):
        return bit(load_u8(given + (b >> 3)), U32(b) & U32(7))

    @t.device
    def sixteen(given, b):
        byte = given + (b >> 3)
        end = given + (b + U64(15) >> 3)
        k = load_u8(byte) | load_u8(byte + U64(1)) << 8 | load_u8(end) << 16
        return U32(U32(k) >> (U32(b) & U32(7)))

    @t.device
    def put(saved, group, k, n):
        left = n - (group << 4)
        store_u16(saved + (group << 1), U32(k & ones(left)) if left < U64(16) else k)

    return SimpleNamespace(one=one, sixteen=sixteen, put=put)


@cache
def draw_kernel(
    where: str,
    dtype: str,
    source: str = "bytes",
    shifted: bool = False,
    axes: int = 0,
    small: bool = True,
) -> Any:
    """Packed keep bits of n elements: element i's index is `start` plus i, or with axes > 0 plus
    its position.
    """
    p, put = target(where), packed(where).put
    first, step = p.first, p.step
    keep16 = _keep16_of(where, source, shifted, axes, small)

    def draw_bits(saved, run, layout, draw):
        n, start = run
        group, groups = first(), n + U64(15) >> 4
        while group < groups:
            put(saved, group, keep16(group << 4, n, start, layout, draw), n)
            group += step()

    return p.kernel(draw_bits)


def _keep16_of(where: str, source: str, shifted: bool, axes: int, small: bool) -> Any:
    """``f(i, n, start, layout, draw)``: keep bits of 16 of n elements from the i-th on."""
    t = target(where)
    device, bit = t.device, t.bit
    of_group, from_any = keep_bits(where).of_group[source], keep_bits(where).from_any[source]

    if axes:
        (position, left_of), last = positions(where, axes, small, rows=True), axes - 1

        @device
        def keep16(i, n, start, layout, draw):
            shape, strides = layout[0], layout[1]
            m = min(n - i, U64(16))
            left = left_of(i, shape[last])
            if left >= m and strides[last] == U64(1):
                return from_any(start + position(i, layout), draw)
            k = U32(0)
            j = U64(0)
            while j < m:
                index = start + position(i + j, layout)
                group = of_group(index >> 4, draw)
                k = U32(k | bit(group, U32(index) & U32(15)) << j)
                j += U64(1)
            return k

    elif shifted:

        @device
        def keep16(i, n, start, layout, draw):
            return from_any(start + i, draw)

    else:

        @device
        def keep16(i, n, start, layout, draw):
            return of_group(start + i >> 4, draw)

    return keep16


@cache
def spread_kernel(where: str, dtype: str, axes: int = 1, small: bool = True) -> Any:
    """Packed bits from packed bits: bit i of n is the one at i's position."""
    p = target(where)
    first, step, last = p.first, p.step, axes - 1
    bit_at, sixteen, put = packed(where).one, packed(where).sixteen, packed(where).put
    position, left_of = positions(where, axes, small)

    @p.device
    def bits16(given, i, n, layout):
        shape, strides = layout
        m = min(n - i, U64(16))
        left = left_of(i, shape[last])
        b = position(i, layout)
        k = U32(0)
        if left >= m and strides[last] == U64(0):
            k = U32(U32(0) - bit_at(given, b))
        elif left >= U64(16) and strides[last] == U64(1):
            k = sixteen(given, b)
        else:
            j = U64(0)
            while j < m:
                k = U32(k | bit_at(given, b) << j)
                j += U64(1)
                left -= U64(1)
                b += strides[last]
                if left == U64(0):
                    b = position(i + j, layout)
                    left = shape[last]
        return U32(k & U32(0xFFFF))

    def spread(given, saved, n, layout):
        group, groups = first(), n + U64(15) >> 4
        while group < groups:
            put(saved, group, bits16(given, group << 4, n, layout), n)
            group += step()

    return p.kernel(spread)


@cache
def unpack_kernel(where: str, dtype: str) -> Any:
    """Packed bits to n bytes of 0 or 1, at a multiple of 16."""
    p = target(where)
    first, step, load_u16, store16, store_u8 = p.first, p.step, p.load_u16, p.store16, p.store_u8

    @p.device
    def bytes_of(k):
        """Bits 0 ... 3 to the lowest bits of four bytes."""
        return U32((k & U32(15)) * U32(0x00204081) & U32(0x01010101))

    def unpack(given, y, n):
        group, groups = first(), n + U64(15) >> 4
        while group < groups:
            i = group << 4
            k = load_u16(given + (group << 1))
            if n - i >= U64(16):
                a, b = bytes_of(k), bytes_of(k >> 4)
                c, d = bytes_of(k >> 8), bytes_of(k >> 12)
                store16(y + i, (a, b, c, d))
            else:
                while i < n:
                    store_u8(y + i, U32(k & U32(1)))
                    k = U32(k >> 1)
                    i += U64(1)
            group += step()

    return p.kernel(unpack)
