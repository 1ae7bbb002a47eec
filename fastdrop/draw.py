"""What decides a mask: the key, the threshold, and which part of which mask array.

The *mask array* has the shape of x with length 1 along shared axes. Its C-order positions are the
stream's element indices.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C-ordered array, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


class Draw(NamedTuple):
    """One call's draw of a block of the mask array."""

    seed: int
    call: int
    threshold: int  # T = round(p * 2**32)
    shape: tuple[int, ...]  # of the block
    start: int = 0  # index of the block's first element
    strides: tuple[int, ...] | None = None  # in the whole mask array; None: one run of indices

    @property
    def size(self) -> int:
        return prod(self.shape)

    @classmethod
    def of_block(
        cls,
        key: tuple[int, int, int],
        shape: tuple[int, ...],
        shared_axes: tuple[int, ...],
        region: tuple[tuple[int, ...], tuple[int, ...]] | None,
    ) -> Draw:
        """The draw for x of this shape; `key` is (seed, call, threshold)."""

        def shrunk(lengths: tuple[int, ...], to: int) -> tuple[int, ...]:
            return tuple(to if d in shared_axes else n for d, n in enumerate(lengths))

        block = shrunk(shape, 1) if 0 not in shape else shape
        if region is None:
            return cls(*key, block)
        start, whole = shrunk(region[0], 0), shrunk(region[1], 1)
        strides = c_strides(whole)
        first = sum(i * s for i, s in zip(start, strides, strict=True))
        return cls(*key, block, first, None if _is_run(block, strides) else strides)


def _is_run(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether these strides visit consecutive indices; those of axes of length 1 do not matter."""
    return all(
        n == 1 or s == own
        for n, s, own in zip(shape, strides, c_strides(shape), strict=True)
    )
