"""A kernel parsed from PTX, and its launch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import numpy as np

from helpers.ptx.memory import Fault, Memory, Owners
from helpers.ptx.values import TYPES, VALUES, unsigned, wide

Size = int | tuple[int, ...]  # up to three axes
WARP = 32


@dataclass(frozen=True, slots=True)
class Instruction:
    text: str
    guard: str | None  # predicate register
    sense: bool  # what the predicate must be
    operands: list[str]
    match: re.Match
    reads: str  # types of the sources; empty: `run` is a method of `Launch`
    run: Callable


@dataclass
class Kernel:
    """One .entry of a PTX module; `name` may be left out where there is only one."""

    ptx: str
    name: str = r"[\w$]+"
    executed: set[int] = field(default_factory=set, init=False)  # of all launches so far

    def __post_init__(self) -> None:
        text = re.sub(r"//[^\n]*", "", self.ptx)
        heads = re.findall(rf"\.entry\s+{self.name}\s*\((.*?)\)[^{{]*\{{(.*)", text, re.S)
        if len(heads) != 1 or len(re.findall(rf"\.entry\s+{self.name}\s*\(", text)) != 1:
            raise Fault(f"not exactly one entry matches {self.name}")
        self.code: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, np.dtype] = {}
        self.parameters: dict[str, tuple[np.dtype, int]] = {}  # type, offset
        self.nbytes = 0  # of the parameters
        for t, name in re.findall(r"\.param\s+\.(\w+)\s+([\w$]+)", heads[0][0]):
            self.nbytes += -self.nbytes % TYPES[t].itemsize
            self.parameters[name] = TYPES[t], self.nbytes
            self.nbytes += TYPES[t].itemsize
        if len(self.parameters) != heads[0][0].count(".param"):
            raise Fault(f"parameters: {heads[0][0]}")
        self.parse(heads[0][1])
        after = {pc + 1 for pc, i in enumerate(self.code) if i.run in Launch.CONTROL}
        meetings = {pc for pc, i in enumerate(self.code) if i.run is Launch.exchange}
        leaders = {*self.labels.values(), *after, *meetings, len(self.code)}
        self.leaders = np.array(sorted(leaders))

    def parse(self, text: str) -> None:
        """Statements up to the closing brace; registers of inner braces get names of their own."""
        scopes: list[dict[str, str]] = [{}]
        at = 0
        while scopes:
            m = re.compile(r"\s*(?:([$\w]+):|([{}])|([^;]*?)\s*;)").match(text, at)
            at = m.end()
            label, brace, statement = m.groups()
            if label:
                self.labels[label] = len(self.code)
            elif brace == "{":
                scopes.append({})
            elif brace == "}":
                scopes.pop()
            elif m := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S):
                for name in self.declared(m[2]):
                    scopes[-1][name] = name if len(scopes) == 1 else f"{name}@{at}"
                    self.registers[scopes[-1][name]] = unsigned(TYPES[m[1]])
            elif not re.match(r"\.(loc|pragma)\b", statement):
                names = {k: v for scope in scopes for k, v in scope.items()}
                self.code.append(self.decode(statement, names))

    @staticmethod
    def declared(names: str) -> list[str]:
        """``%p<3>`` means %p0, %p1, %p2."""
        found = re.findall(r"([\w%$]+)(?:<(\d+)>)?", names)
        return [f"{n}{k}" for n, count in found for k in (range(int(count)) if count else [""])]

    @staticmethod
    def decode(statement: str, names: dict[str, str]) -> Instruction:
        m = re.fullmatch(r"(?:@(!?)([\w%$]+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.S)
        if not m:
            raise Fault(f"unknown statement: {statement}")
        inverted, guard, mnemonic, rest = m.groups()
        rest = re.sub(r"[%$]?[A-Za-z_][\w$]*(\.[xyz])?", lambda m: names.get(m[0], m[0]), rest)
        operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]
        of_length = [entry for entry in VALUES if len(entry[1]) == len(operands) - 1]
        for pattern, reads, run in [*of_length, *((p, "", f) for p, f in Launch.TABLE)]:
            if m := pattern.fullmatch(mnemonic):
                guard = names.get(guard, guard)
                return Instruction(statement, guard, not inverted, operands, m, reads, run)
        raise Fault(f"unknown instruction: {statement}")

    def launch(self, memory: Memory, grid: Size, block: Size, *arguments) -> None:
        """Runs it; arrays go by address."""
        if len(arguments) != len(self.parameters):
            raise Fault(f"{len(self.parameters)} parameters, {len(arguments)} arguments")
        parameters = np.zeros(self.nbytes, np.uint8)
        for (t, start), argument in zip(self.parameters.values(), arguments, strict=True):
            if t.kind == "u":  # a negative number wraps
                argument = int(argument) % (1 << 8 * t.itemsize)
            parameters[start : start + t.itemsize] = np.array([argument], t).view(np.uint8)
        with np.errstate(all="ignore"):
            Launch(self, memory, triple(grid), triple(block), parameters).run()

    def unexecuted(self) -> list[str]:
        """Instructions that no launch has reached so far."""
        return [i.text for pc, i in enumerate(self.code) if pc not in self.executed]


def triple(n: Size) -> tuple[int, int, int]:
    n = (n,) if isinstance(n, int) else n
    return (*n, 1, 1)[:3]


class Launch:
    """The state of one launch: a register is one array over all threads, or of length 1 where
    all agree. Arrays are never changed, so registers may share them."""

    TABLE: list[tuple[re.Pattern, Callable]]  # instructions that do more than compute a value
    CONTROL: tuple[Callable, ...]  # those after which a basic block ends
    LIMIT = 1_000_000  # instructions

    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        parameters: np.ndarray,
    ) -> None:
        self.kernel, self.memory, self.parameters = kernel, memory, parameters
        self.owners = Owners(memory.bytes.size)
        size = prod(grid) * prod(block)
        thread = np.arange(size, dtype=np.uint32)
        self.me = thread + np.uint32(1)
        self.special = {}
        for k, axis in enumerate("xyz"):
            below, across = prod(block[:k]), prod(grid[:k]) * prod(block)
            self.special[f"%tid.{axis}"] = thread // np.uint32(below) % np.uint32(block[k])
            self.special[f"%ctaid.{axis}"] = thread // np.uint32(across) % np.uint32(grid[k])
            self.special[f"%ntid.{axis}"] = np.array([block[k]], np.uint32)
            self.special[f"%nctaid.{axis}"] = np.array([grid[k]], np.uint32)
        of_block = prod(block)
        warps = -(-of_block // WARP)  # of a block; the last one may have less threads
        self.warp = thread // of_block * warps + thread % of_block // WARP
        self.lane = thread % of_block % WARP
        self.registers: dict[str, np.ndarray] = {}
        self.waiting = np.zeros(size, bool)  # for the others of the warp
        self.pc = np.zeros(size, np.int64)
        self.alive = np.ones(size, bool)
        self.lanes: np.ndarray | slice = slice(None)  # the threads that execute

    def run(self) -> None:
        code, leaders = self.kernel.code, self.kernel.leaders
        steps = 0
        while self.alive.any():
            ready = self.alive & ~self.waiting
            if not ready.any():
                raise Fault("an exchange that a thread of the warp never comes to")
            start = self.pc[ready].min()
            mine = self.alive & (self.pc == start)
            if code[start].run is Launch.exchange and not (mine := self.met(mine)).any():
                continue
            self.lanes = slice(None) if mine.all() else np.flatnonzero(mine)
            after = np.searchsorted(leaders, start, "right")
            if after == len(leaders):
                raise Fault("ran past the last instruction")
            end = leaders[after]
            self.pc[self.lanes] = end  # until a branch says otherwise
            self.kernel.executed.update(range(start, end))
            steps += end - start
            if steps > self.LIMIT:
                raise Fault("does not end")
            for i in code[start:end]:
                self.step(i)

    def met(self, here: np.ndarray) -> np.ndarray:
        """Those of these threads whose whole warp is here; the others wait."""
        missing = np.unique(self.warp[~here])
        together = here & ~np.isin(self.warp, missing)
        self.waiting[here] = True
        self.waiting[together] = False
        return together

    def step(self, i: Instruction) -> None:
        everybody = self.lanes
        if i.guard is not None:
            hold = self.read(i.guard, TYPES["pred"]) == i.sense
            if not hold.any():
                return
            if not hold.all():
                self.lanes = np.flatnonzero(hold) if self.everyone else self.lanes[hold]
        if not i.reads:
            i.run(self, i)
        else:
            t = TYPES[i.match["t"]]
            kinds = {"t": t, "u": TYPES["u32"], "p": TYPES["pred"]}
            if "w" in i.reads:
                kinds["w"] = wide(t)
            sources = [self.read(o, kinds[k]) for o, k in zip(i.operands[1:], i.reads, strict=True)]
            y = i.run(i.match, *sources)
            results = y if isinstance(y, tuple) else (y,)
            for name, result in zip(i.operands[0].split("|"), results, strict=False):
                self.write(name, result)
        self.lanes = everybody

    # Operands

    @property
    def everyone(self) -> bool:
        return isinstance(self.lanes, slice)

    def read(self, operand: str, t: np.dtype) -> np.ndarray:
        """A source as the executing threads see it."""
        if operand.startswith("!"):
            return ~self.read(operand[1:], t)
        if operand.startswith("{"):
            parts = listed(operand)
            columns = [self.read(p, np.dtype(f"u{t.itemsize // len(parts)}")) for p in parts]
            return np.stack(np.broadcast_arrays(*columns), axis=-1).view(t)[:, 0]
        if operand in self.special:
            held = self.special[operand]
        elif operand not in self.kernel.registers:
            return immediate(operand, t)
        elif operand not in self.registers:
            raise Fault(f"register read before it is written: {operand}")
        else:
            held = self.registers[operand]
        if held.size > 1:
            held = held[self.lanes]
        if held.itemsize < t.itemsize:
            raise Fault(f"{operand} is too narrow for {t}")
        if held.itemsize > t.itemsize:  # st and cvt may take a part
            held = held.astype(unsigned(t))
        return held.view(t)

    def write(self, name: str, y: np.ndarray) -> None:
        if name.startswith("{"):
            parts = listed(name)
            columns = np.ascontiguousarray(y)[:, None].view(f"u{y.itemsize // len(parts)}")
            for k, part in enumerate(parts):
                self.write(part, columns[:, k])
        elif name != "_":
            t = self.kernel.registers[name]
            if y.itemsize > t.itemsize:
                raise Fault(f"{name} is too narrow for {y.dtype}")
            if y.itemsize < t.itemsize:  # ld and cvt extend by the sign of their type
                y = (y if y.dtype.kind == "i" else y.view(unsigned(y.dtype))).astype(t)
            y = y.view(t)
            if not self.everyone:
                undefined = np.full(1, 0xA5, np.uint8).astype(t)
                whole = np.broadcast_to(self.registers.get(name, undefined), self.pc.size).copy()
                whole[self.lanes] = y
                y = whole
            self.registers[name] = y

    # Memory

    def access(self, i: Instruction, address: str, held: str):
        """Type of one register, registers, and the rows that this instruction means."""
        t, parts = TYPES[i.match["t"]], listed(held)
        if len(parts) != int(i.match["v"] or 1):
            raise Fault(f"wrong number of registers: {i.text}")
        base, offset = re.fullmatch(r"\[\s*([\w%$@]+)\s*(?:\+\s*(-?\w+)\s*)?\]", address).groups()
        offset = immediate(offset or "0", TYPES["u64"])
        if i.match["space"] == "param":
            if base not in self.kernel.parameters or len(parts) > 1:
                raise Fault(f"not a parameter: {i.text}")
            return t, parts, offset + np.uint64(self.kernel.parameters[base][1])
        rows = self.memory.rows(self.read(base, TYPES["u64"]) + offset, t.itemsize * len(parts))
        return t, parts, np.broadcast_to(rows, self.me[self.lanes].size)

    def load(self, i: Instruction) -> None:
        t, parts, rows = self.access(i, i.operands[1], i.operands[0])
        if i.match["space"] == "param":
            start = int(rows[0])
            return self.write(parts[0], self.parameters[start : start + t.itemsize].view(t))
        constant = ".nc" in i.match[0]
        self.owners.load(rows, t.itemsize * len(parts), self.me[self.lanes, None], constant)
        columns = self.memory.bytes.view(t).reshape(-1, len(parts))[rows]
        for k, part in enumerate(parts):
            self.write(part, columns[:, k])

    def store(self, i: Instruction) -> None:
        t, parts, rows = self.access(i, i.operands[0], i.operands[1])
        self.owners.store(rows, t.itemsize * len(parts), self.me[self.lanes, None])
        columns = [np.broadcast_to(self.read(p, t), rows.size) for p in parts]
        self.memory.bytes.view(t).reshape(-1, len(parts))[rows] = np.stack(columns, axis=-1)

    def move(self, i: Instruction) -> None:
        self.write(i.operands[0], self.read(i.operands[1], TYPES[i.match["t"]]))

    def exchange(self, i: Instruction) -> None:
        """What another lane of the warp has; `met` saw to it that all of them are here."""
        names, value, lane, limits, everyone = i.operands
        u32 = TYPES["u32"]
        if i.guard is not None:
            raise Fault(f"not all lanes: {i.text}")
        if not (self.read(limits, u32) == WARP - 1).all():
            raise Fault(f"lanes of less than a warp: {i.text}")
        if not (self.read(everyone, u32) == 2**WARP - 1).all():
            raise Fault(f"less than all lanes: {i.text}")
        held, of = (
            np.broadcast_to(self.read(o, u32), self.me[self.lanes].size) for o in (value, lane)
        )
        at = np.zeros((self.warp.max() + 1, WARP), np.uint32)
        warp = self.warp[self.lanes]
        at[warp, self.lane[self.lanes]] = held
        there = np.bincount(self.warp)[warp] > of % WARP
        if not there.all():
            raise Fault(f"a lane that there is not: {i.text}")
        name, _, found = names.partition("|")
        self.write(name, at[warp, of % WARP])
        if found:
            self.write(found, of < WARP)

    # Control

    def branch(self, i: Instruction) -> None:
        self.pc[self.lanes] = self.kernel.labels[i.operands[0]]

    def leave(self, i: Instruction) -> None:
        self.alive[self.lanes] = False


def listed(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def immediate(text: str, t: np.dtype) -> np.ndarray:
    """A constant of length 1: NumPy's scalars would warn where integers wrap."""
    if m := re.fullmatch(r"0([fd])([0-9a-f]+)", text.lower()):
        real = np.array([int(m[2], 16)], f"u{len(m[2]) // 2}").view("f4" if m[1] == "f" else "f8")
        if real.dtype != t:
            raise Fault(f"{text} is not of type {t}")
        return real
    if t.kind == "f" or not re.fullmatch(r"-?(0x[0-9a-fA-F]+|0|[1-9]\d*)", text):
        raise Fault(f"unknown operand: {text}")
    number = int(text, 0) % (2 if t == np.bool_ else 1 << 8 * t.itemsize)
    return np.array([number], unsigned(t)).view(t)


SPACE = r"(?:\.(?P<space>global))?"  # a generic address means the same
CACHE = r"(?:\.(?:ca|cg|cs|lu|cv|wb|wt|L1::\w+|L2::\w+))*"
TYPE = r"(?:\.v(?P<v>[24]))?\.(?P<t>[bus](?:8|16|32|64)|f32|f64)"
Launch.TABLE = [
    (re.compile(pattern), function)
    for pattern, function in [
        (rf"ld{SPACE}(\.nc)?{CACHE}{TYPE}", Launch.load),
        (rf"ld\.(?P<space>param){TYPE}", Launch.load),
        (rf"st{SPACE}{CACHE}{TYPE}", Launch.store),
        (r"mov\.(?P<t>[busf](?:16|32|64)|pred)", Launch.move),
        (r"cvta(\.to)?\.global\.(?P<t>u64)", Launch.move),
        (r"shfl\.sync\.idx\.b32", Launch.exchange),
        (r"bra(\.uni)?", Launch.branch),
        (r"ret|exit", Launch.leave),
    ]
]
Launch.CONTROL = (Launch.branch, Launch.leave)
