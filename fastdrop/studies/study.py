"""What all studies share: runs that can be stopped and resumed, a record, tables and pictures."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from io import BytesIO
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tabulate import tabulate
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import fastdrop as fd
from fastdrop.base import watch
from fastdrop.studies import checkpoint
from fastdrop.studies.checkpoint import CheckpointError
from fastdrop.studies.data import Data, DataError, Unreachable, load
from fastdrop.studies.files import InUse, alone_in, write
from fastdrop.tools.bench import description

CHECKPOINT_SECONDS = 10.0  # between two checkpoints of a run, at least
TICKS = 1000  # of a progress bar, an epoch


class StudyError(Exception):
    """Something that the user can set right."""


@dataclass(frozen=True)
class Defaults:
    """What a study takes where the command line does not say."""

    epochs: int
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    data: str | None = "mnist"  # of those of `data.load`; None: no --data and no --label-noise
    label_noise: float = 0.0
    threads: int | None = None  # None: all; small networks are faster with one


class Trainer(Protocol):
    """One network in training, of which `checkpoint.state` is kept between two epochs."""

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

    @property
    def epochs(self) -> int:
        """How many are done."""
        return len(next(iter(self.curves.values()), ()))

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
        label_noise: float | None = None,
        epochs: int | None = None,
        seeds: Sequence[int] | None = None,
        quick: bool = False,
        resume: bool = False,
    ) -> None:
        if defaults.data is None:
            for option, given in (("--data", data), ("--label-noise", label_noise)):
                if given is not None:
                    raise StudyError(
                        f"{study} takes no {option}, as it learns a text: leave it out"
                    )
        self.study, self.out, self.quick, self.resume = study, out, quick, resume
        self.source, self.asked = defaults.data if data is None else data, data is not None
        self.label_noise = defaults.label_noise if label_noise is None else label_noise
        self.epochs = epochs or defaults.epochs
        self.seeds = tuple(defaults.seeds if seeds is None else seeds)
        self.runs: list[Run] = []
        self.tables: list[dict[str, Any]] = []
        self.pictures: dict[str, str] = {}
        self.data_name: str | None = None
        self._data: dict[int, Data] = {}
        (out / "runs").mkdir(parents=True, exist_ok=True)
        if any((out / "runs").glob("*.pickle")):
            raise StudyError(
                f"{out / 'runs'} has pickles, the checkpoints of an earlier fastdrop, which are "
                "not read, as a pickle can run code: remove them or give another --out"
            )
        if resume and not self._checkpoints():
            print(f"{out} has no run to go on with: all begin anew", file=sys.stderr)
        if not resume and self._checkpoints() and not self._is_finished():
            raise StudyError(
                f"{out} holds a study that was stopped: --resume goes on with it; to begin anew, "
                "remove it or give another --out"
            )

    def _checkpoints(self) -> list[Path]:
        return list((self.out / "runs").glob("*.npz"))

    def _is_finished(self) -> bool:
        """Whether the record says so that is there."""
        try:
            record = json.loads((self.out / "record.json").read_text(encoding="utf-8"))
            return bool(record["finished"])
        except FileNotFoundError:
            return False
        except (ValueError, TypeError, KeyError):
            raise StudyError(
                f"{self.out / 'record.json'} is damaged: remove it and go on with --resume, or "
                "give another --out"
            ) from None

    def data(self, seed: int, train: int | None = None, valid: int | None = None) -> Data:
        """The images, with the validation split of this seed: all, or so many to train and to
        validate.
        """
        if seed not in self._data:
            data = self._load(seed)
            if self.label_noise:
                data = data.with_wrong_labels(self.label_noise, seed)
            if train is not None:
                data = data.part(train, valid)
            self._data = {seed: data}  # one at a time: they may be large
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
        planned: bool = False,
        keep: bool = False,
    ) -> Run:
        """Train one network, or go on with it, or take its figures if that was done already.

        Parameters
        ----------
        name, seed
            Name the run; a study has no two with the same.
        start : callable
            Makes the trainer: `nn.Training` or what has the methods of `Trainer`. Everything that
            decides the numbers to come must be part of it: what `checkpoint.state` finds.
        data
            Handed to ``trainer.epoch``; its name is that of all that is shown.
        finish : callable
            ``finish(trainer, data)`` after the last epoch: measures by name, arrays included. For
            `nn.Training` there is ``nn.Training.test``.
        planned : bool
            Whether `start` knows the number of epochs, so that with another all epochs differ.
        keep : bool
            Whether the trainer is needed later: ``run.trainer``.
        """
        epochs = self.epochs
        settings = {
            "study": self.study,
            "data": str(data),
            "threads": fd.get_num_threads(),  # with another number sums are rounded otherwise
            **({"epochs": epochs} if planned else {}),
        }
        path = self.out / "runs" / f"{re.sub(r'[^a-z0-9.]+', '-', name.lower())}-{seed}.npz"
        trainer = start()
        run = Run(name, seed, trainer=trainer)
        if self.resume and path.exists():
            self._restore(path, settings, run)
        elif not self.resume and not self.runs:
            for old in self._checkpoints():  # not before the data is there and all is well
                old.unlink()
        self.data_name = data.name
        self.runs.append(run)
        if not run.complete:
            with _watched_alone():
                self._train(path, settings, run, data, finish)
        if not keep:
            run.trainer = None
        return run

    def _train(
        self,
        path: Path,
        settings: dict[str, Any],
        run: Run,
        data: Any,
        finish: Callable[[Any, Any], dict[str, Any]] | None,
    ) -> None:
        """The epochs that are missing."""
        epochs, trainer, saved = self.epochs, run.trainer, perf_counter()
        done = run.epochs
        with tqdm(
            total=epochs * TICKS,
            initial=done * TICKS,
            desc=f"{run.name}, seed {run.seed}",
            bar_format="{desc}: {percentage:3.0f} %|{bar}| {elapsed}<{remaining}{postfix}",
        ) as bar:
            while done < epochs and not trainer.done:

                def progress(part: float, done: int = done) -> None:
                    bar.update(int((done + part) * TICKS) - bar.n)

                row = trainer.epoch(data, progress)
                done += 1
                for key, value in row.items():
                    run.curves.setdefault(key, []).append(float(value))
                shown = {k: f"{v:.4f}" for k, v in row.items() if k.startswith("validation")}
                bar.set_postfix(epoch=done, **shown)
                if perf_counter() - saved > CHECKPOINT_SECONDS:
                    self._checkpoint(path, settings, run, checkpoint.state(trainer))
                    saved = perf_counter()
            state = checkpoint.state(trainer)  # with which more epochs may go on
            run.measures = finish(trainer, data) if finish else {}
        run.complete = True
        self._checkpoint(path, settings, run, state)

    def _checkpoint(
        self, path: Path, settings: dict[str, Any], run: Run, state: dict[str, Any]
    ) -> None:
        figures = {k: v for k, v in vars(run).items() if k != "trainer"}
        write(path, checkpoint.dumps({"settings": settings, **figures, "state": state}))
        self.record()

    def _restore(self, path: Path, settings: dict[str, Any], run: Run) -> None:
        """Take figures and numbers of a run from a file."""
        try:
            content = _checked(checkpoint.loads(path.read_bytes()), run)
            before = content["settings"]
            if before.keys() - {"epochs"} != settings.keys() - {"epochs"}:
                raise CheckpointError("it has other settings than a run of this study")
            other = [k for k in settings if before.get(k) != settings[k]]
            if other:
                changes = "; ".join(f"{k} {before.get(k)}, now {settings[k]}" for k in other)
                raise StudyError(
                    f"{path} was made with {changes}: give the same arguments, another --out, or "
                    "no --resume"
                )
            checkpoint.restore(run.trainer, content["state"])
        except CheckpointError as error:
            raise StudyError(
                f"{path} is damaged, or not of this run ({error}): remove it to redo this run"
            ) from None
        run.curves, run.measures = content["curves"], content["measures"]
        if run.epochs > self.epochs:
            raise StudyError(
                f"{path} has {run.epochs} epochs behind it: give --epochs {run.epochs} or more, or "
                "another --out"
            )
        run.complete = content["complete"] and (run.epochs == self.epochs or run.trainer.done)

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
        title = f"{title}; data: {self.data_name}"
        cells = [list(row) for row in rows]
        text = tabulate(cells, headers, "github", disable_numparse=True)
        print(f"\n{title}\n\n{text}", flush=True)
        self.tables.append({"title": title, "headers": list(headers), "rows": cells})
        self.record()

    def picture(self, name: str, figure: Figure, sentence: str) -> None:
        """Draw a picture with a sentence under it: what it shows and what it does not."""
        sentence = f"Data: {self.data_name}. {sentence}"
        width = figure.get_size_inches()[0]
        lines = textwrap.wrap(sentence, int(width * 13))
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=9)
        png = BytesIO()
        figure.savefig(png, format="png", dpi=120, metadata={"Description": sentence})
        write(self.out / name, png.getvalue())
        print(f"\n{self.out / name}: {sentence}", flush=True)
        self.pictures[name] = sentence
        self.record()

    def record(self, finished: bool = False) -> None:
        """Write what there is so far to record.json."""
        arguments = {
            "epochs": self.epochs,
            "seeds": self.seeds,
            "quick": self.quick,
            "data": self.source and Path(self.source).resolve().name,  # a path is the machine's
            "label noise": self.label_noise,
            "threads": fd.get_num_threads(),
        }
        record = {
            **description(),
            "study": self.study,
            "finished": finished,
            "data": self.data_name,
            "arguments": arguments,
            "runs": self.runs,
            "tables": self.tables,
            "pictures": self.pictures,
        }
        text = json.dumps(_plain(record), indent=1, allow_nan=False, ensure_ascii=False)
        write(self.out / "record.json", f"{text}\n".encode())


@contextmanager
def _watched_alone() -> Iterator[None]:
    """While `fastdrop.debug` is on: with a memory of its own.

    Networks that are compared have one seed, so the same draws for other arrays.
    """
    on = watch.record is not None
    with fd.debug(False), fd.debug(on):
        yield


KINDS = {
    "settings": dict,
    "name": str,
    "seed": int,
    "curves": dict,
    "measures": dict,
    "complete": bool,
    "state": dict,
}
"""What a checkpoint has."""


def _checked(content: Any, run: Run) -> dict[str, Any]:
    """The same, if it is a checkpoint of this run."""
    if not isinstance(content, dict) or content.keys() != KINDS.keys():
        raise CheckpointError(f"it has not all and only of {', '.join(KINDS)}")
    for key, kind in KINDS.items():
        if type(content[key]) is not kind:
            raise CheckpointError(f"{key} is not of type {kind.__name__}")
    if (content["name"], content["seed"]) != (run.name, run.seed):
        raise CheckpointError(f"it is of {content['name']}, seed {content['seed']}")
    curves = content["curves"].values()
    if not all(isinstance(c, list) and all(type(v) is float for v in c) for c in curves):
        raise CheckpointError("curves are not lists of floats")
    if len({len(c) for c in curves}) != 1 or [] in curves:
        raise CheckpointError("curves are not of one length, at least 1")
    return content


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


@dataclass(frozen=True)
class Difference:
    """How much higher a measure of some runs is than that of others, compared seed by seed."""

    mean: float
    low: float  # of the 95 % interval; with one seed -inf
    high: float

    @property
    def direction(self) -> str:
        """ "higher" or "lower", if the interval says so, else ""."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else ""

    @property
    def figures(self) -> str:
        """As in "-0.047 [-0.059, -0.035]", to as many digits as the interval tells."""
        if math.isinf(self.low):
            return f"{self.mean:.4f}"
        return self._shown(self.mean, self.low, self.high)

    def _shown(self, *figures: float) -> str:
        half = (self.high - self.low) / 2
        digits = min(4, max(0, 1 - math.floor(math.log10(half)))) if half else 4
        mean, low, high = (f"{v:z.{digits}f}" for v in figures)  # z: -0.00 is 0.00
        return f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        """In words, as in "lower by 0.047 [0.035, 0.059]"."""
        if math.isinf(self.low):
            way = "higher" if self.mean > 0 else "lower"
            return f"{way} by {abs(self.mean):.4f} with one seed, which has no interval"
        if not self.direction:
            return f"different by less than its uncertainty ({self.figures})"
        low, high = sorted((abs(self.low), abs(self.high)))
        return f"{self.direction} by {self._shown(abs(self.mean), low, high)}"

    def verdict(self, claimed: str) -> str:
        """What it makes of the claim that the measure is "higher", or "lower"."""
        if not self.direction:
            return "not confirmed"
        return "confirmed" if self.direction == claimed else "contradicted"


