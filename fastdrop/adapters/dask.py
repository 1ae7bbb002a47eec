"""Dropout of dask and xarray arrays: lazy, by chunks, the numbers of NumPy on the whole array.

`dropout` is `fastdrop.dropout`; `apply` does any other op of fastdrop that takes ``region=``.

Examples
--------
A layer of linear units learns a regression over four chunks of examples:

>>> import dask.array as da
>>> import fastdrop as fd
>>> import numpy as np
>>> from fastdrop.adapters.dask import dropout
>>> x = da.random.default_rng(0).normal(size=(4000, 4), chunks=(1000, 4)).persist()
>>> t = (x @ np.array([1.0, 2.0, 3.0, 4.0])).persist()
>>> W, rng = np.zeros((4, 64)), fd.Rng(1)
>>> for _ in range(16):
...     h, ctx = dropout(x @ W, 0.2, rng=rng)
...     dh = (h.mean(axis=1) - t)[:, None] * np.ones(64)
...     W -= 0.5 / 4000 * (x.T @ ctx.backward(dh)).compute()
>>> W.mean(axis=1).round(1)
array([1., 2., 3., 4.])

An array of xarray keeps its names and coordinates. With `xarray.apply_ufunc` say
``dask="allowed"``, so that all chunks come in one array; with ``"parallelized"`` each would come
alone, not knowing where it lies, and all would have the mask of the first.

>>> import xarray as xr
>>> series = xr.DataArray(x[:, 0], dims="time", name="level")
>>> y, ctx = dropout(series, 0.2, rng=1)
>>> y.name, y.dims, ctx.backward(y).dims
('level', ('time',), ('time',))
>>> same = xr.apply_ufunc(lambda a: dropout(a, 0.2, rng=1)[0], series, dask="allowed")
>>> bool((same == y).all())
True

Notes
-----
Ray, Spark and others need no adapter: the driver takes one draw, ``seed, call = rng.seed,
rng.call``, and whoever has the rows from `first` on of an array of `whole` rows computes
``fd.dropout(block, p, rng=fd.Rng(seed, call), region=((first, 0), (whole, block.shape[1])))``. Rows
that are shuffled have ``rows=ids`` instead.

>>> from concurrent.futures import ThreadPoolExecutor
>>> table = np.ones((100, 8))
>>> def task(first):
...     block, where = table[first : first + 30], ((first, 0), table.shape)
...     return fd.dropout(block, 0.5, rng=fd.Rng(7, 3), region=where)[0]
>>> with ThreadPoolExecutor(2) as pool:  # in Ray: task.remote; in Spark: mapPartitions
...     parts = list(pool.map(task, range(0, 100, 30)))
>>> bool((np.concatenate(parts) == fd.dropout(table, 0.5, rng=fd.Rng(7, 3))[0]).all())
True
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import numpy.typing as npt

import fastdrop as fd
from fastdrop._core import Draw, Place
from fastdrop.base import gate
from fastdrop.ops import door
from fastdrop.rng import RngLike, with_draw

__all__ = ["AppliedContext", "DaskContext", "apply", "dropout"]


@dataclass(frozen=True, slots=True)
class DaskContext:
    """What `dropout` leaves for its backward pass: the name of a draw, no mask.

    Attributes
    ----------
    shape : tuple of int
        Shape of x.
    p, seed, call
        As in `fastdrop.Context`.
    shared_axes : tuple of int
    dims : tuple or None
        xarray's names of x's axes.
    """

    shape: tuple[int, ...]
    p: float
    seed: int | None
    call: int | None
    shared_axes: tuple[int, ...]
    dims: tuple[Any, ...] | None = None
    nbytes: ClassVar[int] = 0

    def backward(self, dy: Any) -> Any:
        """Gradient with respect to x: lazy, with chunks and dtype of `dy`.

        Parameters
        ----------
        dy : dask.array.Array, xarray.DataArray or array_like, of x's shape
            Gradient with respect to y. Its chunks need not be those of x. Axes of xarray's go by
            their names.
        """
        dy = _in_order(dy, self.dims, "dy")
        values = floating(dy, "dy")
        gate.like(values, "dy", self.shape)
        return _as(dy, self.apply(values))

    def mask(self, chunks: Any = "auto") -> da.Array:
        """True where an element is kept: a lazy array of bool, shape of x.

        Parameters
        ----------
        chunks : what dask takes
            Of the mask, which need not be those of x.
        """
        if self.p == 0.0:
            return da.ones(self.shape, chunks=chunks, dtype=bool)
        like = da.empty(self.shape, chunks=chunks, dtype=bool)
        return like.map_blocks(kept, self, dtype=bool, meta=np.empty((0,) * like.ndim, bool))

    def apply(self, x: da.Array) -> da.Array:
        """x where kept, scaled; forward and backward are the same."""
        return x if self.p == 0.0 else x.map_blocks(drop, self, dtype=x.dtype, meta=x._meta)


def dropout(
    x: Any,
    p: float = 0.5,
    *,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
) -> tuple[Any, DaskContext]:
    """`fastdrop.dropout` of a dask array: nothing is drawn before it is computed.

    The result has the bits of ``fastdrop.dropout(x.compute(), p, rng=rng)``, whatever the chunks
    and the scheduler; a chunk that is computed again, as its worker was lost, comes out the same.

    Parameters
    ----------
    x : dask.array.Array, xarray.DataArray or array_like
        dtype float16, bfloat16 (ml_dtypes), float32 or float64.
    p, rng, training, shared_axes
        As in `fastdrop.dropout`. The call is taken from `rng` here, not when y is computed.

    Returns
    -------
    y : dask.array.Array, or xarray.DataArray
        Shape, chunks, dtype and names of x.
    ctx : DaskContext
        ``ctx.backward(dy)`` gives the gradient, ``ctx.mask()`` the mask; can be pickled.

    Raises
    ------
    TypeError
        dtype that is not supported.
    ValueError
        Chunks of unknown size, as an element's place decides whether it is kept.
    """
    values, p = floating(x, "x"), gate.rate(p)
    axes = gate.axes(shared_axes, values.ndim, "shared_axes")
    training = gate.flag(training, "training")

    def of_draw(draw: Draw | None) -> tuple[Any, DaskContext]:
        seed, call = (None, None) if draw is None else (draw.seed, draw.call)
        p_used = p if training else 0.0
        ctx = DaskContext(values.shape, p_used, seed, call, axes, _names(x))
        return _as(x, ctx.apply(values)), ctx

    return with_draw(rng, p, Place(()), of_draw) if training else of_draw(None)


@dataclass(frozen=True, slots=True)
class AppliedContext:
    """What `apply` leaves for its backward pass: its operands, which are lazy, and the draw.

    Attributes
    ----------
    op : function
        Of fastdrop.
    seed, call : int or None
        None without training.
    operands : tuple
        Those of the op: arrays in the chunks of the first, and whatever else.
    options : dict
    dims : tuple or None
        xarray's names of the first operand's axes.
    """

    op: Callable[..., Any]
    seed: int | None
    call: int | None
    operands: tuple[Any, ...] = field(repr=False)
    options: dict[str, Any]
    dims: tuple[Any, ...] | None = None

    def backward(self, dy: Any) -> Any:
        """What the context of the op gives: lazy gradients, one or a tuple.

        Each chunk does the op again, and then backward. Gradients of what is not cut as the first
        operand is (a bias, a parameter) are summed over the chunks.

        Parameters
        ----------
        dy : dask.array.Array, xarray.DataArray or array_like, of the first operand's shape
            Axes of xarray's go by their names; gradients of its shape have them, too.
        """
        dy, x = _in_order(dy, self.dims, "dy"), self.operands[0]
        values = floating(dy, "dy")
        gate.like(values, "dy", x.shape)
        values = values.rechunk(x.chunks)
        tiny = _tiny(self.operands)
        _, ctx = self._of(tiny, None)
        grads = ctx.backward(np.ones_like(tiny[0]))
        one = not isinstance(grads, tuple)
        found = [self._gradient(k, g, values) for k, g in enumerate([grads] if one else grads)]
        named = tuple(_as(dy, g) if g.ndim == values.ndim else g for g in found)
        return named[0] if one else named

    def apply(self) -> da.Array:
        """y."""

        def run(*blocks: Any, block_info: Any) -> Any:
            return self._of(blocks, block_info)[0]

        x = self.operands[0]
        return da.map_blocks(run, *self.operands, dtype=x.dtype, meta=x._meta)

    def _gradient(self, k: int, like: Any, dy: da.Array) -> da.Array:
        """The k-th of the gradients."""
        whole, ndim, dtype = np.ndim(like) == dy.ndim, dy.ndim, np.asarray(like).dtype

        def run(dy: Any, *blocks: Any, block_info: Any) -> Any:
            grads = self._of(blocks, block_info)[1].backward(dy)
            grad = np.asarray(grads[k] if isinstance(grads, tuple) else grads)
            return grad if whole else grad[(None,) * (ndim - grad.ndim)]

        if whole:
            return da.map_blocks(
                run, dy, *self.operands, dtype=dtype, meta=np.empty((0,) * ndim, dtype)
            )
        cut = ndim - np.ndim(like)  # axes along which it is summed
        chunks = (*[(1,) * n for n in dy.numblocks[:cut]], *dy.chunks[cut:])
        parts = da.map_blocks(run, dy, *self.operands, chunks=chunks, dtype=dtype)
        return parts.sum(axis=tuple(range(cut)))

    def _of(self, blocks: Sequence[Any], block_info: Any) -> tuple[Any, Any]:
        """(y, ctx) of a chunk; without a block_info of the first that there could be."""
        region = None
        if block_info is not None:
            where = block_info[0]["array-location"]
            region = tuple(first for first, _ in where), self.operands[0].shape
        return self._in_region(blocks, region)

    def _in_region(self, blocks: Sequence[Any], region: Any) -> tuple[Any, Any]:
        rng = None if self.call is None else fd.Rng(self.seed, self.call)
        return self.op(*blocks, rng=rng, region=region, **self.options)

    def check(self) -> None:
        """What the op refuses, it refuses here, of one element; and of an array that is cut as x
        is.
        """
        tiny = _tiny(self.operands)
        self._in_region(tiny, None)
        blocks = self.operands[0].numblocks
        try:
            self._in_region(tiny, ((0,) * len(blocks), tuple(1 + (n > 1) for n in blocks)))
        except ValueError as error:
            raise ValueError(
                f"x must not have chunks that cut what {self.op.__name__} needs whole, got "
                f"{blocks} chunks along its axes ({error}); rechunk it"
            ) from error


def apply(
    op: Callable[..., Any], x: Any, *operands: Any, rng: RngLike = None, **options: Any
) -> tuple[Any, AppliedContext]:
    """Any op of fastdrop that takes ``region=``, by chunks, as `dropout` is done.

    Parameters
    ----------
    op : function
        `fastdrop.relu_dropout`, `dropout_add`, `bias_dropout_add`, `alpha_dropout`,
        `gaussian_dropout`, `gaussian_noise`, `variational_dropout`, `zoneout`, and so on.
    x : dask.array.Array, xarray.DataArray or array_like
        The op's first operand.
    *operands
        Its others: arrays of x's shape, or of the shape of x's last axes (a bias); rates and other
        numbers are the same for all chunks.
    rng
        As in `fastdrop.dropout`; the call is taken here.
    **options
        Other arguments of the op, by name: no arrays, and no region, rows, mask or out.

    Returns
    -------
    y : dask.array.Array, or xarray.DataArray
        Shape, chunks, dtype and names of x.
    ctx : AppliedContext
        ``ctx.backward(dy)`` gives what the op's context gives.

    Raises
    ------
    TypeError
        An op without ``region=``, or whose y has another shape than x; and what the op itself
        refuses.
    ValueError
        Chunks of unknown size, or that cut what the op needs whole; and what the op itself refuses.

    Examples
    --------
    >>> import dask.array as da, fastdrop as fd
    >>> from fastdrop.adapters.dask import apply
    >>> x, bias = da.ones((100, 8), chunks=(30, 4)), da.zeros(8)
    >>> y, ctx = apply(fd.bias_dropout_add, x, bias, x, 0.5, rng=fd.Rng(1))
    >>> dx, dbias, dresidual = ctx.backward(y)
    >>> dx.chunks == x.chunks, dbias.shape
    (True, (8,))
    """
    gate.function(op, "op")
    if not {"region", "rng"} <= signature(op).parameters.keys():
        raise TypeError(f"op must take region= and rng=, as fastdrop.dropout does, got {op!r}")
    if op is fd.sparse_variational_linear:
        raise TypeError(f"op must give y of x's shape, as fastdrop.dropout does, got {op!r}")
    for name, value in options.items():
        if name in OF_CHUNKS:
            raise TypeError(f"{name} must not be given: each chunk has its part of the whole mask")
        if isinstance(value, np.ndarray | da.Array) or _is_xarray(value):
            raise TypeError(f"{name} must be no array; an operand that is one comes by position")
    values, dims = floating(x, "x"), _names(x)
    cut = [v if np.ndim(v) == 0 else _beside(values, v, dims) for v in operands]
    training = gate.flag(options.get("training", True), "training")

    def of_draw(draw: Draw | None) -> tuple[Any, AppliedContext]:
        seed, call = (None, None) if draw is None else (draw.seed, draw.call)
        ctx = AppliedContext(op, seed, call, (values, *cut), options, dims)
        ctx.check()
        return _as(x, ctx.apply()), ctx

    return with_draw(rng, 0.0, Place(()), of_draw) if training else of_draw(None)


OF_CHUNKS = frozenset(("region", "rows", "mask", "out"))


def _beside(x: da.Array, operand: Any, dims: tuple[Any, ...] | None) -> da.Array:
    """An operand in the chunks of x's last axes."""
    if dims is not None and _is_xarray(operand):
        operand = _in_order(operand, dims[len(dims) - operand.ndim :], "an operand")
    values = floating(operand, "an operand")
    if values.ndim > x.ndim or values.shape != x.shape[x.ndim - values.ndim :]:
        raise ValueError(
            f"operands must have the shape of x's last axes, {x.shape}, got {values.shape}"
        )
    return values.rechunk(x.chunks[x.ndim - values.ndim :])


