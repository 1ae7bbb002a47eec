"""The modules for PyTorch: as ``torch.nn``'s, with fastdrop's masks."""

import copy
import io
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from fastdrop.adapters import torch as ft  # noqa: E402
from fastdrop.adapters.torch import draws, kernels, modules  # noqa: E402
from fastdrop.adapters.torch.models import OWN  # noqa: E402

# TorchScript's and the compiler's own, on import and first use.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MODULES = {
    ft.Dropout: (nn.Dropout, (4, 300), {}),
    ft.Dropout1d: (nn.Dropout1d, (8, 40, 5), {"shared_axes": (2,)}),
    ft.Dropout2d: (nn.Dropout2d, (8, 40, 3, 5), {"shared_axes": (2, 3)}),
    ft.Dropout3d: (nn.Dropout3d, (8, 40, 2, 3, 2), {"shared_axes": (2, 3, 4)}),
    ft.AlphaDropout: (nn.AlphaDropout, (4, 300), {}),
    ft.FeatureAlphaDropout: (nn.FeatureAlphaDropout, (8, 40, 5), {"shared_axes": (2,)}),
}


@pytest.fixture(params=MODULES, ids=lambda module: module.__name__)
def module(request):
    return request.param


def op_of(module):
    return (
        fd.alpha_dropout
        if issubclass(module, nn.AlphaDropout | nn.FeatureAlphaDropout)
        else (fd.dropout)
    )


