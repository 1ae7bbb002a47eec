"""Elements: their dtypes, and arithmetic on them with a CPU's NaN.

What is called *raw* is the bits of an element: U64 for float64, else U32. The *compute type* is
float64 for float64, else float32.

A GPU makes every NaN the same; here the first operand that is one is the result, with its payload,
as on x86.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastdrop.backends.cuda.kernels.targets import U32, U64, target
from fastdrop.base.dtypes import ITEMSIZE

# What an invalid operation gives on x86, which the CPU's kernels leave as it is.
NAN32, NAN64 = U32(0xFFC00000), U64(0xFFF8000000000000)
QUIET32, QUIET64 = U32(0x00400000), U64(0x0008000000000000)


@cache
def elements(where: str, dtype: str) -> SimpleNamespace:
    """Arithmetic on elements of one dtype, in its compute type.

    ``load``, ``store``: one raw element of `item` bytes; ``load_real``, ``store_real``: the bits of
    one of the compute type, of `real_item`. ``decode``, ``encode``: raw to compute type and back;
    ``encode2``: two to a word; ``bits``, ``value``: compute type to its bits and back. ``add``,
    ``mul``: with a CPU's NaN; ``times(v, s)``: v * s for an s that is neither NaN nor 0 nor
    infinite. ``exact``: the target's operations, with its NaN.
    """
    t = target(where)
    device = t.device
    wide = dtype == "float64"
    bits, value = (t.b64, t.f64) if wide else (t.b32, t.f32)
    suffix = "64" if wide else "32"
    exact = {name: getattr(t, name + suffix) for name in ("add", "sub", "mul", "div")}
    raw, quiet, invalid = (U64, QUIET64, NAN64) if wide else (U32, QUIET32, NAN32)
    mul = exact["mul"]

    def careful(operation: Any) -> Any:
        @device
        def result(a, b):
            r = operation(a, b)
            if r != r:
                if a != a:
                    r = value(raw(bits(a) | quiet))
                elif b != b:
                    r = value(raw(bits(b) | quiet))
                else:
                    r = value(invalid)
            return r

        return result

    @device
    def times(v, s):
        r = mul(v, s)
        return r if v == v else value(raw(bits(v) | quiet))

    real, item = (np.float64 if wide else np.float32), ITEMSIZE[dtype]
    codec = {"decode": value, "encode": bits, "encode2": None, "pack": None}
    if item == 2:
        codec = _two_bytes(where, dtype)
    return SimpleNamespace(
        zero=real(0),
        nan=real(np.nan),
        item=U64(item),
        real_item=U64(8 if wide else 4),
        load=getattr(t, f"load_u{8 * item}"),
        store=getattr(t, f"store_u{8 * item}"),
        load_real=t.load_u64 if wide else t.load_u32,
        store_real=t.store_u64 if wide else t.store_u32,
        bits=bits,
        value=value,
        times=times,
        add=careful(exact["add"]),
        mul=careful(mul),
        exact=SimpleNamespace(**exact),
        **codec,
    )


def _two_bytes(where: str, dtype: str) -> dict[str, Any]:
    """``decode``, ``encode``, ``encode2``; ``pack``: the last, for what is not NaN."""
    t = target(where)
    device, half, bits, value, zero = t.device, t.half, t.b32, t.f32, np.float32(0)

    if dtype == "float16":
        pack = t.halves

        @device
        def decode(x):
            v = half(x)
            if x & U32(0x7FFF) > U32(0x7C00):
                sign, payload = x & U32(0x8000), x & U32(0x3FF)
                v = value(U32(sign << 16 | payload << 13 | U32(0x7FC00000)))
            return v

        @device
        def encode_nan(v):
            u = bits(v)
            return U32(u >> 13 & U32(0x3FF) | u >> 16 & U32(0x8000) | U32(0x7E00))

    else:
        pack = t.bfloats

        @device
        def decode(x):
            return value(U32(x << 16))

        @device
        def encode_nan(v):
            return U32(bits(v) >> 16)

    @device
    def encode2(low, high):
        word = pack(low, high)
        if low != low:
            word = U32(word & U32(0xFFFF0000) | encode_nan(low))
        if high != high:
            word = U32(word & U32(0x0000FFFF) | encode_nan(high) << 16)
        return word

    @device
    def encode(v):
        return U32(encode2(v, zero) & U32(0xFFFF))

    return {"decode": decode, "encode": encode, "encode2": encode2, "pack": pack}


@cache
def doubles(where: str, dtype: str) -> SimpleNamespace:
    """``number``: a raw element to float64; ``rounded``: back, as NumPy and ml_dtypes round."""
    t = target(where)
    e = elements(where, dtype)
    device, decode, encode, bits = t.device, e.decode, e.encode, e.bits
    narrow, wide_of, f32, b32, f64, b64 = t.narrow, t.wide, t.f32, t.b32, t.f64, t.b64
    if dtype == "float64":
        return SimpleNamespace(number=decode, rounded=encode)

    # NumPy goes to float16 in one step, ml_dtypes to bfloat16 in two, and loses NaN payloads.
    to_odd = dtype == "float16"
    payload_of = U32(0 if dtype == "bfloat16" else 0x003FFFFF)

    @device
    def number(x):
        v = decode(x)
        r = wide_of(v)
        if v != v:
            u = bits(v)
            payload, sign = U64(u & U32(0x003FFFFF)), U64(u & U32(0x80000000))
            r = f64(payload << 29 | sign << 32 | U64(0x7FF8000000000000))
        return r

    @device
    def rounded(v):
        """By float32; to odd, if then to float16, so that the next rounding is the only one."""
        r = narrow(v)
        if v != v:
            u = b64(v)
            payload, sign = U32(u >> 29) & payload_of, U32(u >> 32) & U32(0x80000000)
            r = f32(U32(payload | sign | U32(0x7FC00000)))
        elif to_odd:
            back = wide_of(r)
            if back != v:
                odd = b32(r)
                if (back > v) == (v > np.float64(0)):
                    odd = U32(odd - U32(1))
                r = f32(U32(odd | U32(1)))
        return encode(r)

    return SimpleNamespace(number=number, rounded=rounded)
