"""The command line, and what is chosen at import."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
import fastdrop.tools
from fastdrop.__main__ import commands, main


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


WHOLE = "must be a whole number"
WRONG = [
    (["train", "--epochs"], "0", f"argument --epochs: {WHOLE}, at least 1, got '0'"),
    (["train", "--epochs"], "x", f"argument --epochs: {WHOLE}, at least 1, got 'x'"),
    (["train", "--epochs"], "9" * 5000, f"argument --epochs: {WHOLE}, at least 1, got '9"),
    (["train", "--seed"], "-1", f"argument --seed: {WHOLE} from 0 to 2**64 - 1, got '-1'"),
    (["train", "--seed"], str(2**64), f"argument --seed: {WHOLE} from 0 to 2**64 - 1, got"),
    (["train", "--seed", "4", "3"], "3", "argument --seed: has 3 twice: give it once"),
    (["train", "--threads"], "x", f"argument --threads: {WHOLE} from 1 to 1024, got 'x'"),
    (["train", "--threads"], "1025", f"argument --threads: {WHOLE} from 1 to 1024, got '1025'"),
    (["train", "--data"], "nothing", "--data: nothing is no folder, nor one of mnist, digits, syn"),
    (["train", "--out"], __file__, f"{__file__}: File exists: give an --out that can be written"),
    (["train"], "gru", "argument STUDY: invalid choice: 'gru' (choose from"),
    (["train", "lstm", "--data"], "digits", "lstm takes no --data, as it learns a text: leave it"),
    (["train", "--label-noise"], "1", "--label-noise: must be a number from 0 to below 1, got '1'"),
    (["train", "--label-noise"], "nan", "must be a number from 0 to below 1, got 'nan'"),
    (["train", "lstm", "--label-noise"], "0.2", "lstm takes no --label-noise, as it learns a text"),
    (["bench", "--seconds"], "0", "argument --seconds: must be a positive number, got '0'"),
    (["bench", "--seconds"], "inf", "argument --seconds: must be a positive number, got 'inf'"),
    (["bench", "--seconds"], "x", "argument --seconds: must be a positive number, got 'x'"),
    (["bench", "--rates"], "1", "argument --rates: must be a number between 0 and 1, got '1'"),
    (["bench", "--rates"], "nan", "argument --rates: must be a number between 0 and 1, got 'nan'"),
    (["bench", "--rates", "0.1"], "0.10", "argument --rates: has 0.1 twice: give it once"),
    (["bench", "--sizes"], "x", f"argument --sizes: {WHOLE} from 1 to 40, got 'x'"),
    (["bench", "--sizes"], "200", f"argument --sizes: {WHOLE} from 1 to 40, got '200'"),
    (["bench", "--sizes", "8"], "8", "argument --sizes: has 8 twice: give it once"),
    (["bench", "--threads"], "0", f"argument --threads: {WHOLE} from 1 to 1024, got '0'"),
    (["bench", "--threads", "1"], "1", "argument --threads: has 1 twice: give it once"),
    (["bench", "--dtypes"], "int8", "int8: fastdrop takes float32, float64"),
    (["bench", "--dtypes", "float32"], "float32", "argument --dtypes: has float32 twice: give it"),
    (["bench", "--out"], __file__, f"--out: {__file__}: File exists: give a folder that can"),
]


@pytest.mark.parametrize(("before", "value", "message"), WRONG)
def test_every_option_says_what_is_wrong(before, value, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main([*before, value])
    code, shown = stopped.value.code, capsys.readouterr().err
    if isinstance(code, str):  # Python prints it, and exits with 1
        code, shown = 1, f"{shown}{code}\n"
    assert code in (1, 2)
    *usage, last = shown.splitlines()
    assert message in last
    assert not usage or usage[0].startswith("usage: python -m fastdrop")
    assert not re.search("Traceback|_[a-z]+ value", shown)


def test_no_option_is_left_out_there():
    (subparsers,) = (a for a in commands()._actions if isinstance(a.choices, dict))
    options = {
        (command, action.option_strings[-1] if action.option_strings else None)
        for command, parser in subparsers.choices.items()
        for action in parser._actions
        if action.nargs != 0  # flags have nothing that can be wrong
    }
    tried = {
        (before[0], ([None] + [w for w in before if w.startswith("--")])[-1])
        for before, _, _ in WRONG
    }
    assert tried == options


def test_alone_it_prints_what_there_is(capsys):
    main([])
    shown = capsys.readouterr().out
    assert all(f"\n    {command} " in shown for command in ("info", "train", "bench"))


def test_the_console_script_is_the_same():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["scripts"] == {"fastdrop": f"{main.__module__}:main"}
    assert main.__module__ == "fastdrop.__main__"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("arguments", [["info"], ["train", "--epochs", "1"]])
def test_output_that_nobody_takes(arguments, tmp_path):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "fastdrop", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(fd.__file__).parents[1])},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "standard output: No space left on device\n")
