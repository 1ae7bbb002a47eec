"""What computes: the CPU's kernels, or a GPU's. See `fastdrop.backends.interface`."""

from typing import Any

import numpy as np

from fastdrop.backends.cpu import CPU
from fastdrop.backends.cuda.backend import CUDA
from fastdrop.backends.interface import Backend
from fastdrop.base import watch
from fastdrop.base.devices import on_device


def of(x: Any) -> Backend:
    """The backend of whatever an operation was called with.

    Raises
    ------
    RuntimeError
        An array on a GPU where no kernel can run.
    """
    backend = unwatched(x)
    return backend if watch.record is None else watch.Watched(backend)


def unwatched(x: Any) -> Backend:
    """`of`, for those who name their draws themselves."""
    if type(x) is np.ndarray or not on_device(x):
        return CPU
    CUDA.require()
    return CUDA


def fetched(x: Any) -> Any:
    """An array or a packed mask in the host's memory, for which this waits; else x itself."""
    return CUDA.fetched(x)


def nbytes(x: Any) -> int:
    """How much memory the elements of an array take, wherever it is."""
    return x.nbytes if type(x) is np.ndarray or not on_device(x) else CUDA.nbytes(x)
