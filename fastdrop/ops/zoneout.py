"""Zoneout: some units of a recurrent state keep their previous value."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from math import prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastdrop._core import ZONEOUT
from fastdrop.backends import cpu
from fastdrop.backends.cuda.arrays import cuda
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.layer import OpLayer, Rate
from fastdrop.base.restore import Restored
from fastdrop.ops.dropout import Context, Region
from fastdrop.ops.noise import compute_type
from fastdrop.rng import RngLike, draw_call

__all__ = ["Zoneout", "ZoneoutContext", "ZoneoutMeanContext", "zoneout"]

_INVERTED = bytes(255 - byte for byte in range(256))


class ZoneoutContext(Context):
    """Context of `zoneout` in training; ``mask()`` is True where the new value was taken."""

    __slots__ = ()

    def backward(  # type: ignore[override]
        self, dy: npt.ArrayLike
    ) -> tuple[npt.NDArray, npt.NDArray]:
        """(dprevious, dnew): dy where that value was taken, else +0.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        if on_device(dy):
            return cuda().backward_zoneout(self, dy)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        bits = self._bits
        if bits is None:
            block = self._block or prod(self.shape)
            bits = cpu.draw(self.seed, self.call, self.p, block)
        dprevious, dnew = np.empty_like(dy), np.empty_like(dy)
        cpu.backward(dy, dnew, bits, 1.0, self._block)
        cpu.backward(dy, dprevious, bits.translate(_INVERTED), 1.0, self._block)
        return dprevious, dnew


@dataclass(frozen=True, slots=True)
class ZoneoutMeanContext(Restored):
    """Context of `zoneout` without training, where nothing is drawn.

    Attributes
    ----------
    shape : tuple of int
    p : float
        The weight of the previous value; 0 without `expectation`.
    """

    shape: tuple[int, ...]
    p: float
    seed: ClassVar[None] = None
    call: ClassVar[None] = None
    nbytes: ClassVar[int] = 0

    def check(self) -> None:
        pass  # nothing is drawn

    def backward(self, dy: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
        """(dprevious, dnew): p * dy and (1 - p) * dy.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        if on_device(dy):
            return cuda().backward_zoneout_mean(self, dy)
        dy = gate.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        kind = compute_type(dy.dtype)
        wide = dy.astype(kind, copy=False)
        weights, zero = (kind(self.p), kind(1.0 - self.p)), np.zeros_like(dy)
        dprevious, dnew = (np.asarray(wide * w if w else zero, dy.dtype) for w in weights)
        return dprevious, dnew


def zoneout(
    previous: npt.ArrayLike,
    new: npt.ArrayLike,
    p: float = 0.1,
    *,
    rng: RngLike = None,
    training: bool = True,
    expectation: bool = True,
    region: Region | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray, ZoneoutContext | ZoneoutMeanContext]:
    """Each element keeps its previous value with chance p, else takes the new one.

    Parameters
    ----------
    previous, new : array_like of float16, bfloat16 (ml_dtypes), float32 or float64
        State before and after a step; one shape, one dtype.
    p : float
        Chance in [0, 1] to keep the previous value.
    training : bool
        If False, nothing is drawn: see `expectation`.
    expectation : bool
        Without training, y is the expectation p * previous + (1 - p) * new (the authors' code); if
        False it is `new` (Chainer's).
    rng, region, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        C-contiguous.
    ctx : ZoneoutContext or, without training, ZoneoutMeanContext
        ``ctx.backward(dy)`` gives (dprevious, dnew).

    Raises
    ------
    TypeError, ValueError
        Dtype or shape of `new` is not that of `previous`.

    References
    ----------
    D. Krueger et al.: Zoneout: regularizing RNNs by randomly preserving hidden activations. ICLR
    2017, equations 3 to 5.
    """
    gate.choice(save, ("bits", "seed"), "save")
    if on_device(previous):
        return cuda().run_zoneout(previous, new, p, rng, training, expectation, region, save)
    previous, new = gate.array(previous, "previous"), gate.array(new, "new")
    gate.like(new, "new", previous.shape, previous.dtype, "previous")
    p = gate.rate(p)
    block = None if region is None else gate.block(new.shape, (), region)
    if not training:
        p = p if expectation else 0.0
        return _mean(previous, new, p), ZoneoutMeanContext(new.shape, p)
    seed, call = draw_call(rng)
    previous, new = np.asarray(previous, order="C"), np.asarray(new, order="C")
    y = np.empty_like(new)
    keep_bits = save == "bits"
    bits = cpu.forward(ZONEOUT, new, previous, None, y, seed, call, p, block, keep_bits, 1.0)
    return y, ZoneoutContext(new.shape, p, seed, call, block, bits, 1.0)


def _mean(previous: npt.NDArray, new: npt.NDArray, p: float) -> npt.NDArray:
    """p * previous + (1 - p) * new, in the compute type; what has no weight may be infinite."""
    if p in (0.0, 1.0):
        return (previous if p else new).copy()
    kind, size = compute_type(new.dtype), 16384  # at a time: what is between stays in the cache
    y = np.empty(new.shape, new.dtype)
    a, b, out = (np.asarray(v, order="C").reshape(-1) for v in (previous, new, y))
    for i in range(0, out.size, size):
        part = slice(i, i + size)
        terms = np.multiply(a[part], kind(p), dtype=kind)
        terms += np.multiply(b[part], kind(1.0 - p), dtype=kind)
        out[part] = terms
    return y


@dataclass(eq=False)
class Zoneout(OpLayer):
    """`zoneout` as a layer: ``layer(previous, new)``.

    Parameters
    ----------
    p : float or callable
        Chance in [0, 1] to keep the previous value, or a function of the step; see `Layer`.
    expectation, save
        As in `zoneout`.
    rng
        As in `Dropout`.
    """

    op = zoneout

    p: Rate = 0.1
    _: KW_ONLY
    expectation: bool = True
    save: str = "bits"

    def __call__(  # type: ignore[override]
        self, previous: npt.ArrayLike, new: npt.ArrayLike
    ) -> npt.NDArray:
        """y, an array like `new`. ``backward`` gives (dprevious, dnew)."""
        return self._run(previous, new)
