"""The layers for Keras, on the backend that KERAS_BACKEND names and, in processes of their own, the
others that are installed.
"""

import doctest
import gzip
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

if not find_spec("keras"):
    pytest.skip("needs keras", allow_module_level=True)
INSTALLED = [name for name in ("torch", "jax", "tensorflow") if find_spec(name)]
if not INSTALLED:
    pytest.skip("needs torch, jax or tensorflow", allow_module_level=True)
os.environ.setdefault("KERAS_BACKEND", INSTALLED[0])
import keras  # noqa: E402

from fastdrop.adapters import keras as adapter  # noqa: E402
from fastdrop.adapters.keras import Dropout, replace, restore  # noqa: E402

BACKEND = keras.backend.backend()
# Keras's and its backends' own.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.skipif("KERAS_OTHER" in os.environ, reason="is that process")
@pytest.mark.parametrize(
    ("backend", "which"),
    [
        ("jax", "not slow"),
        pytest.param("jax", "slow", marks=pytest.mark.slow),
        pytest.param("torch", "slow or not slow", marks=pytest.mark.slow),
        pytest.param("tensorflow", "slow or not slow", marks=pytest.mark.slow),
    ],
)
def test_the_other_backends(backend, which):
    if backend == BACKEND or backend not in INSTALLED:
        pytest.skip(f"{backend} is this process's backend, or not installed")
    env = {**os.environ, "KERAS_BACKEND": backend, "KERAS_OTHER": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    command += ["-m", which]
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    run = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_the_same_bits_as_numpy(rate):
    """Call after call."""
    layer, x = Dropout(rate, seed=7), normal(4, 300)
    for call in range(3):
        expected, _ = fd.dropout(x, rate, rng=fd.Rng(7, call))
        assert_same_bits(numpy(layer(x, training=True)), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    x = keras.ops.cast(normal(4, 300), dtype)
    y = Dropout(0.5, seed=7, dtype=dtype)(x, training=True)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    kept = numpy(keras.ops.cast(y, "float32")) != 0
    np.testing.assert_array_equal(kept, fd.keep_mask(x.shape, 0.5, rng=7))
    expected = 2 * numpy(keras.ops.cast(x, "float32"))
    np.testing.assert_array_equal(numpy(keras.ops.cast(y, "float32"))[kept], expected[kept])


def test_inference_and_rate_0_are_the_input():
    x = normal(4, 300)
    for y in (Dropout(0.5)(x), Dropout(0.5)(x, training=False), Dropout(0)(x, training=True)):
        assert_same_bits(numpy(y), x)


@pytest.mark.parametrize("noise_shape", [(None, 1, None), (4, 1, 30), [None, 1, 30]])
def test_noise_shape(noise_shape):
    x = normal(4, 20, 30)
    expected, _ = fd.dropout(x, 0.5, rng=7, shared_axes=1)
    assert_same_bits(numpy(Dropout(0.5, noise_shape, seed=7)(x, training=True)), expected)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)
    for noise_shape in ((4, 2, 30), (4, 20), (None,) * 4):
        with pytest.raises(ValueError, match=r"noise_shape must be the shape of the inputs"):
            Dropout(0.5, noise_shape)(normal(4, 20, 30), training=True)
    with pytest.raises(ValueError, match="noise_shape"):
        Dropout(0.5, "abc")


@pytest.mark.parametrize("backend", ["numpy", "openvino"])
def test_other_backends_are_named(monkeypatch, backend):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    with pytest.raises(NotImplementedError, match=f"no layer for the {backend} backend"):
        Dropout(0.5)


def test_configuration():
    layer = Dropout(0.3, noise_shape=(None, 1), seed=7, name="d")
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is Dropout
    assert again.get_config() == layer.get_config()
    assert (again.rate, again.seed, again.noise_shape, again.name) == (0.3, 7, (None, 1), "d")
    assert config["registered_name"] == "fastdrop>Dropout"


def test_random_seeds_differ():
    x = normal(4, 300)
    first, second = (numpy(Dropout(0.5)(x, training=True)) for _ in range(2))
    assert (first != second).any()


def network(seed=7):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((20,))
    x = keras.layers.Dense(64, activation="relu")(inputs)
    x = Dropout(0.3, seed=seed)(x)
    outputs = keras.layers.Dense(2, activation="softmax")(x)
    model = keras.Model(inputs, outputs)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return model


def data():
    x = normal(512, 20)
    return x, (x[:, :10].sum(1) > x[:, 10:].sum(1)).astype(int)


@pytest.mark.slow
def test_training():
    """A small network learns which of two halves of the input is the larger."""
    model = network()
    x, t = data()
    model.fit(x, t, epochs=10, batch_size=64, verbose=0)
    assert model.evaluate(x, t, verbose=0)[1] > 0.95
    assert numpy(model.layers[2].seed_generator.state)[1] >= 80
    assert_same_bits(numpy(model.predict(x, verbose=0)), numpy(model.predict(x, verbose=0)))


def test_a_saved_model_goes_on_with_the_masks(tmp_path):
    model, x = network(), normal(8, 20)
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.layers[2]) is Dropout
    assert_same_bits(numpy(again(x, training=True)), numpy(model(x, training=True)))


