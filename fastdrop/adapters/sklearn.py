"""Multilayer perceptrons with dropout for scikit-learn, whose own have none.

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

Where it errs it is less sure: the deviation of the probabilities over passes with masks is larger.

>>> wrong = model.predict(X_test) != y_test
>>> std = network.predict_proba_std(model[:-1].transform(X_test)).max(axis=1)
>>> bool(std[wrong].mean() > 1.2 * std[~wrong].mean())
True

Notes
-----
What is not dropout is scikit-learn's: its estimators are the base classes, whose passes forward and
back (`_backprop`) and judgement of progress (`_update_no_improvement_count`) are replaced. Tested
with scikit-learn 1.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from numbers import Real
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.neural_network._base import ACTIVATIONS, DERIVATIVES, LOSS_FUNCTIONS
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

import fastdrop as fd
from fastdrop import mc
from fastdrop.base import gate

__all__ = ["DropoutMLPClassifier", "DropoutMLPRegressor"]

Array = npt.NDArray[np.floating]
RATE = Interval(Real, 0, 1, closed="both")

# Passes whose mean loss is judged: with fewer, training stops on the noise of masks; with more, it
# takes longer than scikit-learn's (bench/sklearn_digits.py).
JUDGED = 4


class Hidden(NamedTuple):
    """What a hidden layer leaves for its gradient."""

    units: Array  # before dropout; of "relu", which is one op with it, what goes on
    context: Any


class DropoutMixin:
    """What both estimators do otherwise than those of scikit-learn."""

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MLPClassifier._parameter_constraints,
        "dropout": [RATE, "array-like"],
        "input_dropout": [RATE],
        "solver": [StrOptions({"sgd", "adam"})],
    }

    def _initialize(self: Any, y: Any, layer_units: Any, dtype: Any) -> None:
        super()._initialize(y, layer_units, dtype)  # type: ignore[misc]
        # A copy gives the seed, so that without dropout all is as in the base class.
        seed = deepcopy(self._random_state).randint(0, 2**63, dtype=np.uint64)
        self._rng = fd.Rng(int(seed))

    def _fit(self: Any, *args: Any, **more: Any) -> Any:
        self._hidden_rates = self._rates()
        return super()._fit(*args, **more)  # type: ignore[misc]

    def _rates(self: Any) -> list[float]:
        """One for each hidden layer."""
        layers = len(np.atleast_1d(self.hidden_layer_sizes))
        rates = list(self.dropout) if np.iterable(self.dropout) else [self.dropout] * layers
        if len(rates) != layers:
            raise ValueError(
                f"dropout must be one rate or {layers}, one for each hidden layer, got "
                f"{self.dropout}"
            )
        return [gate.rate(rate, "dropout") for rate in rates]

    def _masked(self: Any, X: Any, rng: fd.Rng) -> tuple[list[Any], list[Hidden], Array]:
        """A pass with masks: the input of each layer, the hidden layers, the output."""
        h, inputs, hidden = X, [], []
        if self.input_dropout:
            h, _ = fd.dropout(h, self.input_dropout, rng=rng)
        for W, b, rate in zip(self.coefs_, self.intercepts_, self._hidden_rates, strict=False):
            inputs.append(h)
            z = h @ W
            z += b
            if self.activation == "relu":
                h, ctx = fd.relu_dropout(z, rate, rng=rng, out=z)
            else:
                ACTIVATIONS[self.activation](z)
                h, ctx = fd.dropout(z, rate, rng=rng)
            hidden.append(Hidden(z, ctx))
        inputs.append(h)
        y = h @ self.coefs_[-1]
        y += self.intercepts_[-1]
        ACTIVATIONS[self.out_activation_](y)
        return inputs, hidden, y

    def _backprop(
        self: Any,
        X: Any,
        y: Any,
        sample_weight: Any,
        activations: Any,
        deltas: Any,
        coef_grads: Any,
        intercept_grads: Any,
    ) -> tuple[float, Any, Any]:
        """The loss with masks, penalty included, and its gradients."""
        inputs, hidden, found = self._masked(X, self._rng)
        n = X.shape[0] if sample_weight is None else sample_weight.sum()
        loss = self._loss_of(y, found, sample_weight)
        loss += 0.5 * self.alpha / n * sum(float(np.vdot(W, W)) for W in self.coefs_)
        if not np.isfinite(loss):
            raise ValueError("the loss is not finite; scale X, or lower learning_rate_init")
        delta = found - y  # of each loss, by what is before the last activation
        if sample_weight is not None:
            delta *= sample_weight.reshape(-1, 1)
        delta /= n
        for i in reversed(range(len(inputs))):
            grad = inputs[i].T @ delta
            grad += self.alpha / n * self.coefs_[i]
            coef_grads[i], intercept_grads[i] = grad, delta.sum(axis=0)
            if i:
                delta = hidden[i - 1].context.backward(delta @ self.coefs_[i].T)
                if self.activation != "relu":
                    DERIVATIVES[self.activation](hidden[i - 1].units, delta)
        return loss, coef_grads, intercept_grads

    def _loss_of(self: Any, y: Any, found: Array, sample_weight: Any) -> float:
        if self.out_activation_ == "softmax":  # of one class for each row: in half the time
            right = np.log(np.maximum(found[y], np.finfo(found.dtype).eps))
            if sample_weight is None:
                return -float(right.mean())
            return -float(np.average(right, weights=sample_weight))
        binary = self.loss == "log_loss"
        loss = LOSS_FUNCTIONS["binary_log_loss" if binary else self.loss]
        return loss(y, found, sample_weight)

    def _update_no_improvement_count(
        self: Any, early_stopping: bool, X: Any, y: Any, sample_weight: Any
    ) -> None:
        """By a mean over passes, as the loss of one with masks is noisy."""
        if early_stopping:
            super()._update_no_improvement_count(  # type: ignore[misc]
                early_stopping, X, y, sample_weight
            )
            return
        loss = float(np.mean(self.loss_curve_[-JUDGED:]))
        worse = loss > self.best_loss_ - self.tol
        self._no_improvement_count = self._no_improvement_count + 1 if worse else 0
        self.best_loss_ = min(self.best_loss_, loss)

    def _deviation(self: Any, X: Any, n_samples: int) -> Array:
        """Of the output over passes with masks, which are the same in each call."""
        check_is_fitted(self)
        X = validate_data(
            self, X, accept_sparse=["csr", "csc"], reset=False, dtype=(np.float64, np.float32)
        )
        samples = gate.count(n_samples, "n_samples", 2)
        seed = self._rng.seed ^ (2**64 - 1)  # another than that of training
        moments = mc.predict(lambda X, rng: self._masked(X, rng)[2], X, samples, rng=seed)
        return np.sqrt(moments.variance)


class DropoutMLPClassifier(DropoutMixin, MLPClassifier):
    """`sklearn.neural_network.MLPClassifier` with dropout.

    Parameters
    ----------
    hidden_layer_sizes, activation
        As in the base class.
    dropout : float or sequence of float
        Drop rate in [0, 1] of the hidden units, one for all or one for each layer.
    input_dropout : float
        Drop rate of the features.
    solver : "adam" or "sgd"
    random_state : int, RandomState or None
        Decides weights, order, split and masks: an int makes them the same in each `fit`.
    alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter, shuffle, tol, verbose
        As in the base class.
    warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction, beta_1, beta_2
        As in the base class.
    epsilon, n_iter_no_change
        As in the base class.

    Attributes
    ----------
    loss_curve_ : list of float
        Loss of each pass, masks and penalty included.
    best_loss_ : float or None
        Least mean loss of four passes that follow each other. Training ends once it has not fallen
        by `tol` for more than `n_iter_no_change` passes.
    classes_, coefs_, intercepts_, loss_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
        As in the base class.
    validation_scores_, best_validation_score_, n_features_in_, feature_names_in_
        As in the base class.

    References
    ----------
    N. Srivastava, G. Hinton, A. Krizhevsky, I. Sutskever, R. Salakhutdinov: Dropout: a simple way
    to prevent neural networks from overfitting. JMLR 15 (2014) 1929-1958.
    """

    def __init__(
        self,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        dropout: float | Sequence[float] = 0.5,
        input_dropout: float = 0.0,
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
    ) -> None:
        super().__init__(
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
        )
        self.dropout = dropout
        self.input_dropout = input_dropout

    def predict_proba_std(self, X: npt.ArrayLike, n_samples: int = 50) -> Array:
        """Standard deviation of the probabilities over passes with masks (Gal & Ghahramani 2016).

        Parameters
        ----------
        X : array_like or sparse array of shape (n, n_features)
        n_samples : int
            How many passes; at least 2. They have the same masks in each call.

        Returns
        -------
        ndarray of shape (n, n_classes)
            In the order of ``classes_``, as `predict_proba`, whose pass has no masks.
        """
        deviation = self._deviation(X, n_samples)
        if self.n_outputs_ == 1:
            return np.repeat(deviation, 2, axis=1)  # of p and 1 - p
        return deviation


class DropoutMLPRegressor(DropoutMixin, MLPRegressor):
    """`sklearn.neural_network.MLPRegressor` with dropout.

    Parameters
    ----------
    loss : "squared_error" or "poisson"
        As in the base class.
    hidden_layer_sizes, activation, dropout, input_dropout and all others
        As in `DropoutMLPClassifier`.

    Attributes
    ----------
    loss_curve_, best_loss_
        As in `DropoutMLPClassifier`.
    coefs_, intercepts_, loss_, n_iter_, n_layers_, n_outputs_, out_activation_, t_
        As in the base class.
    validation_scores_, best_validation_score_, n_features_in_, feature_names_in_
        As in the base class.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **MLPRegressor._parameter_constraints,
        **DropoutMixin._parameter_constraints,
    }

    def __init__(
        self,
        loss: str = "squared_error",
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str = "relu",
        *,
        dropout: float | Sequence[float] = 0.5,
        input_dropout: float = 0.0,
        solver: str = "adam",
        alpha: float = 1e-4,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 1e-3,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: int | np.random.RandomState | None = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: int = 10,
    ) -> None:
        super().__init__(
            loss=loss,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            solver=solver,
            alpha=alpha,
            batch_size=batch_size,
            learning_rate=learning_rate,
            learning_rate_init=learning_rate_init,
            power_t=power_t,
            max_iter=max_iter,
            shuffle=shuffle,
            random_state=random_state,
            tol=tol,
            verbose=verbose,
            warm_start=warm_start,
            momentum=momentum,
            nesterovs_momentum=nesterovs_momentum,
            early_stopping=early_stopping,
            validation_fraction=validation_fraction,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            n_iter_no_change=n_iter_no_change,
        )
        self.dropout = dropout
        self.input_dropout = input_dropout

    def predict(self, X: npt.ArrayLike, return_std: bool = False, n_samples: int = 50) -> Any:
        """Values, and how much they vary over passes with masks (Gal & Ghahramani 2016).

        Parameters
        ----------
        X : array_like or sparse array of shape (n, n_features)
        return_std : bool
            Whether the standard deviation is wanted, too.
        n_samples : int
            How many passes it is taken over; at least 2. They have the same masks in each call.

        Returns
        -------
        y : ndarray of shape (n,) or (n, n_outputs)
            Of a pass without masks.
        std : ndarray, shape of y
            If `return_std`.
        """
        y = super().predict(X)
        if not return_std:
            return y
        return y, self._deviation(X, n_samples).reshape(y.shape)
