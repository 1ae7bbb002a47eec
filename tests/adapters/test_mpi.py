"""MPI: mpi_ranks.py on several ranks, where there is an mpiexec."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop as fd

pytest.importorskip("mpi4py")


def find_mpiexec():
    """That of a wheel, which lies beside Python, before the system's."""
    return shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")


pytestmark = pytest.mark.skipif(find_mpiexec() is None, reason="no mpiexec: pip install mpich")


def mpiexec(ranks, *command):
    """Standard output of the ranks, which all end well."""
    allowed = {  # Open MPI has ranks neither for root nor beyond the number of cores, unless asked
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    }
    package = str(Path(fd.__file__).parents[1])
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    env = os.environ | allowed | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}
    run = [find_mpiexec(), "-n", str(ranks), sys.executable, "-m", "mpi4py", *command]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks(ranks):
    program = Path(__file__).with_name("mpi_ranks.py")
    passed = mpiexec(ranks, str(program), str(ranks)).count("passed:")
    assert passed == 8


def test_example():
    code = (
        "import doctest, fastdrop.adapters.mpi as adapter; results = doctest.testmod(adapter); "
        "assert results.attempted > 5 and not results.failed, results; print('trained')"
    )
    assert mpiexec(2, "-c", code).count("trained") == 2


def test_importing_it_starts_no_mpi():
    code = "import sys, fastdrop.adapters.mpi; sys.exit('mpi4py' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
