"""What fastdrop gains where PyTorch trains on the CPU: ``python bench/training.py``.

Each model is trained with ``nn.Dropout``, with fastdrop's modules in their place, and with none, in
turns; the fastest of the rounds counts. Read the ratios: the machine may be shared.
"""

import argparse
import copy
import time
from functools import partial

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

from fastdrop.adapters.torch import REPLACED, Dropout, replace
from fastdrop.tools.bench import headline


def mlp():
    """784-512-512-10 at the size of MNIST: 469 batches of 128."""
    model = nn.Sequential(
        *(nn.Linear(784, 512), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(512, 512), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(512, 10),
    )
    return model, torch.rand(60_000, 784), torch.randint(10, (60_000,)), 128


def transformer():
    """Two encoder layers of width 128 over 64 sequences of 64 tokens, 16 a batch."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.1, batch_first=True)
    model = nn.Sequential(
        *(nn.Embedding(1000, 128), nn.Dropout(0.1), nn.TransformerEncoder(layer, 2)),
        *(nn.Linear(128, 1000), nn.Flatten(0, 1)),
    )
    return model, torch.randint(1000, (64, 64)), torch.randint(1000, (64, 64)), 16


def without(model):
    """The model with no dropout at all."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return model


def epoch(model, optimizer, x, t, batch):
    order = torch.randperm(len(x))
    for index in order.split(batch):
        optimizer.zero_grad()
        F.cross_entropy(model(x[index]), t[index].flatten()).backward()
        optimizer.step()


def rows(name, make, rounds):
    model, x, t, batch = make()
    variants = {"nn.Dropout": model, "fastdrop": replace(copy.deepcopy(model))}
    assert any(isinstance(m, Dropout) for m in variants["fastdrop"].modules())
    assert not any(type(m) in REPLACED for m in variants["fastdrop"].modules())
    variants["none"] = without(copy.deepcopy(model))
    runs = {
        kind: partial(epoch, m.train() if kind != "none" else m, optimizer(m), x, t, batch)
        for kind, m in variants.items()
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for kind, run in runs.items():
            start = time.perf_counter()
            run()
            best[kind] = min(best[kind], time.perf_counter() - start)
    base = best["nn.Dropout"]
    return [[name, kind, seconds, seconds / base] for kind, seconds in best.items()]


def optimizer(model):
    return torch.optim.Adam(model.parameters())


def main():
    models = {"MLP": mlp, "transformer": transformer}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(models)}; all")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(headline(), f"{torch.get_num_threads()} threads of PyTorch's", sep=", ")
    headers = ["an epoch of", "dropout", "seconds", "of nn.Dropout's"]
    for name in options.models or models:
        table = rows(name, models[name], options.rounds)
        print(tabulate(table, headers, floatfmt=".3f", tablefmt="github"), flush=True)


if __name__ == "__main__":
    main()
