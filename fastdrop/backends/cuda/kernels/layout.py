"""Arrays of any layout, and a copy from one to another.

The group of parameters is ``layout = shape, strides``, two tuples of U64, or for `rows` ``layout =
shape, strides, rows``: the address of the numbers, U64, of axis 0's rows, or 0 if they follow each
other.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from fastdrop.backends.cuda.kernels.elements import elements
from fastdrop.backends.cuda.kernels.targets import U32, U64, target


@cache
def positions(where: str, axes: int, small: bool, rows: bool = False) -> Any:
    """``f(i, layout)``, the dot product of element i's C-order coordinates and the strides, and
    ``g(i, length)``, how many elements of its row of the last axis begin with it.

    small: i and all lengths are below 2^32, so that the divisions are of 32 bits.
    """
    t = target(where)
    device, load_u64 = t.device, t.load_u64

    def behind(outer: Any, d: int) -> Any:
        @device
        def position(i, layout):
            shape, strides = layout[0], layout[1]
            q = U64(U32(i) // U32(shape[d])) if small else i // shape[d]
            return outer(q, layout) + (i - q * shape[d]) * strides[d]

        return position

    if rows:

        @device
        def outermost(i, layout):
            row = i if layout[2] == U64(0) else load_u64(layout[2] + (i << 3))
            return row * layout[1][0]

    else:

        @device
        def outermost(i, layout):
            return i * layout[1][0]

    @device
    def left(i, length):
        if small:
            return U64(U32(length) - U32(i) % U32(length))
        return length - i % length

    position = outermost
    for d in range(1, axes):
        position = behind(position, d)
    return position, left


@cache
def copy_kernel(where: str, dtype: str, axes: int = 1, small: bool = True) -> Any:
    """n elements from any layout to any other; `strides` and `to` are in bytes."""
    p, e = target(where), elements(where, dtype)
    first, step, load, store = p.first, p.step, e.load, e.store
    position, _ = positions(where, axes, small)

    def copy(x, y, n, shape, strides, to):
        i = first()
        while i < n:
            store(y + position(i, (shape, to)), load(x + position(i, (shape, strides))))
            i += step()

    return p.kernel(copy)
