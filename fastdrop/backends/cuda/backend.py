"""The GPU backend: `fastdrop.backends.interface.Backend` for arrays in a device's memory.

Kernels go to the CUDA stream that is the caller's present one, and nothing waits for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastdrop.backends.cuda import arrays, launch, masks, rows, squares
from fastdrop.backends.cuda import linear as layers
from fastdrop.backends.cuda import noise as noises
from fastdrop.backends.cuda.arrays import DeviceArray


def _delivers(function: Callable[..., Any]) -> Any:
    """The function, whose results are arrays of the caller's library."""

    def of_the_caller(result: Any) -> Any:
        return result.array if isinstance(result, DeviceArray) else result

    def delivering(*args: Any, **kwargs: Any) -> Any:
        results = function(*args, **kwargs)
        if type(results) is tuple:
            return tuple(map(of_the_caller, results))
        return of_the_caller(results)

    return staticmethod(delivering)


class Cuda:
    """Operands are `DeviceArray`; results are arrays of the caller's library."""

    @staticmethod
    def require() -> None:
        """Raises RuntimeError where no kernel can run."""
        launch.where()

    fetched = staticmethod(arrays.fetched)
    nbytes = staticmethod(arrays.nbytes)

    array = staticmethod(arrays.array)
    floats = staticmethod(masks.floats)
    numbers = _delivers(rows.numbers)
    bring = staticmethod(masks.bring)
    held = result = _delivers(lambda x: x)

    @staticmethod
    def output(out: Any, x: DeviceArray, *others: Any) -> tuple[Any, ...]:
        return (None if out is None else arrays.output(out, x), x, *others)  # kernels see overlaps

    copy = _delivers(masks.copied)
    apart = _delivers(masks.kept_from)
    zeros_like = _delivers(masks.zeros_like)

    forward = _delivers(masks.forward)
    select = _delivers(masks.select)
    split = _delivers(masks.split)
    select_and_sum = _delivers(noises.select_and_sum)
    blend = _delivers(masks.blend)
    weighted = _delivers(masks.weighted)
    keep_mask = _delivers(masks.keep_mask)

    noise = _delivers(noises.noise)
    chain = _delivers(noises.chain)

    @staticmethod
    def noise_gradients(*operands: Any) -> tuple[Any, DeviceArray]:
        dx, terms = noises.noise_gradients(*operands)
        return dx.array, terms

    lookup = _delivers(rows.lookup)
    add_rows = _delivers(rows.add_rows)

    keep_squares = staticmethod(squares.keep_squares)
    apply_squares = _delivers(squares.apply_squares)

    linear = _delivers(layers.linear)
    linear_gradients = _delivers(layers.linear_gradients)
    add_bias = _delivers(layers.add_bias)
    column_sums = _delivers(layers.column_sums)


CUDA = Cuda()
