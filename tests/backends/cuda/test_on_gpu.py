"""dev/gpu/on_gpu.py: its steps, its report, and the goals in it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import goals
import numpy as np
import on_gpu
import pytest
from on_gpu import ROOT, STEPS, Step


def step(name, code, limit=60, needs=""):
    return Step(name, limit, ("-c", code), f"what {name} proves", needs=needs)


def call(monkeypatch, out, steps, *more):
    """The command with these steps: its exit status, and the lines of the report."""
    monkeypatch.setattr(on_gpu, "STEPS", steps)
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", "--rehearse", "--out", str(out), *more])
    with pytest.raises(SystemExit) as ended:
        on_gpu.main()
    return ended.value.code, on_gpu.reported(out / "report.jsonl")


def test_under_25_minutes():
    assert sum(s.limit for s in STEPS) < 25 * 60
    assert len({s.name for s in STEPS}) == len(STEPS)
    assert all(s.proves for s in STEPS)


def test_the_rest_goes_on(monkeypatch, tmp_path):
    """Behind a step that fails, one that takes too long, and one whose program is not there."""
    late = tmp_path / "late"
    writes = f"import time; time.sleep(2); open({str(late)!r}, 'w')"
    steps = (
        step("wrong", "raise SystemExit('so it is')"),
        step(
            "long", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {writes!r}])", 1
        ),
        step("away", "", needs="no-such-program"),
        step("right", "print('and this is what it says')"),
    )
    code, lines = call(monkeypatch, tmp_path, steps)
    assert code == 1
    assert {name: line["result"] for name, line in lines.items()} == {
        "wrong": "failed",
        "long": "ran out of time",
        "away": "not run: not found",
        "right": "passed",
    }
    assert lines["wrong"]["says"] == "so it is"
    assert lines["right"]["says"] == "and this is what it says"
    assert lines["right"]["to_prove"] == ["what right proves"]
    time.sleep(1.5)
    assert not late.exists()  # what a step started ended with it


def test_a_line_at_once_and_no_step_twice(monkeypatch, tmp_path):
    """What stands there is not run again, but the last step is; half a line is none."""
    runs, report = tmp_path / "runs", tmp_path / "report.jsonl"

    def counted(name):
        return step(name, f"open({str(runs)!r}, 'a').write({name!r}); open({str(report)!r}).read()")

    first = Step("first", 60, ("-c", f"open({str(runs)!r}, 'a').write('1')"), "")
    steps = first, counted("2"), counted("3")
    code, lines = call(monkeypatch, tmp_path, steps, "--only", "first", "2")
    assert (code, list(lines), runs.read_text()) == (0, ["first", "2"], "12")
    with report.open("a") as file:
        file.write('{"step": "3", "resu')
    assert call(monkeypatch, tmp_path, steps)[0] == 0
    assert runs.read_text() == "123"
    assert call(monkeypatch, tmp_path, steps)[0] == 0
    assert runs.read_text() == "123"
    kept = report.read_text().splitlines()
    report.write_text("\n".join(kept[:1] + kept[2:]) + "\n")
    code, lines = call(monkeypatch, tmp_path, steps)
    assert runs.read_text() == "12323"
    assert len(lines) == 3


def test_a_rehearsal_is_no_report_of_a_device(monkeypatch, tmp_path):
    line = {"step": "first", "rehearsed": False}
    (tmp_path / "report.jsonl").write_text(json.dumps(line) + "\n")
    code, _ = call(monkeypatch, tmp_path, (step("first", ""),))
    assert "is of a device: give --out" in code


def test_without_a_gpu(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "dev/gpu/on_gpu.py"), "--out", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("No GPU (nvidia-smi: ")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_rehearsed(tmp_path):
    """Some of the steps themselves; .ci/run has all. The report tells what is left to a device."""
    chosen = ["info", "graphs", "memcheck", "route-numba", "speed-float32", "report"]
    pytest.importorskip("numba", reason="pip install 'fastdrop[numba]'")
    script = str(ROOT / "dev/gpu/on_gpu.py")
    command = [sys.executable, script, "--rehearse", "--out", str(tmp_path), "--only", *chosen]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = on_gpu.reported(tmp_path / "report.jsonl")
    assert list(lines) == chosen
    assert all(line["to_prove"] for line in lines.values())
    assert any("a graph that CuPy captured" in left for left in lines["graphs"]["to_prove"])
    names = {row["name"] for row in on_gpu.whole_lines(tmp_path / "timings.jsonl")}
    assert {"copy", "dropout, seed", "backward, bits", "PyTorch", "dropconnect", "zoneout"} <= names
    text = (tmp_path / "report.md").read_text()
    assert "a rehearsal, without one" in text
    assert "| ops " in text  # has no line yet
    assert (tmp_path / "report.png").stat().st_size > 5000
    made = json.loads((tmp_path / "report.json").read_text())
    all_steps = {step.name for step in on_gpu.STEPS} - {"report"}
    assert set(made["to_prove"]) == all_steps  # those that have not run, too
    assert {g["met"] for g in made["goals"]} == {None}


def timed(**seconds):
    """Rows of a float32 array of 2^24 elements, all of as many bytes."""
    rows = {name.replace("_", " ").strip(): s for name, s in seconds.items()}
    return {
        ("float32", 24, name): {"seconds": s, "bytes": 8.0, "host_seconds": s}
        for name, s in rows.items()
    }


def met(times, lines=None):
    return [g["met"] for g in goals.goals(times, lines or {})]


def test_goals():
    """Each is met at its bound, and not met beyond it; what was not measured is open."""
    assert met({}) == [None] * 5
    pairs = [(("float32", 24, "PyTorch"), 1.2), (("float32", 24, "CuPy, element-wise"), 1.3)]
    for draw, expected in ((1 / 0.91, True), (1 / 0.89, False)):
        times = timed(copy=1.0, dropout=draw)
        for key, s in pairs:
            times[key] = {"seconds": s * draw, "bytes": 9.0, "host_seconds": s}
        times["float32", 24, "dropout, seed"] = times["float32", 24, "dropout"]
        assert met(times) == [expected, True, True, True, None]
    for slower, expected in ((1.1, [True, False]), (0.9, [False, False])):
        times["float32", 24, "PyTorch"]["seconds"] = draw * slower
        assert met(times)[1:3] == expected
    times["float32", 24, "CuPy, element-wise"]["host_seconds"] = draw * 0.99
    assert met(times)[3] is False


def test_the_goal_of_the_same_bits():
    lines = {name: {"result": "passed", "rehearsed": False} for name in goals.BITS}
    assert met({}, lines)[4] is True
    lines["ops"]["not_run"] = {"needs the host's memory": 3}
    assert met({}, lines)[4] is True
    lines["graphs"]["not_run"] = {"could not import 'cupy'": 3}
    assert met({}, lines)[4] is None
    lines["size"]["result"] = "ran out of time"
    assert met({}, lines)[4] is None
    lines["size"]["result"] = "failed"
    assert met({}, lines)[4] is False


def test_what_ncu_says(tmp_path):
    file = tmp_path / "bandwidth.txt"
    file.write_text(
        '==PROF== x\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
        '"0","dropout","dram__bytes.sum","Mbyte","536.9"\n'
    )
    expected = {"Kernel Name": "dropout", "Metric Name": "dram__bytes.sum"}
    (row,) = goals.profiled(file)
    assert expected.items() <= row.items()
    assert row["Metric Value"] == "536.9"
    assert goals.profiled(tmp_path / "none") == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_kernel_by_hand_compiles(dtype):
    """And, in float32, drops what it should: executed by the interpreter of PTX."""
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    from helpers.ptx import Kernel, Memory

    def checked(result):
        assert int(result[0]) == 0, result
        return result[1] if len(result) > 1 else None

    code = (Path(on_gpu.__file__).parent / "floor.cu").read_bytes()
    program = checked(nvrtc.nvrtcCreateProgram(code, b"floor.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, 1, [b"--gpu-architecture=compute_80"]))
    text = bytes(checked(nvrtc.nvrtcGetPTXSize(program)))
    checked(nvrtc.nvrtcGetPTX(program, text))
    text = text.decode().rstrip("\0")
    assert f".entry floor_{dtype}(" in text
    if dtype == "float32":  # the interpreter has no products of two halves
        kernel = Kernel(text, f"floor_{dtype}")
        n, memory = 1 << 14, Memory()
        x, y = memory.put(np.ones(n, np.float32)), memory.put(np.zeros(n, np.float32))
        kernel.launch(memory, 3, 128, x, y, n, int(0.2 * 2**32), np.float32(1.25), 1, 0)
        found = memory.get(y)
        assert set(found) == {0, 1.25}
        assert abs((found == 0).mean() - 0.2) < 5 * (0.16 / n) ** 0.5
