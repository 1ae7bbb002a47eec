"""The door for adapters: below the gate, for a draw that somebody else has named.

An adapter keeps its library's rules (who may be differentiated, when a call is taken), decides seed
and call itself, and comes here for y; a backward pass comes again with dy, the same draw and the
derivative's constants. There is no context and no `Rng`, and the rate is not checked. `drop_memory`
is for elements of which only the address is known. In C the same door is `fastdrop_api.h`: for
compiled code, Numba, and XLA's handler for JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastdrop._core import ALPHA_DROPOUT, DROPOUT, NOISE_ADD, NOISE_SCALE, Draw, drop_memory
from fastdrop.backends import unwatched
from fastdrop.backends.interface import Constants
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type
from fastdrop.base.gate import Region
from fastdrop.ops.alpha import affine
from fastdrop.ops.dropout import inverted

__all__ = [
    "ALPHA_DROPOUT",
    "DROPOUT",
    "NOISE_ADD",
    "NOISE_SCALE",
    "affine",
    "drop",
    "drop_and_keep",
    "drop_memory",
    "inverted",
    "noise",
]


def drop(
    x: Any,
    p: float,
    draw: tuple[int, int],
    constants: Constants,
    op: int = DROPOUT,
    shared_axes: Any = gate.NO_AXES,
    region: Region | None = None,
    rows: Any = None,
    *,
    out: Any = None,
    given: Any = None,
) -> Any:
    """y of an op that drops elements of one array.

    Parameters
    ----------
    x : array that `fastdrop.dropout` takes
    p : float
        Rate in [0, 1]. At 0, y is x.
    draw : (seed, call)
        Two integers from 0 to 2**64 - 1.
    constants : (scale, shift, dropped)
        y = x * scale where kept, else 0; with ALPHA_DROPOUT x * scale + shift where kept, else
        `dropped`. `inverted` and `affine` tell them from the rate.
    op : int
        DROPOUT or ALPHA_DROPOUT.
    shared_axes, region, rows, out
        As in `fastdrop.dropout`.
    given : bits, optional
        Of `drop_and_keep` with this place; nothing is drawn then.

    Returns
    -------
    array
        `out`, or a new array of x's kind, shape, dtype and memory order.
    """
    return _drop(x, p, draw, constants, op, (shared_axes, region, rows), out, False, given)[0]


def drop_and_keep(
    x: Any,
    p: float,
    draw: tuple[int, int],
    constants: Constants,
    op: int = DROPOUT,
    shared_axes: Any = gate.NO_AXES,
    region: Region | None = None,
    rows: Any = None,
    *,
    out: Any = None,
) -> tuple[Any, Any]:
    """`drop`, and its packed mask, which is the backend's own: (y, bits); bits is None at p = 0."""
    return _drop(x, p, draw, constants, op, (shared_axes, region, rows), out, True, None)


def _drop(
    x: Any,
    p: float,
    draw: tuple[int, int],
    constants: Constants,
    op: int,
    place: tuple[Any, Any, Any],
    out: Any,
    keep: bool,
    given: Any,
) -> tuple[Any, Any]:
    backend = unwatched(x)
    x = backend.array(x)
    where = gate.place(x.shape, *place)
    out, x = backend.output(out, x)
    if p == 0.0:
        return backend.copy(x, out), None
    return backend.forward(op, x, Draw(*draw, p, where), constants, out, keep, given=given)


def noise(
    x: Any,
    draw: tuple[int, int],
    sigma: float,
    op: int,
    shared_axes: Any = gate.NO_AXES,
    region: Region | None = None,
    rows: Any = None,
    *,
    out: Any = None,
) -> Any:
    """x * (1 + sigma * noise) with NOISE_SCALE, x + sigma * noise with NOISE_ADD; the noise is
    standard normal. Other arguments and the result are as in `drop`.
    """
    backend = unwatched(x)
    x = backend.array(x)
    where = gate.place(x.shape, shared_axes, region, rows)
    out, x = backend.output(out, x)
    sigma = np.asarray(sigma, compute_type(x.dtype))
    return backend.noise(op, x, Draw(*draw, 0.0, where), sigma, out)
