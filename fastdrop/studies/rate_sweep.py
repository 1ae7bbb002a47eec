"""Dropout of the images, of the hidden units, or of both, with rates from 0 to 0.8.

The images, labels and network of `wrong_labels`, where dropout has something to prevent. Never on
the output: a class that is dropped cannot be the answer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.data import Data
from fastdrop.studies.mnist_mlp import SPLITS, perceptron
from fastdrop.studies.study import Defaults, Difference, Session, difference, spread
from fastdrop.studies.wrong_labels import BATCH, IMAGES, LABEL_NOISE

FULL = Defaults(epochs=20, data="digits", label_noise=LABEL_NOISE, threads=1)
QUICK = replace(FULL, seeds=(0,))
RATES = 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8
QUICK_RATES = 0.0, 0.2, 0.5, 0.8
USEFUL = 0.2, 0.5  # as it is said
PLACES = {"input": (True, False), "hidden": (False, True), "all layers": (True, True)}
BETTER = {"accuracy": "higher", "loss": "lower"}


def start(data: Data, rate: float, place: str, seed: int) -> nn.Training:
    """A new network with dropout in front of it, behind its hidden layers, or both."""
    at_input, at_hidden = (rate * there for there in PLACES[place])
    in_front = fd.layers.Dropout(at_input, rng=fd.Rng(seed).spawn(1)[0])
    net = perceptron(data, at_hidden, seed, in_front=[in_front] if at_input else [])
    return nn.Training(net, nn.Adam(net.parameters), seed, BATCH)


def run(session: Session) -> None:
    """Train with each rate in each place, with every seed."""
    rates = QUICK_RATES if session.quick else RATES
    cases = {label(rate, place): (rate, place) for rate in rates for place in PLACES}
    for seed in session.seeds:
        data = session.data(seed, IMAGES)
        for name, (rate, place) in cases.items():
            begin = partial(start, data, rate, place, seed)
            session.fit(name, seed, begin, data, finish=nn.Training.test)
    table(session, rates)
    pictures(session, rates)


def label(rate: float, place: str) -> str:
    """Name of a run; without dropout, there is one for all places."""
    return f"{place} {rate}" if rate else "without dropout"


def sweep(session: Session, rates: tuple[float, ...], place: str, key: str) -> np.ndarray:
    """A measure, (rates, seeds)."""
    return np.array([[r.last(key) for r in session.of(label(rate, place))] for rate in rates])


def table(session: Session, rates: tuple[float, ...]) -> None:
    """Accuracy on the test images, and how far it is below that on the training images."""
    columns = {}
    for place in PLACES:
        accuracy = sweep(session, rates, place, "test accuracy")
        columns[f"{place}: test accuracy"] = accuracy
        columns[f"{place}: gap"] = sweep(session, rates, place, "train accuracy") - accuracy
    rows = ([rate, *map(spread, row)] for rate, *row in zip(rates, *columns.values(), strict=True))
    title = f"After {session.epochs} epochs, mean ± deviation of the seeds; gap: train less test"
    session.table(title, ["rate", *columns], rows)
    for what in BETTER:
        rows = (
            [p, *(against_none(session, p, k, what).figures for k in PLACES)] for p in rates[1:]
        )
        title = f"Test {what} against that without dropout, with the 95 % interval"
        session.table(title, ["rate", *PLACES], rows)


def against_none(session: Session, rate: float, place: str, what: str) -> Difference:
    """Of the test images."""
    runs, without = session.of(label(rate, place)), session.of(label(0.0, place))
    return difference(runs, without, f"test {what}")


def pictures(session: Session, rates: tuple[float, ...]) -> None:
    """Accuracies and losses against the rate, a panel for each place."""
    for what in ("accuracy", "loss"):
        figure = Figure(figsize=(12, 4.5), layout="constrained")
        axes = figure.subplots(1, len(PLACES), sharey=True)
        for axis, place in zip(axes, PLACES, strict=True):
            for split in SPLITS:
                values = sweep(session, rates, place, f"{split} {what}")
                axis.plot(rates, values.mean(axis=1), marker=".", label=split)
                axis.fill_between(rates, values.min(axis=1), values.max(axis=1), alpha=0.2, lw=0)
            axis.axvspan(*USEFUL, color="0.5", alpha=0.15, lw=0)
            axis.set(xlabel="rate", title=f"dropout: {place}")
            axis.set_yscale("log" if what == "loss" else "linear")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(what)
        axes[0].legend()
        session.picture(
            f"{what}.png",
            figure,
            f"{session.seeds_shown}, after {session.epochs} epochs; grey: the rates that are said "
            f"to be useful. {findings(session, rates, what)}",
        )


def findings(session: Session, rates: tuple[float, ...], what: str) -> str:
    """What the test images say on each place, and on what is said."""
    texts = []
    useful = [rate for rate in rates if USEFUL[0] <= rate <= USEFUL[1]]
    for place in PLACES:
        found = {rate: against_none(session, rate, place, what) for rate in rates[1:]}
        sign = 1 if BETTER[what] == "higher" else -1
        best = max(found, key=lambda rate: sign * found[rate].mean)
        verdicts = {rate: found[rate].verdict(BETTER[what]) for rate in useful}
        each = ", ".join(f"{verdict} at {rate}" for rate, verdict in verdicts.items())
        all_of_them = set(verdicts.values())
        verdict = all_of_them.pop() if len(all_of_them) == 1 else f"not confirmed ({each})"
        texts.append(
            f"Dropout of {place}: the test {what} is best at rate {best}, {found[best]}, against "
            f"that without; that all rates from {USEFUL[0]} to {USEFUL[1]} help: {verdict}."
        )
    return " ".join(texts)
