"""Dropout for NumPy: as fast as copying the array, the same mask everywhere."""

try:
    import fastdrop._core  # noqa: F401, only to see that it is there
except ModuleNotFoundError as error:
    raise ImportError("fastdrop is not built; in a source tree run: pip install -e .") from error

from fastdrop import layers, reference
from fastdrop.adversarial import adversarial_dropout, kl_divergence, squared_divergence
from fastdrop.cpu import cpu_features, get_num_threads, set_num_threads
from fastdrop.functional import Context, dropout, keep_mask
from fastdrop.fused import bias_dropout_add, dropout_add, relu_dropout
from fastdrop.rng import STREAM_VERSION, Rng
from fastdrop.targeted import targeted_dropout, targeted_prune

__version__ = "0.1.0"

__all__ = [
    "STREAM_VERSION",
    "Context",
    "Rng",
    "__version__",
    "adversarial_dropout",
    "bias_dropout_add",
    "cpu_features",
    "dropout",
    "dropout_add",
    "get_num_threads",
    "keep_mask",
    "kl_divergence",
    "layers",
    "reference",
    "relu_dropout",
    "set_num_threads",
    "squared_divergence",
    "targeted_dropout",
    "targeted_prune",
]
