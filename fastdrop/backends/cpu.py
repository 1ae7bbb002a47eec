"""The CPU backend: the compiled kernels, and which of them run on this machine."""

from __future__ import annotations

import os
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import (
    ANY_LAYOUT,
    BIAS_GELU_BACKWARD,
    BITS_PAD,
    CONCRETE,
    DROPOUT,
    LOGISTIC,
    NOISE_PAD,
    NORMAL,
    PARTS,
    Draw,
)
from fastdrop.backends.cuda.arrays import fetched
from fastdrop.backends.interface import Constants, Squares
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type

Array = npt.NDArray[Any]
Masking = tuple[Array | None, Array | None, Array | None]
"""What takes part in the softmax of each row; see `part` of `_core.softmax`."""
_INVERTED = bytes(255 - byte for byte in range(256))


class Cpu:
    """`fastdrop.backends.interface.Backend` for NumPy arrays; results are what is computed with."""

    # Gate.

    array = staticmethod(gate.array)

    @staticmethod
    def floats(x: Any, name: str) -> Array:
        x = gate.host(x, name)
        native = x.dtype.newbyteorder("=")
        if native not in (np.float32, np.float64):
            raise TypeError(
                f"{name} must be float32 or float64, got {x.dtype}; convert it with .astype"
            )
        return np.require(x, native, ("C", "A"))

    @staticmethod
    def numbers(ids: Any, weight: Array) -> npt.NDArray[np.int64]:
        return gate.row_numbers(ids, len(weight))

    @staticmethod
    def output(out: Any, x: Array, *others: Any) -> tuple[Any, ...]:
        if out is None:
            return (None, x, *others)
        if type(out) is not np.ndarray:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"out must be a NumPy array, got {type(out).__name__}")
            gate.unmasked(out, "out")
        flags = out.flags
        gate.output(out, x, flags.writeable)
        if not flags.forc:
            gate.distinct(out)
        return _core.apart(out, x, *others)

    @staticmethod
    def bring(x: Any, like: Array) -> Any:
        return fetched(x)

    @staticmethod
    def held(x: Array) -> Array:
        return x

    # Copies.

    @staticmethod
    def copy(x: Array, out: Array | None = None) -> Array:
        return _core.copy(x, out)

    @staticmethod
    def apart(x: Array, out: Any) -> Array:
        overwritten = isinstance(out, np.ndarray) and np.may_share_memory(x, out)
        return x.copy() if overwritten else x

    @staticmethod
    def zeros_like(x: Array, dtype: Any = None, shape: Any = None) -> Array:
        return np.zeros(x.shape if shape is None else shape, dtype or x.dtype)

    @staticmethod
    def result(x: Array) -> Array:
        return np.asarray(x)

    # Masks.

    @staticmethod
    def forward(
        op: int,
        x: Array,
        draw: Draw,
        constants: Constants,
        out: Array | None = None,
        keep: bool = False,
        residual: Array | None = None,
        bias: Array | None = None,
        given: Any = None,
    ) -> tuple[Array, bytes | None]:
        given = host_bits(given)
        if op in ANY_LAYOUT:
            return _core.forward(op, x, None, None, out, draw, keep, constants, given)
        x = np.asarray(x, order="C")
        residual = None if residual is None else np.asarray(residual, order="C")
        bias = _longer(bias)
        own = out if out is not None and out.flags.c_contiguous else None
        y, bits = _core.forward(op, x, residual, bias, own, draw, keep, constants, given)
        return delivered(y, out), bits

    @staticmethod
    def select(dy: Array, out: Array | None, draw: Draw, bits: Any, scale: float) -> Array:
        return _core.backward(dy, out, draw, host_bits(bits), scale)

    @staticmethod
    def split(dy: Array, draw: Draw, bits: Any) -> tuple[Array, Array]:
        bits = _core.draw_bits(draw) if bits is None else host_bits(bits)
        dropped = _core.backward(dy, None, draw, bits.translate(_INVERTED), 1.0)
        return dropped, _core.backward(dy, None, draw, bits, 1.0)

    @staticmethod
    def select_and_sum(
        dy: Array,
        out: Array | None,
        draw: Draw,
        bits: Any,
        scale: float,
        x: Array | None = None,
        bias: Array | None = None,
    ) -> tuple[Array, Array]:
        bits = host_bits(bits)
        if x is not None:
            bits = _core.draw_bits(draw) if bits is None else bits
            dy, x, bias = np.asarray(dy, order="C"), np.asarray(x, order="C"), _longer(bias)
        if draw.place.size == dy.size and not (bits is None and out is None):
            bits = _core.draw_bits(draw) if bits is None else bits
            own = out if out is not None and out.flags.c_contiguous else None
            dx, dbias = _core.backward_sums(np.asarray(dy, order="C"), own, bits, scale, x, bias)
        else:
            op, constants = DROPOUT if x is None else BIAS_GELU_BACKWARD, (scale, 0.0, 0.0)
            dx, _ = _core.forward(op, dy, x, bias, None, draw, False, constants, bits)
            _, dbias = _core.backward_sums(np.ascontiguousarray(dx), None, None, scale)
        return delivered(dx, out), dbias

    @staticmethod
    def blend(a: Array, b: Array, weight: float) -> Array:
        if weight in (0.0, 1.0):
            return (a if weight else b).copy()
        kind, size = compute_type(b.dtype), 1 << 15  # at a time: what is between stays in the cache
        y = np.empty(b.shape, b.dtype)
        a, b, out = (np.asarray(v, order="C").reshape(-1) for v in (a, b, y))
        terms, others = np.empty((2, min(size, out.size)), kind)
        for i in range(0, out.size, size):
            part = out[i : i + size]
            sums = part if part.dtype == kind else terms[: part.size]
            np.multiply(a[i : i + size], kind(weight), out=sums, dtype=kind)
            sums += np.multiply(b[i : i + size], kind(1.0 - weight), out=others[: part.size])
            if sums is not part:
                part[...] = sums
        return y

    @staticmethod
    def weighted(x: Array, weight: float) -> Array:
        if not weight:
            return np.zeros_like(x)
        kind = compute_type(x.dtype)
        return np.asarray(x.astype(kind, copy=False) * kind(weight), x.dtype)

    # Continuous noise.

    @staticmethod
    def noise(op: int, x: Array, draw: Draw, constants: Any, out: Array | None = None) -> Array:
        x = np.asarray(x, order="C")
        own = out if out is not None and out.flags.c_contiguous else None
        operands = _noise_operands(op, x, draw, constants)
        return delivered(_core.noise_forward(op, x, own, draw, *operands), out)

    @staticmethod
    def noise_gradients(
        op: int, x: Array, dy: Array, draw: Draw, constants: Any, group: int | None
    ) -> tuple[Array, Array]:
        x, dy = np.asarray(x, order="C"), np.asarray(dy, order="C")
        dx, operands = np.empty_like(dy), _noise_operands(op, x, draw, constants)
        if group is None:
            terms = np.empty(x.shape, compute_type(x.dtype))
            _core.noise_backward(op, x, (dy, dx, terms, None), draw, *operands)
            return dx, terms
        # A single sum is gathered in many columns, so that it is a vector operation.
        sums = np.zeros((PARTS, group if group > 1 else 512))
        _core.noise_backward(op, x, (dy, dx, None, sums), draw, *operands)
        return dx, sums[0] if group != 1 else sums[0].sum()

    @staticmethod
    def chain(weights: Array, slopes: Array, dtype: Any) -> Array:
        return np.asarray(np.where(weights < 0, 0.0, weights * slopes), dtype)

    # Softmax.

    @staticmethod
    def softmax(
        x: Array,
        out: Array | None,
        bits: bytes | None,
        part: Masking,
        factor: float,
        scale: float,
        axis: int,
    ) -> tuple[Array, Array]:
        """y = kept(w) * scale, and w = softmax(x * factor) along an axis, which is the last one of
        what `bits` and `part` are for.
        """
        rows = np.asarray(_moved(x, axis, -1), order="C")
        own = out if rows is x and out is not None and out.flags.c_contiguous else None
        y, weights = _core.softmax(rows, own, bits, part, factor, scale)
        return delivered(_moved(y, -1, axis), out), _moved(weights, -1, axis)

    @staticmethod
    def softmax_gradient(
        dy: Array,
        weights: Array,
        out: Array | None,
        bits: bytes | None,
        factor: float,
        scale: float,
        axis: int,
    ) -> Array:
        rows = np.asarray(_moved(dy, axis, -1), order="C")
        weights = np.asarray(_moved(weights, axis, -1), order="C")
        own = out if rows is dy and out is not None and out.flags.c_contiguous else None
        dx = _core.softmax_backward(rows, weights, own, bits, factor, scale)
        return delivered(_moved(dx, -1, axis), out)

    # Rows of a table.

    @staticmethod
    def lookup(weight: Array, ids: Array, draw: Draw | None, scale: float) -> Array:
        y = np.empty((*ids.shape, *weight.shape[1:]), weight.dtype)
        if draw is None:
            return np.take(weight, ids, axis=0, out=y, mode="clip")
        _core.lookup(np.asarray(weight, order="C"), ids, _core.draw_bits(draw), y, scale)
        return y

    @classmethod
    def add_rows(
        cls, dy: Array, ids: Any, shape: tuple[int, ...], draw: Draw | None, scale: float
    ) -> Array:
        words, rows = cls.sum_rows(dy, ids, shape, draw, scale)
        dweight = np.zeros(shape, dy.dtype)
        dweight[words] = rows
        return dweight

    @staticmethod
    def sum_rows(
        dy: Array, ids: Any, shape: tuple[int, ...], draw: Draw | None, scale: float
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """What `add_rows` adds: numbers of rows that are kept, and the rows."""
        ids = gate.row_numbers(fetched(ids), shape[0])
        words, ids = np.unique(ids, return_inverse=True)
        sums = np.zeros((words.size, *shape[1:]))
        _core.add_rows(np.asarray(dy, order="C"), np.ascontiguousarray(ids, np.int64), sums)
        if draw is not None:
            kept = unpacked(_core.draw_bits(draw), draw)[words]
            words, sums = words[kept], sums[kept]
        return words, (sums * scale).astype(dy.dtype)

    # DropBlock.

    @staticmethod
    def keep_squares(draw: Draw, squares: Squares, like: Any = None) -> bytes:
        return _core.drop_blocks(_core.draw_bits(draw), squares.drawn, *squares.sides)

    @staticmethod
    def apply_squares(x: Array, out: Array | None, bits: Any, squares: Squares) -> Array:
        y = _core.empty_like(x) if out is None else out
        maps = maps_of(x, squares), maps_of(y, squares)
        _core.apply_examples(*maps, host_bits(bits), squares.per_channel, out is not None)
        return y

    # Linear layers: without masks they are left to BLAS.

    @staticmethod
    def linear(x: Array, weight: Array, bias: Array | None, draw: Draw | None, first: int) -> Array:
        rows = _rows(x)
        if draw is None:
            y = rows @ weight
            if bias is not None:
                y += bias
        else:
            y = np.empty((len(rows), weight.shape[1]), x.dtype)
            _core.connect((rows, weight, bias), y, draw, first)
            y *= _core.scale_of(draw.p)
        return y.reshape(*x.shape[:-1], weight.shape[1])

    @staticmethod
    def linear_gradients(
        x: Array, weight: Array, bias: Array | None, dy: Array, draw: Draw | None, first: int
    ) -> tuple[Array, Array, Array | None]:
        rows, dy = _rows(x), _rows(dy)
        if draw is None:
            dbias = None if bias is None else dy.sum(axis=0)
            return (dy @ weight.T).reshape(x.shape), rows.T @ dy, dbias
        gradients = np.zeros_like(rows), np.empty_like(weight), bias
        if bias is not None:
            gradients = *gradients[:2], np.empty_like(bias)
        _core.connect_back((rows, weight, bias), dy, gradients, draw, first)
        for gradient in gradients:
            if gradient is not None:
                gradient *= _core.scale_of(draw.p)
        dx, dweight, dbias = gradients
        return dx.reshape(x.shape), dweight, dbias

    @staticmethod
    def add_bias(y: Array, bias: Array) -> Array:
        y += bias
        return y

    @staticmethod
    def column_sums(dy: Array) -> Array:
        return _rows(dy).sum(axis=0)


CPU = Cpu()


def host_bits(bits: Any) -> Any:
    """A packed mask in the host's memory, bytes; None if there is none."""
    return bits if bits is None or type(bits) is bytes else bits.fetch()


def unpacked(bits: bytes, draw: Draw) -> npt.NDArray[np.bool_]:
    """The packed mask of a draw as bools of the shape that its place is of."""
    place = draw.place
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=place.size, bitorder="little")
    mask = flat.view(np.bool_).reshape(place.shape)
    return mask if place.shape == place.of else np.broadcast_to(mask, place.of).copy()


