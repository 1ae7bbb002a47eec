"""Monte Carlo prediction: what a model that still drops says, over many passes.

A pass is the model with one draw of its masks; the spread of the passes tells how sure it is. They
are taken one by one into an accumulator, so memory does not grow with their number.

References
----------
Y. Gal, Z. Ghahramani: Dropout as a Bayesian approximation: representing model uncertainty in deep
learning. ICML 2016. arXiv:1506.02142.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from inspect import signature
from math import prod
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from fastdrop._core import Draw, Place, Unchanged
from fastdrop.base import gate
from fastdrop.layers import Layer
from fastdrop.rng import Rng, RngLike, with_draw

__all__ = [
    "Classification",
    "Moments",
    "Regression",
    "pass_rng",
    "precision",
    "predict",
    "sampling",
]

BLOCK = 16384  # elements taken in at a time, so that what is between them stays in the cache
SUM_TOLERANCE = 1e-2  # of probabilities; a softmax in bfloat16 stays below it
TINY = np.finfo(np.float64).tiny  # its logarithm is finite, so 0 log 0 becomes 0

T = TypeVar("T")
Floats = npt.NDArray[np.float64]
Sums = dict[str, Floats]


class Moments:
    """Mean and variance of arrays that come one by one.

    Attributes
    ----------
    samples : int
        How many came.

    References
    ----------
    B. P. Welford: Note on a method for calculating corrected sums of squares and products.
    Technometrics 4 (1962) 419-420.
    """

    _shape: tuple[int, ...]
    _sums: Sums
    _spare: Sums | None = None
    """What the next pass makes of the sums. So no pass is taken in by halves."""

    def __init__(self) -> None:
        self.samples = 0

    def update(self, y: npt.ArrayLike) -> None:
        """Take in the result of one pass.

        Parameters
        ----------
        y : array_like of float16, bfloat16, float32 or float64
            All of one shape. Nothing of it is kept.

        Raises
        ------
        TypeError
            dtype that is not supported.
        ValueError
            Shape that is not the first one's.

        Notes
        -----
        If it raises, or is interrupted, nothing is taken in.
        """
        y = gate.array(y, "y")
        if self.samples and y.shape != self._shape:
            raise ValueError(f"y must have shape {self._shape} as before, got {y.shape}")
        self._check(y)
        length = y.shape[-1] if y.ndim else 1
        table = y.reshape(prod(y.shape[:-1]), length)
        samples = self.samples + 1
        sums = self._sums if self.samples else self._zeros(*table.shape)
        spare = {name: np.empty_like(sums[name]) for name in sums}
        if self.samples and self._spare is not None:
            spare = self._spare
        step = max(1, BLOCK // max(1, length))
        with np.errstate(over="ignore", invalid="ignore"):  # a variance of infinities is NaN
            for begin in range(0, len(table), step):
                rows = slice(begin, begin + step)
                before, after = ({name: a[rows] for name, a in s.items()} for s in (sums, spare))
                self._add(table[rows].astype(np.float64, copy=False), samples, before, after)
        vars(self).update(samples=samples, _shape=y.shape, _sums=spare, _spare=sums)

    @property
    def mean(self) -> Floats:
        """The mean of the passes, in the shape of y."""
        self._need_one()
        return self._sums["mean"].reshape(self._shape).copy()

    @property
    def variance(self) -> Floats:
        """The mean squared distance from the mean, in the shape of y: the sum over `samples`."""
        self._need_one()
        return self._sums["squares"].reshape(self._shape) / self.samples

    def _check(self, y: npt.NDArray[Any]) -> None:
        """Refuse a y that is of no use."""

    def _zeros(self, rows: int, length: int) -> Sums:
        """The arrays that rows along the last axis of y go to, of no pass."""
        return {name: np.zeros((rows, length)) for name in ("mean", "squares")}

    def _add(self, y: Floats, samples: int, before: Sums, after: Sums) -> Floats:
        """Take in some rows; `samples` counts them already. Returns y minus the mean before."""
        distance = y - before["mean"]
        step = np.multiply(distance, 1.0 / samples, out=after["squares"])  # which has room for it
        np.add(before["mean"], step, out=after["mean"])
        rest = np.subtract(distance, step, out=step)  # y minus the mean as it is now
        rest *= distance
        np.add(before["squares"], rest, out=rest)
        return distance

    def _need_one(self) -> None:
        if self.samples == 0:
            raise RuntimeError("there must be at least one pass; call update or mc.predict first")

    def __repr__(self) -> str:
        shape = f", shape={self._shape}" if self.samples else ""
        return f"{type(self).__name__}(samples={self.samples}{shape})"


class Regression(Moments):
    """Mean and variance of a model's outputs.

    Parameters
    ----------
    tau : float, optional
        Precision of the observations, see `precision`: 1 / tau is added to the variance. Without
        it, the variance is that of the passes alone.
    covariance : bool
        Whether to track the covariance of the outputs of each example, too.

    Notes
    -----
    Gal & Ghahramani (2016), section 4: Var(y) = E[y y^T] - E[y] E[y]^T + I / tau, where E is the
    mean over the passes.
    """

    def __init__(self, tau: float | None = None, covariance: bool = False) -> None:
        super().__init__()
        self.tau = None if tau is None else gate.positive(tau, "tau")
        self._track = gate.flag(covariance, "covariance")

    @property
    def variance(self) -> Floats:
        """Of each output, 1 / tau included; in the shape of y."""
        return super().variance + self._noise

    @property
    def covariance(self) -> Floats:
        """Of the outputs along the last axis, I / tau included: (..., D, D) for y (..., D)."""
        self._need_one()
        if "products" not in self._sums:
            raise RuntimeError("the covariance was not tracked; pass covariance=True")
        length = self._shape[-1]
        products = self._sums["products"].reshape(*self._shape, length)
        return products / self.samples + self._noise * np.eye(length)

    @property
    def _noise(self) -> float:
        return 0.0 if self.tau is None else 1.0 / self.tau

    def _check(self, y: npt.NDArray[Any]) -> None:
        if self._track and y.ndim == 0:
            raise ValueError("y must have a last axis, along which the outputs lie, got 0-d")

    def _zeros(self, rows: int, length: int) -> Sums:
        products = {"products": np.zeros((rows, length, length))} if self._track else {}
        return super()._zeros(rows, length) | products

    def _add(self, y: Floats, samples: int, before: Sums, after: Sums) -> Floats:
        distance = super()._add(y, samples, before, after)
        if "products" in before:
            product = distance[:, :, None] * distance[:, None, :]
            product *= (samples - 1) / samples
            np.add(before["products"], product, out=after["products"])
        return distance


class Classification(Moments):
    """What a classifier's probabilities tell, and how much its passes disagree.

    The arrays given to `update` have shape (..., C): C classes along the last axis, whose
    probabilities sum to 1. `mean` and `variance` have this shape, all others lack the last axis.
    Entropies are in nats, 0 log 0 is 0.

    References
    ----------
    N. Houlsby, F. Huszar, Z. Ghahramani, M. Lengyel: Bayesian active learning for classification
    and preference learning (BALD). arXiv:1112.5745 (2011): `mutual_information`.
    """

    @property
    def predictive_entropy(self) -> Floats:
        """H, the entropy of the mean probabilities: all that is uncertain."""
        return _entropy(self.mean)

    @property
    def expected_entropy(self) -> Floats:
        """E, the mean entropy of a pass: the noise of the data, as the model sees it."""
        self._need_one()
        return self._sums["entropies"].reshape(self._shape[:-1]).copy()

    @property
    def mutual_information(self) -> Floats:
        """H - E, never negative: how much the passes disagree, as the model lacks data here."""
        return np.maximum(self.predictive_entropy - self.expected_entropy, 0.0)

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """In how many passes each class was the likeliest (of equal ones, the first): (..., C)."""
        self._need_one()
        return self._sums["votes"].reshape(self._shape).astype(np.int64)

    @property
    def variation_ratio(self) -> Floats:
        """Share of the passes whose likeliest class is not the most frequent of these."""
        return 1.0 - self.counts.max(axis=-1) / self.samples

    def _check(self, y: npt.NDArray[Any]) -> None:
        if y.ndim == 0 or y.shape[-1] == 0:
            raise ValueError(f"y must have classes along its last axis, got shape {y.shape}")
        least, wrong = y.min(axis=-1), np.abs(y.sum(axis=-1, dtype=np.float64) - 1.0)
        if not np.all((least >= 0.0) & (wrong <= SUM_TOLERANCE)):  # false for NaN, too
            raise ValueError(
                "y must hold probabilities along its last axis: none negative, their sum 1; "
                f"got values from {least.min()} on and sums up to {wrong.max():.3g} away from 1; "
                "apply a softmax"
            )

    def _zeros(self, rows: int, length: int) -> Sums:
        more = {"entropies": np.zeros(rows), "votes": np.zeros((rows, length))}
        return super()._zeros(rows, length) | more

    def _add(self, y: Floats, samples: int, before: Sums, after: Sums) -> Floats:
        # As the mean, so that equal passes have a mutual information of exactly 0.
        entropies = before["entropies"]
        np.add(entropies, (_entropy(y) - entropies) / samples, out=after["entropies"])
        after["votes"][...] = before["votes"]
        after["votes"][np.arange(len(y)), y.argmax(axis=-1)] += 1
        return super()._add(y, samples, before, after)


Accumulator = TypeVar("Accumulator", bound=Moments)


@overload
def predict(
    model: Callable[[Any, Rng], npt.ArrayLike], x: Any, samples: int, *, rng: RngLike = None
) -> Regression: ...


@overload
def predict(
    model: Callable[[Any, Rng], npt.ArrayLike],
    x: Any,
    samples: int,
    into: Accumulator,
    *,
    rng: RngLike = None,
) -> Accumulator: ...


def predict(
    model: Callable[[Any, Rng], npt.ArrayLike],
    x: Any,
    samples: int,
    into: Accumulator | None = None,
    *,
    rng: RngLike = None,
) -> Accumulator | Regression:
    """Run a model many times, with other masks in each pass, and gather what it says.

    Parameters
    ----------
    model : callable
        ``model(x, rng)`` is one pass, drawn from the `Rng` it gets: a floating-point array, for
        `Classification` of probabilities. Let all ops draw from `rng`; for layers see `sampling`.
    x
        Handed to the model as it is.
    samples : int
        Number of passes.
    into : Regression, Classification or Moments
        What gathers the passes. ``Regression()`` if omitted. It may hold passes already; then
        theirs is the numbering that goes on.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Names the draws; takes one call. Pass t draws from ``pass_rng(rng, t)``.

    Returns
    -------
    Regression, Classification or Moments
        `into`; all its results are float64.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    Warns
    -----
    RuntimeWarning
        No pass has drawn from its rng, and all say the same.

    Notes
    -----
    An op draws one mask for each example of the batch: each example is given a function of its own.
    That gives the best estimate of means over the batch. With ``shared_axes=(0,)`` (for layers,
    ``sampling(..., consistent=True)``) a pass is one function for the whole batch, and for all
    batches that are given the same int as `rng`, whatever their sizes. That is what a plot of
    sampled functions needs, and whatever else is joint over examples.

    Examples
    --------
    >>> def model(x, rng):
    ...     h, _ = fastdrop.dropout(np.maximum(x @ W, 0), 0.5, rng=rng)
    ...     return softmax(h @ V)
    >>> result = mc.predict(model, x, 100, mc.Classification(), rng=7)
    >>> result.mean, result.mutual_information
    """
    samples = gate.count(samples, "samples")
    gate.function(model, "model")
    into = Regression() if into is None else into
    if not isinstance(into, Moments):
        raise TypeError(
            f"into must be a Regression, a Classification or other Moments, got {gate.shown(into)}"
        )
    first, drawn = into.samples, False
    _takes_an_rng(model, x)

    def passes(seed: int) -> None:
        nonlocal drawn
        for t in range(first, first + samples):
            own = _of_pass(seed, t)
            into.update(model(x, own))
            drawn = drawn or own.call != t << 32

    _with_shared_seed(rng, passes)
    if not drawn and into.samples > 1 and not into._sums["squares"].any():
        warnings.warn(
            "no pass has drawn from its rng, and all say the same: the model drops nothing. Give "
            "its ops rng=rng; if it has layers, call them within mc.sampling(layers, rng)",
            RuntimeWarning,
            stacklevel=2,
        )
    return into


def _takes_an_rng(model: Callable[..., Any], x: Any) -> None:
    """Refuses a model of one argument, before it is called."""
    try:
        known = signature(model)
    except (TypeError, ValueError):  # of a compiled function
        return
    try:
        known.bind(x, None)
    except TypeError:
        raise TypeError(
            f"model must take two arguments, (x, rng), got one that takes {known}: it draws from "
            "rng; of layers, lambda x, rng: ... within mc.sampling(layers, rng)"
        ) from None


def pass_rng(rng: RngLike, t: int) -> Rng:
    """The generator of pass t of a prediction: to draw its masks again without the others.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        What `predict` was given. Takes one call, as it does there; so give an Rng that took its
        call as ``Rng(seed, call)`` anew.
    t : int
        0 to 2**32 - 1.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    Notes
    -----
    All passes share one seed, a child of `rng`, and pass t owns the calls from t * 2**32 on.
    """
    if gate.count(t, "t", least=0) >= 2**32:
        raise ValueError(f"t must be in 0 ... 2**32 - 1, got {t}")
    return _with_shared_seed(rng, lambda seed: _of_pass(seed, t))


def sampling(
    layers: Layer | Iterable[Layer], rng: RngLike, *, consistent: bool = False
) -> AbstractContextManager[None]:
    """While this lasts, layers drop and draw from `rng`; behind it, they are as they were.

    Parameters
    ----------
    layers : Layer or iterable of Layer
        Those of `fastdrop.layers`, in whatever mode they are. Also their step, their context and
        their random state will be as before, so a prediction leaves no trace in a training run.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Shared by all the layers.
    consistent : bool
        Share each mask across the batch, axis 0 of the input: one function for all examples; see
        `Layer.share_batch`.

    Raises
    ------
    TypeError
        Something that is no layer, or one that cannot be consistent.

    Examples
    --------
    >>> def model(x, rng):
    ...     with mc.sampling([first, second], rng, consistent=True):
    ...         return forward(x)
    >>> result = mc.predict(model, x, 100)
    """
    layers = [layers] if isinstance(layers, Layer) else gate.items(layers, "layers")
    consistent = gate.flag(consistent, "consistent")
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(f"layers must be layers of fastdrop.layers, got {gate.shown(layer)}")
    shared = Layer(rng).rng  # an int becomes an Rng, so that no two layers draw the same mask

    def enter() -> None:
        for layer in layers:
            layer.rng = shared
            layer.forget()  # of the passes nothing stays: the calls before are put back
            layer.train()
            if consistent:
                layer.share_batch()

    return Unchanged(list(layers), enter)


def precision(p: float, length_scale: float, n: int, weight_decay: float) -> float:
    """tau = (1 - p) length_scale**2 / (2 n weight_decay), the precision of the observations.

    Parameters
    ----------
    p : float
        Drop rate in front of the weights.
    length_scale : float
        Prior length scale of the function; positive.
    n : int
        Number of training examples.
    weight_decay : float
        lambda of the loss that was minimised,
        mean over the examples of ||y - f(x)||**2 / 2 + lambda * (sum of all squared weights).

    Returns
    -------
    float
        For ``Regression(tau=...)``.

    Raises
    ------
    TypeError
        Kind or dtype of an argument.
    ValueError
        Value or shape of an argument.

    References
    ----------
    Gal & Ghahramani (2016), section 4; there, p is the rate at which units are kept.
    """
    keep = 1.0 - gate.rate(p)
    n = gate.count(n, "n")
    scale = gate.positive(length_scale, "length_scale")
    tau = keep * scale * scale / (2.0 * n * gate.positive(weight_decay, "weight_decay"))
    if not tau < np.inf or tau == 0.0 < keep:
        raise ValueError(
            "length_scale, n and weight_decay must give a precision that a float can be, got "
            f"{scale!r}, {n} and {weight_decay!r}: {tau}"
        )
    return tau


def _with_shared_seed(rng: RngLike, body: Callable[[int], T]) -> T:
    """body(seed) of all passes: a child's, so that none draws what the caller's other ops draw."""

    def of_draw(draw: Draw) -> T:
        (child,) = Rng(draw.seed, draw.call).spawn(1)
        return body(child.seed)

    return with_draw(rng, 0.0, Place(()), of_draw)


def _of_pass(seed: int, t: int) -> Rng:
    return Rng(seed, t << 32)


def _entropy(p: Floats) -> Floats:
    """-sum p log p over the last axis, in nats; 0 where p is 0."""
    return 0.0 - np.vecdot(p, np.log(np.maximum(p, TINY)))
