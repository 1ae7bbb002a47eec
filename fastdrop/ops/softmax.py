"""Softmax and dropout of attention's scores in one pass.

There is no kernel of it for a GPU: attention there is one kernel with both products of matrices,
and its scores are never in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop._core import Draw, Place
from fastdrop.backends.cpu import CPU, Masking, packed, unpacked
from fastdrop.base import gate, watch
from fastdrop.base.devices import on_device
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops.dropout import Context, inverted
from fastdrop.rng import RngLike, with_draw


class SoftmaxContext(Context):
    """Context of `softmax_dropout`.

    Attributes
    ----------
    weights : ndarray, shape and dtype of scores
        The softmax, before anything was dropped. y has lost it where an element was dropped, and
        the gradient needs it there. Do not change it before the backward pass.
    factor : float
        The `scale` of the call.
    axis : int
        Along which the softmax is.
    """

    __slots__ = ("axis", "factor", "weights")
    axis: int
    factor: float
    weights: Any

    @property
    def nbytes(self) -> int:
        """What is held for the backward pass, in bytes: weights, and the packed mask, if it is
        held.
        """
        return int(super().nbytes + self.weights.nbytes)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """dscores = scale * w * (g - sum(g * w)), with w the weights and g what dropout's backward
        pass makes of dy. The sums are in float64, in one order of additions.

        Parameters
        ----------
        dy : array_like, shape and dtype of scores
        out : ndarray, optional
            Where to write; may be `dy` itself.
        """
        dy = CPU.array(dy, "dy")
        gate.like(dy, "dy", self.shape, self.weights.dtype, "scores")
        out, dy, weights = CPU.output(out, dy, self.weights)
        bits = None
        if (draw := self._drops) is not None:
            if self.held is None:
                watch.drawn_again(draw)
            bits = _of_rows(
                _core.draw_bits(draw) if self.held is None else self.held, draw, self.axis
            )
        return CPU.softmax_gradient(dy, weights, out, bits, self.factor, self.scale, self.axis)

    def _check(self) -> None:
        super()._check()
        if tuple(self.weights.shape) != self.shape:
            raise ValueError(f"weights must have shape {self.shape}, got {self.weights.shape}")
        if not self.axis < len(self.shape):
            raise ValueError(f"axis must be one of {len(self.shape)}, got {self.axis}")


def softmax_dropout(
    scores: npt.ArrayLike,
    p: float = 0.5,
    *,
    scale: float = 1.0,
    causal: bool = False,
    mask: npt.ArrayLike | None = None,
    axis: int = -1,
    rng: RngLike = None,
    training: bool = True,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    out: npt.NDArray[Any] | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], SoftmaxContext]:
    """dropout(softmax(scores * scale)), as attention weighs its values: one pass over each row.

    What takes no part (`causal`, `mask`) has the weight 0, and so has all of a row in which nothing
    does, or that is -inf alone. Of operations that IEEE 754 rounds exactly, so the bits are the
    same everywhere. A weight's error, relative, is at most 4e-7 and 6e-8 times the difference to
    the row's largest score; weights of less than 2^-126.5 of the largest are 0. (In float64 8e-16,
    1.1e-16 and 2^-1022.5.) 16-bit types are computed in float32 and rounded once.

    Parameters
    ----------
    scores : array_like of float16, bfloat16 (ml_dtypes), float32 or float64, at least 1-d
        Such as q @ k.T, of shape (..., queries, keys).
    p : float
        Drop rate of the weights, in [0, 1].
    scale : float
        What scores are multiplied by first, such as 1 / sqrt(units of a head). A bias that you
        have added to scores is multiplied, too: add bias / scale.
    causal : bool
        Query i, an index of the axis before the last one, reads the keys 0 ... i alone. Of a region
        its place in the larger array counts: the last of t queries alone has ``region=((0, t - 1,
        0), (n, t, t))``. So do rows of a 2-d array. `axis` must be the last one.
    mask : array_like of bool, optional
        Which scores take part; of any shape that broadcasts to that of scores, such as (batch, 1,
        1, keys). It says nothing of what is dropped.
    axis : int
        Along which the softmax is; another one than the last takes a copy. No region cuts it.
    rng, training, shared_axes, region, rows, save
        As in `fastdrop.dropout`: the mask is that of an array like scores. Without training y has
        the weights.
    out : ndarray, optional
        Where to write y. May be scores itself.

    Returns
    -------
    y : ndarray
        Shape and dtype of scores; C-contiguous, if `axis` is the last one.
    ctx : SoftmaxContext
        ``ctx.backward(dy)`` gives dscores; ``ctx.weights`` are the weights before anything was
        dropped.

    Raises
    ------
    TypeError
        Kind or dtype of an argument; an array on a GPU, for which there is no kernel.
    ValueError
        Value or shape of an argument.
    numpy.exceptions.AxisError
        Axis out of range.

    References
    ----------
    A. Vaswani et al.: Attention is all you need. NeurIPS 2017, equation 1; M. Shoeybi et al.:
    Megatron-LM. arXiv:1909.08053 (2019), section 3: dropout of attention's weights.
    """
    keep = gate.keeps_bits(save)
    if on_device(scores):
        raise TypeError(
            "scores is a CUDA array, for which softmax_dropout has no kernels; copy it to the "
            "host, or take the attention of its library"
        )
    x, p = CPU.array(scores, "scores"), gate.rate(p)
    factor, causal = gate.real(scale, "scale"), gate.flag(causal, "causal")
    kind = compute_type(x.dtype)
    if abs(factor) > float(np.finfo(kind).max):
        raise ValueError(f"scale must be finite in {kind.__name__}, got {factor!r}")
    if not x.ndim:
        raise ValueError("scores must have at least one axis, got 0-d")
    (along,) = gate.axes(gate.integer(axis, "axis", "an int"), x.ndim, "axis")
    place = gate.place(x.shape, shared_axes, region, rows)
    masking = _masking(x.shape, along, place, causal, mask)
    training = gate.flag(training, "training")
    out, x = CPU.output(out, x)
    constants = inverted(p if training else 0.0)

    def of_draw(draw: Draw | None) -> tuple[Any, SoftmaxContext]:
        drawn = _core.draw_bits(draw) if draw is not None and p > 0.0 else None
        bits = None if drawn is None or draw is None else _of_rows(drawn, draw, along)
        y, weights = CPU.softmax(x, out, bits, masking, factor, constants[0], along)
        more = {"weights": weights, "factor": factor, "axis": along}
        held = drawn if keep else None
        return y, SoftmaxContext.made(x.shape, draw, constants[0], held, **more)

    return with_draw(rng, p, place, of_draw, out, x if p else None) if training else of_draw(None)


def _of_rows(bits: bytes, draw: Draw, axis: int) -> bytes:
    """A packed mask with a bit for each element of x, whose last axis is this one."""
    place = draw.place
    if place.shape == place.of and axis == len(place.of) - 1:
        return bits
    return packed(np.moveaxis(unpacked(bits, draw), axis, -1))


def _masking(shape: tuple[int, ...], axis: int, place: Place, causal: bool, mask: Any) -> Masking:
    """What takes part in the softmax of each row."""
    length = shape[axis]
    gate.uncut(place, (axis,), "along which the softmax is")
    if place.rows is not None and not axis:
        raise ValueError("rows must not be given along axis 0, along which the softmax is")
    live = _causal(shape, axis, place) if causal else None
    if mask is None:
        return live, None, None
    given = gate.host(mask, "mask")
    if given.dtype != np.bool_:
        remedies = dict.fromkeys("iu", "; convert it with .astype(bool)")
        remedies["f"] = "; one that is added to scores, add yourself, divided by scale"
        raise TypeError(
            f"mask must be bool, True where a score takes part, got {given.dtype}"
            + remedies.get(given.dtype.kind, "")
        )
    try:
        np.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(
            f"mask must have a shape that broadcasts to that of scores, {shape}, got {given.shape}"
        ) from None
    given = np.moveaxis(given.reshape((1,) * (len(shape) - given.ndim) + given.shape), axis, -1)
    rows = [n for d, n in enumerate(shape) if d != axis]
    masks = given.shape[:-1]
    given = np.broadcast_to(given, (*masks, length)).reshape(prod(masks), length)
    bits = np.packbits(given, -1, "little")
    room = np.zeros((len(bits), _core.BITS_PAD), np.uint8)
    numbers = np.arange(len(bits)).reshape(masks)
    number = np.ascontiguousarray(np.broadcast_to(numbers, rows), np.int64)
    return live, np.concatenate([bits, room], axis=1), number


def _causal(shape: tuple[int, ...], axis: int, place: Place) -> npt.NDArray[np.int64]:
    """How many keys each row reads."""
    if len(shape) < 2 or axis != len(shape) - 1:
        raise ValueError(
            f"causal needs queries before the keys, the last axis, got axis={axis} of scores of "
            f"shape {shape}"
        )
    if len(shape) == 2 and place.rows is not None:
        query = place.rows
    else:
        first = 0 if place.region is None else place.region[0][-2]
        query = np.arange(first, first + shape[-2])
    live = np.minimum(query + 1, shape[-1])
    return np.ascontiguousarray(np.broadcast_to(live, shape[:-1]), np.int64)