def normal(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def nested():
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def assert_same(y, expected):
    assert_same_bits(np.asarray(y), np.asarray(expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_as_numpy(module, dtype):
    """Forward and backward, call after call."""
    _, shape, more = MODULES[module]
    layer, rng, op = module(0.3, seed=2**63 + 5), fd.Rng(2**63 + 5), op_of(module)
    for _ in range(2):
        x = normal(*shape, dtype=dtype).requires_grad_()
        dy = normal(*shape, dtype=dtype) + 3
        y = layer(x)
        y.backward(dy)
        expected, ctx = op(kernels.array(x), 0.3, rng=rng, **more)
        assert y.dtype == dtype
        same = assert_same if module.axis else assert_same_bits
        same(kernels.array(y), expected)
        same(kernels.array(x.grad), ctx.backward(kernels.array(dy)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_arrays_share_the_tensors_memory(dtype):
    x = torch.ones(3, 4, dtype=dtype).t()
    view = kernels.array(x)
    view[1, 2] = 7
    assert x[1, 2] == 7
    assert view.strides == tuple(s * x.element_size() for s in x.stride())


LAYOUTS = {
    "transposed": lambda: normal(30, 20).t(),
    "strided": lambda: normal(30, 40)[:, ::2],
    "channels last": lambda: normal(2, 3, 8, 5).to(memory_format=torch.channels_last),
    "expanded": lambda: normal(30, 1).expand(30, 20),
    "empty": lambda: normal(0, 3),
    "0-d": lambda: normal(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout):
    """The mask depends on the index, not on the memory."""
    x = LAYOUTS[layout]()
    y = ft.Dropout(0.4, seed=3)(x)
    expected, _ = fd.dropout(x.contiguous().numpy(), 0.4, rng=3)
    assert_same_bits(y.contiguous().numpy(), expected)
    assert y.stride() == torch.empty_like(x).stride()


def test_eval_is_the_input(module):
    layer = module(0.5, seed=1).eval()
    x = normal(*MODULES[module][1])
    assert layer(x) is x
    assert (layer.seed, layer.call) == (1, 0)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_edges_are_those_of_torch(module, p):
    theirs, shape, _ = MODULES[module]
    x, z = (normal(*shape).requires_grad_() for _ in range(2))
    y, expected = module(p)(x), theirs(p)(z)
    assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, z.grad)


def test_distribution_is_that_of_torch(module):
    """Equal up to the mask: the same two kinds of elements, whole maps, and nearly as many."""
    theirs, shape, _ = MODULES[module]
    x = torch.ones(200, *shape[1:])
    y, expected = module(0.3, seed=1)(x), theirs(0.3)(x)
    torch.testing.assert_close(y.unique(), expected.unique())
    size = int(np.prod(shape[2:])) if len(shape) > 2 else 1
    maps = y.reshape(-1, size)
    assert torch.equal(maps, maps[:, :1].expand_as(maps))
    assert (maps[:, 0] == y.max()).double().mean() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("module", [ft.Dropout1d, ft.Dropout3d])
def test_without_a_batch(module):
    x = torch.ones(MODULES[module][1][1:])
    y = module(0.5, seed=1)(x)
    axes = tuple(range(1, x.ndim))
    assert_same_bits(y.numpy(), fd.dropout(x.numpy(), 0.5, rng=1, shared_axes=axes)[0])


def test_maps_of_three_axes_are_channels():
    x = torch.ones(8, 40, 5)
    expected, _ = fd.dropout(x.numpy(), 0.5, rng=1, shared_axes=(2,))
    with pytest.warns(UserWarning, match="Received a 3D input"):
        y = ft.Dropout2d(0.5, seed=1)(x)
    assert_same_bits(y.numpy(), expected)


def test_maps_of_one_element():
    """As in torch, (N, C) will do: each element is a map."""
    x = normal(8, 40)
    y = ft.FeatureAlphaDropout(0.5, seed=1)(x)
    assert_same_bits(y.numpy(), fd.alpha_dropout(x.numpy(), 0.5, rng=1)[0])
    z = torch.ones(200, 40)
    theirs = nn.FeatureAlphaDropout(0.5)(z)
    torch.testing.assert_close(ft.FeatureAlphaDropout(0.5)(z).unique(), theirs.unique())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="dropout probability"):
        ft.Dropout(1.5)
    with pytest.raises(ValueError, match=r"seed must be in 0 ... 2\*\*64 - 1, got -1"):
        ft.Dropout(0.5, seed=-1)
    with pytest.raises(TypeError, match=r"input must be a tensor of float16.*got int64"):
        ft.Dropout(0.5, seed=1)(torch.ones(2, dtype=torch.int64))
    for module in (ft.Dropout(0.5), ft.Dropout(0.5, seed=1), ft.GaussianDropout(0.5)):
        with pytest.raises(TypeError, match="input must be a Tensor, got ndarray"):
            module(np.ones(3))
    with pytest.raises(TypeError, match="input must be a Tensor, got NoneType"):
        ft.dropout(None)
    with pytest.raises(TypeError, match="not nested, got nested"):
        ft.Dropout(0.5, seed=1)(nested())
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        ft.dropout(torch.ones(2), 1.5)
    with pytest.raises(ValueError, match="module has no seed"):
        ft.Dropout(0.5).reset()


def test_dropped_infinities_are_zero():
    x = torch.full((1000,), torch.inf, requires_grad=True)
    for layer in (ft.Dropout(0.5, seed=1), ft.Dropout1d(0.5, seed=1)):
        y = layer(x.reshape(10, 10, 10))
        assert set(y.flatten().tolist()) == {0.0, torch.inf}


def test_in_place():
    x = torch.ones(300)
    y = ft.Dropout(0.5, inplace=True, seed=1)(x)
    assert y is x
    assert_same_bits(x.numpy(), fd.dropout(np.ones(300, np.float32), 0.5, rng=1)[0])
    z = torch.ones(300, requires_grad=True)
    y = ft.Dropout(0.5, inplace=True, seed=1)(z * 3)
    y.sum().backward()
    assert torch.equal(z.grad, x * 3)


def test_torchs_seed_repeats_a_run():
    layer, x = ft.Dropout(0.5), torch.ones(300)
    torch.manual_seed(5)
    first, second = layer(x), layer(x)
    torch.manual_seed(5)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, kernels.SMALL, kernels.SMALL + 1])
@pytest.mark.parametrize("module", [ft.Dropout, ft.AlphaDropout])
def test_one_mask_for_small_and_large_tensors(module, size, dtype):
    """Their roads differ if no seed is given; y is the same, +0 where an infinity is dropped."""
    x = normal(size, dtype=dtype)
    x[::7] = torch.inf
    x.requires_grad_()
    torch.manual_seed(5)
    draw = torch.empty(2, dtype=torch.int64).random_().tolist()
    torch.manual_seed(5)
    y = module(0.3)(x)
    expected, ctx = op_of(module)(kernels.array(x), 0.3, rng=fd.Rng(*draw))
    assert_same_bits(kernels.array(y), expected)
    dy = normal(size, dtype=dtype)
    (dx,) = torch.autograd.grad(y, x, dy, create_graph=True)
    np.testing.assert_array_equal(kernels.array(dx), ctx.backward(kernels.array(dy)))
    torch.manual_seed(5)
    with torch.no_grad():
        assert torch.equal(module(0.3)(x), y)


def test_own_seed_does_not_depend_on_torchs():
    x = torch.ones(300)
    torch.manual_seed(5)
    first = ft.Dropout(0.5, seed=1)(x)
    torch.manual_seed(6)
    assert torch.equal(ft.Dropout(0.5, seed=1)(x), first)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_own_seed_leaves_torchs_generator_where_it_is(mode):
    torch.manual_seed(5)
    with mode():
        ft.Dropout(0.5, seed=1)(torch.ones(300, requires_grad=True))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_state_dict_goes_on_with_the_masks():
    model, x = nn.Sequential(ft.Dropout(0.5, seed=2**64 - 1)), torch.ones(300)
    model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    expected = model(x)
    again = nn.Sequential(ft.Dropout(0.5, seed=2**64 - 1))
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(again(x), expected)
    assert repr(again[0]) == f"Dropout(p=0.5, inplace=False, seed={2**64 - 1})"


def test_a_rank_keeps_its_seed():
    """And takes the position from the state dict of another."""
    first, second = (
        ft.replace(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)), seed=1000 + r) for r in (0, 1)
    )
    first(torch.ones(3, 8))
    seed, x = second[1].seed, torch.ones(300)
    state = first.state_dict()
    for model in (first, second):
        model.load_state_dict(state)
        assert model[1].call == 1
    assert second[1].seed == seed != first[1].seed
    assert not torch.equal(first[1](x), second[1](x))


