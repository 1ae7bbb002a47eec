"""Dropout timed on this machine, beside a copy, NumPy and frameworks: ``python -m fastdrop bench``.

All functions on arrays of one size, dtype and thread count are timed against each other (see
`fastdrop.timing`). Beside them stands a copy, the faster of np.copyto and np.multiply by 1: on a
shared machine, ratios to it repeat better than seconds. ``bench/`` times the same functions.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm

import fastdrop as fd
from fastdrop.tools.timing import fastest

Function = Callable[[], object]
Pair = tuple[Function, Function]  # forward and backward
Maker = Callable[[npt.NDArray[Any], npt.NDArray[Any], float], Pair]

EXPONENTS, SECONDS = range(8, 27, 2), 60.0  # sizes are powers of two
QUICK_EXPONENTS, QUICK_SECONDS = range(8, 17, 4), 2.0
RATES = 0.1, 0.2, 0.5, 0.9
DTYPES = "float32", "float64", "float16", "bfloat16"
COPIES = "copyto", "multiply by 1"


def copies(x: npt.NDArray[Any], y: npt.NDArray[Any]) -> dict[str, Function]:
    """The two ways to copy; which is faster depends on size and machine."""
    return {"copyto": lambda: np.copyto(y, x), "multiply by 1": lambda: np.multiply(x, 1, out=y)}


def fastdrop(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float, save: str = "bits") -> Pair:
    """This package; a new mask every time."""
    rng = fd.Rng(1)
    ctx = fd.dropout(x, p, rng=rng, out=y, save=save)[1]
    return (
        lambda: fd.dropout(x, p, rng=rng, out=y, save=save),
        lambda: ctx.backward(x, out=y),
    )


def naive(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> Pair:
    """The idiom of every tutorial."""
    rng = np.random.default_rng(0)
    keep = rng.random(x.shape) >= p
    return lambda: (rng.random(x.shape) >= p) * x / (1 - p), lambda: keep * x / (1 - p)


def tuned(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> Pair:
    """The fastest that NumPy does: SFC64, float32 uniforms, nothing allocated."""
    rng = np.random.Generator(np.random.SFC64(0))
    uniform = np.empty(x.shape, np.float32)
    keep = np.ones(x.shape, np.bool_)
    scale = x.dtype.type(1 / (1 - p))

    def backward() -> None:
        np.multiply(x, scale, out=y)
        np.multiply(y, keep, out=y)

    def forward() -> None:
        rng.random(dtype=np.float32, out=uniform)
        np.greater_equal(uniform, p, out=keep)
        backward()  # the same two products

    return forward, backward


def pytorch(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> Pair:
    """torch.nn.functional.dropout, on as many threads as fastdrop."""
    import torch

    torch.set_num_threads(fd.get_num_threads())
    # by way of float32: from_numpy knows no bfloat16
    dy = torch.from_numpy(x.astype(np.float32)).to(getattr(torch, x.dtype.name))
    leaf = dy.clone().requires_grad_()
    dropped = torch.nn.functional.dropout(leaf, p)
    return (
        lambda: torch.nn.functional.dropout(leaf, p),
        lambda: torch.autograd.grad(dropped, leaf, dy, retain_graph=True),
    )


def jax(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> Pair:
    """jax.random.bernoulli and where, compiled; the key is split inside."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # or float64 becomes float32
    dy, key = jax.device_put((x, jax.random.key(0)), jax.devices("cpu")[0])
    chance = np.float32(1 - p)  # its dtype is that of the uniforms

    @jax.jit
    def scaled(keep: Any, dy: Any) -> Any:
        return jnp.where(keep, dy * (1 / (1 - p)), 0)

    @jax.jit
    def dropout(key: Any, x: Any) -> tuple[Any, ...]:
        key, draw = jax.random.split(key)
        keep = jax.random.bernoulli(draw, chance, x.shape)
        return key, keep, scaled(keep, x)

    keep = dropout(key, dy)[1]

    def forward() -> None:
        nonlocal key
        key, _, dropped = dropout(key, dy)
        dropped.block_until_ready()

    return forward, lambda: scaled(keep, dy).block_until_ready()


def tensorflow(x: npt.NDArray[Any], y: npt.NDArray[Any], p: float) -> Pair:
    """tf.nn.dropout, eager."""
    import tensorflow as tf

    def forward() -> Any:
        with tf.device("/CPU:0"):
            return tf.nn.dropout(leaf, rate=p)

    with tf.device("/CPU:0"), tf.GradientTape(persistent=True) as tape:
        leaf = tf.constant(x)
        tape.watch(leaf)
        dropped = forward()
    return forward, lambda: tape.gradient(dropped, leaf, leaf)


