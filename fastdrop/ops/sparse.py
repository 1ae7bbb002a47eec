"""The stored entries of SciPy's sparse arrays: where they are, and others in their places.

SciPy is not imported: who has a sparse array has loaded it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FORMATS = "coo", "csr", "csc", "bsr"


def stored(x: Any, name: str) -> npt.NDArray[Any]:
    """The stored entries: those that the indices speak of, as an array may have room for more.

    Raises
    ------
    TypeError
        A format whose entries cannot stay where they are.
    """
    if x.format not in FORMATS:
        raise TypeError(
            f"{name} must be a sparse array of the format {', '.join(FORMATS)}, got {x.format}; "
            f"convert it with .tocsr()"
        )
    return x.data if x.format == "coo" else x.data[: x.indptr[-1]]


def positions(x: Any) -> tuple[npt.NDArray[Any], ...]:
    """Positions along each axis of the stored entries, in their shape."""
    if x.format == "coo":
        return tuple(x.coords)
    indices = x.indices[: x.indptr[-1]]
    if x.ndim == 1:
        return (indices,)
    lines = np.repeat(np.arange(len(x.indptr) - 1), np.diff(x.indptr))
    if x.format == "csc":
        return indices, lines
    if x.format == "csr":
        return lines, indices
    height, width = x.data.shape[1:]
    rows = lines[:, None, None] * height + np.arange(height)[:, None]
    columns = np.multiply(indices[:, None, None], width, dtype=np.int64) + np.arange(width)
    return tuple(np.broadcast_arrays(rows, columns))


def with_entries(x: Any, data: npt.NDArray[Any]) -> Any:
    """A copy of x that stores other entries in the same places."""
    if x.format == "coo":
        return type(x)((data, tuple(c.copy() for c in x.coords)), shape=x.shape)
    indices = x.indices[: x.indptr[-1]].copy()
    return type(x)((data, indices, x.indptr.copy()), shape=x.shape)
