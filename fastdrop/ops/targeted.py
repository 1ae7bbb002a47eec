"""Targeted dropout: drops weights at random, but only those that pruning would take."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, Draw
from fastdrop.backends.cpu import CPU
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops.dropout import Context
from fastdrop.rng import RngLike, with_draw

ROUNDED = 1 + 2.0**-50  # more than rounding takes from a product that would be a whole number
COLUMNS = 64  # that are ranked at a time
MODES = ("weight", "unit", "unit_weight")


class TargetedContext(Context):
    """Context of `targeted_dropout`.

    Holds one bit a weight, or one a unit in mode "unit": which weights were targets cannot be told
    from the seed once they are updated. ``backward(dy)`` gives the gradient with respect to the
    weights: dy where the weight was kept, +0 where it was dropped.
    """

    __slots__ = ()


def targeted_dropout(
    weight: npt.ArrayLike,
    p: float = 0.5,
    targeted: float = 0.5,
    *,
    mode: str = "weight",
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
) -> tuple[npt.NDArray[Any], TargetedContext]:
    """Drops each of the smallest weights, or units, with chance p. Nothing is rescaled.

    So a network learns to do without what magnitude pruning will take from it; `targeted_prune`
    takes it.

    Parameters
    ----------
    weight : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (..., units)
        Of a linear layer ``x @ weight`` or a convolution: the last axis is that of the output
        units, and a unit's inputs are all others (fan_in: the product of their lengths).
    p : float
        Chance in [0, 1] that a target is dropped; alpha in the paper. 1 is magnitude pruning.
    targeted : float
        Fraction in [0, 1] of weights (units) that are targets; gamma in the paper.
    mode : {"weight", "unit", "unit_weight"}
        What is targeted and what is drawn:

        - "weight": in each unit, the weights smaller in magnitude than its weight of rank
          floor(targeted * fan_in), from 0. One draw a weight. Of a product that is a whole number
          except for rounding, as 0.29 * 100 is, that number is meant; for the decimal of a
          float32, say float(str(targeted)), as np.float32(0.29) is 0.28999999.
        - "unit": the units whose 2-norm is smaller than that of rank floor(targeted * units).
          One draw a unit, so units are dropped whole, as in the paper.
        - "unit_weight": the same units, but one draw a weight, as in the authors' code.

        Ties with the one of that rank are no targets; at targeted = 1 all are targets. A NaN, or
        the norm of a unit that has one, is larger than any number, and ties with other NaNs.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Names the draw; see `fastdrop.Rng`.
    training : bool
        If False, a copy of `weight` is returned and no random call is taken. It is not pruned:
        training wants to be watched with and without, and the authors' code does one or the other
        depending on the variant. `targeted_prune` is the pruned form.
    region : (start, global_shape), optional
        As in `fastdrop.dropout`, but only units may have been cut, and only in mode "weight": a
        shard does not know the ranks of magnitudes that are elsewhere.

    Returns
    -------
    y : ndarray
        `weight`, +0 where dropped.
    ctx : TargetedContext
        ``ctx.backward(dy)`` gives dweight; the thresholds are taken as constants.

    Raises
    ------
    TypeError
        dtype that is not supported, p or targeted that is not a real number.
    ValueError
        p or targeted outside [0, 1], another mode, weight of less than two axes, a region that cuts
        an axis along which magnitudes are ranked.

    Notes
    -----
    A weight is dropped if it is a target and `fastdrop.dropout` would drop it: the mask is drawn
    over weight's shape, with all but the last axis shared in mode "unit".

    References
    ----------
    A. N. Gomez, I. Zhang, S. R. Kamalakara, D. Madaan, K. Swersky, Y. Gal, G. E. Hinton: Learning
    sparse networks using targeted dropout. arXiv:1905.13678 (2019).

    Examples
    --------
    >>> dropped, ctx = fastdrop.targeted_dropout(W, 0.5, 0.75, rng=rng)
    >>> y = x @ dropped
    >>> dW = ctx.backward(x.T @ dy)
    """
    gate.choice(mode, MODES, "mode")
    weight = gate.array(weight, "weight")
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least two axes, (..., units), got {weight.shape}")
    p, targeted = gate.rate(p), gate.rate(targeted, "targeted")
    shared = tuple(range(weight.ndim - 1)) if mode == "unit" else gate.NO_AXES
    place, training = gate.place(weight.shape, shared, region), gate.flag(training, "training")
    ranked = range(weight.ndim - (mode == "weight"))
    gate.uncut(place, ranked, f"along which magnitudes are ranked in mode {mode!r}")

    def of_draw(draw: Draw | None) -> tuple[npt.NDArray[Any], TargetedContext]:
        if draw is None or p == 0.0:
            return CPU.copy(weight), TargetedContext.made(weight.shape, draw, 1.0, None)
        drawn = _core.draw_bits(draw)
        keep = np.frombuffer(drawn, np.uint8, len(drawn) - BITS_PAD)
        others = ~np.packbits(_targets(weight, targeted, mode), bitorder="little")
        bits = (keep | others).tobytes() + bytes(BITS_PAD)
        ctx = TargetedContext.made(weight.shape, draw, 1.0, bits)
        return CPU.select(weight, None, draw, bits, 1.0), ctx

    return with_draw(rng, p, place, of_draw, of=weight) if training else of_draw(None)


def targeted_prune(
    weight: npt.ArrayLike, targeted: float = 0.5, *, mode: str = "weight"
) -> npt.NDArray[Any]:
    """All targets of `targeted_dropout` set to zero: the weights for inference.

    Parameters
    ----------
    weight, targeted, mode
        As in `targeted_dropout`; "unit_weight" is the same as "unit" here.

    Returns
    -------
    ndarray
        Shape and dtype of weight. It is what `targeted_dropout` gives at p = 1; to train on with
        pruned weights, call that, as it has a backward pass.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    return targeted_dropout(weight, 1.0, targeted, mode=mode, rng=None)[0]


