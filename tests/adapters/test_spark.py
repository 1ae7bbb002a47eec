"""Spark, which needs no adapter: docs/examples/spark_rows.py."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastdrop as fd


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("pyspark") and shutil.which("java")), reason="needs pyspark")
def test_rows_over_partitions():
    root = Path(__file__).parents[2]
    package = str(Path(fd.__file__).parents[1])
    command = [sys.executable, str(root / "docs" / "examples" / "spark_rows.py")]
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-3:-1] == ["as in one process: True", "learned: True"]
