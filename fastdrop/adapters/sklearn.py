"""A multilayer perceptron with dropout for scikit-learn, whose own has none.

Examples
--------
>>> from fastdrop.adapters.sklearn import DropoutMLPClassifier
>>> from sklearn.datasets import load_digits
>>> from sklearn.model_selection import train_test_split
>>> from sklearn.pipeline import make_pipeline
>>> from sklearn.preprocessing import MinMaxScaler
>>> X, y = load_digits(return_X_y=True)
>>> X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)
>>> network = DropoutMLPClassifier((128, 128), dropout=0.5, early_stopping=True, random_state=0)
>>> model = make_pipeline(MinMaxScaler(), network).fit(X_train, y_train)
>>> bool(model.score(X_test, y_test) > 0.95)
True
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

import fastdrop as fd
from fastdrop.base import gate

__all__ = ["DropoutMLPClassifier"]

Array = npt.NDArray[np.floating]


class DropoutMLPClassifier(ClassifierMixin, BaseEstimator):
    """Multilayer perceptron: ReLU units with dropout, softmax cross-entropy, Adam.

    Parameters have the names, defaults and meanings of `sklearn.neural_network.MLPClassifier`'s.

    Parameters
    ----------
    hidden_layer_sizes : int or sequence of int
        Units of each hidden layer.
    dropout : float or sequence of float
        Drop rate in [0, 1] of the hidden units, one for all or one for each layer.
    input_dropout : float
        Drop rate of the features.
    alpha : float
        Strength of the L2 penalty on the weights, which is divided by the number of examples.
    batch_size : int or "auto"
        Examples in a mini-batch; "auto" is min(200, n_samples).
    learning_rate_init : float
        Adam's step size.
    max_iter : int
        Passes over the training set, at most.
    random_state : int, RandomState or None
        Decides weights, order, split and masks: an int makes them the same in each `fit`.
    tol, n_iter_no_change : float, int
        Training ends once the loss (with early stopping, the score) has not improved by `tol` for
        more than so many passes.
    early_stopping : bool
        Hold out a part of the training set, stop by the accuracy there, and keep the weights that
        had the best.
    validation_fraction : float
        How much is held out then.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    coefs_, intercepts_ : list of ndarray
        Weights (inputs, outputs) and biases of each layer, in the dtype of X: float32 or float64.
    n_iter_ : int
        Passes over the training set.
    loss_curve_ : list of float
        Loss of each pass, dropout and penalty included.
    validation_scores_ : list of float
        Accuracy on what was held out, after each pass; empty without early stopping.
    n_features_in_, feature_names_in_
        As in all estimators.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov: Dropout: a simple way
    to prevent neural networks from overfitting. JMLR 15 (2014) 1929-1958. D. Kingma, J. Ba: Adam.
    ICLR 2015.
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        *,
        dropout: float | Sequence[float] = 0.5,
        input_dropout: float = 0.0,
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate_init: float = 1e-3,
        max_iter: int = 200,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        n_iter_no_change: int = 10,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.dropout = dropout
        self.input_dropout = input_dropout
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.random_state = random_state
        self.tol = tol
        self.n_iter_no_change = n_iter_no_change
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Train anew.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
        y : array_like of shape (n_samples,)
            Classes.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, t = np.unique(y, return_inverse=True)
        self._initialize(X.dtype)
        if self.early_stopping:
            X, X_valid, t, t_valid = train_test_split(
                X, t, test_size=self.validation_fraction, random_state=self._random, stratify=t
            )
        self.validation_scores_ = []
        best, waited = -np.inf, 0
        for _ in range(self.max_iter):
            self._pass(X, t)
            score = -self.loss_curve_[-1]
            if self.early_stopping:
                score = float((self._logits(X_valid).argmax(axis=1) == t_valid).mean())
                self.validation_scores_.append(score)
            waited = 0 if score >= best + self.tol else waited + 1
            if score > best:
                best = score
                if self.early_stopping:
                    kept = [p.copy() for p in self._parameters()]
            if waited > self.n_iter_no_change:
                break
        else:
            warnings.warn(
                f"max_iter={self.max_iter} passes are over before training has converged",
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.early_stopping:
            for p, q in zip(self._parameters(), kept, strict=True):
                p[...] = q
        return self

    def partial_fit(
        self, X: npt.ArrayLike, y: npt.ArrayLike, classes: npt.ArrayLike | None = None
    ) -> Self:
        """Train on, one pass over these examples.

        Parameters
        ----------
        X, y
            As in `fit`.
        classes : array_like of shape (n_classes,)
            All there will be; needed in the first call.
        """
        self._check_parameters()
        first = not hasattr(self, "classes_")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit")
        if classes is not None:
            classes = np.unique(classes)
            if not first and not np.array_equal(classes, self.classes_):
                raise ValueError(f"classes must be those of the first call, {self.classes_!r}")
        X, y = validate_data(self, X, y, reset=first, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        known: Any = classes if first else self.classes_
        if (unknown := np.setdiff1d(y, known)).size:
            raise ValueError(f"y has {unknown}, which are not in classes")
        if first:
            self.classes_ = known
            self._initialize(X.dtype)
        self._pass(X, np.searchsorted(known, y))
        return self

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The most probable class of each row: shape (n_samples,)."""
        best = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: npt.ArrayLike) -> Array:
        """Probabilities in the order of ``classes_``: shape (n_samples, n_classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: npt.ArrayLike) -> Array:
        """Logarithms of `predict_proba`."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        return log_softmax(self._logits(X))

    def _check_parameters(self) -> None:
        """Errors that name the parameter, before anything is set."""
        sizes = gate.shape(self.hidden_layer_sizes, "hidden_layer_sizes")
        if 0 in sizes:
            raise ValueError(f"hidden_layer_sizes must be positive, got {sizes}")
        if np.iterable(self.dropout) and len(self._rates()) != len(sizes):
            raise ValueError(
                f"dropout must be one rate or {len(sizes)}, one a hidden layer, got {self.dropout}"
            )
        for rate in self._rates():
            gate.rate(rate, "dropout")
        gate.rate(self.input_dropout, "input_dropout")
        gate.real(self.alpha, "alpha", 0.0)
        if self.batch_size != "auto":
            gate.count(self.batch_size, "batch_size")
        gate.positive(self.learning_rate_init, "learning_rate_init")
        gate.count(self.max_iter, "max_iter")
        gate.real(self.tol, "tol", 0.0)
        gate.count(self.n_iter_no_change, "n_iter_no_change")
        if self.early_stopping:
            held_out = gate.real(self.validation_fraction, "validation_fraction", 0.0, 1.0)
            if held_out in (0.0, 1.0):
                raise ValueError(f"validation_fraction must be between 0 and 1, got {held_out:g}")

    def _rates(self) -> list[float]:
        """One a hidden layer."""
        if np.iterable(self.dropout):
            return list(self.dropout)
        return [self.dropout] * len(gate.shape(self.hidden_layer_sizes))

    def _parameters(self) -> list[Array]:
        return self.coefs_ + self.intercepts_

    def _initialize(self, dtype: np.dtype) -> None:
        """Weights (He et al. 2015), Adam's moments, random state."""
        self._random = check_random_state(self.random_state)
        self._rng = fd.Rng(int(self._random.randint(0, 2**63, dtype=np.uint64)))
        sizes = self.n_features_in_, *gate.shape(self.hidden_layer_sizes), len(self.classes_)
        self.coefs_ = [
            (self._random.standard_normal((n, m)) * np.sqrt(2 / n)).astype(dtype)
            for n, m in pairwise(sizes)
        ]
        self.intercepts_ = [np.zeros(m, dtype) for m in sizes[1:]]
        self._moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self._parameters()]
        self._steps = self.n_iter_ = 0
        self.loss_curve_: list[float] = []

    def _logits(self, X: Array) -> Array:
        *hidden, (W, b) = zip(self.coefs_, self.intercepts_, strict=True)
        h = X.astype(W.dtype, copy=False)
        for V, c in hidden:
            h = np.maximum(h @ V + c, 0)
        return h @ W + b

    def _pass(self, X: Array, t: npt.NDArray[np.intp]) -> None:
        """Train on all examples, in a new order."""
        n = len(X)
        order = self._random.permutation(n)
        size = min(200, n) if self.batch_size == "auto" else self.batch_size
        X, total = X.astype(self.coefs_[0].dtype, copy=False), 0.0
        for batch in gen_batches(n, size):
            rows = order[batch]
            loss, grads = self._loss(X[rows], t[rows])
            self._adam(grads)
            total += loss * len(rows)
        if not np.isfinite(total):
            raise ValueError("the loss is not finite; scale X, or lower learning_rate_init")
        self.n_iter_ += 1
        self.loss_curve_.append(total / n)

    def _loss(self, X: Array, t: npt.NDArray[np.intp]) -> tuple[float, list[Array]]:
        """The loss with dropout, and its gradients in the order of `_parameters`."""
        n, weights = len(X), self.coefs_
        h, _ = fd.dropout(X, self.input_dropout, rng=self._rng)
        inputs, contexts = [h], []
        for W, b, p in zip(weights, self.intercepts_, self._rates(), strict=False):
            h, ctx = fd.relu_dropout(h @ W + b, p, rng=self._rng)
            inputs.append(h)
            contexts.append(ctx)
        log_p = log_softmax(h @ weights[-1] + self.intercepts_[-1])
        penalty = 0.5 * self.alpha * sum(float((W * W).sum()) for W in weights)
        loss = (penalty - float(log_p[np.arange(n), t].sum())) / n
        d = np.exp(log_p)
        d[np.arange(n), t] -= 1
        d /= n
        coefs: list[Array] = []
        intercepts: list[Array] = []
        for i in reversed(range(len(weights))):
            coefs.insert(0, inputs[i].T @ d + self.alpha / n * weights[i])
            intercepts.insert(0, d.sum(axis=0))
            if i:
                d = contexts[i - 1].backward(d @ weights[i].T)
        return loss, coefs + intercepts

    def _adam(self, grads: list[Array], b1: float = 0.9, b2: float = 0.999) -> None:
        self._steps += 1
        size = self.learning_rate_init * np.sqrt(1 - b2**self._steps) / (1 - b1**self._steps)
        for p, g, (m, v) in zip(self._parameters(), grads, self._moments, strict=True):
            m += (1 - b1) * (g - m)
            v += (1 - b2) * (g * g - v)
            p -= float(size) * m / (np.sqrt(v) + 1e-8)


def log_softmax(z: Array) -> Array:
    """Logarithms of probabilities along the last axis."""
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))
