"""The debug switch: remembers what each draw was for, and raises where that cannot be meant.

While it is on, `fastdrop.rng.with_draw` tells it what an op draws for, `fastdrop.backends.of` hands
out `Watched` backends, and the compiled roads that go past both are closed. So it costs nothing
while it is off.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from fastdrop import _core
from fastdrop._core import Draw
from fastdrop.base import gate

T = TypeVar("T")


class Record:
    """What each draw was for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[tuple[int, int], dict[Any, bytes]] = {}

    def forward(self, draw: Draw, x: Any) -> bool:
        """A draw for the values of x: an operand, or a tuple of them. Whether it is new."""
        where, digest = _where(draw), _digest(x)
        with self._lock:
            known = self._seen.setdefault((draw.seed, draw.call), {})
            one = all(_parts_of_one(where, other) for other in known)
            if not one or known.get(where, digest) != digest:
                raise RuntimeError(
                    f"the draw (seed {draw.seed}, call {draw.call}) was used for another array "
                    f"before this one, of shape {draw.place.of}: both get the same mask; give each "
                    "operation a call of its own, with one Rng for all, or another seed"
                )
            new = where not in known
            known[where] = digest
            return new

    def forget(self, draw: Draw) -> None:
        """A draw whose call was given back, as it failed."""
        with self._lock:
            self._seen.get((draw.seed, draw.call), {}).pop(_where(draw), None)

    def again(self, draw: Draw) -> None:
        """A draw that a forward pass must have made before."""
        with self._lock:
            if (draw.seed, draw.call) not in self._seen:
                raise RuntimeError(
                    f"a backward pass draws (seed {draw.seed}, call {draw.call}), which no forward "
                    "pass has drawn since debugging began; is the context another process', or "
                    "older?"
                )


record: Record | None = None
"""What is remembered; None while nothing is."""


def recorded(body: Callable[[Draw], T], x: Any) -> Callable[[Draw], T]:
    """The body of `fastdrop.rng.with_draw` that is told of first, if something is remembered."""
    current = record
    if current is None:
        return body

    def told(draw: Draw) -> T:
        new = current.forward(draw, x)
        try:
            return body(draw)
        except BaseException:
            if new:
                current.forget(draw)
            raise

    return told


def drawn_again(draw: Draw | None) -> None:
    """Told by a backward pass that draws without a backend."""
    if record is not None and draw is not None:
        record.again(draw)


# Methods of a backend that draw, and where their bits are, if they may have some instead.
DRAWING = {
    **dict.fromkeys(("noise", "noise_gradients", "lookup", "add_rows", "sum_rows"), None),
    **dict.fromkeys(("keep_squares", "linear", "linear_gradients"), None),
    **{"select": 3, "split": 2, "select_and_sum": 3},
}


class Watched:
    """A backend that draws only what a forward pass has drawn."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._backend, name)
        return _checked(method, DRAWING[name]) if name in DRAWING else method


def _checked(method: Callable[..., Any], bits: int | None) -> Callable[..., Any]:
    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in args:
            if type(value) is not Draw:
                continue
            if bits is None or (args[bits] is None and value.p > 0.0):
                drawn_again(value)
        return method(*args, **kwargs)

    return checked


class debug:
    """While this lasts, a draw that is used for two arrays raises RuntimeError.

    Each draw, named by seed and call, is remembered with a digest of the array it was drawn for. A
    forward pass that uses it for another array raises, as two layers with one seed do; so does a
    backward pass that draws again what no forward pass has drawn. The same array again is right, as
    in recomputation, and so are other regions or rows of one array.

    The environment variable ``FASTDROP_DEBUG=1`` does this from the import on, in all threads. A
    call takes longer by the digest of its array, and some 300 bytes until this ends; without this,
    it costs nothing. Adapters of libraries that have gradients of their own name their draws
    themselves and are not watched, and `keep_mask` is free to look at any mask.

    Parameters
    ----------
    on : bool
        False: nothing is watched meanwhile; for a mask that is meant for several arrays, such as
        that of all steps of a sequence, or that of all batches in Monte Carlo prediction. Their
        backward passes belong here, too.

    Raises
    ------
    TypeError
        `on` is not a bool.

    Examples
    --------
    >>> with fastdrop.debug():
    ...     train()
    """

    def __init__(self, on: bool = True) -> None:
        self._on = gate.flag(on, "on")

    def __enter__(self) -> None:
        with _changing:
            _entered.append((self, (record or Record()) if self._on else None))
            _remember_the_last()

    def __exit__(self, *error: object) -> None:
        with _changing:
            last = max(i for i, (entered, _) in enumerate(_entered) if entered is self)
            del _entered[last]
            _remember_the_last()


_changing = threading.Lock()
_entered: list[tuple[debug, Record | None]] = []  # threads may leave in another order


def _remember_the_last() -> None:
    global record
    record = _entered[-1][1] if _entered else None
    _core.set_watched(record is not None)


def _where(draw: Draw) -> tuple[Any, ...]:
    place = draw.place
    return place.of, place.region, None if place.rows is None else _digest(place.rows)


def _parts_of_one(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether two places may be parts of one array: the same, or shards of it, or some rows."""
    (shape_a, region_a, rows_a), (shape_b, region_b, rows_b) = a, b
    if a == b:
        return True
    whole_a = region_a[1] if region_a else shape_a
    whole_b = region_b[1] if region_b else shape_b
    any_rows = rows_a is not None or rows_b is not None
    return whole_a[1:] == whole_b[1:] if any_rows else whole_a == whole_b


def _digest(x: Any) -> bytes:
    from hashlib import blake2b  # takes longer to import than the rest of fastdrop

    found = blake2b(digest_size=16)
    for part in x if isinstance(x, tuple) else (x,):
        values = part if isinstance(part, np.ndarray) else part.fetched()
        found.update(np.ascontiguousarray(values).tobytes())
    return found.digest()


if os.environ.get("FASTDROP_DEBUG") == "1":
    debug().__enter__()
