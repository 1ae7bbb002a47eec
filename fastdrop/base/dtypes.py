"""Element types."""

from __future__ import annotations

import numpy as np

ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}
"""The dtypes that there are kernels for, and their bytes per element."""


def compute_type(dtype: np.dtype | str) -> type[np.floating]:
    """What is computed in: float64 for float64, float32 for all others."""
    return np.float64 if dtype == "float64" else np.float32
