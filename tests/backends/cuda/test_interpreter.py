"""The PTX interpreter itself: every instruction against its definition, every fault."""

import math
import re
import struct
from fractions import Fraction

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.ptx import Fault, Kernel, Memory
from helpers.ptx.kernel import Launch
from sass import assemble, tool

needs_ptxas = pytest.mark.skipif(
    not (tool("ptxas") and tool("nvdisasm")), reason="no ptxas: pip install 'fastdrop[test-cuda]'"
)
NAN32 = np.array([0x7FFFFFFF], np.uint32).view(np.float32)[0]


def module(body, *parameters):
    """A kernel around a few instructions; `parameters` are its arrays' addresses."""
    listed = ", ".join(f".param .u64 {p}" for p in parameters)
    return f"""
.version 8.8
.target sm_90
.address_size 64
.visible .entry kernel({listed})
{{
    .reg .pred %p<8>;
    .reg .b16 %h<8>;
    .reg .b32 %r<8>;
    .reg .f32 %f<8>;
    .reg .b64 %d<16>;
    mov.u32 %r7, %tid.x;
    {body}
    ret;
}}
"""


def around(instruction, out, *dtypes):
    """PTX of one thread an element: sources %a, %b, ... of these dtypes, result %y."""
    arrays = dict(zip("abcd", dtypes, strict=False)) | {"y": out}
    lines = []
    for k, (name, dtype) in enumerate(arrays.items()):
        kind, size = f"b{8 * max(np.dtype(dtype).itemsize, 2)}", np.dtype(dtype).itemsize
        lines.append(f"""
    .reg .{kind} %{name};
    ld.param.u64 %d{k}, [{name}];
    mul.wide.u32 %d15, %r7, {size};
    add.s64 %d{k}, %d{k}, %d15;""")
        lines.append(f"    ld.global.{kind} %{name}, [%d{k}];" if name != "y" else instruction)
    lines.append(f"    st.global.{kind} [%d{k}], %y;")
    return module("\n".join(lines), *arrays)


def execute(instruction, out, *columns):
    """The result of the instruction for each element of the columns."""
    memory = Memory(1 << 22)
    y = np.zeros(len(columns[0]), out)
    addresses = [memory.put(c) for c in (*columns, y)]
    text = around(instruction, out, *(c.dtype for c in columns))
    Kernel(text).launch(memory, 1, len(y), *addresses)
    return memory.get(addresses[-1])


# Values: each instruction against a definition in Python's integers and fractions ----------------

U16, U32, U64, S16, S32, S64 = "u2", "u4", "u8", "i2", "i4", "i8"
F16, F32, F64 = "f2", "f4", "f8"


def bits(dtype):
    return 8 * np.dtype(dtype).itemsize


def wrap(n, dtype):
    """n in two's complement."""
    n %= 1 << bits(dtype)
    return n - (1 << bits(dtype)) if dtype[0] == "i" and n >> bits(dtype) - 1 else n


