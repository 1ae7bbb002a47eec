"""Whole models: `replace` makes their dropout modules ours, `restore` PyTorch's again."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from fastdrop.adapters.torch.modules import OURS, Dropout1d, Dropout2d, Dropout3d, Drops
from fastdrop.rng import Rng


def replace(model: nn.Module, seed: int | None = None, verbose: bool = False) -> nn.Module:
    """Make the dropout modules of a model ours, where they are.

    The modules stay the same objects, of another class: whatever refers to them elsewhere, their
    hooks, names and attributes stay. So does a subclass that leaves `forward` as it is, unless
    it has an attribute that means something else in ours, such as ``seed``: then it is left. What
    calls a function instead of a module (attention weights in ``nn.MultiheadAttention``, layers of
    an ``nn.LSTM``) stays PyTorch's: `enable` reaches it. Without a seed, so do ``nn.Dropout1d`` to
    ``3d``, which PyTorch multiplies by a number a map, faster than we draw and apply a bit an
    element.

    Parameters
    ----------
    model : Module
        Is changed.
    seed : int, optional
        Gives each replaced module a seed of its own, else they use PyTorch's random state.
    verbose : bool
        Whether to print a line for each module: what was replaced, what was left, and why.

    Returns
    -------
    Module
        The model.

    Raises
    ------
    ValueError
        seed is not in 0 ... 2**64 - 1.
    """
    rng = None if seed is None else Rng(seed)
    for name, module in model.named_modules():
        ours, why = _replacement(module)
        if (
            seed is None
            and ours is not None
            and issubclass(ours, Dropout1d | Dropout2d | Dropout3d)
        ):
            ours, why = None, "PyTorch's own is faster for whole maps; a seed makes it ours"
        if ours is not None:
            module.__class__ = ours
            module.adopt(None if rng is None else rng.spawn(1)[0].seed)
        if verbose and (ours is not None or why):
            done = f"left: {why}" if ours is None else "replaced"
            print(f"{name or 'the model'} ({type(module).__name__}): {done}")
    return model


def restore(model: nn.Module) -> nn.Module:
    """Make each of our modules in a model PyTorch's again; the opposite of `replace`. Those that
    ``torch.nn`` has not stay.

    Parameters
    ----------
    model : Module
        Is changed.

    Returns
    -------
    Module
        The model.
    """
    for module in model.modules():
        if isinstance(module, Drops) and not module.alone:
            del module.draws, module.copies
            module.__class__ = _theirs(type(module))
    return model


OWN = "alone", "axis", "call", "copies", "draws", "op", "reset", "seed", "shared_axes"
"""Attributes of ours that ``torch.nn``'s have not."""


def _replacement(module: nn.Module) -> tuple[type[Any] | None, str]:
    """Our class for a module, or None and why there is none ("" if it drops nothing)."""
    kind = type(module)
    if isinstance(module, Drops):
        return None, "it is fastdrop's already"
    for theirs, ours in OURS.items():
        if not issubclass(kind, theirs):
            continue
        of_class = kind.forward is not theirs.forward or kind.__call__ is not theirs.__call__
        if of_class or "forward" in vars(module):
            return None, "it has a forward of its own"
        if taken := [name for name in OWN if hasattr(module, name)]:
            return None, f"it has {' and '.join(taken)}, which mean something else in ours"
        return ours if kind is theirs else _joined((kind, ours)), ""
    rates = [
        f"{name} of {rate}"
        for name, rate in vars(module).items()
        if ("dropout" in name or name.endswith("pdrop")) and isinstance(rate, float) and rate > 0.0
    ]
    if rates:
        return None, f"calls a function with its {' and '.join(rates)}, which enable() reaches"
    return None, ""


class _Joined(Drops):
    """A user's subclass of a module of ``torch.nn``, with our `forward`."""

    of: type[nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        """By the user's class, as ours has no name in any file."""
        return _blank, (self.of, self._ours), vars(self)


@cache
def _joined(both: tuple[Any, Any]) -> Any:
    kind, ours = both
    return type(kind.__name__, (_Joined, ours, kind), {"of": kind, "_ours": ours})


def _blank(kind: type[nn.Module], ours: type[Drops]) -> Any:
    joined = _joined((kind, ours))
    return joined.__new__(joined)


def _theirs(kind: type[Any]) -> type[Any]:
    """The class that a module had before, or the one of ``torch.nn`` that ours stands for."""
    theirs: type[Any] = kind.of if issubclass(kind, _Joined) else kind._plain()
    return theirs
