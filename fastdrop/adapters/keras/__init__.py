"""Dropout for Keras 3 on PyTorch, JAX and TensorFlow, in place of Keras's own layers.

Examples
--------
A perceptron learns which half of its inputs is the larger:

>>> import keras, numpy as np
>>> from fastdrop.adapters.keras import Dropout, replace, restore
>>> keras.utils.set_random_seed(0)
>>> x = np.random.default_rng(0).normal(size=(512, 20)).astype("float32")
>>> t = (x[:, :10].sum(axis=1) > x[:, 10:].sum(axis=1)).astype(int)
>>> model = keras.Sequential([
...     keras.layers.Dense(64, activation="relu"),
...     Dropout(0.3),
...     keras.layers.Dense(2, activation="softmax"),
... ])
>>> loss = "sparse_categorical_crossentropy"
>>> model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
>>> _ = model.fit(x, t, epochs=10, batch_size=64, verbose=0)
>>> model.evaluate(x, t, verbose=0)[1] > 0.95
True

A model that is there already changes over with ``replace(model)``, and back with
``restore(model)``. Weights can be loaded from files of models with Keras's own layers, and by
those.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.saving.keras_saveable import KerasSaveable

__all__ = [
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "replace",
    "restore",
]


class State(KerasSaveable):
    """The state of a layer's seed generator, which Keras's layers leave out of files.

    It is saved beside the layer's weights, of which there are none: where Keras's layer does not
    look.
    """

    def __init__(self, layer: Any) -> None:
        self._generator = getattr(layer, "seed_generator", None)  # none at rate 0

    def _obj_type(self) -> str:
        return "Loss"  # one of the words that Keras knows; it looks the same way into all of them

    def save_own_variables(self, store: Any) -> None:
        if self._generator is not None:
            store["seed_generator"] = keras.ops.convert_to_numpy(self._generator.state)

    def load_own_variables(self, store: Any) -> None:
        if self._generator is not None and "seed_generator" in store:
            self._generator.state.assign(store["seed_generator"])


class Layer:
    """What the layers share; comes before one of Keras, whose arguments it takes.

    The layer's seed generator counts the calls, so the masks go on where a saved model was: call
    number k of a layer with ``seed=s`` has the mask of ``fastdrop.Rng(s, k)``.

    Raises
    ------
    NotImplementedError
        Another backend of Keras.
    RuntimeError
        TensorFlow computes a layer that has this one again for a backward pass
        (``keras.RematScope``): it would have another mask.
    """

    op: str

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        _backend()
        super().__init__(*args, **kwargs)
        _prepare(self)

    def call(self: Any, inputs: Any, training: bool = False) -> Any:
        amount = self.stddev if self.op == "gaussian_noise" else self.rate
        if not training or amount == 0:
            return inputs
        axes = self._shared_axes(inputs)
        return _backend()(self.op, inputs, amount, self.seed_generator, axes)

    def rematerialized_call(self, layer_call: Any, *args: Any, **kwargs: Any) -> Any:
        """The call as it is: a bit an element, or the name of a draw, is all that is kept for the
        backward pass; it would take the inputs to compute it again.
        """
        return layer_call

    def _shared_axes(self: Any, x: Any) -> list[int]:
        shape = tuple(x.shape)
        if hasattr(self, "_get_noise_shape"):
            return [
                d for d, n in enumerate(self._get_noise_shape(x)) if isinstance(n, int) and n == 1
            ]
        if getattr(self, "noise_shape", None) is None:
            return []
        wanted = tuple(self.noise_shape)
        fits = len(wanted) == len(shape)
        if not fits or any(n not in (None, 1, m) for n, m in zip(wanted, shape, strict=True)):
            raise ValueError(
                f"noise_shape must be the shape of the inputs, {shape}, with 1 where they share a "
                f"draw, got {wanted}"
            )
        return [d for d, n in enumerate(wanted) if n == 1]


@keras.saving.register_keras_serializable("fastdrop")
class Dropout(Layer, keras.layers.Dropout):
    """`fastdrop.dropout`, for ``keras.layers.Dropout``; at inference inputs pass through.

    Parameters
    ----------
    rate : float
        Drop rate in [0, 1].
    noise_shape : tuple of int or None, optional
        As the input's shape, with 1 along axes that share a draw: ``(None, 1, None)`` drops
        features of a whole sequence.
    seed : int, optional
        Random if omitted.
    """

    op = "dropout"


@keras.saving.register_keras_serializable("fastdrop")
class SpatialDropout1D(Layer, keras.layers.SpatialDropout1D):
    """Drops features of whole sequences, (batch, steps, features); arguments of Keras's layer."""

    op = "dropout"


