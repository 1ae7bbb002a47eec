"""DropConnect: a linear layer that drops weights, with a mask for each example if it is to be."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from fastdrop._core import Draw, Place
from fastdrop.adapters.torch.draws import Once, as_tensor
from fastdrop.adapters.torch.kernels import (
    TERMS,
    How,
    array,
    as_numbers,
    drawn,
    dropped,
    is_traced,
)
from fastdrop.adapters.torch.seeded import Seeded, eval_script, served
from fastdrop.base import gate
from fastdrop.ops.door import inverted
from fastdrop.ops.dropconnect import MODES, PerExample, dropconnect
from fastdrop.rng import Rng


@torch.library.custom_op("fastdrop::dropconnect", mutates_args=())
def connect_op(x: Tensor, weight: Tensor, bias: Tensor | None, draw: Tensor, p: float) -> Tensor:
    """With a mask for each example. weight: (outputs, inputs), as PyTorch's."""
    masked_bias = None if bias is None else array(bias)
    rng = Rng(*as_numbers(draw))
    y, _ = dropconnect(array(x), array(weight.t()), masked_bias, p, rng=rng)
    return torch.as_tensor(y)


@torch.library.custom_op("fastdrop::dropconnect_backward", mutates_args=())
def connect_backward_op(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, draw: Tensor, p: float
) -> list[Tensor]:
    """Gradients of x, weight and, if there is one, bias."""
    drawn_for = Place((prod(x.shape[:-1]), len(weight)))
    ctx = PerExample.made(
        tuple(x.shape),
        Draw(*as_numbers(draw), p, drawn_for),
        inverted(p)[0],
        None,
        **{"x": array(x.contiguous()), "weight": array(weight.t().contiguous())},
        **{"bias": None if bias is None else array(bias), "mask_bias": True, "first": 0},
    )
    dx, dweight, *dbias = (torch.as_tensor(each) for each in ctx.backward(array(dy)))
    return [dx, dweight.t().contiguous(), *dbias]


@connect_op.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@connect_backward_op.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> list[Tensor]:
    inputs = (x, weight) if bias is None else (x, weight, bias)
    return [torch.empty(each.shape, dtype=x.dtype, device=x.device) for each in inputs]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.p = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight, bias, draw = ctx.saved_tensors
    dx, dweight, *dbias = connect_backward_op(dy, x, weight, bias, draw, ctx.p)
    return dx, dweight, dbias[0] if dbias else None, None, None


connect_op.register_autograd(_backward, setup_context=_setup)


class DropConnect(Seeded, nn.Linear):
    """``nn.Linear`` each of whose weights is dropped with chance p, as by `fastdrop.dropconnect`.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    p : float
        Drop rate in [0, 1].
    mode : {"example", "batch", "gaussian"}
        A mask for each example, which is never stored, in float32 or float64; one for all of them;
        or normal variates of the mean and variance that masks for each example give.
    mask_bias : bool
        If False, no bias is dropped or scaled.
    seed
        As in `Dropout`.
    device, dtype
        As in ``nn.Linear``.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        mode: str = "example",
        mask_bias: bool = True,
        seed: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.adopt(seed)
        self.p, self.mode = gate.rate(p), gate.choice(mode, tuple(MODES), "mode")
        self.mask_bias = gate.flag(mask_bias, "mask_bias")

    def __prepare_scriptable__(self) -> nn.Module:
        eval_script(self)
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        linear.weight, linear.bias = self.weight, self.bias
        return linear

    def _eval(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def _train(self, x: Tensor) -> Tensor:
        if not self.p:
            return self._eval(x)
        served(x)
        bias = self.bias if self.mask_bias else None
        mode = "batch" if self.p == 1.0 else self.mode  # nothing is kept in any
        y: Tensor = getattr(self, f"_{mode}")(x, bias)
        return y if self.bias is None or self.mask_bias else y + self.bias

    def _example(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                'mode="example" has no forward-mode derivative and no torch.func transform, as its '
                'masks are never there: take mode="batch" or "gaussian", or torch.autograd.grad'
            )
        draw = self.draws.tensor() if is_traced(x) else as_tensor(self.draws.numbers())
        y: Tensor = connect_op(x, self.weight, bias, draw, self.p)
        return y

    def _batch(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """fastdrop's weights are (inputs, outputs); the bits of the bias are behind theirs."""
        draws, weight = Once(self.draws), self.weight.t()
        weight = dropped(weight, draws, How(self.p))
        if bias is not None:
            size = weight.numel()
            behind = (size,), (size + bias.numel(),)
            bias = dropped(bias, draws, How(self.p, region=behind))
        return F.linear(x, weight.t(), bias)

    def _gaussian(self, x: Tensor, bias: Tensor | None) -> Tensor:
        mean = F.linear(x, self.weight, bias)
        squares = F.linear(x * x, self.weight * self.weight, None if bias is None else bias * bias)
        variance = squares * (self.p / (1.0 - self.p))
        some = variance > 0.0  # where there is none, the root has no gradient
        sigma = torch.where(some, torch.where(some, variance, 1.0).sqrt(), 0.0)
        noise = drawn(mean, self.draws, How(0.0, scale=1.0), TERMS)
        return mean + sigma * noise.to(mean.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}, mode={self.mode}, mask_bias={self.mask_bias}"
