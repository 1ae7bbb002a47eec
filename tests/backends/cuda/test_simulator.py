"""Runs device_cases.py: Numba's simulator has to be chosen before Numba is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba", reason="Numba is not installed: pip install 'fastdrop[numba]'")


def simulated(*command):
    return subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )


def test_simulator():
    files = "tests/backends/cuda/device_cases.py", "tests/ops/test_matrix.py"
    chosen = "not reference"  # has been compared already
    done = simulated("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
def test_every_argument():
    """Of every op, as in NumPy."""
    cases = "tests/backends/cuda/argument_cases.py"
    done = simulated("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", cases)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert "passed" in done.stdout
    assert "skipped" not in done.stdout
