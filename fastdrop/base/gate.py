"""The gate: how arguments of public functions are checked, before anything is drawn or written.

An error names the argument, its value and the remedy. What depends on where arrays are, each
backend checks with these functions (`array`, `floats`, `numbers`, `output`); what a place can be,
`_core.Place` does.
"""

from __future__ import annotations

import math
import numbers
import operator
import sys
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import Place
from fastdrop.base.devices import on_device

MAX_INDEX = 2**62  # element indices that the keystream can address, and the largest count
LEAST = sys.float_info.min  # of positive numbers: 1 / LEAST is finite
NO_AXES: tuple[int, ...] = ()  # a tuple without items is always this one: `is` takes no time

Region = tuple[Sequence[int], Sequence[int]]  # start, global shape


def shown(value: Any) -> str:
    """A value as errors show it: short, even if it is long or has no words for itself."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    try:
        text = repr(value)
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def real(value: Any, name: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite real number in [low, high] as a float."""
    left = "(-inf" if low == -math.inf else f"[{low:g}"
    right = "inf)" if high == math.inf else f"{high:g}]"
    if type(value) is not float:
        value = _real(value, name, f"a real number in {left}, {right}")
    if not low <= value <= high or math.isinf(value):  # not: true for NaN, too
        raise ValueError(f"{name} must be in {left}, {right}, got {value!r}")
    return value


def rate(p: Any, name: str = "p") -> float:
    """A drop rate as a float in [0, 1]."""
    return p if type(p) is float and 0.0 <= p <= 1.0 else real(p, name, 0.0, 1.0)


def positive(value: Any, name: str, least: float = LEAST) -> float:
    """A positive number as a float. Its reciprocal is to be finite, which `least` sees to."""
    number = _real(value, name, "a positive real number")
    if not 0.0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number!r}")
    if number < least:
        raise ValueError(f"{name} must be at least {least:.3g}, got {number!r}")
    return number


def count(value: Any, name: str, least: int = 1, most: int = MAX_INDEX) -> int:
    """A number of things, or with least = 0 a position among them."""
    number = integer(value, name, "an int")
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {shown(number)}")
    if number > most:
        limit = "2**62" if most == MAX_INDEX else most
        raise ValueError(f"{name} must be at most {limit}, got {shown(number)}")
    return number


def dtype(value: Any, name: str = "dtype") -> np.dtype[Any]:
    """float32 or float64, as this machine has it."""
    try:
        found = np.dtype(value).newbyteorder("=")
    except Exception as error:
        raise TypeError(f"{name} must be float32 or float64, got {shown(value)}") from error
    if found not in (np.float32, np.float64):
        raise ValueError(f"{name} must be float32 or float64, got {found}")
    return found


def items(value: Any, name: str, words: str = "a sequence") -> tuple[Any, ...]:
    """What is in a sequence, or in whatever else can be gone through."""
    unmasked(value, name)
    try:
        return tuple(value)
    except Exception as error:
        raise TypeError(f"{name} must be {words}, got {shown(value)}") from _cause(error)


def flag(value: Any, name: str) -> bool:
    """A bool. Nothing else is taken for one: a word such as "no" would be true."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name} must be True or False, got {shown(value)}")


def function(value: Any, name: str) -> None:
    """Something that can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function, got {shown(value)}")


def integer(value: Any, name: str, words: str) -> int:
    """An int of any size; what else must be told in words."""
    try:
        if isinstance(value, bool | np.bool_) or is_masked(value):
            raise TypeError
        return operator.index(value)
    except Exception as error:
        raise TypeError(f"{name} must be {words}, got {shown(value)}") from _cause(error)


def integers(value: Any, name: str, words: str = "an int or a tuple of ints") -> tuple[int, ...]:
    """An int, or several, as a tuple."""
    try:
        return (integer(value, name, words),)
    except TypeError:
        parts = items(value, name, words)
    try:
        return tuple(integer(n, name, words) for n in parts)
    except TypeError as error:
        raise TypeError(f"{name} must be {words}, got {shown(value)}") from error.__cause__


