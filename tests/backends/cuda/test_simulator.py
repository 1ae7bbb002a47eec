"""Runs device_cases.py: Numba's simulator has to be chosen before Numba is imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop as fd

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


def test_the_script_for_a_gpu():
    """Its few checks, then its table, with the simulator in place of a GPU."""
    chosen = ["--checks", "start or test_errors", "--exponents", "8", "--runs", "2", "--calls", "2"]
    done = simulated("dev/gpu/on_gpu.py", "--dtypes", "float32", *chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-equal to the CPU: 13 passed" in done.stdout
    for name in (
        "copy",
        "dropout, seed",
        "backward, bits",
        "gaussian_dropout",
        "drop_block",
        "dropconnect",
    ):
        assert f"| float32 | 2^8        | {name} " in done.stdout


@pytest.mark.skipif(fd.cuda.is_available(), reason="there is a GPU")
def test_the_script_without_a_gpu():
    script = Path(__file__).parents[3] / "dev" / "gpu" / "on_gpu.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("No GPU: ")
    assert not done.stdout
