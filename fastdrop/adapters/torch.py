"""Dropout for PyTorch: modules in place of those of ``torch.nn``, and `replace` for whole models.

An example::

    from fastdrop.adapters.torch import Dropout

    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), Dropout(0.5), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters())
    for x, t in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), t).backward()
        optimizer.step()

Each call draws a mask of its own, named by a seed and a call number. Without ``seed=`` PyTorch's
CPU generator gives both, so ``torch.manual_seed`` repeats a run. With it, a module counts its
calls, and its state dict says where it is: a run that goes on from there draws the masks that it
would have drawn. Either way gradient checkpointing computes again with the same mask (it must
preserve the random state, as it does unless told otherwise). For backward nothing is kept but these
two numbers. In data-parallel training give each rank another seed, or all draw the same masks.
Two checkpointed passes of a module with a seed, both begun from one ``torch.manual_seed`` and both
before either goes back, cannot be told from each other: there leave ``seed=`` out.

Tensors on the CPU are float16, bfloat16 (needs ml_dtypes), float32 or float64, in any layout, and
are not copied; those on a GPU go to `fastdrop.cuda`. In a CUDA graph captured by hand the mask
would be the same each time, as the draw is decided on the CPU.

Custom operators cannot be in ``torch.jit.script`` or under ``torch.func.grad``. A call costs some
30 microseconds, three times PyTorch's, so the gain begins at a few thousand elements.
"""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastdrop.backends.interface import Constants
from fastdrop.ops.door import ALPHA_DROPOUT, DROPOUT, affine, drop, inverted
from fastdrop.ops.dropout import keep_mask
from fastdrop.rng import Rng, copy_seed, uint64

__all__ = [
    "AlphaDropout",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "replace",
]

U64 = 2**64 - 1


@torch.library.custom_op("fastdrop::dropout", mutates_args=())
def dropout(
    x: Tensor, draw: Tensor, p: float, shared_axes: list[int], scale: float | None = None
) -> Tensor:
    """x * scale where kept, else 0. draw: seed and call, int64. scale: 1 / (1 - p) if None."""
    constants = inverted(p) if scale is None else (scale, 0.0, 0.0)
    return _drop(DROPOUT, x, draw, p, shared_axes, constants)


@torch.library.custom_op("fastdrop::alpha_dropout", mutates_args=())
def alpha_dropout(x: Tensor, draw: Tensor, p: float, shared_axes: list[int]) -> Tensor:
    """As `fastdrop.alpha_dropout`; arguments as in `dropout`."""
    return _drop(ALPHA_DROPOUT, x, draw, p, shared_axes, affine(p))


def _drop(
    op: int, x: Tensor, draw: Tensor, p: float, shared_axes: list[int], constants: Constants
) -> Tensor:
    y = torch.empty_like(x)
    seed, call = (number & U64 for number in draw.tolist())
    axes = tuple(shared_axes)  # an empty one, unlike a list, is known to ask for nothing
    drop(_array(x), p, (seed, call), constants, op=op, shared_axes=axes, out=_array(y))
    return y


def _array(x: Tensor) -> Any:
    """The same memory, as fastdrop takes it."""
    x = x.detach()
    if x.is_cuda:
        return x
    if x.dtype is torch.bfloat16:
        from ml_dtypes import bfloat16

        return x.view(torch.int16).numpy().view(bfloat16)
    return x.numpy()


def _with_tangent(y: Tensor, dx: Tensor | None, *how: Any) -> Tensor:
    """y for forward mode, for which custom operators have no rule: they drop tangents silently."""
    return y if dx is None else forward_ad.make_dual(y, dropout(dx, *how))


def _differentiate(op: Any, scale: Any) -> None:
    """The gradient of either op is `dropout` with the same mask; scale tells by what."""

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, draw, ctx.p, ctx.shared_axes = inputs[:4]
        ctx.scale = scale(inputs)
        ctx.save_for_backward(draw)

    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (draw,) = ctx.saved_tensors
        how = draw, ctx.p, ctx.shared_axes, ctx.scale
        if forward_ad._current_level < 0:
            dx = dropout(dy, *how)
        else:
            dy, tangent = forward_ad.unpack_dual(dy)
            dx = _with_tangent(dropout(dy, *how), tangent, *how)
        return (dx, *(None for _ in ctx.needs_input_grad[1:]))

    op.register_fake(lambda x, *_: torch.empty_like(x))
    op.register_autograd(backward, setup_context=setup)


