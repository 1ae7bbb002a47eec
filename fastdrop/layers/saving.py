"""What layers have to keep for a run to go on: JSON and arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastdrop._core import CallCounter
from fastdrop.base import gate
from fastdrop.rng import LayerRng, Rng

VERSION = 1
Arrays = dict[str, npt.NDArray[Any]]
if TYPE_CHECKING:  # what loads np.random takes longer than the rest
    Numbers = Rng | np.random.Generator | np.random.BitGenerator


class Stateful:
    """What has a state, which layers are."""

    step: int
    training: bool
    rng: Any
    forget: Any  # a method of Layer
    learned: tuple[str, ...] = ()
    """Attributes that are learned, in the order of what ``ctx.backward`` returns behind dx."""

    @property
    def parameters(self) -> Arrays:
        """The learned parameters: the arrays themselves, to be updated in place."""
        return {name: getattr(self, name) for name in self.learned}

    @property
    def state(self) -> tuple[dict[str, Any], Arrays]:
        """(info, arrays), `fastdrop.layers.state` of this layer alone. Assign both to one that was
        made in the same way, and it goes on as this one does; it forgets its calls.
        """
        return state(self)

    @state.setter
    def state(self, value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeError(f"state must be the tuple (info, arrays), got {gate.shown(value)}")
        load_state(self, *value)


Layers = Stateful | Sequence[Stateful] | Mapping[str, Stateful]


def state(layers: Layers) -> tuple[dict[str, Any], Arrays]:
    """What decides the next calls of layers, besides what they were made with.

    Parameters
    ----------
    layers : Layer, or sequence of them, or mapping of str to Layer
        All layers of a model in one call, as those that share an `Rng` have one state.

    Returns
    -------
    info : dict
        For JSON: steps, modes, and the states of the random numbers.
    arrays : dict of str to ndarray
        Copies of the learned parameters, by name and layer: for ``np.savez(file, **arrays)``.

    Raises
    ------
    TypeError
        layers is none of the above, or has something else among them; or the step of one is no int.

    See Also
    --------
    load_state : gives it to layers that were made in the same way.

    Notes
    -----
    Contexts are not part of it: take a state between a backward pass and the next call. Nor are
    rates and other arguments, which belong to the program.

    Examples
    --------
    >>> info, arrays = fastdrop.layers.state([drop, concrete])
    >>> np.savez("run.npz", info=json.dumps(info), **arrays)
    """
    named = _named(layers)
    numbers = _random_numbers(named)
    told = {
        name: {
            "kind": type(layer).__name__,
            "step": gate.count(layer.step, "step", 0),
            "training": gate.flag(layer.training, "training"),
            "rng": next(i for i, rng in enumerate(numbers) if rng is layer.rng),
        }
        for name, layer in named.items()
    }
    arrays = {
        f"{name}.{parameter}": np.array(value)
        for name, layer in named.items()
        for parameter, value in layer.parameters.items()
    }
    return {"version": VERSION, "layers": told, "rngs": [_told(rng) for rng in numbers]}, arrays


def load_state(layers: Layers, info: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Give layers the state that others like them had.

    Parameters
    ----------
    layers : Layer, or sequence of them, or mapping of str to Layer
        Made as those were whose state it is: of the same kinds, in the same order or by the same
        names, sharing an `Rng` where those did. Parameters and random numbers change in place.
    info : mapping
    arrays : mapping of str to array
        What `state` returned, or ``np.load`` of it; what else is in there is not looked at.

    Raises
    ------
    TypeError
        Kind of an argument, or dtype of an array.
    ValueError
        It is no state of such layers. None of them has changed where this is raised.
    """
    named = _named(layers)
    numbers = _random_numbers(named)
    try:
        version, told, states = info["version"], info["layers"], info["rngs"]
        names, kinds = list(told), [told[name]["kind"] for name in told]
        steps = [gate.count(told[name]["step"], "step", 0) for name in told]
        modes = [gate.flag(told[name]["training"], "training") for name in told]
        shared = [told[name]["rng"] for name in told]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"info must be what state returned: {error!r}") from None
    if version != VERSION:
        raise ValueError(f"info must be of version {VERSION}, got {gate.shown(version)}")
    own = [type(layer).__name__ for layer in named.values()]
    if (names, kinds) != (list(named), own):
        raise ValueError(
            f"layers must be those of info, {dict(zip(names, kinds, strict=True))}, got "
            f"{dict(zip(named, own, strict=True))}"
        )
    if shared != [next(i for i, r in enumerate(numbers) if r is x.rng) for x in named.values()]:
        raise ValueError(
            f"layers must share their rng as those of info did, whose numbers are {shared}: make "
            "them as they were made"
        )
    if not isinstance(states, list) or len(states) != len(numbers):
        raise ValueError(f"info must have {len(numbers)} states of random numbers in a list")
    made = [_made(rng, state) for rng, state in zip(numbers, states, strict=True)]
    values = {
        (layer, parameter): _fitting(arrays, f"{name}.{parameter}", value)
        for name, layer in named.items()
        for parameter, value in layer.parameters.items()
    }
    for layer, step, training in zip(named.values(), steps, modes, strict=True):
        layer.step, layer.training = step, training
        layer.forget()
    for rng, put in zip(numbers, made, strict=True):
        _put(rng, put)
    for (layer, parameter), value in values.items():
        present = layer.parameters[parameter]
        if isinstance(present, np.ndarray) and present.flags.writeable:
            present[...] = value
        else:
            setattr(layer, parameter, value)


