"""How fast each op is, beside what could be: a step of on_gpu.py, which says how to run it.

On one device, by its own clock, in one process: each op of fastdrop, a copy from device to device,
dropout written by hand for the least bytes (floor.cu), PyTorch's fused dropout, and CuPy. A line of
JSON goes to a file as soon as it is measured, and what stands there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from numba import cuda
from numba.core import config

import fastdrop as fd

P = 0.2
SIMULATED = bool(config.ENABLE_CUDASIM)
Functions = dict[str, tuple[Callable[[], object], float]]  # and bytes an element, moved at least


def timer() -> Callable[[], float]:
    """Seconds on the device's clock, when all that was launched before is done."""
    begin = cuda.event()
    begin.record()

    def now() -> float:
        event = cuda.event()
        event.record()
        event.synchronize()
        return begin.elapsed_time(event) / 1e3

    return now


def random(n: int, dtype: str) -> np.ndarray:
    """n numbers; those of many repeat."""
    few = np.random.default_rng(0).standard_normal(min(n, 1 << 20), np.float32)
    if dtype == "bfloat16":
        from ml_dtypes import bfloat16 as dtype  # type: ignore[no-redef]
    return np.resize(few.astype(dtype), n)


def sent(host: np.ndarray) -> Any:
    """On the device, in Numba's array, or in PyTorch's where Numba has no such dtype."""
    if host.dtype.name != "bfloat16":
        return cuda.to_device(host)
    import torch

    return torch.from_numpy(host.view(np.int16)).view(torch.bfloat16).cuda()


