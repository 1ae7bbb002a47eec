"""DTensors: each process drops the part that it holds as if it held all of it."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from fastdrop.adapters.torch.draws import Named
from fastdrop.adapters.torch.kernels import Draws, How
from fastdrop.adapters.torch.kernels import dropped as dropped_locally


def is_sharded(x: Any) -> bool:
    """Whether x is a DTensor; where none has been made, nothing is imported for it."""
    tensors = None if type(x) is Tensor else sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(x, tensors.DTensor)


def dropped(x: Any, draws: Draws, how: How) -> Any:
    """y, placed as x is. All processes must give the same seed and call.

    A region or rows tell where the whole DTensor lies in a larger tensor, of which each process of
    this mesh holds parts, as in data-parallel training beside tensor parallelism.
    """
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    placements = [Replicate() if place.is_partial() else place for place in x.placements]
    if placements != list(x.placements):
        x = x.redistribute(placements=placements)
    _, start = compute_local_shape_and_global_offset(x.shape, x.device_mesh, placements)
    local, draw = x.to_local(), draws.numbers()  # of a part without elements, too: all take a call
    if local.numel():
        local = dropped_locally(local, Named(*draw), _part(how, tuple(start), local, x))
    return DTensor.from_local(
        local, x.device_mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )


def _part(how: How, start: tuple[int, ...], local: Tensor, x: Any) -> How:
    """What is done to the part that begins at `start` of x."""
    rows, shape = how.rows, tuple(x.shape)
    if rows is not None:  # they say where x lies along axis 0
        shape = (int(rows.max(initial=0)) + 1, *shape[1:])
        rows, start = rows[start[0] : start[0] + len(local)], (0, *start[1:])
    at, whole = how.region or ((0,) * x.ndim, shape)
    if len(at) != x.ndim:
        raise ValueError(f"region must have {x.ndim} axes, got {how.region}")
    begin = tuple(a + b for a, b in zip(at, start, strict=True))
    return how._replace(region=(begin, tuple(whole)), rows=rows)
