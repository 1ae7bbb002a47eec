"""The same networks under every kind of dropout: what each gains, learns and costs.

Four networks: a perceptron of two hidden layers, the same with SELU, two convolutions, and an
LSTM that reads images row by row. Adam, 20 epochs, the images and labels of `wrong_labels`: few, a
fifth of the labels wrong, so that a reader can tell the variants apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import fastdrop as fd
from fastdrop.studies import nn
from fastdrop.studies.cifar_cnn import features
from fastdrop.studies.data import Data
from fastdrop.studies.study import (
    Defaults,
    Difference,
    Run,
    Session,
    difference,
    draw,
    epoch_seconds,
    label_axis,
    spread,
)
from fastdrop.studies.wrong_labels import BATCH, IMAGES, LABEL_NOISE

FULL = Defaults(epochs=20, data="digits", label_noise=LABEL_NOISE, threads=1)
QUICK = replace(FULL, epochs=10, seeds=(0,))
UNITS = 512
NOISE = "logit", "log_alpha", "log_variance"  # parameters that say how much is dropped
SPARSE = 0.05  # of the divergence; with 200 weights an image, all of it would leave too few
TARGETED = 0.75  # fraction of the weights that targeted dropout prepares for pruning
PRUNED = 0.5, TARGETED, 0.9, 0.95  # fractions of the weights
BETTER = {"accuracy": "higher", "loss": "lower"}
TO_PRUNE = "perceptron", "perceptron, dropout", "perceptron, targeted"

Layers = Callable[..., Any] | None  # what makes a layer


class TargetedDense(nn.Dense):
    """Dense, computed with weights of which targeted dropout drops some of the smallest."""

    def __init__(self, inputs: int, outputs: int, init: np.random.Generator, dropout: Any) -> None:
        super().__init__(inputs, outputs, init)
        self.dropout = dropout

    def train(self, mode: bool = True) -> None:
        """As of fastdrop's layers."""
        self.dropout.train(mode)

    def __call__(self, x: nn.Array) -> nn.Array:
        W = self.dropout(self.W)
        self.saved = x, W
        return x @ W + self.b

    def backward(self, dy: nn.Array) -> nn.Array | None:
        x, W = self.saved
        self.gradients = {"W": self.dropout.backward(x.T @ dy), "b": dy.sum(axis=0)}
        return dy @ W.T if self.wants_dx else None


class Rows(nn.Layer):
    """Images as sequences of their rows: (height, number, width * channels)."""

    def __call__(self, x: nn.Array) -> nn.Array:
        return np.ascontiguousarray(x.reshape(*x.shape[:2], -1).swapaxes(0, 1))


class Mean(nn.Layer):
    """Over all steps of a sequence."""

    def __call__(self, x: nn.Array) -> nn.Array:
        self.saved = x.shape
        return x.mean(axis=0)

    def backward(self, dy: nn.Array) -> nn.Array:
        return np.broadcast_to(dy / dy.dtype.type(self.saved[0]), self.saved)


class Concrete(nn.Network):
    """The loss gains the regularizer of each concrete dropout and the weights behind it."""

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        loss = super().learn(x, t)
        for layer, dense in pairwise(self.layers):
            if isinstance(layer, fd.layers.ConcreteDropout):
                value, dW = layer.regularize(dense.W, features=len(dense.W))
                dense.gradients["W"] += dW
                loss += value
        return loss


class Variational(nn.Network):
    """The loss gains the divergence of the noise from its prior times a weight.

    The weight grows from 0 over the first `warm_up` steps, or the prior would win before anything
    is learned.
    """

    def __init__(self, weight: float, warm_up: int, *layers: Any) -> None:
        super().__init__(*layers)
        self.weight, self.warm_up, self.step = weight, warm_up, 0

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        loss = super().learn(x, t)
        self.step += 1
        weight = self.weight * min(1.0, self.step / self.warm_up)
        layers: list[Any] = self.dropouts  # those with a divergence
        for layer in layers:
            value, *gradients = layer.kl()
            loss += weight * value
            for name, gradient in zip(layer.learned, gradients, strict=False):  # none of a bias
                layer.gradients[name] += weight * gradient
        return loss


class Adversarial(nn.Network):
    """The loss gains that with the mask, near the drawn one, that is the worst for the labels.

    The last layers are an `AdversarialDropout` and the dense one to the classes.
    """

    def learn(self, x: nn.Array, t: nn.Labels) -> float:
        *hidden, dropout, output = self.layers
        for layer in hidden:
            x = layer(x)
        loss, dlogits = nn.cross_entropy(output(dropout(x)), t)
        dy, gradients = output.backward(dlogits), output.gradients
        dx = dropout.backward(dy)
        worse, dlogits = nn.cross_entropy(output(dropout.search(dy)), t)
        dx += dropout.backward(output.backward(dlogits))
        for name, gradient in gradients.items():
            output.gradients[name] += gradient
        for layer in reversed(hidden[self.first :]):
            dx = layer.backward(dx)
        return loss + worse