def _tiny(operands: Sequence[Any]) -> list[Any]:
    """The same kinds of operands, of one element each."""
    return [np.ones((1,) * v.ndim, v.dtype) if isinstance(v, da.Array) else v for v in operands]


def _as(given: Any, y: da.Array) -> Any:
    """y with the names and coordinates of what was given."""
    return given.copy(data=y) if _is_xarray(given) else y


def _names(x: Any) -> tuple[Any, ...] | None:
    return x.dims if _is_xarray(x) else None


def _in_order(given: Any, dims: tuple[Any, ...] | None, name: str) -> Any:
    """An array of xarray with these axes, in this order; any other as it is."""
    if dims is None or not _is_xarray(given) or given.dims == dims:
        return given
    if sorted(map(str, given.dims)) != sorted(map(str, dims)):
        raise ValueError(f"{name} must have the axes {dims}, as x has, got {given.dims}")
    return given.transpose(*dims)


def _is_xarray(x: Any) -> bool:
    xarray = sys.modules.get("xarray")  # who has such an array has loaded it
    return xarray is not None and isinstance(x, xarray.DataArray)


def floating(x: Any, name: str) -> da.Array:
    """A dask array that the kernels can read, of known size."""
    x = gate.read(x.data if _is_xarray(x) else x, name, da.asanyarray)
    gate.unmasked(x._meta, name)
    native = gate.array(np.empty(0, x.dtype), name).dtype
    if any(math.isnan(n) for n in x.shape):
        raise ValueError(
            f"{name} must have chunks of known size, got shape {x.shape}; "
            "call its compute_chunk_sizes() first"
        )
    return x.astype(native)


def drop(block: npt.NDArray[Any], ctx: DaskContext, block_info: Any) -> npt.NDArray[Any]:
    """One chunk: dask tells where in the array it lies."""
    start = tuple(first for first, _ in block_info[0]["array-location"])
    named: Any = ctx.seed, ctx.call  # None without training: p is 0 then
    constants, region = door.inverted(ctx.p), (start, ctx.shape)
    return door.drop(block, ctx.p, named, constants, shared_axes=ctx.shared_axes, region=region)


def kept(block: npt.NDArray[Any], ctx: DaskContext, block_info: Any) -> npt.NDArray[np.bool_]:
    """The mask of one chunk."""
    start = tuple(first for first, _ in block_info[0]["array-location"])
    assert ctx.seed is not None
    assert ctx.call is not None
    rng, region = fd.Rng(ctx.seed, ctx.call), (start, ctx.shape)
    return fd.keep_mask(block.shape, ctx.p, rng=rng, shared_axes=ctx.shared_axes, region=region)
