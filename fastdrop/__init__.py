"""Dropout for NumPy: as fast as copying the array, the same mask everywhere."""

from fastdrop import layers, reference
from fastdrop.cpu import cpu_features, get_num_threads, set_num_threads
from fastdrop.functional import dropout, keep_mask
from fastdrop.rng import STREAM_VERSION, Rng

__version__ = "0.1.0"

__all__ = [
    "STREAM_VERSION",
    "Rng",
    "__version__",
    "cpu_features",
    "dropout",
    "get_num_threads",
    "keep_mask",
    "layers",
    "reference",
    "set_num_threads",
]
