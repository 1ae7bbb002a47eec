"""What is timed: fastdrop, a copy, and dropout as it is written in NumPy."""

from collections.abc import Callable

import numpy as np

import fastdrop as fd


def naive(x, p):
    """The idiom of every tutorial."""
    rng = np.random.default_rng(0)
    return lambda: (rng.random(x.shape) >= p) * x / (1 - p)


def tuned(x, p):
    """The fastest that NumPy does: SFC64, float32 uniforms, nothing allocated."""
    rng = np.random.Generator(np.random.SFC64(0))
    uniform = np.empty(x.shape, np.float32)
    keep = np.empty(x.shape, np.bool_)
    y = np.empty_like(x)
    scale = x.dtype.type(1 / (1 - p))

    def run():
        rng.random(dtype=np.float32, out=uniform)
        np.greater_equal(uniform, p, out=keep)
        np.multiply(x, scale, out=y)
        np.multiply(y, keep, out=y)

    return run


def operations(n, dtype, p) -> dict[str, Callable[[], object]]:
    """Each as a function without arguments, on the same x and y; a new call every time."""
    x = np.random.default_rng(0).standard_normal(n, np.float32).astype(dtype)
    y = np.empty_like(x)
    rng = fd.Rng(1)
    bits = fd.dropout(x, p, rng=rng, out=y)[1]
    seed = fd.dropout(x, p, rng=rng, out=y, save="seed")[1]
    return {
        "copyto": lambda: np.copyto(y, x),
        "multiply by 1": lambda: np.multiply(x, 1, out=y),
        "forward": lambda: fd.dropout(x, p, rng=rng, out=y),
        "forward, seed": lambda: fd.dropout(x, p, rng=rng, out=y, save="seed"),
        "backward, bits": lambda: bits.backward(x, out=y),
        "backward, seed": lambda: seed.backward(x, out=y),
        "keep_mask, packed": lambda: fd.keep_mask(n, p, rng=rng, packed=True),
        "naive NumPy": naive(x, p),
        "tuned NumPy": tuned(x, p),
    }
