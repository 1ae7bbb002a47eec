"""The CPU kernels inside Numba's compiled code: `dropout`, `forward`, `backward` and `draw`.

They do what `fastdrop.dropout` does, bit for bit, and need no GIL. An example::

    from fastdrop.adapters.numba import dropout

    @njit(cache=True, nogil=True)
    def step(w, v, x, t, p, seed, number, rate):
        h = np.maximum(x @ w, 0)
        y = dropout(h, p, seed, number)
        dz = (y @ v - t) / len(x)
        dh = dropout(dz @ v.T, p, seed, number) * (h > 0)  # backward: the same draw
        v -= rate * (y.T @ dz)
        w -= rate * (x.T @ dh)
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, overload

from fastdrop import _core

__all__ = ["backward", "draw", "dropout", "forward"]

BITS_PAD = _core.BITS_PAD
CODES = {types.float32: 0, types.float64: 1}  # of fastdrop_api.h


def _link() -> None:
    """Give the functions of the C API names that compiled code can be linked with."""
    import llvmlite.binding as llvm

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    api = pointer(_core._C_API, b"fastdrop._core._C_API")
    _, *addresses = (ctypes.c_void_p * 4).from_address(api)  # behind the version
    for name, address in zip(("forward", "backward", "draw"), addresses, strict=True):
        llvm.add_symbol(f"fastdrop_{name}", address)


def _function(name: str, *arguments: Any) -> types.ExternalFunction:
    return types.ExternalFunction(f"fastdrop_{name}", types.void(*arguments))


_link()
_ARRAY, _N, _U64 = types.voidptr, types.uintp, types.uint64
_DRAW = _U64, _U64, _U64, types.float64  # start, seed, call, p
_forward = _function("forward", types.intc, _ARRAY, _ARRAY, _ARRAY, _N, *_DRAW)
_backward = _function("backward", types.intc, _ARRAY, _ARRAY, _ARRAY, _N, types.float64)
_draw = _function("draw", _ARRAY, _N, *_DRAW)


@intrinsic
def _null(typing: Any) -> tuple[Any, Any]:
    """NULL."""
    return _ARRAY(), lambda context, *_: context.get_constant_null(_ARRAY)


def _code(x: Any, y: Any) -> Any:
    """The C API's number of the dtype of both."""


@overload(_code)
def _code_of(x, y):  # type: ignore[no-untyped-def]  # Numba wants the parameters of the lambda
    given = isinstance(x, types.Array) and isinstance(y, types.Array)
    code = CODES.get(x.dtype) if given else None
    if code is None or y.dtype != x.dtype:
        raise TypingError(f"arrays must be both float32 or both float64, got {x} and {y}")
    if not y.mutable:
        raise TypingError(f"the array that is written to is read-only, {y}")
    return lambda x, y: code


def _dense(x: Any) -> Any:
    """x in C order. `numpy.ascontiguousarray` would make an axis for one of none."""


@overload(_dense)
def _dense_of(x):  # type: ignore[no-untyped-def]
    if not isinstance(x, types.Array) or x.dtype not in CODES:
        raise TypingError(f"x must be an array of float32 or float64, got {x}")
    if x.ndim == 0:
        return lambda x: x
    return lambda x: np.ascontiguousarray(x)


def _uint64(value: Any, name: str) -> Any:
    """A seed, or another number that is not negative, as the C API takes it."""


@overload(_uint64, prefer_literal=True)
def _uint64_of(value, name):  # type: ignore[no-untyped-def]
    kind = types.int64 if isinstance(value, types.Omitted) else value
    word = getattr(name, "literal_value", "a number")  # Numba asks again without the word
    if not isinstance(kind, types.Integer):
        raise TypingError(f"{word} must be an int, got {value}")
    if not kind.signed:
        return lambda value, name: np.uint64(value)
    message = f"{word} must be in 0 ... 2**64 - 1, got a negative number"

    def checked(value, name):  # type: ignore[no-untyped-def]
        if value < 0:
            raise ValueError(message)
        return np.uint64(value)

    return checked


@njit(cache=True)
def _check(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> None:
    if x.shape != y.shape or not (x.flags.c_contiguous and y.flags.c_contiguous):
        raise ValueError("the arrays must be C-contiguous and have one shape")
    if not 0 <= p <= 1:
        raise ValueError("p must be in [0, 1]")


@njit(cache=True)
def _check_bits(bits: npt.NDArray[Any], n: int) -> None:
    if bits.itemsize != 1 or not bits.flags.c_contiguous or bits.size < (n + 7) // 8 + BITS_PAD:
        raise ValueError("bits must be contiguous uint8, at least x.size / 8 + 8 long")


@njit(cache=True)
def dropout(
    x: npt.NDArray[Any], p: float, seed: int, call: int, start: int = 0
) -> npt.NDArray[Any]:
    """x / (1 - p) where kept, else 0: a new array. The backward pass is the same with dy.

    Parameters
    ----------
    x : array of float32 or float64
    p : float
        Drop rate in [0, 1].
    seed, call : int
        Name the draw: the mask is that of ``fastdrop.Rng(seed, call)``. From 2**63 on as uint64:
        Numba takes an int of Python for an int64.
    start : int
        Where x begins in the array whose mask it is, if it is a part of one.
    """
    start, seed, call = _uint64(start, "start"), _uint64(seed, "seed"), _uint64(call, "call")
    x = _dense(x)
    y = np.empty_like(x)
    _check(x, y, p)
    _forward(_code(x, y), x.ctypes, y.ctypes, _null(), x.size, start, seed, call, p)
    return y


@njit(cache=True)
def forward(
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    bits: npt.NDArray[Any],
    p: float,
    seed: int,
    call: int,
    start: int = 0,
) -> None:
    """As `dropout`, to y, which may be x, and the keep bits to `bits`.

    Parameters
    ----------
    x, y : C-contiguous arrays of one shape and dtype
    bits : array of uint8
        At least x.size / 8 + 8 long; bit i % 8 of byte i // 8 is 1 where element i is kept.
    p, seed, call, start
        As in `dropout`.
    """
    start, seed, call = _uint64(start, "start"), _uint64(seed, "seed"), _uint64(call, "call")
    _check(x, y, p)
    _check_bits(bits, x.size)
    _forward(_code(x, y), x.ctypes, y.ctypes, bits.ctypes, x.size, start, seed, call, p)


@njit(cache=True)
def backward(dy: npt.NDArray[Any], dx: npt.NDArray[Any], bits: npt.NDArray[Any], p: float) -> None:
    """dx = dy / (1 - p) where the keep bits say so, else 0; dx may be dy. See `forward`."""
    _check(dy, dx, p)
    _check_bits(bits, dy.size)
    _backward(_code(dy, dx), dy.ctypes, dx.ctypes, bits.ctypes, dy.size, p)


@njit(cache=True)
def draw(n: int, p: float, seed: int, call: int, start: int = 0) -> npt.NDArray[Any]:
    """The keep bits of n elements, as `forward` writes them, with their 8 bytes of room."""
    start, seed, call = _uint64(start, "start"), _uint64(seed, "seed"), _uint64(call, "call")
    n = np.int64(_uint64(n, "n"))
    if not 0 <= p <= 1:
        raise ValueError("p must be in [0, 1]")
    bits = np.empty((n + 7) // 8 + BITS_PAD, np.uint8)
    _draw(bits.ctypes, n, start, seed, call, p)
    return bits
