"""A table, JSON and a picture of a report, the goals beside what was measured: the last step of
on_gpu.py, ``python dev/gpu/goals.py OUT``.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

from on_gpu import STEPS, reported, whole_lines

# Steps whose every case has to have the CPU's bits.
BITS = "ops", "libraries", "graphs", "contexts", "size", "adapter", "route-prebuilt", "route-numba"
# Why a case needs not run on every machine.
ALLOWED = "needs the host's memory", "this library has no bfloat16", "there is one device"
DRAWS = "dropout", "dropout, seed", "dropout, p = 1/2"
FLOOR = 24  # exponent from which on the memory is what limits
DTYPES = "float32", "float16", "bfloat16", "float64"

Times = dict[tuple[str, int, str], dict[str, Any]]


def measured(file: Path) -> Times:
    """Rows of timings.py that have a time, by dtype, exponent and name."""
    rows = [row for row in whole_lines(file) if row.get("seconds", 0) > 0]
    return {(row["dtype"], row["exponent"], row["name"]): row for row in rows}


def goal(title: str, asked: str, worst: tuple[float, str] | None, met: bool) -> dict[str, Any]:
    """A line: what was asked, the worst that was measured and where, and whether that is enough."""
    if worst is None:
        return {"goal": title, "asked": asked, "measured": "not measured", "met": None}
    return {"goal": title, "asked": asked, "measured": f"{worst[0]:.2f} ({worst[1]})", "met": met}


def ratios(times: Times, of: str, to: str, what: Any) -> list[tuple[float, str]]:
    """what(row, other) for each dtype and size of which both are there, and where that is."""
    found = []
    for (dtype, exponent, name), row in times.items():
        other = times.get((dtype, exponent, to))
        if name == of and other is not None:
            found.append((what(row, other), f"{of}, {dtype}, 2^{exponent}"))
    return found


def bandwidth(row: dict[str, Any], copy: dict[str, Any]) -> float:
    return (row["bytes"] / row["seconds"]) / (copy["bytes"] / copy["seconds"])


def faster(row: dict[str, Any], other: dict[str, Any]) -> float:
    return other["seconds"] / row["seconds"]


def goals(times: Times, lines: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Each goal of the first day on a GPU."""
    large = {key: row for key, row in times.items() if key[1] >= FLOOR}
    memory = {key: row for key, row in large.items() if key[0] != "float64"}
    made = []
    least = min((r for of in DRAWS for r in ratios(memory, of, "copy", bandwidth)), default=None)
    made.append(
        goal(
            f"draws in float32 and 16 bits: of a copy's bandwidth, from 2^{FLOOR} on",
            ">= 0.90",
            least,
            least is not None and least[0] >= 0.9,
        )
    )
    for title, where, bound in (
        ("PyTorch's fused dropout takes so many times as long, everywhere", times, 1.0),
        (f"the same, at the floor: from 2^{FLOOR} on", large, 1.15),
    ):
        pairs = (("dropout", "PyTorch"), ("backward, bits", "PyTorch, backward"))
        least = min((r for pair in pairs for r in ratios(where, *pair, faster)), default=None)
        made.append(goal(title, f">= {bound:.2f}", least, least is not None and least[0] >= bound))
    launched = {key: row for key, row in times.items() if "host_seconds" in row}
    most = max(
        ratios(
            launched,
            "dropout, seed",
            "CuPy, element-wise",
            lambda row, other: row["host_seconds"] / other["host_seconds"],
        ),
        default=None,
    )
    title = "a launch, in those of CuPy's element-wise kernel"
    made.append(goal(title, "< 1.00", most, most is not None and most[0] < 1))
    made.append(same_bits(lines))
    return made


def same_bits(lines: dict[str, dict[str, Any]]) -> dict[str, Any]:
    known = {name: lines[name]["result"] for name in BITS if name in lines}
    wrong = [f"{name}: {result}" for name, result in known.items() if result != "passed"]
    missing = [f"{name}: no line" for name in BITS if name not in known]
    for name in known:
        reasons = lines[name].get("not_run", {})
        left = (r for r in reasons if not any(word in r for word in ALLOWED))
        missing += [f"{name}: not run: {reason}" for reason in left]
    if any(lines[name]["rehearsed"] for name in known):
        missing.append("a rehearsal")
    failed = any(result == "failed" for result in known.values())
    return {
        "goal": "the same bits as the CPU in every case",
        "asked": "all",
        "measured": "; ".join(wrong + missing) or "all",
        "met": False if failed else True if not wrong + missing else None,
    }


