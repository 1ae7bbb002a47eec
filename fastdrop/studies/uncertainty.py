"""How sure a network is: Monte Carlo dropout on images like those learned from, and on others.

A perceptron (mnist-mlp's, dropout 0.5) is trained without and with dropout on 5,000 images. The
one with dropout predicts in two ways: in evaluation mode, and by the mean of 50 passes that drop.
All three are asked about 3,000 test images, as they are and turned, and about what is no digit:
patches of the two photographs that come with scikit-learn, and test images with shuffled pixels.

References
----------
Y. Gal, Z. Ghahramani: Dropout as a Bayesian approximation. ICML 2016. C. Guo, G. Pleiss, Y. Sun,
K. Q. Weinberger: On calibration of modern neural networks. ICML 2017.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.datasets import load_sample_images
from sklearn.metrics import roc_auc_score

import fastdrop as fd
from fastdrop.studies import mnist_mlp, nn
from fastdrop.studies.data import Data, DataError, Images
from fastdrop.studies.study import Defaults, Run, Session, difference, paired, spread

FULL = Defaults(epochs=20, data="mnist")
QUICK = Defaults(epochs=20, data="digits", seeds=(0,))
RATES = {"without dropout": 0.0, "dropout": 0.5}
IMAGES, PASSES = 3000, 50
BINS, HISTOGRAM = 10, 40
ANGLES = range(0, 181, 30)
PLAIN, EVALUATION, MONTE_CARLO = "without dropout", "dropout, evaluation", "dropout, Monte Carlo"
KNOWN, TURNED = "test images", "turned by 90°"
ENTROPY, INFORMATION = "predictive_entropy", "mutual_information"  # of fd.mc.Classification
UNSURE = {ENTROPY: "entropy", INFORMATION: "mutual information"}
SAMPLED = (MONTE_CARLO, ENTROPY), (MONTE_CARLO, INFORMATION)

Probabilities = npt.NDArray[np.float64]  # (images, classes)


def rotated(images: Images, degrees: float) -> Images:
    """Turned about the middle; a pixel comes from the four around where it was. Black outside."""
    height, width = images.shape[1:3]
    y, x = np.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rows, columns = c * y + s * x + (height - 1) / 2, c * x - s * y + (width - 1) / 2
    turned = np.zeros_like(images)
    for i in (0, 1):
        for j in (0, 1):
            row, column = np.floor(rows) + i, np.floor(columns) + j
            weight = (1 - abs(rows - row)) * (1 - abs(columns - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            row, column = (a[inside].astype(np.intp) for a in (row, column))
            turned[:, inside] += images[:, row, column] * weight[inside, None].astype(np.float32)
    return turned


def photographs(like: Images, seed: int) -> Images:
    """As many patches, of the same shape, from somewhere in two photographs."""
    rng = np.random.default_rng([seed, 3])
    _, height, width, channels = like.shape
    patches = np.empty_like(like)
    photos = load_sample_images().images
    most = min(n for photo in photos for n in photo.shape[:2])
    if max(height, width) >= most or channels not in (1, 3):
        raise DataError(
            f"images of {height} x {width} x {channels} have no like in the photographs: give "
            f"--data with 1 or 3 channels and less than {most} x {most}"
        )
    for patch in patches:
        photo = photos[rng.integers(len(photos))]
        y = rng.integers(photo.shape[0] - height)
        x = rng.integers(photo.shape[1] - width)
        cut = photo[y : y + height, x : x + width] / np.float32(255)
        patch[...] = cut if channels == 3 else cut.mean(axis=-1, keepdims=True)
    return patches


def shuffled(images: Images, seed: int) -> Images:
    """With the pixels of each in an order of its own."""
    rng = np.random.default_rng([seed, 4])
    pixels = images.reshape(len(images), -1, images.shape[-1])
    return rng.permuted(pixels, axis=1).reshape(images.shape)


Predict = Callable[[nn.Network, Images], fd.mc.Classification]


def evaluation(net: nn.Network, x: Images) -> fd.mc.Classification:
    """One pass that does not drop."""
    answer = fd.mc.Classification()
    answer.update(nn.softmax(net.predict(x)))
    return answer


def monte_carlo(net: nn.Network, x: Images) -> fd.mc.Classification:
    """Many that do."""

    def one(x: Images, rng: fd.Rng) -> nn.Array:
        with fd.mc.sampling(net.dropouts, rng):
            return nn.softmax(net(x))

    with fd.debug(False):  # all images are asked of the same 50 networks: the masks are shared
        return fd.mc.predict(one, x, PASSES, fd.mc.Classification(), rng=0)


PREDICTORS: dict[str, tuple[str, Predict]] = {  # with the run whose network they ask
    PLAIN: ("without dropout", evaluation),
    EVALUATION: ("dropout", evaluation),
    MONTE_CARLO: ("dropout", monte_carlo),
}


def ask(trainer: nn.Training, data: Data, seed: int) -> dict[str, Any]:
    """All that is measured of a network, by predictor."""
    x, t = data.x_test[:IMAGES], data.t_test[:IMAGES]
    others = {"photographs": photographs(x, seed), "shuffled pixels": shuffled(x, seed)}
    name = "dropout" if trainer.net.dropouts else "without dropout"
    measures = {}
    for predictor, (network, predict) in PREDICTORS.items():
        if network == name:
            answers = {k: predict(trainer.net, rotated(x, k)) for k in ANGLES}
            unlike = {k: predict(trainer.net, other) for k, other in others.items()}
            measures[predictor] = {
                **calibration(answers[0].mean, t),
                "accuracies": [accuracy(a.mean, t) for a in answers.values()],
                "confidences": [a.mean.max(axis=1).mean() for a in answers.values()],
                "entropies": [a.predictive_entropy.mean() for a in answers.values()],
                "information": [a.mutual_information.mean() for a in answers.values()],
                "sets": {
                    KNOWN: told_apart(answers[0], answers[0]),
                    TURNED: told_apart(answers[90], answers[0]),
                    **{k: told_apart(a, answers[0]) for k, a in unlike.items()},
                },
            }
    return measures


def accuracy(p: Probabilities, t: nn.Labels) -> float:
    """Share of the images whose likeliest class is the right one."""
    return float((p.argmax(axis=1) == t).mean())


def calibration(p: Probabilities, t: nn.Labels) -> dict[str, Any]:
    """Whether of the images with confidence c a share of c is right; c is the largest probability.

    The expected calibration error is the mean over the images of the distance of both, in bins of
    confidence.
    """
    confidence, right = p.max(axis=1), p.argmax(axis=1) == t
    which = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    images, confident, correct = (
        np.bincount(which, weights, BINS) for weights in (None, confidence, right)
    )
    return {
        "accuracy": float(right.mean()),
        "loss": float(-np.log(np.maximum(p[np.arange(len(t)), t], 1e-30)).mean()),
        "mean confidence": float(confidence.mean()),
        "calibration error": float(np.abs(confident - correct).sum() / len(t)),
        "bins": {"images": images, "confidence": confident, "right": correct},
    }


def told_apart(answer: fd.mc.Classification, known: fd.mc.Classification) -> dict[str, Any]:
    """How unsure the network is of some images, and if that tells them from those it knows.

    The area under the ROC curve is the chance that it is less sure of such an image than of a known
    one: 0.5 if that tells nothing.
    """
    found = {}
    for what in UNSURE:
        values, others = (getattr(a, what) for a in (answer, known))
        labels = np.repeat([1, 0], [len(values), len(others)])
        parts = np.minimum(values / np.log(answer.mean.shape[1]), 1)
        found[what] = {
            "mean": float(values.mean()),
            "area": float(roc_auc_score(labels, np.concatenate([values, others]))),
            "histogram": np.histogram(parts, HISTOGRAM, (0, 1))[0],
        }
    return found


def run(session: Session) -> None:
    """Train both with every seed, and ask them."""
    for seed in session.seeds:
        data = session.data(seed, 5000, 2000)
        for name, rate in RATES.items():
            begin = partial(mnist_mlp.start, data, rate, seed)
            session.fit(name, seed, begin, data, finish=partial(ask, seed=seed))
    answers = {
        predictor: [Run(predictor, r.seed, {}, r.measures[predictor]) for r in session.of(name)]
        for predictor, (name, _) in PREDICTORS.items()
    }
    tables(session, answers)
    reliability(session, answers)
    rotation(session, answers)
    histograms(session, answers)


Answers = dict[str, list[Run]]  # what each predictor says, a run a seed


def tables(session: Session, answers: Answers) -> None:
    """Test images; these against others."""
    measures = "accuracy", "loss", "mean confidence", "calibration error"
    rows = [
        [k, *(spread(r.last(m) for r in runs) for m in measures)] for k, runs in answers.items()
    ]
    images = int(answers[PLAIN][0].measures["bins"]["images"].sum())
    title = f"On {images} test images, mean ± deviation of the seeds"
    session.table(title, ["", *measures], rows)
    rows, sets = [], list(answers[PLAIN][0].measures["sets"])
    for name, what in ((PLAIN, ENTROPY), (EVALUATION, ENTROPY), *SAMPLED):
        values = [[r.measures["sets"][s][what] for r in answers[name]] for s in sets]
        means = [spread((v["mean"] for v in of_set), 3) for of_set in values]
        areas = [spread((v["area"] for v in of_set), 3) for of_set in values]
        rows.append([f"{name}: {UNSURE[what]}", *means, *areas[1:]])
    session.table(
        "How unsure, and whether that tells from test images (area under the ROC curve)",
        ["", *(f"mean, {s}" for s in sets), *(f"area, {s}" for s in sets[1:])],
        rows,
    )


def reliability(session: Session, answers: Answers) -> None:
    """Accuracy against confidence."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    for axis, (name, runs) in zip(figure.subplots(1, 3, sharey=True), answers.items(), strict=True):
        images, confidence, right = (
            sum(run.measures["bins"][k] for run in runs) for k in ("images", "confidence", "right")
        )
        some = images > 0
        where = (np.arange(BINS)[some] + 0.5) / BINS
        axis.bar(where, right[some] / images[some], 0.9 / BINS, label="accuracy")
        axis.plot(where, confidence[some] / images[some], "k_", markersize=16, label="confidence")
        axis.set(xlabel="confidence", title=name, xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left")
    told = (
        f"{name} {spread(r.last('calibration error') for r in runs)}, {lean(runs)}"
        for name, runs in answers.items()
    )
    evaluated, sampled = answers[EVALUATION], answers[MONTE_CARLO]
    session.picture(
        "reliability.png",
        figure,
        f"{seeds(session)}, all their images together. Expected calibration error: "
        f"{'; '.join(told)}. Sampling against evaluation mode: the error is "
        f"{difference(sampled, evaluated, 'calibration error')}, the loss "
        f"{difference(sampled, evaluated, 'loss')}. Bars may stand for a few images only.",
    )


def seeds(session: Session) -> str:
    """To begin a sentence with, where all seeds are in one."""
    return session.seeds_shown.removeprefix("Mean and range of ").capitalize()


def lean(runs: list[Run]) -> str:
    """To which side the confidence is wrong."""
    over = paired(run.last("mean confidence") - run.last("accuracy") for run in runs)
    if not over.direction:
        return "neither over- nor underconfident for sure"
    side = {"higher": "over", "lower": "under"}[over.direction]
    return f"{side}confident by {abs(over.mean):.4f}"


def rotation(session: Session, answers: Answers) -> None:
    """What turning the test images does."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    curves = {
        "accuracies": ("accuracy: full; confidence: dashed", "-"),
        "confidences": ("accuracy: full; confidence: dashed", "--"),
        "entropies": ("entropy, nats", "-"),
        "information": ("mutual information, nats", "-"),
    }
    places = figure.subplots(1, 3)
    for (curve, (label, style)), axis in zip(curves.items(), places[[0, 0, 1, 2]], strict=True):
        for color, (name, runs) in enumerate(answers.items()):
            values = np.array([run.measures[curve] for run in runs])
            shown = {"label": name if style == "-" else None, "color": f"C{color}"}
            axis.plot(ANGLES, values.mean(axis=0), style, **shown)
            low, high = values.min(axis=0), values.max(axis=0)
            axis.fill_between(ANGLES, low, high, color=f"C{color}", alpha=0.2, lw=0)
        axis.set(xlabel="turned by, degrees", ylabel=label)
        axis.grid(alpha=0.3)
    places[2].legend()
    told = []
    for name, runs in answers.items():
        right, sure = (np.array([r.measures[c] for r in runs]) for c in list(curves)[:2])
        worst = int(right.mean(axis=0).argmin())
        told.append(
            f"{name} at {ANGLES[worst]}°, accuracy {spread(right[:, worst], 2)} with a mean "
            f"confidence of {spread(sure[:, worst], 2)}"
        )
    session.picture(
        "rotation.png",
        figure,
        f"{session.seeds_shown}. Where each is worst: {'; '.join(told)}. In evaluation mode "
        "there is one pass, so no mutual information. Some digits look like others, or themselves, "
        "when turned.",
    )


def histograms(session: Session, answers: Answers) -> None:
    """Entropy and mutual information of images that are known, turned, and of another kind."""
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = (PLAIN, ENTROPY), *SAMPLED
    for axis, (name, what) in zip(figure.subplots(1, 3), panels, strict=True):
        for kind in answers[name][0].measures["sets"]:
            counts = sum(run.measures["sets"][kind][what]["histogram"] for run in answers[name])
            axis.stairs(counts / counts.sum(), np.linspace(0, 1, HISTOGRAM + 1), label=kind)
        axis.set(xlabel=f"{UNSURE[what]} / log(classes)", title=name, yscale="log")
        axis.set_ylabel("share of the images")
        axis.grid(alpha=0.3)
    axis.legend()
    told = []
    for kind in list(answers[PLAIN][0].measures["sets"])[1:]:
        areas = (
            f"{spread((r.measures['sets'][kind][what]['area'] for r in answers[name]), 3)} "
            f"({name}: {UNSURE[what]})"
            for name, what in panels
        )
        told.append(f"{kind}, {', '.join(areas)}")
    session.picture(
        "histograms.png",
        figure,
        f"{seeds(session)}, all their images together. The area under the ROC curve by which "
        f"others are told from test images is: {'; '.join(told)}.",
    )
