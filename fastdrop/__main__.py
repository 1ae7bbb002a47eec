"""The command line: ``python -m fastdrop info``, ``train`` and ``bench``."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from io import TextIOWrapper
from pathlib import Path

import numpy as np

import fastdrop as fd
from fastdrop._core import BUILD
from fastdrop.backends.cuda import launch, prebuilt
from fastdrop.studies import STUDIES


def info(args: argparse.Namespace) -> None:
    """Print what was picked on this machine."""
    features = fd.cpu_features()
    print(f"fastdrop        {fd.__version__} (stream version {fd.STREAM_VERSION})")
    print(f"Python, NumPy   {platform.python_version()}, {np.__version__}")
    print(f"machine         {platform.machine()} {platform.system()}")
    print(f"built           by {BUILD}")
    print(f"kernels         {features['isa']} (available: {', '.join(features['available'])})")
    print(f"threads         {fd.get_num_threads()}")
    routes = launch.routes()
    chosen = next((name for name, reason in routes.items() if reason is None), None)
    print(f"CUDA            {f'{chosen} kernels' if chosen else 'not available'}")
    for name, reason in routes.items():
        print(f"  {name:14}{reason or 'available'}")
    if kernels := prebuilt.manifest():
        made_by = ", ".join(f"{name} {version}" for name, version in kernels["compilers"].items())
        print(f"  of {kernels['fastdrop']:11}{' '.join(kernels['code'])}; made by {made_by}")
        print(f"                of stream version {kernels['stream']}")


def train(args: argparse.Namespace) -> None:
    """Train networks without and with dropout: a table, pictures and a record of every figure."""
    options = {k: v for k, v in vars(args).items() if k not in ("run", "study", "out", "argv")}
    if args.study is None and args.data is None:
        options["data"] = "digits"  # there at once
    name = args.study or "mnist-mlp"
    try:
        from fastdrop.studies import study

        again = [arg for arg in args.argv if arg != "--resume"] + ["--resume"]
        command = shlex.join(["python", "-m", "fastdrop", *again])
        study.execute(name, args.out or Path("fastdrop-train") / name, again=command, **options)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        sys.exit(f"train needs {missing}: pip install 'fastdrop[demo]'")


def bench(args: argparse.Namespace) -> None:
    """Time dropout on this machine, beside a copy, NumPy and frameworks; print a table, draw it."""
    try:
        from fastdrop.tools import bench as timed
    except ModuleNotFoundError as error:
        sys.exit(f"bench needs {error.name}: pip install 'fastdrop[bench]'")
    taken = timed.dtypes()
    if refused := set(args.dtypes or ()) - set(taken):
        sys.exit(f"{', '.join(sorted(refused))}: fastdrop takes {', '.join(taken)} here")
    exponents, seconds = timed.EXPONENTS, timed.SECONDS
    if args.quick:
        exponents, seconds = timed.QUICK_EXPONENTS, timed.QUICK_SECONDS
    cases = timed.plan(
        [2**e for e in sorted(args.sizes or exponents)],
        args.dtypes or taken,
        args.threads or timed.thread_counts(),
    )
    timings = timed.run(cases, args.rates or timed.RATES, args.seconds or seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    timed.save_json(timings, args.out / "bench.json")
    timed.plot(timings, args.out / "bench.png")
    print(f"{timed.headline()}\n\n{timed.table(timings)}\n\nfigures: {args.out / 'bench.json'}")
    print(f"picture: {args.out / 'bench.png'}")


def _rate(text: str) -> float:
    p = float(text)
    if not 0.0 < p < 1.0:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, got {text}")
    return p


def _count(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return n


def _natural(text: str) -> int:
    n = int(text)
    if n < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return n


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return seconds


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m fastdrop", description=fd.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("info", help=info.__doc__, description=info.__doc__)
    command.set_defaults(run=info)

    command = commands.add_parser(
        "train",
        help=train.__doc__,
        description=train.__doc__,
        epilog="studies:\n" + "\n".join(f"  {name:16}{what}" for name, what in STUDIES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=train)
    command.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        choices=STUDIES,
        help="one of those below; mnist-mlp on digits if omitted",
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder with IDX files as MNIST's, gzipped or not, or CIFAR-10's batches, binary or "
        "pickled; or one of mnist (downloaded once), digits (scikit-learn's), synthetic",
    )
    command.add_argument("--epochs", type=_count, help="passes over the training set")
    command.add_argument(
        "--seed",
        type=_natural,
        nargs="+",
        dest="seeds",
        metavar="N",
        help="each decides split, weights, order and masks of one more run (default: 0 1 2)",
    )
    command.add_argument("--threads", type=_count, help="of BLAS and of fastdrop")
    command.add_argument("--quick", action="store_true", help="a minute or less, on little data")
    command.add_argument("--resume", action="store_true", help="go on with what is in --out")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for record.json, pictures and unfinished runs (default: fastdrop-train/STUDY)",
    )

    command = commands.add_parser("bench", help=bench.__doc__, description=bench.__doc__)
    command.set_defaults(run=bench)
    command.add_argument(
        "--out",
        type=Path,
        default=Path("fastdrop-bench"),
        help="folder for bench.json and bench.png (default: fastdrop-bench)",
    )
    command.add_argument("--quick", action="store_true", help="three small sizes in a few seconds")
    command.add_argument("--seconds", type=_seconds, help="about how long (default: 60)")
    command.add_argument(
        "--sizes", type=_count, nargs="+", metavar="E", help="2^E elements (default: 8 10 ... 26)"
    )
    command.add_argument(
        "--rates",
        type=_rate,
        nargs="+",
        metavar="P",
        help="drop rates; the others are timed at the first (default: 0.1 0.2 0.5 0.9)",
    )
    command.add_argument(
        "--dtypes",
        nargs="+",
        metavar="D",
        help="the first at every size, the others at every third (default: all fastdrop takes)",
    )
    command.add_argument(
        "--threads",
        type=_count,
        nargs="+",
        metavar="N",
        help="thread counts (default: 1 and fastdrop's own)",
    )

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a console that has no ± shall not stop what runs
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    args.argv = argv
    args.run(args)


if __name__ == "__main__":
    main()
