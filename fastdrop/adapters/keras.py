"""Dropout for Keras 3 on its PyTorch and JAX backends, in place of ``keras.layers.Dropout``.

An example::

    from fastdrop.adapters.keras import Dropout

    model = keras.Sequential([
        keras.layers.Dense(256, activation="relu"),
        Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    model.fit(x, t)
"""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["Dropout"]


@keras.saving.register_keras_serializable("fastdrop")
class Dropout(keras.layers.Dropout):
    """`fastdrop.dropout` as a layer; at inference inputs pass through.

    The layer's seed generator counts the calls, so the masks go on where a saved model was: call
    number k of a layer with ``seed=s`` has the mask of ``fastdrop.Rng(s, k)``.

    Parameters
    ----------
    rate : float
        Drop rate in [0, 1].
    noise_shape : tuple of int or None, optional
        As the input's shape, with 1 along axes that share a draw: ``(None, 1, None)`` drops
        features of a whole sequence.
    seed : int, optional
        Random if omitted.

    Raises
    ------
    NotImplementedError
        Another backend of Keras.
    RuntimeError
        PyTorch's backend computes the layer again for a backward pass (``keras.RematScope``).
    """

    def __init__(
        self, rate: float, noise_shape: Any = None, seed: int | None = None, **kwargs: Any
    ) -> None:
        if keras.backend.backend() not in BACKENDS:
            raise NotImplementedError(
                f"fastdrop has no layer for the {keras.backend.backend()} backend of Keras; set "
                f"KERAS_BACKEND to one of {', '.join(BACKENDS)} before Keras is imported"
            )
        super().__init__(rate, noise_shape, seed, **kwargs)

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training or self.rate == 0:
            return inputs
        dropped = BACKENDS[keras.backend.backend()]
        return dropped(inputs, self.rate, self.seed_generator.next(), self._shared_axes(inputs))

    def save_own_variables(self, store: Any) -> None:
        """The state of the seed generator, which Keras's layer leaves out."""
        if self.rate > 0:
            store["seed_generator"] = keras.ops.convert_to_numpy(self.seed_generator.state)

    def load_own_variables(self, store: Any) -> None:
        if self.rate > 0 and "seed_generator" in store:
            self.seed_generator.state.assign(store["seed_generator"])

    def _shared_axes(self, x: Any) -> list[int]:
        if self.noise_shape is None:
            return []
        wanted, shape = tuple(self.noise_shape), tuple(x.shape)
        fits = len(wanted) == len(shape)
        if not fits or any(n not in (None, 1, m) for n, m in zip(wanted, shape, strict=True)):
            raise ValueError(
                f"noise_shape must be the shape of the inputs, {shape}, with 1 where they share a "
                f"draw, got {wanted}"
            )
        return [d for d, n in enumerate(wanted) if n == 1]


def _torch(x: Any, rate: float, state: Any, shared_axes: list[int]) -> Any:
    import torch

    from fastdrop.adapters.torch.kernels import dropout_op

    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a Dropout was computed again in a backward pass, for which Keras counts a further "
            "call, so it would have another mask; keep it out of keras.RematScope"
        )
    return dropout_op(x, state, rate, shared_axes)


def _jax(x: Any, rate: float, state: Any, shared_axes: list[int]) -> Any:
    from fastdrop.adapters.jax import dropout

    return dropout(x, rate, key=state[0], call=state[1], shared_axes=shared_axes)


BACKENDS = {"torch": _torch, "jax": _jax}
