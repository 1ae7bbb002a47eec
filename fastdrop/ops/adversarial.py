"""Adversarial dropout: the few changes of a mask that move the output of the network most."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import BITS_PAD, Draw, Place
from fastdrop.backends.cpu import CPU, delivered, unpacked
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops.dropout import Context
from fastdrop.rng import RngLike, with_draw

BLOCK = 1 << 16  # elements that are ranked at a time, so that what is between stays in the cache


class AdversarialContext(Context):
    """Context of `adversarial_dropout`.

    Holds one bit an element, as the mask depends on x and the gradient, and one scale an example.
    Attributes beside those of `Context`:

    Attributes
    ----------
    p : float
        The rate at which the base mask was drawn.
    scales : ndarray of float64, shape (examples,)
        What kept elements were multiplied by: elements / kept elements of the example, and 0
        where none was kept.
    changed : ndarray of intp, shape (examples,)
        How many elements differ from the base mask: at most floor(delta * elements).
    """

    __slots__ = ("changed", "scales")
    changed: npt.NDArray[np.intp]
    scales: npt.NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes."""
        return super().nbytes + self.scales.nbytes

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Gradient with respect to x, mask held constant; arguments as in `Context.backward`."""
        dy = gate.array(dy, "dy")
        out, dy = CPU.output(out, dy)
        self._check_shape(dy)
        return delivered(_scaled(self, dy), out)

    def apply(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """This mask, with its scales, on another array; arguments as in `Context.apply`."""
        x = gate.array(x)
        out, x = CPU.output(out, x)
        self._check_shape(x, "x")
        return delivered(_scaled(self, x), out)

    def _check(self) -> None:
        super()._check()
        gate.like(self.scales, "scales", self.shape[:1])
        gate.like(self.changed, "changed", self.shape[:1])


def _scaled(ctx: AdversarialContext, dy: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Selects by the bits, scaled by 1, and then by each example's scale; a new array."""
    if ctx.draw is None or ctx.held is None:
        dx = CPU.copy(dy)
    else:
        dx = CPU.select(dy, None, ctx.draw, ctx.held, 1.0)
    scale = ctx.scales.astype(compute_type(dx.dtype))
    scale = scale.reshape(-1, *(1,) * (len(ctx.shape) - 1))
    with np.errstate(over="ignore", under="ignore"):
        return np.multiply(dx, scale, out=dx, casting="unsafe")  # to 16 bits, too


def whole_examples(place: Place) -> None:
    """Checks that a region cuts no example."""
    axes = range(1, len(place.of))
    gate.uncut(place, axes, "as the elements of an example are ranked together")


