"""What all layers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fastdrop.base import gate
from fastdrop.rng import Rng, RngLike, draw_call

__all__ = ["Layer", "OpLayer", "Rate"]

Rate = float | Callable[[int], float]  # a rate, or a function of the step
NO_RATE: Any = object()


class Layer:
    """A mode, a random state, a rate, and the context of the last call.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An `Rng` or a NumPy Generator is used as it is and may be shared by many layers; anything
        else seeds an `Rng` of the layer's own, so that successive calls draw different masks. Two
        layers with the same int draw the same masks: give one `Rng` to all layers of a model.
    p : float or callable
        Rate in [0, 1], or a function of the step, such as those of `fastdrop.schedules`. Can be
        assigned between calls.

    Attributes
    ----------
    training : bool
        Set by `train` and `eval`.
    step : int
        What a rate that is a function is called with; counts the calls in training mode. Assign it
        where a step is not a call.
    gradients : dict of str to ndarray
        Those of the learned parameters, after `backward`.
    """

    learned: tuple[str, ...] = ()
    """Attributes that are learned, in the order of what ``ctx.backward`` returns behind dx."""

    def __init__(self, rng: RngLike = None, p: Rate = NO_RATE) -> None:
        shared = isinstance(rng, Rng | np.random.Generator | np.random.BitGenerator)
        self.rng: RngLike = rng if shared else Rng(*draw_call(rng))
        if p is not NO_RATE:
            self.p: Rate = p if callable(p) else gate.rate(p)
        self.step = 0
        self.training = True
        self._ctx: Any = None
        self.gradients: dict[str, npt.NDArray] = {}

    @property
    def ctx(self) -> Any:
        """Context of the last call; None before it."""
        return self._ctx

    @ctx.setter
    def ctx(self, ctx: Any) -> None:
        self._ctx = ctx
        self.step += self.training  # here, as a call that fails is no step

    @property
    def parameters(self) -> dict[str, npt.NDArray]:
        """The learned parameters: the arrays themselves, to be updated in place."""
        return {name: getattr(self, name) for name in self.learned}

    def train(self, mode: bool = True) -> Self:
        """Drop from now on (or, with False, no more). Returns the layer."""
        self.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Pass inputs through from now on. Returns the layer."""
        return self.train(False)

    def share_batch(self) -> None:
        """From now on apply one function to all examples of a batch: share draws along axis 0.

        Raises
        ------
        TypeError
            A layer that cannot, as each example has a draw of its own by definition.
        """
        axes = getattr(self, "shared_axes", None)
        if axes is None:
            raise TypeError(f"{self!r} draws for each example; it has no shared_axes")
        axes = tuple(axes) if np.iterable(axes) else (axes,)
        self.shared_axes = axes if 0 in axes else (0, *axes)

    def rate(self) -> float:
        """The rate of this step."""
        return self.p(self.step) if callable(self.p) else self.p

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray | None = None) -> Any:
        """Gradient with respect to the input of the last call (a tuple if there were several).

        Those of the learned parameters go to `gradients`.
        """
        if self.ctx is None:
            raise RuntimeError("backward needs a forward call of the layer before it")
        if out is not None and not _takes_out(type(self.ctx)):
            raise TypeError(f"out is not taken by the backward pass of {type(self).__name__}")
        grads = self.ctx.backward(dy) if out is None else self.ctx.backward(dy, out)
        if not self.learned:
            return grads
        inputs = len(grads) - len(self.learned)
        self.gradients = dict(zip(self.learned, grads[inputs:], strict=True))
        return grads[0] if inputs == 1 else grads[:inputs]


class OpLayer(Layer):
    """A layer that is one op and its arguments, which can be assigned between calls.

    A subclass is derived from its op: ``class Dropout(OpLayer, op=dropout)`` takes the arguments of
    `dropout`, except for those that belong to one call.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        As in `Layer`.
    *args, **kwargs
        Those of the op.
    """

    op: ClassVar[Callable[..., tuple[Any, Any]]]
    fields: ClassVar[tuple[str, ...]] = ()
    """The op's arguments that the layer keeps."""

    def __init_subclass__(
        cls, op: Callable[..., tuple[Any, Any]] | None = None, inputs: int = 1
    ) -> None:
        """inputs: how many of the op's first arguments are arrays. Without an op a subclass has
        that of its base.
        """
        if op is None:
            return
        cls.op = staticmethod(op)
        own = list(signature(op).parameters.values())[inputs:]
        kept = [p for p in own if p.name not in OF_A_CALL]
        cls.fields = tuple(p.name for p in kept)
        rng = Parameter("rng", Parameter.KEYWORD_ONLY, default=None)
        cls.__signature__ = Signature([*kept, rng])  # type: ignore[attr-defined]
        cls.__doc__ = _documented(op, cls.fields)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = signature(type(self)).bind(*args, **kwargs)
        given.apply_defaults()
        values = given.arguments
        super().__init__(values["rng"], values.get("p", NO_RATE))
        for name in self.fields:
            if name != "p":
                CHECKS.get(name, _anything)(values[name])
                setattr(self, name, values[name])

    def __call__(self, x: npt.ArrayLike, out: npt.NDArray | None = None) -> Any:
        """y, an array like x."""
        return self._run(x, out=out)

    def _run(self, *inputs: npt.ArrayLike, **more: Any) -> Any:
        """Calls the op with what the layer keeps, and keeps its context."""
        more.update((name, getattr(self, name)) for name in self.fields)
        if "p" in more:
            more["p"] = self.rate()
        op = type(self).op
        y, self.ctx = op(*inputs, rng=self.rng, training=self.training, **more)
        return y

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.fields)
        return f"{type(self).__name__}({arguments})"


OF_A_CALL = "rng", "training", "region", "out"  # arguments of ops that a layer does not keep

CHECKS: dict[str, Callable[[Any], Any]] = {
    "save": gate.keeps_bits,
    "mode": lambda value: gate.choice(value, ("row", "batch"), "mode"),
    "block_size": lambda value: gate.count(value, "block_size"),
    "std": lambda value: gate.real(value, "std", 0.0),
}
"""Arguments that are checked when a layer is made, not only when it is called."""


def _anything(value: Any) -> None:
    """What the op checks at each call."""


def _documented(op: Callable[..., Any], fields: tuple[str, ...]) -> str:
    name = op.__name__
    rate = "p" in fields
    lines = [f"`fastdrop.{name}` as a layer: ``layer(x)``, ``layer.backward(dy)``.", ""]
    lines += ["Parameters", "----------"]
    if rate:
        lines += ["p : float or callable", "    The rate, or a function of the step; see `Layer`."]
    if others := ", ".join(field for field in fields if field != "p"):
        lines += [others, f"    As in `fastdrop.{name}`."]
    lines += ["rng : Rng, int, None, SeedSequence, Generator or BitGenerator", "    As in `Layer`."]
    return "\n".join(lines) + "\n"


@cache  # looking at a signature takes longer than the backward pass of 64 Ki elements
def _takes_out(context: type) -> bool:
    return "out" in signature(context.backward).parameters
