"""Zoneout: some units of a recurrent state keep their previous value."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from fastdrop._core import ZONEOUT, Draw, saved
from fastdrop.backends import of
from fastdrop.base import gate
from fastdrop.base.gate import Region
from fastdrop.ops import context
from fastdrop.ops.dropout import Context
from fastdrop.rng import RngLike, with_draw


class ZoneoutContext(Context):
    """Context of `zoneout` in training; ``mask()`` is True where the new value was taken."""

    __slots__ = ()
    draw: Draw  # always there

    def backward(self, dy: npt.ArrayLike) -> Any:  # type: ignore[override]  # no out for two
        """(dprevious, dnew): dy where that value was taken, else +0.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        return backend.split(dy, self.draw, self.held)

    def apply(self, x: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """Not here: of two arrays, one replaces the other."""
        raise TypeError(
            "x of zoneout is replaced, not dropped; call zoneout with rng=Rng(ctx.seed, ctx.call)"
        )

    def _check(self) -> None:
        super()._check()
        if self.draw is None:
            raise ValueError("draw must be there, as zoneout in training draws")


class ZoneoutMeanContext(context.Context):
    """Context of `zoneout` without training, where nothing is drawn.

    Attributes
    ----------
    shape : tuple of int
    p : float
        The weight of the previous value; 0 without `expectation`.
    """

    __slots__ = ("previous",)
    previous: float

    @property
    def p(self) -> float:
        return self.previous

    def backward(self, dy: npt.ArrayLike) -> Any:
        """(dprevious, dnew): p * dy and (1 - p) * dy.

        Parameters
        ----------
        dy : array_like of a floating dtype, shape of y
        """
        backend = of(dy)
        dy = backend.array(dy, "dy")
        gate.like(dy, "dy", self.shape)
        return backend.weighted(dy, self.p), backend.weighted(dy, 1.0 - self.p)

    def _check(self) -> None:
        if self.draw is not None or self.held is not None:
            raise ValueError("draw and held must be None, as nothing was drawn")


def zoneout(
    previous: npt.ArrayLike,
    new: npt.ArrayLike,
    p: float = 0.1,
    *,
    rng: RngLike = None,
    training: bool = True,
    expectation: bool = True,
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    save: str = "bits",
) -> tuple[npt.NDArray[Any], ZoneoutContext | ZoneoutMeanContext]:
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
    rng, region, rows, save
        As in `fastdrop.dropout`.

    Returns
    -------
    y : ndarray
        C-contiguous.
    ctx : ZoneoutContext or, without training, ZoneoutMeanContext
        ``ctx.backward(dy)`` gives (dprevious, dnew).

    Raises
    ------
    TypeError
        Kind or dtype of an argument: that of `new` is not that of `previous`.
    ValueError
        Value or shape of an argument.
    RuntimeError
        previous is on a GPU, where no kernel can run here.

    References
    ----------
    D. Krueger et al.: Zoneout: regularizing RNNs by randomly preserving hidden activations. ICLR
    2017, equations 3 to 5.
    """
    keep = gate.keeps_bits(save)
    backend = of(previous)
    previous, new = backend.array(previous, "previous"), backend.array(new, "new")
    gate.like(new, "new", previous.shape, previous.dtype, "previous")
    p, place = gate.rate(p), gate.place(new.shape, gate.NO_AXES, region, rows)
    training, expectation = gate.flag(training, "training"), gate.flag(expectation, "expectation")
    if not training:
        p = p if expectation else 0.0
        y = backend.blend(previous, new, p)
        return y, ZoneoutMeanContext.made(new.shape, None, 1.0, None, previous=p)
    as_it_is = 1.0, 0.0, 0.0

    def of_draw(draw: Draw) -> tuple[Any, ZoneoutContext]:
        y, bits = backend.forward(ZONEOUT, new, draw, as_it_is, None, keep, previous)
        return y, saved(ZoneoutContext, new.shape, draw, 1.0, bits)

    return with_draw(rng, p, place, of_draw, of=new)
