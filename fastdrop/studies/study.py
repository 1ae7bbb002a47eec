"""What all studies share: runs that can be stopped and resumed, a record, tables and pictures."""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import fastdrop as fd
from fastdrop.studies.data import Data, DataError, Unreachable, load
from fastdrop.studies.files import write
from fastdrop.tools.bench import description

CHECKPOINT_SECONDS = 10.0  # between two checkpoints of a run, at least
TICKS = 1000  # of a progress bar, an epoch


class StudyError(Exception):
    """Something that the user can set right."""


@dataclass(frozen=True)
class Defaults:
    """What a study takes where the command line does not say."""

    epochs: int
    seeds: tuple[int, ...] = (0, 1, 2)
    data: str | None = "mnist"  # of those of `data.load`; None: the study takes no --data


class Trainer(Protocol):
    """One network in training, to be pickled between two epochs."""

    done: bool

    def epoch(self, data: Any, progress: Callable[[float], object]) -> dict[str, float]:
        """Train for an epoch, call progress with 0 ... 1, return a figure for each curve."""


@dataclass
class Run:
    """One network of a study: what was measured, and, if it was kept, the trained network."""

    name: str
    seed: int
    curves: dict[str, list[float]] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    trainer: Any = None
    complete: bool = False

    def last(self, key: str) -> float:
        """A measure, or the last point of a curve."""
        return self.measures[key] if key in self.measures else self.curves[key][-1]


