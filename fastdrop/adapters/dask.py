"""Dropout of dask arrays: lazy, by chunks, the same numbers as NumPy's on the whole array.

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
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import dask.array as da
import numpy as np
import numpy.typing as npt

from fastdrop.base import gate
from fastdrop.ops import door
from fastdrop.rng import RngLike, draw_call

__all__ = ["DaskContext", "dropout"]


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
    """

    shape: tuple[int, ...]
    p: float
    seed: int | None
    call: int | None
    shared_axes: tuple[int, ...]
    nbytes: ClassVar[int] = 0

    def backward(self, dy: Any) -> da.Array:
        """Gradient with respect to x: lazy, with chunks and dtype of `dy`.

        Parameters
        ----------
        dy : dask.array.Array, or what `dask.array.asanyarray` takes, of x's shape
            Gradient with respect to y. Its chunks need not be those of x.
        """
        dy = floating(dy, "dy")
        gate.like(dy, "dy", self.shape)
        return self.apply(dy)

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
) -> tuple[da.Array, DaskContext]:
    """`fastdrop.dropout` of a dask array: nothing is drawn before it is computed.

    The result has the bits of ``fastdrop.dropout(x.compute(), p, rng=rng)``, whatever the chunks
    and the scheduler; a chunk that is computed again, as its worker was lost, comes out the same.

    Parameters
    ----------
    x : dask.array.Array, or what `dask.array.asanyarray` takes
        dtype float16, bfloat16 (ml_dtypes), float32 or float64.
    p, rng, training, shared_axes
        As in `fastdrop.dropout`. The call is taken from `rng` here, not when y is computed.

    Returns
    -------
    y : dask.array.Array
        Shape, chunks and dtype of x.
    ctx : DaskContext
        ``ctx.backward(dy)`` gives the gradient; can be pickled.

    Raises
    ------
    TypeError
        dtype that is not supported.
    ValueError
        Chunks of unknown size, as an element's place decides whether it is kept.
    """
    x, p = floating(x, "x"), gate.rate(p)
    axes = gate.axes(shared_axes, x.ndim, "shared_axes")
    training = gate.flag(training, "training")
    seed, call = draw_call(rng) if training else (None, None)
    ctx = DaskContext(x.shape, p if training else 0.0, seed, call, axes)
    return ctx.apply(x), ctx


def floating(x: Any, name: str) -> da.Array:
    """A dask array that the kernels can read, of known size."""
    x = gate.read(x, name, da.asanyarray)
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
