"""Is a GPU right, and how fast is it? ``python dev/gpu/on_gpu.py``

First the cases of tests/backends/cuda/device_cases.py run on the device, where every bit must be
the CPU's. Then each operation is timed with CUDA events, in one run with a copy from device to
device, which is the floor, and with PyTorch and CuPy if they are installed. One table is printed.
Without a GPU, or if a check fails, the exit status is not 0.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from math import isqrt
from pathlib import Path
from statistics import median

import numpy as np

import fastdrop as fd

P = 0.2
Functions = dict[str, tuple[Callable[[], object], float]]  # and bytes an element, moved at least


def checks(chosen: str | None) -> str:
    """Runs the tests on the device; what pytest says at the end."""
    tests = Path(__file__).parents[2] / "tests"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [
            *command,
            str(tests / "backends" / "cuda" / "device_cases.py"),
            *(["-k", chosen] if chosen else []),
        ],
        env=os.environ | {"FASTDROP_GPU": "1"},
        cwd=tests.parent,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}\nThe results on this GPU are wrong.")
    return re.search(r"\d+ passed.*", done.stdout)[0]


def timer() -> Callable[[], float]:
    """Seconds on the device's clock, when all that was launched before is done."""
    from numba import cuda

    begin = cuda.event()
    begin.record()

    def now() -> float:
        event = cuda.event()
        event.record()
        event.synchronize()
        return begin.elapsed_time(event) / 1e3

    return now


def operations(n: int, dtype: str) -> Functions:
    """What is timed on n elements, all on the default stream."""
    from numba import cuda

    host = np.random.default_rng(0).standard_normal(n, np.float32).astype(dtype)
    x, y, other = (cuda.to_device(host) for _ in range(3))
    bias, size, rng = cuda.to_device(host[:64]), host.itemsize, fd.Rng(1)
    rows, residual, result = (a.reshape(n // 64, 64) for a in (x, other, y))
    bits = fd.dropout(x, P, rng=rng)[1]
    seed = fd.dropout(x, P, rng=rng, save="seed")[1]
    found: Functions = {
        "copy": (lambda: y.copy_to_device(x), 2 * size),
        "dropout": (lambda: fd.dropout(x, P, rng=rng, out=y), 2 * size + 1 / 8),
        "dropout, seed": (lambda: fd.dropout(x, P, rng=rng, out=y, save="seed"), 2 * size),
        "dropout, p = 1/2": (lambda: fd.dropout(x, 0.5, rng=rng, out=y), 2 * size + 1 / 8),
        "backward, bits": (lambda: bits.backward(x, out=y), 2 * size + 1 / 8),
        "backward, seed": (lambda: seed.backward(x, out=y), 2 * size),
        "dropout_add": (lambda: fd.dropout_add(x, other, P, rng=rng, out=y), 3 * size + 1 / 8),
        "bias_dropout_add": (
            lambda: fd.bias_dropout_add(rows, bias, residual, P, rng=rng, out=result),
            3 * size + 1 / 8,
        ),
        "relu_dropout": (lambda: fd.relu_dropout(x, P, rng=rng, out=y), 2 * size + 1 / 8),
        "gaussian_dropout": (lambda: fd.gaussian_dropout(x, P, rng=rng, out=y), 2 * size),
    }
    images, to = (a.reshape(n // 256, 4, 8, 8) for a in (x, y))
    ids = cuda.to_device(np.random.default_rng(1).permutation(n // 64))
    found |= {
        "drop_block": (lambda: fd.drop_block(images, P, 3, rng=rng, out=to), 2 * size + 1 / 8),
        "embedding_dropout": (lambda: fd.embedding_dropout(rows, P, ids=ids, rng=rng), 2 * size),
    }
    if size >= 4:  # n products
        side = isqrt(n // 64)
        batch, weight = (cuda.to_device(host[: k * side].reshape(k, side)) for k in (64, side))
        found["dropconnect"] = (lambda: fd.dropconnect(batch, weight, p=P, rng=rng), 0.0)
    for peer in (pytorch, cupy):
        try:
            found |= peer(host)
        except Exception as error:  # whatever it is, the others are still worth timing
            print(f"{peer.__name__} left out: {error!r:.200}", file=sys.stderr)
    return found


def pytorch(host: np.ndarray) -> Functions:
    import torch

    size, x = host.itemsize, torch.from_numpy(host).cuda()
    _, mask = torch.native_dropout(x, P, True)
    backward = torch.ops.aten.native_dropout_backward
    return {
        "PyTorch": (lambda: torch.native_dropout(x, P, True), 2 * size + 1),
        "PyTorch, backward": (lambda: backward(x, mask, 1 / (1 - P)), 2 * size + 1),
    }


def cupy(host: np.ndarray) -> Functions:
    import cupy as cp

    x, scale = cp.asarray(host), host.dtype.type(1 / (1 - P))

    def forward() -> object:
        keep = cp.random.random(x.shape, np.float32) >= P
        return x * keep * scale

    return {"CuPy": (forward, 2 * host.itemsize + 1)}


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--exponents", type=int, nargs="+", default=[16, 22, 26], metavar="22")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--runs", type=int, default=21)
    parser.add_argument("--calls", type=int, default=100, help="of a run, at most")
    parser.add_argument("--checks", metavar="EXPRESSION", help="only these, as pytest -k")
    options = parser.parse_args()
    if reason := fd.cuda.why_not():
        sys.exit(f"No GPU: {reason}. Nothing was checked or timed.")

    from numba import cuda
    from tabulate import tabulate

    name = getattr(cuda.get_current_device(), "name", "no GPU, but Numba's simulator of one")
    print(f"{name.decode() if isinstance(name, bytes) else name}, fastdrop {fd.__version__}")
    print(f"bit-equal to the CPU: {checks(options.checks)}")
    now, rows = timer(), []
    for dtype in options.dtypes:
        for e in options.exponents:
            n, times = 2**e, {}
            for title, (function, nbytes) in operations(n, dtype).items():
                times[title] = t = np.float64(seconds(function, now, options.runs, options.calls))
                with np.errstate(divide="ignore", invalid="ignore"):  # the simulator takes no time
                    figures = t * 1e6, n * nbytes / t / 1e9, t / times["copy"]
                rows.append([dtype, f"2^{e}", title, *figures])
    headers = ["dtype", "elements", "", "us", "GB/s", "x copy"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "", "", ".1f", ".0f", ".2f")))


if __name__ == "__main__":
    main()
