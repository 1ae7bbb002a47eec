"""Sparse tensors: their stored entries get the dense tensor's mask."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdrop.adapters.torch.kernels import How, Numbers
from fastdrop.ops.dropout import keep_mask
from fastdrop.rng import Rng


def dropped_entries(x: Tensor, draw: Numbers, how: How) -> Tensor:
    """`dropout` of a sparse tensor; its derivatives are those of PyTorch's own operations."""
    if x.layout is torch.sparse_coo:
        x = x.coalesce()
        at = x.indices()
    elif x.layout is torch.sparse_csr:
        each = x.crow_indices().diff().cpu()
        rows = torch.arange(len(each)).repeat_interleave(each)
        at = torch.stack((rows, x.col_indices().cpu()))
    else:
        raise TypeError(f"input must be dense, or sparse as COO or CSR, got {x.layout}")
    if len(at) != x.ndim:
        raise TypeError(f"input must be sparse along all {x.ndim} axes, got {len(at)}")
    positions = tuple(at.cpu().numpy())
    shared_axes, scale = how.shared_axes, how.constants()[0]
    mask = keep_mask(x.shape, how.p, rng=Rng(*draw), shared_axes=shared_axes, at=positions)
    values = torch.where(torch.from_numpy(mask).to(x.device), x.values() * scale, 0.0)
    if x.layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(
            at, values, x.shape, check_invariants=False, is_coalesced=True
        )
    rows, columns = x.crow_indices(), x.col_indices()
    return torch.sparse_csr_tensor(rows, columns, values, x.shape, check_invariants=False)