def adversarial_dropout(
    x: npt.ArrayLike,
    gradient: npt.ArrayLike,
    delta: float = 0.05,
    p: float = 0.0,
    *,
    rng: RngLike = None,
    training: bool = True,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
) -> tuple[npt.NDArray[Any], AdversarialContext]:
    """Dropout with the mask, near a base mask, that raises a divergence D most.

    The base mask is that of ``dropout(x, p, rng=rng)``, with which D and its gradient are computed
    first. By the mask's first-order effect on D, J = gradient * x, at most floor(delta * H) of the
    H elements of each example are flipped: dropped ones with J > 0, kept ones with J < 0, those
    with the largest abs(J). Then an example is scaled by H over the number of kept elements.

    Parameters
    ----------
    x : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (examples, ...)
    gradient : array_like, shape and dtype of x
        Of D with respect to what stood in x's place: y of the base mask. It need not be scaled.
    delta : float
        Fraction in [0, 1] of an example's elements that may be flipped. The authors' experiments
        use 0.05 and 0.1.
    p : float
        Rate in [0, 1] of the base mask: 0 for all ones, as in the authors' code; more for a sampled
        mask, as in the paper.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Names the draw of the base mask. Pass ``Rng(ctx.seed, ctx.call)`` of the base pass.
    training : bool
        If False, y is a copy of x and no random call is taken.
    region, rows
        As in `fastdrop.dropout`, but of a region only the examples may have been cut: the elements
        of one are ranked together.

    Returns
    -------
    y : ndarray
        x * scale where kept, +0 where dropped.
    ctx : AdversarialContext
        ``ctx.backward(dy)`` gives dx, the mask held constant; ``ctx.changed`` says how many
        elements were flipped.

    Raises
    ------
    TypeError
        dtype that is not supported or differs, delta or p that is not a real number.
    ValueError
        delta or p outside [0, 1], x of less than two axes, gradient of another shape, a region that
        cuts examples apart.

    Notes
    -----
    Flipped is what is larger than the largest abs(J) that may not be flipped, so where there are
    ties, fewer are. An element with J = 0 or NaN is never flipped; the base mask's scale is a
    factor of all J and left out, except that at p = 1, where it is 0, the result is all zeros. The
    effect of the new scale on D is not part of J.

    Where the base pass itself is the target of D, its gradient is zero and nothing is flipped: the
    target has to be a label, or an output with another mask.

    References
    ----------
    S. Park, J. Park, S.-J. Shin, I.-C. Moon: Adversarial dropout for supervised and semi-supervised
    learning. AAAI 2018. arXiv:1707.03631.
    """
    x, gradient = gate.array(x), gate.array(gradient, "gradient")
    if x.ndim < 2:
        raise ValueError(f"x must have at least two axes, (examples, ...), got {x.shape}")
    gate.like(gradient, "gradient", x.shape, x.dtype)
    delta, p = gate.rate(delta, "delta"), gate.rate(p)
    training = gate.flag(training, "training")
    place = gate.place(x.shape, gate.NO_AXES, region, rows)
    whole_examples(place)
    examples, length = len(x), prod(x.shape[1:])
    if not training:
        ctx = AdversarialContext.made(
            x.shape,
            None,
            1.0,
            None,
            scales=np.ones(examples),
            changed=np.zeros(examples, np.intp),
        )
        return CPU.copy(x), ctx
    limit = int(delta * length) if p < 1.0 else 0

    def of_draw(draw: Draw) -> tuple[npt.NDArray[Any], AdversarialContext]:
        mask = unpacked(_core.draw_bits(draw), draw).reshape(examples, length)
        changed = np.zeros(examples, np.intp)
        if limit:
            _flip(mask, x.reshape(mask.shape), gradient.reshape(mask.shape), limit, changed)
        kept = _counts(mask)
        ctx = AdversarialContext.made(
            x.shape,
            draw,
            1.0,
            np.packbits(mask, bitorder="little").tobytes() + bytes(BITS_PAD),
            scales=np.divide(length, kept, out=np.zeros(examples), where=kept > 0),
            changed=changed,
        )
        return _scaled(ctx, x), ctx

    return with_draw(rng, p, place, of_draw, of=x if p else None)