_differentiate(dropout, lambda inputs: inputs[4])
_differentiate(alpha_dropout, lambda inputs: affine(inputs[2])[0])


MEMORY = 1 << 16  # calls that a checkpoint can go back
_calls: OrderedDict[int, list[int]] = OrderedDict()


@torch.library.custom_op("fastdrop::next_call", mutates_args={"state"})
def next_call(state: Tensor, token: Tensor) -> Tensor:
    """Seed and number of the next call of a module that counts them.

    In a backward pass a forward call is one that a checkpoint computes again. The checkpoint has
    set back PyTorch's generator, so the token tells which it was.
    """
    name = int(token)
    if torch._C._current_graph_task_id() != -1:
        if name not in _calls:
            raise RuntimeError(
                "a Dropout with a seed was called in a backward pass, but not by a checkpoint that "
                "preserves the random state; use preserve_rng_state=True"
            )
        return torch.tensor(_calls[name], dtype=torch.int64)
    draw = state.tolist()
    if draw[1] == -1:  # 2**64 - 1: behind it the state could only begin again
        raise ValueError("a Dropout with a seed has given all its calls; take another seed")
    _calls[name] = draw
    if len(_calls) > MEMORY:
        _calls.popitem(last=False)  # in one piece: two threads may be here
    state[1] += 1
    return torch.tensor(draw, dtype=torch.int64)


next_call.register_fake(lambda state, token: torch.empty_like(state))


if TYPE_CHECKING:
    from torch.nn import Module as _Base  # what comes behind, in all subclasses
else:
    _Base = object


class _Module(_Base):
    """What the modules share; comes before one of ``torch.nn``, which checks p.

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

    axis: ClassVar[dict[int, int]] = {}
    """The axes from this one on share a draw; by the number of axes of the input."""

    def __init__(self, p: float = 0.5, inplace: bool = False, seed: int | None = None) -> None:
        super().__init__(p, inplace)
        self.seed = None if seed is None else uint64(seed, "seed")
        self.state = None if self.seed is None else _state(self.seed, 0)
        self.copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = memo[id(self)] = type(self).__new__(type(self))
        other.__setstate__(deepcopy(vars(self), memo))
        if self.seed is not None:
            other.seed, other.copies = copy_seed(self.seed, self.copies), 0
            other.state = _state(other.seed, 0)
            self.copies += 1
        return other

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return input
        draw, shared_axes = self._draw(), self._shared_axes(input)
        if forward_ad._current_level < 0:
            y = self._op(input, draw, shared_axes)
        else:
            x, dx = forward_ad.unpack_dual(input)
            y = self._op(x, draw, shared_axes)
            y = _with_tangent(y, dx, draw, self.p, shared_axes, self._slope())
        return input.copy_(y) if self.inplace else y

    def _op(self, x: Tensor, draw: Tensor, shared_axes: list[int]) -> Tensor:
        return dropout(x, draw, self.p, shared_axes)

    def _slope(self) -> float | None:
        """The scale of the derivative, as `dropout` takes it."""
        return None

    def _draw(self) -> Tensor:
        token = torch.randint(-(2**63), 2**63 - 1, (2,), device="cpu")
        return token if self.state is None else next_call(self.state, token[0])

    def _shared_axes(self, x: Tensor) -> list[int]:
        if not self.axis:
            return []
        if x.ndim not in self.axis:
            wanted = " or ".join(map(str, self.axis))
            raise ValueError(f"input must have {wanted} axes, got {tuple(x.shape)}")
        return list(range(self.axis[x.ndim], x.ndim))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.state is not None:
            destination[prefix + "state"] = self.state.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        metadata: dict[str, Any],
        strict: bool,
        missing: list[Any],
        unexpected: list[Any],
        errors: list[Any],
    ) -> None:
        """A state dict of ``torch.nn``'s module can be loaded: it leaves the state as it is."""
        saved = state_dict.get(prefix + "state")
        if saved is None or self.state is None:
            super()._load_from_state_dict(
                state_dict, prefix, metadata, strict, missing, unexpected, errors
            )
        else:
            self.state.copy_(saved)
            self.seed = int(saved[0]) & U64

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.seed is None else f", seed={self.seed}")


def _state(seed: int, call: int) -> Tensor:
    """On the CPU, wherever the module goes; no buffer, which would be the same on all ranks."""
    signed = [(number ^ 1 << 63) - (1 << 63) for number in (seed, call)]
    return torch.tensor(signed, dtype=torch.int64, device="cpu")


