"""The random stream: who gets which random bits, in NumPy.

Three numbers decide every random bit: a 64-bit *seed*, a 64-bit *call* and an *element index*.
Nothing else does: no thread count, vector width, memory layout or device. This module is the
stream's definition in its plainest form and what the compiled kernels are compared with. It is
versioned and never changes silently: a saved (seed, call) gives the same mask in every later
release.

A *Philox block* is the output of one Philox4x32 evaluation with 7 rounds: four 32-bit words,
little-endian, 16 bytes. Its key is the seed, its counter is (block number, domain, call). The
blocks of one *domain*, laid end to end, are that domain's *keystream*.

References
----------
J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel random numbers: as easy as 1, 2, 3.
SC 2011. https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fastdrop._core import CallCounter, Draw, Place, after_fork
from fastdrop.base import gate, watch

__all__ = [
    "STREAM_VERSION",
    "Rng",
    "RngLike",
    "draw_call",
    "keystream",
    "philox4x32",
    "with_draw",
    "words_at",
]

T = TypeVar("T")

STREAM_VERSION = 1
ROUNDS = 7

# Domains: which keystream is meant.
BYTES, REFINEMENT, BITS, NORMALS, UNIFORMS, CHILDREN, COPIES = range(7)

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))


def philox4x32(
    counter: npt.ArrayLike, key: npt.ArrayLike, rounds: int = ROUNDS
) -> npt.NDArray[np.uint32]:
    """Philox4x32 blocks.

    Parameters
    ----------
    counter : array_like of uint32, shape (..., 4)
    key : array_like of uint32, shape (..., 2)
        Broadcasts against `counter` over the leading axes.
    rounds : int
        The keystream has 7; Random123 publishes known answers for 7 and 10.

    Returns
    -------
    ndarray of uint32, shape (..., 4)
    """
    counter, key = np.asarray(counter, np.uint64), np.asarray(key, np.uint64)
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    k0, k1 = np.moveaxis(key, -1, 0)
    low, half = np.uint64(_U32), np.uint64(32)
    for r in range(rounds):
        p0, p1 = c0 * _MULTIPLIER[0], c2 * _MULTIPLIER[1]
        r0 = (k0 + np.uint64(r * _WEYL[0] & _U32)) & low
        r1 = (k1 + np.uint64(r * _WEYL[1] & _U32)) & low
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ r0, p1 & low, (p0 >> half) ^ c3 ^ r1, p0 & low
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def blocks(seed: int, call: int, domain: int, number: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Blocks of one keystream by number: uint64 array (...) to words (..., 4)."""
    b = np.asarray(number, np.uint64)
    counter = np.empty((*b.shape, 4), np.uint64)
    counter[..., 0] = b & np.uint64(_U32)
    counter[..., 1] = b >> np.uint64(32) | np.uint64(domain << 28)
    counter[..., 2] = call & _U32
    counter[..., 3] = call >> 32
    return philox4x32(counter, (seed & _U32, seed >> 32))


