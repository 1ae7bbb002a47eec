"""A multilayer perceptron in plain NumPy, with and without dropout on its hidden layers.

Two dense layers of 512 ReLU units, softmax cross-entropy, Adam (Kingma and Ba 2015) and
mini-batches; what dropout was introduced for. Run it with ``python -m fastdrop train``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

import fastdrop as fd
from fastdrop.examples.digits import Digits

Array = npt.NDArray[np.float32]


class Dense:
    """y = x W + b, with Adam's moments beside each parameter."""

    def __init__(self, inputs: int, outputs: int, init: np.random.Generator) -> None:
        he = np.sqrt(2.0 / inputs)
        self.W = init.standard_normal((inputs, outputs), np.float32) * np.float32(he)
        self.b = np.zeros(outputs, np.float32)
        self.moments = [(np.zeros_like(p), np.zeros_like(p)) for p in (self.W, self.b)]

    def __call__(self, x: Array) -> Array:
        self.x = x
        return x @ self.W + self.b

    def backward(self, dy: Array) -> Array:
        self.grads = self.x.T @ dy, dy.sum(axis=0)
        return dy @ self.W.T

    def adam(self, step: int, rate: float = 1e-3, b1: float = 0.9, b2: float = 0.999) -> None:
        size = rate * np.sqrt(1 - b2**step) / (1 - b1**step)
        for p, g, (m, v) in zip((self.W, self.b), self.grads, self.moments, strict=True):
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= size * m / (np.sqrt(v) + 1e-8)


class ReLU:
    """y = max(x, 0)."""

    def __call__(self, x: Array) -> Array:
        self.positive = x > 0
        return x * self.positive

    def backward(self, dy: Array) -> Array:
        return dy * self.positive


class TimedDropout(fd.layers.Dropout):
    """fastdrop's layer working in place, with a clock beside it.

    Naive NumPy is timed on the same arrays, before they are overwritten.
    """

    def __init__(self, p: float, rng: fd.Rng) -> None:
        super().__init__(p, rng=rng)
        self.seconds = self.naive_seconds = 0.0
        self.naive_rng = np.random.default_rng(0)

    def __call__(self, x: Array) -> Array:
        if not self.training:
            return x
        start = time.perf_counter()
        self.naive_mask = self.naive_rng.random(x.shape) >= self.p
        x * self.naive_mask / (1 - self.p)
        middle = time.perf_counter()
        super().__call__(x, out=x)
        self.seconds += time.perf_counter() - middle
        self.naive_seconds += middle - start
        return x

    def backward(self, dy: Array) -> Array:
        start = time.perf_counter()
        dy * self.naive_mask / (1 - self.p)
        middle = time.perf_counter()
        super().backward(dy, out=dy)
        self.seconds += time.perf_counter() - middle
        self.naive_seconds += middle - start
        return dy


@dataclass
class Run:
    """One training run: a row of `Score` an epoch, and where the time went."""

    name: str
    scores: list[Score] = field(default_factory=list)
    seconds: float = 0.0
    dropout_seconds: float = 0.0
    naive_seconds: float = 0.0


@dataclass
class Score:
    """Accuracy and mean cross-entropy over the two splits, without dropping."""

    train_accuracy: float
    train_loss: float
    valid_accuracy: float
    valid_loss: float


