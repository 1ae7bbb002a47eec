"""Nobody pays for a library that is not used."""

import subprocess
import sys

ADAPTED = {
    "torch",
    "jax",
    "flax",
    "equinox",
    "keras",
    "autograd",
    "thinc",
    "sklearn",
    "dask",
    "mpi4py",
    "numba",
}


def test_fastdrop_imports_none_of_them():
    code = f"import fastdrop, fastdrop.adapters, sys; print({ADAPTED} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
