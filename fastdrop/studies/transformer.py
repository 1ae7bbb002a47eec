"""A small transformer that predicts the next character, without and with dropout.

The decoder of Vaswani et al. (2017), with the norm in front of each branch: characters and places
as vectors, two blocks of causal attention and a perceptron, each added to what it read. Dropout is
where that paper has it, behind the embedding and on each branch, and on the attention weights. The
text is Python's own language reference.

Arrays are (number, steps, units).

References
----------
A. Vaswani et al.: Attention is all you need. NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.study import (
    Defaults,
    Session,
    claim,
    difference,
    draw,
    epoch_seconds,
    label_axis,
    spread,
)

Characters = npt.NDArray[np.int64]

FULL = Defaults(epochs=20, data=None, threads=1)
QUICK = Defaults(epochs=5, data=None, threads=1, seeds=(0,))
LENGTH, STEPS, BATCH = 20_000, 64, 16
UNITS, HEADS, BLOCKS = 64, 4, 2
CASES = {"without dropout": 0.0, "dropout 0.2": 0.2}
SAMPLE, BEGINNING, TEMPERATURE = 200, "The ", 0.7


class Embedding(nn.Layer):
    """dropout(table[ids] + places)."""

    learned = "table", "places"

    def __init__(
        self, characters: int, units: int, init: np.random.Generator, rate: float, rng: fd.Rng
    ) -> None:
        self.table = nn.normal(init, (characters, units), 1.0)
        self.places = nn.normal(init, (STEPS, units), 0.1)
        self.rate, self.rng, self.training = rate, rng, True

    def train(self, mode: bool = True) -> None:
        """As of fastdrop's layers."""
        self.training = mode

    def __call__(self, ids: Characters) -> nn.Array:
        x = self.table[ids]
        x += self.places[: ids.shape[1]]
        y, context = fd.dropout(x, self.rate, rng=self.rng, training=self.training, out=x)
        self.saved = ids, context
        return y

    def backward(self, dy: nn.Array) -> None:
        ids, context = self.saved
        dx = context.backward(dy)
        dtable, dplaces = np.zeros_like(self.table), np.zeros_like(self.places)
        np.add.at(dtable, ids, dx)
        dplaces[: ids.shape[1]] = dx.sum(axis=0)
        self.gradients = {"table": dtable, "places": dplaces}


class Norm(nn.Layer):
    """Layer normalization (Ba et al. 2016): each vector to mean 0 and variance 1, then g x + b."""

    learned = "g", "b"

    def __init__(self, units: int) -> None:
        self.g, self.b = np.ones(units, np.float32), np.zeros(units, np.float32)

    def __call__(self, x: nn.Array) -> nn.Array:
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + 1e-5)
        x /= deviation
        self.saved = x, deviation
        return x * self.g + self.b

    def backward(self, dy: nn.Array) -> nn.Array:
        x, deviation = self.saved
        of_vectors = tuple(range(dy.ndim - 1))
        self.gradients = {"g": (dy * x).sum(axis=of_vectors), "b": dy.sum(axis=of_vectors)}
        dx = dy * self.g
        along_x = (dx * x).mean(axis=-1, keepdims=True)
        return (dx - dx.mean(axis=-1, keepdims=True) - x * along_x) / deviation