def _cause(error: Exception) -> Exception | None:
    """An error of the caller's own object, which says more; Python's own TypeError does not."""
    return None if isinstance(error, TypeError) else error


def _real(value: Any, name: str, words: str) -> float:
    """A real number, a 0-d array of one included, as a float."""
    real = isinstance(value, numbers.Real) or (
        isinstance(value, np.ndarray | np.generic)
        and value.ndim == 0
        and (value.dtype.kind in "fiu" or value.dtype.name == "bfloat16")
    )
    if not real or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be {words}, got {shown(value)}")
    unmasked(value, name)
    try:
        return float(value)
    except OverflowError:
        raise ValueError(
            f"{name} must be {words}, got a larger number than a float can be"
        ) from None
    except Exception as error:
        raise TypeError(f"{name} must be {words}, got {shown(value)}") from error


def host(x: Any, name: str) -> npt.NDArray[Any]:
    """x as an array of any dtype, if it is not on a GPU."""
    if type(x) is not np.ndarray and on_device(x):
        raise TypeError(
            f"{name} is a CUDA array, for which this operation has no kernels, or of which it "
            "has others in the host's memory; copy it to the host"
        )
    return read(x, name, np.asarray)


def read(x: Any, name: str, reader: Callable[[Any], Any]) -> Any:
    """x as an array library reads it, if that loses nothing."""
    if isinstance(x, tuple) and len(x) == 2 and hasattr(x[1], "backward"):
        raise TypeError(
            f"{name} is what an op returns, y and its context: write y, ctx = ..., and give y"
        )
    if is_sparse(x):
        raise TypeError(
            f"{name} is a sparse array, which dropout alone takes; convert it with .toarray()"
        )
    unmasked(x, name)
    try:
        return reader(x)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # of that library, or of x itself
        raise TypeError(f"{name} cannot be read as an array: {error}") from error


def is_sparse(x: Any) -> bool:
    """Whether this is a sparse array or matrix of SciPy's, which somebody must have loaded then."""
    module = sys.modules.get("scipy.sparse")
    return module is not None and module.issparse(x)


def is_masked(x: Any, depth: int = 64) -> bool:
    """Whether this is an array of `numpy.ma`, which somebody must have loaded to have one, or
    lists as deep as NumPy reads them with one in it.
    """
    module = sys.modules.get("numpy.ma")
    if module is None:
        return False
    if isinstance(x, list | tuple):
        items = (item for item in x if type(item) is not float)
        return depth > 0 and any(is_masked(item, depth - 1) for item in items)
    return isinstance(x, module.MaskedArray)


def unmasked(x: Any, name: str) -> None:
    """No masked array."""
    if is_masked(x):
        raise TypeError(
            f"{name} is a masked array, whose mask would get lost; give its .data or .filled(0)"
        )


def array(x: Any, name: str = "x") -> npt.NDArray[Any]:
    """A floating-point array that the kernels can read, copied only if they could not."""
    if type(x) is not np.ndarray:
        x = host(x, name)
    if _core.has_kernels(x):
        return x
    if x.dtype.name == "bfloat16" and x.dtype.itemsize == 2:  # of ml_dtypes, if that is installed
        _core.use_bfloat16(x.dtype.num)
        return x
    native = x.dtype.newbyteorder("=")
    if native not in (np.float16, np.float32, np.float64):
        taken = "dropout, spatial_dropout, locked_dropout and drop_path"
        remedies = {"O": "", "c": f"; {taken} take complex numbers"}
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {x.dtype}"
            + remedies.get(x.dtype.kind, "; convert it with .astype")
        )
    return x.astype(native)