def test_the_last_call_is_followed_by_none():
    """Counting on would begin again with the masks of call 0."""
    module = ft.Dropout(0.5, seed=7)
    module.reset(2**64 - 2)
    y = module(torch.ones(64)).numpy()
    assert_same_bits(y, fd.dropout(np.ones(64, np.float32), rng=fd.Rng(7, 2**64 - 2))[0])
    for _ in range(2):
        with pytest.raises(ValueError, match="has given all its calls; take another seed"):
            module(torch.ones(64))


def test_state_dicts_load_both_ways():
    """Strictly, between PyTorch's modules, ours, and ours with a seed."""
    drops = nn.Dropout(0.5), ft.Dropout(0.5), ft.Dropout(0.5, seed=1)
    models_ = [nn.Sequential(nn.Linear(3, 3), drop) for drop in drops]
    for source in models_:
        for target in models_:
            target.load_state_dict(source.state_dict())


def test_copies_are_independent():
    layer, x = ft.Dropout(0.5, seed=1), torch.ones(300)
    layers = [layer, *(copy.deepcopy(layer) for _ in range(3)), ft.Dropout(0.5, seed=1)]
    layers += [copy.deepcopy(layers[1]), copy.deepcopy(layers[-1])]
    *ys, first, grandchild, again = [module(x) for module in layers]
    assert len({y.numpy().tobytes() for y in [*ys, grandchild]}) == 5
    assert torch.equal(ys[0], first)
    assert torch.equal(ys[1], again)
    assert [module.call for module in layers] == [1] * 7
    assert repr(layers[1]) == f"Dropout(p=0.5, inplace=False, seed={layers[1].seed})"


def test_layers_that_torch_copies():
    """`TransformerEncoder` copies one layer: each of them draws other masks."""
    layer = ft.replace(nn.TransformerEncoderLayer(4, 2), seed=7)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    seeds = [m.seed for m in encoder.modules() if isinstance(m, ft.Dropout)]
    assert len(set(seeds)) == len(seeds) == 9
    encoder(torch.ones(5, 2, 4)).sum().backward()


def test_module_goes_to_another_dtype():
    layer = nn.Sequential(ft.Dropout(0.5, seed=1)).to(torch.float16).to("meta")
    assert (layer[0].seed, layer[0].call) == (1, 0)


@pytest.mark.parametrize("op", ["dropout", "alpha_dropout"])
@pytest.mark.parametrize("shared_axes", [[], [1]])
def test_gradients(op, shared_axes):
    """First and second order, by central differences."""
    draw = torch.tensor([5, 2])
    x = normal(6, 4, dtype=torch.float64).requires_grad_()

    def function(x):
        return getattr(kernels, op + "_op")(x, draw, 0.3, shared_axes) * x

    assert torch.autograd.gradcheck(function, x, rtol=1e-6)
    assert torch.autograd.gradgradcheck(function, x, rtol=1e-6)


def test_forward_mode(module):
    """The tangent goes through the same mask; what has none stays without."""
    _, shape, more = MODULES[module]
    x, dx = normal(*shape), normal(*shape) + 3
    expected, ctx = op_of(module)(x.numpy(), 0.3, rng=5, **more)
    y, dy = torch.func.jvp(module(0.3, seed=5), (x,), (dx,))
    assert_same_bits(y.numpy(), expected)
    assert_same_bits(dy.numpy(), ctx.backward(dx.numpy()))
    with torch.autograd.forward_ad.dual_level():
        y = module(0.3, seed=5)(x)
        assert torch.autograd.forward_ad.unpack_dual(y).tangent is None


@pytest.mark.parametrize("create_graph", [False, True])
def test_forward_over_reverse(create_graph):
    """A product with the Hessian of sum(dropout(x^2)^2), which is 12 x^2 s^2 on the diagonal."""
    x, v = (normal(300, dtype=torch.float64) + k for k in (0, 3))
    with torch.autograd.forward_ad.dual_level():
        z = torch.autograd.forward_ad.make_dual(x.requires_grad_(), v)
        loss = ft.Dropout(0.3, seed=5)(z * z).square().sum()
        (dz,) = torch.autograd.grad(loss, z, create_graph=create_graph)
        product = torch.autograd.forward_ad.unpack_dual(dz).tangent
    scale = torch.from_numpy(fd.dropout(np.ones(300), 0.3, rng=5)[0])
    torch.testing.assert_close(product, 12 * x**2 * scale**2 * v)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the check's own
@pytest.mark.parametrize(
    "op", [kernels.dropout_op, kernels.alpha_dropout_op], ids=["dropout", "alpha"]
)
def test_opcheck(op):
    draw = torch.tensor([1, 2])
    torch.library.opcheck(op, (normal(4, 6).requires_grad_(), draw, 0.3, []))
    torch.library.opcheck(op, (normal(4, 6, dtype=torch.bfloat16)[:, ::2].t(), draw, 0.3, [1]))


def test_opcheck_of_the_counter():
    torch.library.opcheck(draws.next_call, (torch.tensor([1, 2, 3]), torch.tensor(4)))


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_computes_the_same_mask_again(seed, use_reentrant):
    layer = ft.Dropout(0.5, seed=seed)
    linear = nn.Linear(30, 30)
    x = normal(8, 30)

    def block(x):
        return layer(linear(layer(linear(x))))  # one module, two calls

    def gradients(run):
        torch.manual_seed(1)
        if seed:
            layer.reset()
        z = x.clone().requires_grad_()
        linear.zero_grad()
        run(block, run(block, z)).square().sum().backward()
        return z.grad, linear.weight.grad

    plain = gradients(lambda f, z: f(z))
    again = gradients(lambda f, z: checkpoint(f, z, use_reentrant=use_reentrant))
    assert plain[0].abs().sum() > 0
    assert torch.equal(plain[0], again[0])
    torch.testing.assert_close(plain[1], again[1])  # sums, in another order
    if seed:
        assert (layer.seed, layer.call) == (7, 4)


