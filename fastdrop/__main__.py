"""The command line: ``python -m fastdrop info``, ``train`` and ``bench``."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np

import fastdrop as fd
from fastdrop._core import BUILD
from fastdrop.backends.cuda import launch, prebuilt
from fastdrop.studies import STUDIES
from fastdrop.tools.advice import advice

SUMMARY = "Dropout for NumPy: one pass of vectorised C, and the same mask everywhere."


def info(args: argparse.Namespace) -> None:
    """Print what was picked on this machine, and what would make it faster."""
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
    found = list(advice())
    print("to be faster" if found else "to be faster    nothing to do")
    for sentence in found:
        print(f"  - {sentence}")


def train(args: argparse.Namespace) -> None:
    """Train networks without and with dropout: a table, pictures and a record of every figure."""
    options = {k: v for k, v in vars(args).items() if k not in ("run", "study", "out", "argv")}
    try:
        from fastdrop.studies import study

        again = [arg for arg in args.argv if arg != "--resume"] + ["--resume"]
        command = shlex.join(["python", "-m", "fastdrop", *again])
        out = args.out or Path("fastdrop-train") / args.study
        study.execute(args.study, out, again=command, **options)
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
    try:
        args.out.mkdir(parents=True, exist_ok=True)  # now, as timing takes long
    except OSError as error:
        sys.exit(f"--out: {args.out}: {error.strerror}: give a folder that can be written to")
    timings = timed.run(cases, args.rates or timed.RATES, args.seconds or seconds)
    timed.save_json(timings, args.out / "bench.json")
    timed.plot(timings, args.out / "bench.png")
    print(f"{timed.headline()}\n\n{timed.table(timings)}\n\nfigures: {args.out / 'bench.json'}")
    print(f"picture: {args.out / 'bench.png'}")


def _number(
    kind: Callable[[str], Any], is_right: Callable[[Any], bool], wanted: str
) -> Callable[[str], Any]:
    """What reads an option's number, and says what it wants where it gets something else."""

    def read(text: str) -> Any:
        try:
            if is_right(value := kind(text)):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"must be {wanted}, got {text!r}")

    return read


_rate = _number(float, lambda p: 0.0 < p < 1.0, "a number between 0 and 1")
_fraction = _number(float, lambda p: 0.0 <= p < 1.0, "a number from 0 to below 1")
_seconds = _number(float, lambda s: 0.0 < s < float("inf"), "a positive number")
_count = _number(int, lambda n: n >= 1, "a whole number, at least 1")
_seed = _number(int, lambda n: 0 <= n < 2**64, "a whole number from 0 to 2**64 - 1")
_threads = _number(int, lambda n: 1 <= n <= 1024, "a whole number from 1 to 1024")
_exponent = _number(int, lambda e: 1 <= e <= 40, "a whole number from 1 to 40")


class _Different(argparse.Action):
    """Several values, of which no two are the same."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        twice = [value for k, value in enumerate(values) if value in values[:k]]
        if twice:
            raise argparse.ArgumentError(self, f"has {twice[0]} twice: give it once")
        setattr(namespace, self.dest, values)


def commands() -> argparse.ArgumentParser:
    """All that there is, and its options."""
    parser = argparse.ArgumentParser(prog="python -m fastdrop", description=SUMMARY)
    parser.set_defaults(run=lambda _: parser.print_help())
    added = parser.add_subparsers(metavar="COMMAND")

    command = added.add_parser("info", help=info.__doc__, description=info.__doc__)
    command.set_defaults(run=info)

    command = added.add_parser(
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
        default=next(iter(STUDIES)),
        help="one of those below; the first if omitted",
    )
    command.add_argument(
        "--data",
        metavar="DIR",
        help="folder with MNIST's own files, or others in their format (IDX), such as those of "
        "Debian's package dataset-fashion-mnist, gzipped or not; or with CIFAR-10's batches, "
        "binary or pickled; or one of mnist (downloaded once), digits (scikit-learn's), synthetic "
        "(default: that of the study; digits if that is mnist and cannot be downloaded)",
    )
    command.add_argument(
        "--label-noise",
        type=_fraction,
        metavar="FRACTION",
        help="of the labels to train, replaced by another class at random; those to validate and "
        "to test stay right (default: that of the study)",
    )
    command.add_argument("--epochs", type=_count, help="passes over the training set")
    command.add_argument(
        "--seed",
        type=_seed,
        nargs="+",
        action=_Different,
        dest="seeds",
        metavar="N",
        help="each decides split, weights, order and masks of one more run (default: 0 1 2 3 4)",
    )
    command.add_argument("--threads", type=_threads, help="of BLAS and of fastdrop")
    command.add_argument("--quick", action="store_true", help="a minute or less, on little data")
    command.add_argument("--resume", action="store_true", help="go on with what is in --out")
    command.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="for record.json, pictures and unfinished runs (default: fastdrop-train/STUDY)",
    )

    command = added.add_parser("bench", help=bench.__doc__, description=bench.__doc__)
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
        "--sizes",
        type=_exponent,
        nargs="+",
        action=_Different,
        metavar="E",
        help="2^E elements (default: 8 10 ... 26)",
    )
    command.add_argument(
        "--rates",
        type=_rate,
        nargs="+",
        action=_Different,
        metavar="P",
        help="drop rates; the others are timed at the first (default: 0.1 0.2 0.5 0.9)",
    )
    command.add_argument(
        "--dtypes",
        nargs="+",
        action=_Different,
        metavar="D",
        help="the first at every size, the others at every third (default: all fastdrop takes)",
    )
    command.add_argument(
        "--threads",
        type=_threads,
        nargs="+",
        action=_Different,
        metavar="N",
        help="thread counts (default: 1 and fastdrop's own)",
    )

    return parser


def main(argv: list[str] | None = None) -> None:
    """What ``python -m fastdrop`` and ``fastdrop`` do."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a console that has no ± shall not stop what runs
            stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    args = commands().parse_args(argv)
    args.argv = argv
    try:
        args.run(args)
        sys.stdout.flush()
    except OSError as error:
        sys.exit(f"{error.filename or 'standard output'}: {error.strerror or error}")


if __name__ == "__main__":
    main()
