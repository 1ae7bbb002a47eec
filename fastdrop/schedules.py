"""Rates as pure functions of the step: ``schedule(step) -> rate``.

They go wherever a layer takes a rate. The layer counts its calls in training mode and asks for the
rate of each:

>>> layer = fastdrop.layers.Dropout(fastdrop.schedules.curriculum(0.5, gamma=1e-3))

Each function below checks its arguments and returns a `Schedule`, which can be pickled and
compared. Steps count from 0; a schedule stays at its last rate for ever. All raise TypeError or
ValueError if a rate is not in [0, 1] or a number of steps is not an int from 1 to 2**62.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, exp, expm1, pi
from typing import Any

from fastdrop.base import gate

__all__ = [
    "Ramp",
    "Schedule",
    "anti_curriculum",
    "constant",
    "cosine",
    "curriculum",
    "depth_linear",
    "early",
    "late",
    "linear",
    "steps",
    "switch",
]


@dataclass(frozen=True, slots=True, repr=False)
class Schedule:
    """A rate as a function of the step; the functions of this module make them.

    Attributes
    ----------
    formula : callable
        ``formula(step, *arguments)`` is the rate.
    arguments : tuple
    """

    formula: Callable[..., float]
    arguments: tuple[Any, ...]

    def __call__(self, step: int) -> float:
        """The rate in [0, 1] at a step: TypeError if it is no int, ValueError if it is negative."""
        return self.formula(gate.count(step, "step", least=0), *self.arguments)

    def __repr__(self) -> str:
        return f"{self.formula.__name__[1:]}({', '.join(map(repr, self.arguments))})"


def constant(p: float) -> Schedule:
    """p at every step."""
    return Schedule(_constant, (gate.rate(p),))


def curriculum(p: float, gamma: float) -> Schedule:
    """p (1 - exp(-gamma step)): from 0 towards p.

    Parameters
    ----------
    p : float
        The rate in the end.
    gamma : float
        How fast, per step; positive. With gamma = 10 / T the rate at step T is p to 5 in 10**5. The
        authors' experiments have 1e-3.

    References
    ----------
    P. Morerio, J. Cavazza, R. Volpi, R. Vidal, V. Murino: Curriculum dropout. ICCV 2017.
    arXiv:1703.06229 (there, theta is the rate at which elements are kept).
    """
    return Schedule(_curriculum, (gate.rate(p), gate.positive(gamma, "gamma")))


def anti_curriculum(p: float, gamma: float) -> Schedule:
    """p exp(-gamma step): from p towards 0, what `curriculum` is compared with in its paper."""
    return Schedule(_anti_curriculum, (gate.rate(p), gate.positive(gamma, "gamma")))


def switch(p: float, at: int) -> Schedule:
    """0 before step `at`, p from it on: the "switch-curriculum" of Morerio et al. (2017)."""
    return Schedule(_switch, (gate.rate(p), gate.count(at, "at")))


def linear(start: float, stop: float, steps: int) -> Schedule:
    """In a straight line from `start` at step 0 to `stop` at step `steps`."""
    return Schedule(_linear, _ramp(start, stop, steps))


def cosine(start: float, stop: float, steps: int) -> Schedule:
    """From `start` at step 0 to `stop` at step `steps`, in half a period of a cosine.

    start + (stop - start) (1 - cos(pi step / steps)) / 2
    """
    return Schedule(_cosine, _ramp(start, stop, steps))


def steps(values: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """``values[0]`` at first, ``values[i + 1]`` from step ``boundaries[i]`` on.

    Parameters
    ----------
    values : sequence of float
        Rates.
    boundaries : sequence of int
        Positive and increasing; one fewer than `values`.
    """
    rates = tuple(gate.rate(p, f"values[{i}]") for i, p in enumerate(gate.items(values, "values")))
    at = tuple(
        gate.count(n, f"boundaries[{i}]")
        for i, n in enumerate(gate.items(boundaries, "boundaries"))
    )
    if len(rates) != len(at) + 1:
        raise ValueError(
            f"values must have one rate more than boundaries has steps, "
            f"got {len(rates)} and {len(at)}"
        )
    if any(a >= b for a, b in pairwise(at)):
        raise ValueError(f"boundaries must increase, got {at}")
    return Schedule(_steps, (rates, at))


def early(p: float, cutoff: int, shape: str = "constant") -> Schedule:
    """Dropout before step `cutoff` only: underfitting models fit better with it.

    Parameters
    ----------
    p : float
        The first rate.
    cutoff : int
        From this step on the rate is 0.
    shape : {"constant", "linear"}
        What the rate is before: p, or ``np.linspace(p, 0, cutoff)``.

    References
    ----------
    Z. Liu, Z. Xu, J. Jin, Z. Shen, T. Darrell: Dropout reduces underfitting. ICML 2023.
    arXiv:2303.01500.
    """
    gate.choice(shape, ("constant", "linear"), "shape")
    return Schedule(_early, (gate.rate(p), gate.count(cutoff, "cutoff"), shape))


def late(p: float, start: int) -> Schedule:
    """0 before step `start`, p from it on: late dropout of Liu et al. (2023); see `early`."""
    return Schedule(_late, (gate.rate(p), gate.count(start, "start")))


def depth_linear(p: float, depth: int) -> list[float]:
    """Rates of the layers of a deep network, in a straight line: layer l of L gets p l / L.

    Parameters
    ----------
    p : float
        Rate of the last layer.
    depth : int
        Number of layers.

    Returns
    -------
    list of float
        `depth` rates, the first of which is p / depth.

    Notes
    -----
    This is the rule of the paper, in which the input is layer 0. timm has
    ``np.linspace(0, p, depth)``, which never drops the first layer.

    References
    ----------
    G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Weinberger: Deep networks with stochastic depth. ECCV
    2016. arXiv:1603.09382, equation 4.

    Examples
    --------
    Early stochastic depth:

    >>> [schedules.early(rate, 3000) for rate in schedules.depth_linear(0.5, 12)]
    """
    p, depth = gate.rate(p), gate.count(depth, "depth")
    return [p * (layer / depth) for layer in range(1, depth + 1)]


def _constant(step: int, p: float) -> float:
    return p


def _curriculum(step: int, p: float, gamma: float) -> float:
    return p * -expm1(-gamma * step)


def _anti_curriculum(step: int, p: float, gamma: float) -> float:
    return p * exp(-gamma * step)


def _switch(step: int, p: float, at: int) -> float:
    return p if step >= at else 0.0


def _linear(step: int, start: float, stop: float, steps: int) -> float:
    return _between(start, stop, min(step, steps) / steps)


def _cosine(step: int, start: float, stop: float, steps: int) -> float:
    return _between(start, stop, (1.0 - cos(pi * min(step, steps) / steps)) / 2.0)


def _steps(step: int, values: tuple[float, ...], boundaries: tuple[int, ...]) -> float:
    return values[bisect_right(boundaries, step)]


def _early(step: int, p: float, cutoff: int, shape: str) -> float:
    if step >= cutoff:
        return 0.0
    return p if shape == "constant" or step == 0 else p * (1.0 - step / (cutoff - 1))


def _late(step: int, p: float, start: int) -> float:
    return _switch(step, p, start)


def _ramp(start: float, stop: float, steps: int) -> tuple[float, float, int]:
    return gate.rate(start, "start"), gate.rate(stop, "stop"), gate.count(steps, "steps")


def _between(start: float, stop: float, part: float) -> float:
    # Exact at both ends and never outside [0, 1], as start + (stop - start) * part may be.
    return (1.0 - part) * start + part * stop


@dataclass(frozen=True, slots=True)
class Ramp:
    """From 0 up to a rate: a function of the step for the arguments of `TargetedDropout`.

    It rises to ``share * final`` over the first `steps` steps, and on to `final` over as many.

    Parameters
    ----------
    final : float
        The rate in the end.
    steps : int
        Length of each of the two parts.
    share : float
        How much of `final` is reached after the first part; with 1 there is no second.

    Examples
    --------
    The authors' "piecewise" schedule:

    >>> from fastdrop.schedules import Ramp
    >>> p = Ramp(0.5, 40_000)
    >>> targeted = Ramp(0.75, 20_000, 0.95)
    >>> layer = fastdrop.layers.TargetedDropout(p, targeted, rng=1234)
    """

    final: float
    steps: int
    share: float = 1.0

    def __post_init__(self) -> None:
        checked = {
            "final": gate.rate(self.final, "final"),
            "steps": gate.count(self.steps, "steps"),
            "share": gate.rate(self.share, "share"),
        }
        for name, value in checked.items():  # as numbers of Python: arrays would be no rates
            object.__setattr__(self, name, value)

    def __call__(self, step: int) -> float:
        """The rate at this step."""
        step = gate.count(step, "step", 0)
        first = min(step / self.steps, 1.0)
        second = min(max(step / self.steps - 1.0, 0.0), 1.0)
        return self.final * (self.share * first + (1.0 - self.share) * second)