class Dropout(_Module, nn.Dropout):
    """`fastdrop.dropout` in place of ``nn.Dropout``; takes ``seed=``, too.

    The stored entries of a sparse tensor (COO or CSR) get the dense tensor's mask.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.layout is torch.strided or not self.training:
            return super().forward(input)
        if self.inplace:
            raise ValueError("inplace must be False for sparse tensors, of which y is a new one")
        return _of_stored(input, self._draw(), self.p)


def _of_stored(x: Tensor, draw: Tensor, p: float) -> Tensor:
    """`dropout` of a sparse tensor; its derivatives are those of PyTorch's own operations."""
    if x.layout is torch.sparse_coo:
        x = x.coalesce()
        at = x.indices()
    elif x.layout is torch.sparse_csr:
        each = x.crow_indices().diff().cpu()
        rows = torch.arange(len(each)).repeat_interleave(each)
        at = torch.stack((rows, x.col_indices().cpu()))
    else:
        raise TypeError(f"input must be dense, or sparse as COO or CSR, got {x.layout}")
    if len(at) != x.ndim:
        raise TypeError(f"input must be sparse along all {x.ndim} axes, got {len(at)}")
    seed, call = (number & U64 for number in draw.tolist())
    positions = tuple(at.cpu().numpy())
    keep = torch.from_numpy(keep_mask(x.shape, p, rng=Rng(seed, call), at=positions))
    values = torch.where(keep.to(x.device), x.values() * inverted(p)[0], 0.0)
    if x.layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(
            at, values, x.shape, check_invariants=False, is_coalesced=True
        )
    rows, columns = x.crow_indices(), x.col_indices()
    return torch.sparse_csr_tensor(rows, columns, values, x.shape, check_invariants=False)


class Dropout1d(_Module, nn.Dropout1d):
    """Whole channels of (N, C, L) or (C, L), as ``nn.Dropout1d``; takes ``seed=``, too."""

    axis: ClassVar = {2: 1, 3: 2}


class Dropout2d(_Module, nn.Dropout2d):
    """Whole maps of (N, C, H, W) or (N, C, L), as ``nn.Dropout2d``; takes ``seed=``, too."""

    axis: ClassVar = {3: 2, 4: 2}


class Dropout3d(_Module, nn.Dropout3d):
    """Whole maps of (N, C, D, H, W) or (C, D, H, W), as ``nn.Dropout3d``; takes ``seed=``, too."""

    axis: ClassVar = {4: 1, 5: 2}


class AlphaDropout(_Module, nn.AlphaDropout):
    """`fastdrop.alpha_dropout` in place of ``nn.AlphaDropout``; takes ``seed=``, too."""

    def _op(self, x: Tensor, draw: Tensor, shared_axes: list[int]) -> Tensor:
        return alpha_dropout(x, draw, self.p, shared_axes)

    def _slope(self) -> float:
        return affine(self.p)[0]


class FeatureAlphaDropout(AlphaDropout, nn.FeatureAlphaDropout):
    """Whole maps of (N, C, ...), as ``nn.FeatureAlphaDropout``; takes ``seed=``, too."""

    axis: ClassVar = {2: 2, 3: 2, 4: 2, 5: 2}


REPLACED = {
    getattr(nn, ours.__name__): ours
    for ours in (Dropout, Dropout1d, Dropout2d, Dropout3d, AlphaDropout, FeatureAlphaDropout)
}


def replace(model: nn.Module, seed: int | None = None) -> nn.Module:
    """Put our module wherever the model has ``nn.Dropout`` or one of its kind.

    Rate, mode and names stay; hooks of the old modules are gone. Dropout that is a function call,
    or an argument of another module (attention weights in ``nn.MultiheadAttention``, layers in
    ``nn.LSTM``), is no module and stays.

    Parameters
    ----------
    model : Module
        Is changed.
    seed : int, optional
        Gives each replaced module a seed of its own, else they use PyTorch's random state.

    Returns
    -------
    Module
        The model, or its replacement if it is itself one of these.
    """
    rng = None if seed is None else Rng(seed)
    new: dict[nn.Module, nn.Module] = {}
    for old in model.modules():
        ours = REPLACED.get(type(old))
        if ours:
            own = None if rng is None else rng.spawn(1)[0].seed
            new[old] = ours(old.p, old.inplace, own).train(old.training)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in new:
                parent._modules[name] = new[child]
    return new.get(model, model)