NUMPY: dict[str, Maker] = {"naive NumPy": naive, "tuned NumPy": tuned}
PEERS: dict[str, Maker] = {"PyTorch": pytorch, "JAX": jax, "TensorFlow": tensorflow}
STYLES: dict[str, dict[str, Any]] = {
    "a copy": {"color": "black", "linewidth": 2},
    "naive NumPy": {"color": "C7", "linestyle": ":"},
    "tuned NumPy": {"color": "C7", "linestyle": "--"},
    "PyTorch": {"color": "C1", "linestyle": "--"},
    "JAX": {"color": "C2", "linestyle": "--"},
    "TensorFlow": {"color": "C3", "linestyle": "--"},
}


def arrays(n: int, dtype: npt.DTypeLike) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """x and y."""
    x = np.random.default_rng(0).standard_normal(n, np.float32).astype(dtype)
    return x, np.empty_like(x)


def operations(
    n: int, dtype: npt.DTypeLike, p: float, others: dict[str, Maker] = NUMPY
) -> dict[str, Function]:
    """All that ``bench/`` times, each on the same x and y; a new call every time."""
    x, y = arrays(n, dtype)
    rng = fd.Rng(1)
    functions = copies(x, y)
    functions["forward"], functions["backward, bits"] = fastdrop(x, y, p)
    functions["forward, seed"], functions["backward, seed"] = fastdrop(x, y, p, save="seed")
    functions["keep_mask, packed"] = lambda: fd.keep_mask(n, p, rng=rng, packed=True)
    for name, maker in others.items():
        functions[f"{name}, forward"], functions[f"{name}, backward"] = maker(x, y, p)
    return functions


def dtypes() -> list[str]:
    """Those of `DTYPES` that fastdrop takes here."""
    with suppress(ImportError):
        import ml_dtypes  # noqa: F401  (NumPy knows bfloat16 from now on)
    taken = []
    for name in DTYPES:
        with suppress(TypeError):
            fd.dropout(np.ones(1, name), 0.5)
            taken.append(name)
    return taken


def thread_counts() -> list[int]:
    """One thread, and as many as fastdrop uses."""
    return sorted({1, fd.get_num_threads()})


def others(dtype: str) -> dict[str, Maker]:
    """NumPy and those frameworks that are installed and take this dtype."""
    working = dict(NUMPY)
    for name, maker in PEERS.items():
        try:
            for function in maker(*arrays(16, dtype), 0.5):
                function()
        except ImportError:
            continue
        except Exception as error:  # whatever it is, the others are still worth timing
            tqdm.write(f"{name}, {dtype}: left out, {error!r:.200}", file=sys.stderr)
            continue
        working[name] = maker
    return working


class Case(NamedTuple):
    """What is timed together."""

    dtype: str
    threads: int
    size: int


class Timing(NamedTuple):
    """How fast one function was. A copy has no direction and no rate."""

    dtype: str
    threads: int
    size: int
    name: str
    direction: str | None
    p: float | None
    seconds: float
    ns_per_element: float
    gb_per_s: float
    copies: float


def throughput(seconds: float, n: int, dtype: npt.DTypeLike) -> tuple[float, float]:
    """(ns an element, GB/s), where x is read and y is written."""
    return seconds / n * 1e9, 2 * n * np.dtype(dtype).itemsize / seconds / 1e9


def power(n: int) -> str:
    """A size as it is shown."""
    return f"2^{n.bit_length() - 1}"


def title(case: Case | Timing) -> str:
    """Dtype and thread count: what a table and a panel hold fixed."""
    return f"{case.dtype}, {case.threads} thread{'s' * (case.threads > 1)}"


def plan(sizes: Sequence[int], names: Sequence[str], threads: Sequence[int]) -> list[Case]:
    """The first dtype at every size, the others at every third, the largest first.

    What the largest take beyond their share of the time, the small ones save.
    """
    some = sizes[1::3] or sizes
    cases = [
        Case(name, count, n)
        for name in names
        for count in threads
        for n in (sizes if name == names[0] else some)
    ]
    return sorted(cases, key=lambda case: -case.size)


def measure(
    case: Case, rates: Sequence[float], makers: dict[str, Maker], seconds: float
) -> list[Timing]:
    """Time fastdrop at all rates and the others at the first, in about so many seconds.

    A minute would not do for the others at all rates. NumPy takes equally long at any; PyTorch
    does not, so its rate is shown with it.
    """
    x, y = arrays(case.size, case.dtype)
    functions: dict[Any, Function] = dict(copies(x, y))
    pairs: list[tuple[str, float, Maker]] = [("fastdrop", p, fastdrop) for p in rates]
    pairs += [(name, rates[0], maker) for name, maker in makers.items()]
    for name, p, maker in pairs:
        functions[name, "forward", p], functions[name, "backward", p] = maker(x, y, p)
    best = fastest(functions, seconds / len(functions), rounds=2)
    copy = min(best.pop(name) for name in COPIES)
    taken: dict[tuple[str, str | None, float | None], float]
    taken = {("a copy", None, None): copy, **best}
    return [
        Timing(*case, *key, t, *throughput(t, case.size, case.dtype), t / copy)
        for key, t in taken.items()
    ]


