"""Contexts from pickles, which may come from anywhere.

A field's name says what it holds, in every context: one table checks them all. What fields must
have in common a context checks itself, whoever makes it.
"""

from __future__ import annotations

import copyreg
from dataclasses import fields
from typing import Any

import numpy as np

from fastdrop.backends.cuda.arrays import fetched
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.place import Block
from fastdrop.rng import uint64

__all__ = ["Restored"]


class Restored:
    """A frozen dataclass whose fields are checked when it is loaded from a pickle."""

    __slots__ = ()

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raises ValueError if fields, each of them right in itself, do not fit each other."""
        named = None not in (self.seed, self.call)  # type: ignore[attr-defined]
        if np.any(getattr(self, "p", 1.0)) and not named:
            raise ValueError(f"pickled {type(self).__name__} must have a seed and a call")

    def __reduce__(self) -> tuple:
        return _restore, (type(self), *(fetched(getattr(self, f.name)) for f in fields(self)))


def _restore(kind: type[Restored], *values: Any) -> Restored:
    if not issubclass(kind, Restored):
        raise TypeError(f"pickled context must be one of fastdrop's, got {kind!r}")
    names = [f.name for f in fields(kind)]
    if len(values) != len(names):
        raise TypeError(f"pickled {kind.__name__} must have {len(names)} fields, got {len(values)}")
    return kind(*(_CHECKS[n](v, n) for n, v in zip(names, values, strict=True)))


def _array(value: Any, name: str) -> Any:
    return value if on_device(value) else np.require(gate.array(value, name), None, ["C", "A"])


def _ids(value: Any, name: str) -> Any:
    if type(value) is not np.ndarray or value.dtype != np.int64:
        raise TypeError(f"{name} must be an int64 array, got {value!r:.40}")
    return value


def _index(value: Any, name: str) -> int:
    if gate.count(value, name, 0) > gate.MAX_INDEX:
        raise ValueError(f"{name} must be at most 2**62, got {value!r}")
    return value


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    return tuple(gate.real(number, name) for number in value)


def _instance(kind: type) -> Any:
    def check(value: Any, name: str) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r:.40}")
        return value

    return check


def _or_none(check: Any) -> Any:
    return lambda value, name: None if value is None else check(value, name)


_CHECKS = {
    "shape": lambda value, name: gate.shape(value),
    "p": gate.rate,
    "seed": _or_none(uint64),
    "call": _or_none(uint64),
    "first": _index,
    "block_size": gate.count,
    "op": _index,
    "relaxed": _or_none(_numbers),
    "ids": _ids,
    "bits": _or_none(_instance(bytes)),
    "block": _instance(Block),
    "draw": lambda value, name: value,  # has come through here itself
    **dict.fromkeys(("channels_last", "per_channel", "mask_bias"), _instance(bool)),
    **dict.fromkeys(("x", "weight", "log_alpha", "log_variance"), _array),
    **dict.fromkeys(("bias", "sigma", "deviation"), _or_none(_array)),
}

# A block is rebuilt from what it was made from.
copyreg.pickle(Block, lambda b: (gate.block, (b.of, b.shared_axes, b.region)))
