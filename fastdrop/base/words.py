"""Words that people bring from other libraries, and what stands here in their place: for errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from inspect import Parameter, signature
from typing import Any

KEYWORDS = {
    **dict.fromkeys(("rate", "prob", "probability", "drop_prob", "drop_rate"), "p, the drop rate"),
    "keep_prob": "p, the drop rate, which is 1 - keep_prob",
    **dict.fromkeys(("seed", "key", "generator", "random_state", "random_seed"), "rng"),
    **dict.fromkeys(("train", "is_training", "is_train"), "training"),
    "deterministic": "training, which is its opposite",
    "noise_shape": "shared_axes, the axes where noise_shape is 1",
    **dict.fromkeys(("broadcast_dims", "axis", "axes", "dim"), "shared_axes"),
    "inplace": "out, which may be x itself",
}

NAMES = {
    **dict.fromkeys(("seed", "manual_seed", "set_seed"), "Rng(seed), given to ops as rng="),
    "Generator": "Rng",
    "no_dropout": "training=False",
    "Sequential": "a list of layers; fastdrop has no networks",
}


def advice(wrong: str, known: Iterable[str]) -> str:
    """What to say of a keyword that is none of the known ones."""
    meant = KEYWORDS.get(wrong, "")
    meant = meant if meant.partition(",")[0] in known else ""
    return f"it is called {meant}" if meant else f"there are {', '.join(known)}"


def binding(function: Callable[..., Any], skipped: int = 0) -> Callable[..., Any]:
    """The function; a call that does not fit its parameters is told which are meant.

    It costs a call some 150 ns, so that it is for what is not called in a loop. The parameters of a
    method are told without the first: skipped = 1.
    """

    @wraps(function)
    def bound(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            explain(function, args, kwargs, skipped)
            raise

    return bound


def explain(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], skipped: int = 0
) -> None:
    """Raises TypeError with the right word, if what is wrong of a call are its words."""
    parameters = list(signature(function).parameters.values())
    name = function.__qualname__.removesuffix(".__init__")
    if any(p.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL) for p in parameters):
        return
    known = [p.name for p in parameters[skipped:]]
    for wrong in kwargs.keys() - {*known}:
        raise TypeError(f"{name} takes no {wrong}: {advice(wrong, known)}") from None
    most = [p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY]
    if len(args) > len(most):
        named = ", ".join(f"{p.name}=" for p in parameters if p.kind is Parameter.KEYWORD_ONLY)
        raise TypeError(
            f"{name} takes {', '.join(most[skipped:])} by position, got "
            f"{len(args) - skipped} arguments; by name only: {named}"
        ) from None
