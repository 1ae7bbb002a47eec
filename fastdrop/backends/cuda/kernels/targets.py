"""What the kernels are compiled for, and the few primitives that differ between those.

``target("cuda")`` is a GPU of compute capability 8.0 or later, ``target("turing")`` an older one,
which packs 16-bit types in several instructions, ``target("njit")`` the CPU through Numba (one
thread walks the whole grid: the same typed source, to be compared with the C kernels at size),
``target("python")`` plain Python, for Numba's CUDA simulator. Importing this module does not import
Numba.

Memory is addressed by 64-bit integers; a wide access must be aligned to 16 bytes.
"""

from __future__ import annotations

import ctypes
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

U32, U64 = np.uint32, np.uint64

REGISTERS = 40  # of a thread at most: 48 warps of a multiprocessor's 64 have room then

# Names of primitives that read and write 1, 2, 4, 8 bytes of memory.
_WIDTHS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}

cuda: Any = None  # during a launch, the simulator puts here what knows of the threads


@cache
def target(name: str) -> SimpleNamespace:
    """The primitives of one target.

    ``kernel(f, registers)``, ``device(f)``: decorators, of which the first may be given how many
    registers a thread may have. ``first()``, ``step()``: this thread, and how many
    there are. ``load16``, ``store16``: four words; ``load16d``, ``store16d``: two uint64;
    ``load_u8`` ... ``store_u64``: one integer.
    ``f32``, ``b32``, ``f64``, ``b64``: bits to float and back. ``half``: float16 bits to float32;
    ``halves``, ``bfloats``: two float32 to a word of two of those types, to nearest even.
    ``add32`` ... ``div32``, ``sqrt32``, ``add64`` ... ``div64``: rounded once, never contracted.
    ``float_of``: int32, given as uint32, to float32. ``wide``, exact: float32 to float64, and
    ``narrow`` back. ``high``: upper half of a product of uint32. ``clz``: leading zeros of one.
    ``funnel(a, b, n)``: the upper word of both, shifted to the left by n < 32. ``lower_signs``: all
    bits of the lower half set if bit 7 is, of the upper half if bit 23 is; ``upper_signs``: bits 15
    and 31.
    """
    if name == "python":
        return _python()
    return _numba(name != "njit", name == "cuda")