def packed(mask: npt.NDArray[np.bool_]) -> bytes:
    """A packed mask of bools in C order."""
    return np.packbits(mask, None, "little").tobytes() + bytes(BITS_PAD)


def normals(draw: Draw) -> npt.NDArray[np.float32]:
    """Standard normal variates of a draw, in C order and of the shape that its place is of."""
    place = draw.place
    noise = np.empty(place.shape, np.float32)
    _core.draw_noise(NORMAL, draw, noise)
    return noise if place.shape == place.of else np.broadcast_to(noise, place.of).copy()


def maps_of(x: Array, squares: Squares) -> Array:
    """Feature maps in either layout as a view of shape (batch, channels, height, width)."""
    if squares.channels_last:
        x = x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))
    return x if x.ndim == 4 else x[:, :, None]


def _moved(x: Array, axis: int, to: int) -> Array:
    """x itself, if nothing moves."""
    return x if (axis - to) % x.ndim == 0 else np.moveaxis(x, axis, to)


def delivered(y: Array, out: Array | None) -> Array:
    """y where the caller wants it."""
    return y if out is None or y is out else _core.copy(y, out)


def _longer(bias: Array | None) -> Array | None:
    """A bias as the kernels want it."""
    return _core.repeated(bias) if bias is not None and bias.size else None


