"""GPU kernels to fatbins, with no driver and no GPU: ``python dev/gpu/cuda_build.py``.

Every kernel that `fastdrop.cuda` launches on arrays of up to four axes is compiled by Numba to
PTX, assembled by ptxas for each architecture, and put into an archive that setup.py takes into a
wheel (FASTDROP_KERNELS=kernels.zip). A cubin serves later GPUs of its major version, too, PTX those
beyond. Needs ``pip install 'fastdrop[test-cuda]'``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, files, version
from multiprocessing import get_context
from pathlib import Path
from shutil import which
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import cuda_compile

from fastdrop import STREAM_VERSION, __version__
from fastdrop._core import PARTS
from fastdrop.backends.cuda import prebuilt as cuda_prebuilt

CUBINS = {75: (7, 5), 80: (8, 0), 90: (8, 0), 100: (8, 0), 120: (8, 0)}  # and the PTX they are of
PTX = 80  # what is there for later architectures

# Wheels that bring them: of CUDA 12, as in the extra test-cuda, or of CUDA 13.
COMPILERS = {
    "numba-cuda": ("numba-cuda",),
    "nvvm": ("nvidia-cuda-nvcc-cu12", "nvidia-nvvm"),
    "nvfatbin": ("nvidia-nvfatbin-cu12", "nvidia-nvfatbin"),
}
PTXAS = "nvidia-cuda-nvcc-cu12", "nvidia-cuda-nvcc"

Variant = tuple[str, str, dict[str, Any]]


@cache
def ptxas() -> Path:
    """NVIDIA's assembler: of a wheel, or of the toolkit that is installed."""
    for package in filter(installed, PTXAS):
        for file in files(package) or ():
            if re.fullmatch(r"ptxas(\.exe)?", file.name):
                return Path(str(file.locate()))
    if found := which("ptxas"):
        return Path(found)
    raise FileNotFoundError(f"neither a wheel ({', '.join(PTXAS)}) nor the PATH has ptxas")


def installed(package: str) -> str | None:
    """Its version; None if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def assemble(ptx: str, arch: int) -> tuple[bytes, str]:
    """The cubin of a PTX module for an architecture, and what ptxas reports about it."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(ptxas()), f"-arch=sm_{arch}", "-v", "kernel.ptx", "-o", "kernel.cubin"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return cubin.read_bytes(), done.stderr


def fatbin(cubins: dict[int, bytes], ptx: str) -> bytes:
    """One file of all; the archive compresses it."""
    from cuda.bindings import nvfatbin

    options = ["-64", "-compress=false"]
    handle = nvfatbin.create(options, len(options))
    for arch, code in cubins.items():
        nvfatbin.add_cubin(handle, code, len(code), str(arch), "")
    text = ptx.encode() + b"\0"
    nvfatbin.add_ptx(handle, text, len(text), str(PTX), "", "")
    result = bytearray(nvfatbin.size(handle))
    nvfatbin.get(handle, result)
    nvfatbin.destroy(handle)
    return bytes(result)


def build(variant: Variant) -> tuple[str, str, bytes]:
    """A kernel's file, its entry, and its fatbin."""
    name, dtype, options = variant
    compiled = {
        cc: cuda_compile.compile_ptx(name, dtype, cc, **options) for cc in set(CUBINS.values())
    }
    cubins = {}
    file = cuda_prebuilt.member(name, dtype, sorted(options.items()))
    for arch, cc in CUBINS.items():
        cubins[arch], report = assemble(compiled[cc].ptx, arch)
        spilled = sum(map(int, re.findall(r"(\d+) bytes (?:spill|stack)", report)))
        if spilled:
            print(f"warning: {file} for sm_{arch} uses local memory: {report}", file=sys.stderr)
    made = compiled[divmod(PTX, 10)]
    return file, made.entry, fatbin(cubins, made.ptx)


def sources() -> dict[str, str]:
    """Hashes of what the kernels are compiled from, by their names in the package."""
    return {
        name: sha256(text.encode()).hexdigest() for name, text in cuda_compile.sources().items()
    }


def manifest(entries: dict[str, str]) -> dict[str, Any]:
    """What the archive says of itself."""
    return {
        "fastdrop": __version__,
        "stream": STREAM_VERSION,
        "code": [*(f"sm_{arch}" for arch in CUBINS), f"compute_{PTX}"],
        "compilers": {
            name: next(filter(None, map(installed, packages)), "of the system")
            for name, packages in COMPILERS.items()
        },
        "parts": PARTS,
        "sources": sources(),
        "kernels": entries,
    }


def write(
    out: Path, variants: Iterable[Variant], jobs: int, told: Callable[[int], None] = lambda n: None
) -> None:
    """The archive of these kernels; the same bytes whenever, wherever and by how many jobs."""
    made = {}
    # Not forked: LLVM and threads are there.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for file, entry, code in pool.map(build, variants):
            made[file] = entry, code
            told(len(made))
    text = json.dumps(manifest({f: made[f][0] for f in sorted(made)}), indent=1)
    contents = {"manifest.json": text.encode()} | {f: made[f][1] for f in sorted(made)}
    part = out.with_name(out.name + ".part")
    with ZipFile(part, "w", ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in contents.items():
            archive.writestr(ZipInfo(name), data, ZIP_DEFLATED, 9)
    part.replace(out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python dev/gpu/cuda_build.py", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--out", type=Path, default=Path("kernels.zip"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--only", metavar="REGEX", default="", help="the kernels whose files match, as for a test"
    )
    args = parser.parse_args()
    chosen = [
        v
        for v in cuda_compile.variants()
        if re.search(args.only, cuda_prebuilt.member(v[0], v[1], sorted(v[2].items())))
    ]
    if not chosen:
        sys.exit(f"no kernel matches {args.only}")

    def told(n: int) -> None:
        if n % 20 == 0 or n == len(chosen):
            print(f"{n} of {len(chosen)} kernels", flush=True)

    write(args.out, chosen, args.jobs, told)
    print(f"{args.out}: {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