def profiled(file: Path) -> list[dict[str, str]]:
    """Kernel, metric, unit and value, as ncu writes them."""
    text = file.read_text(errors="replace").splitlines() if file.exists() else []
    begin = next((i for i, line in enumerate(text) if line.startswith('"ID"')), len(text))
    names = "Kernel Name", "Metric Name", "Metric Unit", "Metric Value"
    return [{n: row.get(n) or "" for n in names} for row in csv.DictReader(text[begin:])]


def table(made: dict[str, Any]) -> str:
    """The report in Markdown."""
    from tabulate import tabulate

    words = {True: "yes", False: "NO", None: "open"}
    parts = ["# fastdrop on a GPU" + (": a rehearsal, without one" if made["rehearsed"] else "")]
    parts.append(f"```\n{made['info'].strip()}\n```")
    found = [[g["goal"], g["asked"], g["measured"], words[g["met"]]] for g in made["goals"]]
    parts.append("## Goals\n\n" + tabulate(found, ["", "asked", "measured", "met"], "github"))
    steps = [
        [name, line["result"], line["seconds"], line.get("tests_passed", ""), line.get("says", "")]
        for name, line in made["steps"].items()
    ]
    steps += [[name, "no line yet", "", "", ""] for name in made["missing"]]
    parts.append("## Steps\n\n" + tabulate(steps, ["", "", "s", "tests", "says"], "github"))
    if made["to_prove"]:
        listed = (f"- {name}: {'; '.join(left)}" for name, left in made["to_prove"].items())
        parts.append("## What a device still has to prove\n\n" + "\n".join(listed))
    copies = {(r["dtype"], r["exponent"]): r for r in made["timings"] if r["name"] == "copy"}
    rows = []
    for r in made["timings"]:
        copy = copies.get((r["dtype"], r["exponent"]))
        if r.get("seconds", 0) > 0 and copy and copy.get("seconds", 0) > 0:
            figures = r["seconds"] * 1e6, r["bytes"] / r["seconds"] / 1e9, 1 / faster(r, copy)
            rows.append([r["dtype"], f"2^{r['exponent']}", r["name"], *figures])
        else:
            why = r.get("error", "not timed")
            rows.append([r["dtype"], f"2^{r['exponent']}", r["name"], why, None, None])
    headers = ["dtype", "elements", "", "us", "GB/s", "x copy"]
    digits = ("", "", "", ".1f", ".0f", ".2f")
    parts.append("## Speed\n\n" + tabulate(rows, headers, "github", floatfmt=digits))
    counted = [list(row.values()) for row in made["bandwidth"]]
    if counted:
        headers = ["kernel", "metric", "unit", "value"]
        parts.append("## As ncu counts\n\n" + tabulate(counted, headers, "github"))
    return "\n\n".join(parts) + "\n"


def picture(times: Times, file: Path) -> None:
    """GB/s by size, a panel for each dtype."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = "copy", "by hand", "dropout", "dropout, seed", "PyTorch", "CuPy"
    figure, panels = plt.subplots(1, len(DTYPES), figsize=(14, 3.6), sharey=True)
    for panel, dtype in zip(panels, DTYPES, strict=True):
        for name in shown:
            points = sorted(
                (e, r["bytes"] / r["seconds"] / 1e9)
                for (d, e, n), r in times.items()
                if (d, n) == (dtype, name)
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        panel.set(title=dtype, xlabel="elements, log2")
    panels[0].set_ylabel("GB/s")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(file, dpi=120)


def main() -> None:
    out = Path(sys.argv[1])
    lines, times = reported(out / "report.jsonl"), measured(out / "timings.jsonl")
    info = out / "info.txt"
    names = [step.name for step in STEPS if step.name != "report"]
    made = {
        "rehearsed": any(line["rehearsed"] for line in lines.values()),
        "info": info.read_text() if info.exists() else "",
        "goals": goals(times, lines),
        "steps": lines,
        "missing": [name for name in names if name not in lines],
        "to_prove": {
            step.name: lines[step.name].get("to_prove") if step.name in lines else [step.proves]
            for step in STEPS
            if step.name in names and (step.name not in lines or "to_prove" in lines[step.name])
        },
        "timings": whole_lines(out / "timings.jsonl"),
        "bandwidth": profiled(out / "bandwidth.txt"),
    }
    (out / "report.json").write_text(json.dumps(made, indent=1))
    (out / "report.md").write_text(table(made))
    try:
        picture(times, out / "report.png")
    except ImportError as error:
        print(f"no picture: {error}")
    print(f"{sum(g['met'] is True for g in made['goals'])} of {len(made['goals'])} goals met")


if __name__ == "__main__":
    main()