class TwoAdams:
    """Adam for the weights, and a faster one for what is learned of the noise."""

    def __init__(self, parameters: nn.Arrays, rate: float) -> None:
        noise = {k: p for k, p in parameters.items() if k.split(".")[1] in NOISE}
        weights = {k: p for k, p in parameters.items() if k not in noise}
        self.each = nn.Adam(weights, rate), nn.Adam(noise, rate=1e-2)

    def __call__(self, gradients: nn.Arrays) -> None:
        """One step."""
        for update in self.each:
            update(gradients)


class Builder:
    """Makes networks for some images, new ones for each seed."""

    def __init__(self, data: Data, seed: int, epochs: int) -> None:
        self.data, self.images = data, len(data.t_train)
        self.steps = epochs * -(-self.images // BATCH)
        self.warm_up = max(1, self.steps // 2)  # with few images there may be one step in all
        self.init, self.rng = np.random.default_rng(seed), fd.Rng(seed)

    def dense(self, inputs: int, outputs: int, gain: float = 2.0) -> nn.Dense:
        """The usual layer; the next ones make others of the same shape."""
        return nn.Dense(inputs, outputs, self.init, gain)

    def selu_dense(self, inputs: int, outputs: int) -> nn.Dense:
        return self.dense(inputs, outputs, gain=1.0)

    def connect(self, inputs: int, outputs: int) -> fd.layers.Layer:
        return fd.layers.DropConnect(inputs, outputs, 0.5, rng=self.rng)

    def sparse(self, inputs: int, outputs: int) -> fd.layers.Layer:
        return fd.layers.SparseVariationalLinear(inputs, outputs, rng=self.rng)

    def targeted(self, inputs: int, outputs: int) -> TargetedDense:
        dropout = fd.layers.TargetedDropout(0.5, TARGETED, rng=self.rng)
        return TargetedDense(inputs, outputs, self.init, dropout)

    def perceptron(
        self,
        drop: Layers = None,
        first: Layers = None,
        dense: Layers = None,
        activation: Callable[[], Any] = nn.ReLU,
    ) -> list[Any]:
        """Two hidden layers; `drop` makes what is behind each, `dense` all that follow `first`."""
        dense = dense or self.dense
        layers: list[Any] = [nn.Flatten()]
        inputs = self.data.x_train[0].size
        for make in (first or dense, dense):
            layers += [make(inputs, UNITS), activation()]
            layers += [drop(rng=self.rng)] if drop else []
            inputs = UNITS
        return [*layers, dense(inputs, self.data.classes)]

    def convolutions(self, maps: Layers = None, units: Layers = None) -> list[Any]:
        """Two, and a dense layer; `maps` and `units` make what is behind the one, the other."""
        layers, inputs = features(self.data, self.init, (16, 32))
        layers += [maps(rng=self.rng)] if maps else []
        layers += [nn.Flatten(), self.dense(inputs, 256), nn.ReLU()]
        layers += [units(rng=self.rng)] if units else []
        return [*layers, self.dense(256, self.data.classes)]

    def lstm(self, drop: Layers = None, recurrent: float = 0.0) -> list[Any]:
        """One over the rows of an image; `drop` makes what is in front of and behind it."""
        _, _, width, channels = self.data.x_train.shape
        lstm = nn.LSTM(width * channels, 64, self.init, recurrent=recurrent, rng=self.rng)
        front, behind = ([drop(rng=self.rng)] if drop else [] for _ in range(2))
        return [Rows(), *front, lstm, *behind, Mean(), self.dense(64, self.data.classes)]


CASES: dict[str, Callable[[Builder], nn.Network]] = {
    "perceptron": lambda b: nn.Network(*b.perceptron()),
    "perceptron, dropout": lambda b: nn.Network(*b.perceptron(partial(nn.Dropout, 0.5))),
    "perceptron, curriculum": lambda b: nn.Network(
        *b.perceptron(partial(nn.Dropout, fd.schedules.curriculum(0.5, 10 / b.steps)))
    ),
    "perceptron, Gaussian": lambda b: nn.Network(
        *b.perceptron(partial(fd.layers.GaussianDropout, 0.5))
    ),
    "perceptron, variational": lambda b: Variational(
        1 / b.images, b.warm_up, *b.perceptron(partial(fd.layers.VariationalDropout, (UNITS,)))
    ),
    "perceptron, concrete": lambda b: Concrete(
        *b.perceptron(partial(fd.layers.ConcreteDropout, 0.1, dropout_regularizer=1 / b.images))
    ),
    "perceptron, adversarial": lambda b: Adversarial(
        *b.perceptron(partial(fd.layers.AdversarialDropout, 0.05, 0.5))
    ),
    "perceptron, DropConnect": lambda b: nn.Network(*b.perceptron(None, b.dense, b.connect)),
    "perceptron, targeted": lambda b: nn.Network(*b.perceptron(dense=b.targeted)),
    "perceptron, sparse variational": lambda b: Variational(
        SPARSE / b.images, b.warm_up, *b.perceptron(dense=b.sparse)
    ),
    "SELU perceptron": lambda b: nn.Network(*b.perceptron(dense=b.selu_dense, activation=nn.SELU)),
    "SELU perceptron, alpha": lambda b: nn.Network(
        *b.perceptron(partial(fd.layers.AlphaDropout, 0.1), None, b.selu_dense, nn.SELU)
    ),
    "CNN": lambda b: nn.Network(*b.convolutions()),
    "CNN, dropout": lambda b: nn.Network(
        *b.convolutions(partial(fd.layers.Dropout, 0.25), partial(nn.Dropout, 0.25))
    ),
    "CNN, spatial": lambda b: nn.Network(
        *b.convolutions(
            partial(fd.layers.SpatialDropout, 0.25, channels_last=True), partial(nn.Dropout, 0.25)
        )
    ),
    "LSTM": lambda b: nn.Network(*b.lstm()),
    "LSTM, dropout": lambda b: nn.Network(*b.lstm(partial(fd.layers.Dropout, 0.2))),
    "LSTM, locked": lambda b: nn.Network(
        *b.lstm(partial(fd.layers.LockedDropout, 0.2, time_axis=0), recurrent=0.2)
    ),
}


class Training(nn.Training):
    """Follows the rates, too."""

    def epoch(self, data: Data, progress: Callable[[float], object]) -> dict[str, float]:
        return super().epoch(data, progress) | noise(self.net)


def noise(net: nn.Network) -> dict[str, float]:
    """The rates that are learned or scheduled, by hidden layer; the weights that are left out."""
    found: dict[str, float] = {}
    pruned, weights = 0.0, 0
    for k, layer in enumerate(net.dropouts, 1):
        if isinstance(layer, fd.layers.SparseVariationalLinear):
            pruned += layer.sparsity * layer.weight.size
            weights += layer.weight.size
            found["sparsity"] = pruned / weights
        elif isinstance(layer, fd.layers.VariationalDropout):
            alpha = np.exp(np.minimum(layer.log_alpha, 0))
            found[f"rate {k}"] = float((alpha / (1 + alpha)).mean())
        elif isinstance(layer, fd.layers.ConcreteDropout) or callable(layer.p):
            found[f"rate {k}"] = layer.rate()
    return found


def start(name: str, data: Data, seed: int, epochs: int) -> Training:
    """A new network and its optimizers."""
    net = CASES[name](Builder(data, seed, epochs))
    rate = 5e-3 if network_of(name) == "LSTM" else 1e-3
    return Training(net, TwoAdams(net.parameters, rate), seed, BATCH)


def prune(trainer: Training, data: Data) -> dict[str, list[float]]:
    """Validation accuracies without the smallest weights of each unit."""
    net = trainer.net
    weights = {name: p.copy() for name, p in net.parameters.items() if p.ndim > 1}
    accuracies = []
    for fraction in PRUNED:
        for name, weight in weights.items():
            net.parameters[name][...] = fd.targeted_prune(weight, fraction)
        accuracies.append(net.score(data.x_valid, data.t_valid)[0])
    return {"pruned accuracy": accuracies}


def run(session: Session) -> None:
    """Train all with every seed."""
    for seed in session.seeds:
        data = session.data(seed, IMAGES)
        for name in CASES:
            begin = partial(start, name, data, seed, session.epochs)
            finish = prune if name in TO_PRUNE else None
            session.fit(name, seed, begin, data, finish=finish, planned=True)
    tables(session)
    pictures(session)


def tables(session: Session) -> None:
    """All variants; what remains behind pruning."""
    rows, pairs = [], []
    for name in session.names:
        runs, plain = session.of(name), session.of(network_of(name))
        scores = [spread(run.last(f"validation {m}") for run in runs) for m in BETTER]
        seconds, others = epoch_seconds(runs), epoch_seconds(plain)
        rows.append([name, *scores, learned(runs), f"{seconds:.3f}", f"{seconds / others:.2f}"])
        if runs != plain:
            pairs.append([name, *(against_none(session, name, m).figures for m in BETTER)])
    headers = ["", "validation accuracy", "validation loss", "rates or sparsity in the end"]
    headers += ["seconds an epoch, median", "times those without"]
    session.table(f"After {session.epochs} epochs, mean ± deviation of the seeds", headers, rows)
    title = "Against the same network without dropout, with the 95 % interval"
    session.table(title, ["", "validation accuracy", "validation loss"], pairs)
    rows = []
    for name in TO_PRUNE:
        whole = spread(run.last("validation accuracy") for run in session.of(name))
        rows.append([name, whole, *map(spread, pruned_accuracies(session, name).T)])
    headers = ["", "all weights", *(f"{100 * fraction:g} % pruned" for fraction in PRUNED)]
    session.table("Validation accuracy without the smallest weights of each unit", headers, rows)


def network_of(name: str) -> str:
    """The run without dropout that this one is compared with."""
    return name.partition(",")[0]


def against_none(session: Session, name: str, what: str) -> Difference:
    """What the variant changes of the network's validation accuracy or loss."""
    runs, plain = session.of(name), session.of(network_of(name))
    return difference(runs, plain, f"validation {what}")


def pruned_accuracies(session: Session, name: str) -> nn.Array:
    """(seeds, fractions)."""
    return np.array([run.measures["pruned accuracy"] for run in session.of(name)])


def followed(run: Run) -> list[str]:
    """The curves that `noise` gives."""
    return [curve for curve in run.curves if curve.startswith("rate") or curve == "sparsity"]


def learned(runs: list[Run]) -> str:
    """What these curves come to, in words."""
    last = {curve: spread((run.last(curve) for run in runs), 2) for curve in followed(runs[0])}
    return ", ".join(f"{curve} {value}" for curve, value in last.items())


def pictures(session: Session) -> None:
    """What each changes, rates over the epochs, accuracy of what is pruned."""
    picture_differences(session)
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    shown = {name: session.of(name) for name in session.names if followed(session.of(name)[0])}
    for color, (name, runs) in enumerate(shown.items()):
        for curve, style in zip(followed(runs[0]), ("-", "--"), strict=False):
            label = f"{name.partition(', ')[2]}, {curve}"
            draw(axis, runs, curve, label=label, color=f"C{color}", linestyle=style)
    label_axis(axis, "rate, or fraction of the weights left out", "what is learned or scheduled")
    ends = "; ".join(f"{name.partition(', ')[2]} {learned(runs)}" for name, runs in shown.items())
    session.picture(
        "rates.png",
        figure,
        f"{session.seeds_shown}. In the end: {ends}. Of the variational rate the mean of the units "
        "is shown; that one's noise is Gaussian, of the variance that dropout of this rate has.",
    )
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    for name in TO_PRUNE:
        accuracies = pruned_accuracies(session, name)
        (line,) = axis.plot(PRUNED, accuracies.mean(axis=0), "o-", label=name)
        low, high = accuracies.min(axis=0), accuracies.max(axis=0)
        axis.fill_between(PRUNED, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axis.set(xlabel="pruned fraction of the weights", ylabel="validation accuracy")
    axis.grid(alpha=0.3)
    axis.legend()
    at = PRUNED.index(TARGETED)
    kept = (f"{spread(pruned_accuracies(session, name)[:, at])} ({name})" for name in TO_PRUNE)
    session.picture(
        "pruning.png",
        figure,
        f"{session.seeds_shown}. With {100 * TARGETED:g} % of the weights pruned, the fraction "
        f"that targeted dropout was told, the validation accuracy is {', '.join(kept)}. Nothing "
        "was trained after pruning.",
    )


def picture_differences(session: Session) -> None:
    """Accuracy and loss of each variant against the same network without, with the interval."""
    names = [name for name in session.names if name != network_of(name)]
    networks = list(dict.fromkeys(map(network_of, names)))
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    texts = []
    for axis, (what, wanted) in zip(axes, BETTER.items(), strict=True):
        verdicts: dict[str, list[str]] = {"confirmed": [], "not confirmed": [], "contradicted": []}
        for y, name in enumerate(names):
            found = against_none(session, name, what)
            verdicts[found.verdict(wanted)].append(name)
            error = found.high - found.mean if len(session.seeds) > 1 else None
            color = f"C{networks.index(network_of(name))}"
            axis.errorbar(found.mean, y, xerr=error, fmt="o", capsize=3, color=color)
        axis.axvline(0, color="0.5", lw=1)
        axis.set(xlabel=f"validation {what}, less that without dropout")
        axis.grid(alpha=0.3)
        groups = (
            f"{verdict} for {len(of)} ({'; '.join(of)})" for verdict, of in verdicts.items() if of
        )
        texts.append(f"That the validation {what} is {wanted} with it is {', '.join(groups)}.")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    shown = ", ".join(map(str, session.seeds))
    session.picture(
        "differences.png",
        figure,
        f"Mean and 95 % interval over seeds {shown}. {' '.join(texts)} Each variant has one "
        "setting, not tuned.",
    )