def words_at(seed: int, call: int, domain: int, index: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """32-bit words of one keystream by position: uint64 array (...) to words (...)."""
    i = np.asarray(index, np.uint64)
    block = blocks(seed, call, domain, i >> np.uint64(2))
    return np.take_along_axis(block, (i & np.uint64(3))[..., None].astype(np.intp), -1)[..., 0]


def keystream(seed: int, call: int, domain: int, n: int) -> npt.NDArray[np.uint8]:
    """The first n bytes of one keystream."""
    number = np.arange(-(-n // 16), dtype=np.uint64)
    return blocks(seed, call, domain, number).astype("<u4").view(np.uint8).reshape(-1)[:n]


class Rng(CallCounter):
    """Hands out the (seed, call) pairs that name the draws of successive operations.

    Parameters
    ----------
    seed : int, optional
        0 to 2**64 - 1. Fresh entropy from the operating system if omitted.
    call : int, optional
        Number of the next call, 0 to 2**64 - 1; 2**64 if none is left.

    Attributes
    ----------
    seeded : bool
        Whether the seed is the caller's.

    Raises
    ------
    TypeError
        seed or call is no int.
    ValueError
        seed or call is out of range. Later: a call is taken, and none is left.

    Examples
    --------
    >>> rng = Rng(1234)
    >>> y, ctx = fastdrop.dropout(x, 0.2, rng=rng)    # call 0
    >>> y, ctx = fastdrop.dropout(x, 0.2, rng=rng)    # call 1: another mask

    Notes
    -----
    ``Rng(ctx.seed, ctx.call)`` draws the mask of a saved context again. Two threads that share an
    `Rng` never get the same call; which of them gets which depends on their timing, so give each
    its own child (`spawn`) where runs must repeat.

    A call that raises or is interrupted takes none, unless it has written its `out`, which is whole
    then, or an interrupt came when y was on its way back. It does take one if other calls have been
    taken since.

    Copies (`copy.copy`, `copy.deepcopy`) and forked processes: without a seed of the caller's each
    gets a seed of its own. With one, a copy has the same state, as NumPy's generators do, and so
    has the child of a fork; give each process a child (`spawn`). A copy of a layer always draws
    other masks than the layer, unless it uses an `Rng` of yours. A pickle always has the state.
    """

    __slots__ = ()

    def __init__(self, seed: int | None = None, call: int = 0) -> None:
        own = _entropy() if seed is None else uint64(seed, "seed")
        spent = type(call) is int and call == 2**64
        number = _U64 if spent else uint64(call, "call")
        super().__init__(own, number, spent, seed is not None)

    @property
    def seed(self) -> int:
        """The 64-bit seed."""
        return self.peek()[0]

    @property
    def call(self) -> int:
        """Number of the next call."""
        return self.peek()[1]

    @property
    def state(self) -> dict[str, int]:
        """Everything that decides the coming draws, as a JSON-safe dict. Can be assigned."""
        seed, call = self.peek()
        return {"stream_version": STREAM_VERSION, "seed": seed, "call": call}

    @state.setter
    def state(self, state: dict[str, int]) -> None:
        if not isinstance(state, dict) or state.keys() != {"stream_version", "seed", "call"}:
            raise ValueError(
                f"state must be a dict with stream_version, seed and call, got {gate.shown(state)}"
            )
        if uint64(state["stream_version"], "stream_version") != STREAM_VERSION:
            raise ValueError(
                f"state has stream_version {gate.shown(state['stream_version'])}, "
                f"this release draws version {STREAM_VERSION}"
            )
        Rng.__init__(self, state["seed"], state["call"])

    def spawn(self, n: int) -> list[Rng]:
        """n generators with independent seeds; takes one call."""
        n = gate.count(n, "n", 0)

        def children(draw: Draw) -> list[Rng]:
            seeds = keystream(draw.seed, draw.call, CHILDREN, 8 * n).view("<u8")
            made = [Rng(int(seed)) for seed in seeds]
            for child in made:  # their seeds are the caller's if this one is
                CallCounter.__init__(child, child.seed, 0, False, self.seeded)
            return made

        return self.lend(0.0, Place(()), children)

    def __copy__(self) -> Self:
        return self._with(self._copied_state(), _added(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._with(self._copied_state(), deepcopy(_added(self), memo))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.peek()), _added(self)

    def __setstate__(self, added: dict[str, Any]) -> None:
        for name, value in added.items():
            setattr(self, name, value)

    def _copied_state(self) -> tuple[int, ...]:
        """What the constructor makes a copy of; nothing means a fresh seed."""
        return self.peek() if self.seeded else ()

    def _with(self, state: tuple[int, ...], added: dict[str, Any]) -> Self:
        """One of this kind. A subclass may have a constructor of its own, which is not called."""
        other = _restored(type(self), state)
        other.__setstate__(added)
        return other

    def __repr__(self) -> str:
        return "Rng(seed={}, call={})".format(*self.peek())


_Kind = TypeVar("_Kind", bound="Rng")


class LayerRng(Rng):
    """The generator of one layer alone. A copy of the layer runs beside it, so that the copy's seed
    is another: it follows from this one, or is fresh if this one is not the caller's.
    """

    __slots__ = ("_copies",)
    _copies: CallCounter  # whose step is one for all threads

    def __init__(self, seed: int | None = None, call: int = 0) -> None:
        super().__init__(seed, call)
        self._copies = CallCounter(0, 0)

    @classmethod
    def of(cls, rng: RngLike) -> Self:
        """From what seeds a layer."""
        return cls() if rng is None else cls(*draw_call(rng))

    def _copied_state(self) -> tuple[int, ...]:
        if not self.seeded:
            return ()
        return (copy_seed(self.seed, self._copies.take()[1]),)

    def _with(self, state: tuple[int, ...], added: dict[str, Any]) -> Self:
        return super()._with(state, {**added, "_copies": CallCounter(0, 0)})


def _restored(kind: type[_Kind], state: tuple[int, ...]) -> _Kind:
    """A generator of this kind from (seed, call), without its constructor."""
    rng = kind.__new__(kind)
    Rng.__init__(rng, *state)
    return rng


def _added(rng: Rng) -> dict[str, Any]:
    """What a subclass has beside the state: attributes in slots or in a dict."""
    slots = (vars(kind).get("__slots__", ()) for kind in type(rng).__mro__)
    names = (n for own in slots for n in ((own,) if isinstance(own, str) else own))
    found = {name: getattr(rng, name) for name in names if hasattr(rng, name)}
    return {**found, **getattr(rng, "__dict__", {})}


def copy_seed(seed: int, number: int) -> int:
    """Seed of the number-th copy of a layer with this seed. No call is taken for it."""
    return int(keystream(seed, number, COPIES, 8).view("<u8")[0])


if TYPE_CHECKING:
    RngLike: TypeAlias = (
        Rng | int | np.random.SeedSequence | np.random.Generator | np.random.BitGenerator | None
    )
else:  # The names would import NumPy's random module, which takes longer than all of fastdrop.
    RngLike: TypeAlias = Any


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


def _entropy() -> int:
    """A seed from the operating system."""
    return int.from_bytes(os.urandom(8), "little")


def draw_call(rng: RngLike) -> tuple[int, int]:
    """(seed, call) of one operation from whatever ``rng=`` accepts.

    An `Rng` gives its next call. None means fresh entropy; an int or a SeedSequence stands for
    itself, so it gives the same draw each time; a Generator or BitGenerator is asked for a seed.
    """
    if isinstance(rng, CallCounter):
        return rng.take()
    if rng is None:
        return _entropy(), 0
    if isinstance(rng, np.random.SeedSequence):
        return int(rng.generate_state(1, np.uint64)[0]), 0
    if isinstance(rng, np.random.BitGenerator):
        rng = np.random.Generator(rng)
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(0, 2**64, dtype=np.uint64)), 0
    return uint64(rng, "rng"), 0


def with_draw(
    rng: RngLike,
    p: float,
    place: Place,
    body: Callable[[Draw], T],
    out: Any = None,
    of: Any = None,
) -> T:
    """body(draw), where one operation draws: takes one call of an `Rng`, if there is a result.

    If body raises (an error, an interrupt at any line), no call is taken, except where `out` has
    been written: then it is whole, and the call is its own. So body writes to `out` last, in one
    step. A NumPy generator is not set back.

    of: the operand that the draw is for; None if it is not to be remembered by `fastdrop.debug`.
    """
    if watch.record is not None and of is not None:
        body = watch.recorded(body, of)
    if isinstance(rng, CallCounter):
        return rng.lend(p, place, body, out)
    return body(Draw(*draw_call(rng), p, place))


def uint64(value: int, name: str) -> int:
    """A 64-bit seed or call number."""
    kinds = "None, an int, a SeedSequence, a Generator, a BitGenerator or a fastdrop.Rng"
    number = gate.integer(value, name, kinds if name == "rng" else "an int")
    if not 0 <= number <= _U64:
        raise ValueError(f"{name} must be in 0 ... 2**64 - 1, got {gate.shown(number)}")
    return number