def operations(n: int, dtype: str) -> Functions:
    """What is timed on n elements, all on the default stream."""
    host = random(n, dtype)
    x, y, other = (sent(host) for _ in range(3))
    bias, size, rng = sent(host[:64]), host.itemsize, fd.Rng(1)
    rows, residual, result = (a.reshape(n // 64, 64) for a in (x, other, y))
    bits = fd.dropout(x, P, rng=rng)[1]
    seed = fd.dropout(x, P, rng=rng, save="seed")[1]
    copy = (lambda: y.copy_(x)) if dtype == "bfloat16" else (lambda: y.copy_to_device(x))
    saved = 2 * size + 1 / 8
    found: Functions = {
        "copy": (copy, 2 * size),
        "dropout": (lambda: fd.dropout(x, P, rng=rng, out=y), saved),
        "dropout, seed": (lambda: fd.dropout(x, P, rng=rng, out=y, save="seed"), 2 * size),
        "dropout, p = 1/2": (lambda: fd.dropout(x, 0.5, rng=rng, out=y), saved),
        "backward, bits": (lambda: bits.backward(x, out=y), saved),
        "backward, seed": (lambda: seed.backward(x, out=y), 2 * size),
        "dropout_add": (lambda: fd.dropout_add(x, other, P, rng=rng, out=y), 3 * size + 1 / 8),
        "bias_dropout_add": (
            lambda: fd.bias_dropout_add(rows, bias, residual, P, rng=rng, out=result),
            3 * size + 1 / 8,
        ),
        "relu_dropout": (lambda: fd.relu_dropout(x, P, rng=rng, out=y), saved),
        "bias_relu_dropout": (
            lambda: fd.bias_relu_dropout(rows, bias, P, rng=rng, out=result),
            saved,
        ),
        "bias_gelu_dropout": (
            lambda: fd.bias_gelu_dropout(rows, bias, P, rng=rng, out=result),
            saved,
        ),
        "alpha_dropout": (lambda: fd.alpha_dropout(x, P, rng=rng, out=y), saved),
        "zoneout": (lambda: fd.zoneout(x, other, P, rng=rng), 3 * size + 1 / 8),
        "gaussian_dropout": (lambda: fd.gaussian_dropout(x, P, rng=rng, out=y), 2 * size),
        "concrete_dropout": (lambda: fd.concrete_dropout(x, -1.0, rng=rng), 2 * size),
        "variational_dropout": (lambda: fd.variational_dropout(x, -1.0, rng=rng), 2 * size),
    }
    images, to = (a.reshape(n // 256, 4, 8, 8) for a in (x, y))
    ids = cuda.to_device(np.random.default_rng(1).permutation(n // 64))
    found |= {
        "drop_block": (lambda: fd.drop_block(images, P, 3, rng=rng, out=to), saved),
        "embedding_dropout": (lambda: fd.embedding_dropout(rows, P, ids=ids, rng=rng), 2 * size),
    }
    if size >= 4:  # n products
        side = isqrt(n // 64)
        batch, weight = (cuda.to_device(host[: k * side].reshape(k, side)) for k in (64, side))
        found["dropconnect"] = (lambda: fd.dropconnect(batch, weight, p=P, rng=rng), 0.0)
    for peer in (pytorch, adapter, cupy, by_hand):
        try:
            found |= peer(host)
        except Exception as error:  # whatever it is, the others are still worth timing
            print(f"{peer.__name__} left out: {error!r:.200}", file=sys.stderr)
    return found


def tensor(host: np.ndarray) -> Any:
    """In PyTorch, on the device; in a rehearsal, in the host's memory."""
    import torch

    is_bfloat16 = host.dtype.name == "bfloat16"
    x = torch.from_numpy(host.view(np.int16) if is_bfloat16 else host)
    x = x.to("cpu" if SIMULATED else "cuda")
    return x.view(torch.bfloat16) if is_bfloat16 else x


def pytorch(host: np.ndarray) -> Functions:
    import torch

    x, size = tensor(host), host.itemsize
    _, mask = torch.native_dropout(x, P, True)
    backward = torch.ops.aten.native_dropout_backward
    return {
        "PyTorch": (lambda: torch.native_dropout(x, P, True), 2 * size + 1),
        "PyTorch, backward": (lambda: backward(x, mask, 1 / (1 - P)), 2 * size + 1),
        "PyTorch, its module": (torch_call(torch.nn.Dropout(P), x), 2 * size),
    }


def adapter(host: np.ndarray) -> Functions:
    """What a PyTorch program sees of fastdrop: the module, with all that is around the kernel."""
    from fastdrop.adapters.torch import Dropout

    return {
        "adapter, its module": (torch_call(Dropout(P, seed=1), tensor(host)), 2 * host.itemsize)
    }


def torch_call(module: Any, x: Any) -> Callable[[], object]:
    return lambda: module(x)


def cupy(host: np.ndarray) -> Functions:
    import cupy as cp

    x, scale = cp.asarray(host), host.dtype.type(1 / (1 - P))
    y = cp.empty_like(x)
    scaled = cp.ElementwiseKernel("T x, T scale", "T y", "y = x * scale", "scaled")

    def forward() -> object:
        keep = cp.random.random(x.shape, np.float32) >= P
        return x * keep * scale

    return {
        "CuPy": (forward, 2 * host.itemsize + 1),
        "CuPy, element-wise": (lambda: scaled(x, scale, y), 2 * host.itemsize),
    }


def by_hand(host: np.ndarray) -> Functions:
    """floor.cu, which knows two dtypes; CuPy compiles it."""
    if host.dtype.name not in ("float32", "float16"):
        return {}
    import cupy as cp

    code = Path(__file__).with_name("floor.cu").read_text()
    kernel = cp.RawModule(code=code).get_function(f"floor_{host.dtype.name}")
    x, n = cp.asarray(host), np.uint64(host.size)
    y, scale = cp.empty_like(x), host.dtype.type(1 / (1 - P))
    width = 8 * host.itemsize
    if width == 16:  # twice
        scale = np.repeat(scale, 2).view(np.uint32)[0]
    blocks = int(min(8192, -(-host.nbytes // (16 * 128))))
    arguments = x, y, n, np.uint32(P * 2**width), scale, np.uint32(1), np.uint32(0)
    return {"by hand": (lambda: kernel((blocks,), (128,), arguments), 2 * host.itemsize)}


def seconds(
    function: Callable[[], object], now: Callable[[], float], runs: int, most: int
) -> float:
    """Median of runs, each of as many calls as take a millisecond, but at most so many."""
    function()
    begin = now()
    function()
    calls = int(min(most, max(1, 1e-3 / max(now() - begin, 1e-6))))
    measured = []
    for _ in range(runs):
        begin = now()
        for _ in range(calls):
            function()
        measured.append((now() - begin) / calls)
    return median(measured)


def host_seconds(
    function: Callable[[], object], now: Callable[[], float], runs: int, calls: int
) -> float:
    """What a call takes on the host's clock, which does not wait for the device: its launch."""
    measured = []
    for _ in range(runs):
        now()
        begin = perf_counter()
        for _ in range(calls):
            function()
        measured.append((perf_counter() - begin) / calls)
    return median(measured)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dtype", choices=("float32", "float64", "float16", "bfloat16"))
    parser.add_argument("--exponents", type=int, nargs="+", required=True, metavar="22")
    parser.add_argument("--out", type=Path, required=True, help="lines of JSON are added to it")
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--calls", type=int, default=50, help="of a run, at most")
    parser.add_argument("--once", action="store_true", help="one call each, for a profiler")
    options = parser.parse_args()
    if SIMULATED and options.dtype == "bfloat16":
        print("not run: the simulator has no arrays of bfloat16")
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    known = {
        tuple(json.loads(line)[key] for key in ("dtype", "exponent", "name")) for line in lines
    }
    now, count = timer(), 0
    for exponent in options.exponents:
        for name, (function, nbytes) in operations(2**exponent, options.dtype).items():
            if options.once:
                function()
                continue
            row = {"dtype": options.dtype, "exponent": exponent, "name": name}
            if tuple(row.values()) in known:
                continue
            try:
                taken = seconds(function, now, options.runs, options.calls)
                row |= {"seconds": taken, "bytes": nbytes * 2**exponent}
                if exponent == min(options.exponents):
                    row["host_seconds"] = host_seconds(
                        function, now, options.runs, min(options.calls, 20)
                    )
            except Exception as error:  # out of memory, for one: the others go on
                row["error"] = f"{error!r:.200}"
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            count += 1
        now()  # all is done before its memory goes away
    print(f"{count} timed")


if __name__ == "__main__":
    main()
