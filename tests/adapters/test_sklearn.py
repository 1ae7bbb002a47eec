"""scikit-learn: its own checks, and what training promises."""

import doctest
import pickle

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

pytest.importorskip("sklearn")
from sklearn.datasets import make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from fastdrop.adapters import sklearn as adapter
from fastdrop.adapters.sklearn import DropoutMLPClassifier

X, y = make_classification(300, 12, n_informative=6, n_classes=3, random_state=0)
never_converges = pytest.mark.filterwarnings("ignore:max_iter")


@pytest.fixture(autouse=True)
def one_blas_thread():
    """On a busy machine, threads that wait for one another take ten times as long."""
    with threadpool_limits(1):
        yield


def test_example():
    failed, attempted = doctest.testmod(adapter)
    assert attempted > 5
    assert not failed


@never_converges
@parametrize_with_checks(
    [
        DropoutMLPClassifier(),
        DropoutMLPClassifier((50, 50), dropout=(0.1, 0.2), input_dropout=0.05, max_iter=300),
    ]
)
def test_check_estimator(estimator, check):
    check(estimator)


def weights(model):
    return [*model.coefs_, *model.intercepts_]


def assert_same_weights(first, second):
    for a, b in zip(weights(first), weights(second), strict=True):
        assert_same_bits(a, b)


@never_converges
def test_random_state_decides_everything():
    fit = lambda **more: DropoutMLPClassifier(max_iter=3, **more).fit(X, y)  # noqa: E731
    model = fit(random_state=0)
    assert_same_weights(model, fit(random_state=0))
    assert_same_weights(model, fit(random_state=np.random.RandomState(0)))
    assert_same_weights(model, model.fit(X, y))
    assert (model.coefs_[0] != fit(random_state=1).coefs_[0]).any()
    assert (fit().coefs_[0] != fit().coefs_[0]).any()


def test_gradients():
    """Central differences, the masks held fixed."""
    model = DropoutMLPClassifier((7, 5), dropout=(0.5, 0.2), input_dropout=0.1, alpha=0.3)
    model.set_params(random_state=0).partial_fit(X, y, classes=[0, 1, 2])

    def loss():
        model._rng = fd.Rng(3)
        return model._loss(X[:20], y[:20])

    _, grads = loss()
    draw = np.random.default_rng(0)
    for p, g in zip(weights(model), grads, strict=True):
        direction = draw.standard_normal(p.shape)
        values = []
        for step in (1e-6, -1e-6):
            p += step * direction
            values.append(loss()[0])
            p -= step * direction
        np.testing.assert_allclose(
            (values[0] - values[1]) / 2e-6, (g * direction).sum(), rtol=1e-6, atol=1e-9
        )


@never_converges
def test_predicts_as_sklearns_own():
    theirs = MLPClassifier((20, 10), max_iter=2, random_state=0)
    with pytest.warns(ConvergenceWarning):
        theirs.fit(X, y)
    ours = DropoutMLPClassifier((20, 10), max_iter=2, random_state=0).fit(X, y)
    ours.coefs_, ours.intercepts_ = theirs.coefs_, theirs.intercepts_
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-12)
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(np.exp(ours.predict_log_proba(X)), ours.predict_proba(X))


@never_converges
def test_rates():
    fit = lambda dropout, **more: DropoutMLPClassifier(  # noqa: E731
        (20, 10), dropout=dropout, max_iter=3, random_state=0, **more
    ).fit(X, y)
    assert_same_weights(fit(0.5), fit([0.5, 0.5]))
    for other in (fit(0.0), fit([0.5, 0.4]), fit(0.5, input_dropout=0.1)):
        assert fit(0.5).loss_curve_ != other.loss_curve_
    for nothing in (fit(1), fit(0, input_dropout=1)):
        assert np.isfinite(nothing.loss_curve_).all()
    start = DropoutMLPClassifier((20, 10), dropout=1, alpha=0, random_state=0)
    start.partial_fit(X, y, classes=[0, 1, 2])
    before = [w.copy() for w in start.coefs_]
    start.partial_fit(X, y)
    for a, b in zip(start.coefs_, before, strict=True):
        assert_same_bits(a, b)  # no gradient gets through; only the last bias learns


@never_converges
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype(dtype):
    model = DropoutMLPClassifier(max_iter=2, random_state=0).fit(X.astype(dtype), y)
    assert {w.dtype for w in weights(model)} == {np.dtype(dtype)}
    assert model.predict_proba(X.astype(dtype)).dtype == dtype


def test_training_goes_on_after_pickling():
    model = DropoutMLPClassifier(random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    loaded = pickle.loads(pickle.dumps(model))
    assert_same_weights(model.partial_fit(X, y), loaded.partial_fit(X, y))
    assert model.n_iter_ == len(model.loss_curve_) == 2


def test_partial_fit():
    model = DropoutMLPClassifier(dropout=0.2, learning_rate_init=1e-2, random_state=0)
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    model.partial_fit(X[y == 0], y[y == 0], classes=[2, 1, 0])
    with pytest.raises(ValueError, match="classes must be those of the first call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="not in classes"):
        model.partial_fit(X, y + 1)
    for _ in range(50):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9


def test_early_stopping_keeps_the_best_weights():
    how = {"dropout": 0.2, "early_stopping": True, "random_state": 0}
    model = DropoutMLPClassifier(learning_rate_init=0.02, **how).fit(X, y)
    best = int(np.argmax(model.validation_scores_)) + 1
    assert best < model.n_iter_ == len(model.validation_scores_) < model.max_iter
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        short = DropoutMLPClassifier(learning_rate_init=0.02, max_iter=best, **how).fit(X, y)
    assert_same_weights(model, short)


def test_stops_when_the_loss_does():
    model = DropoutMLPClassifier(tol=100.0, n_iter_no_change=2, random_state=0).fit(X, y)
    assert model.n_iter_ == 4  # the first has nothing to be compared with; then more than two


def test_in_a_grid_search():
    grid = {"dropout": [0.1, 1.0], "hidden_layer_sizes": [(32,)]}
    search = GridSearchCV(DropoutMLPClassifier(random_state=0, tol=1e-2), grid, cv=2).fit(X, y)
    assert search.best_params_["dropout"] == 0.1


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("hidden_layer_sizes", (10, 0)),
        ("hidden_layer_sizes", (10, -1)),
        ("dropout", 1.1),
        ("dropout", (0.5, 0.5)),
        ("input_dropout", -0.1),
        ("alpha", -1.0),
        ("batch_size", 0),
        ("learning_rate_init", 0),
        ("max_iter", 0),
        ("tol", -1.0),
        ("n_iter_no_change", 0),
    ],
)
def test_errors_name_the_parameter(parameter, value):
    with pytest.raises(ValueError, match=f"{parameter} must "):
        DropoutMLPClassifier(**{parameter: value}).fit(X, y)


@pytest.mark.parametrize("fraction", [0, 1, 1.5])
def test_nothing_or_everything_held_out(fraction):
    model = DropoutMLPClassifier(early_stopping=True, validation_fraction=fraction)
    with pytest.raises(ValueError, match="validation_fraction must be"):
        model.fit(X, y)
    model.set_params(early_stopping=False, max_iter=1)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, y)  # where it has no meaning it is not looked at


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverging_loss_is_an_error():
    with pytest.raises(ValueError, match=r"loss is not finite.*learning_rate_init"):
        DropoutMLPClassifier(learning_rate_init=1e300, random_state=0).fit(X, y)