def _named(layers: Any) -> dict[str, Stateful]:
    """The layers by name."""
    if isinstance(layers, Stateful):
        layers = [layers]
    if not isinstance(layers, Mapping):
        parts = gate.items(layers, "layers", "a Layer, several, or a dict of them")
        layers = {str(i): layer for i, layer in enumerate(parts)}
    for name, layer in layers.items():
        if not isinstance(layer, Stateful) or not isinstance(name, str):
            raise TypeError(
                "layers must be a Layer, several, or a dict of them by name, got "
                f"{gate.shown(name)}: {gate.shown(layer)}"
            )
    return dict(layers)


def _random_numbers(named: Mapping[str, Stateful]) -> list[Numbers]:
    """What layers draw from, each once, in the order of the layers."""
    found: list[Any] = []
    for layer in named.values():
        if not any(rng is layer.rng for rng in found):
            found.append(layer.rng)
    return found


def _told(rng: Numbers) -> dict[str, Any]:
    """The state of random numbers, for JSON."""
    if isinstance(rng, Rng):
        copies = rng._copies.peek()[1] if isinstance(rng, LayerRng) else 0
        return {"kind": "Rng", "state": rng.state, "seeded": bool(rng.seeded), "copies": copies}
    bits = rng.bit_generator if isinstance(rng, np.random.Generator) else rng
    return {"kind": type(bits).__name__, "state": _plain(bits.state)}


def _plain(value: Any) -> Any:
    """Without arrays and NumPy's own numbers."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _made(rng: Numbers, told: Any) -> Any:
    """Random numbers of this state, which a later step puts into rng."""
    try:
        kind, state = told["kind"], told["state"]
        if isinstance(rng, Rng):
            due, made = "Rng", Rng()
            if kind == due:
                made.state = state
                seeded, copies = gate.flag(told["seeded"], "seeded"), told["copies"]
                return made.peek(), seeded, CallCounter(0, copies)
        else:
            bits = rng.bit_generator if isinstance(rng, np.random.Generator) else rng
            due = type(bits).__name__
            if kind == due:
                other = type(bits)()
                other.state = state
                return other.state
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"info must have the states of random numbers: {error}") from None
    raise ValueError(f"layers must draw from {kind}, as those of info did, got {due}")


def _put(rng: Numbers, made: Any) -> None:
    if isinstance(rng, Rng):
        (seed, call), seeded, copies = made
        CallCounter.__init__(rng, seed, min(call, 2**64 - 1), call == 2**64, seeded)
        if isinstance(rng, LayerRng):
            rng._copies = copies
    else:
        bits = rng.bit_generator if isinstance(rng, np.random.Generator) else rng
        bits.state = made


def _fitting(arrays: Mapping[str, Any], name: str, like: Any) -> npt.NDArray[Any]:
    """The array of this name, a copy, if it can stand where `like` does."""
    if name not in arrays:
        raise ValueError(f"arrays must have {name}, a parameter of these layers")
    found, like = gate.host(arrays[name], name), np.asarray(like)
    if found.dtype.kind == "V" and found.dtype.itemsize == like.dtype.itemsize:
        found = found.view(like.dtype)  # npz knows no bfloat16
    gate.like(found, name, like.shape, like.dtype, "the layer's")
    return found.copy()
