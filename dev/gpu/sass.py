"""What the compiler makes of the GPU kernels, read without a GPU: ``python dev/gpu/sass.py``.

Each kernel is compiled and assembled as for a wheel, and disassembled by nvdisasm. The
table has registers, spills and local memory in bytes as ptxas reports them, and of the main loop
its 128-bit loads and stores and its instructions an element: all; those of a usual turn, which has
a tie in some thread of the warp (six of seven have) but no tail and no NaN, whose elements are done
one by one; those on the shortest way, without ties. Beside them stands the memory floor of an H100:
bytes an element, and how many instructions an element may be issued in the time that these take.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cuda_build
import cuda_compile

from fastdrop.base.dtypes import ITEMSIZE


@cache
def tool(name: str) -> Path | None:
    """A program of the CUDA toolkit: from NVIDIA's wheels, else from the path."""
    for folder in sys.path:
        for pattern in (f"nvidia/*/bin/{name}", f"nvidia/*/bin/{name}.exe"):
            if found := sorted(Path(folder or ".").glob(pattern)):
                return found[0]
    found = shutil.which(name)
    return Path(found) if found else None


def assemble(ptx: str, arch: int) -> tuple[str, str]:
    """The SASS of a PTX module, and what ptxas reports about it."""
    code, report = cuda_build.assemble(ptx, arch)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(code)
        return run("nvdisasm", "-c", cubin), report


