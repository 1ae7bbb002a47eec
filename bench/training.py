"""What fastdrop gains where PyTorch trains on the CPU: ``python bench/training.py``.

Each model is trained with ``nn.Dropout``, after ``replace()``, under ``enable()`` and with no
dropout, in turns; the least CPU time of the rounds counts. Read the ratios: the machine may be
shared.
"""

import argparse
import copy
import time
from contextlib import nullcontext
from functools import partial

import torch
from tabulate import tabulate
from torch import nn
from torch.nn import functional as F

import fastdrop
from fastdrop.adapters.torch import Dropout, enable, replace
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


def bert():
    """Four encoder layers of width 256 over sequences of 128 tokens, 16 a batch: four steps."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True)
    model = nn.Sequential(
        *(nn.Embedding(1000, 256), nn.Dropout(0.1), nn.TransformerEncoder(layer, 4)),
        *(nn.Linear(256, 1000), nn.Flatten(0, 1)),
    )
    return model, torch.randint(1000, (64, 128)), torch.randint(1000, (64, 128)), 16


class Recurrent(nn.Module):
    """Three layers of LSTM with dropout between them."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(1000, 256), nn.Linear(256, 1000)
        self.lstm = nn.LSTM(256, 256, 3, dropout=0.3, batch_first=True)

    def forward(self, x):
        return self.head(self.lstm(self.embedding(x))[0]).flatten(0, 1)


def lstm():
    """64 sequences of 64 tokens, 16 a batch."""
    return Recurrent(), torch.randint(1000, (64, 64)), torch.randint(1000, (64, 64)), 16


def cnn():
    """Convolutions of 32, 64, 128 maps, 512 units with dropout before and after: 32 x 32 x 3."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Dropout(0.25), nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.25)),
        nn.Linear(512, 10),
    )
    return model, torch.rand(2048, 3, 32, 32), torch.randint(10, (2048,)), 128


def without(model):
    """The model with no dropout at all."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
        if isinstance(module, nn.MultiheadAttention | nn.LSTM):
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
    variants = {"nn.Dropout": model, "replace()": replace(copy.deepcopy(model))}
    replaced = [m for m in variants["replace()"].modules() if isinstance(m, nn.Dropout)]
    assert replaced or name == "LSTM"  # which has no module to replace
    assert all(isinstance(m, Dropout) for m in replaced)
    variants["enable()"] = copy.deepcopy(model)
    variants["none"] = without(copy.deepcopy(model))
    runs = {
        kind: partial(epoch, m.train() if kind != "none" else m, optimizer(m), x, t, batch)
        for kind, m in variants.items()
    }
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for kind, run in runs.items():
            with enable() if kind == "enable()" else nullcontext():
                start = time.process_time()
                run()
                best[kind] = min(best[kind], time.process_time() - start)
    base = best["nn.Dropout"]
    return [[name, kind, seconds, seconds / base] for kind, seconds in best.items()]


def optimizer(model):
    return torch.optim.Adam(model.parameters())


def main():
    models = {"MLP": mlp, "transformer": transformer, "BERT": bert, "LSTM": lstm, "CNN": cnn}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(models)}; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fastdrop.set_num_threads(options.threads)
    print(headline(), f"{torch.get_num_threads()} threads of PyTorch's", sep=", ")
    headers = ["an epoch of", "dropout", "CPU seconds", "of nn.Dropout's"]
    for name in options.models or models:
        table = rows(name, models[name], options.rounds)
        print(tabulate(table, headers, floatfmt=".3f", tablefmt="github"), flush=True)


if __name__ == "__main__":
    main()
