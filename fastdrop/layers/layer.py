"""What all layers share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop.base import gate, words
from fastdrop.layers.saving import Stateful
from fastdrop.rng import LayerRng, Rng, RngLike

__all__ = ["Layer", "OpLayer", "Rate"]

Rate = float | Callable[[int], float]  # a rate, or a function of the step
NO_RATE: Any = object()


Call = tuple[Any, int, int]
"""A context, the bytes that it keeps from being freed, and those of it and of all calls below it,
forgotten ones included.
"""


class Calls:
    """One mode's calls that no backward pass has undone yet.

    At most `MOST` of them, and with their inputs at most `BYTES`, the latest aside: the oldest are
    forgotten, so a layer that is never asked for a gradient does not grow.
    """

    MOST, BYTES = 1024, 1 << 28

    def __init__(self, most: int = MOST) -> None:
        self.stack: deque[Call] = deque()
        self.most, self.lost = most, False

    def entry(self, ctx: Any) -> Call:
        """What is appended to the stack for a call with this context."""
        held = _held(ctx)
        return ctx, held, held + (self.stack[-1][2] if self.stack else 0)

    @property
    def nbytes(self) -> int:
        """What all of them hold."""
        if not self.stack:
            return 0
        (_, held, first), (_, _, last) = self.stack[0], self.stack[-1]
        return held + last - first

    def trim(self) -> None:
        """Forget the oldest that are too many."""
        stack = self.stack
        while len(stack) > 1:
            (_, held, first), (_, _, last) = stack[0], stack[-1]
            if len(stack) <= self.most and held + last - first <= self.BYTES:
                return
            self.lost = True
            stack.popleft()


class Modes(dict[bool, Calls]):
    """The calls of training, and those of evaluation."""

    def __missing__(self, mode: Any) -> Calls:
        raise TypeError(f"training must be True or False, got {mode!r}; train() and eval() set it")


def _held(ctx: Any) -> int:
    """Bytes that a context keeps from being freed, parameters aside; of none of ours, 0."""
    x, own = getattr(ctx, "x", None), getattr(ctx, "nbytes", 0)
    return own if x is None else max(own, x.nbytes)


class Layer(Stateful):
    """A mode, a random state, a rate, and the contexts of its calls.

    Calls are undone in reverse order, as in a network that uses a layer more than once: each
    `backward` belongs to the latest call, in the mode that the layer is in, that has not been gone
    back through. So a pass in evaluation mode between the two does not matter. In evaluation mode
    only the last call is kept. `forward` returns the context instead, and keeps nothing.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        An `Rng` or a NumPy Generator is used as it is and may be shared by many layers; anything
        else seeds an `Rng` of the layer's own, so that successive calls draw different masks. Two
        layers with the same int draw the same masks: give one `Rng` to all layers of a model. A
        copy of a layer draws other masks than the layer, unless it uses what you have given. A
        SeedSequence is a seed of yours like an int, even one whose entropy NumPy has chosen.
        Layers that share an `Rng` share it after a pickle, too, if one pickle holds all of them:
        pickle the model. Pickled one by one, each gets an `Rng` of its own with the same state, and
        they draw the same masks.
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
    parameters : dict of str to ndarray
        What is learned: the arrays themselves, to be updated in place.
    gradients : dict of str to ndarray
        Those of the learned parameters, after `backward`.
    state : tuple
        (info, arrays), as `fastdrop.layers.state` has them, of this layer alone. Assign both to a
        layer that was made in the same way, and it goes on as this one does.
    """

    shared_axes: int | Sequence[int]
    """Of layers whose op takes them."""
    _ctx: Any

    def __init_subclass__(cls) -> None:
        """The constructor of each kind of layer tells the right word for a wrong one."""
        if "__init__" in vars(cls):
            cls.__init__ = words.binding(cls.__init__, 1)  # type: ignore[method-assign]

    def __init__(self, rng: RngLike = None, p: Rate = NO_RATE) -> None:
        shared = isinstance(rng, Rng | np.random.Generator | np.random.BitGenerator)
        self.rng: RngLike = rng if shared else LayerRng.of(rng)
        if p is not NO_RATE:
            self.p: Rate = p if callable(p) else gate.rate(p)
        self.step = 0
        self.training = True
        self.forget()
        self.gradients: dict[str, npt.NDArray[Any]] = {}

    @property
    def ctx(self) -> Any:
        """Context of the last call, whether it has been undone or not; None before it."""
        return self._ctx

    def __copy__(self) -> Self:
        """Shares the random state, and so draws other masks; has no call to go back through."""
        copied = object.__new__(type(self))
        vars(copied).update(vars(self), gradients=dict(self.gradients))
        copied.forget()
        return copied

    def forget(self) -> None:
        """Drop the contexts of all calls."""
        self._ctx = None
        self._calls = Modes({True: Calls(), False: Calls(most=1)})

    def forward(self, *inputs: Any, **options: Any) -> tuple[npt.NDArray[Any], Any]:
        """(y, ctx) of a call, of which the layer keeps nothing: ``ctx.backward(dy)`` undoes it.

        Takes what calling the layer takes. Gradients of learned parameters are behind those of the
        inputs in what ``ctx.backward`` returns.
        """

        def body() -> tuple[Any, dict[str, Any], None]:
            result = self._forward(*inputs, **options)
            return result, {"step": self.step + self.training}, None

        return _core.in_one_step(body, vars(self), self._calls[self.training].stack)

    def __call__(self, *inputs: Any, **options: Any) -> npt.NDArray[Any]:
        """y, an array like x."""
        return self._kept(self._forward, self._changes, inputs, options)

    def _changes(self, ctx: Any) -> dict[str, Any]:
        """The attributes that a call changes."""
        return {"_ctx": ctx, "step": self.step + self.training}

    def _kept(
        self,
        forward: Callable[..., tuple[Any, Any]],
        changes: Callable[[Any], dict[str, Any]],
        inputs: tuple[Any, ...],
        options: dict[str, Any],
    ) -> Any:
        """y of forward, whose context becomes the latest in one step with other changes."""
        calls = self._calls[self.training]

        def body() -> tuple[Any, dict[str, Any], Call]:
            y, ctx = forward(*inputs, **options)
            return y, changes(ctx), calls.entry(ctx)

        y = _core.in_one_step(body, vars(self), calls.stack)
        calls.trim()
        return y

    def _forward(self, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        """What a call does."""
        raise NotImplementedError(f"{type(self).__name__} is a base")

    def train(self, mode: bool = True) -> Self:
        """Drop from now on (or, with False, no more). Returns the layer."""
        self.training = gate.flag(mode, "mode")
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

    def backward(self, dy: npt.ArrayLike, out: npt.NDArray[Any] | None = None) -> Any:
        """Gradient with respect to the input of the latest call that has not been undone in this
        mode (a tuple if there were several inputs).

        Those of the learned parameters go to `gradients`.

        Raises
        ------
        RuntimeError
            No such call.
        """
        stack = self._calls[self.training].stack
        if not stack:
            raise RuntimeError(self._nothing_to_undo())

        def body(call: Call) -> tuple[Any, dict[str, Any]]:
            ctx, *_ = call
            if out is not None and not _takes_out(type(ctx)):  # type: ignore[arg-type]  # a class can be hashed
                raise TypeError(f"out is not taken by the backward pass of {type(self).__name__}")
            grads = ctx.backward(dy) if out is None else ctx.backward(dy, out)
            if not self.learned:
                return grads, {}
            inputs, learned = self._divided(grads)
            return inputs, {"gradients": learned}

        return _core.with_last(stack, body, out, vars(self))

    def _divided(self, grads: Any) -> tuple[Any, dict[str, npt.NDArray[Any]]]:
        """The gradients of the inputs, and those of the learned parameters."""
        inputs = len(grads) - len(self.learned)
        learned = dict(zip(self.learned, grads[inputs:], strict=True))
        return grads[0] if inputs == 1 else grads[:inputs], learned

    def _nothing_to_undo(self) -> str:
        mode = "training" if self.training else "evaluation"
        if self._calls[not self.training].stack:
            return f"backward needs a forward call in {mode} mode; there was one in the other mode"
        if self._calls[self.training].lost:
            return (
                f"backward needs a forward call in {mode} mode, and what earlier ones left was "
                "forgotten: y, ctx = layer.forward(x) leaves it to you"
            )
        return (
            "backward needs a forward call of the layer before it, and each call is undone once: "
            "y, ctx = layer.forward(x) gives a context that can be used again"
        )


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

    _op: ClassVar[Callable[..., tuple[Any, Any]]]
    _kept_options: ClassVar[tuple[str, ...]] = ()
    """The op's arguments that the layer keeps."""
    _inputs: ClassVar[int] = 1
    """How many arrays a call takes."""
    _of_a_call: ClassVar[frozenset[str]] = frozenset()
    """The op's arguments that belong to a call of the layer."""

    def __init_subclass__(
        cls, op: Callable[..., tuple[Any, Any]] | None = None, inputs: int = 1
    ) -> None:
        """inputs: how many of the op's first arguments are arrays. Without an op a subclass has
        that of its base.
        """
        super().__init_subclass__()
        if op is None:
            return
        cls._op, cls._inputs = staticmethod(op), inputs
        own = list(signature(op).parameters.values())[inputs:]
        kept = [p for p in own if p.name not in OF_A_CALL]
        cls._kept_options = tuple(p.name for p in kept)
        cls._of_a_call = frozenset(p.name for p in own) & {"region", "rows", "mask", "out"}
        rng = Parameter("rng", Parameter.KEYWORD_ONLY, default=None)
        cls.__signature__ = Signature([*kept, rng])  # type: ignore[attr-defined]  # for inspect
        cls.__doc__ = _documented(op, cls._kept_options)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            given = signature(type(self)).bind(*args, **kwargs)
        except TypeError:
            words.explain(type(self), args, kwargs)
            raise
        given.apply_defaults()
        values = given.arguments
        super().__init__(values["rng"], values.get("p", NO_RATE))
        for name in self._kept_options:
            if name != "p":
                check: Callable[[Any], Any] = CHECKS.get(name, _anything)
                check(values[name])
                setattr(self, name, values[name])

    if TYPE_CHECKING:
        # The arguments that the layer keeps; their names are the op's.
        def __getattr__(self, name: str) -> Any: ...

        def __setattr__(self, name: str, value: Any) -> None: ...

    def _forward(self, *inputs: Any, **options: Any) -> tuple[Any, Any]:
        if len(inputs) == self._inputs + 1 and "out" in self._of_a_call:  # by position
            *inputs, options["out"] = inputs
        if len(inputs) != self._inputs or not options.keys() <= self._of_a_call:
            raise TypeError(self._refused(len(inputs), options))
        options.update((name, getattr(self, name)) for name in self._kept_options)
        if "p" in options:
            options["p"] = self.rate()
        return type(self)._op(*inputs, rng=self.rng, training=self.training, **options)

    def _refused(self, inputs: int, options: dict[str, Any]) -> str:
        """Why a call with so many arrays and these options cannot be."""
        name = type(self).__name__
        wrong = ", ".join(options.keys() - self._of_a_call)
        if wrong in self._kept_options:
            return f"{wrong} belongs to the layer: assign layer.{wrong}, or call fastdrop's op"
        if wrong:
            also = "; train() and eval() set the mode" if "train" in wrong else ""
            takes = f"takes {', '.join(sorted(self._of_a_call)) or 'nothing'} beside its input"
            return f"a call of {name} {takes}, got {wrong}{also}"
        also = " and out" if "out" in self._of_a_call else ""
        return f"a call of {name} takes {self._inputs} arrays{also}, got {inputs} arrays"

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._kept_options)
        return f"{type(self).__name__}({arguments})"


# Arguments of ops that a layer does not keep.
OF_A_CALL = "rng", "training", "region", "rows", "mask", "out"

CHECKS: dict[str, Callable[[Any], Any]] = {
    "save": gate.keeps_bits,
    "mode": lambda value: gate.choice(value, ("row", "batch"), "mode"),
    "block_size": lambda value: gate.count(value, "block_size"),
    "std": lambda value: gate.real(value, "std", 0.0),
    "scale": lambda value: gate.real(value, "scale"),
    "causal": lambda value: gate.flag(value, "causal"),
    "axis": lambda value: gate.integer(value, "axis", "an int"),
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
def _takes_out(context: type[Any]) -> bool:
    return "out" in signature(context.backward).parameters
