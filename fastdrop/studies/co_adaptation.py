"""What the units of the first layer do, without and with dropout: features, sparsity, reliance.

Two networks: an autoencoder of one hidden layer, with which Srivastava et al. (2014, section 7)
show that dropout makes features local and activations sparse, and the perceptron of `mnist_mlp`.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.data import Data
from fastdrop.studies.mnist_mlp import perceptron
from fastdrop.studies.study import Defaults, Session, difference, spread

FULL = Defaults(epochs=20, data="mnist")
QUICK = Defaults(epochs=20, data="digits", seeds=(0,))
IMAGES, TO_VALIDATE = 10_000, 1000
NETWORKS = "autoencoder", "perceptron"
RATES = 0.0, 0.5
FEATURES = 6  # times as many are shown
BINS = {"activation": np.linspace(0, 6, 61), "mean activation": np.linspace(0, 2, 41)}
SPARSITY, RELIANCE = ("share active", "mean activation"), ("correlation", "loss of a half")


class Autoencoder(nn.Network):
    """Dense, ReLU, dropout, dense; learns to answer with the image itself."""

    def __init__(self, data: Data, rate: float, seed: int, units: int = 256) -> None:
        init, rng = np.random.default_rng(seed), fd.Rng(seed)
        pixels = data.x_train[0].size
        super().__init__(
            nn.Flatten(),
            nn.Dense(pixels, units, init, gain=0.02),  # so little that one sees what is learned
            nn.ReLU(),
            *([nn.Dropout(rate, rng=rng)] if rate else []),
            nn.Dense(units, pixels, init, gain=1.0),
        )

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        """The loss is the squared error of an image."""
        error = self(x)
        error -= x.reshape(error.shape)
        self.backward(error * np.float32(2 / len(x)))
        return float(np.vdot(error, error)) / len(x)

    def score(self, x: nn.Array, t: nn.Labels) -> tuple[float, float]:
        """Share of the pixels' variance that the answer has, and mean loss."""
        x = x.reshape(len(x), -1)
        loss = np.square(self.predict(x) - x).sum(axis=1).mean(dtype=np.float64)
        return float(1 - loss / x.var(axis=0, dtype=np.float64).sum()), float(loss)


def start(data: Data, network: str, rate: float, seed: int) -> nn.Training:
    """A new network and Adam."""
    net = (Autoencoder if network == "autoencoder" else perceptron)(data, rate, seed)
    return nn.Training(net, nn.Adam(net.parameters), seed)


def measure(training: nn.Training, data: Data) -> dict[str, Any]:
    """What the first layer makes of the test images, without dropping.

    share active: of all activations, those above 0
    silent: of all units, those that are above 0 for no image
    correlation: of two other units' activations, mean of the absolute values over all pairs
    extent: share of the pixels that have half of a feature's energy, mean over the other units
    loss of a half: the test loss when half of the units are removed and the others count twice
    """
    net = training.net
    h = data.x_test
    for layer in net.layers[:3]:
        h = layer(h)
    of_units = h.mean(axis=0)
    heard = of_units > 0
    energy = -np.sort(-np.square(features(training, data)[:, heard]), axis=0).cumsum(axis=0)
    energy /= energy[-1]
    half = deepcopy(net)
    behind = [layer for layer in half.layers if isinstance(layer, nn.Dense)][1]
    behind.W *= 2 * fd.keep_mask(of_units.shape, 0.5, rng=0)[:, None]
    correlations = np.abs(np.corrcoef(h[:, heard].T))
    return {
        **training.test(data),
        "share active": float((h > 0).mean()),
        "mean activation": float(of_units.mean()),
        "silent": float(1 - heard.mean()),
        "correlation": float(correlations[~np.eye(len(correlations), dtype=bool)].mean()),
        "extent": float((1 + (energy < 0.5).sum(axis=0)).mean() / len(energy)),
        "loss of a half": half.score(data.x_test, data.t_test)[1],
        "most active": np.argsort(-of_units)[: FEATURES**2],
        "activations": histogram(h, "activation"),
        "mean activations": histogram(of_units, "mean activation"),
    }


def features(training: nn.Training, data: Data) -> nn.Array:
    """First-layer weights times the deviation of their pixel: how much they can change a unit."""
    return training.net.layers[1].W * data.x_train.std(axis=0).reshape(-1, 1)