def _targets(weight: npt.NDArray[Any], targeted: float, mode: str) -> npt.NDArray[np.bool_]:
    """Bools that say what may be dropped: one a weight, or one a unit in mode "unit"."""
    units = weight.shape[-1]
    flat = weight.reshape(prod(weight.shape[:-1]), units)
    if mode == "weight":
        return _below(flat, targeted)
    below = _below(_norms(flat)[:, None], targeted)[:, 0]
    return below if mode == "unit" else np.broadcast_to(below, flat.shape)


def _norms(units: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """2-norm of each column; only one that is larger than any float64 is infinite."""
    units = np.ascontiguousarray(units)  # the order of the additions is that of the memory
    squares = np.einsum("iu,iu->u", units, units, dtype=np.float64)
    norms = np.sqrt(squares)
    far = ~((squares > 2.0**-900) & (squares < 2.0**900))
    if units.dtype == np.float64 and far.any():  # squares of smaller types do not go that far
        rest = units[:, far]
        largest = np.abs(rest).max(axis=0, initial=0.0)
        exponents = np.where(np.isfinite(largest), np.frexp(largest)[1], 0)
        with np.errstate(all="ignore"):
            rest = np.ldexp(rest, -exponents)
            norms[far] = np.ldexp(np.sqrt(np.einsum("iu,iu->u", rest, rest)), exponents)
    return norms


def _below(values: npt.NDArray[Any], fraction: float) -> npt.NDArray[np.bool_]:
    """Where a magnitude is smaller than that of rank floor(fraction * length) in its column;
    NaNs are larger than numbers, and equal.
    """
    length, columns = values.shape
    rank = min(int(fraction * length * ROUNDED), length)
    if rank == length:
        return np.ones(values.shape, np.bool_)
    # Without their sign, floats sort as integers do, which takes half the time; NumPy is quick with
    # those of 32 bits and more on every CPU.
    bits = values.view(f"u{values.itemsize}")
    magnitude = bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    least = np.empty(columns, bits.dtype)
    # Columns of a cache line each, and behind them a gap: columns that are a power of two apart
    # would share a few lines of the cache.
    block = np.empty((min(COLUMNS, columns), length + 16), np.result_type(bits, np.uint32))
    for i in range(0, columns, COLUMNS):
        some = bits[:, i : i + COLUMNS]
        rows = block[: some.shape[1], :length]
        np.bitwise_and(some, magnitude, out=rows.T)
        rows.partition(rank, axis=1)
        least[i : i + COLUMNS] = rows[:, rank]
    least_nan = np.array(np.inf, values.dtype).view(bits.dtype) + bits.dtype.type(1)
    below: npt.NDArray[np.bool_] = (bits & magnitude) < np.minimum(least, least_nan)
    return below
