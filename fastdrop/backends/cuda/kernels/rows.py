"""GPU kernels of `fastdrop.embedding_dropout`: rows of a table by number, and back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fastdrop.backends.cuda.kernels.elements import doubles, elements
from fastdrop.backends.cuda.kernels.layout import positions
from fastdrop.backends.cuda.kernels.masks import packed
from fastdrop.backends.cuda.kernels.targets import U32, U64, target

WAYS = 16  # runs that a pass of `sort_kernel` merges


@cache
def ids_kernel(where: str, dtype: str, axes: int = 1) -> Any:
    """Integers of any layout to n uint64: of `width` bits each; one beyond `words`, or a negative
    one, becomes `words`. strides are in bytes; dtype is ignored.
    """
    p = target(where)
    first, step, load_u8, store_u64 = p.first, p.step, p.load_u8, p.store_u64
    position, _ = positions(where, axes, False)

    def ids(x, y, n, integer, words, layout):
        width, signed = integer
        i = first()
        while i < n:
            at = x + position(i, layout)
            number, bits = U64(0), U64(0)
            byte = U32(0)
            while bits < width:
                byte = load_u8(at + (bits >> 3))
                number |= U64(byte) << bits
                bits += U64(8)
            if signed != U64(0) and byte >= U32(128):
                number = words
            store_u64(y + (i << 3), min(number, words))
            i += step()

    return p.kernel(ids)


@cache
def sort_kernel(where: str, dtype: str) -> Any:
    """y = x, uint64, n of them and no two equal, with sorted runs of 16 times the length: where x
    has runs of `run`. With a run of 1, x[i] * n + i takes the place of x[i]. dtype is ignored.
    """
    p = target(where)
    first, step, load_u64, store_u64 = p.first, p.step, p.load_u64, p.store_u64

    @p.device
    def key(x, i, n, run):
        v = load_u64(x + (i << 3))
        return v * n + i if run == U64(1) else v

    @p.device
    def smaller(v, x, low, high, n, run):
        """How many of a run are."""
        begin = low
        while low < high:
            middle = low + high >> 1
            if key(x, middle, n, run) < v:
                low = middle + U64(1)
            else:
                high = middle
        return low - begin

    def sort(x, y, n, run):
        i = first()
        longer = run * U64(WAYS)
        while i < n:
            v = key(x, i, n, run)
            low = i - i % longer
            end = min(low + longer, n)
            at = low
            while low < end:
                high = min(low + run, end)
                at += smaller(v, x, low, high, n, run)
                low = high
            store_u64(y + (at << 3), v)
            i += step()

    return p.kernel(sort)


@cache
def add_rows_kernel(where: str, dtype: str) -> Any:
    """Row w of y = scale times the sum of those rows of x whose number is w, added in float64 in
    their order; rows of y that get none, or whose bit in `given` is 0, stay as they are.

    given: a bit for each of y's `words` rows of `row` elements, or 0. order: sorted, number * n +
    i for each of x's n rows.
    """
    p = target(where)
    e, wide, d = elements(where, dtype), elements(where, "float64"), doubles(where, dtype)
    first, step, load_u64, bit = p.first, p.step, p.load_u64, packed(where).one
    load, store, item, number, rounded = e.load, e.store, e.item, d.number, d.rounded
    add, mul, nothing = wide.add, wide.mul, np.float64(0)

    @p.device
    def key(order, place):
        return load_u64(order + (place << 3))

    @p.device
    def begins(order, place, low):
        """Whether no row in front has a key from low on."""
        return place == U64(0) or key(order, place - U64(1)) < low

    @p.device
    def kept(given, word):
        return given == U64(0) or bit(given, word) != U32(0)

    def add_rows(order, x, given, y, n, row, words, scale):
        i = first()
        while i < n * row:
            place = i // row
            column = i - place * row
            k = key(order, place)
            word = k // n
            low = word * n
            if word < words and begins(order, place, low) and kept(given, word):
                total = nothing
                while place < n and k < low + n:
                    at = (k - low) * row + column
                    total = add(total, number(load(x + at * item)))
                    place += U64(1)
                    k = key(order, place) if place < n else k
                store(y + (word * row + column) * item, rounded(mul(total, scale)))
            i += step()

    return p.kernel(add_rows)
