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
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from fastdrop.adapters import sklearn as adapter
from fastdrop.adapters.sklearn import DropoutMLPClassifier, DropoutMLPRegressor

X, y = make_classification(300, 12, n_informative=6, n_classes=3, random_state=0)
never_converges = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")


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
        DropoutMLPRegressor(dropout=0.1, max_iter=300),
    ],
    expected_failed_checks=lambda estimator: {
        "check_sample_weight_equivalence_on_dense_data": "a repeated example has masks of its own",
        "check_sample_weight_equivalence_on_sparse_data": "a repeated example has masks of its own",
    },
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
    draw = np.random.default_rng(0)
    for activation in ("relu", "tanh", "logistic", "identity"):
        model = DropoutMLPClassifier((7, 5), activation, dropout=(0.5, 0.2), input_dropout=0.1)
        model.set_params(alpha=0.3, random_state=0).partial_fit(X, y, classes=[0, 1, 2])
        targets, importance = np.eye(3, dtype=bool)[y[:20]], draw.random(20)

        def loss(model=model, targets=targets, importance=importance):
            model._rng = fd.Rng(3)
            room = [None] * 3, [None] * 3
            return model._backprop(X[:20], targets, importance, None, None, *room)

        _, *grads = loss()
        for p, g in zip(weights(model), [*grads[0], *grads[1]], strict=True):
            direction = draw.standard_normal(p.shape)
            values = []
            for step in (1e-6, -1e-6):
                p += step * direction
                values.append(loss()[0])
                p -= step * direction
            np.testing.assert_allclose(
                (values[0] - values[1]) / 2e-6, (g * direction).sum(), rtol=1e-5, atol=1e-9
            )


several = np.stack([y == 0, y < 2, y == 2], axis=1).astype(int)
sparse = pytest.importorskip("scipy.sparse").csr_array(np.where(np.abs(X) > 1, X, 0))
WITHOUT = {
    "classes": (MLPClassifier, X, y, {}),
    "two": (MLPClassifier, X, y == 0, {}),
    "multilabel": (MLPClassifier, X, several, {}),
    "sparse": (MLPClassifier, sparse, y, {}),
    "float32": (MLPClassifier, X.astype(np.float32), y, {}),
    "tanh": (MLPClassifier, X, y, {"activation": "tanh"}),
    "momentum": (MLPClassifier, X, y, {"solver": "sgd", "momentum": 0.5}),
    "invscaling": (MLPClassifier, X, y, {"solver": "sgd", "learning_rate": "invscaling"}),
    "adaptive": (MLPClassifier, X, y, {"solver": "sgd", "learning_rate": "adaptive"}),
    "early stopping": (MLPClassifier, X, y, {"early_stopping": True}),
    "values": (MLPRegressor, X, X[:, 0] * X[:, 1], {"activation": "logistic"}),
    "two values": (MLPRegressor, X, X[:, :2], {}),
    "poisson": (MLPRegressor, X, np.abs(X[:, 0]), {"loss": "poisson"}),
}


@never_converges
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize("name", WITHOUT)
@pytest.mark.parametrize("weighted", [False, True])
def test_without_dropout_it_is_sklearns_own(name, weighted):
    """All of its ways of training, and all of its attributes."""
    theirs, inputs, targets, more = WITHOUT[name]
    ours = DropoutMLPClassifier if theirs is MLPClassifier else DropoutMLPRegressor
    how = {"hidden_layer_sizes": (20, 10), "max_iter": 4, "random_state": 0, **more}
    importance = np.arange(1, 301) / 100 if weighted else None
    first = theirs(**how).fit(inputs, targets, sample_weight=importance)
    second = ours(dropout=0, **how).fit(inputs, targets, sample_weight=importance)
    for a, b in zip(weights(first), weights(second), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-6)
    assert {k for k in vars(first) if k.endswith("_")} == {
        k for k in vars(second) if k.endswith("_")
    }
    np.testing.assert_allclose(second.loss_curve_, first.loss_curve_, rtol=1e-4)
    np.testing.assert_allclose(second.loss_, first.loss_, rtol=1e-4)
    assert second.validation_scores_ == first.validation_scores_
    assert second.n_iter_ == first.n_iter_


@never_converges
def test_warm_start_and_verbose(capsys):
    model = DropoutMLPClassifier(max_iter=3, warm_start=True, random_state=0, verbose=True)
    before = [w.copy() for w in weights(model.fit(X, y))]
    again = weights(model.fit(X, y))
    assert all((a != b).any() for a, b in zip(before, again, strict=True))
    assert len(model.loss_curve_) == 6
    assert capsys.readouterr().out.count("loss = ") == 6


def test_early_stopping_on_a_small_set():
    """Ten classes, of which what is held out cannot have all."""
    small, classes = X[:60], np.arange(60) % 10
    model = DropoutMLPClassifier(early_stopping=True, random_state=0).fit(small, classes)
    assert model.best_validation_score_ == max(model.validation_scores_)


