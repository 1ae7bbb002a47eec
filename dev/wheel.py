"""Build a wheel, check it, and run the tests against it, installed outside the checkout.

    python dev/wheel.py [x86_64 | aarch64] [--kernels FILE] [--out DIST] [--python PYTHON ...]

x86-64 and aarch64 Linux, for glibc 2.17 on (manylinux2014): the kernels are compiled by GCC, which
they were tuned with, and linked by Zig, which brings an old glibc's symbols. Needs
``pip install -e '.[wheel]'``; for aarch64 on another machine the packages gcc-aarch64-linux-gnu and
qemu-user-static, too: its tests run in an emulator, by a Python that is fetched from Debian. FILE
has the kernels for GPUs, which python dev/gpu/cuda_build.py made; without it the wheel has none.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GLIBC = "2.17"
MAX_BYTES = 900_000  # beside kernels for GPUs
KERNELS = "fastdrop/kernels.zip"
MAX_IMPORT_SECONDS = 0.05  # beyond NumPy's


def run(*command: str | Path, **options) -> str:
    """Run it, show its output only if it fails, give back what it printed."""
    done = subprocess.run(
        list(map(str, command)),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )
    if done.returncode:
        sys.exit(f"{shlex.join(map(str, command))}\n{done.stdout}\nexit status {done.returncode}")
    return done.stdout


def toolchain(machine: str) -> dict[str, str]:
    """Environment variables by which setuptools compiles for the machine and an old glibc."""
    native = machine == platform.machine()
    gcc = "gcc" if native else f"{machine}-linux-gnu-gcc"
    if not shutil.which(gcc):
        sys.exit(f"{gcc} is missing")
    zig = f"{shlex.quote(sys.executable)} -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
    # What GCC's __builtin_cpu_supports reads is in libgcc. Zig's own library has the names but not
    # the constructor: kernels beyond the baseline would never be picked.
    libgcc = run(gcc, "-print-libgcc-file-name").strip()
    return {
        **os.environ,
        "CC": gcc,
        "LDSHARED": f"{zig} -shared",
        "LDFLAGS": libgcc,
        "_PYTHON_HOST_PLATFORM": f"linux-{machine}",
    }


def build(machine: str, source: Path, out: Path) -> Path:
    """A wheel from a source tree, in a new folder."""
    tag = f"--plat-name=manylinux2014_{machine}"
    command = "-m", "build", "--wheel", "--no-isolation", f"-C--build-option={tag}"
    run(sys.executable, *command, "--outdir", out, source, env=toolchain(machine))
    (wheel,) = out.glob("*.whl")
    return wheel


def copied(to: Path) -> Path:
    """The files of the present tree that git knows or would take, in another folder."""
    names = run("git", "-C", ROOT, "ls-files", "-z", "-co", "--exclude-standard").split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, to / name)
    return to


def same_again(machine: str, wheel: Path, tree: Path, scratch: Path) -> None:
    """The same bytes from another folder, and from the sdist."""
    again = build(machine, tree, scratch / "again")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", scratch, tree)
    (sdist,) = scratch.glob("*.tar.gz")
    shutil.unpack_archive(sdist, scratch / "sdist", filter="data")
    (unpacked,) = (scratch / "sdist").iterdir()
    third = build(machine, unpacked, scratch / "from_sdist")
    hashes = [hashlib.sha256(w.read_bytes()).hexdigest() for w in (wheel, again, third)]
    if len(set(hashes)) != 1:
        sys.exit(f"three builds (tree, another folder, sdist) differ: {hashes}")
    print(f"sha256 {hashes[0]}, three times: tree, another folder, sdist")


def inspect(machine: str, wheel: Path) -> None:
    """Tag, size, limited API, nothing bundled."""
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    if f'following platform tag: "manylinux_2_17_{machine}"' not in shown:
        sys.exit(f"auditwheel: {shown}")
    run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    names = zipfile.ZipFile(wheel).namelist()
    if any(".libs/" in name for name in names):
        sys.exit(f"bundled libraries: {names}")
    given = os.environ.get("FASTDROP_KERNELS")
    if (KERNELS in names) != bool(given):
        sys.exit(f"kernels for GPUs: {given} was given, the wheel has {names}")
    kernels = zipfile.ZipFile(wheel).getinfo(KERNELS).compress_size if given else 0
    own = wheel.stat().st_size - kernels
    if own > MAX_BYTES:
        sys.exit(f"{wheel.name} has {own} bytes beside kernels for GPUs, more than {MAX_BYTES}")
    print(f"{wheel.name}: {own} bytes and {kernels} of kernels for GPUs, manylinux2014, abi3")


class Native:
    """An empty virtual environment of one of this machine's Pythons."""

    def __init__(self, python: str, folder: Path) -> None:
        run(python, "-m", "venv", folder)
        self.command = [str(folder / "bin" / "python")]
        self.environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def install(self, *requirements: str | Path) -> None:
        run(*self.command, "-m", "pip", "install", "--quiet", *requirements)


