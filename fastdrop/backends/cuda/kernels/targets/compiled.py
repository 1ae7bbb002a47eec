"""The primitives as Numba compiles them, for a GPU or, so that tests can run them, for this CPU.

Each is an intrinsic of Numba: its types, and a function that writes its LLVM code.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from fastdrop.backends.cuda.kernels.targets.words import U64

REGISTERS = 40  # of a thread at most: 48 warps of a multiprocessor's 64 have room then
WARP = 32

u32, u64, f32, f64 = types.uint32, types.uint64, types.float32, types.float64

INTS = {bits: ir.IntType(bits) for bits in (8, 16, 32, 64)}
i32, i64 = INTS[32], INTS[64]
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
LLVM = {u32: i32, u64: i64, f32: FLOAT, f64: DOUBLE}


def primitives(gpu: bool, packs: bool) -> dict[str, Any]:
    """See `target`. packs: whether one instruction makes two 16-bit floats of two float32."""
    if gpu:
        try:  # numba-cuda has its own, the target in numba itself has not
            from numba.cuda.extending import intrinsic
        except ImportError:
            from numba.extending import intrinsic
    else:
        from numba.extending import intrinsic

    def writes(result: Any, *arguments: Any) -> Any:
        """Decorates ``f(builder, *values)``, the code of a primitive of these types."""

        def made(write: Any) -> Any:
            def generate(context, builder, sig, args):
                value = write(builder, *args)
                return context.get_dummy_value() if result is types.void else value

            signed = result(*arguments), generate
            takes = (lambda typing, a: signed, lambda typing, a, b: signed)
            return intrinsic((*takes, lambda typing, a, b, c: signed)[len(arguments) - 1])

        return made

    return {
        **(_threads_of_a_gpu(writes) if gpu else _one_thread()),
        **_memory(writes, space=1 if gpu else 0),
        **_conversions(writes),
        **_packs(writes, packs),
        **_arithmetic(writes, gpu),
        **_bits(writes, gpu),
    }


def _threads_of_a_gpu(writes: Any) -> dict[str, Any]:
    from numba import cuda

    device = cuda.jit(device=True, forceinline=True)

    @device
    def first():
        return U64(cuda.grid(1))

    @device
    def step():
        return U64(cuda.gridsize(1))

    @writes(u32, u32, u32)
    def from_lane(builder, word, lane):
        everyone, by_index, last = (ir.Constant(i32, v) for v in (2**32 - 1, 0, WARP - 1))
        exchange = "llvm.nvvm.shfl.sync.i32"
        both = ir.LiteralStructType((i32, ir.IntType(1)))  # and whether there is such a lane
        found = _called(builder, exchange, both, everyone, by_index, word, lane, last)
        return builder.extract_value(found, 0)

    def kernel(f: Any, registers: int | None = REGISTERS) -> Any:
        return cuda.jit(max_registers=registers)(f)

    threads = {"first": first, "step": step, "LANES": WARP, "from_lane": from_lane}
    return {"device": device, "kernel": kernel, **threads}


def _one_thread() -> dict[str, Any]:
    from numba import njit

    # Numba would spend a fifth of its time on how Python and C call these.
    device = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)

    @device
    def first():
        return U64(0)

    @device
    def step():
        return U64(1)

    @device
    def from_lane(word, lane):
        return word

    def kernel(f: Any, registers: int | None = None) -> Any:
        return njit(nogil=True, no_cfunc_wrapper=True)(f)

    threads = {"first": first, "step": step, "LANES": 1, "from_lane": from_lane}
    return {"device": device, "kernel": kernel, **threads}


def _memory(writes: Any, space: int) -> dict[str, Any]:
    """space: LLVM's number of the memory, 1 for a GPU's global one."""

    def pointer(builder: Any, address: Any, to: Any) -> Any:
        return builder.inttoptr(address, ir.PointerType(to, space))

    def vector(of: Any, bits: int, n: int) -> tuple[Any, Any]:
        """Load and store of 16 bytes as n integers: one access, whatever they are used for."""
        kind, words = ir.VectorType(INTS[bits], n), types.UniTuple(of, n)

        @writes(words, u64)
        def load(builder, address):
            loaded = builder.load(pointer(builder, address, kind), align=16)
            parts = ir.Constant(ir.ArrayType(INTS[bits], n), ir.Undefined)
            for k in range(n):
                word = builder.extract_element(loaded, ir.Constant(i32, k))
                parts = builder.insert_value(parts, word, k)
            return parts

        @writes(types.void, u64, words)
        def store(builder, address, parts):
            stored = ir.Constant(kind, ir.Undefined)
            for k in range(n):
                word = builder.extract_value(parts, k)
                stored = builder.insert_element(stored, word, ir.Constant(i32, k))
            builder.store(stored, pointer(builder, address, kind), align=16)

        return load, store

    def one(bits: int) -> tuple[Any, Any]:
        """Load and store of one integer, which is a uint32 if it has less bits."""
        kind = u64 if bits == 64 else u32

        @writes(kind, u64)
        def load(builder, address):
            value = builder.load(pointer(builder, address, INTS[bits]), align=bits // 8)
            return builder.zext(value, i32) if bits < 32 else value

        @writes(types.void, u64, kind)
        def store(builder, address, value):
            value = builder.trunc(value, INTS[bits]) if bits < 32 else value
            builder.store(value, pointer(builder, address, INTS[bits]), align=bits // 8)

        return load, store

    found = {}
    found["load16"], found["store16"] = vector(u32, 32, 4)
    found["load16d"], found["store16d"] = vector(u64, 64, 2)
    for bits in INTS:
        found[f"load_u{bits}"], found[f"store_u{bits}"] = one(bits)
    return found


def _conversions(writes: Any) -> dict[str, Any]:
    def conversion(how: str, result: Any, argument: Any) -> Any:
        """how: the instruction's name in llvmlite."""
        return writes(result, argument)(lambda builder, v: getattr(builder, how)(v, LLVM[result]))

    @writes(f32, u32)
    def half(builder, bits):
        value = builder.bitcast(builder.trunc(bits, INTS[16]), ir.HalfType())
        return builder.fpext(value, FLOAT)

    return {
        "f32": conversion("bitcast", f32, u32),
        "b32": conversion("bitcast", u32, f32),
        "f64": conversion("bitcast", f64, u64),
        "b64": conversion("bitcast", u64, f64),
        "float_of": conversion("sitofp", f32, u32),
        "wide": conversion("fpext", f64, f32),
        "narrow": conversion("fptrunc", f32, f64),
        "half": half,
    }


