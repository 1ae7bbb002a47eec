"""Dropout against other means to learn less by heart, each alone and with dropout.

Early stopping, weight decay, noise on the images, the mean of five networks, and max-norm with
high momentum and a large learning rate that decays, as Srivastava et al. (2014) pair them. The
images, labels and network of `wrong_labels`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.data import Data
from fastdrop.studies.mnist_mlp import perceptron
from fastdrop.studies.study import (
    Defaults,
    Difference,
    Session,
    claim,
    difference,
    draw,
    epoch_seconds,
    label_axis,
    spread,
)
from fastdrop.studies.wrong_labels import BATCH, IMAGES, LABEL_NOISE

FULL = Defaults(epochs=20, data="digits", label_noise=LABEL_NOISE, threads=1)
QUICK = replace(FULL, seeds=(0,))
RATE = 0.5
MEASURES = "accuracy", "loss"
AGAINST = (
    "dropout with nothing else, against each means alone",
    "each means with dropout, against the same alone",
)


@dataclass(frozen=True)
class Means:
    """How a network is trained; by default with Adam and nothing else."""

    patience: int = 0
    weight_decay: float = 0.0
    noise: float = 0.0  # standard deviation
    networks: int = 1
    large_steps: bool = False
    max_norm: float = np.inf


MEANS = {  # the figures were chosen on the validation images of another seed
    "nothing": Means(),
    "early stopping": Means(patience=3),
    "weight decay": Means(weight_decay=1.0),
    "input noise": Means(noise=0.2),
    "five networks": Means(networks=5),
    "momentum": Means(large_steps=True),
    "momentum and max-norm": Means(large_steps=True, max_norm=1.0),
}


class Committee(nn.Network):
    """Networks that learn apart and answer with the mean of their probabilities."""

    def __init__(self, nets: list[nn.Network]) -> None:
        self.nets = nets

    def _named(self, which: str) -> nn.Arrays:
        return {
            f"{k}.{name}": array
            for k, net in enumerate(self.nets)
            for name, array in getattr(net, which).items()
        }

    @property
    def dropout_seconds(self) -> float:
        return sum(net.dropout_seconds for net in self.nets)

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        return float(np.mean([net.learn(x, t) for net in self.nets]))

    def predict(self, x: nn.Array) -> nn.Array:
        """Logits: the logarithms of the mean probabilities."""
        p = np.mean([nn.softmax(net.predict(x)) for net in self.nets], axis=0)
        return np.log(np.maximum(p, 1e-30))


def decaying(step: int) -> float:
    """A learning rate, for momentum 0.95, that is a tenth after 450 steps."""
    return 0.1 * 0.1 ** (step / 450)


def start(data: Data, means: Means, rate: float, seed: int) -> nn.Training:
    """A new network, or five, and what trains it."""
    nets = []
    for k in range(means.networks):
        own, other = fd.Rng(seed, k).spawn(2)
        noise = fd.layers.GaussianNoise(means.noise, rng=other)
        nets.append(perceptron(data, rate, own.seed, in_front=[noise] if means.noise else []))
    net = Committee(nets) if means.networks > 1 else nets[0]
    if means.large_steps:
        update = nn.SGD(net.parameters, decaying, momentum=0.95, max_norm=means.max_norm)
    else:
        update = nn.Adam(net.parameters, weight_decay=means.weight_decay)
    stop = nn.EarlyStopping(means.patience, net.parameters) if means.patience else None
    return nn.Training(net, update, seed, BATCH, stop)


def run(session: Session) -> None:
    """Train with each means, alone and with dropout, with every seed."""
    for seed in session.seeds:
        data = session.data(seed, IMAGES)
        for name, means in MEANS.items():
            for rate in (0.0, RATE):
                begin = partial(start, data, means, rate, seed)
                session.fit(label(name, rate), seed, begin, data, finish=nn.Training.test)
    table(session)
    picture_test(session)
    picture_losses(session)


def label(name: str, rate: float) -> str:
    """Name of a run."""
    return f"{name}, dropout" if rate else name


def table(session: Session) -> None:
    """Each means, alone and with dropout: the test images, what it took, and what dropout adds."""
    rows = []
    for name in MEANS:
        row = [name]
        for rate in (0.0, RATE):
            runs = session.of(label(name, rate))
            row += [spread(run.last(f"test {what}") for run in runs) for what in MEASURES]
            row.append(spread((len(run.curves["seconds"]) for run in runs), 1))
            row.append(f"{epoch_seconds(runs):.3f}")
        rows.append(row)
    what = "test accuracy", "test loss", "epochs", "seconds an epoch, median"
    headers = ["", *what, *(f"{w}, dropout" for w in what)]
    title = f"At most {session.epochs} epochs, mean ± deviation of the seeds"
    session.table(title, headers, rows)
    for what in MEASURES:
        pairs = [
            [name, *(pair.figures for pair in compared(session, name, what))] for name in MEANS
        ]
        title = f"Test {what}, differences with the 95 % interval"
        session.table(title, ["", *AGAINST], pairs)


def compared(session: Session, name: str, what: str) -> tuple[Difference, Difference]:
    """Dropout with nothing else against a means; the means with dropout against it alone."""
    alone, both = (session.of(label(name, rate)) for rate in (0.0, RATE))
    dropout, key = session.of(label("nothing", RATE)), f"test {what}"
    return difference(dropout, alone, key), difference(both, alone, key)


def picture_test(session: Session) -> None:
    """Accuracies and losses on the test images, with the range of the seeds."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, what in zip(axes, MEASURES, strict=True):
        for k, rate in enumerate((0.0, RATE)):
            values = np.array(
                [[run.last(f"test {what}") for run in session.of(label(n, rate))] for n in MEANS]
            )
            mean, low, high = values.mean(axis=1), values.min(axis=1), values.max(axis=1)
            place = np.arange(len(MEANS)) + 0.2 * k
            shown = {"fmt": "o", "capsize": 3, "label": f"dropout {rate}" if rate else "alone"}
            axis.errorbar(mean, place, xerr=(mean - low, high - mean), **shown)
        axis.set(xlabel=f"test {what}", yticks=range(len(MEANS)), yticklabels=MEANS)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].legend()
    session.picture("test.png", figure, f"{session.seeds_shown}. {findings(session)}")


