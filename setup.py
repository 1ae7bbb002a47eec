"""The compiled part; everything else is in pyproject.toml."""

from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

core = Extension(
    "fastdrop._core",
    sources=["src/_core.pyx", *sorted(map(str, Path("src").glob("*.c")))],
    depends=sorted(map(str, Path("src").glob("*.h"))),
    include_dirs=["src", numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")],
    # A fused multiply-add would round once where the stream's definition rounds twice.
    extra_compile_args=["-O3", "-std=gnu11", "-ffp-contract=off", "-fvisibility=hidden"],
    extra_link_args=["-pthread"],
)

setup(ext_modules=cythonize([core], build_dir="build"))