def _flip(
    mask: npt.NDArray[np.bool_],
    x: npt.NDArray[Any],
    gradient: npt.NDArray[Any],
    limit: int,
    changed: npt.NDArray[np.intp],
) -> None:
    """Flips the mask (examples, length) where that adds most, and says how often."""
    examples, length = mask.shape
    step = max(1, BLOCK // max(1, length))
    for i in range(0, examples, step):
        rows = slice(i, i + step)
        flipped = _flipped(x[rows], gradient[rows], mask[rows], limit)
        changed[rows] = _counts(flipped)
        mask[rows] ^= flipped


def _flipped(
    x: npt.NDArray[Any], gradient: npt.NDArray[Any], mask: npt.NDArray[np.bool_], limit: int
) -> npt.NDArray[np.bool_]:
    """Which elements of some examples to flip, at least one and at most `limit` of each."""
    length = mask.shape[1]
    with np.errstate(all="ignore"):
        gain = np.multiply(gradient, x, dtype=compute_type(x.dtype))
        gain *= 1 - 2 * mask.view(np.int8)  # what flipping adds to D
    # Positive floats sort as integers do, which takes half the time; others come out negative.
    ranked = np.fmax(gain, -np.inf, out=gain).view(f"i{gain.itemsize}")  # no NaN is left
    if limit == length:
        return ranked > 0
    first = length - limit - 1  # the largest that may not be flipped
    least = np.partition(ranked, first, axis=1)[:, first, None]
    flipped: npt.NDArray[np.bool_] = ranked > np.maximum(least, 0)
    return flipped


def _counts(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """How many are true of each row; from bits, as NumPy sums bools as integers."""
    counts: npt.NDArray[np.intp] = np.bitwise_count(np.packbits(mask, axis=1)).sum(1, np.intp)
    return counts


def kl_divergence(target: npt.ArrayLike, logits: npt.ArrayLike) -> tuple[float, npt.NDArray[Any]]:
    """KL(target || softmax(logits)), the mean over the batch, and its gradient.

    Parameters
    ----------
    target : array_like of int, shape (...), or of a floating dtype, shape of logits
        Class labels, which gives the cross-entropy (supervised: SAdD in the paper); or the logits
        of another pass, whose softmax is meant (virtual: VAdD).
    logits : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, shape (..., classes)

    Returns
    -------
    value : float
    gradient : ndarray
        With respect to logits; their shape and dtype. The target is a constant, which the authors'
        code does not make it: there, the gradient goes through both.

    Raises
    ------
    TypeError
        dtype that is not supported.
    ValueError
        Shapes that do not fit, labels outside 0 ... classes - 1, no classes.
    """
    logits, wanted, log_wanted = _distributions(target, logits)
    log_given = _log_softmax(logits, wanted.dtype)
    batch = max(1, prod(logits.shape[:-1]))
    terms = np.subtract(log_wanted, log_given, out=np.zeros_like(wanted), where=wanted > 0)
    value = (wanted * terms).sum(dtype=np.float64) / batch  # 0 (log 0 - log 0) is 0
    gradient = (np.exp(log_given) - wanted) / wanted.dtype.type(batch)
    return float(value), gradient.astype(logits.dtype)


def squared_divergence(
    target: npt.ArrayLike, logits: npt.ArrayLike
) -> tuple[float, npt.NDArray[Any]]:
    """(target - softmax(logits))**2, the mean over batch and classes, and its gradient.

    Parameters, returns, raises: as `kl_divergence`.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.
    """
    logits, wanted, _ = _distributions(target, logits)
    given = np.exp(_log_softmax(logits, wanted.dtype))
    error = given - wanted
    count = max(1, error.size)
    value = np.square(error).sum(dtype=np.float64) / count
    error *= given
    error -= given * error.sum(axis=-1, keepdims=True)
    return float(value), (error * error.dtype.type(2.0 / count)).astype(logits.dtype)


def _distributions(
    target: npt.ArrayLike, logits: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | float]:
    """Logits, and the target's probabilities and their logarithms, in the compute type."""
    logits = gate.array(logits, "logits")
    if not logits.ndim or not logits.shape[-1]:
        raise ValueError(f"logits must have the shape (..., classes), got {logits.shape}")
    compute, classes = compute_type(logits.dtype), logits.shape[-1]
    target = gate.host(target, "target")
    labels = target.dtype.kind in "iu"
    shape = logits.shape[:-1] if labels else logits.shape
    if target.shape != shape:
        kind = "labels" if labels else "logits"
        raise ValueError(f"target must have shape {shape} for {kind}, got {target.shape}")
    if not labels:
        log = _log_softmax(gate.array(target, "target"), compute)
        return logits, np.exp(log), log
    for label in (target.min(), target.max()) if target.size else ():
        if not 0 <= label < classes:
            raise ValueError(f"target must have labels in 0 ... {classes - 1}, got {label}")
    wanted = np.arange(classes) == target[..., None]
    return logits, wanted.astype(compute), 0.0  # 0 log 0 = 1 log 1 = 0


def _log_softmax(logits: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Of logits of any dtype, in this one."""
    z = logits.astype(dtype)  # -inf is a class of probability 0
    z -= z.max(axis=-1, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z
