"""Tensors, parameters and batches in parts: all processes together have the mask of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


@pytest.mark.slow
def test_four_processes(tmp_path):
    """DTensors, tensor and sequence parallelism, FSDP2; see `torch_ranks.py`."""
    root, ranks = Path(__file__).parents[2], 4
    paths = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "FASTDROP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("torch_ranks.py")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "meeting")]
    running = [
        subprocess.Popen(
            [*command, str(rank)],
            env=environment | {"PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    for process in running:
        output, error = process.communicate(timeout=110)
        assert process.returncode == 0, output + error
        assert output.split()[-1] == "both"
