"""DropConnect for PyTorch: the numbers of `fastdrop.dropconnect`."""

import numpy as np
import pytest

import fastdrop as fd

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fastdrop.adapters import torch as ft  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def layer_of(mode, mask_bias=True, bias=True, p=0.4):
    torch.manual_seed(0)
    options = {"p": p, "mode": mode, "mask_bias": mask_bias, "seed": 5}
    return ft.DropConnect(6, 3, bias, dtype=torch.float64, **options)


def inputs():
    return torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("mode", ["example", "batch", "gaussian"])
@pytest.mark.parametrize(("bias", "mask_bias"), [(True, True), (True, False), (False, True)])
def test_the_numbers_of_numpy(mode, bias, mask_bias, p):
    """Forward and backward, call after call."""
    layer, rng, x = layer_of(mode, mask_bias, bias, p), fd.Rng(5), inputs().requires_grad_()
    weight = layer.weight.detach().numpy().T
    for _ in range(2):
        parameters = [x, *layer.parameters()]
        y = layer(x)
        gradients = torch.autograd.grad(y.square().sum(), parameters)
        expected, ctx = fd.dropconnect(
            x.detach().numpy(),
            weight,
            layer.bias.detach().numpy() if bias else None,
            p,
            **{"rng": rng, "mode": mode, "mask_bias": mask_bias},
        )
        torch.testing.assert_close(y.detach(), torch.from_numpy(np.asarray(expected)))
        dx, dweight, *dbias = ctx.backward(2 * expected)
        for gradient, right in zip(gradients, [dx, dweight.T, *dbias], strict=True):
            torch.testing.assert_close(gradient, torch.from_numpy(np.ascontiguousarray(right)))


@pytest.mark.parametrize("mode", ["example", "batch", "gaussian"])
def test_derivatives(mode):
    x = inputs().requires_grad_()

    def function(x, weight, bias):
        layer = layer_of(mode)
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, x).square()

    parameters = [p.detach().requires_grad_() for p in layer_of(mode).parameters()]
    assert torch.autograd.gradcheck(function, (x, *parameters))
    if mode != "example":
        assert torch.autograd.gradgradcheck(function, (x, *parameters))
        return
    (dx,) = torch.autograd.grad(function(x, *parameters).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"fastdrop::dropconnect_backward|no autograd formula"):
        torch.autograd.grad(dx.sum(), x)


def test_module():
    layer, x = layer_of("example"), inputs()
    plain = nn.Linear(6, 3, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x), plain(x))
    assert torch.equal(torch.jit.script(layer)(x), plain(x))
    layer.train().p = 0.0
    assert torch.equal(layer(x), plain(x))
    assert layer.call == 0
    assert "seed=5, p=0.0, mode=example, mask_bias=True" in repr(layer)
    with pytest.raises(TypeError, match="float32 or float64"):
        ft.DropConnect(6, 3, dtype=torch.float16)(x.half())
    with pytest.raises(ValueError, match="mode must be one of"):
        ft.DropConnect(6, 3, mode="row")


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the check's own
def test_opcheck():
    from fastdrop.adapters.torch.connect import connect_op

    layer, draw = layer_of("example"), torch.tensor([1, 2])
    for bias in (layer.bias, None):
        torch.library.opcheck(
            connect_op, (inputs().requires_grad_(), layer.weight, bias, draw, 0.3)
        )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["example", "batch", "gaussian"])
def test_compile(mode):
    """One graph; the masks of the eager call."""
    torch.compiler.reset()
    layer, eager, x = layer_of(mode), layer_of(mode), inputs()
    run = torch.compile(lambda a: layer(a) * 2, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(run(x), eager(x) * 2)


def test_transforms_of_masks_that_are_never_there():
    """PyTorch would give tangents of zeros, and all examples of a vmap one mask."""
    layer, x = layer_of("example"), inputs()
    for transform in (
        lambda: torch.func.jvp(layer, (x,), (x,)),
        lambda: torch.func.grad(lambda x: layer(x).sum())(x),
        lambda: torch.vmap(layer, randomness="different")(x),
    ):
        with pytest.raises(NotImplementedError, match='take mode="batch" or "gaussian"'):
            transform()
    assert layer.call == 0
