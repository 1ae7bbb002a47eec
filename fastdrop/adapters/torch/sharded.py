"""DTensors: each process drops the part that it holds as if it held all of it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from fastdrop.adapters.torch import kernels
from fastdrop.adapters.torch.draws import Named
from fastdrop.adapters.torch.kernels import Draws, How


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor; where none has been made, nothing is imported for it."""
    tensors = None if type(x) is Tensor else sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(x, tensors.DTensor)


def dropped(x: Any, draws: Draws, how: How) -> Any:
    """y, placed as x is. All processes must give the same seed and call.

    A region or rows tell where the whole DTensor lies in a larger tensor, of which each process of
    this mesh holds parts, as in data-parallel training beside tensor parallelism.
    """
    from torch.distributed.tensor import DTensor

    placements = _placements(x)
    if placements != list(x.placements):
        x = x.redistribute(placements=placements)
    local, draw = x.to_local(), draws.numbers()  # of a part without elements, too: all take a call
    if local.numel():
        local = kernels.dropped(local, Named(*draw), _part(how, local, x))
    return DTensor.from_local(
        local, x.device_mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def drawn(x: Any, draws: Draws, how: How, kind: str) -> Any:
    """`kernels.drawn` as a DTensor that lies as x does; along axes that share a draw all hold
    it."""
    from torch.distributed.tensor import DTensor, Replicate

    axes, draw = how.shared_axes, Named(*draws.numbers())
    shape = kernels.mask_array(tuple(x.shape), axes)
    placements = [
        Replicate() if place.is_replicate() or place.dim in axes else place
        for place in _placements(x)
    ]
    local = x.to_local()
    made = local.new_empty(kernels.mask_array(tuple(local.shape), axes))
    how = _part(how, local, x)
    start, whole = how.region
    start = tuple(0 if axis in axes else at for axis, at in enumerate(start))
    if made.numel():
        made = kernels.drawn(made, draw, how._replace(region=(start, whole)), kind)
    else:
        made = made.to(kernels.dtype_of(kind, x.dtype))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        made, x.device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _placements(x: Any) -> list[Any]:
    """What each process can draw its part of: sums that are not done yet have no parts."""
    from torch.distributed.tensor import Replicate

    return [Replicate() if place.is_partial() else place for place in x.placements]


def _part(how: How, local: Tensor, x: Any) -> How:
    """What is done to this process's part of x."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, start = compute_local_shape_and_global_offset(x.shape, x.device_mesh, _placements(x))
    rows, shape = how.rows, tuple(x.shape)
    if rows is not None:  # they say where x lies along axis 0
        shape = (int(rows.max(initial=0)) + 1, *shape[1:])
        rows, start = rows[start[0] : start[0] + len(local)], (0, *start[1:])
    at, whole = how.region or ((0,) * x.ndim, shape)
    if len(at) != x.ndim:
        raise ValueError(f"region must have {x.ndim} axes, got {how.region}")
    begin = tuple(a + b for a, b in zip(at, start, strict=True))
    return how._replace(region=(begin, tuple(whole)), rows=rows)
