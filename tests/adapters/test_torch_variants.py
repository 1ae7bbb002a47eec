"""Modules that ``torch.nn`` has not: the numbers of fastdrop's ops, and PyTorch's derivatives."""

import copy

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from fastdrop.adapters import torch as ft  # noqa: E402
from fastdrop.adapters.torch import kernels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def normal(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def dropped(**more):
    return lambda x, rng: fd.dropout(x, 0.3, rng=rng, **more)


# Of one tensor: a module by its seed, and what it does as a function of an array and an Rng.
ONE = {
    "shared": (
        lambda seed: ft.Dropout(0.3, seed=seed, shared_axes=(0, -1)),
        dropped(shared_axes=(0, 2)),
    ),
    "locked": (
        lambda seed: ft.LockedDropout(0.3, seed=seed),
        lambda x, rng: fd.locked_dropout(x, 0.3, rng=rng),
    ),
    "locked, time first": (
        lambda seed: ft.LockedDropout(0.3, 0, seed=seed, shared_axes=(2,)),
        lambda x, rng: fd.locked_dropout(x, 0.3, time_axis=0, shared_axes=2, rng=rng),
    ),
    "path": (
        lambda seed: ft.DropPath(0.3, seed=seed),
        lambda x, rng: fd.drop_path(x, 0.3, rng=rng),
    ),
    "path, unscaled": (
        lambda seed: ft.DropPath(0.3, "batch", False, seed=seed),
        lambda x, rng: fd.drop_path(x, 0.3, mode="batch", scale_by_keep=False, rng=rng),
    ),
    "Gaussian": (
        lambda seed: ft.GaussianDropout(0.3, seed),
        lambda x, rng: fd.gaussian_dropout(x, 0.3, rng=rng),
    ),
    "Gaussian, shared": (
        lambda seed: ft.GaussianDropout(0.3, seed, (1,)),
        lambda x, rng: fd.gaussian_dropout(x, 0.3, rng=rng, shared_axes=(1,)),
    ),
    "noise": (
        lambda seed: ft.GaussianNoise(0.3, seed, (-1,)),
        lambda x, rng: fd.gaussian_noise(x, 0.3, rng=rng, shared_axes=(2,)),
    ),
}


@pytest.fixture(params=ONE)
def one(request):
    return ONE[request.param]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_the_same_bits_as_numpy(one, dtype):
    """Forward and backward, call after call, in any layout."""
    make, op = one
    layer, rng = make(2**63 + 5), fd.Rng(2**63 + 5)
    for call in range(3):
        x = (
            normal(5, 6, 40, dtype=dtype)
            if call
            else normal(40, 6, 5, dtype=dtype).permute(2, 1, 0)
        )
        x, dy = x.detach().requires_grad_(), normal(5, 6, 40, dtype=dtype) + 3
        y = layer(x)
        y.backward(dy)
        expected, ctx = op(kernels.array(x), rng)
        assert y.dtype == dtype
        assert_same_bits(kernels.array(y), np.asarray(expected))
        assert_same_bits(kernels.array(x.grad), np.asarray(ctx.backward(kernels.array(dy))))
    assert (layer.seed, layer.call) == (2**63 + 5, 3)


def test_derivatives(one):
    """First and second order by central differences, forward mode, and in batches."""
    make, _ = one
    x = normal(3, 4, 6, dtype=torch.float64).requires_grad_()

    def function(x):
        return make(5)(x).square()

    assert torch.autograd.gradcheck(function, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, x)
    y = torch.vmap(function, randomness="same")(x.detach().expand(2, 3, 4, 6))
    torch.testing.assert_close(y, function(x).detach().expand(2, 3, 4, 6))


def test_module(one):
    """Eval, repeatability, state dicts, copies, graphs of torch.fx, TorchScript."""
    make, _ = one
    x = torch.ones(5, 6, 40)
    for seed in (None, 7):
        layer = make(seed)
        assert layer.eval()(x) is x
        torch.manual_seed(3)
        layer.train()
        ys = torch.stack([layer(x) for _ in range(20)])
        assert not torch.equal(ys, ys[:1].expand_as(ys))
        torch.manual_seed(3)
        if seed:
            layer.reset()
        assert torch.equal(torch.stack([layer(x) for _ in range(10)]), ys[:10])
        graph = torch.fx.symbolic_trace(nn.Sequential(layer))
        assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
        assert graph.eval()(x) is x
        assert torch.equal(torch.jit.script(layer.eval())(x), x)
        with pytest.raises(RuntimeError, match="in eval mode alone"):
            torch.jit.script(layer.train())
    other = make(7)
    other.load_state_dict(layer.state_dict())
    assert other.call == layer.call == 10
    assert torch.equal(other(x), ys[10])
    assert copy.deepcopy(other).seed not in (7, None)
    assert "seed=7" in repr(other)
    assert ft.restore(nn.Sequential(other))[0] is other
    assert isinstance(other, type(make(1)))
    with pytest.raises(TypeError, match="got int64"):
        make(1)(x.long())
    with pytest.raises(TypeError, match="not nested"):
        make(None)(torch.nested.nested_tensor([torch.ones(2, 2)] * 2, layout=torch.jagged))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_draw_the_same(one, use_reentrant):
    for seed in (None, 7):
        layer, (x, z) = one[0](seed), (normal(5, 6, 40).requires_grad_() for _ in range(2))
        torch.manual_seed(3)
        y = checkpoint(lambda a, layer=layer: layer(a).square(), x, use_reentrant=use_reentrant)
        y.sum().backward()
        torch.manual_seed(3)
        if seed:
            layer.reset()
        layer(z).square().sum().backward()
        assert torch.equal(x.grad, z.grad)


@pytest.mark.slow
def test_compile(one):
    """One graph; the masks of the eager call."""
    make, op = one
    layer, rng, x = make(7), fd.Rng(7), normal(5, 6, 40).requires_grad_()
    torch.compiler.reset()
    run = torch.compile(lambda a: layer(a) * 2, fullgraph=True)
    for _ in range(2):
        y, (expected, ctx) = run(x), op(x.detach().numpy(), rng)
        torch.testing.assert_close(y.detach(), torch.from_numpy(np.asarray(expected)) * 2)
        (dx,) = torch.autograd.grad(y.sum(), x)
        back = ctx.backward(np.full(x.shape, 2, np.float32))
        torch.testing.assert_close(dx, torch.from_numpy(np.asarray(back)))


def test_paths_and_locks():
    x = torch.ones(200, 3, 5)
    y = ft.DropPath(0.5, seed=1)(x)
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(ft.DropPath(0.5, seed=1)(x[:3], rows=rows), y[rows])
    part = ft.LockedDropout(0.5, seed=1)(x[2:4], region=((2, 0, 0), (200, 3, 5)))
    assert torch.equal(part, ft.LockedDropout(0.5, seed=1)(x)[2:4])
    entries = ft.DropPath(0.5, seed=1)(x.to_sparse_coo())
    assert torch.equal(entries.to_dense(), y)
    for module in (ft.DropPath(0.5), ft.LockedDropout(0.5), ft.Dropout(0.5, shared_axes=(0,))):
        assert isinstance(module, nn.Dropout)
        assert ft.replace(module) is ft.restore(module)
        assert module.alone
    with pytest.raises(ValueError, match="batch axis"):
        ft.DropPath(0.5)(torch.ones(()))
    with pytest.raises(ValueError, match="say which axis is that of the steps"):
        ft.LockedDropout(0.5)(torch.ones(3, 4))
    with pytest.raises(ValueError, match="mode must be one of"):
        ft.DropPath(0.5, "rows")
    with pytest.raises(ValueError, match="infinite variance"):
        ft.GaussianDropout(1.0)
    with pytest.raises(ValueError, match="std must be in"):
        ft.GaussianNoise(-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zoneout(dtype):
    layer = ft.Zoneout(0.3, seed=5)
    previous, new = (normal(6, 40, dtype=dtype).add(k).requires_grad_() for k in (0, 9))
    y, dy = layer(previous, new), normal(6, 40, dtype=dtype)
    y.backward(dy)
    arrays = [kernels.array(a) for a in (previous, new)]
    expected, ctx = fd.zoneout(*arrays, 0.3, rng=5)
    assert_same_bits(kernels.array(y), expected)
    for x, dx in zip((previous, new), ctx.backward(kernels.array(dy)), strict=True):
        assert_same_bits(kernels.array(x.grad), dx)
    for expectation in (True, False):
        mean, _ = fd.zoneout(*arrays, 0.3, training=False, expectation=expectation)
        assert_same_bits(
            kernels.array(ft.Zoneout(0.3, expectation).eval()(previous, new)), np.asarray(mean)
        )
    graph = torch.fx.symbolic_trace(Cell())
    assert torch.equal(graph.eval()(previous, new), Cell().eval()(previous, new))
    with pytest.raises(ValueError, match="shape of previous"):
        layer(previous, new[0])
    with pytest.raises(RuntimeError, match=r"use torch\.export"):
        torch.jit.script(layer)


@pytest.mark.parametrize("training", [True, False])
def test_zoneout_of_two_dtypes(training):
    """As under autocast, where a state may be float32 and what a layer gives bfloat16."""
    previous, new = normal(6, 40), normal(6, 40, dtype=torch.bfloat16) + 9
    layers = [ft.Zoneout(0.3, seed=5).train(training) for _ in range(2)]
    y = layers[0](previous, new)
    assert y.dtype is torch.float32
    assert torch.equal(y, layers[1](previous, new.float()))


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.zoneout = ft.Zoneout(0.3, seed=5)

    def forward(self, previous, new):
        return self.zoneout(previous, new.tanh())


def test_zoneout_derivatives():
    inputs = [normal(6, 4, dtype=torch.float64).add(k).requires_grad_() for k in (0, 9)]

    def function(previous, new):
        return ft.Zoneout(0.3, seed=5)(previous, new).square()

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("sparse", [False, True])
def test_embedding(sparse):
    layer = ft.EmbeddingDropout(20, 8, p=0.4, seed=5, sparse=sparse)
    ids = torch.randint(20, (7, 9), generator=torch.Generator().manual_seed(0))
    y, dy = layer(ids), normal(7, 9, 8)
    y.backward(dy)
    table = layer.weight.detach().numpy()
    expected, ctx = fd.embedding_dropout(table, 0.4, ids=ids.numpy(), rng=5)
    assert_same_bits(y.detach().numpy(), expected)
    assert layer.weight.grad.is_sparse == sparse
    gradient = layer.weight.grad.to_dense()
    torch.testing.assert_close(gradient, torch.from_numpy(ctx.backward(dy.numpy())))
    plain = nn.Embedding.from_pretrained(layer.weight)
    assert torch.equal(layer.eval()(ids), plain(ids))
    assert torch.equal(torch.jit.script(layer)(ids), plain(ids))
    plain.load_state_dict(layer.state_dict())
    again = ft.EmbeddingDropout.from_pretrained(layer.weight.detach(), p=0.4, seed=5)
    assert torch.equal(again(ids), y)
    assert "seed=5, p=0.4" in repr(again)
    whole = torch.compile(again, fullgraph=True, backend="eager")(ids)
    assert torch.equal(
        whole,
        torch.from_numpy(fd.embedding_dropout(table, 0.4, ids=ids.numpy(), rng=fd.Rng(5, 1))[0]),
    )
