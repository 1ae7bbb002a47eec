"""The kernels from Cython and C: both examples in compiled/ are built as a user would."""

import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

pytest.importorskip("Cython", "3.1")
pytest.importorskip("setuptools")

SOURCES = Path(__file__).parent / "compiled"
SETUP = """
import fastdrop
from Cython.Build import cythonize
from setuptools import Extension, setup

def extension(name, source, *flags):
    include = [fastdrop.get_include()]
    return Extension(name, [source], include_dirs=include, extra_compile_args=[*flags])

cython = cythonize([extension("kernels", "kernels.pyx", "-O0")])
strict = "-Wall", "-Wextra", "-Werror", "-DPy_LIMITED_API=0x030B0000"
setup(ext_modules=[*cython, extension("example", "example.c", *strict)])
"""


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    for source in SOURCES.iterdir():
        (folder / source.name).write_text(source.read_text())
    (folder / "setup.py").write_text(SETUP)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    # Cython looks for .pxd along sys.path, where editable installs are not.
    environment = {**os.environ, "PYTHONPATH": str(Path(fd.__file__).parents[1])}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    return folder


def load(folder, name):
    (file,) = folder.glob(f"{name}.*.so")
    spec = spec_from_file_location(name, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kernels(build):
    return load(build, "kernels")


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_cython(kernels, p):
    x = np.random.default_rng(0).standard_normal((50, 333), np.float32)
    expected, _ = fd.dropout(x, p, rng=fd.Rng(2**64 - 1, 2))
    assert_same_bits(kernels.dropout(x, p, 2**64 - 1, 2), expected)


def test_cython_backward(kernels):
    x = np.random.default_rng(0).standard_normal(10_001)
    dy = x[::-1].copy()
    y, ctx = fd.dropout(x, 0.3, rng=fd.Rng(5, 2))
    dx = ctx.backward(dy)
    saved, drawn = kernels.forward_and_back(x, dy, 0.3, 5, 2)
    assert_same_bits(x, y)
    assert_same_bits(dy, dx)
    packed = fd.keep_mask(x.shape, 0.3, rng=fd.Rng(5, 2), packed=True)
    assert_same_bits(saved, packed)
    assert_same_bits(drawn, packed)


@pytest.mark.parametrize(
    ("number", "dtype"), [*enumerate([np.float32, np.float64, np.float16, ml_dtypes.bfloat16])]
)
def test_c(build, number, dtype):
    x = np.random.default_rng(0).standard_normal(70_001).astype(dtype)
    expected, _ = fd.dropout(x, 0.3, rng=fd.Rng(5, 2))
    load(build, "example").dropout(x.view(np.uint8), number, 0.3, 5, 2)
    assert_same_bits(x, expected)


OLDER = """
import ctypes
import sys
from fastdrop import _core

new = ctypes.pythonapi.PyCapsule_New
new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
version, name = ctypes.c_int(0), ctypes.c_char_p(b"fastdrop._core._C_API")
_core._C_API = new(ctypes.addressof(version), name, None)
sys.path.insert(0, "")
import example
"""


def test_an_older_library_is_refused(build):
    """One whose table may end before what the header knows."""
    run = subprocess.run([sys.executable, "-c", OLDER], cwd=build, capture_output=True, text=True)
    words = "ImportError: compiled for version 2 of fastdrop's C API, this one has 0"
    assert words in run.stderr


def test_the_header_is_where_get_include_says():
    assert (Path(fd.get_include()) / "fastdrop_api.h").is_file()
    assert (Path(fd.__file__).parent / "__init__.pxd").is_file()
