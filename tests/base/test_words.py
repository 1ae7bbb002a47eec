"""What people try who come from another library, or forget something: the error tells the word."""

import copy
import pickle

import numpy as np
import pytest
from helpers.layer_kinds import NAMES as LAYER_NAMES

import fastdrop as fd
from fastdrop import mc
from fastdrop.base import words

X = np.ones((4, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 0.5}, "Dropout takes no rate: it is called p, the drop rate"),
        ({"keep_prob": 0.5}, r"keep_prob: it is called p, the drop rate, which is 1 - keep_prob"),
        ({"seed": 1}, "Dropout takes no seed: it is called rng"),
        ({"noise_shape": (4, 1)}, "it is called shared_axes, the axes where noise_shape is 1"),
        ({"train": True}, "Dropout takes no train: there are p, shared_axes, save, rng"),
        ({"colour": 1}, "Dropout takes no colour: there are p, shared_axes, save, rng"),
    ],
)
def test_keywords_of_layers(arguments, message):
    with pytest.raises(TypeError, match=message):
        fd.layers.Dropout(**arguments)


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_every_layer_tells(name):
    with pytest.raises(TypeError, match=f"^{name} takes no seed: it is called rng"):
        getattr(fd.layers, name)(seed=1)


def test_by_position():
    with pytest.raises(
        TypeError, match=r"ConcreteDropout takes p, temperature by .*: rng=, shared"
    ):
        fd.layers.ConcreteDropout(0.1, 0.1, fd.Rng(1))
    with pytest.raises(TypeError, match=r"p must be a real number in \[0, 1\], got Rng"):
        fd.layers.Dropout(fd.Rng(1))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'weight'"):
        fd.layers.EmbeddingDropout()


def test_words_of_a_gpus_functions():
    """They look at their arguments anyway."""
    with pytest.raises(TypeError, match="dropout takes no rate: it is called p, the drop rate"):
        fd.cuda.dropout(X, rate=0.5)
    with pytest.raises(
        TypeError, match=r"dropout takes x, p by position, got 3 arg.*: rng=, train"
    ):
        fd.cuda.dropout(X, 0.5, fd.Rng(1))


def test_a_subclass_takes_its_own_words():
    class Own(fd.layers.Dropout):
        def __init__(self, rate, *, seed):
            super().__init__(rate, rng=seed)

    assert Own(0.3, seed=1).p == 0.3
    assert pickle.loads(pickle.dumps(copy.copy(fd.layers.DropConnect(3, 2)))).p == 0.5


def test_what_a_call_of_a_layer_takes():
    layer, y = fd.layers.Dropout(0.5, rng=1), np.empty_like(X)
    for given, message in [
        ((X, y, y), "a call of Dropout takes 1 arrays and out, got 3 arrays"),
        ((), "a call of Dropout takes 1 arrays and out, got 0 arrays"),
    ]:
        with pytest.raises(TypeError, match=message):
            layer(*given)
    for option, message in [
        ({"p": 0.1}, "p belongs to the layer: assign layer.p"),
        (
            {"training": False},
            r"takes mask, out, region, rows beside .*, got training; train\(\) and eval",
        ),
        ({"rng": 1}, "takes mask, out, region, rows beside its input, got rng"),
    ]:
        with pytest.raises(TypeError, match=message):
            layer(X, **option)
    with pytest.raises(TypeError, match="a call of Zoneout takes 2 arrays, got 3 arrays"):
        fd.layers.Zoneout()(X, X, y)
    assert layer(X, y) is y
    assert layer.step == layer.rng.call == 1


def test_names():
    for name, message in [
        ("Dropout", "fastdrop has no Dropout: it is fastdrop.layers.Dropout"),
        ("predict", "it is fastdrop.mc.predict"),
        ("cosine", "it is fastdrop.schedules.cosine"),
        ("seed", r"fastdrop has no seed: it is Rng\(seed\), given to ops as rng="),
        ("nothing", r"fastdrop has no nothing; see fastdrop.__all__"),
    ]:
        with pytest.raises(AttributeError, match=message):
            getattr(fd, name)
    assert not hasattr(fd, "Dropout")
    assert not {*words.NAMES} & {*fd.__all__}


def test_a_context_is_no_array():
    """y = fd.dropout(x, ...), and on with y."""
    y = fd.dropout(X, 0.5, rng=1)
    for use in (lambda: np.maximum(y, 0), lambda: y @ X.T, lambda: np.asarray(y[1])):
        with pytest.raises(TypeError, match="which is no array: write y, ctx = "):
            use()
    with pytest.raises(TypeError, match=r"x is what an op returns, .*: write y, ctx = "):
        fd.relu_dropout(y, 0.5)
    assert copy.copy(y[1]).shape == X.shape


def test_a_flag_is_a_bool():
    for wrong in ("test", 1, None, [True], np.array(True)):
        for call in (
            lambda wrong=wrong: fd.dropout(X, 0.5, rng=1, training=wrong),
            lambda wrong=wrong: fd.concrete_dropout(X, 0.5, rng=1, training=wrong),
        ):
            with pytest.raises(TypeError, match="training must be True or False, got"):
                call()
        with pytest.raises(TypeError, match="mode must be True or False"):
            fd.layers.Dropout().train(wrong)
    y, _ = fd.dropout(X, 0.5, rng=1, training=np.True_)
    np.testing.assert_array_equal(y, fd.dropout(X, 0.5, rng=1)[0])


def test_prediction_that_draws_nothing():
    layer = fd.layers.Dropout(0.5, rng=1).eval()
    with pytest.warns(RuntimeWarning, match=r"no pass has drawn .* mc\.sampling\(layers, rng\)"):
        mc.predict(lambda x, rng: layer(x), X, 5)

    def model(x, rng):
        with mc.sampling(layer, rng):
            return layer(x)

    assert mc.predict(model, X, 5).variance.any()
    assert mc.predict(lambda x, rng: fd.layers.Dropout(0.5)(x), X, 5).variance.any()
    own = mc.predict(
        lambda x, rng: np.random.default_rng(rng.seed + rng.call).random(x.shape), X, 5
    )
    assert own.variance.any()


def test_a_model_of_one_argument():
    rng = fd.Rng(1)
    with pytest.raises(TypeError, match=r"that takes \(x\): it draws from rng.*mc\.sampling"):
        mc.predict(lambda x: x, X, 3, rng=rng)
    with pytest.raises(TypeError, match="model must be a function, got 3"):
        mc.predict(3, X, 3, rng=rng)
    assert rng.call == 0
