"""Modules in place of those of ``torch.nn``, and the function that they call."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional as F

from fastdrop.adapters.torch import sharded
from fastdrop.adapters.torch.draws import FROM_GENERATOR, Named
from fastdrop.adapters.torch.kernels import (
    DTYPES,
    Draws,
    How,
    dropped,
    dropped_lean,
    dropped_whole,
    is_plain,
    is_traced,
)
from fastdrop.adapters.torch.seeded import Seeded, eval_script, served
from fastdrop.adapters.torch.stored import dropped_entries
from fastdrop.base import gate
from fastdrop.ops.door import ALPHA_DROPOUT, DROPOUT


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    draw: tuple[int, int] | None = None,
    shared_axes: tuple[int, ...] = (),
    region: Any = None,
    rows: Any = None,
) -> Tensor:
    """`fastdrop.dropout` of a tensor, in place of ``torch.nn.functional.dropout``.

    Parameters
    ----------
    input : Tensor
        float16, bfloat16, float32 or float64, of any shape and layout. The mask of a DTensor is
        the part of the whole tensor's that each process holds.
    p : float
        Drop rate in [0, 1].
    training : bool
        False: the input is returned.
    inplace : bool
        Whether the input gets the result, too. Saves no memory.
    draw : (seed, call), optional
        Names the mask, which is that of ``fastdrop.Rng(seed, call)``. Else PyTorch's CPU generator
        gives both.
    shared_axes : tuple of int
        Axes along which one draw is shared.
    region : (start, global_shape), optional
        The input is the block that begins at `start` of a larger tensor, and gets that part of
        its mask. See `fastdrop.dropout`.
    rows : array or Tensor of int, shape (input.shape[0],), optional
        Row i of the input is row ``rows[i]`` of the larger tensor. Not where it is compiled.

    Returns
    -------
    Tensor
        The input itself if nothing can be dropped.

    Raises
    ------
    ValueError
        p, draw, region or rows that cannot be.
    TypeError
        A tensor of another kind.
    """
    p = gate.rate(p)
    if not training or p == 0.0:
        return input
    served(input)
    if draw is not None and not (isinstance(draw, tuple) and len(draw) == 2):
        raise ValueError(f"draw must be (seed, call), such as (rng.seed, rng.call), got {draw!r}")
    draws = FROM_GENERATOR if draw is None else Named(*draw)
    if isinstance(rows, Tensor):
        rows = rows.cpu().numpy()
    axes = gate.axes(shared_axes, input.ndim, "shared_axes") if shared_axes else ()
    y = _any_kind(input, draws, How(p, shared_axes=axes, region=region, rows=rows))
    return input.copy_(y) if inplace else y


def _any_kind(x: Tensor, draws: Draws, how: How) -> Tensor:
    return sharded.dropped(x, draws, how) if sharded.is_sharded(x) else dropped(x, draws, how)


class Drops(Seeded):
    """Comes before one of ``torch.nn``'s dropout modules, which checks p.

    Parameters
    ----------
    p : float
        Drop rate in [0, 1]; can be assigned between calls.
    inplace : bool
        Whether the input gets the result, too. Saves no memory.
    seed : int, optional
        0 to 2**64 - 1. If given, the masks do not depend on PyTorch's random state. A copy
        (``copy.deepcopy``, as in ``nn.TransformerEncoder``) runs beside the module: it gets a seed
        of its own, which follows from this one.
    """

    op: ClassVar[int] = DROPOUT
    """Of the kernels."""

    axis: ClassVar[dict[int, int]] = {}
    """The axes from this one on share a draw; by the number of axes of the input. If it is none of
    these, PyTorch's function says what it thinks of that, and the first two axes do not share."""

    def __init__(self, p: float = 0.5, inplace: bool = False, seed: int | None = None) -> None:
        super().__init__(p, inplace)
        self.adopt(seed)

    def __prepare_scriptable__(self) -> nn.Module:
        """TorchScript has no custom operators written in Python: it gets PyTorch's own module."""
        if self.alone:
            return eval_script(self)
        return self._plain()(self.p, self.inplace).train(self.training)

    @property
    def alone(self) -> bool:
        """Whether no module of ``torch.nn`` does the same."""
        return False

    @classmethod
    def _plain(cls) -> Any:
        """Which class of ``torch.nn`` stands behind this one."""
        return next(kind for kind in cls.__mro__ if kind.__module__.startswith("torch.nn"))

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(input, Proxy):
            return self._node((input,), {})
        if not self.training or self.p == 0.0:
            if self.axis and input.ndim not in self.axis:
                self._shared_axes(input)  # for what PyTorch's says of that
            return input
        return self._drop(input)

    def _drop(self, x: Tensor, region: Any = None, rows: Any = None) -> Tensor:
        if not is_plain(x):
            if not isinstance(x, Tensor):
                served(x)
            return self._drop_other(x, region, rows)
        if region is None and rows is None and not self.axis and not self.alone:
            y = dropped_whole(x, self.draws, self.p, self.op)
        else:
            y = dropped_lean(x, self.draws, self._how(x, region, rows))
        return x.copy_(y) if self.inplace and self.op == DROPOUT else y  # as PyTorch's

    def _drop_other(self, x: Tensor, region: Any, rows: Any) -> Tensor:
        """Of a tensor that is not plain."""
        if self._is_theirs(x):
            y: Tensor = self._plain().forward(self, x)
            return y
        served(x)
        y = _any_kind(x, self.draws, self._how(x, region, rows))
        return x.copy_(y) if self.inplace and self.op == DROPOUT else y  # as PyTorch's

    def _how(self, x: Tensor, region: Any, rows: Any) -> How:
        return How(self.p, self.op, self._shared_axes(x) if self.axis else (), region, rows)

    def _is_theirs(self, x: Tensor) -> bool:
        """Whether PyTorch's own module has to do it. ONNX knows its dropout alone."""
        if self.alone:
            return False
        if is_traced(x):
            return torch.onnx.is_in_onnx_export()
        return self.draws is FROM_GENERATOR and (x.dtype not in DTYPES or x.is_nested)

    def _shared_axes(self, x: Tensor) -> tuple[int, ...]:
        axis = self.axis.get(x.ndim)
        if axis is None:
            function = getattr(F, _FUNCTIONS[self._plain()])
            function(x, self.p, self.training and x.ndim < 2)  # warns or raises as PyTorch's
            axis = 2
        return tuple(range(axis, x.ndim))


