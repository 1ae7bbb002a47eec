"""A convolutional network on small images, without and with dropout.

Three convolutions of 3 x 3 with 32, 64 and 128 filters, ReLU and 2 x 2 pooling behind each, a dense
layer of 512 units, Adam, batches of 128, 15 epochs; dropout 0.25 behind the last pooling and behind
the dense layer.

Made for CIFAR-10, ``--data DIR``, all of which is taken. Grey images, such as MNIST's, are easy: of
these, 4,000 are taken to train and 2,000 to validate, so that there is something to overfit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.data import Data, DataError
from fastdrop.studies.study import (
    Defaults,
    Run,
    Session,
    claim,
    difference,
    draw,
    epoch_seconds,
    label_axis,
    paired,
    spread,
)

FULL = Defaults(epochs=15, data="mnist")
QUICK = Defaults(epochs=10, data="synthetic", seeds=(0,))
CASES = {"without dropout": 0.0, "dropout 0.25": 0.25}
FILTERS = 32, 64, 128
SPLITS = "train", "validation", "test"


def features(
    data: Data, init: np.random.Generator, filters: Sequence[int] = FILTERS
) -> tuple[list[Any], int]:
    """Layers that make small maps of an image, and how many numbers the maps are."""
    _, height, width, channels = data.x_train.shape
    layers: list[Any] = []
    least = 2 ** len(filters)
    if min(height, width) < least:
        raise DataError(
            f"{data.name} has images of {height} x {width}, too small for this network: give "
            f"--data with {least} x {least} or more"
        )
    for n in filters:
        layers += [nn.Conv(channels, n, init), nn.ReLU(), nn.MaxPool()]
        height, width, channels = height // 2, width // 2, n
    return layers, height * width * channels


def network(data: Data, rate: float, seed: int) -> nn.Network:
    """Convolutions, dropout, a dense layer, dropout, and one to the classes."""
    init, rng = np.random.default_rng(seed), fd.Rng(seed)
    layers, inputs = features(data, init)
    # Pooling needs its output for the backward pass, so this dropout is not in place.
    layers += [fd.layers.Dropout(rate, rng=rng)] if rate else []
    layers += [nn.Flatten(), nn.Dense(inputs, 512, init), nn.ReLU()]
    layers += [nn.Dropout(rate, rng=rng)] if rate else []
    return nn.Network(*layers, nn.Dense(512, data.classes, init))


def start(data: Data, rate: float, seed: int) -> nn.Training:
    """A new network and Adam."""
    net = network(data, rate, seed)
    return nn.Training(net, nn.Adam(net.parameters), seed)


def run(session: Session) -> None:
    """Train both with every seed."""
    for seed in session.seeds:
        data = session.data(seed)
        if data.x_train.shape[-1] == 1:
            data = data.part(4000, 2000)
        for name, rate in CASES.items():
            begin = partial(start, data, rate, seed)
            session.fit(name, seed, begin, data, finish=nn.Training.test)
    table(session)
    pictures(session, data)


def table(session: Session) -> None:
    """The last epoch, the least validation loss, the time."""
    measures = [f"{split} {what}" for what in ("accuracy", "loss") for split in SPLITS]
    rows = []
    for name in session.names:
        runs = session.of(name)
        scores = [spread(run.last(measure) for run in runs) for measure in measures]
        least = spread(min(run.curves["validation loss"]) for run in runs)
        rows.append([name, *scores, least, f"{epoch_seconds(runs):.2f}"])
    headers = ["", *measures, "least validation loss", "seconds an epoch, median"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)


def pictures(session: Session, data: Data) -> None:
    """Training and validation loss side by side; the four accuracy curves."""
    without, dropped = (session.of(name) for name in CASES)
    figure = Figure(figsize=(11, 5), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2, sharey=True), CASES, strict=True):
        for split in SPLITS[:2]:
            draw(axis, session.of(name), f"{split} loss", label=split)
        axis.set_yscale("log")
        label_axis(axis, "loss", name)
    trained = f"{session.seeds_shown}, {len(data.t_train)} images to train"
    gaps = paired(gap(b) - gap(a) for a, b in zip(without, dropped, strict=True))
    parted = claim("That they part less with dropout", gaps, "lower", "gap")
    session.picture(
        "losses.png",
        figure,
        f"{trained}. Without dropout {course(without)}; with it {course(dropped)}. {parted} With "
        f"dropout the last validation loss is {difference(dropped, without, 'validation loss')}, "
        f"the test loss {difference(dropped, without, 'test loss')}.",
    )
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for color, name in enumerate(CASES):
        for split, style in zip(SPLITS[:2], ("--", "-"), strict=True):
            shown = {"label": f"{name}, {split}", "color": f"C{color}", "linestyle": style}
            draw(axis, session.of(name), f"{split} accuracy", **shown)
    label_axis(axis, "accuracy", "training and validation")
    valid, test = (difference(dropped, without, f"{s} accuracy") for s in SPLITS[1:])
    helps = claim("That dropout helps with new images", test, "higher", "test accuracy")
    session.picture(
        "accuracies.png",
        figure,
        f"{trained}. With dropout the last validation accuracy is {valid}. {helps}",
    )


def gap(run: Run) -> float:
    """The last validation loss minus the last training loss."""
    return run.last("validation loss") - run.last("train loss")


def rise(run: Run) -> float:
    """The last validation loss, relative to the least: 0.1 is 10 % above it."""
    losses = run.curves["validation loss"]
    return losses[-1] / min(losses) - 1


def course(runs: list[Run]) -> str:
    """What the losses of the seeds do, in words."""
    epochs = [1 + int(np.argmin(run.curves["validation loss"])) for run in runs]
    least = spread(min(run.curves["validation loss"]) for run in runs)
    risen = spread((100 * rise(run) for run in runs), 0)
    train = spread(run.last("train loss") for run in runs)
    when = " and ".join(map(str, sorted(set(epochs))))
    return (
        f"the validation loss is least, {least}, in epoch {when} and ends {risen} % above that, "
        f"while the training loss falls to {train}"
    )