def clamp(n, dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return min(max(n, int(low)), int(high))


def nearest(exact, dtype):
    """A fraction rounded to nearest even, by looking at the neighbours."""
    info = np.finfo(dtype)
    limit = Fraction(float(info.max)) + Fraction(2) ** (int(info.maxexp) - info.nmant - 2)
    if abs(exact) >= limit:
        return math.inf if exact > 0 else -math.inf
    y = np.array(float(exact), dtype)
    if np.isinf(y):
        y = np.array(math.copysign(float(info.max), exact), dtype)
    near = [y, np.nextafter(y, y.dtype.type(np.inf)), np.nextafter(y, y.dtype.type(-np.inf))]
    near = [v for v in near if np.isfinite(v)]

    def rank(v):
        return abs(Fraction(float(v)) - exact), int(v.view(f"u{v.itemsize}")) & 1

    y = min(near, key=rank)
    return math.copysign(float(y), -1.0 if exact < 0 else 1.0)


def permuted(a, b, selector):
    data = struct.pack("<II", a, b)
    picked = []
    for k in range(4):
        nibble = selector >> 4 * k & 15
        byte = data[nibble & 7]
        picked.append((0xFF if byte & 0x80 else 0) if nibble & 8 else byte)
    return int.from_bytes(bytes(picked), "little")


def field(a, position, length, dtype):
    """The PTX manual's loop."""
    width = bits(dtype)
    position, length = position & 0xFF, length & 0xFF
    u = a % (1 << width)
    sign = 0
    if dtype[0] == "i" and length:
        sign = u >> min(position + length - 1, width - 1) & 1
    y = 0
    for k in range(width):
        bit = u >> position + k & 1 if k < length and position + k < width else sign
        y |= bit << k
    return wrap(y, dtype)


def inserted(a, b, position, length, width):
    position, length = position & 0xFF, length & 0xFF
    for k in range(length):
        if position + k < width:
            b = b & ~(1 << position + k) | (a >> k & 1) << position + k
    return b


def truncated(a, b):
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def funnel(low, high, n, left):
    both = high << 32 | low
    return both << n >> 32 & 0xFFFFFFFF if left else both >> n & 0xFFFFFFFF


INTEGER = [
    # instruction, result, sources, definition
    *[(f"add.{t}{w} %y, %a, %b;", f"{k}{w // 8}", f"{k}{w // 8}" * 2, lambda a, b: a + b)
      for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    *[(f"sub.{t}{w} %y, %a, %b;", f"{k}{w // 8}", f"{k}{w // 8}" * 2, lambda a, b: a - b)
      for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    *[(f"mul.lo.{t}{w} %y, %a, %b;", f"{k}{w // 8}", f"{k}{w // 8}" * 2, lambda a, b: a * b)
      for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    *[(f"mul.hi.{t}{w} %y, %a, %b;", f"{k}{w // 8}", f"{k}{w // 8}" * 2,
       lambda a, b, w=w: a * b >> w)
      for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    *[(f"mul.wide.{t}{w} %y, %a, %b;", f"{k}{w // 4}", f"{k}{w // 8}" * 2, lambda a, b: a * b)
      for t, k in (("u", "u"), ("s", "i")) for w in (16, 32)],
    *[(f"mad.lo.{t}{w} %y, %a, %b, %c;", f"{k}{w // 8}", f"{k}{w // 8}" * 3,
       lambda a, b, c: a * b + c) for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    ("mad.hi.u32 %y, %a, %b, %c;", U32, U32 * 3, lambda a, b, c: (a * b >> 32) + c),
    ("mad.wide.s32 %y, %a, %b, %c;", S64, S32 * 2 + S64, lambda a, b, c: a * b + c),
    ("mad.wide.u32 %y, %a, %b, %c;", U64, U32 * 2 + U64, lambda a, b, c: a * b + c),
    ("neg.s32 %y, %a;", S32, S32, lambda a: -a),
    ("abs.s64 %y, %a;", S64, S64, abs),
    ("min.s32 %y, %a, %b;", S32, S32 * 2, min),
    ("max.u64 %y, %a, %b;", U64, U64 * 2, max),
    ("and.b32 %y, %a, %b;", U32, U32 * 2, lambda a, b: a & b),
    ("or.b64 %y, %a, %b;", U64, U64 * 2, lambda a, b: a | b),
    ("xor.b16 %y, %a, %b;", U16, U16 * 2, lambda a, b: a ^ b),
    ("not.b64 %y, %a;", U64, U64, lambda a: ~a),
    *[(f"shl.b{w} %y, %a, %b;", f"u{w // 8}", f"u{w // 8}" + U32, lambda a, b: a << min(b, 64))
      for w in (16, 32, 64)],
    *[(f"shr.{t}{w} %y, %a, %b;", f"{k}{w // 8}", f"{k}{w // 8}" + U32,
       lambda a, b: a >> min(b, 64)) for t, k in (("u", "u"), ("s", "i")) for w in (16, 32, 64)],
    ("shf.l.wrap.b32 %y, %a, %b, %c;", U32, U32 * 3, lambda a, b, c: funnel(a, b, c & 31, True)),
    ("shf.r.wrap.b32 %y, %a, %b, %c;", U32, U32 * 3, lambda a, b, c: funnel(a, b, c & 31, False)),
    ("shf.l.clamp.b32 %y, %a, %b, %c;", U32, U32 * 3,
     lambda a, b, c: funnel(a, b, min(c, 32), True)),
    ("shf.r.clamp.b32 %y, %a, %b, %c;", U32, U32 * 3,
     lambda a, b, c: funnel(a, b, min(c, 32), False)),
    ("prmt.b32 %y, %a, %b, %c;", U32, U32 * 3, permuted),
    *[(f"lop3.b32 %y, %a, %b, %c, {hex(table)};", U32, U32 * 3,
       lambda a, b, c, table=table: sum((table >> ((a >> k & 1) << 2 | (b >> k & 1) << 1
                                                   | c >> k & 1) & 1) << k for k in range(32)))
      for table in (0x96, 0xE8, 0xCA, 0x6A)],
    *[(f"bfe.{t}32 %y, %a, %b, %c;", k, k + U32 * 2,
       lambda a, b, c, k=k: field(a, b, c, k)) for t, k in (("u", U32), ("s", S32))],
    *[(f"and.b32 %b, %b, 127; and.b32 %c, %c, 127; bfe.{t}64 %y, %a, %b, %c;", k, k + U32 * 2,
       lambda a, b, c, k=k: field(a, b & 127, c & 127, k)) for t, k in (("u", U64), ("s", S64))],
    ("bfi.b32 %y, %a, %b, %c, %d;", U32, U32 * 4,
     lambda a, b, c, d: inserted(a, b, c, d, 32)),
    ("and.b32 %c, %c, 127; and.b32 %d, %d, 127; bfi.b64 %y, %a, %b, %c, %d;",
     U64, U64 * 2 + U32 * 2,
     lambda a, b, c, d: inserted(a, b, c & 127, d & 127, 64)),
    ("popc.b64 %y, %a;", U32, U64, lambda a: a.bit_count()),
    ("clz.b32 %y, %a;", U32, U32, lambda a: 32 - a.bit_length()),
    ("clz.b64 %y, %a;", U32, U64, lambda a: 64 - a.bit_length()),
    ("bfind.u32 %y, %a;", U32, U32, lambda a: a.bit_length() - 1),
    ("bfind.shiftamt.u32 %y, %a;", U32, U32, lambda a: 32 - a.bit_length() if a else -1),
    ("brev.b32 %y, %a;", U32, U32, lambda a: int(f"{a:032b}"[::-1], 2)),
    ("brev.b64 %y, %a;", U64, U64, lambda a: int(f"{a:064b}"[::-1], 2)),
    ("cvt.u16.u32 %y, %a;", U16, U32, lambda a: a),
    ("cvt.s64.s32 %y, %a;", S64, S32, lambda a: a),
    ("cvt.u64.u32 %y, %a;", U64, U32, lambda a: a),
    ("cvt.u32.u8 %y, %a;", U32, U32, lambda a: a & 0xFF),
    ("cvt.s32.s8 %y, %a;", S32, U32, lambda a: wrap(a, "i1")),
    ("cvt.s32.s16 %y, %a;", S32, S16, lambda a: a),
    ("cvt.sat.s16.s32 %y, %a;", S16, S32, lambda a: clamp(a, S16)),
    ("cvt.sat.u8.s32 %y, %a;", U16, S32, lambda a: clamp(a, "u1")),
    ("cvt.sat.u32.s64 %y, %a;", U32, S64, lambda a: clamp(a, U32)),
    ("setp.hi.u32 %p1, %a, %b; selp.b32 %y, %c, 7, %p1;", U32, U32 * 3,
     lambda a, b, c: c if a > b else 7),
    ("setp.lt.s32 %p1, %a, %b; selp.b32 %y, 1, 0, %p1;", U32, S32 * 2, lambda a, b: a < b),
    ("setp.ge.s64 %p1, %a, %b; selp.b32 %y, 1, 0, %p1;", U32, S64 * 2, lambda a, b: a >= b),
    ("setp.eq.b64 %p1, %a, %b; selp.b32 %y, 1, 0, %p1;", U32, U64 * 2, lambda a, b: a == b),
    ("setp.gt.u16 %p1, %a, 100; setp.lt.and.u16 %p2, %a, 60000, %p1; selp.b32 %y, 1, 0, %p2;",
     U32, U16, lambda a: 100 < a < 60000),
    ("setp.gt.s32 %p1, %a, 0; setp.lt.or.s32 %p2|%p3, %b, 0, %p1;"
     "selp.b32 %r1, 1, 0, %p2; selp.b32 %r2, 2, 0, %p3; or.b32 %y, %r1, %r2;",
     U32, S32 * 2, lambda a, b: (b < 0 or a > 0) | (b >= 0 or a > 0) << 1),
    ("setp.gt.s32 %p1, %a, 0; setp.lt.xor.s32 %p2, %b, 0, !%p1; not.pred %p3, %p2;"
     "and.pred %p4, %p1, %p3; selp.b32 %y, 1, 0, %p4;",
     U32, S32 * 2, lambda a, b: a > 0 and not (b < 0)),
    ("mov.b64 %d5, {%a, %b}; shr.u64 %d5, %d5, 16; mov.b64 {%r1, %y}, %d5;", U32, U32 * 2,
     lambda a, b: b >> 16),
    ("mov.b32 {%h1, %h2}, %a; mov.b32 %y, {%h2, %h1};", U32, U32,
     lambda a: a >> 16 | (a & 0xFFFF) << 16),
    ("{ .reg .b32 %a; mov.u32 %a, 5; } mov.u32 %y, %a;", U32, U32, lambda a: a),
    ("mov.u32 %y, 1; setp.lt.u32 %p1, %a, %b; @%p1 mov.u32 %y, 2; @!%p1 add.u32 %y, %y, %y;"
     "@%p1 add.u32 %y, %y, 0xfffffffe;", U32, U32 * 2, lambda a, b: 0 if a < b else 2),
]  # fmt: skip
DIVISION = [
    ("div.u32 %y, %a, %b;", U32, U32 * 2, truncated),
    ("div.s32 %y, %a, %b;", S32, S32 * 2, truncated),
    ("rem.s64 %y, %a, %b;", S64, S64 * 2, lambda a, b: a - b * truncated(a, b)),
    ("rem.u64 %y, %a, %b;", U64, U64 * 2, lambda a, b: a % b),
]


def some_integers(dtype, n, rng):
    """Edges, small numbers and random ones."""
    info = np.iinfo(dtype)
    edges = [info.min, info.max, 0, 1, 2, 31, 32, 33, 63, 64, 255, info.max // 2, info.max // 2 + 1]
    chosen = rng.choice(np.array(edges, dtype), n)
    small = rng.integers(0, min(300, info.max), n).astype(dtype)
    wild = rng.integers(info.min, info.max, n, dtype, endpoint=True)
    return np.where(rng.random(n) < 0.3, chosen, np.where(rng.random(n) < 0.4, small, wild))


def split(sources):
    return re.findall(r"[uif]\d", sources)


@pytest.mark.parametrize("case", [*INTEGER, *DIVISION], ids=lambda case: case[0])
def test_integer_instructions_follow_their_definition(case):
    instruction, out, sources, definition = case
    rng = np.random.default_rng(1)
    columns = [some_integers(s, 500, rng) for s in split(sources)]
    if case in DIVISION:
        columns[1][columns[1] == 0] = 3
    expected = [wrap(int(definition(*map(int, row))), out) for row in zip(*columns, strict=True)]
    assert_same_bits(execute(instruction, out, *columns), np.array(expected, out))


def some_floats(dtype, n, rng):
    """Edges, plain numbers, any bits at all, and numbers near each other."""
    info = np.finfo(dtype)
    edges = [0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.max, info.tiny, -0.75, 2.5, 0.5]
    edges += [info.smallest_subnormal, -info.smallest_subnormal, 1 + info.eps]
    if dtype != F16:
        edges += [2.0**31 - 1, 2.0**32, 2.0**63]
    chosen = rng.choice(np.array(edges, dtype), n)
    anything = rng.integers(0, 1 << bits(dtype), n, "u8").astype(f"u{info.bits // 8}").view(dtype)
    plain = (rng.standard_normal(n) * 2.0 ** rng.integers(-12, 12, n)).astype(dtype)
    pick = rng.integers(0, 4, n)
    return np.choose(pick, [chosen, anything, plain, np.rint(plain)]).astype(dtype)


def real(instruction, out, sources, definition):
    return pytest.param(instruction, out, sources, definition, id=instruction)


def rational(operation, dtype):
    """A definition in fractions; zero factors and what is not finite go by float64."""

    def definition(*values):
        if not np.isfinite(values).all() or 0 in values[:2]:
            return operation(*map(np.float64, values))
        exact = operation(*(Fraction(float(v)) for v in values))
        return nearest(exact, dtype) if exact else 0.0

    return definition


def whole(rounded, dtype):
    """To an integer: saturated; NaN as the PTX manual's table has it."""

    def definition(a):
        if np.isnan(a):
            widest = a.dtype == np.float64 or dtype[1] == "8"
            return (1 << bits(dtype) - 1) * (-1 if dtype[0] == "i" else 1) if widest else 0
        finite = float(a) if np.isfinite(a) else math.copysign(2.0**70, a)
        return clamp(int(rounded(finite)), dtype)

    return definition


def half_even(v):
    return round(v)


def compared(test, unordered):
    def definition(a, b):
        return unordered if np.isnan(a) or np.isnan(b) else bool(test(a, b))

    return definition


def bfloat16(a):
    if np.isnan(a):
        return 0x7FFF
    u = int(np.float32(a).view(np.uint32))
    down, rest = u >> 16, u & 0xFFFF
    return down + (rest > 0x8000 or (rest == 0x8000 and down & 1))


def float16(a):
    if np.isnan(a):
        return 0x7FFF
    y = nearest(Fraction(float(a)), F16) if np.isfinite(a) and a else float(a)
    return int(np.array(y, F16).view(U16))


def least(a, b):
    if np.isnan(a) or np.isnan(b):
        return b if np.isnan(a) else a
    return min((a, b), key=lambda v: (v, not np.signbit(v)))


FLOAT = [
    *[real(f"{name}.rn.{t} %y, %a, %b;", d, d * 2, rational(f, d))
      for t, d in (("f32", F32), ("f64", F64))
      for name, f in (("add", lambda a, b: a + b), ("sub", lambda a, b: a - b),
                      ("mul", lambda a, b: a * b), ("div", lambda a, b: a / b))],
    real("mul.f32 %y, %a, %b;", F32, F32 * 2, rational(lambda a, b: a * b, F32)),
    *[real(f"fma.rn.{t} %y, %a, %b, %c;", d, d * 3, rational(lambda a, b, c: a * b + c, d))
      for t, d in (("f32", F32), ("f64", F64))],
    real("sqrt.rn.f32 %y, %a;", F32, F32, np.sqrt),
    real("sqrt.rn.f64 %y, %a;", F64, F64, np.sqrt),
    real("rcp.rn.f32 %y, %a;", F32, F32, rational(lambda a: 1 / a, F32)),
    real("neg.f32 %y, %a;", F32, F32, lambda a: -a),
    real("abs.f64 %y, %a;", F64, F64, abs),
    real("min.f32 %y, %a, %b;", F32, F32 * 2, least),
    real("max.f64 %y, %a, %b;", F64, F64 * 2, lambda a, b: -least(-a, -b)),
    *[real(f"setp.{name}.{t} %p1, %a, %b; selp.b32 %y, 1, 0, %p1;", U32, d * 2, compared(f, u))
      for t, d in (("f32", F32), ("f64", F64))
      for name, f, u in (
          ("eq", lambda a, b: a == b, False), ("ne", lambda a, b: a != b, False),
          ("lt", lambda a, b: a < b, False), ("ge", lambda a, b: a >= b, False),
          ("equ", lambda a, b: a == b, True), ("neu", lambda a, b: a != b, True),
          ("ltu", lambda a, b: a < b, True), ("leu", lambda a, b: a <= b, True),
          ("gtu", lambda a, b: a > b, True), ("geu", lambda a, b: a >= b, True),
          ("num", lambda a, b: True, False), ("nan", lambda a, b: False, True))],
    real("cvt.rn.f16.f32 %y, %a;", U16, F32, float16),
    real("cvt.rn.bf16.f32 %y, %a;", U16, F32, bfloat16),
    real("cvt.rn.f16x2.f32 %y, %a, %b;", U32, F32 * 2,
         lambda a, b: float16(a) << 16 | float16(b)),
    real("cvt.rn.bf16x2.f32 %y, %a, %b;", U32, F32 * 2,
         lambda a, b: bfloat16(a) << 16 | bfloat16(b)),
    real("cvt.f32.f16 %y, %a;", F32, F16, float),
    real("cvt.f32.bf16 %y, %a;", F32, U16,
         lambda a: struct.unpack("<f", struct.pack("<I", int(a) << 16))[0]),
    real("cvt.f64.f32 %y, %a;", F64, F32, float),
    real("cvt.rn.f32.f64 %y, %a;", F32, F64, rational(lambda a: a, F32)),
    real("cvt.rni.f32.f32 %y, %a;", F32, F32, np.rint),
    real("cvt.rmi.f64.f64 %y, %a;", F64, F64, np.floor),
    real("cvt.rni.s32.f32 %y, %a;", S32, F32, whole(half_even, S32)),
    real("cvt.rzi.u32.f32 %y, %a;", U32, F32, whole(math.trunc, U32)),
    real("cvt.rmi.s64.f32 %y, %a;", S64, F32, whole(math.floor, S64)),
    real("cvt.rzi.u64.f64 %y, %a;", U64, F64, whole(math.trunc, U64)),
    real("cvt.rpi.s32.f64 %y, %a;", S32, F64, whole(math.ceil, S32)),
    real("cvt.rzi.u16.f32 %y, %a;", U16, F32, whole(math.trunc, U16)),
    *[real(f"cvt.rn.{t}.{s} %y, %a;", d, k, lambda a, d=d: nearest(Fraction(int(a)), d))
      for t, d in (("f32", F32), ("f64", F64))
      for s, k in (("u32", U32), ("s32", S32), ("u64", U64), ("s64", S64))],
]  # fmt: skip


@pytest.mark.parametrize(("instruction", "out", "sources", "definition"), FLOAT)
def test_float_instructions_round_exactly(instruction, out, sources, definition):
    rng = np.random.default_rng(2)
    columns = [
        some_floats(s, 500, rng) if s[0] == "f" else some_integers(s, 500, rng)
        for s in split(sources)
    ]
    if instruction.startswith("fma"):  # cancellation, where a second rounding would show
        a, b, c = columns
        with np.errstate(all="ignore"):
            c[:200] = -(a[:200] * b[:200])
    actual = execute(instruction, out, *columns)
    with np.errstate(all="ignore"):
        rows = [definition(*row) for row in zip(*columns, strict=True)]
        expected = np.array(rows, "f8" if out[0] == "f" else out).astype(out)
    if out == F32 and not instruction.startswith("neg"):
        expected[np.isnan(expected)] = NAN32
    elif out == F64:  # any NaN: the manual promises no payload, nor do the kernels rely on one
        assert (np.isnan(actual) == np.isnan(expected)).all()
        actual[np.isnan(actual)] = expected[np.isnan(expected)] = np.nan
    assert_same_bits(actual, expected)


def test_directed_rounding_brackets_the_number():
    x = some_floats("f8", 2000, np.random.default_rng(3))
    x = x[np.isfinite(x)]
    down, up, zero = (execute(f"cvt.{m}.f32.f64 %y, %a;", F32, x) for m in ("rm", "rp", "rz"))
    assert (down.astype("f8") <= x).all()
    assert (up.astype("f8") >= x).all()
    with np.errstate(all="ignore"):
        adjacent = np.nextafter(down, np.float32(np.inf)) == up
    assert (adjacent | (down == up)).all()
    assert (down != up).sum() > 500
    assert_same_bits(zero, np.where(np.signbit(x), up, down))


def test_a_fused_multiply_add_is_not_two_roundings():
    a, b = np.float32(1 + 2.0**-23), np.float32(1 + 2.0**-22)
    c = -np.float32(a * b)
    y = execute("fma.rn.f32 %y, %a, %b, %c;", F32, *(np.array([v]) for v in (a, b, c)))
    assert y[0] == np.float32(2.0**-45) != np.float32(a * b) + c


# Memory ------------------------------------------------------------------------------------------

COPY = """
    .reg .b32 %x<4>;
    ld.param.u64 %d1, [x];
    ld.param.u64 %d2, [y];
    mul.wide.u32 %d3, %r7, 16;
    add.s64 %d1, %d1, %d3;
    add.s64 %d2, %d2, %d3;
    ld.global.v4.u32 {%x0, %x1, %x2, %x3}, [%d1];
    st.global.v4.u32 [%d2], {%x0, %x1, %x2, %x3};
"""


def copy(nbytes_x, nbytes_y, threads, offset=0, body=COPY):
    memory = Memory(1 << 20)
    x = np.random.default_rng(4).integers(0, 256, nbytes_x, np.uint8)
    addresses = memory.put(x, offset), memory.put(np.zeros(nbytes_y, np.uint8), offset)
    Kernel(module(body, "x", "y")).launch(memory, 1, threads, *addresses)
    return x, memory.get(addresses[1])


def test_vector_access_moves_sixteen_bytes():
    x, y = copy(160, 160, 10)
    assert (x == y).all()


@pytest.mark.parametrize("offset", [1, 4, 8])
def test_misaligned_access_fails(offset):
    with pytest.raises(Fault, match="misaligned: 16 bytes"):
        copy(160, 160, 10, offset)


@pytest.mark.parametrize("sizes", [(159, 160), (160, 159), (144, 160)])
def test_access_out_of_bounds_fails(sizes):
    with pytest.raises(Fault, match="out of bounds: 16 bytes"):
        copy(*sizes, 10)


def test_access_to_nothing_fails():
    with pytest.raises(Fault, match="out of bounds"):
        copy(16, 16, 1, body=COPY.replace("[%d1]", "[%d3]"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ld.global.v4.u32 {%x0, %x1, %x2, %x3}", "ld.global.v4.u32 {%x0, %x1, %x2}"),
        ("ld.global.v4", "ld.global.v3"),
        ("ld.global", "ld.shared"),
        ("ld.global", "ld.global.madeup"),
        ("add.s64", "add.sat.s64"),
        ("add.s64 %d1", "add.cc.s64 %d1"),
        ("mul.wide.u32", "mul.wide.u64"),
        ("ld.param.u64 %d1, [x]", "ld.param.u64 %d1, [z]"),
        ("mul.wide.u32 %d3, %r7, 16", "mul.wide.u32 %d3, %unknown, 16"),
        ("mul.wide.u32 %d3, %r7, 16", "ex2.approx.f32 %f1, %f1"),
        ("mul.wide.u32 %d3, %r7, 16", "add.f32 %f1, %f1, %f1"),  # may be contracted
        ("mul.wide.u32 %d3, %r7, 16", "add.rn.ftz.f32 %f1, %f1, %f1"),
        ("add.s64 %d1, %d1, %d3", "add.s64 %d1, %d9, %d3"),  # %d9: never written
        ("add.s64 %d1, %d1, %d3", "add.s64 %d1, %r7, %d3"),  # too narrow
    ],
)
def test_what_is_unknown_or_undefined_fails(old, new):
    assert old in COPY
    with pytest.raises(Fault):
        copy(160, 160, 10, body=COPY.replace(old, new))


@pytest.mark.parametrize(
    "body",
    [
        COPY.replace("mul.wide.u32 %d3, %r7, 16", "mov.u64 %d3, 0"),  # all write the same bytes
        COPY.replace("[%d2]", "[%d1+16]"),  # what the next one reads
        COPY.replace("[%d2]", "[%d1+-16]").replace("%r7, 16", "%r7, 16; add.s64 %d3, %d3, 16"),
        COPY.replace("ld.global", "ld.global.nc").replace("[%d2]", "[%d1]"),  # not constant
    ],
)
def test_races_fail(body):
    with pytest.raises(Fault, match="race"):
        copy(200 * 16, 200 * 16, 150, body=body)


def test_threads_may_share_what_they_only_read():
    body = COPY.replace("add.s64 %d1, %d1, %d3;", "")
    x, y = copy(16, 160, 10, body=body)
    assert (y.reshape(10, 16) == x).all()


def test_in_place_is_no_race():
    _, y = copy(160, 160, 10, body=COPY.replace("[x]", "[y]"))
    assert (y == 0).all()


def test_what_is_loaded_is_extended():
    body = """
    ld.param.u64 %d1, [x];
    ld.param.u64 %d2, [y];
    ld.global.u8 %r1, [%d1];
    ld.global.s8 %r2, [%d1];
    ld.global.s16 %d3, [%d1];
    st.global.u32 [%d2], %r1;
    st.global.u32 [%d2+4], %r2;
    st.global.u64 [%d2+8], %d3;
    st.global.u8 [%d2+16], %d3;
    """
    memory = Memory(1 << 20)
    x, y = memory.put(np.array([-2], "i2")), memory.put(np.zeros(17, "u1"))
    Kernel(module(body, "x", "y")).launch(memory, 1, 1, x, y)
    expected = [*b"\xfe\0\0\0", *b"\xfe\xff\xff\xff", *b"\xfe" + 7 * b"\xff", 0xFE]
    assert memory.get(y).tolist() == expected


# Control -----------------------------------------------------------------------------------------

COLLATZ = """
    ld.param.u64 %d1, [y];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %ntid.x;
    mad.lo.s32 %r1, %r1, %r2, %r7;
    mul.wide.u32 %d2, %r1, 4;
    add.s64 %d1, %d1, %d2;
    add.u32 %r1, %r1, 1;
    mov.u32 %r3, 0;
$loop:
    setp.eq.u32 %p1, %r1, 1;
    @%p1 bra $end;
    add.u32 %r3, %r3, 1;
    and.b32 %r4, %r1, 1;
    setp.eq.u32 %p2, %r4, 0;
    @%p2 bra $even;
    mad.lo.u32 %r1, %r1, 3, 1;
    bra.uni $loop;
$even:
    shr.u32 %r1, %r1, 1;
    bra $loop;
$end:
    st.global.u32 [%d1], %r3;
"""


def test_threads_that_diverge_each_go_their_way():
    memory = Memory(1 << 20)
    y = memory.put(np.zeros(300, np.uint32))
    kernel = Kernel(module(COLLATZ, "y"))
    kernel.launch(memory, 3, 100, y)

    def steps(n):
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert memory.get(y).tolist() == [steps(n + 1) for n in range(300)]
    assert kernel.unexecuted() == []


EXCHANGE = """
    add.u32 %r4, %r7, 1;
    and.b32 %r4, %r4, 31;
    shfl.sync.idx.b32 %r3|%p3, %r3, %r4, 31, -1;
    st.global.u32 [%d1], %r3;
"""


def exchanging(old="", new=""):
    body = COLLATZ.replace("st.global.u32 [%d1], %r3;", EXCHANGE).replace(old, new)
    memory = Memory(1 << 20)
    y = memory.put(np.zeros(96, np.uint32))
    return Kernel(module(body, "y")), memory, y


def test_an_exchange_waits_for_all_of_the_warp():
    """They come to it after loops of different lengths."""
    memory = Memory(1 << 20)
    alone = memory.put(np.zeros(96, np.uint32))
    Kernel(module(COLLATZ, "y")).launch(memory, 3, 32, alone)
    for grid, block in ((3, 32), (1, 96)):
        kernel, other, y = exchanging()
        kernel.launch(other, grid, block, y)
        expected = np.roll(memory.get(alone).reshape(3, 32), -1, axis=1)
        assert_same_bits(other.get(y).reshape(3, 32), expected)


@pytest.mark.parametrize(
    ("old", "new", "block", "says"),
    [
        ("$end:", "$end: setp.eq.u32 %p3, %r3, 16; @%p3 ret;", 32, "never comes to"),
        ("%r4, 31, -1", "%r4, 31, 0xFFFF", 32, "less than all lanes"),
        ("%r4, 31, -1", "%r4, 15, -1", 32, "lanes of less than a warp"),
        ("    shfl", "@%p2 shfl", 32, "not all lanes"),
        ("", "", 20, "a lane that there is not"),
    ],
)
def test_an_exchange_without_some_of_the_warp_fails(old, new, block, says):
    kernel, memory, y = exchanging(old, new) if old else exchanging()
    with pytest.raises(Fault, match=says):
        kernel.launch(memory, 1, block, y)


def test_what_was_not_executed_is_known():
    memory = Memory(1 << 20)
    kernel = Kernel(module(COLLATZ, "y"))
    kernel.launch(memory, 1, 1, memory.put(np.zeros(1, np.uint32)))
    assert "shr.u32 %r1, %r1, 1" in kernel.unexecuted()
    assert "mov.u32 %r3, 0" not in kernel.unexecuted()


def test_special_registers():
    body = "ld.param.u64 %d1, [y];" + "".join(
        f"mov.u32 %r1, %{name}.{axis}; mov.u32 %r6, {k}; mad.lo.u32 %r0, %r0, %r6, %r1;"
        for name, axis, k in [("ctaid", "z", 1), ("ctaid", "y", 3), ("ctaid", "x", 2),
                              ("tid", "z", 2), ("tid", "y", 3), ("tid", "x", 4)]
    ).replace("mad.lo", "mov.u32 %r0, 0; mad.lo", 1) + """
    mul.wide.u32 %d2, %r0, 4;
    add.s64 %d1, %d1, %d2;
    st.global.u32 [%d1], %r0;
    """  # fmt: skip
    memory = Memory(1 << 20)
    y = memory.put(np.zeros(6 * 24, np.uint32))
    Kernel(module(body, "y")).launch(memory, (2, 3, 1), (4, 3, 2), y)
    assert memory.get(y).tolist() == list(range(6 * 24))


def test_a_loop_without_end_fails(monkeypatch):
    monkeypatch.setattr(Launch, "LIMIT", 1000)
    with pytest.raises(Fault, match="does not end"):
        Kernel(module("$a: bra $a;")).launch(Memory(1 << 20), 1, 1)


def test_arguments_are_counted():
    with pytest.raises(Fault, match="1 parameters, 0 arguments"):
        Kernel(module("", "y")).launch(Memory(1 << 20), 1, 1)


# Against NVIDIA's own assembler ------------------------------------------------------------------


def snippets():
    for instruction, out, sources, _ in [*INTEGER, *DIVISION, *(f.values for f in FLOAT)]:
        yield instruction, out, split(sources)


def entries(texts):
    """One module of many kernels."""
    head, _ = texts[0].split(".visible", 1)
    bodies = (
        t.split(".visible", 1)[1].replace("kernel", f"kernel{k}", 1) for k, t in enumerate(texts)
    )
    return head + "".join(f".visible{b}" for b in bodies)


@needs_ptxas
def test_ptxas_accepts_what_the_interpreter_does():
    assemble(entries([around(*parts[:2], *parts[2]) for parts in snippets()]), 90)


ROWS = 12


def constants_stored(sass):
    """Of each kernel the constants that it stores, by offset, where ptxas has computed them."""
    stored = {}
    for section in sass.split("\n.text.kernel")[1:]:
        name, lines = section.split(":", 1)
        known = {"RZ": 0}
        for line in lines.splitlines():
            if re.search(r"\b(BRA|CALL|BSYNC|@)", line):
                known = {"RZ": 0}  # what is known on one way only
            m = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(\S.*?)\s*;", line)
            if not m:
                continue
            op, *operands = re.split(r"[,\s]+", m[1].replace(".reuse", ""))
            if op.startswith("STG"):
                address, source = operands[-2:]
                offset = int((re.search(r"\+(0x\w+)\]", address) or [0, "0"])[1], 0)
                low = known.get(source)
                if ".64" in op and low is not None:
                    high = known.get(f"R{int(source[1:]) + 1}") if source != "RZ" else 0
                    low = None if high is None else low | high << 32
                mask = 0xFFFF if ".U16" in op else 0xFFFFFFFFFFFFFFFF
                stored[int(name), offset] = None if low is None else low & mask
                continue
            value = None
            if re.fullmatch(r"U?MOV|IMAD\.MOV\.U32|IMAD\.U32", op):
                value = known.get(operands[-1])
                if re.fullmatch(r"-?0x\w+", operands[-1]):
                    value = int(operands[-1], 0) % 2**32
            elif op.startswith("HFMA2") and operands[1:3] == ["-RZ", "RZ"]:
                halves = np.array([operands[4], operands[3]]).astype("f8").astype("f2")
                value = int(halves.view("u4")[0])
            elif op == "CS2R" and operands[1] == "SRZ":
                known[f"R{int(operands[0][1:]) + 1}"] = value = 0
            known[operands[0] if operands else ""] = value
            if re.search(r"WIDE|\.64|^CS2R|^D", op) and value is None and operands[0][1:].isdigit():
                known[f"R{int(operands[0][1:]) + 1}"] = None
    return stored


@needs_ptxas
def test_ptxas_computes_the_same_constants():
    """ptxas evaluates what it can when it compiles: NVIDIA's own word on what PTX means."""
    rng = np.random.default_rng(5)
    texts, expected = [], {}
    for k, (instruction, out, sources) in enumerate(snippets()):
        make = {"f": some_floats}
        columns = [make.get(s[0], some_integers)(s, ROWS, rng) for s in sources]
        if re.match(r"div\.[us]|rem", instruction):
            columns[1][columns[1] == 0] = 3
        y = execute(instruction, out, *columns)
        body = ["ld.param.u64 %d0, [y];"]
        for row in range(ROWS):
            body.append("{")
            for name, column in zip("abcd", columns, strict=False):
                word = column[row : row + 1].view(f"u{column.itemsize}")[0]
                body.append(f".reg .b{8 * column.itemsize} %{name};")
                body.append(f"mov.b{8 * column.itemsize} %{name}, {word};")
            kind = f"b{8 * y.itemsize}"
            body.append(f".reg .{kind} %y; {instruction} st.global.{kind} [%d0+{16 * row}], %y; }}")
            expected[k, 16 * row] = int(y[row : row + 1].view(f"u{y.itemsize}")[0])
        texts.append(module("\n".join(body), "y"))
    stored = constants_stored(assemble(entries(texts), 90)[0])
    assert stored.keys() == expected.keys()
    known = {k: v for k, v in stored.items() if v is not None}
    names = [instruction for instruction, _, _ in snippets()]
    wrong = [(names[k], row) for (k, row), v in known.items() if v != expected[k, row]]
    assert not wrong
    assert len(known) > 0.5 * len(expected)
