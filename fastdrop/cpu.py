"""The CPU backend: which compiled kernel serves which layout.

Arrays arrive checked, in native byte order; masks are packed, bit i of byte i // 8 first, with
`_core.BITS_PAD` bytes of room behind them.
"""

from __future__ import annotations

import operator

import numpy as np
import numpy.typing as npt

from fastdrop import _core
from fastdrop.draw import Draw, c_strides

# Kernel number of each element type, by NumPy's type number.
DTYPES = {np.dtype(np.float32).num: _core.FLOAT32, np.dtype(np.float64).num: _core.FLOAT64}


def empty_bits(n: int) -> npt.NDArray[np.uint8]:
    return np.empty((n + 7) // 8 + _core.BITS_PAD, np.uint8)


def keep_bits(draw: Draw) -> npt.NDArray[np.uint8]:
    """The packed mask."""
    bits = empty_bits(draw.size)
    shape, strides = draw.shape, draw.strides
    if strides is None:
        shape, strides = (draw.size,), (1,)
    _core.draw(bits, draw.seed, draw.call, draw.threshold, draw.start, shape, strides)
    return bits


def forward(
    x: npt.NDArray, out: npt.NDArray, draw: Draw, scale: float, save: bool
) -> npt.NDArray[np.uint8] | None:
    """out = x * scale where kept, else 0. Returns the packed mask if asked to."""
    if draw.strides is None and draw.shape == x.shape and _flat(x, out):
        bits = empty_bits(x.size) if save else None
        _core.dropout(
            x,
            out,
            bits,
            DTYPES[x.dtype.num],
            draw.seed,
            draw.call,
            draw.threshold,
            draw.start,
            scale,
        )
        return bits
    bits = keep_bits(draw)
    backward(x, out, bits, draw.shape, scale)
    return bits if save else None


def backward(
    dy: npt.NDArray,
    out: npt.NDArray,
    bits: npt.NDArray[np.uint8],
    mask_shape: tuple[int, ...],
    scale: float,
) -> None:
    """out = dy * scale where kept, else 0; the mask has length 1 along shared axes."""
    dtype = DTYPES[dy.dtype.num]
    if mask_shape == dy.shape and _flat(dy, out):
        _core.apply_flat(dy, out, bits, dtype, scale)
    else:
        strides = zip(c_strides(mask_shape), mask_shape, strict=True)
        _core.apply(dy, out, bits, dtype, tuple(s if n > 1 else 0 for s, n in strides), scale)


def _flat(x: npt.NDArray, out: npt.NDArray) -> bool:
    return x.flags.c_contiguous and out.flags.c_contiguous


def cpu_features() -> dict[str, object]:
    """Which kernels run here.

    Returns
    -------
    dict
        ``isa``: the instruction set in use; ``available``: all this CPU and build offer, the
        fastest first. The environment variable ``FASTDROP_ISA`` forces one at import.
    """
    return {"isa": _core.get_isa(), "available": _core.available_isas()}


def get_num_threads() -> int:
    """How many threads the kernels use."""
    return 1


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels may use, at least 1. For now they use one, whatever n."""
    if operator.index(n) < 1:
        raise ValueError(f"n must be at least 1, got {n}")
