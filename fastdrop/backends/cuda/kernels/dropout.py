"""The kernel of the ops with a keep mask, from x to y: `chunks` where 16 elements are a group in
memory, and `operation` one by one elsewhere.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastdrop.backends.cuda.kernels.chunks import chunks, share
from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.masks import packed
from fastdrop.backends.cuda.kernels.operations import BIAS, GELU, RELU, RESIDUAL, operation
from fastdrop.backends.cuda.kernels.philox import keep_bits
from fastdrop.backends.cuda.kernels.targets import U32, U64, target

ALL = U32(0xFFFF)  # of a group


@cache
def dropout_kernel(
    where: str, dtype: str, op: str = "dropout", source: str = "bytes", shifted: bool = False
) -> Any:
    """The kernel of one op on contiguous arrays of n elements.

    Parameters
    ----------
    op : str
        See `operation`.
    source : {"bytes", "bits", "given", "same", "rows", "examples"}
        Whether keep bits are drawn, at any rate but 1/2 or at 1/2, or read from `given`, or are the
        16 bits of t again and again. "rows": y has rows of x, which is a table, by number, and
        `given` a bit for each row of the table, or is 0 if none is dropped. "examples": as "given",
        and each example has a scale of its own.
    shifted : bool
        Whether `start`, the index of element 0, may be no multiple of 16.

    Of the kernel's parameters, those are ignored that op and source have no use for; addresses are
    0 then. Keep bits (of ops with ReLU: those of active elements) go to `saved` if it is not 0.
    Packed bits begin at multiples of 2 bytes and have an even number of them. bias repeats after
    `row` elements; with `given`, t is what its bits are XORed with, 16 at a time. With "rows" and
    "examples" such a one has `row` elements, and `own` their numbers in x, uint64, or their scales,
    of the compute type; x has `words` rows, and what is in none of them is NaN.

    Elements go one by one where there is no whole group of 16 at multiples of 16 bytes, or where
    bias begins anew within it, or a NaN has to be made the one of a CPU.
    """
    p, e = target(where), elements(where, dtype)
    first, step, clz, store_u16 = p.first, p.step, p.clz, p.store_u16
    item, active_bits, has_bias = e.item, op in RELU, op in BIAS
    of_rows = source in ("rows", "examples")
    lanes = 1 if of_rows else p.LANES  # of a row's elements each group has its own address
    among, mine, ones = U64(lanes - 1), share(where, dtype, lanes), p.ones
    taken, given_back, position = mine.taken, mine.given_back, mine.position
    whole = chunks(where, dtype, op, lanes)
    keep16, own_of = _keep16(where, source, shifted), _own_of(where, dtype, source)
    single = _single(where, dtype, op, source)

    @p.device
    def aligned_of(arrays, row):
        x, residual, bias, y = arrays
        aligned = (x | y | residual | bias) & U64(15) == U64(0)
        if has_bias:
            aligned = aligned and row & U64(0xFFFFFFFF8000000F) == U64(0)
        if of_rows:
            aligned = aligned and row & U64(15) == U64(0)
        return aligned

    def dropout(arrays, bits, rows, run, draw, constants):
        x, residual, bias, y = arrays
        given, saved = bits
        _, row, _ = rows
        n, start = run
        scale, shift, dropped = constants
        group = first()
        lane = U32(group & among)
        aligned = aligned_of(arrays, row)
        apart = position(U32(0), lane)
        group -= U64(lane)  # the first of those that share their elements, who all go on as long
        column = columns = U32(0)
        if has_bias:
            column = U32(((group << 4) + apart) % row)  # in bias, of element i
            columns = U32((step() << 4) % row)
        while group << 4 < n:
            own = group + U64(lane)
            k = U32(0)
            if own << 4 < n:
                k = keep16(own, given, start, draw)
                left = n - (own << 4)
                if left < U64(16):
                    k = U32(k & ones(left))
            i = (group << 4) + apart
            place, k, s, known = own_of(i, x, given, rows, k, scale)
            keep = taken(k, lane)
            missing, active = ALL, U32(0)
            if aligned and known and i < n:
                at = i * item
                part = (n - i) * item, column, U32(row)
                these = place, residual + at, bias, y + at
                missing, active = whole(these, part, keep, (s, shift, dropped))
            while missing != U32(0):
                j = U32(U32(31) - clz(missing))
                bit = U32(U32(1) << j)
                missing = U32(missing ^ bit)
                at = (group << 4) + position(j, lane)
                if at < n:
                    a = single(at, arrays, given, rows, U32(keep & bit), constants)
                    active = U32(active & ~bit | a << j)
            if active_bits:
                active = given_back(active, lane)
            if saved != U64(0) and own << 4 < n:
                store_u16(saved + (own << 1), active if active_bits else k)
            group += step()
            if has_bias:
                column = U32(column + columns)
                column = U32(column - row) if column >= U32(row) else column

    # With 40 registers, the others would spill, on sm_80 or sm_120 if not on all.
    reads_more = has_bias or op in RESIDUAL
    plain = source in ("bytes", "bits") and not (shifted or reads_more)
    registers = (64 if op in GELU else 40 if plain else 48) + 8 * (dtype == "float64")
    return p.kernel(dropout, registers)


def _keep16(where: str, source: str, shifted: bool) -> Any:
    """``f(group, given, start, draw)``: keep bits of 16 elements."""
    t = target(where)
    device, load_u16 = t.device, t.load_u16
    if source in ("given", "examples"):

        @device
        def keep16(group, given, start, draw):
            return U32(load_u16(given + (group << 1)) ^ draw[2])

    elif source in ("same", "rows"):

        @device
        def keep16(group, given, start, draw):
            return draw[2]

    elif shifted:
        from_any = keep_bits(where).from_any[source]

        @device
        def keep16(group, given, start, draw):
            return from_any(start + (group << 4), draw)

    else:
        of_group = keep_bits(where).of_group[source]

        @device
        def keep16(group, given, start, draw):
            return of_group((start >> 4) + group, draw)

    return keep16


def _own_of(where: str, dtype: str, source: str) -> Any:
    """``f(i, x, given, rows, keep, scale)``: of element i its address in x, keep bits, scale, and
    whether x has it; keep and scale are what it has if its row has none of its own.
    """
    t, e = target(where), elements(where, dtype)
    device, item, load_u64, bit = t.device, e.item, t.load_u64, packed(where).one
    load_real, value, real_item = e.load_real, e.value, e.real_item

    if source == "rows":

        @device
        def own_of(i, x, given, rows, keep, scale):
            own, row, words = rows
            place = i // row
            number = load_u64(own + (place << 3))
            at = number * row + (i - place * row)
            known = number < words
            keep = ALL
            if known and given != U64(0):
                keep = U32(U32(0) - bit(given, number))
            return x + at * item, keep, scale, known

    elif source == "examples":

        @device
        def own_of(i, x, given, rows, keep, scale):
            own, row, _ = rows
            scale = value(load_real(own + i // row * real_item))
            return x + i * item, keep, scale, True

    else:

        @device
        def own_of(i, x, given, rows, keep, scale):
            return x + i * item, keep, scale, True

    return own_of


def _single(where: str, dtype: str, op: str, source: str) -> Any:
    """``f(i, arrays, given, rows, keep, constants)``: element i; whether it is active."""
    e = elements(where, dtype)
    load, store, decode, encode, item = e.load, e.store, e.decode, e.encode, e.item
    zero, nan, careful = e.zero, e.nan, operation(where, dtype, op, True)
    has_bias, has_residual, rows_of = op in BIAS, op in RESIDUAL, source == "rows"
    own_of = _own_of(where, dtype, source)

    @target(where).device
    def single(i, arrays, given, rows, keep, constants):
        x, residual, bias, y = arrays
        scale, shift, dropped = constants
        at = i * item
        place, k, scale, known = own_of(i, x, given, rows, keep, scale)
        r, b = zero, zero
        if has_residual:
            r = decode(load(residual + at))
        if has_bias:
            b = decode(load(bias + i % rows[1] * item))
        v = decode(load(place)) if known else nan
        v, active = careful((v, r, b), k != U32(0), (scale, shift, dropped))
        if rows_of and known and given == U64(0):
            store(y + at, load(place))  # a NaN as it is
        else:
            store(y + at, encode(v))
        return active

    return single
