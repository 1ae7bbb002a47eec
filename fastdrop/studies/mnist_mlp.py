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
from fastdrop.studies.study import Defaults, Run, Session, difference, draw, label_axis, spread

FULL = Defaults(epochs=20, data="mnist")
QUICK = Defaults(epochs=20, data="digits")
CASES = {"without dropout": 0.0, "dropout 0.5": 0.5}
SPLITS = "train", "validation", "test"


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


def start(data: Data, rate: float, seed: int) -> nn.Training:
    """A new network and Adam."""
    net = perceptron(data, rate, seed)
    return nn.Training(net, nn.Adam(net.parameters), seed)


def run(session: Session) -> None:
    """Train both with every seed."""
    for seed in session.seeds:
        data = session.data(seed)
        for name, rate in CASES.items():
            begin = partial(start, data, rate, seed)
            session.fit(name, seed, begin, data, finish=nn.Training.test)
    table(session)
    pictures(session)


def table(session: Session) -> None:
    """The last epoch, and where the time went."""
    measures = [f"{split} {what}" for what in ("accuracy", "loss") for split in SPLITS]
    rows = []
    for name in session.names:
        runs = session.of(name)
        seconds = [sum(run.curves["seconds"]) for run in runs]
        dropout = [sum(run.curves["dropout seconds"]) for run in runs]
        share = [100 * d / s for d, s in zip(dropout, seconds, strict=True)]
        scores = [spread(run.last(measure) for run in runs) for measure in measures]
        rows.append([name, *scores, spread(seconds, 1), spread(share, 2)])
    headers = ["", *measures, "seconds to train", "dropout's share, %"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)


def pictures(session: Session) -> None:
    """Accuracies side by side, the four accuracy curves in one plot, losses side by side."""
    without, dropped = (session.of(name) for name in CASES)

    def gap(runs: list[Run], what: str) -> str:
        return spread(abs(r.last(f"train {what}") - r.last(f"validation {what}")) for r in runs)

    measured = f"{session.seeds_shown}, measured after each epoch without dropping: "
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
            f"{measured}in the end training and validation {what} are {gap(without, what)} apart "
            f"without dropout and {gap(dropped, what)} with it. How this would go on with more "
            "epochs is not shown.",
        )
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for color, name in enumerate(CASES):
        for split, style in zip(SPLITS[:2], ("--", "-"), strict=True):
            shown = {"label": f"{name}, {split}", "color": f"C{color}", "linestyle": style}
            draw(axis, session.of(name), f"{split} accuracy", **shown)
    label_axis(axis, "accuracy", "training and validation")
    valid, test = (
        difference(dropped, without, f"{split} accuracy") for split in ("validation", "test")
    )
    borne = "borne out" if test.startswith("higher") else "not borne out"
    session.picture(
        "accuracies.png",
        figure,
        f"{measured}with dropout, the last validation accuracy is {valid}, that on the test images "
        f"{test}. So the claim that dropout helps with new images is {borne} on "
        f"{session.data_name}; what another rate, network or number of epochs would give is not "
        "shown.",
    )
