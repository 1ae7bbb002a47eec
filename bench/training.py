"""What fastdrop gains where PyTorch trains on the CPU: ``python bench/training.py``.

Each model is trained with ``nn.Dropout``, after ``replace()``, under ``enable()`` and with no
dropout, in turns; the least CPU time of the rounds counts. "calls" are single ones, forward and
back, by size. Read the ratios: the machine may be shared. Freed memory stays with the process:
with glibc's defaults activations of megabytes are given back and fetched again at each step, which
takes longer than dropout, and differs by 10 % from run to run of one model.
"""

import argparse
import copy
import ctypes
import time
from contextlib import nullcontext
from functools import partial
from statistics import median

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


def alternating(runs, rounds):
    """The least CPU seconds of each."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for kind, run in runs.items():
            with enable() if kind == "enable()" else nullcontext():
                start = time.process_time()
                run()
                best[kind] = min(best[kind], time.process_time() - start)
    return best


def rows(name, make, rounds, compiled):
    model, x, t, batch = make()
    variants = {"nn.Dropout": model, "replace()": replace(copy.deepcopy(model))}
    replaced = [m for m in variants["replace()"].modules() if isinstance(m, nn.Dropout)]
    assert replaced or name == "LSTM"  # which has no module to replace
    assert all(isinstance(m, Dropout) for m in replaced)
    if not compiled:  # where enable() does not act
        variants["enable()"] = copy.deepcopy(model)
    variants["none"] = without(copy.deepcopy(model))
    runs = {}
    for kind, m in variants.items():
        adam = torch.optim.Adam(m.parameters())
        step = torch.compile(m) if compiled else m
        runs[kind] = partial(epoch, step, adam, x, t, batch)
        if compiled:
            runs[kind]()
    best = alternating(runs, rounds)
    return [[name, kind, seconds, seconds / best["nn.Dropout"]] for kind, seconds in best.items()]


CALLS = [
    *((nn.Dropout, shape, False) for shape in [(16,), (32, 128), (128, 512), (1024, 1024)]),
    *(
        (nn.Dropout2d, shape, last)
        for shape in [(16, 32, 28, 28), (128, 16, 8, 8), (32, 64, 56, 56)]
        for last in (False, True)
    ),
]


def calls(rounds, compiled):
    """Forward and backward of one module by size."""
    for kind, shape, last in CALLS:
        x = torch.rand(shape)
        x = (x.to(memory_format=torch.channels_last) if last else x).requires_grad_()
        g = torch.ones_like(x)
        often = max(5, 2_000_000 // (x.numel() + 10_000))
        theirs = kind(0.1)
        modules = {
            kind.__name__: theirs,
            "replace()": replace(nn.Sequential(copy.deepcopy(theirs)))[0],
            "enable()": theirs,
            "x * 1.25": lambda x: x * 1.25,
        }
        if compiled:
            del modules["enable()"]
            modules = {name: torch.compile(module) for name, module in modules.items()}

        def run(module, x=x, g=g, often=often):
            for _ in range(often):
                torch.autograd.grad(module(x), x, g)

        runs = {name: partial(run, module) for name, module in modules.items()}
        medians = ratios(runs, kind.__name__, rounds)
        yield [kind.__name__, f"{shape}{', channels last' * last}", *medians]


def ratios(runs, base, rounds):
    """Of CPU times to that of `base`: medians of five."""
    found = []
    for _ in range(5):
        best = alternating(runs, rounds)
        found.append([best[kind] / best[base] for kind in runs if kind != base])
    return [median(column) for column in zip(*found, strict=True)]


def keep_freed_memory():
    """The C library's, if it is glibc."""
    if hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            assert libc.mallopt(parameter, 2**30)


def main():
    models = {"MLP": mlp, "transformer": transformer, "BERT": bert, "LSTM": lstm, "CNN": cnn}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [*models, "calls"]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="by torch.compile")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    fastdrop.set_num_threads(options.threads)
    print(headline(), f"{torch.get_num_threads()} threads of PyTorch's", sep=", ")
    shown = partial(tabulate, floatfmt=".3f", tablefmt="github")
    for name in options.names or names:
        if name == "calls":
            table = list(calls(options.rounds, options.compiled))
            headers = ["a call of", "shape", *["replace()", "enable()"][: 2 - options.compiled]]
            headers.append("x * 1.25")
        else:
            table = rows(name, models[name], options.rounds, options.compiled)
            headers = ["an epoch of", "dropout", "CPU seconds", "of nn.Dropout's"]
        print(shown(table, headers), flush=True)


if __name__ == "__main__":
    main()