def test_checkpoint_that_forgets_the_random_state():
    layer, x = ft.Dropout(0.5, seed=7), torch.ones(30, requires_grad=True)

    def block(x):
        return layer(x.exp()).exp()

    y = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    with pytest.raises(RuntimeError, match="preserve_rng_state=True"):
        y.sum().backward()


def test_reset_between_the_passes_of_a_checkpoint():
    layer, x = ft.Dropout(0.5, seed=7), torch.ones(300, requires_grad=True)
    y = checkpoint(lambda x: layer(x.exp()).exp(), x, use_reentrant=False)
    layer.reset(40)
    y.sum().backward()
    assert torch.equal(y != 1, x.grad != 0)
    assert layer.call == 40


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_a_compiled_checkpoint_counts_each_call_once(inside, use_reentrant):
    """Whether what is compiled is in the checkpoint, or the checkpoint in what is compiled. Of the
    calls one module has two, and another is of the same seed."""
    first, second = (ft.Dropout(0.5, seed=7) for _ in range(2))
    second.reset(40)

    def block(x):
        return torch.stack([layer(x.exp()) * x.exp() for layer in (first, second, first)])

    def run(x):
        step = torch.compile(block) if inside else block
        return checkpoint(step, x, use_reentrant=use_reentrant)

    torch.compiler.reset()
    step = run if inside else torch.compile(run)
    for i in range(2):
        x = torch.ones(300, requires_grad=True)
        y = step(x)
        y.sum().backward()
        for mask, call in zip(y, (2 * i, 40 + i, 2 * i + 1), strict=True):
            expected = fd.keep_mask(300, 0.5, rng=fd.Rng(7, call))
            np.testing.assert_array_equal((mask > 0).numpy(), expected)
        torch.testing.assert_close(x.grad, 2 * y.detach().sum(0))  # y is exp(2 x) * scale
        assert (first.call, second.call) == (2 * i + 2, 41 + i)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7])
