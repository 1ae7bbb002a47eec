"""Dropout for thinc: ops that draw the masks of existing models, and a layer.

Importing this module registers both: the ops as "fastdrop" for `thinc.api.use_ops` and `get_ops`,
the layer as "fastdrop.Dropout.v1" for configs.

Examples
--------
thinc's own layers, with masks of fastdrop because of one line, learn handwritten digits:

>>> import fastdrop.adapters.thinc
>>> from sklearn.datasets import load_digits
>>> from thinc.api import Adam, Relu, Softmax, chain, fix_random_seed, to_categorical, use_ops
>>> fix_random_seed(0)
>>> x, t = load_digits(return_X_y=True)
>>> x, y = x.astype("f") / 16, to_categorical(t)
>>> with use_ops("fastdrop"):
...     model = chain(Relu(nO=64, dropout=0.2), Relu(nO=64, dropout=0.2), Softmax())
>>> _ = model.initialize(X=x, Y=y)
>>> optimizer = Adam(0.005)
>>> for _ in range(5):
...     for xb, yb in model.ops.multibatch(64, x, y, shuffle=True):
...         yh, backprop = model.begin_update(xb)
...         _ = backprop((yh - yb) / len(xb))
...         model.finish_update(optimizer)
>>> bool((model.predict(x).argmax(axis=1) == t).mean() > 0.9)
True

A model that is there already changes over with ``for node in model.walk(): node.ops = ops``.

Notes
-----
spaCy trains with these masks if a file of code says so, ``spacy train config.cfg --code
masks.py``::

    import fastdrop.adapters.thinc
    from thinc.api import get_ops, set_current_ops

    set_current_ops(get_ops("fastdrop"))

Its parser and entity recognizer compute a part of their steps with ops that they name themselves,
and draw the masks of that part with NumPy; taggers, text classifiers and token vectors are all
fastdrop's. In a config of thinc or spaCy the layer is ``@layers = "fastdrop.Dropout.v1"``.

On a GPU the ops are "fastdrop-cupy", thinc's for CuPy with masks that are drawn there: after
`thinc.api.require_gpu` or `spacy.require_gpu`, ``set_current_ops(get_ops("fastdrop-cupy"))``. They
are tested with arrays that stand for CuPy's, and have not been run on a GPU.
"""

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import srsly
from thinc.api import (
    CupyOps,
    Model,
    NumpyOps,
    Padded,
    Ragged,
    deserialize_attr,
    registry,
    serialize_attr,
)
from thinc.types import Shape

import fastdrop as fd
from fastdrop._core import Draw, Place
from fastdrop.ops import door
from fastdrop.rng import LayerRng, RngLike, draw_call, with_draw

__all__ = ["Dropout", "DropoutMixin", "FastdropCupyOps", "FastdropOps"]


def thincs_seed() -> int:
    """64 bits of the state that `thinc.api.fix_random_seed` sets."""
    return int.from_bytes(np.random.bytes(8), "little")  # noqa: NPY002


class DropoutMixin:
    """Draws the dropout masks of a class of thinc's ops: name it first among the bases.

    Parameters
    ----------
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        As for a layer of fastdrop; None draws a seed for each mask from NumPy's global state, so
        that `thinc.api.fix_random_seed` has the effect it is documented to have.
    *args, **kwargs
        Those of the ops.
    """

    xp: Any  # of the ops

    def __init__(self, *args: Any, rng: RngLike = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        shared = rng is None or isinstance(
            rng, fd.Rng | np.random.Generator | np.random.BitGenerator
        )
        self.rng = rng if shared else LayerRng.of(rng)

    def get_dropout_mask(self, shape: Shape, drop: float | None) -> Any:
        """float32: 0 with chance `drop`, else 1 / (1 - drop). All ones if `drop` is None or 0."""
        mask = self.xp.ones(shape, dtype="f")
        if drop is not None and drop > 0:
            p = min(drop, 1.0)

            def of_draw(draw: Draw) -> None:
                door.drop(mask, p, (draw.seed, draw.call), door.inverted(p), out=mask)

            with_draw(thincs_seed() if self.rng is None else self.rng, p, Place(()), of_draw)
        return mask


@registry.ops("FastdropOps")
class FastdropOps(DropoutMixin, NumpyOps):
    """thinc's `NumpyOps` with masks of fastdrop: ``use_ops("fastdrop")``."""

    name = "fastdrop"


@registry.ops("FastdropCupyOps")
class FastdropCupyOps(DropoutMixin, CupyOps):
    """thinc's `CupyOps` with masks of fastdrop: ``use_ops("fastdrop-cupy")``."""

    name = "fastdrop-cupy"


@registry.layers("fastdrop.Dropout.v1")
def Dropout(rate: float = 0.0, *, rng: RngLike = None) -> Model:
    """thinc's layer of this name, in one pass; it holds one bit an element for the backward pass.

    Parameters
    ----------
    rate : float
        Drop rate in [0, 1]; `thinc.api.set_dropout_rate` changes it.
    rng : Rng, int, None, SeedSequence, Generator or BitGenerator
        Seeds an `Rng` of the layer's own, which is saved with the model. An `Rng` gives it a child.
        None takes a seed from what `thinc.api.fix_random_seed` sets. A copy of the model, as in
        `thinc.api.clone`, gets seeds that follow from the model's, and draws other masks.

    Returns
    -------
    Model
        From and to an array, a list of them, Ragged or Padded; float32, as in thinc, or another
        dtype of fastdrop.
    """
    if isinstance(rng, fd.Rng):
        rng = rng.spawn(1)[0].seed
    own = LayerRng(*draw_call(thincs_seed() if rng is None else rng))
    return Model("dropout", forward, attrs={"dropout_rate": rate, "is_enabled": True, "rng": own})


def forward(model: Model, X: Any, is_train: bool) -> tuple[Any, Callable[..., Any]]:
    """What the layer does; see `Dropout`."""
    if not (is_train and model.attrs["is_enabled"]):
        return X, lambda dY: dY

    def drop(x: Any) -> tuple[Any, fd.Context]:
        return fd.dropout(x, model.attrs["dropout_rate"], rng=model.attrs["rng"])

    if isinstance(X, list | tuple):
        Ys, contexts = zip(*map(drop, X), strict=True) if X else ((), ())
        return list(Ys), lambda dYs: [
            ctx.backward(dY) for ctx, dY in zip(contexts, dYs, strict=True)
        ]
    if isinstance(X, Ragged | Padded):
        data, ctx = drop(X.data)
        return _with(X, data), lambda dY: _with(dY, ctx.backward(dY.data))
    Y, ctx = drop(X)
    return Y, ctx.backward


def _with(sequences: "Ragged | Padded", data: np.ndarray) -> Any:
    """The same sequences, other values."""
    sequences = copy(sequences)
    sequences.data = data
    return sequences


@serialize_attr.register(fd.Rng)
def _save(_: fd.Rng, rng: fd.Rng, name: str, model: Model) -> bytes:
    return srsly.msgpack_dumps(rng.state)


@deserialize_attr.register(fd.Rng)
def _load(_: fd.Rng, state: bytes, name: str, model: Model) -> fd.Rng:
    rng = LayerRng()
    rng.state = srsly.msgpack_loads(state)
    return rng
