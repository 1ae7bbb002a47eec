"""Words: how the kernels write integer arithmetic, so that Numba and NumPy give it the same types.

- Of two U64 both make a U64, and a shift may be by a literal. Every other constant has its type:
  Numba makes an int64 of a uint64 and a literal, and a float64 of a variable that is one, then the
  other.
- Of two U32, or one and a literal, Numba makes 64 bits. ``U32(...)`` around an expression drops
  what is above; within one it stands where the bits above would count: before a shift to the right
  or a comparison, if there can be any.
"""

from __future__ import annotations

from typing import Any

import numpy as np

U32, U64 = np.uint32, np.uint64


def words(device: Any) -> dict[str, Any]:
    """See `target`."""

    @device
    def ones(m):
        return U32((U32(1) << U32(m)) - U32(1))

    @device
    def bit(w, at):
        return U32(U32(w >> at) & U32(1))

    @device
    def sixteen(w, at):
        return U32(U32(w >> at) & U32(0xFFFF))

    @device
    def fourth(of, index):
        lower = of[1] if index & U64(1) else of[0]
        upper = of[3] if index & U64(1) else of[2]
        return upper if index & U64(2) else lower

    def four(make):
        f0, f1, f2, f3 = map(make, range(4))

        @device
        def all4(*args):
            return f0(*args), f1(*args), f2(*args), f3(*args)

        return all4

    return {"ones": ones, "bit": bit, "sixteen": sixteen, "fourth": fourth, "four": four}