class MLP:
    """Dense 512, ReLU, dropout, twice; dense to the classes."""

    def __init__(self, inputs: int, classes: int, rate: float, seed: int) -> None:
        init = np.random.default_rng(seed)
        rng = fd.Rng(seed)
        self.dropouts = [TimedDropout(rate, rng), TimedDropout(rate, rng)] if rate else []
        self.layers: list = []
        for k, width in enumerate((512, 512)):
            self.layers += [Dense(inputs, width, init), ReLU(), *self.dropouts[k : k + 1]]
            inputs = width
        self.layers.append(Dense(inputs, classes, init))

    def __call__(self, x: Array) -> Array:
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, x: Array, t: npt.NDArray[np.int64], number: int) -> None:
        """One mini-batch: forward, backward, Adam."""
        dy = softmax(self(x))
        dy[np.arange(len(t)), t] -= 1
        dy /= np.float32(len(t))
        for layer in reversed(self.layers):
            dy = layer.backward(dy)
        for layer in self.layers:
            if isinstance(layer, Dense):
                layer.adam(number)

    def score(self, x: Array, t: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Accuracy and mean cross-entropy, in evaluation mode."""
        for dropout in self.dropouts:
            dropout.eval()
        # in slices, so that a large set needs no large activations
        y = np.concatenate([softmax(self(x[i : i + 4096])) for i in range(0, len(x), 4096)])
        for dropout in self.dropouts:
            dropout.train()
        loss = -np.log(np.maximum(y[np.arange(len(t)), t], 1e-30)).mean(dtype=np.float64)
        return float((y.argmax(axis=1) == t).mean()), float(loss)


def softmax(z: Array) -> Array:
    """Rows of z to probabilities."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def batches(n: int, size: int, rng: np.random.Generator) -> Iterator[npt.NDArray[np.intp]]:
    """The indices 0 ... n - 1 in random order, `size` at a time."""
    order = rng.permutation(n)
    return (order[i : i + size] for i in range(0, n, size))


def train(name: str, data: Digits, rate: float, epochs: int, batch_size: int, seed: int) -> Run:
    """Train one network; the progress bar shows the scores of the last epoch."""
    classes = int(max(data.t_train.max(), data.t_valid.max())) + 1
    net = MLP(data.x_train.shape[1], classes, rate, seed)
    order = np.random.default_rng([seed, 1])
    run = Run(name)
    number = 0
    steps = epochs * -(-len(data.t_train) // batch_size)
    with tqdm(total=steps, desc=f"{name:16}", unit="batch") as bar:
        for _ in range(epochs):
            start = time.perf_counter()
            for index in batches(len(data.t_train), batch_size, order):
                number += 1
                net.step(data.x_train[index], data.t_train[index], number)
                bar.update()
            run.seconds += time.perf_counter() - start
            score = Score(
                *net.score(data.x_train, data.t_train), *net.score(data.x_valid, data.t_valid)
            )
            run.scores.append(score)
            bar.set_postfix(valid=f"{score.valid_accuracy:.4f}", loss=f"{score.valid_loss:.4f}")
    run.dropout_seconds = sum(d.seconds for d in net.dropouts)
    run.naive_seconds = sum(d.naive_seconds for d in net.dropouts)
    run.seconds -= run.naive_seconds  # the yardstick is not part of the run
    return run


def table(runs: list[Run]) -> str:
    """The last epoch of each run, and its seconds."""
    from tabulate import tabulate

    rows = [
        [
            run.name,
            run.scores[-1].train_accuracy,
            run.scores[-1].valid_accuracy,
            run.scores[-1].train_loss,
            run.scores[-1].valid_loss,
            run.seconds,
            run.dropout_seconds,
            run.naive_seconds,
        ]
        for run in runs
    ]
    headers = ["run", "train acc", "valid acc", "train loss", "valid loss"]
    seconds = ["seconds", "in dropout", "naive NumPy"]
    formats = ("", ".4f", ".4f", ".4f", ".4f", ".2f", ".3f", ".3f")
    return tabulate(rows, headers + seconds, floatfmt=formats, tablefmt="github")


def plot(runs: list[Run], path: Path) -> None:
    """Accuracy and loss curves side by side: one colour a run, validation drawn through."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, quantity in zip(axes, ("accuracy", "loss"), strict=True):
        for color, run in enumerate(runs):
            epochs = range(1, len(run.scores) + 1)
            for split, style in (("train", "--"), ("valid", "-")):
                values = [getattr(score, f"{split}_{quantity}") for score in run.scores]
                label = f"{run.name}, {split}"
                axis.plot(epochs, values, style, marker=".", color=f"C{color}", label=label)
        axis.set(xlabel="epoch", ylabel=quantity, title=quantity)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