def test_compile(seed):
    """One graph; forward, backward and a checkpoint's recomputation agree on the mask."""
    layer = ft.Dropout(0.5, seed=seed)

    def square(x):
        return layer(x).square()

    functions = [square]
    if seed is None:  # a whole graph has no changes of state in a checkpoint
        functions.append(lambda x: checkpoint(square, x, use_reentrant=False))
    for function in functions:
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True)
        masks = []
        for _ in range(3):
            x = (normal(40, 30) + 5).requires_grad_()
            y = compiled(x)
            y.sum().backward()
            torch.testing.assert_close(x.grad * x / 2, y)
            masks.append(y > 0)
            assert masks[-1].double().mean() == pytest.approx(0.5, abs=0.05)
        assert not torch.equal(masks[0], masks[1])
        assert not torch.equal(masks[1], masks[2])
    if seed:
        expected = fd.keep_mask((40, 30), 0.5, rng=fd.Rng(7, 2))
        np.testing.assert_array_equal(masks[2].numpy(), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # the compiler's, of what it looks into
@pytest.mark.parametrize(
    "layer",
    [ft.Dropout(0.5), ft.Dropout(0.5, seed=7, shared_axes=(0,)), ft.AlphaDropout(0.5)],
    ids=["dropout", "shared", "alpha"],
)
def test_compiled_transforms(layer):
    """Custom operators drop tangents silently, and know no transforms."""
    ones, duals = torch.ones(8, 30), torch.autograd.forward_ad
    scale = fd.alpha_dropout(np.ones(1), 0.5, rng=0)[1].scale if layer.op else 2.0

    def forward(x):
        return torch.func.jvp(layer, (x,), (x,))

    def back(x):
        y, gradient = torch.func.vjp(layer, x)
        return y, gradient(x)[0]

    def dual(x):
        with duals.dual_level():
            return duals.unpack_dual(
                torch.compile(layer, backend="aot_eager")(duals.make_dual(x, x))
            )

    def gradient(x):
        def total(x):
            y = layer(x)
            return y.sum(), y

        return torch.func.grad(total, has_aux=True)(x)[::-1]

    def compiled(function):
        torch.compiler.reset()
        return torch.compile(function, backend="aot_eager")(ones)

    for y, dx in (compiled(forward), compiled(back), compiled(gradient), dual(ones)):
        torch.testing.assert_close(dx, torch.where(y > 0, scale, 0.0))
        assert 0 < (dx == 0).sum() < dx.numel()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("budget", [0.5, 0.1])
def test_compile_with_a_memory_budget(budget, seed):
    """What the backward pass computes again has the forward pass's mask."""
    with torch._functorch.config.patch(activation_memory_budget=budget):
        torch.compiler.reset()
        layer, x = ft.Dropout(0.5, seed=seed), torch.rand(64, 64, requires_grad=True)
        run = torch.compile(lambda t: layer((t * 2).sin().exp()).exp(), fullgraph=True)
        for _ in range(2):
            y = run(x)
            (dx,) = torch.autograd.grad(y.sum(), x)
            assert torch.equal(y != 1, dx != 0)
            assert 0.4 < (y != 1).double().mean() < 0.6


def test_tensors_on_a_gpu(monkeypatch):
    """They go through the door as they are, and y comes from there."""

    class OnDevice(torch.Tensor):
        is_cuda = True

        def numpy(self):
            raise AssertionError("copied to the host")

    calls = []

    def seen(x, p, draw, constants, op, shared_axes, region, rows, *, out, given):
        calls.append((op, p, draw, shared_axes, constants))
        assert isinstance(x, OnDevice)
        assert isinstance(out, OnDevice)
        out.fill_(7)

    monkeypatch.setattr(kernels, "drop", seen)
    x = torch.ones(3, 4).as_subclass(OnDevice)
    y = kernels.dropout_op._init_fn(x, torch.tensor([-1, 5]), 0.3, [1], 2.0)
    assert calls == [(kernels.DROPOUT, 0.3, (2**64 - 1, 5), (1,), (2.0, 0.0, 0.0))]
    assert torch.equal(y.as_subclass(torch.Tensor), torch.full((3, 4), 7.0))


def test_shape_inference_on_a_gpu():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(3, 4, device="cuda", dtype=torch.bfloat16)
        y = ft.Dropout(0.5)(x)
    assert (y.shape, y.dtype, y.device) == (x.shape, x.dtype, x.device)


@pytest.mark.parametrize("seed", [None, 7])
def test_shape_inference_outside_of_its_mode(seed):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x = FakeTensorMode().from_tensor(torch.ones(3, 4, requires_grad=True))
    layer = ft.Dropout(0.5, seed=seed)
    y = layer(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert type(y) is type(dx) is type(x)
    assert y.shape == dx.shape == x.shape
    assert layer.call == (None if seed is None else 0)


@pytest.mark.parametrize("seed", [None, 7])
def test_shape_inference_in_its_mode(seed):
    """Of modules that were made outside; nothing is drawn."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    layers = [ft.Dropout(0.5, seed=seed), ft.GaussianDropout(0.5, seed=seed)]
    state = torch.get_rng_state()
    with FakeTensorMode():
        x = torch.ones(3, 4, requires_grad=True)
        for layer in layers:
            (dx,) = torch.autograd.grad(layer(x).sum(), x)
            each = torch.vmap(layer, randomness="different")(x)
            of = torch.func.grad(lambda x, layer=layer: layer(x).sum())(x)
            assert dx.shape == each.shape == of.shape == x.shape
            assert layer.call == (None if seed is None else 0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tracing_mode", ["real", "fake"])
@pytest.mark.parametrize("layer", [ft.Dropout(0.5), ft.GaussianDropout(0.5)], ids=["kept", "noise"])
def test_transforms_in_a_graph_draw_each_time(layer, tracing_mode):
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.ones(4, 50)
    for function in (
        torch.func.grad(lambda x: (layer(x) * x).sum()),
        torch.vmap(layer, randomness="different"),
    ):
        graph = make_fx(function, tracing_mode=tracing_mode)(x)
        first, second = graph(x), graph(x)
        assert not torch.equal(first, second)
        assert not torch.equal(first[0], first[1])


def test_replace():
    shared = nn.Dropout(0.2, inplace=True)
    model = nn.Sequential(
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True),
        nn.Sequential(shared, nn.Dropout2d(0.4).eval(), shared),
        nn.AlphaDropout(0.1),
    )
    names = [name for name, _ in model.named_modules()]
    keys = model.state_dict().keys()
    assert ft.replace(model) is model
    assert [name for name, _ in model.named_modules()] == names
    assert model.state_dict().keys() == keys
    encoder, (first, maps, third), alpha = model
    assert [type(m) for m in (encoder.dropout, encoder.dropout1, encoder.dropout2)] == (
        [ft.Dropout] * 3
    )
    assert first is third is shared
    assert (type(first), first.p, first.inplace) == (ft.Dropout, 0.2, True)
    assert (type(maps), maps.training, type(alpha)) == (nn.Dropout2d, False, ft.AlphaDropout)
    assert isinstance(ft.replace(nn.Dropout(0.1)), ft.Dropout)
    ft.replace(model, seed=1)  # what is left is ours where its masks are to be named
    assert (type(model[1][1]), model[1][1].training) == (ft.Dropout2d, False)
    assert not any(type(m) in modules.OURS for m in model.modules())


def test_replace_with_a_seed():
    def masks(seed):
        model = ft.replace(nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5)), seed=seed)
        return [layer(torch.ones(300)) for layer in model]

    assert torch.equal(torch.stack(masks(1)), torch.stack(masks(1)))
    assert not torch.equal(*masks(1))
    assert not torch.equal(masks(1)[0], masks(2)[0])


def test_training():
    """A small network learns which of two halves of the input is the larger."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), ft.Dropout(0.3), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x = normal(512, 20)
    t = (x[:, :10].sum(1) > x[:, 10:].sum(1)).long()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), t).backward()
        optimizer.step()
    model.eval()
    assert (model(x).argmax(1) == t).double().mean() > 0.97


