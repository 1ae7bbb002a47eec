"""Sums in float64 of an array's columns, or of all its elements, in the order of the CPU's; and
products with weights.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastdrop._core import PARTS
from fastdrop.backends.cuda.kernels.elements import doubles, elements
from fastdrop.backends.cuda.kernels.targets import U64, target

NOTHING = np.float64(0)
EACH_PART = U64(PARTS)  # of the columns' sums; the parts are added up then
TILE = U64(4096)  # FD_TILE


@cache
def weighted_kernel(where: str, dtype: str) -> Any:
    """y = weights * x, n elements, or 0 where a weight is negative. weights: float64; x: that if
    `wide`, else float32, as is the product then, before it is rounded to y's dtype.
    """
    p, e = target(where), elements(where, dtype)
    first, step, store, item = p.first, p.step, e.store, e.item
    load_u32, load_u64, f64 = p.load_u32, p.load_u64, p.f64
    mul, rounded = elements(where, "float64").mul, doubles(where, dtype).rounded
    number, narrow = doubles(where, "float32").number, doubles(where, "float32").rounded

    def weighted(weights, x, y, n, wide):
        i = first()
        while i < n:
            weight = f64(load_u64(weights + (i << 3)))
            if wide != U64(0):
                v = mul(weight, f64(load_u64(x + (i << 3))))
            else:
                v = mul(weight, number(load_u32(x + (i << 2))))
                v = number(narrow(v))
            v = NOTHING if weight < NOTHING else v
            store(y + i * item, rounded(v))
            i += step()

    return p.kernel(weighted)


@cache
def sums_kernel(where: str, dtype: str, by: str = "rows") -> Any:
    """Sums of n elements over the columns of `row` elements, float64, a part of them each.

    by: "rows" or "tiles", of which each part has as many as any other, except for rounding, and 16
    rows at least. sums: one row for each of PARTS parts, 0 in those that have no rows. The order of
    additions is that of ``fd_backward_sums`` with
    "rows", where n is a multiple of `row`, and of ``fd_noise_backward`` with "tiles".
    """
    p, e = target(where), elements(where, dtype)
    first, step, load, item, store_u64, b64 = p.first, p.step, e.load, e.item, p.store_u64, p.b64
    add, number = elements(where, "float64").add, doubles(where, dtype).number
    tiled = by == "tiles"

    def sums_of(x, sums, n, row):
        i = first()
        unit = TILE if tiled else row
        units = (n + (unit - U64(1))) // unit
        parts = EACH_PART if tiled else max(U64(1), min(EACH_PART, (units + U64(15)) // U64(16)))
        while i < EACH_PART * row:
            part = i // row
            column = i - part * row
            begin = units * part // parts * unit
            end = min(units * (part + U64(1)) // parts * unit, n)
            at = begin // row * row + column
            at = at + row if at < begin else at
            total = NOTHING
            while at < end:
                total = add(total, number(load(x + at * item)))
                at += row
            store_u64(sums + (i << 3), b64(total))
            i += step()

    return p.kernel(sums_of)


@cache
def total_kernel(where: str, dtype: str, single: bool = False) -> Any:
    """What `sums_kernel` has left, to one sum: of each column, in dtype, or of all, in float64.

    single: the columns are 512, and added up in the order of NumPy's pairwise summation.
    """
    p, e = target(where), elements(where, dtype)
    first, step, store, item = p.first, p.step, e.store, e.item
    load_u64, store_u64, f64, b64 = p.load_u64, p.store_u64, p.f64, p.b64
    add, rounded = elements(where, "float64").add, doubles(where, dtype).rounded

    @p.device
    def column(sums, i, row):
        total = f64(load_u64(sums + (i << 3)))
        part = U64(1)
        while part < EACH_PART:
            total = add(total, f64(load_u64(sums + (part * row + i << 3))))
            part += U64(1)
        return total

    @p.device
    def strand(sums, begin, row):
        """Every eighth of 128 columns."""
        total = column(sums, begin, row)
        j = U64(8)
        while j < U64(128):
            total = add(total, column(sums, begin + j, row))
            j += U64(8)
        return total

    @p.device
    def four(sums, begin, row):
        a, b = strand(sums, begin, row), strand(sums, begin + U64(1), row)
        c, d = strand(sums, begin + U64(2), row), strand(sums, begin + U64(3), row)
        return add(add(a, b), add(c, d))

    @p.device
    def of_128(sums, begin, row):
        return add(four(sums, begin, row), four(sums, begin + U64(4), row))

    def total_of(sums, y, row):
        i = first()
        if single:
            if i == U64(0):
                low = add(of_128(sums, U64(0), row), of_128(sums, U64(128), row))
                high = add(of_128(sums, U64(256), row), of_128(sums, U64(384), row))
                store_u64(y, b64(add(low, high)))
        else:
            while i < row:
                store(y + i * item, rounded(column(sums, i, row)))
                i += step()

    return p.kernel(total_of)
