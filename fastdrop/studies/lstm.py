"""A recurrent network that predicts the next character, without and with four kinds of dropout.

A table of character vectors, an LSTM layer, a softmax. The text is Python's own language reference,
of which the network gets so little that it learns it by heart.

Arrays have the steps in front: (time, batch, units).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
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
    label_axis,
    spread,
)

Characters = npt.NDArray[np.int64]

FULL = Defaults(epochs=50, data=None)
QUICK = Defaults(epochs=20, data=None, seeds=(0,))
LENGTH, STEPS, BATCH, UNITS = 10_000, 40, 16, 64


@dataclass(frozen=True)
class Rates:
    """How much is dropped where; by default nothing."""

    words: float = 0.0  # embedding dropout: characters of the table, one mask a batch
    inputs: float = 0.0  # locked dropout: what enters and leaves the layer, one mask a sequence
    recurrent: float = 0.0  # what h tells the gates, one mask a sequence
    hidden: float = 0.0  # zoneout of h, a new mask each step
    cell: float = 0.0  # zoneout of c, a new mask each step


CASES = {
    "without dropout": Rates(),
    "dropout": Rates(words=0.05, inputs=0.2, recurrent=0.2, hidden=0.05, cell=0.1),
}


@dataclass
class Text:
    """A piece to learn and the one behind it to validate, as numbers 0 ... characters - 1."""

    learned: Characters
    held_out: Characters
    characters: int
    name = "Python's language reference"

    def __str__(self) -> str:
        return f"{self.name}: {len(self.learned)} characters, {self.characters} different ones"


class Network:
    """A table of character vectors, the layer, and logits of the next character."""

    def __init__(self, characters: int, units: int, rates: Rates, seed: int) -> None:
        init = np.random.default_rng(seed)
        self.rates, self.rng = rates, fd.Rng(seed)
        inside = {k: v for k, v in asdict(rates).items() if k not in ("words", "inputs")}
        self.lstm = nn.LSTM(units, units, init, **inside, rng=self.rng)
        self.table = nn.normal(init, (characters, units), 1.0)
        self.output = nn.Dense(units, characters, init, gain=1.0)

    @property
    def parameters(self) -> nn.Arrays:
        """All that is learned: the arrays themselves."""
        out = {f"output.{name}": value for name, value in self.output.parameters.items()}
        return {"table": self.table, **self.lstm.parameters, **out}

    def loss(self, ids: Characters, training: bool = False) -> float:
        """Mean cross-entropy, in nats, of all characters but the first of ids, (time, batch)."""
        how: dict[str, Any] = {"rng": self.rng, "training": training}
        locked = {"time_axis": 0, **how}
        self.lstm.train(training)
        x, self.looked_up = fd.embedding_dropout(self.table, self.rates.words, ids=ids[:-1], **how)
        x, self.entered = fd.locked_dropout(x, self.rates.inputs, **locked)
        h, self.left = fd.locked_dropout(self.lstm(x), self.rates.inputs, **locked)
        logits = self.output(h.reshape(-1, h.shape[-1]))
        loss, self.dlogits = nn.cross_entropy(logits, ids[1:].reshape(-1))
        return loss

    def backward(self) -> nn.Arrays:
        """Gradients of the last loss, with the names of the parameters."""
        dh: Any = self.output.backward(self.dlogits)
        dh = self.left.backward(dh.reshape(self.left.shape))
        dx = self.entered.backward(self.lstm.backward(dh))
        out = {f"output.{name}": value for name, value in self.output.gradients.items()}
        return {"table": self.looked_up.backward(dx), **self.lstm.gradients, **out}

    def __getstate__(self) -> dict[str, Any]:
        of_a_step = "looked_up", "entered", "left", "dlogits"
        return {k: v for k, v in vars(self).items() if k not in of_a_step}


class Training:
    """A network, Adam, and the order of the pieces."""

    done = False

    def __init__(self, text: Text, rates: Rates, seed: int) -> None:
        self.net = Network(text.characters, UNITS, rates, seed)
        self.update = nn.Adam(self.net.parameters, rate=5e-3)
        self.order = np.random.default_rng([seed, 1])

    def epoch(self, text: Text, progress: Callable[[float], object]) -> dict[str, float]:
        """Train on as many pieces as the text is long; the losses over both texts after that."""
        batches = len(text.learned) // (BATCH * STEPS)
        for k in range(batches):
            starts = self.order.integers(0, len(text.learned) - STEPS, BATCH)
            self.net.loss(windows(text.learned, starts, STEPS), training=True)
            self.update(self.net.backward())
            progress((k + 1) / batches)
        part = len(text.learned) // BATCH
        starts = np.arange(BATCH) * part
        train, valid = (
            self.net.loss(windows(ids, starts, part - 1)) for ids in (text.learned, text.held_out)
        )
        return {"train loss": train, "validation loss": valid}


def read(length: int) -> Text:
    """Two successive pieces of Python's language reference."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))[: 2 * length]
    characters, ids = np.unique(list(text), return_inverse=True)
    return Text(ids[:length], ids[length:], len(characters))


def windows(ids: Characters, starts: Characters, steps: int) -> Characters:
    """Pieces of steps + 1 characters, (steps + 1, len(starts))."""
    return ids[starts + np.arange(steps + 1)[:, None]]


def run(session: Session) -> None:
    """Train both with every seed; a table of the losses, and their curves."""
    text = read(LENGTH)
    print(f"{text} to learn, the next {LENGTH} to validate; losses in nats a character")
    for seed in session.seeds:
        for name, rates in CASES.items():
            session.fit(name, seed, partial(Training, text, rates, seed), text)
    rows = []
    for name in session.names:
        runs = session.of(name)
        last = ([run.last(f"{split} loss") for run in runs] for split in ("train", "validation"))
        least = [min(run.curves["validation loss"]) for run in runs]
        rows.append([name, *(spread(values, 3) for values in (*last, least))])
    headers = ["", "train loss", "validation loss", "least validation loss"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)
    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for color, name in enumerate(session.names):
        for split, style in (("train", "--"), ("validation", "-")):
            shown = {"label": f"{name}, {split}", "color": f"C{color}", "linestyle": style}
            draw(axis, session.of(name), f"{split} loss", **shown)
    label_axis(axis, "loss, nats a character", "the next character")
    without, dropped = (session.of(name) for name in CASES)
    found = difference(dropped, without, "validation loss")
    text = "That dropout helps with text that was not learned"
    session.picture(
        "losses.png",
        figure,
        f"{session.seeds_shown}. {claim(text, found, 'lower', 'validation loss')}",
    )
