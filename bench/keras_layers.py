"""Keras's layers and fastdrop's: ``KERAS_BACKEND=jax python bench/keras_layers.py``.

Forward and backward of a dropout or noise layer alone, of ten that follow each other, and of no
layer, compiled where the backend compiles; and ``fit`` of a perceptron 784-512-512-10 in batches of
128. CPU time, medians of turns in an order that changes; read the ratios. With
``XLA_FLAGS=--xla_force_host_platform_device_count=8``, `fit` is data-parallel on JAX's devices, 128
examples on each. (With fewer, XLA waits for ever on two CPUs, with Keras's layers, too.)
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from tabulate import tabulate

import fastdrop
from fastdrop.adapters import keras as ours
from fastdrop.tools.bench import headline

BACKEND = keras.backend.backend()
ROUNDS, EPOCHS = 150, 5


class Scale(keras.layers.Layer):
    """What is there without dropout."""

    def call(self, x, training=False):
        return x * 1.25


def with_gradient(layers):
    """A function of an array: forward, and back from the sum of y."""
    model = keras.Sequential(layers)
    if BACKEND == "torch":

        def run(x):
            x.grad = None
            model(x, training=True).sum().backward()

        return run
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x, training=True)
            return y, tape.gradient(y, x)

        return run
    import jax

    state = [v.value for v in model.variables]

    def total(x):
        y, after = model.stateless_call([], state, x, training=True)
        return y.sum(), after

    step = jax.jit(jax.value_and_grad(total, has_aux=True))
    return lambda x: jax.block_until_ready(step(x))


def array(shape):
    x = keras.ops.ones(shape)
    return x.requires_grad_() if BACKEND == "torch" else x


def median_times(functions, rounds):
    """Microseconds of CPU time of each."""
    order, times = np.random.default_rng(0), {name: [] for name in functions}
    for turn in range(-rounds // 10, rounds):
        for name in order.permutation(list(functions)):
            start = time.process_time()
            functions[name]()
            if turn >= 0:
                times[name].append(1e6 * (time.process_time() - start))
    return {name: np.median(each) for name, each in times.items()}


def perceptron(*dropout):
    model = keras.Sequential(
        [
            *(keras.Input((784,)), keras.layers.Dense(512, activation="relu")),
            *(kind(0.5) for kind in dropout),
            *(keras.layers.Dense(512, activation="relu"), *(kind(0.5) for kind in dropout)),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def main():
    rows = []
    for kind in ("Dropout", "AlphaDropout", "GaussianDropout", "GaussianNoise"):
        for count, shape in ((1, (16, 1)), (1, (128, 512)), (1, (1024, 1024)), (10, (128, 512))):
            x = array(shape)
            layers = {
                "keras": lambda kind=kind: getattr(keras.layers, kind)(0.3),
                "fastdrop": lambda kind=kind: getattr(ours, kind)(0.3),
                "no layer": Scale,
            }
            runs = {}
            for name, make in layers.items():
                run = with_gradient([keras.Input(shape[1:]), *(make() for _ in range(count))])
                runs[name] = lambda run=run, x=x: run(x)
            found = median_times(runs, ROUNDS)
            where = f"{count} x {kind} {shape}"
            rows.append([where, *found.values(), found["keras"] / found["fastdrop"]])
    draw = np.random.default_rng(0)
    x, t = draw.random((8192, 784), np.float32), draw.integers(0, 10, 8192)
    devices = keras.distribution.list_devices() if BACKEND == "jax" else []
    batch = 128 * max(1, len(devices))
    if len(devices) > 1:
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    models = {
        "keras": perceptron(keras.layers.Dropout),
        "fastdrop": perceptron(ours.Dropout),
        "no layer": perceptron(),
    }
    runs = {
        name: lambda model=model: model.fit(x, t, batch_size=batch, verbose=0)
        for name, model in models.items()
    }
    found = median_times(runs, EPOCHS + 5)
    where = f"fit, batches of {batch}" + f", {len(devices)} devices" * (len(devices) > 1)
    rows.append([where, *found.values(), found["keras"] / found["fastdrop"]])
    print(f"{headline()}; Keras {keras.__version__} on {BACKEND}; fastdrop {fastdrop.__version__}")
    columns = ["microseconds", "keras.layers", "fastdrop", "no layer", "keras / fastdrop"]
    print(tabulate(rows, columns, floatfmt=("", ".0f", ".0f", ".0f", ".2f")))


if __name__ == "__main__":
    main()
