"""Stateful layers: ``layer(x)``, ``layer.backward(dy)``, ``.train()``, ``.eval()``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fastdrop import functional, gate
from fastdrop.functional import Context
from fastdrop.rng import Rng, RngLike

__all__ = ["Dropout", "Layer"]


class Layer:
    """What all layers share: a mode, a random state, and the context of the last call.

    An int given as `rng` seeds an `Rng` of the layer's own, so successive calls draw different
    masks; an `Rng` or a NumPy Generator is used as it is and may be shared by many layers.
    """

    def __init__(self, rng: RngLike = None) -> None:
        own = rng is None or isinstance(rng, int | np.integer)
        self.rng: RngLike = Rng(rng) if own else rng
        self.training = True
        self.ctx: Context | None = None

    def train(self, mode: bool = True) -> Layer:
        """Drop from now on (or, with False, no more). Returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Layer:
        """Pass inputs through from now on. Returns the layer."""
        return self.train(False)

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """Gradient with respect to the input of the last call."""
        if self.ctx is None:
            raise RuntimeError("backward needs a forward call of the layer before it")
        return self.ctx.backward(dy, out)


class Dropout(Layer):
    """`fastdrop.dropout` as a layer.

    Parameters
    ----------
    p : float
        Drop rate in [0, 1]; ``layer.p`` can be assigned between calls.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An int seeds an `Rng` of the layer's own.
    shared_axes, save
        As in `fastdrop.dropout`.
    """

    def __init__(
        self,
        p: float = 0.5,
        *,
        rng: RngLike = None,
        shared_axes: int | Sequence[int] = (),
        save: str = "bits",
    ) -> None:
        super().__init__(rng)
        self.p = gate.rate(p)
        self.shared_axes = shared_axes
        self.save = gate.choice(save, ("bits", "seed"), "save")

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> npt.NDArray:
        """y, an array like x."""
        y, self.ctx = functional.dropout(
            x,
            self.p,
            rng=self.rng,
            training=self.training,
            shared_axes=self.shared_axes,
            out=out,
            save=self.save,
        )
        return y

    def __repr__(self) -> str:
        return f"Dropout(p={self.p}, shared_axes={self.shared_axes}, save={self.save!r})"