def output(out: Any, x: Any, writeable: bool) -> None:
    """An array to write to: shape and dtype of x."""
    if out.shape != x.shape:
        raise ValueError(f"out must have shape {x.shape}, got {out.shape}")
    if out.dtype is not x.dtype and out.dtype != x.dtype:
        swapped = isinstance(out.dtype, np.dtype) and not out.dtype.isnative
        order = ": its byte order is not this machine's" if swapped else ""
        raise TypeError(f"out must have dtype {x.dtype}, got {out.dtype}{order}")
    if not writeable:
        raise ValueError("out is read-only; pass a writeable array or a copy")


def distinct(out: Any) -> None:
    """An array to write to whose elements share no memory, as those of a broadcast one do."""
    end, size = out.itemsize, prod(out.shape)
    for stride, length in sorted((abs(s), n) for s, n in zip(out.strides, out.shape, strict=True)):
        if stride < end and length > 1 and size:
            raise ValueError(
                f"out must not overlap itself, got strides {out.strides} of shape {out.shape}; "
                "pass an array with a place for each element"
            )
        end += stride * (length - 1)


def row_numbers(ids: Any, rows: int) -> npt.NDArray[np.int64]:
    """Numbers of rows of a table of so many; a copy, as the caller's may change."""
    ids = host(ids, "ids")
    if ids.dtype.kind not in "iu" and ids.size:
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    if ids.size and not 0 <= ids.min() <= ids.max() < rows:
        raise IndexError(f"ids must be in 0 ... {rows - 1}, got {ids.min()} ... {ids.max()}")
    return np.array(ids, np.int64, order="C")


def like(
    value: npt.NDArray[Any],
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype | None = None,
    other: str = "x",
) -> None:
    """An array of a certain shape and, if given, dtype: that of the other."""
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {value.shape}")
    if dtype is not None and value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype} as {other} has, got {value.dtype}")


def shape(value: Any, name: str = "shape") -> tuple[int, ...]:
    """A shape as NumPy takes it."""
    dims = integers(value, name)
    if len(dims) > 64 or any(n < 0 for n in dims):
        raise ValueError(f"{name} must have at most 64 lengths, none negative, got {shown(value)}")
    if prod(dims) > MAX_INDEX:
        raise ValueError(f"{name} must have at most 2**62 elements, got {shown(value)}")
    return dims


def axes(value: Any, ndim: int, name: str) -> tuple[int, ...]:
    """Axes of an array, none of them negative."""
    given = integers(value, name)
    for axis in given:
        if not -ndim <= axis < ndim:
            if abs(axis) > MAX_INDEX:
                raise np.exceptions.AxisError(f"{name}: axis is out of bounds, {shown(axis)}")
            raise np.exceptions.AxisError(axis, ndim, name)
    axes = tuple(axis % ndim for axis in given)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name} must name each axis once, got {shown(value)}")
    return axes


def place(
    shape: tuple[int, ...],
    shared_axes: int | Sequence[int] = NO_AXES,
    region: Region | None = None,
    rows: Any = None,
) -> Place:
    """The part of the mask array that belongs to x of this shape."""
    if shared_axes is NO_AXES and region is None and rows is None:
        return Place(shape)
    shared = NO_AXES if shared_axes is NO_AXES else axes(shared_axes, len(shape), "shared_axes")
    part = None if region is None else _part(region)
    return Place(shape, shared, part, None if rows is None else whole_numbers(rows, "rows"))


def uncut(place: Place, axes: Iterable[int], why: str) -> None:
    """No region that cuts one of these axes; why tells what needs them whole."""
    if place.region is None:
        return
    for axis in axes:
        length, whole = place.of[axis], place.region[1][axis]
        if length != whole:
            raise ValueError(
                f"region must hold all of axis {axis}, {why}; got {length} of {whole} elements "
                "of it"
            )


def _part(region: Region) -> tuple[tuple[int, ...], tuple[int, ...]]:
    words = "(start, global_shape), two tuples of ints"
    parts = items(region, "region", words)
    if len(parts) != 2:
        raise TypeError(f"region must be {words}, got {shown(region)}")
    start, whole = parts
    start, whole = integers(start, "region", words), integers(whole, "region", words)
    unsized = [n for n in (*start, *whole) if abs(n) > MAX_INDEX]
    if unsized:
        raise ValueError(f"region must have ints of at most 2**62, got {shown(unsized[0])}")
    return start, whole


