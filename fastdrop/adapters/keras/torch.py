"""The PyTorch backend of Keras: the roads and draws of `fastdrop.adapters.torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from keras.src.backend.common.stateless_scope import in_stateless_scope

import fastdrop as fd
from fastdrop.adapters.torch.draws import Counted
from fastdrop.adapters.torch.kernels import How, dropped
from fastdrop.ops.door import ALPHA_DROPOUT, DROPOUT

OPS = {"dropout": DROPOUT, "alpha_dropout": ALPHA_DROPOUT}


class Draws(Counted):
    """The calls of a layer, which its seed generator counts.

    A pass that is computed again (``keras.RematScope``) has its masks again, as those of a module
    of PyTorch's adapter that has a seed.
    """

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    @property
    def array(self) -> Any:  # type: ignore[override]  # Keras's tensor, in which calls are counted
        state = self.generator.state
        if in_stateless_scope():  # it was given, and stays as it is
            state.assign(state.value.clone())
        return state.value

    @property
    def owner(self) -> int:
        return id(self.generator)

    def tensor(self) -> Any:
        """Of a graph, which knows what Keras does."""
        return self.generator.next()


def drop(op: str, x: Any, amount: float, generator: Any, shared_axes: list[int]) -> Any:
    """What a layer does in training, as the other backends do it."""
    draws = Draws(generator)
    if op in OPS:
        return dropped(x, draws, How(amount, OPS[op], tuple(shared_axes)))
    return _noisy(op, x, amount, draws)


@torch.compiler.disable
def _noisy(op: str, x: Any, amount: float, draws: Draws) -> Any:
    wide = np.float64 if x.dtype is torch.float64 else np.float32
    rng, shape = fd.Rng(*draws.numbers()), tuple(x.shape)
    if op == "gaussian_dropout":
        factor, _ = fd.gaussian_dropout(np.ones(shape, wide), amount, rng=rng)
        return (x * torch.from_numpy(factor).to(x.device)).to(x.dtype)
    noise, _ = fd.gaussian_noise(np.zeros(shape, wide), amount, rng=rng)
    return (x + torch.from_numpy(noise).to(x.device)).to(x.dtype)