def test_the_noise_of_masks_does_not_end_training():
    """Digits: more accurate than without dropout, as it goes on while the loss still falls."""
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    train, test = slice(0, 1300), slice(1300, None)
    fit = lambda kind: kind(random_state=0).fit(images[train], digits[train])  # noqa: E731
    ours, theirs = fit(DropoutMLPClassifier), fit(MLPClassifier)
    assert ours.n_iter_ > 80
    score = ours.score(images[test], digits[test])
    assert score >= theirs.score(images[test], digits[test])
    judged = np.convolve(ours.loss_curve_, np.ones(4) / 4, "valid")
    assert ours.best_loss_ == pytest.approx(min(judged))


@pytest.mark.slow
@never_converges
@pytest.mark.parametrize(
    "protocol", ["0 to 1, a random quarter to test", "standardised, 1000 to train, 797 to test"]
)
def test_at_least_as_good_as_sklearns_own(protocol):
    """By bench/sklearn_digits.py, which tells more with more seeds."""
    from sklearn_digits import compared

    theirs, ours = compared(protocol, range(8))
    assert ours.mean(axis=0)[0] > theirs.mean(axis=0)[0] - 0.002
    assert np.median(ours, axis=0)[2] < 1.1 * np.median(theirs, axis=0)[2]


@never_converges
def test_uncertainty():
    model = DropoutMLPRegressor(dropout=0.3, random_state=0, max_iter=50)
    values = np.sin(X[:, 0])
    model.fit(X, values)
    y_mean, std = model.predict(X, return_std=True)
    assert_same_bits(y_mean, model.predict(X))
    assert std.shape == y_mean.shape
    assert (std > 0).all()
    assert_same_bits(std, model.predict(X, return_std=True)[1])
    passes = [model._masked(X, fd.mc.pass_rng(model._rng.seed ^ (2**64 - 1), t)) for t in range(20)]
    expected = np.std([p[2].ravel() for p in passes], axis=0)
    np.testing.assert_allclose(model.predict(X, return_std=True, n_samples=20)[1], expected)
    assert model.predict(X, return_std=True)[1].mean() < 3 * expected.mean()
    far = model.predict(20 * X, return_std=True)[1]
    assert far.mean() > 5 * std.mean()  # far from all examples it is less sure
    model = DropoutMLPRegressor(random_state=0, max_iter=5).fit(X, X[:, :2])
    assert model.predict(X, return_std=True)[1].shape == (300, 2)
    for targets in (y, y == 0, several):
        network = DropoutMLPClassifier(random_state=0, max_iter=5).fit(X, targets)
        assert network.predict_proba_std(X).shape == network.predict_proba(X).shape
    assert not DropoutMLPClassifier(dropout=0, max_iter=5).fit(X, y).predict_proba_std(X).any()
    with pytest.raises(ValueError, match="n_samples must be at least 2"):
        model.predict(X, return_std=True, n_samples=1)
    with pytest.raises(Exception, match="not fitted"):
        DropoutMLPClassifier().predict_proba_std(X)


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
    for nothing in (fit(1.0), fit(0.0, input_dropout=1.0)):
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
    assert len(model.loss_curve_) == 2


def test_partial_fit():
    model = DropoutMLPClassifier(dropout=0.2, learning_rate_init=1e-2, random_state=0)
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, y)
    model.partial_fit(X[y == 0], y[y == 0], classes=[2, 1, 0])
    with pytest.raises(ValueError, match="not the same as on last call"):
        model.partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="classes not in"):
        model.partial_fit(X, y + 1)
    for _ in range(50):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9


def test_early_stopping_keeps_the_best_weights():
    how = {"dropout": 0.2, "early_stopping": True, "random_state": 0}
    model = DropoutMLPClassifier(learning_rate_init=0.02, **how).fit(X, y)
    best = int(np.argmax(model.validation_scores_)) + 1
    assert best < model.n_iter_ == len(model.validation_scores_) < model.max_iter
    with pytest.warns(ConvergenceWarning, match="Maximum iterations"):
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
    with pytest.raises(ValueError, match=f"{parameter}.* must "):
        DropoutMLPClassifier(**{parameter: value}).fit(X, y)


@pytest.mark.parametrize("fraction", [0, 1.0, 1.5])
def test_nothing_or_everything_held_out(fraction):
    model = DropoutMLPClassifier(early_stopping=True, validation_fraction=fraction)
    with pytest.raises(ValueError, match=r"validation_fraction|test_size"):
        model.fit(X, y)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverging_loss_is_an_error():
    with pytest.raises(ValueError, match=r"loss is not finite.*learning_rate_init"):
        DropoutMLPClassifier(learning_rate_init=1e300, random_state=0).fit(X, y)