class Dropout(Drops, nn.Dropout):
    """`fastdrop.dropout` in place of ``nn.Dropout``; takes ``seed=``, too.

    A call takes ``region=`` and ``rows=``, as `dropout` does. The stored entries of a sparse tensor
    (COO or CSR) get the dense tensor's mask.

    Parameters
    ----------
    p : float
        Drop rate in [0, 1]; can be assigned between calls.
    inplace : bool
        Whether the input gets the result, too. Saves no memory.
    seed : int, optional
        0 to 2**64 - 1. If given, the masks do not depend on PyTorch's random state.
    shared_axes : tuple of int
        Axes along which one draw is shared: ``(0,)`` for one mask for the whole batch.
    """

    shared_axes: tuple[int, ...] = ()

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        seed: int | None = None,
        shared_axes: tuple[int, ...] = (),
    ) -> None:
        super().__init__(p, inplace, seed)
        if shared_axes:
            self.shared_axes = gate.integers(shared_axes, "shared_axes", "a tuple of ints")

    @property
    def alone(self) -> bool:
        return bool(self.shared_axes)

    def forward(self, input: Tensor, region: Any = None, rows: Any = None) -> Tensor:
        if isinstance(input, Proxy):
            return self._node((input,), {"region": region, "rows": rows})
        if not self.training or self.p == 0.0:
            return input
        if rows is not None and isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        return self._drop(input, region, rows)

    def _drop_other(self, x: Tensor, region: Any, rows: Any) -> Tensor:
        if x.layout not in _SPARSE:
            return super()._drop_other(x, region, rows)
        if self.inplace:
            raise ValueError("inplace must be False for sparse tensors, of which y is a new one")
        return dropped_entries(x, self.draws.numbers(), self._how(x, None, None))

    def _how(self, x: Tensor, region: Any, rows: Any) -> How:
        axes = self.shared_axes and gate.axes(self.shared_axes, x.ndim, "shared_axes")
        return How(self.p, DROPOUT, axes, region, rows)

    def extra_repr(self) -> str:
        more = f", shared_axes={self.shared_axes}" if self.shared_axes else ""
        return super().extra_repr() + more


_SPARSE = frozenset(
    {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
)


class Dropout1d(Drops, nn.Dropout1d):
    """Whole channels of (N, C, L) or (C, L), as ``nn.Dropout1d``; takes ``seed=``, too."""

    axis: ClassVar = {2: 1, 3: 2}


class Dropout2d(Drops, nn.Dropout2d):
    """Whole maps of (N, C, H, W) or (N, C, L), as ``nn.Dropout2d``; takes ``seed=``, too."""

    axis: ClassVar = {4: 2}


class Dropout3d(Drops, nn.Dropout3d):
    """Whole maps of (N, C, D, H, W) or (C, D, H, W), as ``nn.Dropout3d``; takes ``seed=``, too."""

    axis: ClassVar = {4: 1, 5: 2}


class AlphaDropout(Drops, nn.AlphaDropout):
    """`fastdrop.alpha_dropout` in place of ``nn.AlphaDropout``; takes ``seed=``, too."""

    op = ALPHA_DROPOUT


class FeatureAlphaDropout(Drops, nn.FeatureAlphaDropout):
    """Whole maps of (N, C, ...), as ``nn.FeatureAlphaDropout``; takes ``seed=``, too."""

    op = ALPHA_DROPOUT
    axis: ClassVar = {2: 2, 3: 2, 4: 2, 5: 2}


OURS: dict[type[nn.Module], type[Drops]] = {
    getattr(nn, ours.__name__): ours
    for ours in (Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout, FeatureAlphaDropout)
}

_FUNCTIONS = {
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
}
