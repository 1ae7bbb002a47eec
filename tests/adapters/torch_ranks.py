"""What `test_torch_sharded.py` runs in each of four processes: ``python torch_ranks.py FILE RANK``.

However tensors, parameters and batches are cut, all processes together have the mask of one.
"""

import sys
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from fastdrop.adapters.torch import (
    Dropout,
    Dropout1d,
    DropPath,
    GaussianDropout,
    GaussianNoise,
    LockedDropout,
    Zoneout,
    dropout,
)

RANKS = 4
BATCH, WIDTH = 8, 12


def cuts(line, square):
    return [
        *((line, [cut]) for cut in (Replicate(), Shard(0), Shard(1), Shard(2))),
        *((square, cut) for cut in ([Shard(0), Shard(1)], [Shard(1), Replicate()])),
    ]


def tensors(line, square):
    """Replicated, sharded (uneven, too) and on a mesh of two axes, forward and backward."""
    whole = torch.arange(1.0, 1 + 6 * 10 * 7).reshape(6, 10, 7)
    for kind in (Dropout, Dropout1d, LockedDropout, DropPath):
        z = whole.clone().requires_grad_()
        expected = kind(0.4, seed=5)(z)
        (expected * whole).sum().backward()
        for mesh, cut in cuts(line, square):
            x = distribute_tensor(whole, mesh, cut).requires_grad_()
            y = kind(0.4, seed=5)(x)
            assert list(y.placements) == cut
            assert torch.equal(y.full_tensor(), expected), (kind, cut)
            (y * distribute_tensor(whole, mesh, cut)).sum().backward()
            assert torch.equal(x.grad.full_tensor(), z.grad), (kind, cut)


def noise(line, square):
    """What PyTorch's operations do with a draw that is a tensor."""
    whole = torch.arange(1.0, 1 + 6 * 10 * 7).reshape(6, 10, 7)
    kinds = (
        *(partial(GaussianDropout, 0.4, shared_axes=axes) for axes in ((), (0,), (1, 2))),
        partial(GaussianNoise, 2.0),
        partial(Zoneout, 0.4),
    )
    for kind in kinds:
        inputs = 1 + (kind.func is Zoneout)
        zs = [(whole + i).requires_grad_() for i in range(inputs)]
        expected = kind(seed=5)(*zs)
        (expected * whole).sum().backward()
        for mesh, cut in cuts(line, square):
            xs = [distribute_tensor(z.detach(), mesh, cut).requires_grad_() for z in zs]
            y = kind(seed=5)(*xs)
            assert list(y.placements) == cut
            assert torch.equal(y.full_tensor(), expected), (kind, cut)
            (y * distribute_tensor(whole, mesh, cut)).sum().backward()
            for x, z in zip(xs, zs, strict=True):
                assert torch.equal(x.grad.full_tensor(), z.grad), (kind, cut)


def tensors_in_larger_ones(line, square):
    """What is a DTensor may be some rows, or a region, of what one process would have."""
    whole, rows = torch.arange(1.0, 1 + 20 * 10).reshape(20, 10), torch.tensor([3, 17, 3, 0, 11])
    expected = dropout(whole, 0.4, draw=(5, 0))
    for mesh, cut in ((line, [Shard(0)]), (line, [Shard(1)]), (square, [Shard(1), Shard(0)])):
        some = distribute_tensor(whole[rows], mesh, cut)
        y = dropout(some, 0.4, draw=(5, 0), rows=rows)
        assert torch.equal(y.full_tensor(), expected[rows]), cut
        part = distribute_tensor(whole[4:9, 2:], mesh, cut)
        y = dropout(part, 0.4, draw=(5, 0), region=((4, 2), (20, 10)))
        assert torch.equal(y.full_tensor(), expected[4:9, 2:]), cut


class Block(nn.Module):
    """Two linear layers with dropout between and behind them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(WIDTH, 4 * WIDTH, dtype=torch.float64)
        self.inner = Dropout(0.4, seed=1)
        self.second = nn.Linear(4 * WIDTH, WIDTH, dtype=torch.float64)
        self.outer = Dropout(0.4, seed=2)

    def forward(self, x, at=0, of=BATCH):
        """x: the rows from `at` on of `of`."""
        h = self.first(x).relu()
        h = self.inner(h, region=((at, 0, 0), (of, *h.shape[1:])))
        y = self.second(h)
        return self.outer(y, region=((at, 0, 0), (of, *y.shape[1:])))


def reference():
    """The block's output and gradients in one process, after two steps of training."""
    block = Block()
    x = torch.randn(BATCH, 5, WIDTH, dtype=torch.float64)
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    ys = [step(block, optimizer, x) for _ in range(2)]
    return dict(block.named_parameters()), x, ys


def step(block, optimizer, x, *where):
    optimizer.zero_grad()
    y = block(x, *where)
    y.square().sum().backward()
    optimizer.step()
    return y.detach()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(block, parameters, x, ys, at=0):
    """Two steps of training on the rows of the batch that begin with `at`."""
    optimizer, rows = torch.optim.SGD(block.parameters(), 0.1), slice(at, at + len(x))
    for expected in ys:
        y = step(block, optimizer, x, at)
        assert torch.equal(y == 0, expected[rows] == 0)
        torch.testing.assert_close(y, expected[rows])
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(whole(parameter), parameters[name].detach(), msg=name)


def parallel(block, mesh):
    """Tensor parallelism: the inner activations are shards of features."""
    return parallelize_module(
        block,
        mesh,
        {
            "first": ColwiseParallel(use_local_output=False),
            "second": RowwiseParallel(use_local_output=False),
            "outer": PrepareModuleOutput(
                output_layouts=Replicate(), desired_output_layouts=Replicate()
            ),
        },
    )


def tensor_parallelism(line, square):
    parameters, x, ys = reference()
    block = parallel(Block(), line)
    check(block, parameters, x, ys)


def sequence_parallelism(line, square):
    """Of a dropout whose input is cut along the sequence."""
    x = torch.ones(2, 8, WIDTH)
    layer = parallelize_module(Dropout(0.4, seed=1), line, SequenceParallel())
    y = layer(x[:, 2 * line.get_rank() : 2 * line.get_rank() + 2])
    assert torch.equal(whole(y), Dropout(0.4, seed=1)(x))


def sharded_parameters(line, square):
    """FSDP2: each process has a shard of the parameters and some rows of the batch."""
    parameters, x, ys = reference()
    block = Block()
    fully_shard(block, mesh=line)
    block.set_gradient_divide_factor(1.0)
    rows = BATCH // RANKS
    at = rows * line.get_rank()
    check(block, parameters, x[at : at + rows], ys, at)


def both(line, square):
    """FSDP2 over one axis of the mesh, tensor parallelism over the other."""
    parameters, x, ys = reference()
    block = parallel(Block(), square["inner"])
    fully_shard(block, mesh=square["outer"])
    block.set_gradient_divide_factor(1.0)
    rows = BATCH // 2
    at = rows * square["outer"].get_local_rank()
    check(block, parameters, x[at : at + rows], ys, at)


CASES = [
    tensors,
    noise,
    tensors_in_larger_ones,
    tensor_parallelism,
    sequence_parallelism,
    sharded_parameters,
    both,
]


def main(meeting, rank):
    torch.set_num_threads(1)
    options = {"init_method": f"file://{meeting}", "rank": int(rank), "world_size": RANKS}
    dist.init_process_group("gloo", **options)
    line = init_device_mesh("cpu", (RANKS,))
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for case in CASES:
        case(line, square)
        print(case.__name__, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
