"""A perceptron on handwritten digits, without and with dropout.

784-512-512-10, ReLU, dropout 0.5 behind both hidden layers, Adam, batches of 128, 20 epochs, a
fifth of the training images for validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.data import Data
from fastdrop.studies.study import (
    Defaults,
    Run,
    Session,
    claim,
    difference,
    draw,
    epoch_seconds,
    label_axis,
    spread,
)

FULL = Defaults(epochs=20, data="mnist")
QUICK = Defaults(epochs=20, data="digits", seeds=(0, 1, 2))
CASES = {"without dropout": 0.0, "dropout 0.5": 0.5}
SPLITS = "train", "validation", "test"
LEARNED = "share of the wrong labels that is learned"


def perceptron(
    data: Data, rate: float, seed: int, units: int = 512, in_front: Sequence[fd.layers.Layer] = ()
) -> nn.Network:
    """Dense, ReLU, dropout, twice; dense to the classes. What is in front sees the images."""
    init, rng = np.random.default_rng(seed), fd.Rng(seed)
    inputs = data.x_train[0].size
    layers: list[Any] = [nn.Flatten(), *in_front]
    for _ in range(2):
        layers += [nn.Dense(inputs, units, init), nn.ReLU()]
        layers += [nn.Dropout(rate, rng=rng)] if rate else []
        inputs = units
    return nn.Network(*layers, nn.Dense(inputs, data.classes, init))


def start(data: Data, rate: float, seed: int, batch: int = 128) -> nn.Training:
    """A new network and Adam."""
    net = perceptron(data, rate, seed)
    return nn.Training(net, nn.Adam(net.parameters), seed, batch)


def measure(training: nn.Training, data: Data) -> dict[str, float]:
    """Accuracy and loss on the test images, and which share of the wrong labels is learned."""
    found = training.test(data)
    if data.is_wrong is not None:
        x, t = data.x_train[data.is_wrong], data.t_train[data.is_wrong]
        found[LEARNED] = training.net.score(x, t)[0]
    return found


def run(session: Session, images: int | None = None, batch: int = 128) -> None:
    """Train both with every seed, on all images or some."""
    for seed in session.seeds:
        data = session.data(seed, images)
        for name, rate in CASES.items():
            begin = partial(start, data, rate, seed, batch)
            session.fit(name, seed, begin, data, finish=measure)
    table(session)
    pictures(session)


def table(session: Session) -> None:
    """The last epoch, and where the time went."""
    measures = [f"{split} {what}" for what in ("accuracy", "loss") for split in SPLITS]
    measures += [LEARNED] if LEARNED in session.runs[0].measures else []
    rows = []
    for name in session.names:
        runs = session.of(name)
        scores = [spread(run.last(measure) for run in runs) for measure in measures]
        seconds, dropout = (epoch_seconds(runs, k) for k in ("seconds", "dropout seconds"))
        rows.append([name, *scores, f"{seconds:.2f}", f"{100 * dropout / seconds:.1f}"])
    headers = ["", *measures, "seconds an epoch, median", "dropout's share, %"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)


def pictures(session: Session) -> None:
    """Accuracies side by side, the four accuracy curves in one plot, losses side by side."""
    without, dropped = (session.of(name) for name in CASES)

    def gap(runs: list[Run], what: str) -> str:
        return spread(
            (abs(r.last(f"train {what}") - r.last(f"validation {what}")) for r in runs), 3
        )

    def found(what: str) -> str:
        return str(difference(dropped, without, what))

    measured = f"{session.seeds_shown}, measured after each epoch without dropping. "
    for what in ("accuracy", "loss"):
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        axes[0].set_yscale("log" if what == "loss" else "linear")
        for axis, name in zip(axes, CASES, strict=True):
            for split in SPLITS[:2]:
                draw(axis, session.of(name), f"{split} {what}", label=split)
            label_axis(axis, what, name)
        session.picture(
            f"{what}.png",
            figure,
            f"{measured}In the end, training and validation {what} are {gap(without, what)} apart "
            f"without dropout and {gap(dropped, what)} with it. With dropout the validation {what} "
            f"is {found(f'validation {what}')}; the test {what} is {found(f'test {what}')}.",
        )
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for color, name in enumerate(CASES):
        for split, style in zip(SPLITS[:2], ("--", "-"), strict=True):
            shown = {"label": f"{name}, {split}", "color": f"C{color}", "linestyle": style}
            draw(axis, session.of(name), f"{split} accuracy", **shown)
    label_axis(axis, "accuracy", "training and validation")
    session.picture("accuracies.png", figure, f"{measured}{findings(without, dropped)}")


def findings(without: list[Run], dropped: list[Run]) -> str:
    """What is claimed of dropout, and what became of it."""
    claims = {
        "Dropout helps to recognise new images": ("test accuracy", "higher"),
        "Dropout makes the probabilities of new images better": ("test loss", "lower"),
    }
    if LEARNED in without[0].measures:
        claims["Dropout keeps wrong labels from being learned by heart"] = LEARNED, "lower"
    return " ".join(
        claim(text, difference(dropped, without, key), wanted, key)
        for text, (key, wanted) in claims.items()
    )
