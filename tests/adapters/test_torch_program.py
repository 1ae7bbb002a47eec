"""`enable`: dropout that goes through PyTorch's dispatcher is ours, and PyTorch's afterwards."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastdrop.adapters import torch as ft  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def closed():
    yield
    ft.disable()


def seeded(run):
    torch.manual_seed(3)
    return run()


X = torch.linspace(1, 2, 128 * 64).reshape(128, 64)
CALLS = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "in place": lambda x: F.dropout(x * 1, 0.3, inplace=True),
    "alpha": lambda x: F.alpha_dropout(x, 0.3, training=True),
    "alpha in place": lambda x: F.alpha_dropout(x * 1, 0.3, training=True, inplace=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_is_ours(call):
    """Values and gradient; without gradients too."""
    run, module = CALLS[call], ft.AlphaDropout if "alpha" in call else ft.Dropout
    x, z = (X.clone().requires_grad_() for _ in range(2))
    theirs = seeded(lambda: run(X))
    expected = seeded(lambda: module(0.3)(z))
    with ft.enable():
        y = seeded(lambda: run(x))
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert torch.equal(seeded(lambda: run(X)), expected)
    assert torch.equal(y, expected)
    assert not torch.equal(y, theirs)
    y.sum().backward()
    expected.sum().backward()
    assert torch.equal(x.grad, z.grad)
    assert torch.equal(seeded(lambda: run(X)), theirs)


def count(monkeypatch, run):
    """How many dropouts of `run` are ours, and how many PyTorch's."""
    from fastdrop.adapters.torch import program

    seen = {"ours": 0}
    lean = program.dropped_lean

    def counted(*args):
        seen["ours"] += 1
        return lean(*args)

    monkeypatch.setattr(program, "dropped_lean", counted)
    with ft.enable(), torch.autograd.profiler.profile() as profile:
        run()
    theirs = sum(
        e.count for e in profile.key_averages() if "bernoulli" in e.key or "native_dropout" in e.key
    )
    return seen["ours"], theirs


MODELS = {
    "attention": (lambda: nn.MultiheadAttention(64, 4, 0.2), lambda m, x: m(x, x, x), 1),
    "LSTM": (lambda: nn.LSTM(64, 64, 3, dropout=0.2), lambda m, x: m(x), 2),
    "GRU": (lambda: nn.GRU(64, 64, 3, dropout=0.2), lambda m, x: m(x), 2),
    "transformer": (lambda: nn.TransformerEncoderLayer(64, 4, 128), lambda m, x: m(x), 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_none_is_left(name, monkeypatch):
    make, run, number = MODELS[name]
    model, x = make(), torch.ones(32, 8, 64)
    assert count(monkeypatch, lambda: run(model, x)) == (number, 0)


def test_what_is_not_served_is_torchs():
    """Small tensors, transforms, dual numbers, nested tensors, tensors without numbers, eval."""
    small, large = torch.ones(100), torch.ones(9000)

    def outcomes():
        duals = torch.func.jvp(lambda a: F.dropout(a, 0.5), (large,), (large,))
        nested = torch.nested.nested_tensor([large, large], layout=torch.jagged)
        return [
            F.dropout(small, 0.5),
            F.dropout(large, 0.0),
            torch.vmap(lambda a: F.dropout(a, 0.5), randomness="different")(torch.ones(2, 9000)),
            torch.func.grad(lambda a: F.dropout(a, 0.5).sum())(large),
            *duals,
            F.dropout(nested, 0.5).values(),
            F.dropout(large.to(torch.complex64).real, 0.5, training=False),
        ]

    theirs = seeded(outcomes)
    with ft.enable():
        ours = seeded(outcomes)
        assert F.dropout(torch.ones(9000, device="meta"), 0.5).is_meta
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            torch.dropout(large, 1.5, True)
        with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
            F.dropout(large.clone().requires_grad_(), 0.5, inplace=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_handles():
    """The last that is closed gives dropout back."""
    theirs = seeded(lambda: F.dropout(X, 0.5))
    first, second = ft.enable(), ft.enable()
    ours = seeded(lambda: F.dropout(X, 0.5))
    assert not torch.equal(ours, theirs)
    first.close()
    first.close()
    assert torch.equal(seeded(lambda: F.dropout(X, 0.5)), ours)
    second.close()
    assert torch.equal(seeded(lambda: F.dropout(X, 0.5)), theirs)
    ft.enable()
    ft.disable()
    ft.disable()
    assert torch.equal(seeded(lambda: F.dropout(X, 0.5)), theirs)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoints_draw_the_same(use_reentrant):
    from torch.utils.checkpoint import checkpoint

    x = X.clone().requires_grad_()
    with ft.enable():
        y = checkpoint(lambda a: F.dropout(a.exp(), 0.5).square(), x, use_reentrant=use_reentrant)
        y.sum().backward()
    torch.testing.assert_close(x.grad, 2 * y)