def _packs(writes: Any, packs: bool) -> dict[str, Any]:
    def packed(instruction: str, narrow: Any) -> Any:
        """Two float32 to a word: one instruction where the GPU has it."""

        @writes(u32, f32, f32)
        def pack(builder, low, high):
            if packs:
                kind = ir.FunctionType(i32, [FLOAT, FLOAT])
                return builder.asm(kind, instruction, "=r,f,f", (high, low), False)
            low, high = narrow(builder, low), narrow(builder, high)
            return builder.or_(low, builder.shl(high, ir.Constant(i32, 16)))

        return pack

    def to_half(builder: Any, value: Any) -> Any:
        value = builder.fptrunc(value, ir.HalfType())
        return builder.zext(builder.bitcast(value, INTS[16]), i32)

    def to_bfloat(builder: Any, value: Any) -> Any:
        sixteen = ir.Constant(i32, 16)
        u = builder.bitcast(value, i32)
        odd = builder.and_(builder.lshr(u, sixteen), ir.Constant(i32, 1))
        u = builder.add(builder.add(u, ir.Constant(i32, 0x7FFF)), odd)
        return builder.lshr(u, sixteen)

    return {
        "halves": packed("cvt.rn.f16x2.f32 $0, $1, $2;", to_half),
        "bfloats": packed("cvt.rn.bf16x2.f32 $0, $1, $2;", to_bfloat),
    }


def _called(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """The result of a function of libdevice, or of an intrinsic of LLVM."""
    module = builder.module
    kind = ir.FunctionType(result, [a.type for a in args])
    function = module.globals.get(name) or ir.Function(module, kind, name)
    return builder.call(function, args)


def _arithmetic(writes: Any, gpu: bool) -> dict[str, Any]:
    def operation(name: str, kind: Any) -> Any:
        """On the GPU libdevice's function that rounds to nearest, of which no compiler makes a
        fused multiply-add; LLVM for CPUs fuses nothing unless asked."""

        @writes(kind, kind, kind)
        def operation(builder, a, b):
            if not gpu:
                return getattr(builder, "f" + name)(a, b)
            letter = "f" if kind is f32 else "d"
            return _called(builder, f"__nv_{letter}{name}_rn", a.type, a, b)

        return operation

    @writes(f32, f32)
    def sqrt32(builder, value):
        return _called(builder, "__nv_fsqrt_rn" if gpu else "llvm.sqrt.f32", FLOAT, value)

    found = {"sqrt32": sqrt32}
    for kind, suffix in ((f32, "32"), (f64, "64")):
        for name in ("add", "sub", "mul", "div"):
            found[name + suffix] = operation(name, kind)
    return found


def _bits(writes: Any, gpu: bool) -> dict[str, Any]:
    @writes(u32, u32, u32)
    def high(builder, a, b):
        if gpu:  # as a shift of a 64-bit product, LLVM would widen all around it
            return _called(builder, "__nv_umulhi", i32, a, b)
        product = builder.mul(builder.zext(a, i64), builder.zext(b, i64))
        return builder.trunc(builder.lshr(product, ir.Constant(i64, 32)), i32)

    @writes(u32, u32)
    def clz(builder, value):
        if gpu:
            return _called(builder, "__nv_clz", i32, value)
        return builder.ctlz(value, ir.Constant(ir.IntType(1), 0))

    @writes(u32, u32, u32, u32)
    def funnel(builder, a, b, n):
        if gpu:
            kind, shift = ir.FunctionType(i32, [i32] * 3), "shf.l.wrap.b32 $0, $1, $2, $3;"
            return builder.asm(kind, shift, "=r,r,r,r", (b, a, n), False)
        right = builder.sub(ir.Constant(i32, 32), n)
        return builder.or_(builder.shl(a, n), builder.lshr(b, right))

    def signs(selector: str, bit: int) -> Any:
        """A permutation of bytes can repeat their signs: one instruction on the GPU."""

        @writes(u32, u32)
        def halves_of(builder, word):
            if gpu:
                kind, permute = ir.FunctionType(i32, [i32]), f"prmt.b32 $0, $1, 0, {selector};"
                return builder.asm(kind, permute, "=r,r", (word,), False)
            flags = builder.lshr(word, ir.Constant(i32, bit))
            flags = builder.and_(flags, ir.Constant(i32, 0x00010001))
            return builder.mul(flags, ir.Constant(i32, 0xFFFF))

        return halves_of

    return {
        "high": high,
        "clz": clz,
        "funnel": funnel,
        "lower_signs": signs("0xAA88", 7),
        "upper_signs": signs("0xBB99", 15),
    }