class Emulated:
    """Debian's Python for another machine, in an emulator. Nothing of this system is changed."""

    def __init__(self, machine: str, folder: Path) -> None:
        debian = {"aarch64": "arm64"}[machine]
        state, root, self.site = folder / "apt", folder / "root", folder / "site"
        for path in ("lists/partial", "cache/archives/partial"):
            (state / path).mkdir(parents=True)
        (state / "status").touch()
        settings = {
            "APT::Architecture": debian,
            "APT::Architectures": debian,
            "APT::Sandbox::User": "root",
            "Dir::State::lists": state / "lists",
            "Dir::State::status": state / "status",
            "Dir::Cache": state / "cache",
            "Debug::NoLocking": "1",
        }
        apt = ["apt-get", *(f"-o{name}={value}" for name, value in settings.items())]
        run(*apt, "update")
        packages = "python3-minimal", "libpython3-stdlib", "libstdc++6"
        run(*apt, "install", "--download-only", "--no-install-recommends", "-y", *packages)
        for package in (state / "cache/archives").glob("*.deb"):
            run("dpkg", "-x", package, root)
        python = (root / "usr/bin/python3").resolve()
        self.command = [
            f"qemu-{machine}-static",
            "-L",
            str(root),
            str(root / "usr/bin" / python.name),
        ]
        version = run(*self.command, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        newest = run(*self.command, "-c", "import os; print(os.confstr('CS_GNU_LIBC_VERSION'))")
        glibc = int(newest.split(".")[1])
        tags = [f"manylinux_2_{n}_{machine}" for n in range(glibc, 16, -1)]
        tags.append(f"manylinux2014_{machine}")
        self.pip = [
            "--target",
            self.site,
            "--only-binary=:all:",
            "--python-version",
            version.strip(),
        ]
        self.pip += ["--implementation", "cp", *(f"--platform={tag}" for tag in tags)]
        self.environment = {**os.environ, "PYTHONPATH": str(self.site)}

    def install(self, *requirements: str | Path) -> None:
        run(sys.executable, "-m", "pip", "install", "--quiet", *self.pip, *requirements)


IMPORT = """
import time
begin = time.process_time()
import numpy
start = time.process_time()
import fastdrop
print(time.process_time() - start, start - begin)
"""
CORE = ["tests/stream/test_stream.py", "tests/stream/test_rng.py", "tests/ops/test_dropout.py"]


def with_numpy_alone(python: Native | Emulated, wheel: Path, folder: Path) -> None:
    """Import time, and every op against its reference."""
    python.install(wheel)
    options = {"cwd": folder, "env": python.environment}
    times = [run(*python.command, "-c", IMPORT, **options).split() for _ in range(15)]
    own, numpys = (min(map(float, column)) for column in zip(*times, strict=True))
    print(f"import fastdrop: {1000 * own:.0f} ms beyond NumPy's {1000 * numpys:.0f} ms")
    if isinstance(python, Native) and own > MAX_IMPORT_SECONDS:
        sys.exit(f"more than {1000 * MAX_IMPORT_SECONDS:.0f} ms")
    print(run(*python.command, ROOT / "dev" / "every_op.py", **options).strip())
    print(run(*python.command, "-m", "fastdrop", "info", **options).strip())


def suite(python: Native | Emulated, wheel: Path, folder: Path, tests: list[str]) -> None:
    """The tests, in a folder that has all but the package."""
    python.install(f"{wheel}[test]")
    no = shutil.ignore_patterns("__pycache__", "_build")
    for name in ("tests", "bench", "dev", "docs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=no)
    for path in [ROOT / "conftest.py", ROOT / "pyproject.toml", *ROOT.glob("*.md")]:
        shutil.copy(path, folder)
    options = {"cwd": folder, "env": python.environment}
    print(run(*python.command, "-m", "pytest", "-q", *tests, **options).splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("machine", nargs="?", choices=["x86_64", "aarch64"], default="x86_64")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the wheel")
    parser.add_argument(
        "--python", nargs="+", default=[sys.executable], help="Pythons to try the wheel with"
    )
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="for GPUs")
    parser.add_argument("--core", action="store_true", help="only the tests of the core")
    args = parser.parse_args()
    os.environ.pop("FASTDROP_KERNELS", None)  # setup.py reads it
    if args.kernels:
        os.environ["FASTDROP_KERNELS"] = str(args.kernels.resolve())
    emulated = args.machine != platform.machine()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source, tree = copied(scratch / "source"), copied(scratch / "tree")
        wheel = build(args.machine, source, scratch / "wheel")
        inspect(args.machine, wheel)
        same_again(args.machine, wheel, tree, scratch)
        for number, command in enumerate([args.machine] if emulated else args.python):
            folder = scratch / str(number)
            (folder / "suite").mkdir(parents=True)
            print(f"\nin an empty environment of {command}:", flush=True)
            python = (Emulated if emulated else Native)(command, folder / "venv")
            with_numpy_alone(python, wheel, folder)
            suite(python, wheel, folder / "suite", CORE if emulated or args.core else [])
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"\n{shutil.copy(wheel, args.out)}")


if __name__ == "__main__":
    main()
