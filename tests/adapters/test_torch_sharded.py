"""DTensors: however a tensor is cut, all processes together have the mask of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

RANKS = """
import sys, torch, torch.distributed as dist
import fastdrop as fd
from fastdrop.adapters.torch import Dropout, Dropout1d
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
meeting = f"file://{sys.argv[1]}"
dist.init_process_group("gloo", init_method=meeting, rank=int(sys.argv[2]), world_size=4)
line = init_device_mesh("cpu", (4,))
square = init_device_mesh("cpu", (2, 2))
whole = torch.arange(1.0, 1 + 6 * 10 * 7).reshape(6, 10, 7)
cuts = [(line, [Replicate()]), (line, [Shard(0)]), (line, [Shard(1)]), (line, [Shard(2)]),
        (square, [Shard(0), Shard(1)]), (square, [Shard(1), Replicate()])]
for kind in (Dropout, Dropout1d):
    z = whole.clone().requires_grad_()
    expected = kind(0.4, seed=5)(z)
    (expected * whole).sum().backward()
    for mesh, cut in cuts:
        x = distribute_tensor(whole, mesh, cut).requires_grad_()
        y = kind(0.4, seed=5)(x)
        assert list(y.placements) == cut
        assert torch.equal(y.full_tensor(), expected), (kind, cut)
        (y * distribute_tensor(whole, mesh, cut)).sum().backward()
        assert torch.equal(x.grad.full_tensor(), z.grad), (kind, cut)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_four_processes(tmp_path):
    """Replicated, sharded (uneven, too) and on a mesh of two axes, forward and backward."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FASTDROP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", RANKS, str(tmp_path / "meeting")]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)],
            env=environment,
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    for rank in ranks:
        error = rank.communicate(timeout=110)[1]
        assert rank.returncode == 0, error
