"""Modules for dropout that ``torch.nn`` has not; named as in `fastdrop.layers`.

Those that share draws along axes take the roads of `Dropout`. The others take their draw as a
tensor and leave the rest, derivatives and all, to PyTorch's own operations. `DropConnect` is in
`connect`.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from fastdrop.adapters.torch import sharded
from fastdrop.adapters.torch.kernels import FACTORS, KEPT, TERMS, How, drawn
from fastdrop.adapters.torch.modules import Dropout
from fastdrop.adapters.torch.seeded import Seeded, eval_script, served
from fastdrop.base import gate
from fastdrop.ops.door import DROPOUT


class LockedDropout(Dropout):
    """`fastdrop.locked_dropout`: one mask for all steps of a sequence. AWD-LSTM's; others call it
    variational dropout.

    Parameters
    ----------
    p : float
        Drop rate in [0, 1].
    time_axis : int, optional
        The axis of the steps. 1 if omitted, where the input has three axes or more: (batch, time,
        features). ``nn.LSTM`` without ``batch_first`` has it first: 0.
    inplace, seed
        As in `Dropout`.
    shared_axes : tuple of int
        Further axes that share a draw.
    """

    def __init__(
        self,
        p: float = 0.5,
        time_axis: int | None = None,
        inplace: bool = False,
        seed: int | None = None,
        shared_axes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(p, inplace, seed, shared_axes)
        self.time_axis = (
            None if time_axis is None else gate.integer(time_axis, "time_axis", "an int")
        )

    @property
    def alone(self) -> bool:
        return True

    def _how(self, x: Tensor, region: Any, rows: Any) -> How:
        if self.time_axis is None and x.ndim < 3:
            raise ValueError(
                f"input must have the axes (batch, time, ...), got shape {tuple(x.shape)}; for "
                "another form say which axis is that of the steps: time_axis=0 for (time, features)"
            )
        how = super()._how(x, region, rows)
        steps = gate.axes(1 if self.time_axis is None else self.time_axis, x.ndim, "time_axis")
        return how._replace(shared_axes=tuple(sorted({*how.shared_axes, *steps})))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, time_axis={self.time_axis}"


class DropPath(Dropout):
    """`fastdrop.drop_path`: drops a residual branch as a whole; also called stochastic depth.

    Parameters
    ----------
    p : float
        Drop rate in [0, 1].
    mode : {"row", "batch"}
        One draw for each example, or one for the whole batch.
    scale_by_keep : bool
        Whether kept examples are multiplied by 1 / (1 - p).
    inplace, seed
        As in `Dropout`.
    """

    def __init__(
        self,
        p: float = 0.5,
        mode: str = "row",
        scale_by_keep: bool = True,
        inplace: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__(p, inplace, seed)
        self.mode = gate.choice(mode, ("row", "batch"), "mode")
        self.scale_by_keep = gate.flag(scale_by_keep, "scale_by_keep")

    @property
    def alone(self) -> bool:
        return True

    def _how(self, x: Tensor, region: Any, rows: Any) -> How:
        if not x.ndim:
            raise ValueError("input must have a batch axis, got a 0-d tensor")
        axes = tuple(range(self.mode == "row", x.ndim))
        return How(self.p, DROPOUT, axes, region, rows, None if self.scale_by_keep else 1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode}, scale_by_keep={self.scale_by_keep}"


class Variant(Seeded, nn.Module):
    """What the modules share that no module of ``torch.nn`` is like."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.adopt(seed)

    def __prepare_scriptable__(self) -> nn.Module:
        return eval_script(self)

    def _of_input(self, x: Tensor, how: How, kind: str) -> Tensor:
        """The draw for x."""
        served(x)
        axes = gate.axes(how.shared_axes, x.ndim, "shared_axes") if how.shared_axes else ()
        draw = sharded.drawn if sharded.is_sharded(x) else drawn
        made: Tensor = draw(x, self.draws, how._replace(shared_axes=axes), kind)
        return made


class GaussianDropout(Variant):
    """`fastdrop.gaussian_dropout`: multiplies by 1 + sqrt(p / (1 - p)) * noise.

    Parameters
    ----------
    p : float
        Rate in [0, 1) of the dropout that has this variance.
    seed, shared_axes
        As in `Dropout`.
    """

    def __init__(
        self, p: float = 0.5, seed: int | None = None, shared_axes: tuple[int, ...] = ()
    ) -> None:
        super().__init__(seed)
        self.p = gate.rate(p)
        if self.p == 1.0:
            raise ValueError("p must be below 1, got 1.0: the noise would have infinite variance")
        self.shared_axes = shared_axes

    def _train(self, x: Tensor) -> Tensor:
        if not self.p:
            return x
        how = How(0.0, shared_axes=self.shared_axes, scale=sqrt(self.p / (1.0 - self.p)))
        factors = self._of_input(x, how, FACTORS)
        return (x * factors).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}, shared_axes={self.shared_axes}{super().extra_repr()}"


