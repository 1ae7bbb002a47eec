"""Is fastdrop right on this GPU, and how fast? One command: ``python dev/gpu/on_gpu.py``

It builds the package, and runs the steps below in their order, each with its own time limit, less
than 25 minutes together. A line goes to OUT/report.jsonl as soon as a step ends, whatever its end:
a machine that goes away loses nothing. Started again, it goes on behind the last line; to run a
step again, delete its line. The last step makes OUT/report.md, .json and .png of what is there.

--rehearse runs the same steps without a GPU: Numba's simulator and the tests' fakes stand in, and
each line tells what a device would still have to prove. dev/gpu/README.md says more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]
CASES = "tests/backends/cuda"
FEW = "^dropout-float32-op=dropout-shifted=0-source=(bytes|given)"  # what routes.py launches
SMALL = "numba and (test_views or dropout-bits or dropconnect or embedding or drop_block)"
EXPONENTS = "12", "16", "20", "22", "24", "26", "28"


@dataclass(frozen=True)
class Step:
    """A command, run in the checkout; what a device proves by it; the seconds that it may take.

    Words of the command: {out} is the folder of the report. rehearsed: more words, for a rehearsal,
    in which there are less cases. simulated: whether Numba's simulator stands in then. needs: a
    program, without which the step is not run.
    """

    name: str
    limit: int
    command: tuple[str, ...]
    proves: str
    rehearsed: tuple[str, ...] = ()
    needs: str = ""
    simulated: bool = True
    environment: dict[str, str] = field(default_factory=dict)


def cases(name: str, limit: int, files: str, chosen: str, proves: str, few: str = "") -> Step:
    """Tests in one process. few: those of a rehearsal."""
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={{out}}/{name}.xml")
    command += ("-W", "default")  # what that machine's libraries warn of is not what is asked here
    selected = ("-k", chosen) if chosen else ()
    shorter = ("-k", few) if few else ()
    paths = (f"{CASES}/{file}" for file in files.split())
    return Step(name, limit, (*command, *paths, *selected), proves, shorter)


def sanitizer(tool: str) -> Step:
    tests = cases(tool, 60, "library_cases.py", SMALL, f"what compute-sanitizer's {tool} finds")
    checked = "--tool", tool, "--error-exitcode", "9", "--target-processes", "all", sys.executable
    return Step(
        tool, tests.limit, (*checked, *tests.command), tests.proves, needs="compute-sanitizer"
    )


def timings(dtype: str, limit: int) -> Step:
    command = "dev/gpu/timings.py", dtype, "--out", "{out}/timings.jsonl", "--exponents"
    tiny = "8", "--runs", "1", "--calls", "1"
    proves = f"speed of each op in {dtype}, beside a copy, PyTorch, CuPy and a kernel by hand"
    return Step(f"speed-{dtype}", limit, (*command, *EXPONENTS), proves, tiny)


def route(name: str) -> Step:
    return Step(
        f"route-{name}",
        40,
        ("dev/gpu/routes.py",),
        f"{name} kernels are launched, have the CPU's bits, and how long a first call takes",
        ("--rehearse",),
        simulated=name == "numba",
        environment={"FASTDROP_CUDA": name},
    )


PROFILED = "dev/gpu/timings.py", "float32", "--out", "{out}/unused", "--once", "--exponents", "26"
COUNTED = (
    "gpu__time_duration.sum,dram__bytes.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed"
)

STEPS = (
    Step(
        "build",
        100,
        ("setup.py", "-q", "build", "--build-lib", "{out}/built", "--build-temp", "{out}/objects"),
        "the package builds with what that machine has",
    ),
    Step("info", 30, ("-m", "fastdrop", "info"), "driver and libraries are found"),
    cases(
        "ops",
        330,
        "device_cases.py argument_cases.py",
        "",
        "every op on arrays of any layout, with every argument",
        "tails or start or (argument_cases and dropout_add)",
    ),
    cases(
        "libraries",
        140,
        "library_cases.py",
        "not graph and not test_second and not elements and not adapter",
        "every op on CuPy's, PyTorch's, Numba's and DLPack's arrays, views, two streams",
        "dropout-bits or views or streams",
    ),
    cases("graphs", 40, "library_cases.py", "graph", "graphs captured by CuPy and PyTorch"),
    cases("contexts", 30, "library_cases.py", "test_second", "a second context, a second device"),
    cases("size", 60, "library_cases.py", "elements", "2^31 elements, indices of 64 bits"),
    cases("adapter", 40, "library_cases.py", "adapter", "PyTorch's adapter on CUDA tensors"),
    sanitizer("memcheck"),
    sanitizer("racecheck"),
    sanitizer("initcheck"),
    Step(
        "fatbins",
        50,
        ("dev/gpu/cuda_build.py", "--out", "{out}/built/fastdrop/kernels.zip", "--only", FEW),
        "the compilers of that machine build kernels ahead",
        simulated=False,
    ),
    route("prebuilt"),
    route("numba"),
    timings("float32", 100),
    timings("float16", 100),
    timings("bfloat16", 70),
    timings("float64", 50),
    Step(
        "bandwidth",
        60,
        ("--csv", "--metrics", COUNTED, sys.executable, *PROFILED),
        "achieved bandwidth of the main kernels, as ncu counts it",
        needs="ncu",
    ),
    Step("report", 30, ("dev/gpu/goals.py", "{out}"), "the goals, beside what is measured"),
)


def environment(step: Step, out: Path, rehearsed: bool) -> dict[str, str]:
    """The package that was built, or else the checkout's; and where arrays are."""
    built = out / "built"
    path = [str(built if built.exists() else ROOT), str(ROOT / "dev" / "gpu"), str(ROOT / "tests")]
    path += filter(None, [os.environ.get("PYTHONPATH")])  # where that machine has libraries
    chosen = {
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",  # if it was built, nothing of it comes from the checkout
        "PYTHONUNBUFFERED": "1",
        "FASTDROP_CUDA": "numba",
    }
    if not rehearsed:
        chosen["FASTDROP_GPU"] = "1"
    elif step.simulated:
        chosen["NUMBA_ENABLE_CUDASIM"] = "1"
    removed = "NUMBA_ENABLE_CUDASIM", "FASTDROP_GPU", "FASTDROP_KERNELS"
    return {k: v for k, v in os.environ.items() if k not in removed} | chosen | step.environment


