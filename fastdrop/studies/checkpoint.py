"""A run in training as a file that holds no code: arrays and JSON in one of NumPy's npz files.

A file says nothing of how a trainer is built. Its numbers go into a new trainer, and must be the
ones that this has, each of the same kind.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

import fastdrop as fd

Arrays = dict[str, npt.NDArray[Any]]
JSON, DIGEST = "json", "sha256"  # the names of what is not an array, and of what all comes to
REFERENCE = "array"  # the only key of a dict that stands for an array


class CheckpointError(Exception):
    """What is wrong with a file, to be said behind its name."""


def state(trainer: object) -> dict[str, Any]:
    """Copies of all numbers that a trainer has, by a name such as "net.layers.1.W"."""
    return {
        name: value.copy() if isinstance(value, np.ndarray) else value
        for name, value, _ in _numbers(trainer, "", set())
    }


def restore(trainer: object, state: dict[str, Any]) -> None:
    """Give a new trainer the numbers of another.

    Raises
    ------
    CheckpointError
        They are not those that this trainer has. It may have some of them then.
    """
    own = {name: (value, put) for name, value, put in _numbers(trainer, "", set())}
    if missing := sorted(own.keys() - state.keys()):
        raise CheckpointError(f"it lacks {', '.join(missing[:3])}")
    if unknown := sorted(state.keys() - own.keys()):
        raise CheckpointError(f"it has {', '.join(unknown[:3])}, which this run has not")
    for name, (value, put) in own.items():
        if (found := _kind(state[name])) != (due := _kind(value)):
            raise CheckpointError(f"{name} is {found} there, {due} in this run")
        try:
            put(state[name])
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise CheckpointError(f"{name} cannot be taken ({error})") from None


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    return type(value).__name__


Put = Callable[[Any], object]


def _numbers(owner: Any, within: str, seen: set[int]) -> Iterator[tuple[str, Any, Put]]:
    """(name, value, what sets it) of all that can change, each object once.

    Arrays and random states are set in place, as a network and its optimizer share them.
    """
    for key, value, put in _members(owner):
        name = f"{within}{key}"
        if type(value) in (bool, int, float) or isinstance(value, np.generic):
            if put is not None:
                yield name, value, put
        elif isinstance(value, str | None) or is_dataclass(value):
            pass  # settings
        elif id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, np.ndarray):
                yield name, value, partial(np.copyto, value)
            elif isinstance(value, np.random.Generator):
                bits = value.bit_generator
                yield name, bits.state, partial(setattr, bits, "state")
            elif isinstance(value, fd.Rng):
                yield name, value.state, partial(setattr, value, "state")
            elif _is_made_of_parts(value):
                yield from _numbers(value, f"{name}.", seen)
            elif not callable(value):  # a function is a setting
                raise TypeError(f"{name} is of {type(value)}, which no checkpoint holds")


def _is_made_of_parts(value: Any) -> bool:
    ours = type(value).__module__.startswith("fastdrop.studies.")
    return ours or isinstance(value, dict | list | tuple | fd.layers.Layer)


def _members(owner: Any) -> Iterator[tuple[Any, Any, Put | None]]:
    """(name, value, what sets it) of what an object has between two epochs."""
    if isinstance(owner, tuple):
        yield from ((k, value, None) for k, value in enumerate(owner))
    elif isinstance(owner, dict | list):
        keys = owner if isinstance(owner, dict) else range(len(owner))
        yield from ((k, owner[k], partial(owner.__setitem__, k)) for k in keys)
    else:
        if isinstance(owner, fd.layers.Layer):  # the rest are settings, and what a call leaves
            members = {"rng": owner.rng, "step": owner.step, **owner.parameters}
        else:
            members = owner.__getstate__() or {}  # without what a step leaves
        yield from ((k, value, partial(setattr, owner, k)) for k, value in members.items())


def dumps(content: Any) -> bytes:
    """An npz file of dicts with str keys, lists, numbers, str, None and arrays."""
    arrays: Arrays = {}
    text = json.dumps(_apart(content, arrays))
    arrays[JSON] = np.frombuffer(text.encode(), np.uint8)
    arrays[DIGEST] = _digest(arrays)
    file = BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]  # none is named allow_pickle
    return file.getvalue()


def _digest(arrays: Arrays) -> npt.NDArray[np.uint8]:
    """Of names, kinds and numbers: a file that somebody has edited is told from ours."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha256.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        sha256.update(array.tobytes())
    return np.frombuffer(sha256.digest(), np.uint8)


def _apart(value: Any, arrays: Arrays) -> Any:
    """The same with references to arrays, which go to `arrays`."""
    if isinstance(value, dict):
        return {k: _apart(v, arrays) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_apart(v, arrays) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject:
            raise TypeError(f"an array of objects: {value!r}")
        name = str(len(arrays))
        arrays[name] = np.asarray(value)
        return {REFERENCE: [name, isinstance(value, np.generic)]}
    return value


def loads(raw: bytes) -> Any:
    """What `dumps` made a file of.

    Raises
    ------
    CheckpointError
        It is damaged, or something else.
    """
    try:
        with zipfile.ZipFile(BytesIO(raw)) as file:
            # NumPy packs nothing here, so what is packed is not ours, and might be large.
            if any(info.compress_type != zipfile.ZIP_STORED for info in file.infolist()):
                raise CheckpointError("it is packed")
        with np.load(BytesIO(raw), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if not np.array_equal(arrays.pop(DIGEST), _digest(arrays)):
            raise CheckpointError("its numbers are not those that were written")
        return _together(json.loads(arrays[JSON].tobytes()), arrays)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(str(error) or type(error).__name__) from None


def _together(value: Any, arrays: Arrays) -> Any:
    """The same with the arrays in place."""
    if isinstance(value, dict):
        if value.keys() == {REFERENCE}:
            name, scalar = value[REFERENCE]
            return arrays[name][()] if scalar else arrays[name]
        return {k: _together(v, arrays) for k, v in value.items()}
    return [_together(v, arrays) for v in value] if isinstance(value, list) else value
