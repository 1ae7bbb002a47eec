"""The compiled part; everything else is in pyproject.toml.

Environment variables: FASTDROP_KERNELS, a file that `python dev/gpu/cuda_build.py` made, puts
kernels for GPUs into the package. For developers FASTDROP_SANITIZE (address, undefined or thread;
see dev/trust/sanitize) and FASTDROP_TRACE (counts the lines of the .pyx; see dev/trust/coverage).
"""

import os
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_py import build_py

INCLUDE = "fastdrop/include"

sanitizer = os.environ.get("FASTDROP_SANITIZE")
trace = bool(os.environ.get("FASTDROP_TRACE"))
# One build for every Python from 3.11 on, but for free-threaded ones, which load no such thing.
abi3 = not (sysconfig.get_config_var("Py_GIL_DISABLED") or trace)

if sys.platform == "win32":
    compile_args, link_args = ["/O2", "/std:c11", "/fp:precise"], []
else:
    # A fused multiply-add would round once where the stream's definition rounds twice. -O3 would
    # make noise a tenth faster, and relu slower: 8 % with AVX2, 40 % in plain C.
    # GCC would put the words of keep bits together in vectors, and then take them apart.
    compile_args = ["-O2", "-fpeel-loops", "-fno-tree-slp-vectorize", "-std=gnu11"]
    compile_args += ["-ffp-contract=off", "-fvisibility=hidden"]
    link_args = ["-pthread"]
    if sanitizer:
        compile_args += ["-O1", "-g", "-fno-sanitize-recover=all", "-fno-wrapv"]
        compile_args += [f"-fsanitize={sanitizer}"]
        link_args += [f"-fsanitize={sanitizer}"]
    else:
        compile_args += ["-g0", "-fno-asynchronous-unwind-tables"]
        if sys.platform == "linux":  # nothing that differs from folder to folder
            link_args += ["-Wl,-s", "-Wl,--build-id=none"]

# What a wheel's archive says of the age of its files: nothing, so that each build is the same.
os.environ.setdefault("SOURCE_DATE_EPOCH", "315532800")


def found(folder, *patterns):
    return sorted(str(path) for pattern in patterns for path in Path(folder).glob(pattern))


core = Extension(
    "fastdrop._core",
    sources=["src/bindings/_core.pyx", *found("src", "drivers/*.c", "runtime/*.c", "simd/*.c")],
    depends=[*found("src", "**/*.h", "**/*.px[di]"), *found(INCLUDE, "*.h")],
    include_dirs=["src", INCLUDE, numpy.get_include()],
    define_macros=[("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION")]
    + abi3 * [("Py_LIMITED_API", "0x030B0000")]
    + trace * [("CYTHON_TRACE", "1")],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
    py_limited_api=abi3,
)


class BuildPackage(build_py):
    """The modules, and kernels for GPUs, if they are of these modules."""

    def run(self):
        super().run()
        if kernels := os.environ.get("FASTDROP_KERNELS"):
            prebuilt = runpy.run_path("fastdrop/backends/cuda/prebuilt.py")
            if source := prebuilt["stale"](prebuilt["read_manifest"](kernels), "fastdrop"):
                sys.exit(f"{kernels}: {source} has changed since they were compiled")
            to = "." if self.editable_mode else self.build_lib
            shutil.copyfile(kernels, os.path.join(to, "fastdrop", "kernels.zip"))


setup(
    cmdclass={"build_py": BuildPackage},
    ext_modules=cythonize(
        [core],
        build_dir="build/trace" if trace else "build",
        include_path=["src/bindings"],
        compiler_directives={"linetrace": trace},
    ),
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if abi3 else {},
)
