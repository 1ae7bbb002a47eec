"""What single studies are made of: gradients of the variants, measures of uncertainty."""

from functools import partial

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.__main__ import main
from fastdrop.studies import (
    STUDIES,
    checkpoint,
    cifar_cnn,
    co_adaptation,
    lstm,
    nn,
    regularisers,
    transformer,
    uncertainty,
    variants,
)
from fastdrop.studies.data import load


def again(net):
    """Everything as it was: the same draws, rates and weights of the loss."""
    rng = fd.Rng(3)
    net.step = 7
    for layer in net.layers:
        drawing = getattr(layer, "dropout", layer)
        if hasattr(drawing, "rng"):
            drawing.rng, drawing.step = rng, 40


@pytest.mark.parametrize("name", variants.CASES)
def test_gradient_along_a_line(name, monkeypatch):
    monkeypatch.setattr(variants, "UNITS", 20)
    data = load("digits", 0).part(100, 10)
    net = variants.CASES[name](variants.Builder(data, 0, 50))
    direction = np.random.default_rng(1)
    for layer in net.layers:
        for parameter in layer.learned:
            setattr(layer, parameter, getattr(layer, parameter).astype(np.float64))
            if parameter == "b":  # with 0, black pixels are where ReLU has no gradient
                layer.b += 0.1 * direction.standard_normal(layer.b.shape)
    x, t = data.x_train[:8].astype(np.float64), data.t_train[:8]
    again(net)
    net.learn(x, t)
    gradients = net.gradients
    assert gradients.keys() == net.parameters.keys()
    for parameter, value in net.parameters.items():
        along = direction.standard_normal(value.shape)
        slope, kept, losses = np.sum(gradients[parameter] * along), value.copy(), []
        for step in (1e-6, -1e-6):
            value[...] = kept + step * along
            again(net)
            losses.append(net.learn(x, t))
        value[...] = kept
        size = np.linalg.norm(gradients[parameter])
        assert size > 0, parameter
        assert abs((losses[0] - losses[1]) / 2e-6 - slope) < 1e-5 * size + 1e-8, parameter


@pytest.mark.parametrize("name", variants.CASES)
def test_a_variant_goes_on_from_a_checkpoint(name, monkeypatch):
    monkeypatch.setattr(variants, "UNITS", 20)
    data = load("digits", 0).part(150, 20)
    goes_on(partial(variants.start, name, data, 0, 2), data)


def goes_on(start, data):
    """A new trainer with the numbers of one in training does what that does, bit for bit."""

    def train(trainer):
        row = trainer.epoch(data, lambda part: None)
        return {key: value for key, value in row.items() if not key.endswith("seconds")}

    trainer, restored = start(), start()
    first = train(trainer)
    checkpoint.restore(restored, checkpoint.loads(checkpoint.dumps(checkpoint.state(trainer))))
    second = train(trainer)
    assert second["train loss"] != first["train loss"]
    assert train(restored) == second
    ours, theirs = checkpoint.state(trainer), checkpoint.state(restored)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if "seconds" not in name:
            np.testing.assert_array_equal(value, theirs[name], strict=True, err_msg=name)


@pytest.mark.parametrize("name", regularisers.MEANS)
def test_regularisers_go_on_from_a_checkpoint(name):
    data = load("digits", 0).part(150, 20)
    goes_on(partial(regularisers.start, data, regularisers.MEANS[name], 0.5, 0), data)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_other_networks_go_on_from_a_checkpoint(dropout):
    data = load("digits", 0).part(150, 20)
    goes_on(partial(co_adaptation.start, data, "autoencoder", dropout, 0), data)
    goes_on(partial(cifar_cnn.start, data, dropout, 0), data)
    text, rates = lstm.read(2000), lstm.CASES["dropout" if dropout else "without dropout"]
    goes_on(partial(lstm.Training, text, rates, 0), text)


def test_a_checkpoint_has_all_of_a_trainer_and_nothing_twice():
    data = load("digits", 0).part(150, 20)
    trainer = regularisers.start(data, regularisers.MEANS["early stopping"], 0.5, 0)
    state = checkpoint.state(trainer)
    arrays = [value for value in state.values() if isinstance(value, np.ndarray)]
    assert sum(a.size for a in arrays) == 4 * sum(p.size for p in trainer.net.parameters.values())
    assert {"done", "order", "stop.best", "stop.waited", "update.step"} <= state.keys()
    assert sum(isinstance(v, dict) and "stream_version" in v for v in state.values()) == 1
    trainer.net.layers[1].W = [object()]
    with pytest.raises(TypeError, match=r"net\.layers\.1\.W\.0 is of <class 'object'>, which no"):
        checkpoint.state(trainer)


