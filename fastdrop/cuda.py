"""The operations on arrays in a GPU's memory: CuPy, PyTorch, Numba, and what else has
``__cuda_array_interface__`` or ``__dlpack__``.

The functions here have the signatures, the errors and the random numbers of those of the same names
in `fastdrop`, which find their way to the GPU by themselves if x lives there: the same bits as on a
CPU, whatever the GPU and the grid. y is an array of x's kind and device. Kernels go to the CUDA
stream that is the caller's present one, and nothing waits for them. A context can be used for
backward on either side, whichever made it; what it holds is copied then.

Needs a driver, and cuda-core where kernels came with the package, else Numba, which compiles them
at their first use in a process, for about a second each: see `is_available` and `why_not`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from typing import Any

import numpy.typing as npt

from fastdrop._core import Draw
from fastdrop.backends.cuda.backend import CUDA
from fastdrop.backends.cuda.launch import why_not
from fastdrop.base import words
from fastdrop.base.devices import on_device
from fastdrop.base.gate import Region
from fastdrop.ops import alpha, concrete, dropblock, fused, gaussian, shared, variational
from fastdrop.ops import dropconnect as _dropconnect
from fastdrop.ops import dropout as _dropout
from fastdrop.ops import zoneout as _zoneout
from fastdrop.rng import RngLike

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "bias_gelu_dropout",
    "bias_relu_dropout",
    "concrete_dropout",
    "drop_block",
    "drop_path",
    "dropconnect",
    "dropout",
    "dropout_add",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "is_available",
    "keep_mask",
    "locked_dropout",
    "relu_dropout",
    "spatial_dropout",
    "variational_dropout",
    "why_not",
    "zoneout",
]


def is_available() -> bool:
    """Whether kernels can run here; `why_not` tells what is missing."""
    return why_not() is None


def _on_device(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op for device arrays only: nothing is copied over the bus unasked."""
    operand = next(iter(known := signature(op).parameters))

    @wraps(op)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if not kwargs.keys() <= known.keys() or len(args) > 1:
            words.explain(op, args, kwargs)
        CUDA.require()
        x = args[0] if args else kwargs.get(operand)
        if x is not None and not on_device(x):
            kind = f"{type(x).__module__}.{type(x).__qualname__}"
            raise TypeError(
                f"fastdrop.cuda.{op.__name__} takes CUDA arrays, got {kind}: call "
                f"fastdrop.{op.__name__} for arrays in the host's memory, or copy it to the device "
                "(cupy.asarray, torch.Tensor.cuda, numba.cuda.to_device)"
            )
        return op(*args, **kwargs)

    return checked


dropout = _on_device(_dropout.dropout)
dropout_add = _on_device(fused.dropout_add)
bias_dropout_add = _on_device(fused.bias_dropout_add)
bias_gelu_dropout = _on_device(fused.bias_gelu_dropout)
bias_relu_dropout = _on_device(fused.bias_relu_dropout)
relu_dropout = _on_device(fused.relu_dropout)
alpha_dropout = _on_device(alpha.alpha_dropout)
feature_alpha_dropout = _on_device(alpha.feature_alpha_dropout)
spatial_dropout = _on_device(shared.spatial_dropout)
locked_dropout = _on_device(shared.locked_dropout)
dropconnect = _on_device(_dropconnect.dropconnect)
drop_block = _on_device(dropblock.drop_block)
drop_path = _on_device(shared.drop_path)
embedding_dropout = _on_device(shared.embedding_dropout)
gaussian_dropout = _on_device(gaussian.gaussian_dropout)
gaussian_noise = _on_device(gaussian.gaussian_noise)
concrete_dropout = _on_device(concrete.concrete_dropout)
variational_dropout = _on_device(variational.variational_dropout)
zoneout = _on_device(_zoneout.zoneout)


def keep_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    rng: RngLike,
    shared_axes: int | Sequence[int] = (),
    region: Region | None = None,
    rows: npt.ArrayLike | None = None,
    at: npt.ArrayLike | tuple[npt.ArrayLike, ...] | None = None,
    packed: bool = False,
) -> Any:
    """`fastdrop.keep_mask` as a Numba device array, or without Numba as an array that has
    ``__cuda_array_interface__`` (``cupy.asarray`` and ``torch.as_tensor`` take either without a
    copy) and ``copy_to_host``.
    """
    CUDA.require()

    def of_draw(draw: Draw, wanted: tuple[int, ...]) -> Any:
        return CUDA.keep_mask(wanted, draw, packed)

    return _dropout.with_mask(of_draw, shape, p, rng, shared_axes, region, rows, at)