@keras.saving.register_keras_serializable("fastdrop")
class SpatialDropout2D(Layer, keras.layers.SpatialDropout2D):
    """Drops whole maps of images; arguments of Keras's layer."""

    op = "dropout"


@keras.saving.register_keras_serializable("fastdrop")
class SpatialDropout3D(Layer, keras.layers.SpatialDropout3D):
    """Drops whole maps of volumes; arguments of Keras's layer."""

    op = "dropout"


@keras.saving.register_keras_serializable("fastdrop")
class AlphaDropout(Layer, keras.layers.AlphaDropout):
    """`fastdrop.alpha_dropout`; arguments as of `Dropout`."""

    op = "alpha_dropout"


@keras.saving.register_keras_serializable("fastdrop")
class GaussianDropout(Layer, keras.layers.GaussianDropout):
    """`fastdrop.gaussian_dropout`.

    Parameters
    ----------
    rate : float
        Rate in [0, 1) of the dropout that has this variance.
    seed : int, optional
    """

    op = "gaussian_dropout"


@keras.saving.register_keras_serializable("fastdrop")
class GaussianNoise(Layer, keras.layers.GaussianNoise):
    """`fastdrop.gaussian_noise`.

    Parameters
    ----------
    stddev : float
        Standard deviation, in [0, 1] as Keras wants it.
    seed : int, optional
    """

    op = "gaussian_noise"


OURS = {getattr(keras.layers, kind.__name__): kind for kind in Layer.__subclasses__()}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


def replace(model: Any) -> Any:
    """Changes all of Keras's dropout and noise layers in a model to fastdrop's, in place.

    Names, weights and seeds stay, and so does what the model was compiled with.

    Parameters
    ----------
    model : keras.Model
        Or a layer that has layers.

    Returns
    -------
    keras.Model
        The same.

    Raises
    ------
    NotImplementedError
        Another backend of Keras.
    """
    _backend()
    for layer in model._flatten_layers():
        if type(layer) in OURS:
            layer.__class__ = OURS[type(layer)]
            _prepare(layer)
    if keras.backend.backend() == "tensorflow" and hasattr(model, "jit_compile"):
        model.jit_compile = False
    return _traced_again(model)


def restore(model: Any) -> Any:
    """Changes all of fastdrop's layers in a model to Keras's, in place; undoes `replace`.

    Parameters
    ----------
    model : keras.Model
        Or a layer that has layers.

    Returns
    -------
    keras.Model
        The same.
    """
    for layer in model._flatten_layers():
        if type(layer) in THEIRS:
            layer.__class__ = THEIRS[type(layer)]
            layer.supports_jit = True
            del layer.fastdrop_state
    return _traced_again(model)


def _prepare(layer: Any) -> None:
    """What a layer of ours has beside that of Keras."""
    layer.supports_jit = keras.backend.backend() != "tensorflow"  # XLA knows no operation of ours
    layer.fastdrop_state = State(layer)


def _traced_again(model: Any) -> Any:
    """A model without the functions that were compiled from its layers."""
    for name in ("train_function", "test_function", "predict_function"):
        if getattr(model, name, None) is not None:
            setattr(model, name, None)
    return model


def _torch(*what: Any) -> Any:
    from fastdrop.adapters.keras.torch import drop

    return drop(*what)


def _jax(op: str, x: Any, amount: float, generator: Any, shared_axes: list[int]) -> Any:
    from fastdrop.adapters import jax

    state = generator.next()
    how = {"key": state[0], "call": state[1], "shared_axes": shared_axes}
    return getattr(jax, op)(x, amount, **how)


def _tensorflow(*what: Any) -> Any:
    from fastdrop.adapters.keras.tensorflow import drop

    return drop(*what)


BACKENDS = {"torch": _torch, "jax": _jax, "tensorflow": _tensorflow}


def _backend() -> Any:
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise NotImplementedError(
            f"fastdrop has no layer for the {name} backend of Keras; set KERAS_BACKEND to one of "
            f"{', '.join(BACKENDS)} before Keras is imported"
        )
    return BACKENDS[name]
