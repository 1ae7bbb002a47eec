"""Ray, which needs no adapter: docs/examples/ray_blocks.py."""

import os
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

import fastdrop as fd

PROGRAM = Path(__file__).parents[2] / "docs" / "examples" / "ray_blocks.py"
PRINTED = ["as in one process: True", "learned: True"]


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("ray"), reason="needs ray")
def test_blocks():
    path = os.pathsep.join(
        filter(None, [str(Path(fd.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    run = subprocess.run(
        [sys.executable, str(PROGRAM)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-3:-1] == PRINTED


def test_blocks_without_ray(monkeypatch, capsys):
    """Tasks that run at once, in the opposite order, stand for those of Ray."""

    def all_at_once(tasks):
        return [task() for task in reversed(tasks)][::-1]

    plain = SimpleNamespace(
        init=lambda **options: None,
        shutdown=lambda: None,
        put=lambda value: value,
        remote=lambda f: SimpleNamespace(remote=lambda *given: lambda: f(*given)),
        get=all_at_once,
    )
    monkeypatch.setitem(sys.modules, "ray", plain)
    runpy.run_path(str(PROGRAM))
    assert capsys.readouterr().out.splitlines() == PRINTED