LAYERS = {
    "Dropout": ((0.3,), (4, 300), fd.dropout, {}),
    "SpatialDropout1D": ((0.3,), (4, 5, 60), fd.dropout, {"shared_axes": 1}),
    "SpatialDropout2D": ((0.3,), (4, 5, 6, 60), fd.dropout, {"shared_axes": (1, 2)}),
    "SpatialDropout3D": ((0.3,), (4, 5, 6, 3, 60), fd.dropout, {"shared_axes": (1, 2, 3)}),
    "AlphaDropout": ((0.3,), (4, 300), fd.alpha_dropout, {}),
    "GaussianDropout": ((0.3,), (4, 300), fd.gaussian_dropout, {}),
    "GaussianNoise": ((0.3,), (4, 300), fd.gaussian_noise, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer(name, tmp_path):
    """Bits, configuration, inference, files."""
    args, shape, op, more = LAYERS[name]
    kind, x = getattr(adapter, name), normal(*shape)
    layer = kind(*args, seed=7)
    for call in range(2):
        expected, _ = op(x, *args, rng=fd.Rng(7, call), **more)
        assert_same_bits(numpy(layer(x, training=True)), expected)
    assert_same_bits(numpy(layer(x)), x)
    assert_same_bits(numpy(kind(0.0)(x, training=True)), x)
    again = kind.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is kind
    assert_same_bits(numpy(loaded(x, training=True)), numpy(model(x, training=True)))


def stock(kinds=keras.layers):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(64, activation="relu"),
            kinds.Dropout(0.3, seed=7),
            keras.layers.Dense(64, activation="relu"),
            kinds.AlphaDropout(0.3, seed=8),
            keras.layers.Dense(2, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("file", ["model.weights.h5", "model.keras"])
@pytest.mark.parametrize("kinds", [(keras.layers, adapter), (adapter, keras.layers)])
def test_weights_are_interchangeable(file, kinds, tmp_path):
    """From Keras's own layers to these, and back."""
    saved, other = (stock(kind) for kind in kinds)
    saved.layers[0].bias.assign(np.arange(64.0))
    path = tmp_path / file
    saved.save(path) if file.endswith("keras") else saved.save_weights(path)
    other.load_weights(path)
    for a, b in zip(saved.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    x = normal(4, 20)
    assert_same_bits(numpy(saved(x)), numpy(other(x)))


def test_weights_bring_the_state_of_masks(tmp_path):
    model, other, x = stock(adapter), stock(adapter), normal(4, 20)
    model(x, training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_bits(numpy(model(x, training=True)), numpy(other(x, training=True)))


def test_replace_and_restore():
    model, (x, t) = stock(), data()
    how = "adam", "sparse_categorical_crossentropy"
    model.compile(*how)
    model.train_on_batch(x, t)
    names, weights = [layer.name for layer in model.layers], model.get_weights()
    assert replace(model) is model
    assert [type(layer) for layer in model.layers[1::2]] == [Dropout, adapter.AlphaDropout]
    assert [layer.name for layer in model.layers] == names
    for a, b in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    state = numpy(model.layers[1].seed_generator.state)
    y = model.layers[1](np.ones((4, 64), np.float32), training=True)
    expected, _ = fd.dropout(np.ones((4, 64), np.float32), 0.3, rng=fd.Rng(*map(int, state)))
    assert_same_bits(numpy(y), expected)
    before = int(numpy(model.layers[1].seed_generator.state)[1])
    model.train_on_batch(x, t)  # with fastdrop's layers: the loss is that of a model made of them
    assert numpy(model.layers[1].seed_generator.state)[1] > before
    restore(model)
    assert type(model.layers[1]) is keras.layers.Dropout
    assert not hasattr(model.layers[1], "fastdrop_state")
    assert np.isfinite(model.train_on_batch(x, t))
    nested = keras.Sequential([keras.Input((20,)), stock(), keras.layers.Dropout(0.2)])
    replace(nested)
    assert type(nested.layers[0].layers[1]) is Dropout
    assert type(nested.layers[1]) is Dropout


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_replaced_is_what_trains(compiled, monkeypatch):
    model, (x, t) = stock(), data()
    model.compile("adam", "sparse_categorical_crossentropy")
    if compiled:
        model.train_on_batch(x, t)
    seen = []
    drop = adapter.BACKENDS[BACKEND]
    monkeypatch.setitem(adapter.BACKENDS, BACKEND, lambda *a: seen.append(a[0]) or drop(*a))
    replace(model).train_on_batch(x, t)
    assert set(seen) == {"dropout", "alpha_dropout"}
    del seen[:]
    restore(model).train_on_batch(x, t)
    assert not seen


@pytest.mark.skipif(BACKEND != "tensorflow", reason="is compiled for TensorFlow")
def test_without_a_compiler(monkeypatch, tmp_path):
    """Making, loading and predicting work; training says what is missing."""
    from fastdrop.adapters.keras import tensorflow

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(tensorflow, "_library", tensorflow._library.__wrapped__)
    model, x = stock(adapter), normal(4, 20)
    assert_same_bits(numpy(model(x)), numpy(stock()(x)))
    with pytest.raises(RuntimeError, match=r"there is no C.. compiler; install g"):
        Dropout(0.5)(x, training=True)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.mark.slow
def test_mnist_program(tmp_path):
    """docs/examples/keras_mnist.py, two passes over enlarged digits as MNIST's files."""
    pytest.importorskip("matplotlib")
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = np.kron(images.reshape(-1, 8, 8), np.ones((1, 3, 3)))
    images = np.pad(images * 15, [(0, 0), (2, 2), (2, 2)]).astype(np.uint8)
    for name, part in (("train", slice(0, 1400)), ("t10k", slice(1400, None))):
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", images[part])
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels[part].astype(np.uint8))
    program = Path(__file__).parents[2] / "docs" / "examples" / "keras_mnist.py"
    command = [sys.executable, str(program), "--data", str(tmp_path), "--epochs", "4"]
    environment = {**os.environ, "KERAS_BACKEND": BACKEND}
    command += ["--out", str(tmp_path / "curves.png")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    accuracies = [float(n) for n in re.findall(r"dropout: (\d\.\d+)", run.stdout)]
    assert len(accuracies) == 2
    assert min(accuracies) > 0.8, run.stdout
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_example():
    failed, attempted = doctest.testmod(adapter)
    assert attempted > 5
    assert not failed


class Block(keras.layers.Layer):
    """A layer that has others."""

    def __init__(self, *layers):
        super().__init__()
        self.those = layers

    def call(self, x, training=False):
        for layer in self.those:
            x = layer(x, training=training)
        return x


def value_and_gradient(f, x):
    """y of one call, and the gradient of its sum."""
    if BACKEND == "torch":
        import torch

        x = torch.tensor(x, requires_grad=True)
        y = f(x)
        y.sum().backward()
        return numpy(y), x.grad.numpy()
    if BACKEND == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = f(x)
        return y.numpy(), tape.gradient(y, x).numpy()
    import jax

    def with_y(x):
        y = f(x)
        return y.sum(), y

    (_, y), dx = jax.value_and_grad(with_y, has_aux=True)(x)
    return np.asarray(y), np.asarray(dx)


@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize("name", ["Dropout", "AlphaDropout", "GaussianDropout"])
def test_rematerialization(name, seed):
    """The gradient is that of the mask; a call is counted once."""
    with keras.RematScope(mode="full"):
        layer = getattr(adapter, name)(0.5, seed=seed)
        for _ in range(2):
            y, dx = value_and_gradient(lambda x: layer(x, training=True), np.ones(300, np.float32))
            if name == "AlphaDropout":
                assert ((dx == 0) == (y == y.min())).all()
            else:
                np.testing.assert_array_equal(y, dx)
    assert numpy(layer.seed_generator.state)[1] == 2


def test_rematerialization_of_a_layer_that_has_these():
    """On PyTorch as that of any layer; TensorFlow's counts a further call, as with Keras's own
    layers, and is refused; JAX's fails by itself, as it traces `training`.
    """
    if BACKEND == "jax":
        pytest.skip("JAX traces training")
    with keras.RematScope(mode="full"):
        block = Block(Dropout(0.5, seed=7), Dropout(0.5, seed=8), Dropout(0.2))
    run = lambda: value_and_gradient(  # noqa: E731
        lambda x: block(block(x, training=True), training=True), np.ones(300, np.float32)
    )
    with keras.RematScope(mode="full"):
        if BACKEND == "tensorflow":
            with pytest.raises(RuntimeError, match=r"out of keras\.RematScope"):
                run()
            return
        y, dx = run()
    np.testing.assert_array_equal(y, dx)
    assert 0 < (y != 0).mean() < 0.3
    assert numpy(block.those[0].seed_generator.state).tolist() == [7, 2]


def test_stateless_calls_leave_what_they_are_given():
    model = keras.Sequential([keras.Input((300,)), Dropout(0.5, seed=7)])
    state = [keras.ops.copy(v.value) for v in model.non_trainable_variables]
    x = np.ones((1, 300), np.float32)
    for call in range(2):
        before = [numpy(v).copy() for v in state]
        y, after = model.stateless_call([], state, x, training=True)
        assert_same_bits(numpy(y), fd.dropout(x, 0.5, rng=fd.Rng(7, call))[0])
        np.testing.assert_array_equal(numpy(state[0]), before[0])
        state = after
    assert numpy(state[0]).tolist() == [7, 2]


def test_gradient():
    """One step of gradient descent on a weight in front of the layer."""
    x = np.ones((1, 1000), np.float32)

    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.w = self.add_weight(shape=shape[1:], initializer="ones")

        def call(self, x):
            return x * self.w

    model = keras.Sequential([Scale(), Dropout(0.3, seed=7)])
    model.compile(keras.optimizers.SGD(1.0), lambda t, y: keras.ops.sum(y, -1))
    model.build((None, 1000))
    start = numpy(model.layers[1].seed_generator.state)[1]
    model.train_on_batch(x, np.zeros((1, 1000), np.float32))
    _, ctx = fd.dropout(x, 0.3, rng=fd.Rng(7, int(start)))
    np.testing.assert_allclose(numpy(model.layers[0].w), 1 - ctx.backward(x)[0], atol=1e-6)