class GaussianNoise(Variant):
    """`fastdrop.gaussian_noise`: adds std * noise, standard normal.

    Parameters
    ----------
    std : float
        Standard deviation, in units of the input; not negative.
    seed, shared_axes
        As in `Dropout`.
    """

    def __init__(
        self, std: float, seed: int | None = None, shared_axes: tuple[int, ...] = ()
    ) -> None:
        super().__init__(seed)
        self.std, self.shared_axes = gate.real(std, "std", 0.0), shared_axes

    def _train(self, x: Tensor) -> Tensor:
        if not self.std:
            return x
        how = How(0.0, shared_axes=self.shared_axes, scale=self.std)
        terms = self._of_input(x, how, TERMS)
        return (x + terms).to(x.dtype)

    def extra_repr(self) -> str:
        return f"std={self.std}, shared_axes={self.shared_axes}{super().extra_repr()}"


class Zoneout(Variant):
    """`fastdrop.zoneout`: ``zoneout(previous, new)``, the states before and after a step. If their
    dtypes differ, as under ``torch.autocast``, y has the one to which PyTorch promotes them.

    Parameters
    ----------
    p : float
        Chance in [0, 1] that an element keeps its previous value.
    expectation : bool
        In eval mode, y is p * previous + (1 - p) * new; if False it is `new`.
    seed
        As in `Dropout`.
    """

    def __init__(self, p: float = 0.1, expectation: bool = True, seed: int | None = None) -> None:
        super().__init__(seed)
        self.p, self.expectation = gate.rate(p), gate.flag(expectation, "expectation")

    def __prepare_scriptable__(self) -> nn.Module:
        raise RuntimeError("TorchScript does not take Zoneout; use torch.export")

    def _train(self, previous: Tensor, new: Tensor) -> Tensor:
        self._check(previous, new)
        return torch.where(self._of_input(new, How(self.p), KEPT), new, previous)

    def _eval(self, previous: Tensor, new: Tensor) -> Tensor:
        self._check(previous, new)
        dtype = torch.promote_types(previous.dtype, new.dtype)
        if not self.expectation or self.p in (0.0, 1.0):
            return (previous if self.expectation and self.p else new).to(dtype)
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        mean = previous.to(wide) * self.p + new.to(wide) * (1.0 - self.p)
        return mean.to(dtype)

    @staticmethod
    def _check(previous: Tensor, new: Tensor) -> None:
        if previous.shape != new.shape:
            raise ValueError(
                f"new must have the shape of previous, {tuple(previous.shape)}, got "
                f"{tuple(new.shape)}"
            )

    def extra_repr(self) -> str:
        return f"p={self.p}, expectation={self.expectation}{super().extra_repr()}"


class EmbeddingDropout(Seeded, nn.Embedding):
    """``nn.Embedding`` whose rows are dropped, as by `fastdrop.embedding_dropout`: a dropped word
    is dropped wherever it stands.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    p : float
        Drop rate in [0, 1].
    seed
        As in `Dropout`.
    **options
        Of ``nn.Embedding``.

    Examples
    --------
    >>> EmbeddingDropout.from_pretrained(table, freeze=False, p=0.1)  # doctest: +SKIP
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *more: Any,
        p: float = 0.1,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, *more, **options)
        self.adopt(seed)
        self.p = gate.rate(p)

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, *more: Any, p: float = 0.1, seed: int | None = None, **options: Any
    ) -> EmbeddingDropout:
        """As that of ``nn.Embedding``; with p and seed."""
        made: EmbeddingDropout = super().from_pretrained(embeddings, *more, **options)
        made.adopt(seed)
        made.p = gate.rate(p)
        return made

    def __prepare_scriptable__(self) -> nn.Module:
        eval_script(self)
        return nn.Embedding.from_pretrained(self.weight, not self.weight.requires_grad)

    def _eval(self, ids: Tensor) -> Tensor:
        y: Tensor = nn.Embedding.forward(self, ids)
        return y

    def _train(self, ids: Tensor) -> Tensor:
        y = self._eval(ids)
        if not self.p:
            return y
        kept = drawn(self.weight, self.draws, How(self.p, shared_axes=(1,)), KEPT)[ids]
        scale = 1.0 / (1.0 - self.p) if self.p < 1.0 else 0.0
        return torch.where(kept, y * scale, 0.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
