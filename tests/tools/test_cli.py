"""The command line, and what is chosen at import."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import fastdrop as fd
import fastdrop.tools
from fastdrop.__main__ import main


def test_info(capsys):
    main(["info"])
    shown = capsys.readouterr().out
    assert fd.__version__ in shown
    assert fd.cpu_features()["isa"] in shown


def run(isa):
    code = "import fastdrop; print(fastdrop.cpu_features()['isa'])"
    environment = {**os.environ, "FASTDROP_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("isa", fd.cpu_features()["available"])
def test_isa_can_be_forced(isa):
    assert run(isa).stdout.strip() == isa


def test_unknown_isa_is_an_import_error():
    result = run("mmx")
    assert result.returncode != 0
    assert "FASTDROP_ISA: ISA 'mmx' is not among those of this CPU" in result.stderr


def no_constant(text):
    raise ValueError(f"{text} is not JSON")


def test_bench(tmp_path, capsys):
    threads = fd.get_num_threads()
    main(["bench", "--quick", "--seconds", "0.5", "--out", str(tmp_path / "a" / "b")])
    assert fd.get_num_threads() == threads
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    for size in ("2^8", "2^12", "2^16"):
        names = ["a copy", "naive NumPy, p=0.1", "tuned NumPy, p=0.1"]
        for name in [*names, *(f"fastdrop, p={p}" for p in (0.1, 0.2, 0.5, 0.9))]:
            assert re.search(rf"^\| {re.escape(size)} +\| {re.escape(name)} +\|", shown, re.M)
    assert "float64, 1 thread" in shown

    folder = tmp_path / "a" / "b"
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    text = (folder / "bench.json").read_text()
    results = json.loads(text, parse_constant=no_constant)  # NaN and Infinity are not JSON
    assert results["machine"]["isa"] == fd.cpu_features()["isa"]
    assert results["versions"]["numpy"] == np.__version__
    for timing in results["timings"]:
        for figure in ("seconds", "ns_per_element", "gb_per_s", "copies"):
            assert timing[figure] > 0
    assert {t["direction"] for t in results["timings"]} == {None, "forward", "backward"}


def test_bench_takes_overrides(tmp_path, capsys):
    choice = ["--sizes", "9", "--rates", "0.25", "--dtypes", "float64", "--threads", "1"]
    main(["bench", "--quick", "--seconds", "0.01", *choice, "--out", str(tmp_path)])
    timings = json.loads((tmp_path / "bench.json").read_text())["timings"]
    assert {(t["size"], t["dtype"], t["threads"]) for t in timings} == {(512, "float64", 1)}
    assert {t["p"] for t in timings} == {None, 0.25}


def test_a_peer_that_fails_is_left_out(tmp_path, capsys, monkeypatch):
    def broken(x, y, p):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("fastdrop.tools.bench.PEERS", {"PyTorch": broken})
    main(["bench", "--quick", "--seconds", "0.01", "--sizes", "8", "--out", str(tmp_path)])
    shown = capsys.readouterr()
    assert "PyTorch, float32: left out, RuntimeError('no such kernel')" in shown.err
    assert "PyTorch" not in shown.out.split("float32, 1 thread")[1]


@pytest.mark.parametrize("name", ["matplotlib", "tabulate", "tqdm"])
def test_bench_names_what_is_missing(name, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastdrop.tools.bench", raising=False)
    monkeypatch.delattr(fd.tools, "bench", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=rf"^bench needs {name}: pip install 'fastdrop\[bench\]'$"):
        main(["bench", "--quick"])


def test_bench_says_what_is_wrong():
    for arguments in (["--seconds", "0"], ["--seconds", "inf"], ["--rates", "1"], ["--sizes", "x"]):
        with pytest.raises(SystemExit, match="2"):
            main(["bench", *arguments])
    with pytest.raises(SystemExit, match=r"^int8: fastdrop takes float32, float64"):
        main(["bench", "--dtypes", "int8"])