def _python() -> SimpleNamespace:
    global cuda
    from numba import cuda

    kinds = {8: ctypes.c_uint8, 16: ctypes.c_uint16, 32: ctypes.c_uint32, 64: ctypes.c_uint64}

    def kernel(f: Any, registers: int | None = None) -> Any:
        def simulated(*args: Any) -> None:
            with np.errstate(all="ignore"):
                f(*args)

        return cuda.jit(simulated)

    def load16(address: Any) -> tuple:
        assert address % 16 == 0
        return tuple(map(U32, (ctypes.c_uint32 * 4).from_address(int(address))))

    def store16(address: Any, *words: Any) -> None:
        assert address % 16 == 0
        (ctypes.c_uint32 * 4).from_address(int(address))[:] = [int(w) for w in words]

    def load16d(address: Any) -> tuple:
        assert address % 16 == 0
        return tuple(map(U64, (ctypes.c_uint64 * 2).from_address(int(address))))

    def store16d(address: Any, *words: Any) -> None:
        assert address % 16 == 0
        (ctypes.c_uint64 * 2).from_address(int(address))[:] = [int(w) for w in words]

    def loader(bits: int) -> Any:
        def load(address: Any) -> Any:
            assert address % (bits // 8) == 0
            value = kinds[bits].from_address(int(address)).value
            return U64(value) if bits == 64 else U32(value)

        return load

    def storer(bits: int) -> Any:
        def store(address: Any, value: Any) -> None:
            assert address % (bits // 8) == 0
            kinds[bits].from_address(int(address)).value = int(value)

        return store

    def view(kind: type) -> Any:
        return lambda value: value.view(kind)

    def gpu_nan(value: Any) -> Any:
        """As on a GPU: one NaN for all."""
        if value == value:
            return value
        wide = value.dtype == np.float64
        return (U64(2**63 - 1) if wide else U32(2**31 - 1)).view(value.dtype)

    def halves(low: Any, high: Any) -> Any:
        low, high = (U32(np.float16(v).view(np.uint16) if v == v else 0x7FFF) for v in (low, high))
        return U32(low | high << U32(16))

    def bfloat(v: Any) -> Any:
        u = v.view(U32)
        return u + U32(0x7FFF) + (u >> U32(16) & U32(1)) >> U32(16) if v == v else U32(0x7FFF)

    def bfloats(low: Any, high: Any) -> Any:
        return U32(bfloat(low) | bfloat(high) << U32(16))

    t = SimpleNamespace(
        device=lambda f: f,
        kernel=kernel,
        first=lambda: U64(cuda.grid(1)),
        step=lambda: U64(cuda.gridsize(1)),
        load16=load16,
        store16=store16,
        load16d=load16d,
        store16d=store16d,
        f32=view(np.float32),
        b32=view(np.uint32),
        f64=view(np.float64),
        b64=view(np.uint64),
        half=lambda bits: gpu_nan(np.float32(np.uint16(bits).view(np.float16))),
        halves=halves,
        bfloats=bfloats,
        clz=lambda value: U32(32 - int(value).bit_length()),
        float_of=lambda value: np.float32(value.view(np.int32)),
        high=lambda a, b: U32(U64(a) * U64(b) >> U64(32)),
        funnel=lambda a, b, n: U32((U64(a) << U64(32) | U64(b)) << U64(n) >> U64(32)),
        lower_signs=lambda w: U32((w >> U32(7) & U32(0x00010001)) * U32(0xFFFF)),
        upper_signs=lambda w: U32((w >> U32(15) & U32(0x00010001)) * U32(0xFFFF)),
        wide=lambda value: gpu_nan(np.float64(value)),
        narrow=lambda value: gpu_nan(np.float32(value)),
        sqrt32=np.sqrt,
    )
    for bits in _WIDTHS:
        setattr(t, f"load_u{bits}", loader(bits))
        setattr(t, f"store_u{bits}", storer(bits))
    for kind, suffix in ((np.float32, "32"), (np.float64, "64")):
        setattr(t, f"add{suffix}", lambda a, b, kind=kind: gpu_nan(kind(a + b)))
        setattr(t, f"sub{suffix}", lambda a, b, kind=kind: gpu_nan(kind(a - b)))
        setattr(t, f"mul{suffix}", lambda a, b, kind=kind: gpu_nan(kind(a * b)))
        setattr(t, f"div{suffix}", lambda a, b, kind=kind: gpu_nan(kind(a / b)))
    return t


def _numba(gpu: bool, packs: bool) -> SimpleNamespace:
    from llvmlite import ir

    if gpu:
        from numba import cuda, types

        try:  # numba-cuda has its own, the target in numba itself has not
            from numba.cuda.extending import intrinsic
        except ImportError:
            from numba.extending import intrinsic
    else:
        from numba import types
        from numba.extending import intrinsic

    ints = {bits: ir.IntType(bits) for bits in _WIDTHS}
    i32 = ints[32]
    space = 1 if gpu else 0  # global memory
    u32, u64, f32, f64 = types.uint32, types.uint64, types.float32, types.float64
    of_bits = {8: u32, 16: u32, 32: u32, 64: u64}

    def pointer(builder: Any, address: Any, to: Any) -> Any:
        return builder.inttoptr(address, ir.PointerType(to, space))

    def vector(of: Any, bits: int, n: int) -> tuple[Any, Any]:
        """Load and store of 16 bytes as n integers: one access, whatever they are used for."""
        kind = ir.VectorType(ints[bits], n)

        @intrinsic
        def load(typing, address):
            signature = types.UniTuple(of, n)(u64)

            def generate(context, builder, sig, args):
                words = builder.load(pointer(builder, args[0], kind), align=16)
                parts = [builder.extract_element(words, ir.Constant(i32, k)) for k in range(n)]
                return context.make_tuple(builder, sig.return_type, parts)

            return signature, generate

        def store(context, builder, sig, args):
            words = ir.Constant(kind, ir.Undefined)
            for k in range(n):
                words = builder.insert_element(words, args[1 + k], ir.Constant(i32, k))
            builder.store(words, pointer(builder, args[0], kind), align=16)
            return context.get_dummy_value()

        return load, store

    load16, store_words = vector(u32, 32, 4)
    load16d, store_pair = vector(u64, 64, 2)

    @intrinsic
    def store16(typing, address, a, b, c, d):
        return types.void(u64, u32, u32, u32, u32), store_words

    @intrinsic
    def store16d(typing, address, a, b):
        return types.void(u64, u64, u64), store_pair

    def loader(bits: int) -> Any:
        @intrinsic
        def load(typing, address):
            def generate(context, builder, sig, args):
                value = builder.load(pointer(builder, args[0], ints[bits]), align=bits // 8)
                return builder.zext(value, i32) if bits < 32 else value

            return of_bits[bits](u64), generate

        return load

    def storer(bits: int) -> Any:
        @intrinsic
        def store(typing, address, value):
            def generate(context, builder, sig, args):
                value = builder.trunc(args[1], ints[bits]) if bits < 32 else args[1]
                builder.store(value, pointer(builder, args[0], ints[bits]), align=bits // 8)
                return context.get_dummy_value()

            return types.void(u64, of_bits[bits]), generate

        return store

    def cast(result: Any, argument: Any) -> Any:
        @intrinsic
        def reinterpret(typing, value):
            def generate(context, builder, sig, args):
                return builder.bitcast(args[0], context.get_value_type(result))

            return result(argument), generate

        return reinterpret

    @intrinsic
    def half(typing, bits):
        def generate(context, builder, sig, args):
            value = builder.bitcast(builder.trunc(args[0], ints[16]), ir.HalfType())
            return builder.fpext(value, ir.FloatType())

        return f32(u32), generate

    def packed(instruction: str, narrow: Any) -> Any:
        """Two float32 to a word: one instruction where the GPU has it."""

        @intrinsic
        def pack(typing, low, high):
            def generate(context, builder, sig, args):
                if packs:
                    real = ir.FloatType()
                    kind = ir.FunctionType(i32, [real, real])
                    return builder.asm(kind, instruction, "=r,f,f", (args[1], args[0]), False)
                low, high = (narrow(builder, v) for v in args)
                return builder.or_(low, builder.shl(high, ir.Constant(i32, 16)))

            return u32(f32, f32), generate

        return pack

    @intrinsic
    def funnel(typing, a, b, n):
        def generate(context, builder, sig, args):
            if gpu:
                kind = ir.FunctionType(i32, [i32] * 3)
                operands = args[1], args[0], args[2]
                shift = "shf.l.wrap.b32 $0, $1, $2, $3;"
                return builder.asm(kind, shift, "=r,r,r,r", operands, False)
            left, right = args[2], builder.sub(ir.Constant(i32, 32), args[2])
            return builder.or_(builder.shl(args[0], left), builder.lshr(args[1], right))

        return u32(u32, u32, u32), generate

    def signs(selector: str, bit: int) -> Any:
        """A permutation of bytes can repeat their signs: one instruction on the GPU."""

        @intrinsic
        def halves_of(typing, word):
            def generate(context, builder, sig, args):
                if gpu:
                    permute = f"prmt.b32 $0, $1, 0, {selector};"
                    return builder.asm(ir.FunctionType(i32, [i32]), permute, "=r,r", args, False)
                flags = builder.lshr(args[0], ir.Constant(i32, bit))
                flags = builder.and_(flags, ir.Constant(i32, 0x00010001))
                return builder.mul(flags, ir.Constant(i32, 0xFFFF))

            return u32(u32), generate

        return halves_of

    def to_half(builder: Any, value: Any) -> Any:
        value = builder.fptrunc(value, ir.HalfType())
        return builder.zext(builder.bitcast(value, ints[16]), i32)

    def to_bfloat(builder: Any, value: Any) -> Any:
        sixteen = ir.Constant(i32, 16)
        u = builder.bitcast(value, i32)
        odd = builder.and_(builder.lshr(u, sixteen), ir.Constant(i32, 1))
        u = builder.add(builder.add(u, ir.Constant(i32, 0x7FFF)), odd)
        return builder.lshr(u, sixteen)

    def called(name: str, result: Any, *arguments: Any) -> Any:
        """A function of libdevice, or an intrinsic of LLVM."""

        def call(builder: Any, args: Any) -> Any:
            module = builder.module
            kind = ir.FunctionType(result, list(arguments))
            function = module.globals.get(name) or ir.Function(module, kind, name)
            return builder.call(function, args)

        return call

    @intrinsic
    def clz(typing, value):
        def generate(context, builder, sig, args):
            if gpu:
                return called("__nv_clz", i32, i32)(builder, args)
            return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

        return u32(u32), generate

    def arithmetic(name: str, kind: Any) -> Any:
        """On the GPU libdevice's function that rounds to nearest, of which no compiler makes a
        fused multiply-add; LLVM for CPUs fuses nothing unless asked."""

        @intrinsic
        def operation(typing, a, b):
            def generate(context, builder, sig, args):
                if not gpu:
                    return getattr(builder, "f" + name)(*args)
                real = ir.FloatType() if kind is f32 else ir.DoubleType()
                letter = "f" if kind is f32 else "d"
                return called(f"__nv_{letter}{name}_rn", real, real, real)(builder, args)

            return kind(kind, kind), generate

        return operation

    @intrinsic
    def sqrt32(typing, value):
        def generate(context, builder, sig, args):
            real = ir.FloatType()
            name = "__nv_fsqrt_rn" if gpu else "llvm.sqrt.f32"
            return called(name, real, real)(builder, args)

        return f32(f32), generate

    @intrinsic
    def high(typing, a, b):
        def generate(context, builder, sig, args):
            if gpu:  # as a shift of a 64-bit product, LLVM would widen all around it
                return called("__nv_umulhi", i32, i32, i32)(builder, args)
            product = builder.mul(*(builder.zext(a, ints[64]) for a in args))
            return builder.trunc(builder.lshr(product, ir.Constant(ints[64], 32)), i32)

        return u32(u32, u32), generate

    def conversion(how: str, result: Any, argument: Any) -> Any:
        @intrinsic
        def convert(typing, value):
            def generate(context, builder, sig, args):
                return getattr(builder, how)(args[0], context.get_value_type(result))

            return result(argument), generate

        return convert

    t = SimpleNamespace(
        load16=load16,
        store16=store16,
        load16d=load16d,
        store16d=store16d,
        f32=cast(f32, u32),
        b32=cast(u32, f32),
        f64=cast(f64, u64),
        b64=cast(u64, f64),
        half=half,
        halves=packed("cvt.rn.f16x2.f32 $0, $1, $2;", to_half),
        bfloats=packed("cvt.rn.bf16x2.f32 $0, $1, $2;", to_bfloat),
        clz=clz,
        funnel=funnel,
        lower_signs=signs("0xAA88", 7),
        upper_signs=signs("0xBB99", 15),
        float_of=conversion("sitofp", f32, u32),
        wide=conversion("fpext", f64, f32),
        narrow=conversion("fptrunc", f32, f64),
        sqrt32=sqrt32,
        high=high,
    )
    for bits in _WIDTHS:
        setattr(t, f"load_u{bits}", loader(bits))
        setattr(t, f"store_u{bits}", storer(bits))
    for kind, suffix in ((f32, "32"), (f64, "64")):
        for name in ("add", "sub", "mul", "div"):
            setattr(t, name + suffix, arithmetic(name, kind))
    if gpu:
        t.device = cuda.jit(device=True, forceinline=True)
        t.kernel = lambda f, registers=REGISTERS: cuda.jit(max_registers=registers)(f)

        @t.device
        def first():
            return U64(cuda.grid(1))

        @t.device
        def step():
            return U64(cuda.gridsize(1))
    else:
        from numba import njit

        # Numba would spend a fifth of its time on how Python and C call these.
        t.device = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
        t.kernel = lambda f, registers=None: njit(nogil=True, no_cfunc_wrapper=True)(f)

        @t.device
        def first():
            return U64(0)

        @t.device
        def step():
            return U64(1)

    t.first, t.step = first, step
    return t