def test_a_checkpoint_is_what_it_was_made_of():
    content = {
        "a": [np.arange(6, dtype=np.int16).reshape(2, 3), np.float32(0.1), np.zeros((0, 2))],
        "b": {"c": None, "d": True, "e": 0.1, "f": 2**127, "g": float("inf"), "h": "±"},
    }
    found = checkpoint.loads(checkpoint.dumps(content))
    for ours, theirs in zip(content["a"], found["a"], strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
        assert type(ours) is type(theirs)
    assert found["b"] == content["b"]
    with pytest.raises(TypeError, match="objects"):
        checkpoint.dumps({"a": np.array([object()])})


def test_targeted_dense_is_not_pruned_in_evaluation():
    init = np.random.default_rng(0)
    dense = variants.TargetedDense(6, 5, init, fd.layers.TargetedDropout(1.0, 0.5, rng=1))
    x = init.standard_normal((3, 6), np.float32)
    expected = x @ fd.targeted_prune(dense.W, 0.5)
    np.testing.assert_allclose(dense(x), expected, rtol=1e-6)
    dense.train(False)
    np.testing.assert_allclose(dense(x), x @ dense.W, rtol=1e-6)


def test_noise_names_the_rates():
    data = load("digits", 0)
    for name, first in (("concrete", 0.1), ("variational", 1 / 3), ("curriculum", 0.0)):
        net = variants.CASES[f"perceptron, {name}"](variants.Builder(data, 0, 1))
        assert variants.noise(net) == pytest.approx({"rate 1": first, "rate 2": first})
    net = variants.CASES["perceptron, dropout"](variants.Builder(data, 0, 1))
    assert variants.noise(net) == {}


def test_calibration_by_hand():
    p = np.array([[0.8, 0.2], [0.75, 0.25], [0.45, 0.55], [1.0, 0.0]])
    found = uncertainty.calibration(p, np.array([0, 1, 1, 0]))
    assert found["accuracy"] == 0.75
    # 0.55 is right; of 0.8 and 0.75 in bins of their own one is; 1.0 is in the last bin and right
    assert found["calibration error"] == pytest.approx((0.45 + 0.2 + 0.75 + 0.0) / 4)
    np.testing.assert_array_equal(found["bins"]["images"], [0, 0, 0, 0, 0, 1, 0, 1, 1, 1])
    assert found["mean confidence"] == pytest.approx((0.8 + 0.75 + 0.55 + 1) / 4)
    assert found["loss"] == pytest.approx(-np.log([0.8, 0.25, 0.55, 1.0]).mean())


@pytest.mark.parametrize("shape", [(2, 5, 5, 3), (2, 6, 6, 1)])
def test_rotated(shape):
    images = np.random.default_rng(0).random(shape, np.float32)
    np.testing.assert_array_equal(uncertainty.rotated(images, 0), images)
    for turns in (1, 2):
        expected = np.rot90(images, turns, (1, 2))
        np.testing.assert_allclose(uncertainty.rotated(images, 90 * turns), expected, atol=1e-6)
    flat = uncertainty.rotated(np.ones((1, 21, 21, 1), np.float32), 30)[0, :, :, 0]
    np.testing.assert_allclose(flat[5:16, 5:16], 1, rtol=1e-6)
    assert flat[0, 0] == 0


def test_images_of_another_kind():
    images = load("digits", 0).x_test[:20]
    patches = uncertainty.photographs(images, 0)
    assert patches.shape == images.shape
    assert patches.dtype == np.float32
    assert 0 <= patches.min() < patches.max() <= 1
    moved = uncertainty.shuffled(images, 0)
    assert not np.array_equal(moved, images)
    for one, other in zip(moved, images, strict=True):
        np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


def test_how_unsure_tells_apart():
    sure, unsure = fd.mc.Classification(), fd.mc.Classification()
    sure.update(np.array([[0.99, 0.01], [0.9, 0.1]]))
    unsure.update(np.array([[0.5, 0.5], [0.95, 0.05], [0.3, 0.7]]))
    found = uncertainty.told_apart(unsure, sure)["predictive_entropy"]
    assert found["area"] == pytest.approx(5 / 6)  # 0.95 is surer than 0.9: one pair of six
    assert found["histogram"][-1] == 1  # all that one can be unsure
    assert found["histogram"].sum() == 3


def test_monte_carlo_leaves_the_network_as_it_was():
    init = np.random.default_rng(0)
    net = nn.Network(nn.Dense(4, 8, init), nn.ReLU(), nn.Dropout(0.5, rng=1), nn.Dense(8, 3, init))
    x = init.standard_normal((5, 4), np.float32)
    before = net.predict(x)
    answer = uncertainty.monte_carlo(net, x)
    assert answer.samples == uncertainty.PASSES
    assert answer.mutual_information.max() > 0.01
    np.testing.assert_array_equal(net.predict(x), before)
    np.testing.assert_array_equal(
        uncertainty.evaluation(net, x).mean, nn.softmax(before).astype(np.float64)
    )


@pytest.fixture
def text(monkeypatch):
    """A little of it, for a network that is small."""
    for name, value in {"STEPS": 6, "UNITS": 8, "HEADS": 2}.items():
        monkeypatch.setattr(transformer, name, value)
    return transformer.read(300)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_of_a_transformer(text, rate):
    """Of each parameter, along a line, with the same masks each time."""
    training = transformer.start(text, rate, 0)
    net, rng, direction = training.net, fd.Rng(5), np.random.default_rng(1)
    drawing = [part for layer in net.layers for part in (layer, getattr(layer, "branch", None))]
    drawing = [part for part in drawing if hasattr(part, "rng")]
    assert len(drawing) == 1 + 3 * transformer.BLOCKS
    owners = [(layer, name) for layer in net.layers for name in layer.learned]
    for layer in net.layers:
        for inside in (getattr(layer, "norm", None), getattr(layer, "branch", None)):
            owners += [(inside, name) for name in getattr(inside, "learned", ())]
    for owner, name in owners:
        value = getattr(owner, name).astype(np.float64)
        setattr(owner, name, value + 0.1 * direction.standard_normal(value.shape))

    def learn():
        rng.state = fd.Rng(5).state
        for part in drawing:
            part.rng = rng
        return net.learn(text.x_train[:4], text.t_train[:4])

    learn()
    gradients = net.gradients
    assert gradients.keys() == net.parameters.keys()
    assert len(gradients) == len(owners)
    for name, value in net.parameters.items():
        along = direction.standard_normal(value.shape)
        slope, kept, losses = np.sum(gradients[name] * along), value.copy(), []
        for step in (1e-6, -1e-6):
            value[...] = kept + step * along
            losses.append(learn())
        value[...] = kept
        size = np.linalg.norm(gradients[name])
        assert size > 0, name
        assert abs((losses[0] - losses[1]) / 2e-6 - slope) < 1e-5 * size + 1e-8, name


def test_a_transformer_goes_on_from_a_checkpoint(text):
    goes_on(partial(transformer.start, text, 0.2, 0), text)


def test_a_transformer_does_not_see_what_is_to_come(text):
    net = transformer.start(text, 0.2, 0).net
    ids = text.x_train[:1].copy()
    before = net.predict(ids)
    ids[0, 4] = (ids[0, 4] + 1) % len(text.alphabet)
    after = net.predict(ids)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert np.all(np.any(before[4:] != after[4:], axis=1))


def test_a_transformer_has_a_text_to_learn_and_another_behind_it():
    text = transformer.read(1000)
    assert text.x_train.shape == (15, transformer.STEPS)
    np.testing.assert_array_equal(text.x_train.ravel()[1:], text.t_train.ravel()[:-1])
    whole = "".join(text.alphabet[np.concatenate([text.x_train.ravel(), text.t_train[-1, -1:]])])
    assert 'The "assert" statement' in whole


def test_masks_that_are_shared_on_purpose_raise_no_alarm(text):
    """Others do, in the same networks."""
    init = np.random.default_rng(0)
    rates = {"recurrent": 0.3, "hidden": 0.2, "cell": 0.1}
    recurrent = nn.LSTM(4, 8, init, **rates, rng=fd.Rng(1))
    net = nn.Network(nn.Dense(4, 8, init), nn.ReLU(), nn.Dropout(0.5, rng=1), nn.Dense(8, 3, init))
    x = init.standard_normal((5, 3, 4), np.float32)
    with fd.debug():
        for _ in range(2):
            recurrent.backward(recurrent(x))
        for images in x:
            uncertainty.monte_carlo(net, images)
        net.learn(x[0], np.arange(3))
        recurrent.rng = fd.Rng(1)
        with pytest.raises(RuntimeError, match="was used for another array"):
            recurrent(x + 1)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "lstm" else pytest.mark.slow) for n in STUDIES]
)
def test_a_study_raises_no_alarm(name, tmp_path):
    """Though its networks have the same seed, so the same draws."""
    with fd.debug():
        main(["train", name, "--quick", "--epochs", "1", "--threads", "1", "--out", str(tmp_path)])
