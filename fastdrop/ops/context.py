"""Contexts: what a call leaves for its backward pass.

An op makes its context with `Context.made`, which checks nothing again. Whoever else makes one (a
pickle, which may come from anywhere, or a caller) goes through the constructor, which checks all of
it. A context never changes afterwards, so nothing can be set behind the checks.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, Draw, Saved
from fastdrop.backends import fetched
from fastdrop.base import gate


class Context(Saved):
    """What all contexts share.

    A subclass names what else it holds in ``__slots__``.

    Attributes
    ----------
    shape : tuple of int
        Shape of x.
    draw : Draw or None
        Names the random numbers of the call; None if nothing was drawn (``training=False``).
    seed, call : int or None
        Those of the draw: ``Rng(seed, call)`` draws the same again.
    p : float
        The rate; 0 if nothing was drawn.
    scale : float
        What kept elements were multiplied by.
    held : object
        What is kept for the backward pass: a packed mask, an array, or None.
    """

    __slots__ = ()

    def __init__(self, *values: Any) -> None:
        names = fields(type(self))  # type: ignore[arg-type]  # a class can be hashed
        if len(values) != len(names):
            kind = type(self).__name__
            raise TypeError(f"{kind} has {len(names)} fields, {names}, got {len(values)}")
        shape, draw, scale, held, *more = values
        if draw is not None and type(draw) is not Draw:
            raise TypeError(f"draw must be a Draw or None, got {gate.shown(draw)}")
        shape, scale = gate.shape(shape), gate.real(scale, "scale")
        held = _own(held) if type(held) is np.ndarray else held
        Saved.__init__(self, shape, draw, scale, held)
        for name, value in zip(names[4:], more, strict=True):
            object.__setattr__(self, name, _CHECKS[name](value, name))
        self._check()
        if draw is not None and draw.given and type(held) is not bytes:
            raise ValueError("bits must be held of a mask that no seed draws again")

    @classmethod
    def made(
        cls, shape: tuple[int, ...], draw: Draw | None, scale: float, held: Any, **more: Any
    ) -> Self:
        """A context of what an op has gated itself: nothing is checked again."""
        ctx = _core.saved(cls, shape, draw, scale, held)
        for name, value in more.items():
            object.__setattr__(ctx, name, value)
        return ctx

    def _check(self) -> None:
        """Raises ValueError or TypeError if fields, each right in itself, do not fit each other."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of its fields")

    def _check_place(self) -> None:
        """The usual case: the draw is for an array of x's shape."""
        if self.draw is not None and self.draw.place.of != self.shape:
            raise ValueError(f"draw must be for shape {self.shape}, got {self.draw.place.of}")

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes."""
        rows = None if self.draw is None else self.draw.place.rows
        numbers = 0 if rows is None else rows.nbytes
        if self.held is None:
            return numbers
        held = self.held
        return numbers + (len(held) - BITS_PAD if type(held) is bytes else held.nbytes)

    def __array__(self, *_: Any, **__: Any) -> Any:
        """NumPy asks for it where y and its context, as they come, are taken for an array."""
        raise TypeError("an op returns y and its context, which is no array: write y, ctx = ...")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a context does not change; {name} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        names = fields(type(self))  # type: ignore[arg-type]  # a class can be hashed
        return type(self), tuple(fetched(getattr(self, name)) for name in names)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, p={self.p}, seed={self.seed}, "
            f"call={self.call}, nbytes={self.nbytes})"
        )


@cache
def fields(kind: type) -> tuple[str, ...]:
    """The names of what a kind of context holds, in the order of its constructor."""
    own = (vars(base).get("__slots__", ()) for base in reversed(kind.__mro__))
    return ("shape", "draw", "scale", "held", *(name for names in own for name in names))


def is_bits(value: Any, n: int) -> bool:
    """Whether this is a packed mask of n elements in the host's memory."""
    return type(value) is bytes and len(value) == (n + 7) // 8 + BITS_PAD


def array(value: Any, name: str) -> npt.NDArray[Any]:
    """An array of a context, in C order."""
    return _own(gate.array(value, name))


def _own(x: npt.NDArray[Any], dtype: npt.DTypeLike | None = None) -> npt.NDArray[Any]:
    """A copy in C order: a pickle can give its arrays other memory, another shape or another dtype,
    once all has been checked.
    """
    return np.array(x, dtype, order="C")


def _instance(kind: type) -> Any:
    def check(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{name} must be a {kind.__name__}, got {gate.shown(value)}")
        return value

    return check


def _optional_array(value: Any, name: str) -> Any:
    return None if value is None else array(value, name)


def _plain(dtype: Any) -> Any:
    def check(value: Any, name: str) -> npt.NDArray[Any]:
        x = gate.host(value, name)
        if x.dtype.kind != np.dtype(dtype).kind:
            raise TypeError(f"{name} must have dtype {np.dtype(dtype)}, got {x.dtype}")
        return _own(x, dtype)

    return check


def _index(value: Any, name: str) -> int:
    return gate.count(value, name, 0)


def _numbers(value: Any, name: str) -> tuple[float, ...] | None:
    return (
        None
        if value is None
        else tuple(gate.real(number, name) for number in gate.items(value, name))
    )


# What the further fields hold, by their names, in every kind of context.
_CHECKS = {
    **dict.fromkeys(("x", "weight", "weights", "log_variance", "log_alpha"), array),
    **dict.fromkeys(("bias", "sigma"), _optional_array),
    **dict.fromkeys(("channels_last", "per_channel", "mask_bias"), _instance(bool)),
    **dict.fromkeys(("axis", "first", "op"), _index),
    "factor": gate.real,
    "block_size": gate.count,
    "relaxed": _numbers,
    "previous": gate.rate,
    "scales": _plain(np.float64),
    "changed": _plain(np.intp),
}