def whole_numbers(value: Any, name: str) -> npt.NDArray[np.int64]:
    """An array of whole numbers."""
    given = host(value, name)
    if given.dtype.kind not in "iu" and given.size:
        raise TypeError(f"{name} must be integers, got {given.dtype}")
    if given.dtype == np.uint64 and given.size and given.max() > MAX_INDEX:
        raise ValueError(f"{name} must be at most 2**62, got {given.max()}")
    return np.asarray(given, np.int64)


def positions(value: Any, name: str, length: int) -> npt.NDArray[np.int64]:
    """Positions along an axis of this length."""
    given = whole_numbers(value, name)
    if given.size and not 0 <= given.min() <= given.max() < length:
        within = f"in 0 ... {length - 1}" if length else "empty, as nothing is there"
        raise ValueError(f"{name} must be {within}, got {given.min()} ... {given.max()}")
    return given


def elements(place: Place, at: Any, name: str) -> npt.NDArray[np.int64]:
    """Indices in the mask array of single elements of a place: by C-order positions in x, or by
    positions along each axis.
    """
    along: list[npt.NDArray[Any]]
    if isinstance(at, tuple):
        if len(at) != len(place.of):
            raise ValueError(f"{name} must have positions for {len(place.of)} axes, got {len(at)}")
        along = [positions(p, name, n) for p, n in zip(at, place.of, strict=True)]
        try:
            along = list(np.broadcast_arrays(*along))
        except ValueError:
            shapes = [p.shape for p in along]
            raise ValueError(f"{name} must have positions of one shape, got {shapes}") from None
        index = np.zeros(np.shape(along[0]) if along else (), np.int64)
    else:
        left = positions(at, name, prod(place.of))
        index = np.zeros(left.shape, np.int64)
        along = []
        for n in reversed(place.of):
            left, p = np.divmod(left, max(n, 1))
            along.insert(0, p)
    if place.scattered and place.rows is not None:
        along[0] = place.rows[along[0]]
    for d, (p, stride) in enumerate(zip(along, place.strides, strict=True)):
        if d not in place.shared_axes:
            index += p * stride
    return index + place.start


def own_mask(mask: Any, place: Place, keeps: bool) -> bytes | None:
    """A mask that the caller gives instead of a draw, packed; None if there is none."""
    if mask is None:
        return None
    size = prod(place.of)
    given = host(mask, "mask")
    if given.dtype not in (np.bool_, np.uint8):
        raise TypeError(f"mask must be bool, or uint8 with packed bits, got {given.dtype}")
    if place.shared_axes or place.region is not None or place.rows is not None:
        raise ValueError("mask is for x as it is; leave out shared_axes, region and rows")
    if not keeps:
        raise ValueError("save must be 'bits' with a mask of your own, which no seed draws again")
    if given.dtype == np.bool_:
        like(given, "mask", place.of)
        given = np.packbits(given, None, "little")
    elif given.shape != ((size + 7) // 8,):
        raise ValueError(
            f"mask must be bool of shape {place.of}, or packed in {(size + 7) // 8} bytes of "
            f"uint8, got uint8 of shape {given.shape}"
        )
    bits = bytearray(given.tobytes())
    if size % 8:
        bits[-1] &= (1 << size % 8) - 1
    return bytes(bits) + bytes(_core.BITS_PAD)


def choice(value: Any, options: tuple[str, ...], name: str) -> str:
    """One of a few words."""
    words = f"{name} must be one of {', '.join(map(repr, options))}, got"
    if not isinstance(value, str):
        raise TypeError(f"{words} {shown(value)}")
    if value not in options:
        raise ValueError(f"{words} {shown(value)}")
    return value


def keeps_bits(save: Any) -> bool:
    """Whether a context is to hold the mask, or its seed alone."""
    return choice(save, ("bits", "seed"), "save") == "bits"
