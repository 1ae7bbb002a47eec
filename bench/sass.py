"""What the compiler makes of the GPU kernels, read without a GPU: ``python bench/sass.py``.

Each kernel is compiled for each architecture, assembled by ptxas and disassembled by nvdisasm. The
table has registers, spills and local memory as ptxas reports them, and of the main loop (the
largest) the 128-bit loads and stores and the instructions an element: on the shortest way through
it, where no thread of a warp has a tie to resolve, and of the whole loop.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path


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
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        report = run("ptxas", f"-arch=sm_{arch}", "-v", source, "-o", cubin)
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

    code: list[str] = field(default_factory=list)  # without the predicate
    follow: list[set[int]] = field(default_factory=list)

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
            after = {labels[m] for m in re.findall(r"^BRA\b.*`\((\.L_\w+)\)", c)}
            if m := re.match(r"BSSY\S* (B\d+), `\((\.L_\w+)\)", c):
                reconverge[m[1]] = labels[m[2]]
            elif name == "BSYNC":
                after.add(reconverge[c.split()[1]])
            always = guard is None and not re.match(r"BRA\S* !?U?P\d", c)
            if not (always and name in ("BRA", "EXIT", "RET", "BSYNC")) and k + 1 < len(code):
                after.add(k + 1)
            follow.append(after)
        return cls(code, follow)

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
        """The largest loop, of those with 128-bit stores if there is one."""
        loops = sorted(self.loops(), key=len)
        return next((x for x in reversed(loops) if any(map(self.stores, x))), loops[-1])

    def stores(self, k: int) -> bool:
        return bool(re.match(r"STG\.E\S*\.128", self.code[k]))

    def loads(self, k: int) -> bool:
        return bool(re.match(r"LDG\.E\S*\.128", self.code[k]))

    def shortest(self, loop: list[int]) -> int:
        """Instructions on the shortest way through a loop that meets all its 128-bit stores."""
        inside, count = set(loop), sum(map(self.stores, loop))
        tails = {k for k in loop if loop[0] in self.follow[k]}
        states, length = {(loop[0], int(self.stores(loop[0])))}, 1
        seen = set(states)
        while not any(k in tails and met == count for k, met in states):
            states = {
                (j, met + self.stores(j))
                for k, met in states
                for j in self.follow[k]
                if j in inside and j != loop[0]
            } - seen
            if not states:
                raise RuntimeError("no way through the loop meets all its stores")
            seen |= states
            length += 1
        return length
