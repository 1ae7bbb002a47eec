"""The instructions that compute a value: their spelling, the types they read, what they do.

A function gets the match of the spelling and the sources, as arrays of the executing threads or of
length 1, and returns the result, or two (``p|q``). Rounding is as IEEE 754 and the PTX ISA have it.
"""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np

from helpers.ptx.memory import Fault

TYPES = {
    f"{kind}{width}": np.dtype(f"{'i' if kind == 's' else 'u'}{width // 8}")
    for kind in "bus"
    for width in (8, 16, 32, 64)
}
TYPES |= {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8")}
TYPES |= {"pred": np.dtype(bool), "bf16": np.dtype("u2")}
INTEGER, BITS, FLOAT = r"(?P<t>[us](?:16|32|64))", r"(?P<t>b(?:16|32|64)|pred)", r"(?P<t>f32|f64)"

VALUES: list[tuple[re.Pattern, str, object]] = []


def value(pattern: str, reads: str):
    """Adds an instruction: its spelling, and the type of each source.

    t: the type that `pattern` names; w: twice as wide; u: u32; p: predicate.
    """

    def add(function):
        VALUES.append((re.compile(pattern), reads, function))
        return function

    return add


def wide(t: np.dtype) -> np.dtype:
    return np.dtype(f"{t.kind}{2 * t.itemsize}")


def unsigned(t: np.dtype) -> np.dtype:
    return t if t == np.bool_ else np.dtype(f"u{t.itemsize}")


def canonical(y: np.ndarray) -> np.ndarray:
    """float32 arithmetic on a GPU gives one NaN, 0x7fffffff."""
    if y.dtype == np.float32 and np.isnan(y).any():
        y = np.where(np.isnan(y), np.uint32(0x7FFFFFFF), y.view(np.uint32)).view(np.float32)
    return y


@value(rf"(add|sub)\.{INTEGER}", "tt")
def add(m, a, b):
    return a + b if m[1] == "add" else a - b


@value(rf"(mul)\.(lo|hi)\.{INTEGER}", "tt")
@value(r"(mul)\.(wide)\.(?P<t>[us](?:16|32))", "tt")
def multiply(m, a, b):
    t = a.dtype
    if m[2] == "lo":
        return a * b
    if t.itemsize < 8:
        y = a.astype(wide(t)) * b.astype(wide(t))
        return y if m[2] == "wide" else (y >> (8 * t.itemsize)).astype(t)
    u, v, low, half = a.view("u8"), b.view("u8"), np.uint64(0xFFFFFFFF), np.uint64(32)
    cross = (u >> half) * (v & low) + ((u & low) * (v & low) >> half)
    other = (u & low) * (v >> half) + (cross & low)
    high = (u >> half) * (v >> half) + (cross >> half) + (other >> half)
    if t.kind == "i":
        high = high - np.where(a < 0, v, np.uint64(0)) - np.where(b < 0, u, np.uint64(0))
    return high.view(t)


@value(rf"(mad)\.(lo|hi)\.{INTEGER}", "ttt")
@value(r"(mad)\.(wide)\.(?P<t>[us](?:16|32))", "ttw")
def multiply_add(m, a, b, c):
    return multiply(m, a, b) + c


@value(rf"(div|rem)\.{INTEGER}", "tt")
def divide(m, a, b):
    if (b == 0).any():
        raise Fault("integer division by zero")
    u = unsigned(a.dtype)
    size = np.abs(a).view(u) // np.abs(b).view(u)
    quotient = np.where((a < 0) != (b < 0), np.zeros_like(size) - size, size).view(a.dtype)
    return quotient if m[1] == "div" else a - quotient * b


@value(rf"(neg|abs)\.(?:{INTEGER})", "t")
def negate_integer(m, a):
    return np.zeros_like(a) - a if m[1] == "neg" else np.abs(a)


@value(rf"(min|max)\.{INTEGER}", "tt")
def least_integer(m, a, b):
    return np.minimum(a, b) if m[1] == "min" else np.maximum(a, b)


@value(rf"(and|or|xor)\.{BITS}", "tt")
def logic(m, a, b):
    return {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[m[1]](a, b)


@value(rf"not\.{BITS}", "t")
def invert(m, a):
    return ~a


@value(r"(shl)\.(?P<t>b(?:16|32|64))", "tu")
@value(r"(shr)\.(?P<t>[bus](?:16|32|64))", "tu")
def shift(m, a, n):
    n = np.minimum(n, 64).astype(a.dtype)  # NumPy shifts everything out beyond the width, too
    return a << n if m[1] == "shl" else a >> n


@value(r"shf\.(l|r)\.(wrap|clamp)\.(?P<t>b32)", "ttu")
def funnel_shift(m, low, high, n):
    n = (n & 31 if m[2] == "wrap" else np.minimum(n, 32)).astype(np.uint64)
    both = high.astype(np.uint64) << np.uint64(32) | low
    return (both << n >> np.uint64(32) if m[1] == "l" else both >> n).astype(np.uint32)


@value(r"prmt\.(?P<t>b32)", "ttt")
def permute(m, a, b, selector):
    both = b.astype(np.uint64) << np.uint64(32) | a
    y = np.zeros((), np.uint64)
    for k in range(4):
        pick = (selector >> np.uint32(4 * k)).astype(np.uint64)
        byte = both >> np.uint64(8) * (pick & np.uint64(7)) & np.uint64(0xFF)
        sign = np.where(byte >> np.uint64(7) != 0, np.uint64(0xFF), np.uint64(0))
        y = y | np.where(pick & np.uint64(8) != 0, sign, byte) << np.uint64(8 * k)
    return y.astype(np.uint32)


@value(r"lop3\.(?P<t>b32)", "tttu")
def look_up(m, a, b, c, table):
    y = np.zeros((), np.uint32)
    for k in range(8):
        term = (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        y = y | np.where(table >> np.uint32(k) & 1 != 0, term, np.uint32(0))
    return y


def field(width, position, length):
    """Where a bit field is. Beyond 255 the manual says to mask, but ptxas does not at 64 bits."""
    if width == 64 and ((position | length) > 255).any():
        raise Fault("bit field beyond 255")
    return position & 0xFF, np.minimum(length & 0xFF, width)


@value(r"bfe\.(?P<t>[us](?:32|64))", "tuu")
def extract_field(m, a, position, length):
    width = 8 * a.itemsize
    position, length = field(width, position, length)
    above = (width - length).astype(a.dtype)
    return a >> position.astype(a.dtype) << above >> above


@value(r"bfi\.(?P<t>b(?:32|64))", "ttuu")
def insert_field(m, a, b, position, length):
    position, length = (v.astype(a.dtype) for v in field(8 * a.itemsize, position, length))
    mask = ~(~np.zeros((), a.dtype) << length) << position
    return b & ~mask | a << position & mask


@value(r"popc\.(?P<t>b(?:32|64))", "t")
def count_ones(m, a):
    return np.bitwise_count(a).astype(np.uint32)


@value(r"(clz|bfind(?:\.shiftamt)?)\.(?P<t>[bu](?:32|64))", "t")
def leading_zeros(m, a):
    width = 8 * a.itemsize
    for k in (1, 2, 4, 8, 16, 32)[: width.bit_length() - 1]:
        a = a | a >> a.dtype.type(k)
    length = np.bitwise_count(a).astype(np.uint32)
    if m[1] == "bfind":
        return length - np.uint32(1)
    zeros = np.uint32(width) - length
    return zeros if m[1] == "clz" else np.where(length == 0, ~np.uint32(0), zeros)


@value(r"brev\.(?P<t>b(?:32|64))", "t")
def reverse(m, a):
    shape = (*a.shape, a.itemsize)
    bits = np.unpackbits(np.ascontiguousarray(a).view("u1").reshape(shape), axis=-1)
    return np.packbits(bits[..., ::-1], axis=-1, bitorder="big").view(a.dtype)[..., 0]


@value(r"selp\.(?P<t>[busf](?:16|32|64))", "ttp")
def select(m, a, b, p):
    return np.where(p, a, b)


COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
           "gt": np.greater, "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal,
           "hi": np.greater, "hs": np.greater_equal}  # fmt: skip


@value(r"setp\.(?P<c>eq|ne)()\.(?P<t>b(?:16|32|64))", "tt")
@value(r"setp\.(?P<c>eq|ne)\.(and|or|xor)\.(?P<t>b(?:16|32|64))", "ttp")
@value(rf"setp\.(?P<c>eq|ne|l[teos]|g[te]|h[is])()\.{INTEGER}", "tt")
@value(rf"setp\.(?P<c>eq|ne|l[teos]|g[te]|h[is])\.(and|or|xor)\.{INTEGER}", "ttp")
@value(rf"setp\.(?P<c>(?:eq|ne|l[te]|g[te])u?|num|nan)()\.{FLOAT}", "tt")
@value(rf"setp\.(?P<c>(?:eq|ne|l[te]|g[te])u?|num|nan)\.(and|or|xor)\.{FLOAT}", "ttp")
def compare(m, a, b, p=None):
    """Two results: what was asked, and the same with the comparison inverted (p|q)."""
    nan = (a != a) | (b != b)
    if m["c"] in ("num", "nan"):
        y = nan == (m["c"] == "nan")
    elif a.dtype.kind == "f" and m["c"].endswith("u"):
        y = COMPARE[m["c"][:-1]](a, b) | nan
    else:  # of floats, ne too is false for a NaN
        y = COMPARE[m["c"]](a, b) & ~nan
    join = {"": lambda y: y, "and": lambda y: y & p, "or": lambda y: y | p, "xor": lambda y: y ^ p}
    return join[m[2]](y), join[m[2]](~y)


# mul without .rn may be contracted with an add without .rn: such an add is not in the table.
@value(rf"(add|sub|mul|div)\.rn\.{FLOAT}", "tt")
@value(rf"(mul)\.{FLOAT}", "tt")
def arithmetic(m, a, b):
    f = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[m[1]]
    return canonical(f(a, b))


@value(rf"(sqrt|rcp)\.rn\.{FLOAT}", "t")
def root(m, a):
    return canonical(np.sqrt(a) if m[1] == "sqrt" else a.dtype.type(1) / a)


@value(rf"(neg|abs)\.{FLOAT}", "t")
def negate(m, a):
    return -a if m[1] == "neg" else np.abs(a)


@value(rf"(min|max)\.{FLOAT}", "tt")
def least(m, a, b):
    if m[1] == "max":
        return canonical(-least({1: "min"}, -a, -b))
    y = np.where((a < b) | (a == b) & np.signbit(a) | (b != b), a, b)  # -0 < +0, NaN gives way
    return canonical(y)


@value(r"fma\.rn\.(?P<t>f32)", "ttt")
def fma32(m, a, b, c):
    """The product is exact in float64; the sum is rounded to odd, so the next rounding is right."""
    p, c = a.astype(np.float64) * b, c.astype(np.float64)
    s = p + c
    t = s - p
    error = (p - (s - t)) + (c - t)
    nudge = np.isfinite(error) & (error != 0) & (s.view(np.int64) & 1 == 0)
    s = np.where(nudge, np.nextafter(s, np.copysign(np.inf, error)), s)
    return canonical(s.astype(np.float32))


@value(r"fma\.rn\.(?P<t>f64)", "ttt")
def fma64(m, a, b, c):
    """Exact, slow: in fractions."""

    def one(a, b, c):
        if not np.isfinite([a, b, c]).all() or 0 in (a, b):
            return a * b + c
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        try:
            return float(exact)
        except OverflowError:
            return np.inf if exact > 0 else -np.inf

    return np.frompyfunc(one, 3, 1)(a, b, c).astype(np.float64)


# Conversions


def directed(x: np.ndarray, t: np.dtype, mode: str) -> np.ndarray:
    """x rounded to a narrower float: nearest even, toward zero, down, up."""
    y = x.astype(t)
    if mode != "rn":
        back = y.astype(x.dtype)
        low, high = back < x, back > x
        up = low & ((mode == "rp") | (mode == "rz") & (x < 0))
        down = high & ((mode == "rm") | (mode == "rz") & (x > 0))
        inf = t.type(np.inf)
        y = np.where(up, np.nextafter(y, inf), np.where(down, np.nextafter(y, -inf), y))
    return y


def narrow(x: np.ndarray, to: str, mode: str) -> np.ndarray:
    """float32 to the bits of a 16-bit float; any NaN becomes 0x7fff."""
    if to == "f16":
        y = directed(x, TYPES["f16"], mode).view(np.uint16)
    elif mode != "rn":
        raise Fault(f"bf16 rounded by {mode}")
    else:
        u = x.view(np.uint32)
        y = (u + np.uint32(0x7FFF) + (u >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)).astype(
            "u2"
        )
    return np.where(np.isnan(x), np.uint16(0x7FFF), y)


NUMBER = r"(?:[us](?:8|16|32|64)|f16|f32|f64)"


@value(r"cvt\.(rn|rz)\.(f16|bf16)x2\.(?P<t>f32)", "tt")
def pack_halves(m, high, low):
    high, low = (narrow(v, m[2], m[1]).astype(np.uint32) for v in (high, low))
    return high << np.uint32(16) | low


@value(r"cvt\.(rn|rz)\.(bf16)\.(?P<t>f32)", "t")
@value(r"cvt\.(rn|rz|rm|rp)\.(f16)\.(?P<t>f32)", "t")
def half(m, a):
    return narrow(a, m[2], m[1])


@value(r"cvt\.f32\.(?P<t>bf16)", "t")
def from_bfloat16(m, a):
    return canonical((a.astype(np.uint32) << np.uint32(16)).view(np.float32))


@value(rf"cvt(?:\.(rn|rz|rm|rp|rni|rzi|rmi|rpi))?(\.sat)?\.({NUMBER})\.(?P<t>{NUMBER})", "t")
def convert(m, a):
    mode, saturate, to, t = m[1], m[2], TYPES[m[3]], a.dtype
    floats = (to.kind == "f") + (t.kind == "f")
    if floats == 0 and mode is None:
        if saturate:
            low, high = np.iinfo(to).min, np.iinfo(to).max
            a = np.where(a < low, low, np.where(a > high, high, a))
        return a.astype(to)
    whole = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    if saturate or (to.kind == "f") == (t.kind == "f" and mode in whole and to != t):
        raise Fault(f"conversion {m[0]}")
    if to.kind != "f" and mode in whole:
        low, high = np.iinfo(to).min, np.iinfo(to).max
        y, wide_ = whole[mode](a), t == np.float64 or to.itemsize == 8
        inside = (y >= low) & (y < float(high) + 1 if high > 2**16 else y <= high)
        limit = np.where(y < 0, low, high).astype(to)
        nan = to.type(1 << 8 * to.itemsize - 1 if to.kind == "u" else low) if wide_ else to.type(0)
        y = np.where(inside, np.where(inside, y, 0).astype(to), limit)
        return np.where(np.isnan(a), nan, y)
    if floats == 2 and to == t and mode in whole:
        return canonical(whole[mode](a))
    if floats == 2 and to.itemsize > t.itemsize and mode is None:
        return canonical(a.astype(to))
    if floats == 2 and to.itemsize < t.itemsize and mode in ("rn", "rz", "rm", "rp"):
        return canonical(directed(a, to, mode))
    if floats == 1 and to.kind == "f" and mode == "rn":
        return a.astype(to)
    raise Fault(f"conversion {m[0]}")
