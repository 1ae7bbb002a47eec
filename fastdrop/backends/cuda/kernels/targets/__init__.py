"""What the kernels are compiled for, and the few primitives that differ between those.

``target("cuda")`` is a GPU of compute capability 8.0 or later, ``target("turing")`` an older one,
which packs 16-bit types in several instructions, ``target("njit")`` the CPU through Numba (one
thread walks the whole grid: the same typed source, to be compared with the C kernels at size),
``target("python")`` plain Python, for Numba's CUDA simulator. Importing this package does not
import Numba; its modules `compiled` and `python` do.

Memory is addressed by 64-bit integers; a wide access must be aligned to 16 bytes.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

from fastdrop.backends.cuda.kernels.targets.words import U32, U64, words

__all__ = ["U32", "U64", "target"]


@cache
def target(name: str) -> SimpleNamespace:
    """The primitives of one target.

    Threads
        ``kernel(f, registers)``, ``device(f)``: decorators; the first may be told how many
        registers a thread may have. ``first()``, ``step()``: this thread, and how many there are.
        ``LANES``: the threads of a warp, whose first one is at a multiple of that;
        ``from_lane(w, lane)``: the word w of another one, for which all of a warp have to call it.
    Memory
        ``load16``, ``store16``: a tuple of four words; ``load16d``, ``store16d``: of two uint64;
        ``load_u8`` ... ``store_u64``: one integer.
    Floating point
        ``add32`` ... ``div32``, ``sqrt32``, ``add64`` ... ``div64``: rounded once, never
        contracted. ``f32``, ``b32``, ``f64``, ``b64``: bits to float and back. ``half``: float16
        bits to float32; ``halves``, ``bfloats``: two float32 to a word of two of those types, to
        nearest even. ``float_of``: int32, given as uint32, to float32. ``wide``, exact: float32 to
        float64, and ``narrow`` back.
    Bits
        ``high``: upper half of a product of uint32. ``clz``: leading zeros of one. ``funnel(a, b,
        n)``: the upper word of both, shifted to the left by n < 32. ``lower_signs``: all bits of
        the lower half set if bit 7 is, of the upper half if bit 23 is; ``upper_signs``: bits 15 and
        31.
    Words
        ``ones(m)``: the lowest m < 32 bits set. ``bit(w, at)``, ``sixteen(w, at)``: one of a word's
        bits, 0 or 1, or 16 from it on. ``fourth(of, index)``: one of four, for a U64 modulo 4,
        without a branch. ``four(make)``, a decorator: a tuple of what the functions ``make(0)`` ...
        ``make(3)`` give.
    """
    if name == "python":
        from fastdrop.backends.cuda.kernels.targets import python

        found = python.primitives()
    else:
        from fastdrop.backends.cuda.kernels.targets import compiled

        found = compiled.primitives(gpu=name != "njit", packs=name == "cuda")
    return SimpleNamespace(**found, **words(found["device"]))