def run(cases: Sequence[Case], rates: Sequence[float], seconds: float) -> list[Timing]:
    """Time all cases in about so many seconds, by dtype, threads and size.

    However little time is given, each function is called a few times.
    """
    makers = {name: others(name) for name in dict.fromkeys(case.dtype for case in cases)}
    end = perf_counter() + seconds  # importing frameworks does not count
    order = list(makers)
    timings: list[Timing] = []
    threads = fd.get_num_threads()
    try:
        with tqdm(cases, unit="case") as bar:
            for done, case in enumerate(bar):
                bar.set_description(f"{power(case.size)} {title(case)}")
                fd.set_num_threads(case.threads)
                share = max(0.0, end - perf_counter()) / (len(cases) - done)
                timings += measure(case, rates, makers[case.dtype], share)
    finally:
        fd.set_num_threads(threads)
    return sorted(timings, key=lambda t: (order.index(t.dtype), t.threads, t.size))


def cpu() -> str:
    """The CPU's name, where Linux tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def description() -> dict[str, Any]:
    """The machine, and the version of everything that was timed."""
    modules = "numpy", "torch", "jax", "tensorflow"
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": cpu(),
            "logical_cpus": os.cpu_count(),
            "system": platform.platform(),
            "isa": fd.cpu_features()["isa"],
        },
        "versions": {
            "fastdrop": fd.__version__,
            "python": platform.python_version(),
            **{m: str(sys.modules[m].__version__) for m in modules if m in sys.modules},
        },
    }


def headline() -> str:
    """Machine and versions, a line each."""
    about = description()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"{about['machine']['cpu']}, {about['machine']['isa']} kernels\n{versions}"


def save_json(timings: Iterable[Timing], path: Path) -> None:
    """Every figure, and what it was measured on."""
    results = {**description(), "timings": [timing._asdict() for timing in timings]}
    path.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")


def by_title(timings: Iterable[Timing]) -> dict[str, list[Timing]]:
    """The timings of each dtype and thread count."""
    groups: dict[str, list[Timing]] = {}
    for t in timings:
        groups.setdefault(title(t), []).append(t)
    return groups


def label(t: Timing) -> str:
    """What was timed, at which rate."""
    return t.name if t.p is None else f"{t.name}, p={t.p:g}"


def table(timings: Iterable[Timing]) -> str:
    """A table for each dtype and thread count, a row for each size, function and rate."""
    headers = ["size", "", "forward", "GB/s", "copies", "backward", "GB/s", "copies"]
    blocks = [
        "forward, backward: nanoseconds an element. GB/s: x read and y written.\n"
        "copies: times a copy of x, the faster of np.copyto and np.multiply by 1 in the same run.\n"
        "JAX and TensorFlow use threads of their own, whatever the thread count."
    ]
    for name, group in by_title(timings).items():
        rows: dict[tuple[str, str], list[float]] = {}
        for t in group:  # forward comes before backward
            row = rows.setdefault((power(t.size), label(t)), [])
            row += t.ns_per_element, t.gb_per_s, t.copies
        lines = [[*key, *row] for key, row in rows.items()]
        blocks.append(f"{name}\n\n{tabulate(lines, headers, 'github', '.2f')}")
    return "\n\n".join(blocks)


def plot(timings: Sequence[Timing], path: Path) -> None:
    """Throughput of the first dtype against size: forward and backward, a row a thread count."""
    groups = by_title(t for t in timings if t.dtype == timings[0].dtype)
    figure = Figure(figsize=(12, 4.5 * len(groups)), layout="constrained")
    figure.suptitle(headline(), fontsize="small")
    axes = figure.subplots(len(groups), 2, sharex=True, sharey=True, squeeze=False)
    for row, (name, group) in zip(axes, groups.items(), strict=True):
        for axis, direction in zip(row, ("forward", "backward"), strict=True):
            draw(axis, [t for t in group if t.direction in (None, direction)])
            axis.set(title=f"{direction}, {name}", xlabel="elements", ylabel="GB/s")
            axis.label_outer()
    axes[0, 1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)


def draw(axis: Any, timings: Iterable[Timing]) -> None:
    """One panel: a blue line a rate, the copy as their roof, the others dashed."""
    lines: dict[str, list[Timing]] = {}
    for t in timings:
        lines.setdefault(label(t), []).append(t)
    ours = sum(line[0].name == "fastdrop" for line in lines.values())
    blues = iter(colormaps["Blues"](np.linspace(0.4, 1, ours)))
    for name, line in lines.items():
        style = STYLES.get(line[0].name) or {"color": next(blues), "marker": "."}
        axis.plot([t.size for t in line], [t.gb_per_s for t in line], label=name, **style)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