class Attention(nn.Layer):
    """Each step reads itself and those before: dropout(softmax(q k')) v, in several heads."""

    learned = "W", "U"

    def __init__(
        self, units: int, heads: int, init: np.random.Generator, rate: float, rng: fd.Rng
    ) -> None:
        self.heads = heads
        self.W = nn.normal(init, (units, 3 * units), 1 / units)  # to q, k and v
        self.U = nn.normal(init, (units, units), 1 / units)
        self.rate, self.rng, self.training = rate, rng, True

    def train(self, mode: bool = True) -> None:
        """As of fastdrop's layers."""
        self.training = mode

    def __call__(self, x: nn.Array) -> nn.Array:
        number, steps, units = x.shape
        parts = (x @ self.W).reshape(number, steps, 3, self.heads, -1)
        q, k, v = parts.transpose(2, 0, 3, 1, 4)  # (number, heads, steps, units of a head)
        scores = q @ k.swapaxes(2, 3)
        scores *= k.shape[-1] ** -0.5
        scores[..., np.triu(np.ones((steps, steps), np.bool_), 1)] = -np.inf  # what is to come
        weights = nn.softmax(scores)
        read, context = fd.dropout(weights, self.rate, rng=self.rng, training=self.training)
        heard = (read @ v).swapaxes(1, 2).reshape(number, steps, units)
        self.saved = x, q, k, v, weights, read, context, heard
        return heard @ self.U

    def backward(self, dy: nn.Array) -> nn.Array:
        x, q, k, v, weights, read, context, heard = self.saved
        number, steps, units = x.shape
        dheard = (dy @ self.U.T).reshape(number, steps, self.heads, -1).swapaxes(1, 2)
        dweights = context.backward(dheard @ v.swapaxes(2, 3))
        dscores = weights * (dweights - (dweights * weights).sum(axis=-1, keepdims=True))
        dscores *= k.shape[-1] ** -0.5
        dparts = np.stack([dscores @ k, dscores.swapaxes(2, 3) @ q, read.swapaxes(2, 3) @ dheard])
        dqkv = dparts.transpose(1, 3, 0, 2, 4).reshape(number, steps, 3 * units)
        self.gradients = {"W": _product(x, dqkv), "U": _product(heard, dy)}
        return dqkv @ self.W.T


class Perceptron(nn.Layer):
    """relu(x W + b) U."""

    learned = "W", "b", "U"

    def __init__(self, units: int, init: np.random.Generator) -> None:
        self.W = nn.normal(init, (units, 4 * units), 2 / units)
        self.b = np.zeros(4 * units, np.float32)
        self.U = nn.normal(init, (4 * units, units), 1 / (4 * units))

    def __call__(self, x: nn.Array) -> nn.Array:
        h = x @ self.W
        h += self.b
        np.maximum(h, 0, out=h)
        self.saved = x, h
        return h @ self.U

    def backward(self, dy: nn.Array) -> nn.Array:
        x, h = self.saved
        dh = dy @ self.U.T
        dh *= h > 0
        self.gradients = {
            "W": _product(x, dh),
            "b": dh.sum(axis=(0, 1)),
            "U": _product(h, dy),
        }
        return dh @ self.W.T


class Residual(nn.Layer):
    """x + dropout(branch(norm(x)) + b), of which the end is one pass, `fd.bias_dropout_add`."""

    learned = ("b",)  # beside what norm and branch learn

    def __init__(self, units: int, branch: Any, rate: float, rng: fd.Rng) -> None:
        self.norm, self.branch, self.b = Norm(units), branch, np.zeros(units, np.float32)
        self.rate, self.rng, self.training = rate, rng, True

    @property
    def parameters(self) -> nn.Arrays:
        return super().parameters | self._inside("parameters")

    def _inside(self, which: str) -> nn.Arrays:
        parts = {"norm": self.norm, "branch": self.branch}
        return {f"{k}.{n}": a for k, part in parts.items() for n, a in getattr(part, which).items()}

    def train(self, mode: bool = True) -> None:
        """As of fastdrop's layers."""
        self.training = mode
        if isinstance(self.branch, Attention):
            self.branch.train(mode)

    def __call__(self, x: nn.Array) -> nn.Array:
        how: dict[str, Any] = {"rng": self.rng, "training": self.training}
        y = self.branch(self.norm(x))
        y, self.saved = fd.bias_dropout_add(y, self.b, x, self.rate, **how, out=y)
        return y

    def backward(self, dy: nn.Array) -> nn.Array:
        dbranch, db, dx = self.saved.backward(dy)
        dx = dx + self.norm.backward(self.branch.backward(dbranch))
        self.gradients = {"b": db, **self._inside("gradients")}
        return dx


class Steps(nn.Layer):
    """A row a step."""

    def __call__(self, x: nn.Array) -> nn.Array:
        self.saved = x.shape
        return x.reshape(-1, x.shape[-1])

    def backward(self, dy: nn.Array) -> nn.Array:
        return dy.reshape(self.saved)