def test_tensors_of_any_kind_go_to_the_host_and_back():
    """What `fastdrop.cuda` does with a context's tensors, on a CPU's."""
    from fastdrop.backends.cuda.libraries import KINDS

    kind = KINDS["torch"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64):
        x = torch.arange(6).reshape(2, 3).to(dtype)
        x.requires_grad = dtype.is_floating_point
        host = kind.fetch(x)
        assert host.dtype.name == str(dtype).removeprefix("torch.")
        assert torch.equal(kind.send(x, host), x)


@pytest.mark.parametrize("ndim", range(7))
def test_ranks_are_those_of_torch(module, ndim):
    """The same shape, error and warnings."""

    def outcome(module):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = module(torch.ones([3] * ndim)).shape
            except RuntimeError as error:
                result = str(error)
        return result, [str(warning.message) for warning in caught]

    for p, training in ((0.5, True), (0.5, False), (0.0, True)):
        theirs = outcome(MODULES[module][0](p).train(training))
        assert outcome(module(p).train(training)) == theirs
        assert outcome(module(p, seed=1).train(training)) == theirs


def test_nothing_is_drawn_for_nothing(module):
    """At p = 0 and in eval mode y is x; a seed leaves PyTorch's generator alone."""
    x = torch.ones(MODULES[module][1])
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    layer = module(0.0, seed=5)
    assert layer(x) is x
    assert layer.call == 0
    assert module(0.0)(x) is module(0.5).eval()(x) is x
    module(0.5, seed=1)(x)
    assert torch.equal(torch.rand(2), expected)


def test_kinds_that_torchs_module_serves():
    """Nested tensors and other dtypes go to PyTorch's own."""
    y = ft.Dropout(0.5)(nested())
    assert y.is_nested
    assert set(y.values().tolist()) <= {0.0, 2.0}


def test_transforms_of_functions(module):
    """Gradients, and batches with one mask or with one each, are those of a single mask."""
    _, shape, more = MODULES[module]
    x, op = normal(3, *shape), op_of(module)

    def gradient(x):
        return torch.func.grad(lambda a: (module(0.3, seed=5)(a) ** 2).sum())(x)

    z = x[0].clone().requires_grad_()
    (module(0.3, seed=5)(z) ** 2).sum().backward()
    torch.testing.assert_close(gradient(x[0]), z.grad)
    per_example = torch.vmap(gradient, randomness="same")(x)
    torch.testing.assert_close(per_example[0], z.grad)
    y, back = torch.func.vjp(module(0.3, seed=5), x[0])
    expected, ctx = op(x[0].numpy(), 0.3, rng=5, **more)
    torch.testing.assert_close(y, torch.from_numpy(expected))
    torch.testing.assert_close(
        back(torch.ones_like(y))[0], torch.from_numpy(ctx.backward(np.ones_like(expected)))
    )


def test_vmap_with_masks_of_their_own():
    """Examples are the first axis of one mask, nested or not, batched or not."""
    x = torch.ones(3, 4, 50)
    expected = torch.from_numpy(fd.dropout(x.numpy(), 0.3, rng=5)[0])
    inner = torch.vmap(ft.Dropout(0.3, seed=5), randomness="different")
    assert torch.equal(inner(x), expected)
    layer = ft.Dropout(0.3, seed=5)
    outer = torch.vmap(torch.vmap(layer, randomness="different"), randomness="different")
    assert torch.equal(outer(x), expected)
    assert layer.call == 1
    layer = ft.Dropout(0.3, seed=5)
    unbatched = torch.vmap(lambda a: layer(x[0]) * a, randomness="different")(torch.ones(3))
    assert torch.equal(unbatched, expected)
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.vmap(ft.Dropout(0.3))(x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("shared_axes", [(), (0,)])
def test_compiled_vmap_has_the_mask_of_an_eager_one(shared_axes):
    def run(layer, x):
        inner = torch.vmap(layer, randomness="different")
        return torch.vmap(inner, randomness="different")(x), inner(x)

    x = torch.ones(3, 4, 50)
    eager, ours = (ft.Dropout(0.3, seed=5, shared_axes=shared_axes) for _ in range(2))
    torch.compiler.reset()
    compiled = torch.compile(lambda x: run(ours, x), backend="aot_eager")
    for _ in range(2):
        for y, expected in zip(compiled(x), run(eager, x), strict=True):
            assert torch.equal(y, expected)
    assert ours.call == eager.call == 4


def test_symbolic_trace():
    """One node, which drops in train mode and not in eval mode."""
    net = ft.replace(nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5))).train()
    graph, x = torch.fx.symbolic_trace(net), torch.ones(2, 64)
    nodes = [node.op for node in graph.graph.nodes]
    assert nodes == ["placeholder", "call_module", "call_module", "output"]
    assert not torch.equal(graph(x), graph(x))
    assert torch.equal(graph.eval()(x), net.eval()(x))


