"""The CPU kernels inside Numba's compiled code: `dropout`, `forward`, `backward` and `draw`.

They do what `fastdrop.dropout` does, bit for bit, and need no GIL.

Examples
--------
A perceptron learns a product, one compiled loop:

>>> import numpy as np
>>> from fastdrop.adapters.numba import dropout
>>> from numba import njit
>>> @njit(nogil=True)
... def train(w, v, x, t, p, seed, steps, rate):
...     for number in range(steps):
...         h = np.maximum(x @ w, 0)
...         y = dropout(h, p, seed, number)
...         dz = (y @ v - t) / len(x)
...         dh = dropout(np.outer(dz, v), p, seed, number) * (h > 0)  # backward: the same draw
...         v -= rate * (y.T @ dz)
...         w -= rate * (x.T @ dh)
>>> draw = np.random.default_rng(0)
>>> x = draw.normal(size=(256, 2))
>>> t, w, v = x[:, 0] * x[:, 1], draw.normal(size=(2, 64)), np.zeros(64)
>>> train(w, v, x, t, 0.1, 1234, 500, 0.05)
>>> bool(np.mean((np.maximum(x @ w, 0) @ v - t) ** 2) < 0.25 * t.var())
True
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
CODES = {types.float32: 0, types.float64: 1, types.uint16: 2}  # of fastdrop_api.h
DTYPES = "float32 or float64 (or uint16, the bits of float16)"


def _link() -> None:
    """Give the functions of the C API names that compiled code can be linked with."""
    import llvmlite.binding as llvm

    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    api = pointer(_core._C_API, b"fastdrop._core._C_API")
    _, *addresses = (ctypes.c_void_p * 5).from_address(api)  # behind the version
    for name, address in zip(("forward", "backward", "draw", "region"), addresses, strict=True):
        llvm.add_symbol(f"fastdrop_{name}", address)


def _function(name: str, *arguments: Any, result: Any = types.void) -> types.ExternalFunction:
    return types.ExternalFunction(f"fastdrop_{name}", result(*arguments))


_link()
_ARRAY, _N, _U64 = types.voidptr, types.uintp, types.uint64
_DRAW = _U64, _U64, _U64, types.float64  # start, seed, call, p
_forward = _function("forward", types.intc, _ARRAY, _ARRAY, _ARRAY, _N, *_DRAW)
_backward = _function("backward", types.intc, _ARRAY, _ARRAY, _ARRAY, _N, types.float64)
_draw = _function("draw", _ARRAY, _N, *_DRAW)
_SHAPES = types.intc, _ARRAY, _ARRAY, _ARRAY, _U64  # ndim, shape, start, global shape, shared
_NAMED = _U64, _U64, types.float64  # seed, call, p
_region = _function("region", types.intc, _ARRAY, _ARRAY, *_SHAPES, *_NAMED, result=types.intc)


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
        raise TypingError(
            "arrays must be both float32 or both float64 (or both uint16, the bits of float16), "
            f"got {x} and {y}"
        )
    if not y.mutable:
        raise TypingError(f"the array that is written to is read-only, {y}")
    return lambda x, y: code


def _dense(x: Any) -> Any:
    """x in C order. `numpy.ascontiguousarray` would make an axis for one of none."""


@overload(_dense)
def _dense_of(x):  # type: ignore[no-untyped-def]
    if not isinstance(x, types.Array) or x.dtype not in CODES:
        raise TypingError(f"x must be an array of {DTYPES}, got {x}")
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


def _row(numbers: Any, length: int) -> Any:
    """A tuple of so many ints as an array."""


@overload(_row)
def _row_of(numbers, length):  # type: ignore[no-untyped-def]
    empty = len(numbers) == 0  # which Numba makes no array of

    def row(numbers, length):  # type: ignore[no-untyped-def]
        if len(numbers) != length:
            raise ValueError("region must have as many axes as x has")
        return np.array(numbers, np.int64)

    return (lambda numbers, length: np.zeros(length, np.int64)) if empty else row


def _block(x: Any, y: Any, p: float, seed: Any, call: Any, region: Any, shared_axes: Any) -> None:
    """y of a block of a larger array, or with axes that share a draw."""


@overload(_block)
def _block_of(x, y, p, seed, call, region, shared_axes):  # type: ignore[no-untyped-def]
    if isinstance(region, types.NoneType | types.Omitted):
        pair = False
    elif isinstance(region, types.BaseTuple) and len(region) == 2:
        pair = True
        for part in region:
            ints = isinstance(part, types.UniTuple) and isinstance(part.dtype, types.Integer)
            if not ints and not (isinstance(part, types.BaseTuple) and len(part) == 0):
                raise TypingError(f"region must be (start, global_shape), tuples of ints: {region}")
    else:
        raise TypingError(f"region must be (start, global_shape), tuples of ints, got {region}")

    def given(x, y, p, seed, call, region, shared_axes):  # type: ignore[no-untyped-def]
        shape = _row(x.shape, x.ndim)
        start, whole = _row(region[0], x.ndim), _row(region[1], x.ndim)
        _drop_block(_code(x, y), x, y, shape, start, whole, shared_axes, seed, call, p)

    def none(x, y, p, seed, call, region, shared_axes):  # type: ignore[no-untyped-def]
        shape = _row(x.shape, x.ndim)
        start = np.zeros(x.ndim, np.int64)
        _drop_block(_code(x, y), x, y, shape, start, shape, shared_axes, seed, call, p)

    return given if pair else none


def _shared(axes: Any, ndim: int) -> Any:
    """A bit for each axis that shares a draw."""


@overload(_shared)
def _shared_of(axes, ndim):  # type: ignore[no-untyped-def]
    if not isinstance(axes, types.UniTuple) or not isinstance(axes.dtype, types.Integer):
        if isinstance(axes, types.BaseTuple) and len(axes) == 0:
            return lambda axes, ndim: np.uint64(0)
        raise TypingError(f"shared_axes must be a tuple of ints, got {axes}")

    def bits(axes, ndim):  # type: ignore[no-untyped-def]
        shared = np.uint64(0)
        for axis in axes:
            if not -ndim <= axis < ndim:
                raise ValueError("shared_axes must be axes of x")
            bit = np.uint64(1) << np.uint64(axis % ndim)
            if shared & bit:
                raise ValueError("shared_axes must name each axis once")
            shared |= bit
        return shared

    return bits


def _axes(axes: Any) -> Any:
    """A tuple."""


@overload(_axes)
def _axes_of(axes):  # type: ignore[no-untyped-def]
    if isinstance(axes, types.Integer):
        return lambda axes: (axes,)
    if isinstance(axes, types.BaseTuple):
        return lambda axes: axes
    raise TypingError(f"shared_axes must be an int or a tuple of ints, got {axes}")


@njit(cache=True)
def _drop_block(
    code: Any,
    x: Any,
    y: Any,
    shape: Any,
    start: Any,
    whole: Any,
    shared_axes: Any,
    seed: Any,
    call: Any,
    p: float,
) -> None:
    ndim = len(shape)
    shared = _shared(shared_axes, ndim)
    for d in range(ndim):
        if start[d] < 0 or start[d] > whole[d] - shape[d]:
            raise ValueError("region must contain x")
    dims = shape.ctypes, start.ctypes, whole.ctypes
    if _region(code, x.ctypes, y.ctypes, ndim, dims[0], dims[1], dims[2], shared, seed, call, p):
        raise MemoryError("no memory for a mask")


@njit(cache=True)
def dropout(
    x: npt.NDArray[Any],
    p: float,
    seed: int,
    call: int,
    start: int = 0,
    region: Any = None,
    shared_axes: int | tuple[int, ...] = (),
) -> npt.NDArray[Any]:
    """x / (1 - p) where kept, else 0: a new array. The backward pass is the same with dy.

    Parameters
    ----------
    x : array of float32, float64, or uint16
        uint16 is the bits of float16: ``x.view(np.uint16)``, as Numba has no arrays of float16 on a
        CPU. View y as float16 again.
    p : float
        Drop rate in [0, 1].
    seed, call : int
        Name the draw: the mask is that of ``fastdrop.Rng(seed, call)``. From 2**63 on as uint64:
        Numba takes an int of Python for an int64.
    start : int
        Where x begins in the array whose mask it is, if it is consecutive elements of one.
    region : (start, global_shape), optional
        Two tuples of ints: x is the block that begins there in an array of this shape.
    shared_axes : int or tuple of int
        Axes along which one draw is shared.
    """
    axes = _axes(shared_axes)
    start, seed, call = _uint64(start, "start"), _uint64(seed, "seed"), _uint64(call, "call")
    x = _dense(x)
    y = np.empty_like(x)
    _check(x, y, p)
    if region is None and len(axes) == 0:
        _forward(_code(x, y), x.ctypes, y.ctypes, _null(), x.size, start, seed, call, p)
    elif start:
        raise ValueError("start must be 0 where there are a region or shared_axes")
    else:
        _block(x, y, p, seed, call, region, axes)
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
        As in `dropout`.
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