class Network(nn.Network):
    """The transformer; a label is the character behind that of the same place."""

    def __init__(self, characters: int, rate: float, seed: int) -> None:
        init, rng = np.random.default_rng(seed), fd.Rng(seed)
        blocks = []
        for _ in range(BLOCKS):
            attention = Attention(UNITS, HEADS, init, rate, rng)
            blocks += [
                Residual(UNITS, branch, rate, rng)
                for branch in (attention, Perceptron(UNITS, init))
            ]
        embedding = Embedding(characters, UNITS, init, rate, rng)
        output = nn.Dense(UNITS, characters, init, gain=0.1)
        super().__init__(embedding, *blocks, Norm(UNITS), Steps(), output)

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        return super().learn(x, t.reshape(-1))

    def score(self, x: nn.Array, t: nn.Labels) -> tuple[float, float]:
        return super().score(x, t.reshape(-1))


@dataclass
class Text:
    """Windows of a text, and the same one character later: to learn, and to validate."""

    alphabet: npt.NDArray[np.str_]
    x_train: Characters
    t_train: Characters
    x_valid: Characters
    t_valid: Characters
    name = "Python's language reference"

    def __str__(self) -> str:
        counts = f"{self.x_train.size} characters, {len(self.alphabet)} different ones"
        return f"{self.name}: {counts}, {self.x_valid.size} to validate"


def read(length: int = LENGTH) -> Text:
    """The beginning of Python's language reference, and half as much behind it."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[: length + length // 2]
    alphabet, ids = np.unique(list(text), return_inverse=True)
    windows = []
    for part in (ids[:length], ids[length:]):
        most = (len(part) - 1) // STEPS * STEPS
        windows += [part[shift : shift + most].reshape(-1, STEPS) for shift in (0, 1)]
    return Text(alphabet, *windows)


def start(text: Text, rate: float, seed: int) -> nn.Training:
    """A new network and Adam."""
    net = Network(len(text.alphabet), rate, seed)
    return nn.Training(net, nn.Adam(net.parameters, rate=2e-3), seed, BATCH)


def sample(training: nn.Training, text: Text, seed: int) -> dict[str, str]:
    """What the network writes, one character after the other."""
    chance = np.random.default_rng([seed, 6])
    ids = list(np.searchsorted(text.alphabet, list(BEGINNING)))
    for _ in range(SAMPLE):
        logits = training.net.predict(np.array([ids[-STEPS:]]))[-1].astype(np.float64)
        ids.append(int(chance.choice(len(logits), p=nn.softmax(logits / TEMPERATURE))))
    return {"sample": "".join(text.alphabet[ids])}


def run(session: Session) -> None:
    """Train both with every seed; losses, their curves, and a sample of text."""
    text = read()
    print(f"{text}; losses in nats a character")
    for seed in session.seeds:
        for name, rate in CASES.items():
            finish: Callable[..., dict[str, str]] = partial(sample, seed=seed)
            session.fit(name, seed, partial(start, text, rate, seed), text, finish=finish)
    tables(session)
    picture(session)


def tables(session: Session) -> None:
    """Losses and time; a sample of the first seed."""
    rows = []
    for name in session.names:
        runs = session.of(name)
        scores = (spread((r.last(f"{s} loss") for r in runs), 3) for s in ("train", "validation"))
        least = spread((min(run.curves["validation loss"]) for run in runs), 3)
        rows.append([name, *scores, least, f"{epoch_seconds(runs):.2f}"])
    headers = ["", "train loss", "validation loss", "least validation loss"]
    headers += ["seconds an epoch, median"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)
    samples = ([name, " ".join(session.of(name)[0].measures["sample"].split())] for name in CASES)
    title = f'Text that begins with "{BEGINNING.strip()}", seed {session.seeds[0]}'
    session.table(title, ["", "sample"], samples)


def picture(session: Session) -> None:
    """Training and validation loss, without and with dropout."""
    without, dropped = (session.of(name) for name in CASES)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for color, name in enumerate(CASES):
        for split, style in (("train", "--"), ("validation", "-")):
            shown = {"label": f"{name}, {split}", "color": f"C{color}", "linestyle": style}
            draw(axis, session.of(name), f"{split} loss", **shown)
    label_axis(axis, "loss, nats a character", "the next character")
    found = difference(dropped, without, "validation loss")
    text = "That dropout helps with text that was not learned"
    session.picture(
        "losses.png",
        figure,
        f"{session.seeds_shown}. {claim(text, found, 'lower', 'validation loss')}",
    )


def _product(x: nn.Array, dy: nn.Array) -> nn.Array:
    """Gradient of W in y = x @ W: the sum over all steps."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