def _rows(x: Array) -> Array:
    """A row for each example."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


def _noise_operands(op: int, x: Array, draw: Draw, constants: Any) -> tuple[Any, int, Any]:
    """sigma or the constants, sigma's length, and the noise if the kernel cannot draw it."""
    length = 0
    if op != CONCRETE:
        sigma = np.asarray(constants, compute_type(x.dtype), order="C")
        if sigma.ndim == 0:
            constants = float(sigma)
        else:
            length = max(sigma.size, 1)
            constants = sigma if sigma.shape == x.shape else _core.repeated(sigma)
    noise = None
    if not draw.place.is_run:
        drawn = np.empty(draw.place.shape, np.float32)
        _core.draw_noise(LOGISTIC if op == CONCRETE else NORMAL, draw, drawn)
        noise = np.zeros(x.size + NOISE_PAD, np.float32)
        noise[:-NOISE_PAD].reshape(x.shape)[...] = drawn
    return constants, length, noise


def cpu_features() -> dict[str, Any]:
    """Which kernels run here.

    Returns
    -------
    dict
        ``isa``: the instruction set in use; ``available``: all this CPU and build offer, the
        fastest first. The environment variable ``FASTDROP_ISA`` forces one at import.
    """
    return {"isa": _core.get_isa(), "available": _core.available_isas()}


def get_num_threads() -> int:
    """How many threads a call may use."""
    return _core.get_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, the caller's included.

    Results do not depend on it. The default is the number of CPUs this process may run on, or
    the environment variable ``FASTDROP_NUM_THREADS``. Arrays of up to about 65,536 elements
    stay on the caller's thread; a call that finds the other threads busy works alone.

    Parameters
    ----------
    n : int
        1 to 1024.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    if gate.count(n, "n") > 1024:
        raise ValueError(f"n must be in 1 ... 1024, got {n}")
    _core.set_threads(n)


def cpus() -> int:
    """How many CPUs this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _default_threads() -> int:
    wanted = os.environ.get("FASTDROP_NUM_THREADS")
    if not wanted:
        return min(1024, cpus())
    if not (wanted.isdecimal() and 1 <= int(wanted) <= 1024):
        raise ImportError(f"FASTDROP_NUM_THREADS must be in 1 ... 1024, got {wanted!r}")
    return int(wanted)


set_num_threads(_default_threads())
