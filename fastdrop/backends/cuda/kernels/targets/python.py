"""The primitives in plain Python on NumPy's scalars, which Numba's CUDA simulator runs."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numba import cuda  # during a launch, the simulator puts here what knows of the threads

from fastdrop.backends.cuda.kernels.targets.words import U32, U64


def primitives() -> dict[str, Any]:
    """See `target`."""
    return {
        "device": lambda f: f,
        "kernel": _kernel,
        "first": lambda: U64(cuda.grid(1)),
        "step": lambda: U64(cuda.gridsize(1)),
        "LANES": 1,
        "from_lane": lambda word, lane: word,
        **_memory(),
        **_floats(),
        **_bits(),
    }


def _kernel(f: Any, registers: int | None = None) -> Any:
    def simulated(*args: Any) -> None:
        with np.errstate(all="ignore"):
            f(*args)

    return cuda.jit(simulated)


def _memory() -> dict[str, Any]:
    kinds = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}

    def at(address: Any, bits: int, n: int = 1) -> Any:
        assert address % (n * bits // 8) == 0
        return (kinds[bits] * n).from_address(int(address))

    def wide(bits: int, n: int, of: Any) -> tuple[Any, Any]:
        def load(address: Any) -> tuple:
            return tuple(map(of, at(address, bits, n)))

        def store(address: Any, words: tuple) -> None:
            at(address, bits, n)[:] = [int(w) for w in words]

        return load, store

    def one(bits: int) -> tuple[Any, Any]:
        of = U64 if bits == 64 else U32

        def load(address: Any) -> Any:
            return of(at(address, bits)[0])

        def store(address: Any, value: Any) -> None:
            at(address, bits)[0] = int(value)

        return load, store

    found = {}
    found["load16"], found["store16"] = wide(32, 4, U32)
    found["load16d"], found["store16d"] = wide(64, 2, U64)
    for bits in kinds:
        found[f"load_u{bits}"], found[f"store_u{bits}"] = one(bits)
    return found


def _gpu_nan(value: Any) -> Any:
    """As on a GPU: one NaN for all."""
    if value == value:
        return value
    wide = value.dtype == np.float64
    return (U64(2**63 - 1) if wide else U32(2**31 - 1)).view(value.dtype)


def _floats() -> dict[str, Any]:
    def view(kind: type) -> Any:
        return lambda value: value.view(kind)

    def half(v: Any) -> Any:
        return U32(np.float16(v).view(np.uint16) if v == v else 0x7FFF)

    def bfloat(v: Any) -> Any:
        u = v.view(U32)
        return u + U32(0x7FFF) + (u >> U32(16) & U32(1)) >> U32(16) if v == v else U32(0x7FFF)

    found = {
        "f32": view(np.float32),
        "b32": view(np.uint32),
        "f64": view(np.float64),
        "b64": view(np.uint64),
        "half": lambda bits: _gpu_nan(np.float32(np.uint16(bits).view(np.float16))),
        "halves": lambda low, high: U32(half(low) | half(high) << U32(16)),
        "bfloats": lambda low, high: U32(bfloat(low) | bfloat(high) << U32(16)),
        "float_of": lambda value: np.float32(value.view(np.int32)),
        "wide": lambda value: _gpu_nan(np.float64(value)),
        "narrow": lambda value: _gpu_nan(np.float32(value)),
        "sqrt32": np.sqrt,
    }
    for kind, suffix in ((np.float32, "32"), (np.float64, "64")):
        found["add" + suffix] = lambda a, b, kind=kind: _gpu_nan(kind(a + b))
        found["sub" + suffix] = lambda a, b, kind=kind: _gpu_nan(kind(a - b))
        found["mul" + suffix] = lambda a, b, kind=kind: _gpu_nan(kind(a * b))
        found["div" + suffix] = lambda a, b, kind=kind: _gpu_nan(kind(a / b))
    return found


def _bits() -> dict[str, Any]:
    def signs(bit: int) -> Any:
        return lambda w: U32((w >> U32(bit) & U32(0x00010001)) * U32(0xFFFF))

    return {
        "high": lambda a, b: U32(U64(a) * U64(b) >> U64(32)),
        "clz": lambda value: U32(32 - int(value).bit_length()),
        "funnel": lambda a, b, n: U32((U64(a) << U64(32) | U64(b)) << U64(n) >> U64(32)),
        "lower_signs": signs(7),
        "upper_signs": signs(15),
    }