class Session:
    """One call of a study.

    Attributes
    ----------
    epochs, seeds : int, tuple of int
        As the command line or the study's defaults have them.
    quick : bool
        Whether this is the one-minute version.
    runs : list of Run
        All that were begun, in order.
    """

    def __init__(
        self,
        study: str,
        defaults: Defaults,
        out: Path,
        *,
        data: str | None = None,
        epochs: int | None = None,
        seeds: Sequence[int] | None = None,
        quick: bool = False,
        resume: bool = False,
    ) -> None:
        if data is not None and defaults.data is None:
            raise StudyError(f"{study} takes no --data")
        self.study, self.out, self.quick, self.resume = study, out, quick, resume
        self.source, self.asked = data or defaults.data, data is not None
        self.epochs = epochs or defaults.epochs
        self.seeds = tuple(dict.fromkeys(defaults.seeds if seeds is None else seeds))
        self.runs: list[Run] = []
        self.tables: list[dict[str, Any]] = []
        self.pictures: dict[str, str] = {}
        self._data: dict[int, Data] = {}
        (out / "runs").mkdir(parents=True, exist_ok=True)
        if not resume:
            self._clear()

    def _clear(self) -> None:
        """Remove the runs of a study that was finished."""
        old, record = list((self.out / "runs").glob("*.pickle")), self.out / "record.json"
        if old and not (record.exists() and json.loads(record.read_text())["finished"]):
            raise StudyError(
                f"{self.out} holds a study that was stopped: --resume goes on with it; to begin "
                "anew, remove it or give another --out"
            )
        for path in old:
            path.unlink()

    def data(self, seed: int) -> Data:
        """The images, with the validation split of this seed."""
        if seed not in self._data:
            self._data = {seed: self._load(seed)}  # one at a time: they may be large
            print(self._data[seed], flush=True)
        return self._data[seed]

    def _load(self, seed: int) -> Data:
        """What was asked for, or nothing; where nothing was, digits do for what cannot be had."""
        assert self.source is not None, "a study of images has a source"
        try:
            return load(self.source, seed)
        except Unreachable as error:
            if self.asked:
                raise
            self.source = "digits"  # for all seeds to come
            print(f"{error}; as no --data was given, the digits are taken", file=sys.stderr)
            return load(self.source, seed)

    def fit(
        self,
        name: str,
        seed: int,
        start: Callable[[], Trainer],
        data: Any,
        *,
        finish: Callable[[Any, Any], dict[str, Any]] | None = None,
        epochs: int | None = None,
        keep: bool = False,
    ) -> Run:
        """Train one network, or go on with it, or take its figures if that was done already.

        Parameters
        ----------
        name, seed
            Name the run; a study has no two with the same.
        start : callable
            Makes the trainer: `nn.Training` or what has the methods of `Trainer`. Everything that
            decides the numbers to come must be part of it, and pickled.
        data
            Handed to ``trainer.epoch``; not pickled.
        finish : callable
            ``finish(trainer, data)`` after the last epoch: measures by name, arrays included. For
            `nn.Training` there is ``nn.Training.test``.
        epochs : int
            Other than the session's.
        keep : bool
            Whether the trainer is needed later: ``run.trainer``.
        """
        epochs = epochs or self.epochs
        settings = {
            "study": self.study,
            "data": str(data),
            "epochs": epochs,
            "threads": fd.get_num_threads(),  # with another number sums are rounded otherwise
        }
        path = self.out / "runs" / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower())}-{seed}.pickle"
        run = (self.resume and self._restore(path, settings)) or Run(name, seed, trainer=start())
        self.runs.append(run)
        if run.complete:
            return run
        trainer, saved = run.trainer, perf_counter()
        done = len(next(iter(run.curves.values()), ()))
        with tqdm(
            total=epochs * TICKS,
            initial=done * TICKS,
            desc=f"{name}, seed {seed}",
            bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}",
        ) as bar:
            while done < epochs and not trainer.done:

                def progress(part: float, done: int = done) -> None:
                    bar.update(int((done + part) * TICKS) - bar.n)

                row = trainer.epoch(data, progress)
                done += 1
                for key, value in row.items():
                    run.curves.setdefault(key, []).append(value)
                shown = {k: f"{v:.4f}" for k, v in row.items() if k.startswith("validation")}
                bar.set_postfix(epoch=done, **shown)
                if perf_counter() - saved > CHECKPOINT_SECONDS:
                    self._checkpoint(path, settings, run)
                    saved = perf_counter()
            run.measures = finish(trainer, data) if finish else {}
        run.complete = True
        if not keep:
            run.trainer = None
        self._checkpoint(path, settings, run)
        return run

    def _checkpoint(self, path: Path, settings: dict[str, Any], run: Run) -> None:
        write(path, pickle.dumps((settings, run), pickle.HIGHEST_PROTOCOL))
        self.record()

    def _restore(self, path: Path, settings: dict[str, Any]) -> Run | None:
        if not path.exists():
            return None
        try:
            before, run = pickle.loads(path.read_bytes())
        except Exception as error:  # a damaged pickle can raise anything
            raise StudyError(f"{path} is damaged ({error}): remove it to redo this run") from None
        other = [key for key, value in settings.items() if before[key] != value]
        if other:
            changes = "; ".join(f"{key} {before[key]}, now {settings[key]}" for key in other)
            raise StudyError(
                f"{path} was made with {changes}: give the same arguments, another --out, or no "
                "--resume"
            )
        return run

    def of(self, name: str) -> list[Run]:
        """The runs of one name, one for each seed."""
        return [run for run in self.runs if run.name == name]

    @property
    def seeds_shown(self) -> str:
        """What curves and their bands are drawn from, to begin a sentence with."""
        shown = ", ".join(map(str, self.seeds))
        return f"Mean and range of seeds {shown}" if len(self.seeds) > 1 else f"Seed {shown} alone"

    @property
    def names(self) -> list[str]:
        """Those of the runs, in their order."""
        return list(dict.fromkeys(run.name for run in self.runs))

    def table(self, title: str, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table and put it on record."""
        cells = [list(row) for row in rows]
        text = tabulate(cells, headers, "github", disable_numparse=True)
        print(f"\n{title}\n\n{text}", flush=True)
        self.tables.append({"title": title, "headers": list(headers), "rows": cells})
        self.record()

    def picture(self, name: str, figure: Figure, sentence: str) -> None:
        """Draw a picture with a sentence under it: what it shows and what it does not."""
        width = figure.get_size_inches()[0]
        lines = textwrap.wrap(sentence, int(width * 13))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9)
        png = BytesIO()
        figure.savefig(png, format="png", dpi=120)
        write(self.out / name, png.getvalue())
        print(f"\n{self.out / name}: {sentence}", flush=True)
        self.pictures[name] = sentence
        self.record()

    def record(self, finished: bool = False) -> None:
        """Write what there is so far to record.json."""
        arguments = {"epochs": self.epochs, "seeds": self.seeds, "quick": self.quick}
        record = {
            **description(),
            "study": self.study,
            "finished": finished,
            "arguments": {**arguments, "data": self.source, "threads": fd.get_num_threads()},
            "runs": self.runs,
            "tables": self.tables,
            "pictures": self.pictures,
        }
        text = json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=False)
        write(self.out / "record.json", f"{text}\n".encode())


def _plain(value: Any) -> Any:
    """The same as JSON has it: no arrays, no NaN."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Run):
        return {k: _plain(v) for k, v in vars(value).items() if k != "trainer"}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spread(values: Iterable[float], digits: int = 4) -> str:
    """Mean and standard deviation of what the seeds gave, as in "0.9841 ± 0.0004"."""
    values = list(values)
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def difference(runs: Sequence[Run], others: Sequence[Run], key: str) -> str:
    """How much higher a measure of some runs is, seed by seed, in words that say if it is sure."""
    by = np.array([a.last(key) - b.last(key) for a, b in zip(runs, others, strict=True)])
    if np.all(by > 0) or np.all(by < 0):
        seeds = "with every seed" if len(by) > 1 else "with one seed, which proves little"
        return f"{'higher' if by[0] > 0 else 'lower'} by {spread(np.abs(by))} {seeds}"
    return f"not clearly different (by {spread(by)})"


def draw(axis: Axes, runs: Sequence[Run], curve: str, **style: Any) -> None:
    """A curve of several seeds: their mean, and from the lowest to the highest in a light band."""
    length = min(len(run.curves[curve]) for run in runs)  # early stopping makes them differ
    values = np.array([run.curves[curve][:length] for run in runs])
    epochs = np.arange(1, length + 1)
    (line,) = axis.plot(epochs, values.mean(axis=0), **style)
    axis.fill_between(
        epochs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0
    )


def label_axis(axis: Axes, what: str, title: str) -> None:
    """What is drawn against the epoch."""
    axis.set(xlabel="epoch", ylabel=what, title=title)
    axis.grid(alpha=0.3)
    axis.legend()


def execute(
    study: str, out: Path, *, threads: int | None = None, quick: bool = False, **options: Any
) -> None:
    """Run a study; whatever stops it, what was done is kept and a line says how to go on."""
    module = import_module(f"fastdrop.studies.{study.replace('-', '_')}")
    before = fd.get_num_threads()
    session = None
    try:
        fd.set_num_threads(threads or before)
        with threadpool_limits(threads or before, "blas"):
            defaults = module.QUICK if quick else module.FULL
            session = Session(study, defaults, out, quick=quick, **options)
            module.run(session)
            session.record(finished=True)
        print(f"\nfigures: {out / 'record.json'}")
    except (KeyboardInterrupt, DataError, StudyError, OSError, MemoryError) as error:
        message = str(error) or type(error).__name__
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        if session is not None and session.runs:
            with suppress(OSError):
                session.record()
            message += f"\nWhat was done is in {out}; the same command with --resume goes on."
        print(f"\n{message}", file=sys.stderr)
        sys.exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        fd.set_num_threads(before)
