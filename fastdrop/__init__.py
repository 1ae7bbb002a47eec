"""Dropout for NumPy: one pass of vectorised C, and the same mask everywhere.

Every op has one form: y, and a context that knows the way back.

>>> rng = fastdrop.Rng(1234)
>>> y, ctx = fastdrop.dropout(x, 0.2, rng=rng)
>>> dx = ctx.backward(dy)

`layers`
    The ops as layers with state: ``layer(x)``, ``layer.backward(dy)``.
`schedules`
    Rates as functions of the step.
`mc`
    Monte Carlo prediction: what a model that still drops says, over many passes.
`adapters`
    The ops inside PyTorch, JAX, Keras, scikit-learn, Dask, MPI, Numba, autograd and thinc: one
    module each, such as `fastdrop.adapters.torch`, imported by you.
`cuda`, `reference`
    The ops for arrays on a GPU alone; the slow model of every op in plain NumPy.
"""

try:
    import fastdrop._core  # noqa: F401, only to see that it is there
except ModuleNotFoundError as error:
    raise ImportError("fastdrop is not built; in a source tree run: pip install -e .") from error

import os as _os
from typing import TYPE_CHECKING as _TYPE_CHECKING

from fastdrop import cuda, layers, mc, reference, schedules
from fastdrop.backends.cpu import cpu_features, get_num_threads, set_num_threads
from fastdrop.base.watch import debug
from fastdrop.base.words import NAMES as _NAMES
from fastdrop.ops.adversarial import adversarial_dropout, kl_divergence, squared_divergence
from fastdrop.ops.alpha import alpha_dropout, feature_alpha_dropout
from fastdrop.ops.concrete import concrete_dropout, concrete_regularizer
from fastdrop.ops.dropblock import drop_block
from fastdrop.ops.dropconnect import dropconnect, dropconnect_inference
from fastdrop.ops.dropout import Context, dropout, keep_mask
from fastdrop.ops.fused import (
    bias_dropout_add,
    bias_gelu_dropout,
    bias_relu_dropout,
    dropout_add,
    relu_dropout,
)
from fastdrop.ops.gaussian import gaussian_dropout, gaussian_noise
from fastdrop.ops.shared import drop_path, embedding_dropout, locked_dropout, spatial_dropout
from fastdrop.ops.softmax import softmax_dropout
from fastdrop.ops.targeted import targeted_dropout, targeted_prune
from fastdrop.ops.variational import (
    sparse_variational_kl,
    sparse_variational_linear,
    variational_dropout,
    variational_kl,
)
from fastdrop.ops.zoneout import zoneout
from fastdrop.rng import STREAM_VERSION, Rng

__version__ = "0.1.0"

if not _TYPE_CHECKING:  # a type checker knows the names

    def __getattr__(name: str) -> object:
        """Where a name is that is not here."""
        for module in (layers, mc, schedules):
            if name in getattr(module, "__all__", vars(module)):
                raise AttributeError(f"fastdrop has no {name}: it is {module.__name__}.{name}")
        told = f": it is {_NAMES[name]}" if name in _NAMES else "; see fastdrop.__all__"
        raise AttributeError(f"fastdrop has no {name}{told}")


def get_include() -> str:
    """The folder of ``fastdrop_api.h``, the kernels for C and Cython code."""
    return _os.path.join(_os.path.dirname(__file__), "include")


__all__ = [
    "STREAM_VERSION",
    "Context",
    "Rng",
    "__version__",
    "adversarial_dropout",
    "alpha_dropout",
    "bias_dropout_add",
    "bias_gelu_dropout",
    "bias_relu_dropout",
    "concrete_dropout",
    "concrete_regularizer",
    "cpu_features",
    "cuda",
    "debug",
    "drop_block",
    "drop_path",
    "dropconnect",
    "dropconnect_inference",
    "dropout",
    "dropout_add",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "get_include",
    "get_num_threads",
    "keep_mask",
    "kl_divergence",
    "layers",
    "locked_dropout",
    "mc",
    "reference",
    "relu_dropout",
    "schedules",
    "set_num_threads",
    "softmax_dropout",
    "sparse_variational_kl",
    "sparse_variational_linear",
    "spatial_dropout",
    "squared_divergence",
    "targeted_dropout",
    "targeted_prune",
    "variational_dropout",
    "variational_kl",
    "zoneout",
]
