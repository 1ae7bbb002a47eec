"""Where an array is. Imports no array library."""

from typing import Any

import numpy as np

DLPACK_CUDA = 2  # kDLCUDA


def on_device(x: Any) -> bool:
    """Whether x lives in a GPU's memory."""
    if type(x) is np.ndarray or isinstance(x, np.ndarray | np.generic | float | int | list | tuple):
        return False
    try:
        is_cuda = getattr(x, "is_cuda", None)  # PyTorch; its interface knows no bfloat16
        if isinstance(is_cuda, bool):
            return is_cuda
        if hasattr(x, "__cuda_array_interface__") or hasattr(x, "copy_to_host"):  # the simulator's
            return True
        return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) == DLPACK_CUDA
    except Exception:  # an array library's own words on an array it cannot export
        return False