def picture_losses(session: Session) -> None:
    """The validation losses on the way."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, rate in zip(axes, (0.0, RATE), strict=True):
        for name in MEANS:
            draw(axis, session.of(label(name, rate)), "validation loss", label=name)
        label_axis(axis, "validation loss", f"dropout {rate}" if rate else "alone")
        axis.set_yscale("log")
    session.picture(
        "losses.png",
        figure,
        f"{session.seeds_shown}: validation loss after each epoch, without dropping. A curve ends "
        "where the first seed stopped early; the network is then that of its best epoch.",
    )


def findings(session: Session) -> str:
    """What the test images say on dropout alone, on each pair, and on what is claimed of one."""
    texts = []
    for what in MEASURES:
        found = {name: compared(session, name, what) for name in MEANS}
        for k, text in enumerate(AGAINST):
            groups: dict[str, list[str]] = {}
            for name, pair in found.items():
                groups.setdefault(pair[k].direction or "not clearly different", []).append(name)
            said = "; ".join(f"{words}: {', '.join(names)}" for words, names in groups.items())
            texts.append(f"Test {what} of {text}: {said}.")
    dropout, last = session.of(label("nothing", RATE)), list(MEANS)[-1]
    best = difference(session.of(label(last, RATE)), dropout, "test accuracy")
    text = f"That {last} make dropout better"
    return " ".join([*texts, claim(text, best, "higher", "test accuracy")])
