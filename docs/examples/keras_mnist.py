"""MNIST with and without dropout in Keras, on whichever backend KERAS_BACKEND names.

KERAS_BACKEND=jax python docs/examples/keras_mnist.py --data DIR --out keras-mnist.png

DIR holds MNIST's four IDX files, gzipped or not. It trains a perceptron twice, prints both
accuracies on the test images side by side, and draws four curves of accuracy and, beside them, of
loss. Only the line that imports Dropout is not Keras's.
"""

import argparse
from pathlib import Path

import keras
import matplotlib
import numpy as np

from fastdrop.adapters.keras import Dropout
from fastdrop.studies.data import read_idx

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def load(folder, name):
    """Images as rows of numbers from 0 to 1, and one-hot labels."""
    images, labels = (
        read_idx(next(Path(folder).glob(f"{name}-{kind}*"))) for kind in ("images", "labels")
    )
    return images.reshape(len(images), -1) / np.float32(255), keras.utils.to_categorical(labels, 10)


def perceptron(inputs, rate):
    dropout = [Dropout] if rate else []
    return keras.Sequential(
        [
            keras.Input((inputs,)),
            keras.layers.Dense(512, activation="relu"),
            *[kind(rate) for kind in dropout],
            keras.layers.Dense(512, activation="relu"),
            *[kind(rate) for kind in dropout],
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--out", default="keras-mnist.png")
options = parser.parse_args()

x, t = load(options.data, "train")
x_test, t_test = load(options.data, "t10k")
histories, accuracies = {}, {}
for name, rate in (("without dropout", 0.0), ("with dropout", 0.5)):
    keras.utils.set_random_seed(0)
    model = perceptron(x.shape[1], rate)
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    fit = model.fit(x, t, epochs=options.epochs, batch_size=128, validation_split=0.2, verbose=2)
    histories[name] = fit.history
    accuracies[name] = model.evaluate(x_test, t_test, verbose=0)[1]

print("  ".join(f"{name}: {accuracy:.4f}" for name, accuracy in accuracies.items()))
figure, (left, *losses) = plt.subplots(1, 3, figsize=(15, 4))
for (name, history), axes in zip(histories.items(), losses, strict=True):
    for split, words in (("", "training"), ("val_", "validation")):
        left.plot(history[f"{split}accuracy"], label=f"{name}, {words}")
        axes.plot(history[f"{split}loss"], label=words)
    axes.set(title=f"loss {name}", xlabel="epoch")
    axes.legend()
losses[1].sharey(losses[0])
left.set(title="accuracy", xlabel="epoch")
left.legend()
figure.tight_layout()
figure.savefig(options.out)
