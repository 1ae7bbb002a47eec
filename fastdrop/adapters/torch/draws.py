"""Which mask a call draws: seed and call, from PyTorch's generator or of a module's own."""

from __future__ import annotations

from collections import OrderedDict
from itertools import count
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn import functional as F

from fastdrop.adapters.torch.kernels import U64, Numbers
from fastdrop.rng import uint64


def as_tensor(draw: Numbers) -> Tensor:
    """Two int64 of the same bits; on the CPU, wherever a module goes."""
    if torch._C._are_functorch_transforms_active():  # in which it would be a value of the transform
        with temporarily_clear_interpreter_stack():
            return as_tensor(draw)
    return torch.tensor(_signed(draw), dtype=torch.int64, device="cpu")


def _signed(draw: tuple[int, ...]) -> list[int]:
    return [(number ^ 1 << 63) - (1 << 63) for number in draw]


class _Room(local):
    """A thread's, where its generator's numbers come in; new memory each time takes longer."""

    def __init__(self) -> None:
        with torch.inference_mode(False):
            self.tensor = torch.empty(2, dtype=torch.int64, device="cpu")
        self.array = self.tensor.numpy()


_room = _Room()


def _token() -> Numbers:
    """63 random bits each."""
    if torch._C._are_functorch_transforms_active():
        with temporarily_clear_interpreter_stack():
            return _token()
    _room.tensor.random_()
    first, second = _room.array.tolist()
    return first, second


class FromGenerator:
    """By PyTorch's CPU generator, so that ``torch.manual_seed`` repeats them."""

    named = False

    numbers = staticmethod(_token)

    def __reduce__(self) -> str:
        return "FROM_GENERATOR"

    @staticmethod
    def tensor() -> Tensor:
        """Of PyTorch's own dropout, whose outcome a compiler with a memory budget saves for the
        backward pass; it would draw other integers there a second time."""
        bits = F.dropout(torch.ones((2, 63), device="cpu"), 0.5) != 0
        return (bits * torch.pow(2, torch.arange(63, device="cpu"))).sum(1)


FROM_GENERATOR = FromGenerator()

MEMORY = 1 << 16  # calls that a checkpoint can go back
_calls: OrderedDict[tuple[int, ...], list[int]] = OrderedDict()
_counters = count()
_lock = Lock()


@torch.library.custom_op("fastdrop::next_call", mutates_args={"state"})
def next_call(state: Tensor, token: Tensor) -> Tensor:
    """Seed and number of the next call of a module that counts them; token: int64, of any shape."""
    draw = _next(state, int(state[2]), tuple(token.flatten().tolist()))
    return torch.tensor(draw, dtype=torch.int64)


next_call.register_fake(lambda state, token: state.new_empty(2))


@next_call.register_vmap
def _(info: Any, in_dims: Any, state: Tensor, token: Tensor) -> tuple[Tensor, int]:
    """All examples are one call."""
    return next_call(state, token.movedim(in_dims[1], 0)).expand(info.batch_size, 2), 0


def _next(state: Tensor | np.ndarray[Any, Any], owner: int, token: tuple[int, ...]) -> list[int]:
    """In a backward pass a forward call is one that a checkpoint computes again. The checkpoint has
    set back PyTorch's generator, so the token tells which of the owner's calls it was."""
    with _lock:
        seed, call = state[:2].tolist()
        name = owner, seed, *token
        if torch._C._current_graph_task_id() != -1:
            if name not in _calls:
                raise RuntimeError(
                    "a Dropout with a seed was called in a backward pass, but not by a checkpoint "
                    "that preserves the random state; use preserve_rng_state=True"
                )
            return _calls[name]
        if call == -1:  # 2**64 - 1: behind it the state could only begin again
            raise ValueError("a Dropout with a seed has given all its calls; take another seed")
        if token:
            _calls[name] = [seed, call]
            if len(_calls) > MEMORY:
                _calls.popitem(last=False)
        state[1] += 1
    return [seed, call]


class Counted:
    """By a seed; the calls are counted.

    A checkpoint computes a call again with its mask. Its forward pass is one of an
    ``autograd.Function``, which knows no forward-mode derivatives, or sees what is saved for the
    backward pass. Only there PyTorch's generator is asked for a number, by which the call is known
    again.
    """

    named = True

    def __init__(self, seed: int, call: int = 0) -> None:
        self.array = np.array([*_signed((seed, call)), next(_counters)], np.int64)
        with temporarily_clear_interpreter_stack():
            self.state = torch.from_numpy(self.array)  # no buffer, as ranks' would be the same

    def __reduce__(self) -> tuple[Any, ...]:
        return Counted, (self.seed, self.call)

    def numbers(self) -> Numbers:
        again = (
            not (torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled())
            or torch._C._current_graph_task_id() != -1
            or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        )
        again = again and not torch._C._are_functorch_transforms_active()
        seed, call = _next(self.array, self.owner, _token() if again else ())
        return seed & U64, call & U64

    def tensor(self) -> Tensor:
        return next_call(self.state, FROM_GENERATOR.tensor())

    def reset(self, call: int) -> None:
        """`call` is the next."""
        with _lock:
            self.array[1:2] = _signed((call,))

    @property
    def owner(self) -> int:
        """Whose calls these are; no two in a process have the same."""
        return int(self.array[2])

    @property
    def seed(self) -> int:
        return int(self.array[0]) & U64

    @property
    def call(self) -> int:
        return int(self.array[1]) & U64


class Named:
    """One mask, by the caller's numbers."""

    named = True

    def __init__(self, seed: int, call: int) -> None:
        self.draw = uint64(seed, "seed"), uint64(call, "call")

    def numbers(self) -> Numbers:
        return self.draw

    def tensor(self) -> Tensor:
        return as_tensor(self.draw)


class Once:
    """The next draw of others, for several tensors."""

    named = True

    def __init__(self, draws: Any) -> None:
        self.draws = draws
        self.drawn: Any = None

    def numbers(self) -> Numbers:
        if self.drawn is None:
            self.drawn = self.draws.numbers()
        numbers: Numbers = self.drawn
        return numbers

    def tensor(self) -> Tensor:
        if self.drawn is None:
            self.drawn = self.draws.tensor()
        tensor: Tensor = self.drawn
        return tensor
