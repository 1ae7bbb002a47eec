"""Which part of which mask array an operation draws.

The *mask array* has the shape of x with length 1 along shared axes; its C-order positions are the
stream's element indices. x may be a block (a shard, a chunk) of a larger array; then its mask is a
block of the larger mask array.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from math import prod

Region = tuple[tuple[int, ...], tuple[int, ...]]


def c_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a C-ordered array, in elements."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


NO_AXES: tuple[int, ...] = ()  # a tuple without items is always this one: `is` takes no time


class Block:
    """A block of the mask array.

    Attributes
    ----------
    shape : tuple of int
        Of the block: 1 along shared axes.
    start : int
        Index of its first element.
    strides : tuple of int
        How far one step along each axis goes, in elements of the whole mask array.
    of, shared_axes, region
        What it was made from; `of`: the shape of x.
    is_run : bool
        Whether x's elements in C order have consecutive indices.
    """

    __slots__ = ("is_run", "of", "region", "shape", "shared_axes", "start", "strides")

    def __init__(
        self, shape: tuple[int, ...], shared_axes: tuple[int, ...], region: Region | None
    ) -> None:
        def shrunk(lengths: tuple[int, ...], to: int) -> tuple[int, ...]:
            return tuple(to if d in shared_axes else n for d, n in enumerate(lengths))

        self.of, self.shared_axes, self.region = shape, shared_axes, region
        start, whole = region or ((0,) * len(shape), shape)
        self.shape = shrunk(shape, 1)
        self.strides = c_strides(shrunk(whole, 1))
        self.start = sum(i * s for i, s in zip(shrunk(start, 0), self.strides, strict=True))
        own = zip(self.shape, self.strides, c_strides(self.shape), strict=True)
        self.is_run = self.shape == shape and all(n == 1 or s == c for n, s, c in own)

    def pieces(self, limit: int) -> Iterator[tuple[tuple[slice, ...], Block]]:
        """Cut the first axis that is drawn, so that pieces have about `limit` elements.

        Yields where in x each piece is, and its block. A piece may still be too large.
        """
        axis = next(d for d, n in enumerate(self.shape) if n > 1)
        length = self.shape[axis]
        step = max(1, limit * length // self.size)
        for begin in range(0, length, step):
            piece = copy(self)
            end = min(begin + step, length)
            piece.shape = (*self.shape[:axis], end - begin, *self.shape[axis + 1 :])
            piece.start = self.start + begin * self.strides[axis]
            piece.is_run = False
            yield (slice(None),) * axis + (slice(begin, end),), piece

    def __copy__(self) -> Block:
        other = Block.__new__(Block)
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    @property
    def size(self) -> int:
        """Elements in the block."""
        return prod(self.shape)
