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
    """y, placed as x is. All processes must give the same seed and call."""
    from torch.distributed.tensor import DTensor, Replicate
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if how.region is not None or how.rows is not None:
        raise ValueError("region and rows of a DTensor follow from its placements; leave them out")
    placements = [Replicate() if place.is_partial() else place for place in x.placements]
    if placements != list(x.placements):
        x = x.redistribute(placements=placements)
    _, start = compute_local_shape_and_global_offset(x.shape, x.device_mesh, placements)
    local, draw = x.to_local(), draws.numbers()  # of a part without elements, too: all take a call
    if local.numel():
        how = how._replace(region=(tuple(start), tuple(x.shape)))
        local = dropped_locally(local, Named(*draw), how)
    return DTensor.from_local(
        local, x.device_mesh, placements, run_check=False, shape=x.shape, stride=x.stride()
    )