def histogram(values: nn.Array, kind: str) -> nn.Array:
    """Shares of the bins; what is above all of them is in the last."""
    bins = BINS[kind]
    return np.histogram(np.minimum(values, bins[-1]), bins)[0] / values.size


def run(session: Session) -> None:
    """Train both networks, without and with dropout, with every seed."""
    for seed in session.seeds:
        data = session.data(seed, IMAGES, TO_VALIDATE)
        for network in NETWORKS:
            for rate in RATES:
                name, begin = label(network, rate), partial(start, data, network, rate, seed)
                session.fit(name, seed, begin, data, finish=measure, keep=True)
    table(session)
    picture_features(session)
    picture_activations(session)


def label(network: str, rate: float) -> str:
    """Name of a run."""
    return f"{network}, dropout {rate}" if rate else f"{network}, without dropout"


def table(session: Session) -> None:
    """All measures."""
    measures = "test accuracy", "test loss", *SPARSITY, "silent", *RELIANCE, "extent"
    rows = [
        [name, *(spread(run.last(measure) for run in session.of(name)) for measure in measures)]
        for name in session.names
    ]
    title = (
        f"After {session.epochs} epochs, mean ± deviation of the seeds; an autoencoder's accuracy "
        "is the share of the variance in its answers, its loss the squared error of an image"
    )
    session.table(title, ["", *measures], rows)


def picture_features(session: Session) -> None:
    """The features of the most active units as images, of the last seed."""
    data = session.data(session.seeds[-1], IMAGES, TO_VALIDATE)
    figure = Figure(figsize=(9, 9), layout="constrained")
    axes = figure.subplots(len(NETWORKS), len(RATES))
    for axis, name in zip(axes.flat, session.names, strict=True):
        run = session.of(name)[-1]
        shown = features(run.trainer, data)[:, run.measures["most active"]]
        axis.imshow(mosaic(shown, data.x_train.shape[1:]), cmap="gray", vmin=-1, vmax=1)
        axis.set(title=name, xticks=[], yticks=[])
    session.picture(
        "features.png",
        figure,
        f"Seed {session.seeds[-1]}: weights of the {FEATURES**2} units with the highest mean "
        "activation, times the deviation of their pixel, each unit on its own scale. "
        f"That features are more local with dropout, by the extent: "
        f"{findings(session, ('extent',))}",
    )


def mosaic(columns: nn.Array, shape: tuple[int, ...]) -> nn.Array:
    """Columns as images beside and below each other, between -1 and 1; colours are averaged."""
    height, width, _ = shape
    images = columns.T.reshape(-1, *shape).mean(axis=3)
    images /= np.abs(images).max(axis=(1, 2), keepdims=True)
    framed = np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=1)
    rows = framed.reshape(FEATURES, FEATURES, height + 1, width + 1).swapaxes(1, 2)
    return rows.reshape(FEATURES * (height + 1), FEATURES * (width + 1))


def picture_activations(session: Session) -> None:
    """Histograms of all activations, and of the units' means."""
    figure = Figure(figsize=(11, 8), layout="constrained")
    for row, network in zip(figure.subplots(len(NETWORKS), len(BINS)), NETWORKS, strict=True):
        for axis, (kind, bins) in zip(row, BINS.items(), strict=True):
            for rate in RATES:
                runs = session.of(label(network, rate))
                mean = np.mean([run.measures[f"{kind}s"] for run in runs], axis=0)
                axis.stairs(mean, bins, label=f"dropout {rate}" if rate else "without dropout")
            axis.set(xlabel=kind, title=network, yscale="log" if kind == "activation" else "linear")
        row[0].set_ylabel("share")
        row[0].legend()
    session.picture(
        "activations.png",
        figure,
        "First layer, test images, without dropping, mean of all seeds; left all activations, "
        "right the mean of each unit over the images; the last bin has what is above, too. "
        f"That dropout makes them sparse: {findings(session, SPARSITY)}"
        f" That units rely less on each other: {findings(session, RELIANCE)} A loss of a half is "
        "what dropout trains for.",
    )


def findings(session: Session, measures: tuple[str, ...]) -> str:
    """What becomes of measures that dropout is said to make lower."""
    texts = []
    for network in NETWORKS:
        without, dropped = (session.of(label(network, rate)) for rate in RATES)
        for measure in measures:
            found = difference(dropped, without, measure)
            texts.append(f"{network}, {measure} {found}: {found.verdict('lower')}")
    return "; ".join(texts) + "."
