"""What modules share whose masks can be named: a seed, the number of the next call, copies."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from torch.fx import Proxy

from fastdrop.adapters.torch.draws import FROM_GENERATOR, Counted
from fastdrop.adapters.torch.kernels import DTYPES
from fastdrop.rng import copy_seed, uint64

if TYPE_CHECKING:
    from torch.nn import Module as _Base  # what comes behind, in all subclasses
else:
    _Base = object


class Seeded(_Base):
    """Comes before a class of ``torch.nn``; a constructor calls `adopt`.

    A copy (``copy.deepcopy``, as in ``nn.TransformerEncoder``) runs beside the module: it gets a
    seed of its own, which follows from the module's.
    """

    def adopt(self, seed: int | None) -> None:
        """Sets what ``torch.nn``'s module has not."""
        self.draws = FROM_GENERATOR if seed is None else Counted(uint64(seed, "seed"))
        self.copies = 0

    @property
    def seed(self) -> int | None:
        """Of the masks; None: PyTorch's generator gives them."""
        return self.draws.seed if isinstance(self.draws, Counted) else None

    @property
    def call(self) -> int | None:
        """Number of the next call, if the module has a seed."""
        return self.draws.call if isinstance(self.draws, Counted) else None

    def reset(self, call: int = 0) -> None:
        """The next call draws the mask of this number; for modules with a seed."""
        if not isinstance(self.draws, Counted):
            raise ValueError("the module has no seed whose calls are counted; use manual_seed")
        self.draws.reset(uint64(call, "call"))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = memo[id(self)] = type(self).__new__(type(self))
        state = {name: value for name, value in vars(self).items() if name != "draws"}
        other.__setstate__({"draws": FROM_GENERATOR, **deepcopy(state, memo)})
        if self.seed is not None:
            other.adopt(copy_seed(self.seed, self.copies))
            self.copies += 1
        return other

    def forward(self, *inputs: Any) -> Tensor:
        """By `_train` or `_eval`."""
        if any(isinstance(x, Proxy) for x in inputs):
            return self._node(inputs, {})
        return self._train(*inputs) if self.training else self._eval(*inputs)

    def _node(self, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One node of ``torch.fx``, which asks for the mode when it runs."""
        tracer = next(x.tracer for x in inputs if isinstance(x, Proxy))
        options = {name: value for name, value in options.items() if value is not None}
        name = tracer.path_of_module(self)
        return tracer.create_proxy("call_module", name, inputs, options)

    def _train(self, *inputs: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} says not what it does in training")

    def _eval(self, *inputs: Any) -> Tensor:
        """The input."""
        x: Tensor = inputs[0]
        return x

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """The call number goes to the metadata: no key, that others would not expect."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        metadata = getattr(destination, "_metadata", None)
        if self.seed is not None and metadata is not None:
            metadata[prefix[:-1]]["fastdrop_call"] = self.call

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *others: Any
    ) -> None:
        """The seed stays: it is this rank's, and the state dict may be another's."""
        super()._load_from_state_dict(state_dict, prefix, metadata, *others)
        call = metadata.get("fastdrop_call")
        if call is not None and self.seed is not None:
            self.reset(call)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.seed is None else f", seed={self.seed}")


def served(x: Tensor) -> None:
    """Raises TypeError for what no kernel takes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES or x.is_nested:
        kind = "nested" if x.is_nested else str(x.dtype).removeprefix("torch.")
        raise TypeError(
            "input must be a tensor of float16, bfloat16, float32 or float64 that is not nested, "
            f"got {kind}"
        )


def eval_script(module: Any) -> nn.Module:
    """What TorchScript gets, which has no custom operators written in Python."""
    if module.training:
        raise RuntimeError(f"TorchScript takes {type(module).__name__} in eval mode alone")
    return nn.Identity()
