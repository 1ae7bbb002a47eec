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
    lean = program.dropped_whole

    def counted(*args):
        seen["ours"] += 1
        return lean(*args)

    monkeypatch.setattr(program, "dropped_whole", counted)
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
    "whole": (lambda: nn.Transformer(64, 4, 2, 2, 128, batch_first=True), lambda m, x: m(x, x), 20),
}


@pytest.mark.parametrize("name", MODELS)
def test_none_is_left(name, monkeypatch):
    make, run, number = MODELS[name]
    model, x = make(), torch.ones(32, 8, 64)
    assert count(monkeypatch, lambda: run(model, x)) == (number, 0)


IDS = torch.arange(8 * 32).reshape(8, 32) % 90 + 3
SMALL = {
    "vocab_size": 96,
    **{"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 128, "max_position_embeddings": 64},
}
PAIR = {
    **{"vocab_size": 96, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    **{"encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64},
    **{"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1},
}
TOKENS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1)
IMAGES = {"image_size": 32, "patch_size": 4, "hidden_dropout_prob": 0.1}
SOUNDS = {"max_source_positions": 32, "max_target_positions": 64, "num_mel_bins": 16}
TEXT = {"input_ids": IDS}
TEXTS = TEXT | {"decoder_input_ids": IDS}
HUGGING_FACE = {  # options of the config, inputs, and how often the model calls dropout
    "Bert": (SMALL, TEXT, 7),
    "Roberta": (SMALL, TEXT, 7),
    "GPT2": ({"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, **TOKENS}, TEXT, 7),
    "GPTNeoX": (SMALL | {"attention_dropout": 0.1, "hidden_dropout": 0.1}, TEXT, 7),
    "ViT": (
        SMALL | IMAGES | {"attention_probs_dropout_prob": 0.1},
        {"pixel_values": torch.ones(8, 3, 32, 32)},
        7,
    ),
    "T5": ({"vocab_size": 96, "d_model": 64, "d_kv": 16, "num_layers": 2}, TEXTS, 24),
    "Bart": (PAIR | TOKENS, TEXTS, 22),
    "Whisper": (
        PAIR | SOUNDS | TOKENS | {"decoder_start_token_id": 1},
        {"input_features": torch.ones(8, 16, 64), "decoder_input_ids": IDS},
        22,
    ),
    "OPT": (
        SMALL | {"ffn_dim": 128, "word_embed_proj_dim": 64, "attention_dropout": 0.1},
        TEXT,
        6,
    ),
    "Llama": (SMALL | {"attention_dropout": 0.1}, TEXT, 2),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library, for these configurations
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_models_of_hugging_face(name, attention, monkeypatch):
    """None is left, with attention written out or in one call; the gradient goes back."""
    transformers = pytest.importorskip("transformers")
    options, inputs, number = HUGGING_FACE[name]
    config = getattr(transformers, name + "Config")(**options)
    config._attn_implementation = attention
    model = getattr(transformers, name + "Model")(config).train()
    outputs = []
    assert count(monkeypatch, lambda: outputs.append(model(**inputs))) == (number, 0)
    outputs[0][0].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


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