def run(name: str, *arguments) -> str:
    """Output and messages of a program."""
    program = tool(name)
    if program is None:
        raise RuntimeError(f"{name} is missing: pip install 'fastdrop[test-cuda]'")
    command = [str(a) for a in (program, *arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout + done.stderr


@dataclass
class Function:
    """Instructions of a kernel, and which may follow which."""

    code: list[str]  # without the predicate
    follow: list[set[int]]

    @classmethod
    def parse(cls, sass: str) -> Function:
        code, guards, labels = [], [], {}
        for line in sass.splitlines():
            if m := re.match(r"(\.L_\w+):", line):
                labels[m[1]] = len(code)
            elif m := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?(\S.*?)\s*;", line):
                guards.append(m[1])
                code.append(m[2])
        follow, reconverge = [], {}
        for k, (c, guard) in enumerate(zip(code, guards, strict=True)):
            name = re.match(r"\w+", c)[0]
            # BRA.DIV goes where threads of a warp that are not together do an exchange one by one.
            after = {labels[m] for m in re.findall(r"^BRA\b(?!\.DIV).*`\((\.L_\w+)\)", c)}
            if m := re.match(r"BSSY\S* (B\d+), `\((\.L_\w+)\)", c):
                reconverge[m[1]] = labels[m[2]]
            elif name == "BSYNC":
                after.add(reconverge[c.split()[1]])
            always = guard is None and not re.match(r"BRA(\.DIV|\S* !?U?P\d)", c)
            if not (always and name in ("BRA", "EXIT", "RET", "BSYNC")) and k + 1 < len(code):
                after.add(k + 1)
            follow.append(after)
        reached, to_do = {0}, [0]
        while to_do:
            new = follow[to_do.pop()] - reached
            reached |= new
            to_do += new
        return cls(code, [after if k in reached else set() for k, after in enumerate(follow)])

    def loops(self) -> list[list[int]]:
        """Of each jump back, the instructions from which it can be reached within the loop."""
        before: list[set[int]] = [set() for _ in self.code]
        for k, after in enumerate(self.follow):
            for j in after:
                before[j].add(k)
        found = []
        for tail, after in enumerate(self.follow):
            for head in after:
                if head <= tail:
                    inside, to_do = {head, tail}, [tail]
                    while to_do:
                        k = to_do.pop()
                        new = (before[k] - inside) if k != head else set()
                        inside |= new
                        to_do += new
                    found.append(sorted(inside))
        return found

    def main_loop(self) -> list[int]:
        """The largest of the loops with the widest stores."""
        return max(self.loops(), key=lambda loop: (max(map(self.stored, loop)), len(loop)))

    def usual(self, loop: list[int]) -> list[int]:
        """A loop without those in it that store: they do elements one by one, as at a tail."""
        inner = [set(other) for other in self.loops() if set(other) < set(loop)]
        rare = set().union(*(other for other in inner if any(map(self.stored, other))))
        return [k for k in loop if k not in rare]

    def stored(self, k: int) -> int:
        """Bytes that an instruction stores."""
        m = re.match(r"STG\.E(?:\.\w+)*", self.code[k])
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((w for s, w in widths.items() if s in m[0].split(".")), 4) if m else 0

    def loads_16(self, k: int) -> bool:
        return bool(re.match(r"LDG\.E(\.\w+)*\.128", self.code[k]))

    def shortest(self, loop: list[int]) -> int:
        """Instructions on the shortest way through a loop that meets all its widest stores."""
        widest = max(map(self.stored, loop))
        inside, main = set(loop), {k for k in loop if self.stored(k) == widest}
        states, length = {(loop[0], len(main & {loop[0]}))}, 1  # instruction, stores met so far
        seen = set(states)
        while not any(loop[0] in self.follow[k] and met == len(main) for k, met in states):
            states = {
                (j, met + (j in main))
                for k, met in states
                for j in self.follow[k] & inside - {loop[0]}
            } - seen
            if not states:
                raise RuntimeError("no way through the loop meets all its stores")
            seen |= states
            length += 1
        return length


@dataclass(frozen=True)
class Case:
    """A kernel of `fastdrop.backends.cuda.table` and what one turn of its main loop does."""

    title: str
    name: str
    dtype: str
    options: tuple[tuple[str, object], ...]
    elements: int
    nbytes: float  # moved, an element

    @property
    def slots(self) -> float:
        """Instructions an element that an H100 can issue while its memory moves the bytes."""
        return self.nbytes * 132 * 128 * 1.755e9 / 3.35e12


@dataclass(frozen=True)
class Reading:
    """What stands in the SASS of a case."""

    registers: int
    spilled: int  # bytes
    local: int  # bytes
    loads: int  # of 128 bits, in the main loop
    stores: int
    loop: float  # instructions an element: all
    usual: float  # without elements one by one
    shortest: float


def cases() -> list[Case]:
    found = []

    def case(title: str, name: str, dtype: str, elements: int, nbytes: float, **options) -> None:
        found.append(Case(title, name, dtype, tuple(options.items()), elements, nbytes))

    for dtype, size in ITEMSIZE.items():
        bits = 1 / 8
        case("dropout", "dropout", dtype, 16, 2 * size + bits)
        case("dropout, p = 1/2", "dropout", dtype, 16, 2 * size + bits, source="bits")
        case("backward from bits", "dropout", dtype, 16, 2 * size + bits, source="given")
        for op, arrays in (
            ("dropout_add", 3),
            ("bias_dropout_add", 3),
            ("relu_dropout", 2),
            ("bias_relu_dropout", 2),
            ("bias_gelu_dropout", 2),
            ("alpha_dropout", 2),
            ("zoneout", 3),
        ):
            case(op, "dropout", dtype, 16, arrays * size + bits, op=op)
        more = {"op": "bias_gelu_backward", "source": "given"}
        case("bias_gelu_dropout, backward", "dropout", dtype, 16, 3 * size + bits, **more)
        case("drop_block, apply", "dropout", dtype, 16, 2 * size + bits, source="examples")
        case("embedding_dropout, ids", "dropout", dtype, 16, 2 * size, source="rows")
        case("gaussian_dropout", "noise", dtype, 4, 2 * size, op="scale")
        case("variational_dropout", "noise", dtype, 4, 2 * size, op="scales")
        case("concrete_dropout", "noise", dtype, 4, 2 * size, op="concrete")
    case("keep_mask, packed", "draw", "float32", 16, 1 / 8)
    case("packed to bool", "unpack", "float32", 16, 1 + 1 / 8)
    return found


def read(case: Case, arch: int) -> Reading:
    cc = cuda_build.CUBINS[arch]
    ptx = cuda_compile.compile_ptx(case.name, case.dtype, cc, **dict(case.options)).ptx
    sass, report = assemble(ptx, arch)
    function = Function.parse(sass)
    loop = function.main_loop()

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, report)))

    return Reading(
        registers=number(r"Used (\d+) registers"),
        spilled=number(r"(\d+) bytes spill"),
        local=number(r"(\d+) bytes stack frame"),
        loads=sum(map(function.loads_16, loop)),
        stores=sum(function.stored(k) == 16 for k in loop),
        loop=len(loop) / case.elements,
        usual=len(function.usual(loop)) / case.elements,
        shortest=function.shortest(loop) / case.elements,
    )


def main() -> None:
    from tabulate import tabulate

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", type=int, nargs="+", default=[80, 90, 100], choices=list(cuda_build.CUBINS)
    )
    parser.add_argument("--dtype", nargs="+", default=list(ITEMSIZE), choices=list(ITEMSIZE))
    options = parser.parse_args()
    rows = []
    for case in cases():
        if case.dtype in options.dtype:
            for arch in options.arch:
                r = read(case, arch)
                own = [r.registers, r.spilled, r.local, f"{r.loads}/{r.stores}"]
                own += [r.loop, r.usual, r.shortest]
                floor = [case.nbytes, case.slots]
                rows.append([case.title, case.dtype, f"sm_{arch}", *own, *floor])
    headers = ["kernel", "dtype", "arch", "registers", "spilled", "local", "128-bit ld/st"]
    headers += ["instr./elem., loop", "usual", "shortest", "bytes/elem.", "H100 slots/elem."]
    formats = [*[""] * 7, ".1f", ".1f", ".1f", ".3f", ".0f"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=formats))


if __name__ == "__main__":
    main()
