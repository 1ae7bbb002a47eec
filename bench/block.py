"""A transformer's block in NumPy and in PyTorch, forward and backward: ``python bench/block.py``.

The block is that of docs/recipes/transformer.md: 16 sequences of 128 positions, 256 units, 4 heads.
"softmax" and "fused attention" are PyTorch's two ways; medians of alternating runs. Then what
fastdrop's calls and the normalizations take of a step of NumPy's.
"""

import argparse
import re
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn import functional as F

import fastdrop as fd

N, T, D, HEADS, P = 16, 128, 256, 4, 0.1
RECIPE = Path(__file__).parents[1] / "docs" / "recipes" / "transformer.md"


class Block(nn.Module):
    """PyTorch's, with the recipe's places of dropout."""

    def __init__(self, fused):
        super().__init__()
        self.fused, self.norm = fused, nn.LayerNorm(D, elementwise_affine=False)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)
        self.register_buffer("future", torch.ones(T, T, dtype=torch.bool).triu(1))

    def attention(self, x, p):
        parts = self.qkv(x).view(N, T, 3, HEADS, D // HEADS)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        else:
            scores = q @ k.transpose(-1, -2) * (D // HEADS) ** -0.5
            weights = scores.masked_fill(self.future, -torch.inf).softmax(-1)
            y = F.dropout(weights, p) @ v
        return self.out(y.transpose(1, 2).reshape(N, T, D))

    def forward(self, x, p):
        y = x + F.dropout(self.attention(self.norm(x), p), p)
        hidden = F.dropout(F.gelu(self.up(self.norm(y)), approximate="tanh"), p)
        return y + F.dropout(self.down(hidden), p)


def recipe():
    """What the recipe's page defines."""
    names = {}
    code = re.search(r"```python\n(.*?)```", RECIPE.read_text(), re.DOTALL)
    exec(code[1], names)
    return names


def timed(spent, name, function):
    """The function, whose seconds, and those of its backward pass, are added up."""

    def measured(*args, **kwargs):
        start = time.perf_counter()
        y, back = function(*args, **kwargs)
        spent[name] += time.perf_counter() - start
        return y, Timed(spent, name, back)

    return measured


class Timed:
    """A context, or a function, that goes back."""

    def __init__(self, spent, name, back):
        self.spent, self.name, self.back = spent, name, back

    def backward(self, *args, **kwargs):
        start = time.perf_counter()
        result = getattr(self.back, "backward", self.back)(*args, **kwargs)
        self.spent[self.name] += time.perf_counter() - start
        return result

    __call__ = backward


def programs(names):
    """Of a step by name."""
    init = np.random.default_rng(0)
    x, dy = init.standard_normal((2, N, T, D), np.float32)
    weights = names["weights_of"](D)
    modules = {"PyTorch, softmax": Block(False), "PyTorch, fused attention": Block(True)}

    def numpy(p):
        _, backward = names["block"](x, weights, p, HEADS)
        backward(dy)

    def pytorch(module, p):
        module.zero_grad()
        given = torch.from_numpy(x).requires_grad_()
        module(given, p).backward(torch.from_numpy(dy))

    found = {("NumPy and fastdrop", p): lambda p=p: numpy(p) for p in (0.0, P)}
    for name, module in modules.items():
        for p in (0.0, P):
            found[name, p] = lambda module=module, p=p: pytorch(module, p)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=15)
    options = parser.parse_args()
    fd.set_num_threads(options.threads)
    torch.set_num_threads(options.threads)
    names = recipe()
    with threadpool_limits(options.threads):
        steps = programs(names)
        seconds = defaultdict(list)
        for _ in range(options.runs):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                seconds[name].append(time.perf_counter() - start)
        rows = [
            [name, *(1e3 * np.median(seconds[name, p]) for p in (0.0, P))] for name, p in steps if p
        ]
        headers = ["ms a step", "without dropout", f"p = {P}"]
        print(tabulate(rows, headers, tablefmt="github", floatfmt=".1f"), end="\n\n")

        spent = defaultdict(float)
        names["norm"] = timed(spent, "norm", names["norm"])
        for op in ("softmax_dropout", "bias_gelu_dropout", "bias_dropout_add"):
            setattr(fd, op, timed(spent, op, getattr(fd, op)))
        start = time.perf_counter()
        for _ in range(options.runs):
            steps["NumPy and fastdrop", P]()
        whole = time.perf_counter() - start
    rows = [[name, 100 * part / whole] for name, part in spent.items()]
    rows.append(["all", 100 * sum(spent.values()) / whole])
    print(tabulate(rows, ["part of a step", "%"], tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
