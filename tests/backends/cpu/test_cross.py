"""Every kernel table against the portable one, in C alone (cross/kernels.c): natively, AVX-512
emulated by SIMDe, NEON under qemu. FASTDROP_SANITIZE=1 builds what runs natively with the address
and undefined-behaviour sanitizers."""

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CROSS = ROOT / "tests" / "backends" / "cpu" / "cross"
KNOWN_ANSWERS = ROOT / "tests" / "known_answers" / "philox4x32.txt"
X86 = platform.machine() in ("x86_64", "AMD64")
ARM = platform.machine() in ("aarch64", "arm64")
FLAGS = ["-std=c11", "-Wall", "-Wextra", "-ffp-contract=off", f"-I{ROOT / 'src'}"]
SANITIZE = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# What dispatch.c asks for, in the words of /proc/cpuinfo.
CPU_FLAGS = {"sse2": {"sse2"}, "avx2": {"avx2", "bmi1", "bmi2", "f16c"}}
CPU_FLAGS["avx512"] = CPU_FLAGS["avx2"] | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


@functools.cache
def cpu_flags():
    found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return set(found[1].split())


def need_cpu(isa):
    if not X86:
        pytest.skip(f"{isa} is for x86-64, this is {platform.machine()}")
    if not Path("/proc/cpuinfo").exists():
        pytest.skip("no /proc/cpuinfo to tell what this CPU can run")
    if lacking := CPU_FLAGS[isa] - cpu_flags():
        pytest.skip(f"{isa}: this CPU lacks {' '.join(sorted(lacking))}")


def need_tool(tool, package):
    if not (path := shutil.which(tool)):
        pytest.skip(f"no {tool} (Debian: {package})")
    return path


def need_compiles(command, source, package, tmp_path):
    """A small program, to tell a toolchain that is not complete from a kernel that is wrong."""
    (tmp_path / "probe.c").write_text(source)
    command = [*command, str(tmp_path / "probe.c"), "-o", str(tmp_path / "probe")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{' '.join(command)} fails (Debian: {package}): {done.stderr.strip()[:300]}")


def run(command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stderr}"
    return done.stdout


def check(isa, compiler, effort, tmp_path, flags=(), runner=()):
    objects = []
    for name in (
        "tests/backends/cpu/cross/kernels.c",
        "src/simd/isa_portable.c",
        f"src/simd/isa_{isa}.c",
    ):
        objects.append(tmp_path / f"{Path(name).stem}.o")
        # As it is shipped; the others only have to be right, and compile six times as fast so.
        level = "-O3" if name.endswith(f"{isa}.c") else "-O1"
        defined = f"-DTABLE=fd_{isa}"
        run([*compiler, *FLAGS, level, *flags, defined, "-c", ROOT / name, "-o", objects[-1]])
    program = tmp_path / "kernels"
    run([*compiler, *flags, *objects, "-lm", "-o", program])
    assert run([*runner, program, KNOWN_ANSWERS, effort]).startswith(f"{isa} equals portable: ")


def check_native(isa, tmp_path):
    compiler = [need_tool("gcc", "gcc libc6-dev")]
    flags = []
    if os.environ.get("FASTDROP_SANITIZE"):
        flags = SANITIZE
        need_compiles([*compiler, *flags], "int main(void) { return 0; }", "gcc", tmp_path)
    check(isa, compiler, 50, tmp_path, flags)


@pytest.mark.parametrize("isa", CPU_FLAGS)
def test_x86(isa, tmp_path):
    need_cpu(isa)
    check_native(isa, tmp_path)


@pytest.mark.slow
def test_avx512_through_simde(tmp_path):
    need_cpu("avx2")
    compiler = [need_tool("gcc", "gcc libc6-dev")]
    flags = ["-O1", "-mavx2", "-mbmi", "-mbmi2", "-mf16c", "-Wno-psabi"]
    probe = "#include <simde/x86/avx512.h>\nint main(void) { return 0; }"
    need_compiles([*compiler, *flags], probe, "libsimde-dev", tmp_path)
    check("avx512", compiler, 30, tmp_path, [*flags, "-DFASTDROP_SIMDE", f"-I{CROSS}"])


def test_neon(tmp_path):
    if ARM:
        return check_native("neon", tmp_path)
    compiler = [need_tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), "-static"]
    runner = [need_tool("qemu-aarch64-static", "qemu-user-static")]
    package = "libc6-dev-arm64-cross"
    need_compiles(compiler, "int main(void) { return 0; }", package, tmp_path)
    check("neon", compiler, 15, tmp_path, runner=runner)