def test_script():
    """Of a model in eval mode; TorchScript has PyTorch's own module."""
    net = ft.replace(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), seed=1).eval()
    x = torch.ones(2, 3)
    assert torch.equal(torch.jit.script(net)(x), net(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(dynamo, training, seed, tmp_path):
    """The graph of PyTorch's own modules, with a Dropout node in train mode; it runs."""
    onnx, runtime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    pytest.importorskip("onnxscript")
    plain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    x, graphs = normal(4, 8), []
    options = {"dynamo": dynamo, "verbose": False}
    if not dynamo:
        options |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    for i, model in enumerate((plain, ft.replace(copy.deepcopy(plain), seed=seed))):
        file = tmp_path / f"{i}.onnx"
        torch.onnx.export(model.train(training), (x,), file, **options)
        graphs.append([node.op_type for node in onnx.load(file).graph.node])
    assert graphs[0] == graphs[1]
    assert ("Dropout" in graphs[1]) == training
    session = runtime.InferenceSession(file)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert y.shape == (4, 3)
    if not training:
        torch.testing.assert_close(torch.from_numpy(y), plain.eval()(x).detach())


def test_replaced_modules_stay_the_same_objects():
    """What refers to them elsewhere, their hooks and attributes stay; `restore` takes all back."""
    calls = []
    model = nn.Sequential(Loud(0.5), Quiet(0.5), nn.Dropout(0.5))
    before = list(model)
    model[1].note = "mine"
    model[1].register_forward_hook(lambda *_: calls.append("hook"))
    kept = dict(vars(model[1]))
    ft.replace(model, seed=3)
    assert all(a is b for a, b in zip(model, before, strict=True))
    assert [isinstance(m, ft.Dropout) for m in model] == [False, True, True]
    assert isinstance(model[1], Quiet)
    assert model[1].note == "mine"
    x = torch.ones(300)
    y = model[1](x)
    assert calls == ["hook"]
    assert_same_bits(y.numpy(), fd.dropout(x.numpy(), 0.5, rng=model[1].seed)[0])
    del model[1]._forward_hooks[next(iter(model[1]._forward_hooks))]
    again = pickle.loads(pickle.dumps(model[1]))
    assert (type(again), again.seed, again.call) == (type(model[1]), model[1].seed, 1)
    assert ft.restore(model) is model
    assert [type(m) for m in model] == [Loud, Quiet, nn.Dropout]
    assert vars(model[1]) == kept
    assert type(ft.restore(again)) is Quiet


def test_what_replace_leaves(capsys):
    """A subclass with attributes that mean something else in ours, and a forward of an object's."""
    named, own = Quiet(0.5), nn.Dropout(0.5)
    named.draws, named.seed = 30, 5
    own.forward = lambda x: x
    model = ft.replace(nn.Sequential(named, own), seed=3, verbose=True)
    assert (named.draws, named.seed, type(named), type(own)) == (30, 5, Quiet, nn.Dropout)
    assert ft.restore(model) is model
    assert (named.draws, named.seed) == (30, 5)
    told = capsys.readouterr().out
    assert "0 (Quiet): left: it has draws and seed, which mean something else in ours" in told
    assert "1 (Dropout): left: it has a forward of its own" in told


def test_attributes_that_ours_add():
    plain, ours = nn.Dropout(0.5), ft.Dropout(0.5)
    added = {name for name in dir(ours) if not name.startswith("_")} - {*dir(plain)}
    assert added == {*OWN, "adopt"}


class Loud(nn.Dropout):
    def forward(self, input):
        return super().forward(input) + 1


class Quiet(nn.Dropout):
    pass


def test_replace_tells_what_it_leaves(capsys):
    other = nn.Identity()
    other.attn_pdrop, other.hidden_dropout_prob, other.dropout = 0.1, 0.2, 0.0
    lstm = nn.LSTM(3, 3, 2, dropout=0.25)
    model = nn.Sequential(Loud(0.5), nn.Dropout(0.5), lstm, nn.ReLU(), other)
    ft.replace(model, verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "0 (Loud): left: it has a forward of its own",
        "1 (Dropout): replaced",
        "2 (LSTM): left: calls a function with its dropout of 0.25, which enable() reaches",
        "4 (Identity): left: calls a function with its attn_pdrop of 0.1 and "
        "hidden_dropout_prob of 0.2, which enable() reaches",
    ]


def test_a_hand_written_checkpoint_has_the_masks_of_its_module():
    """Also if other modules with seeds drew after the same manual_seed."""

    class Again(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, layer):
            ctx.layer, ctx.state = layer, torch.get_rng_state()
            ctx.save_for_backward(x)
            return layer(x)

        @staticmethod
        def backward(ctx, dy):
            torch.set_rng_state(ctx.state)
            x = ctx.saved_tensors[0].detach().requires_grad_()
            with torch.enable_grad():
                y = ctx.layer(x)
            return torch.autograd.grad(y, x, dy)[0], None

    layers = [ft.Dropout(0.5, seed=seed) for seed in (1, 2, 1)]
    x, ys = torch.ones(300, requires_grad=True), []
    for layer in layers:
        layer.reset(int(layer is layers[2]))  # the third has the seed of the first
        torch.manual_seed(7)
        ys.append(Again.apply(x, layer))
    for y in ys:
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(dx, y)


def test_threads_never_share_a_call():
    layer, x = ft.Dropout(0.5, seed=1), torch.ones(300)
    with ThreadPoolExecutor(8) as pool:
        ys = list(pool.map(lambda _: layer(x).numpy().tobytes(), range(400)))
    assert len(set(ys)) == layer.call == 400


def test_the_function():
    x = normal(6, 40).requires_grad_()
    expected, _ = fd.dropout(x.detach().numpy(), 0.3, rng=fd.Rng(5, 2))
    for wrong in (3, fd.Rng(5, 2), [5, 2], (5,)):
        with pytest.raises(ValueError, match=r"draw must be \(seed, call\), such as \(rng.seed"):
            ft.dropout(x, 0.3, draw=wrong)
    y = ft.dropout(x, 0.3, draw=(5, 2))
    assert_same_bits(y.detach().numpy(), expected)
    assert ft.dropout(x, 0.3, training=False) is ft.dropout(x, 0.0) is x
    whole = (6, 40)
    part = ft.dropout(x[2:4, 10:], 0.3, draw=(5, 2), region=((2, 10), whole))
    assert_same_bits(part.detach().numpy(), expected[2:4, 10:])
    ids = torch.tensor([4, 0, 4])
    for rows in (ids, ids.numpy()):
        some = ft.dropout(x[ids], 0.3, draw=(5, 2), rows=rows)
        assert_same_bits(some.detach().numpy(), expected[ids.numpy()])
        assert torch.equal(ft.Dropout(0.3, seed=5)(x[ids], rows=rows) != 0, masks(5)[ids])
    (dx,) = torch.autograd.grad(some.sum(), x)
    assert torch.equal(dx != 0, (y != 0) & torch.tensor([1, 0, 0, 0, 1, 0]).bool()[:, None])
    shared = ft.dropout(x, 0.3, draw=(5, 2), shared_axes=(-1,))
    np.testing.assert_array_equal(
        shared.detach().numpy(),
        fd.dropout(x.detach().numpy(), 0.3, rng=fd.Rng(5, 2), shared_axes=(1,))[0],
    )
    z = torch.ones(5)
    assert ft.dropout(z, 0.5, True, True) is z


def masks(seed):
    return torch.from_numpy(fd.keep_mask((6, 40), 0.3, rng=seed))


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_bfloat16_without_ml_dtypes(layout, monkeypatch):
    x = normal(50, 40, dtype=torch.bfloat16)
    x = (x if layout == "contiguous" else x.t()).detach().requires_grad_()
    y = ft.Dropout(0.3, seed=5)(x)
    (dx,) = torch.autograd.grad(y.float().sum(), x)
    monkeypatch.setattr(kernels, "HAS_BFLOAT16", False)
    monkeypatch.setattr(kernels, "array", lambda t: t.detach().numpy())  # refuses bfloat16
    again = ft.Dropout(0.3, seed=5)(x)
    assert torch.equal(again, y)
    assert torch.equal(torch.autograd.grad(again.float().sum(), x)[0], dx)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("form", ["to_sparse_coo", "to_sparse_csr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse(form, dtype):
    """Stored entries get the dense tensor's mask, and gradients go through it."""
    x = torch.randn(30, 40, dtype=dtype)
    x[torch.rand(30, 40) < 0.7] = 0
    dense = ft.Dropout(0.3, seed=5)(x)
    stored = getattr(x, form)().requires_grad_()
    y = ft.Dropout(0.3, seed=5)(stored)
    assert y.layout is stored.layout
    assert torch.equal(y.detach().to_dense(), dense)
    y.to_dense().sum().backward()
    slope = torch.where(dense != 0, torch.tensor(1 / 0.7, dtype=dtype), 0.0)
    assert torch.equal(stored.grad.to_dense(), torch.where(x != 0, slope, 0.0))
    layer = ft.Dropout(0.3).eval()
    assert layer(stored) is stored


def test_sparse_errors():
    x = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match="inplace must be False"):
        ft.Dropout(0.5, inplace=True)(x)
    with pytest.raises(TypeError, match="sparse along all 3 axes"):
        ft.Dropout(0.5)(torch.ones(2, 3, 4).to_sparse(1))
    with pytest.raises(TypeError, match="COO or CSR"):
        ft.Dropout(0.5)(torch.eye(3).to_sparse_csc())


@pytest.mark.parametrize("layer", [ft.Dropout(0.5), ft.AlphaDropout(0.5, seed=1)], ids=repr)
def test_gradients_in_a_batch(layer):
    """PyTorch's older vmap, which ``torch.autograd.functional`` and its tests use."""
    x, dys = torch.ones(60, 100, requires_grad=True), normal(3, 60, 100)
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, dys, is_grads_batched=True, retain_graph=True)
    for got, dy in zip(dx, dys, strict=True):
        assert torch.equal(got, torch.autograd.grad(y, x, dy, retain_graph=True)[0])


def test_alpha_dropout_is_never_in_place():
    for kind in (nn.AlphaDropout, nn.FeatureAlphaDropout):
        x = torch.ones(8, 64)
        ft.replace(kind(0.5, inplace=True))(x)
        assert torch.equal(x, torch.ones(8, 64))


def test_modules_from_a_pickle_draw_from_the_generator():
    layer = pickle.loads(pickle.dumps(ft.Dropout(0.5)))
    assert layer.draws is draws.FROM_GENERATOR
    assert layer(nested()).is_nested