def difference(runs: Sequence[Run], others: Sequence[Run], key: str) -> Difference:
    """Of `key`, run by run of the same seed, with Student's 95 % interval of the mean."""
    return paired(a.last(key) - b.last(key) for a, b in zip(runs, others, strict=True))


def paired(differences: Iterable[float]) -> Difference:
    """Of what is a difference already, one value a seed."""
    by = np.array(list(differences))
    mean, half = float(by.mean()), math.inf
    if len(by) > 1:
        half = float(student_t.ppf(0.975, len(by) - 1) * by.std(ddof=1) / math.sqrt(len(by)))
    return Difference(mean, mean - half, mean + half)


def claim(text: str, found: Difference, claimed: str, measure: str) -> str:
    """A sentence: what is claimed, what became of it, and the figure."""
    return f"{text}: {found.verdict(claimed)}, as the {measure} is {found}."


def epoch_seconds(runs: Iterable[Run], curve: str = "seconds") -> float:
    """Median over all epochs of all seeds, as something else may have slowed some down."""
    return float(np.median([seconds for run in runs for seconds in run.curves[curve]]))


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
    study: str,
    out: Path,
    *,
    again: str,
    threads: int | None = None,
    quick: bool = False,
    **options: Any,
) -> None:
    """Run a study; whatever stops it, what was done is kept and a line says how to go on.

    Parameters
    ----------
    study, out
        Which one, and the folder that it has to itself.
    again : str
        The command that goes on.
    threads, quick, **options
        As on the command line; the others are those of `Session`.
    """
    module = import_module(f"fastdrop.studies.{study.replace('-', '_')}")
    defaults = module.QUICK if quick else module.FULL
    before = fd.get_num_threads()
    threads = threads or defaults.threads or before
    session = None
    try:
        fd.set_num_threads(threads)
        with ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():
                stack.callback(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
                signal.signal(signal.SIGTERM, _interrupt)
            stack.enter_context(threadpool_limits(threads, "blas"))
            stack.enter_context(alone_in(out))
            session = Session(study, defaults, out, quick=quick, **options)
            try:
                module.run(session)
                session.record(finished=True)
            except (KeyboardInterrupt, OSError, MemoryError):
                if session.runs:
                    with suppress(OSError):
                        session.record()
                raise
        print(f"\nfigures: {out / 'record.json'}")
    except (DataError, StudyError) as error:
        _stop(str(error))
    except InUse as error:
        _stop(f"{error}: wait until it has ended, or give another --out")
    except (KeyboardInterrupt, OSError, MemoryError) as error:
        if isinstance(error, KeyboardInterrupt):
            message, status = "interrupted", 128 + (error.args or (signal.SIGINT,))[0]
        elif isinstance(error, OSError):
            where = error.filename or "standard output"  # all others are named
            message, status = f"{where}: {error.strerror or error}", 1
        else:
            message, status = "out of memory", 1
        if session is not None and session.runs:
            message += f". What was done is in {out}; go on with: {again}"
        elif isinstance(error, OSError) and error.filename:
            message += ": give an --out that can be written to"
        _stop(message, status)
    finally:
        fd.set_num_threads(before)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt(number)


def _stop(message: str, status: int = 1) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(status)