def of_tests(file: Path) -> dict[str, Any]:
    """Counts, names of those that failed, and reasons of those that did not run."""
    found: Counter[str] = Counter()
    failed, not_run = [], Counter()
    for case in ElementTree.parse(file).iter("testcase"):
        name = case.get("name") or ""
        if (skipped := case.find("skipped")) is not None:
            not_run[skipped.get("message") or ""] += 1
        elif case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        else:
            found["passed"] += 1
    return {"tests_passed": found["passed"], "failed": failed, "not_run": dict(not_run)}


def run(step: Step, out: Path, rehearsed: bool) -> dict[str, Any]:
    """The step's line of the report."""
    line: dict[str, Any] = {"step": step.name, "rehearsed": rehearsed}
    program = shutil.which(step.needs) if step.needs else sys.executable
    if program is None:
        return line | {"result": "not run: not found", "seconds": 0, "needs": step.needs}
    words = [*step.command, *(step.rehearsed if rehearsed else ())]
    if rehearsed and step.name.startswith("speed"):
        words = [word for word in words if word not in EXPONENTS]
    command = [program, *(word.replace("{out}", str(out)) for word in words)]
    variables = environment(step, out, rehearsed)
    begin, log = time.monotonic(), out / f"{step.name}.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(step.limit)
            result = "passed" if code == 0 else "failed"
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            result = "ran out of time"
    line |= {"result": result, "seconds": round(time.monotonic() - begin, 1)}
    tests = out / f"{step.name}.xml"
    if result != "ran out of time" and tests.exists():
        line |= of_tests(tests)
        if result == "passed" and not line["tests_passed"]:
            line["result"] = "not run: see not_run"
    last = log.read_text(errors="replace").strip().splitlines()[-1:] or [""]
    return line | {"says": last[0][:300]}


def to_prove(step: Step, line: dict[str, Any]) -> list[str]:
    """What a rehearsal leaves to a device."""
    left = [step.proves]
    return left + [reason for reason in line.get("not_run", {}) if "a device: " in reason]


def why_no_device() -> str | None:
    """Asked of the driver alone, before anything is built."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return None if done.returncode == 0 and "GPU" in done.stdout else f"nvidia-smi: {done.stdout}"


def whole_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of JSON in a file; the half of one, where the machine went away, is removed."""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]


def reported(file: Path) -> dict[str, dict[str, Any]]:
    """The lines of a report, by the names of their steps; the last one counts."""
    return {line["step"]: line for line in whole_lines(file)}


def main() -> None:
    names = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words = "folder of the report (default: build/gpu)"
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help=words)
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--rehearse", action="store_true", help="without a GPU")
    options = parser.parse_args()
    if not options.rehearse and (reason := why_no_device()):
        sys.exit(f"No GPU ({reason.strip()}). Nothing was checked or timed; see --rehearse.")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    report = out / "report.jsonl"
    there = reported(report)
    if {line["rehearsed"] for line in there.values()} - {options.rehearse}:
        sys.exit(f"{report} is of {'a device' if options.rehearse else 'a rehearsal'}: give --out")
    wrong, more = False, False
    for step in STEPS:
        if options.only and step.name not in options.only:
            continue
        if step.name in there and not (more and step is STEPS[-1]):  # which is made of the others
            continue
        more = True
        line = run(step, out, options.rehearse)
        if options.rehearse:
            line["to_prove"] = to_prove(step, line)
        with report.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        wrong |= line["result"] in ("failed", "ran out of time")
        print(f"{line['step']:16} {line['seconds']:6} s  {line['result']}  {line.get('says', '')}")
    print(report)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
