"""Kernels that are wrong in one place: the executed PTX shows it."""

import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import test_kernels_ptx as checks
from helpers.ptx import Fault

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

import cuda_compile

from fastdrop.backends.cuda import table as cuda_table

pytestmark = pytest.mark.slow
CC = (8, 0)
# In the order of their imports.
MODULES = [module.__name__ for module in (*cuda_table.MODULES, cuda_table)]


def forward(dtype="float32", p=0.2, n=6007, **where):
    checks.check_dropout(CC, dtype, n, p, **where)


def tail():
    forward(n=6143)


def keep_mask():
    checks.test_keep_mask(CC, 0.2, True)


def rows(row=48, p=0.4):
    checks.test_rows_of_a_table("float32", row, p)


def order():
    checks.test_order_of_ids()


def blocks(sides=(3, 7)):
    checks.test_blocks(CC, sides)


def examples(shape=(4, 3, 5, 7)):
    checks.test_examples_with_scales_of_their_own("float32", shape)


def connect():
    checks.test_connect(CC, "float32", (6, 20, 47))


def connect_back(size=(6, 20, 47)):
    checks.test_connect_back(CC, "float32", size)


def deviations():
    checks.test_noise_with_a_deviation_each("float32", (1001, 6), None)


def deviations_of_a_region():
    region = (1, 2, 3), (9, 12, 40)
    checks.test_noise_with_a_deviation_each("float32", (7, 9, 33), region)


def weighted(dtype="float32"):
    checks.test_weighted(dtype)


def sums():
    checks.test_sums_of_rows("float32", 0.4)


# Behind the head of the dropout kernel's loop, of which others have the same.
THERE = "\n            own = group + U64(lane)"

# What is changed, into what, and the check that must fail.
MUTATIONS = {
    "no refinement": (
        "            keep = refined(keep, w, number, draw)\n",
        "            keep = keep\n",
        forward,
    ),
    "refinement by 23 bits": ("keys, call) >> 8 < f:", "keys, call) >> 9 < f:", forward),
    "one tie a group": (
        "ties = U32(ties ^ U32(1) << bit)",
        "ties = U32(0)",
        lambda: checks.test_two_ties_in_one_group(CC, "float32"),
    ),
    "tie at the wrong element": (
        "at = U32((bit & U32(3)) << 2 | bit >> 3)",
        "at = U32((bit & U32(3)) << 2 | bit >> 4)",
        forward,
    ),
    "wrong shift in the mask": (
        "at_least(w[2], limit), nibble)",
        "at_least(w[2], limit), U32(5))",
        forward,
    ),
    "threshold from 1/2 on": (
        "U32(0 if half else 0xFFFFFFFF)",
        "U32(0xFFFFFFFF)",
        lambda: forward(p=0.9),
    ),
    "wrong shift of the block number": (
        "four(number, BYTES",
        "four(number >> 1, BYTES",
        forward,
    ),
    "upper half of the index lost": (
        "U32(number >> 32 | domain)",
        "U32(domain)",
        lambda: forward(start=2**40),
    ),
    "one round key twice": ("keys[12], keys[13])", "keys[10], keys[13])", forward),
    "mask of the tail not cut": (
        "k = U32(k & ones(left))\n            i",
        "k = k\n            i",
        forward,
    ),
    "tail one element too long": ("if at < n:\n", "if at <= n:\n", forward),
    "tail left out": (
        "while group << 4 < n:" + THERE,
        "while group << 4 | U64(511) < n:" + THERE,
        forward,
    ),
    "tail not seen": ("if run[0] >= end1:", "if run[0] + U64(4) >= end1:", tail),
    "misaligned arrays not seen": (
        "aligned = (x | y | residual | bias) & U64(15) == U64(0)",
        "aligned = (x | y | residual | bias) & U64(3) == U64(0)",
        lambda: forward(offset=1),
    ),
    "one group too many": (
        "if saved != U64(0) and own << 4 < n:",
        "if saved != U64(0):",
        forward,
    ),
    "every second turn left out": (
        "group += step()\n            if has_bias",
        "group += step() + step()\n            if has_bias",
        forward,
    ),
    "two threads on one group": (
        "group = first()\n        lane",
        "group = first() >> 1\n        lane",
        forward,
    ),
    "store in the wrong place": (
        "put(arrays[3] + at1, y1)",
        "put(arrays[3] + (at1 >> 1), y1)",
        forward,
    ),
    "bias goes on at the wrong column": (
        "columns = U32((step() << 4) % row)",
        "columns = U32((step() << 3) % row)",
        lambda: checks.test_bias("float32", 112),
    ),
    "bias read behind its end": (
        "column % row if around else column",
        "column",
        lambda: checks.test_bias("float32", 112),
    ),
    "chunks of another thread": (
        "(c * apart)",
        "(c)",
        forward,
    ),
    "bits given back to another thread": (
        "U32(((lane << down) + U32(c)) & wrap)",
        "U32((lane << down) & wrap)",
        lambda: checks.test_other_ops("float32", "relu_dropout"),
    ),
    "of a chunk with a NaN nothing is done": (
        "active = U32(a0 | a1)\n            if not nan0",
        "active = U32(a0 | a1)\n            missing = NONE\n            if not nan0",
        forward,
    ),
    "NaN not looked for": ("(nan0 | nan1) | (nan2 | nan3)", "nan0 | nan2", forward),
    "NaN loses its payload": (
        "return r if v == v else value(raw(bits(v) | quiet))",
        "return r",
        forward,
    ),
    "the least NaN of float16 not seen": (
        "U32(0x03FF03FF)",
        "U32(0x03FE03FE)",
        lambda: checks.test_other_ops("float16", "zoneout"),
    ),
    "masks of two elements swapped": (
        "(t.upper_signs if c else t.lower_signs)",
        "(t.lower_signs if c else t.upper_signs)",
        lambda: forward("float16"),
    ),
    "mask alone, tail not cut": (
        "U32(k & ones(left)) if left < U64(16) else k",
        "k",
        keep_mask,
    ),
    "a block of a row begins on the next": ("if w == width:", "if w > width:", blocks),
    "blocks begin in the last rows": ("if h < rows and", "if h <= rows and", blocks),
    "maps of an example miscounted": (
        "number * (size // each)",
        "number * (size // width)",
        blocks,
    ),
    "blocks one too narrow": ("while k > U64(0) and back", "while k > U64(1) and back", blocks),
    "blocks cut at an example's first words": (
        "while k > U64(0) and back < at + U64(16):",
        "while k > U64(0) and back <= at:",
        lambda: blocks((20, 39)),
    ),
    "bits behind an example not cut": (
        "bits = U32(~bits & ones(min(left, U64(16))))",
        "bits = U32(~bits)",
        blocks,
    ),
    "ones counted twice": ("word += EACH_PART", "word += U64(1)", examples),
    "scales of the next example": (
        "scale = value(load_real(own + i // row * real_item))",
        "scale = value(load_real(own + (i + U64(8)) // row * real_item))",
        examples,
    ),
    "a group across examples taken as one": (
        "if of_rows:\n            aligned",
        'if source == "rows":\n            aligned',
        examples,
    ),
    "0 / 0 kept": (
        "if total != U64(0) else number(total)",
        "if total != U64(1) else number(total)",
        examples,
    ),
    "a mask that is not at a multiple of 16 cut": (
        "last = U32(0) if at == U32(0) else U32(16)",
        "last = U32(0)",
        connect,
    ),
    "rate 1/2 drawn as another": (
        "even = t == U32(128) and f == U32(0)",
        "even = t == U32(129)",
        connect,
    ),
    "columns behind the last": (
        "return decode(load1(at + offset)) if number < left",
        "return decode(load1(at + offset)) if number < U32(99)",
        connect,
    ),
    "a dropped weight counted": (
        "if k & bit != U32(0) else zero",
        "if k & bit != U32(99) else zero",
        connect,
    ),
    "mask of the next row": (
        "index += bits_j",
        "index += columns",
        connect,
    ),
    "a tree of sums in another order": (
        "pairs(pairs(a, c), pairs(b, d))",
        "pairs(pairs(a, b), pairs(c, d))",
        connect_back,
    ),
    "all columns in one tree": (
        "CHUNK = U64(4096)",
        "CHUNK = U64(8192)",
        lambda: connect_back((2, 2, 4160)),
    ),
    "mask of another weight": (
        "keep16(index + o, draw)",
        "keep16(index + (o >> 1), draw)",
        connect_back,
    ),
    "deviations of a row that do not end": (
        "return sigma, (column if column < row else U64(0))",
        "return sigma, column",
        deviations,
    ),
    "deviations from the first on": (
        "s0, column = of_column(deviations, i % deviations[1])",
        "s0, column = of_column(deviations, U64(0))",
        deviations,
    ),
    "the first deviation of a region": (
        "own, _ = of_column(deviations, i % deviations[1])",
        "own, _ = of_column(deviations, U64(0))",
        deviations_of_a_region,
    ),
    "a slope without its noise": (
        "def slope(noise, sigma, relaxed):\n        return real(noise)",
        "def slope(noise, sigma, relaxed):\n        return sigma",
        deviations,
    ),
    "a clipped gradient": (
        "v = NOTHING if weight < NOTHING",
        "v = v if weight < NOTHING",
        weighted,
    ),
    "rounded once": (
        "v = number(narrow(v))",
        "v = v",
        lambda: weighted("float64"),
    ),
    "a row's number not multiplied": ("at = number * row", "at = number", rows),
    "of an unaligned table all rows kept": (
        "if known and given != U64(0):",
        "if known and given != U64(0) and row & U64(15) == U64(0):",
        lambda: rows(5),
    ),
    "a group across rows taken as one": (
        "aligned = aligned and row & U64(15) == U64(0)",
        "aligned = aligned and row & U64(0) == U64(0)",
        lambda: rows(5),
    ),
    "without dropout a NaN changed": (
        "if rows_of and known and given == U64(0):",
        "if rows_of and known and given == U64(1):",
        lambda: rows(p=0),
    ),
    "last run not merged": ("while low < end:", "while low + run < end:", order),
    "an id in front of itself": ("n, run) < v:", "n, run) <= v:", order),
    "order of equal ids lost": (
        "return v * n + i if",
        "return v * n + (n - U64(1) - i) if",
        order,
    ),
    "dropped words have gradients": (
        "return given == U64(0) or bit(given, word) != U32(0)",
        "return given == U64(0) or bit(given, word) != U32(2)",
        sums,
    ),
    "each row of a word begins anew": (
        "key(order, place - U64(1)) < low",
        "key(order, place - U64(1)) < key(order, place)",
        sums,
    ),
}


@pytest.fixture
def fresh(monkeypatch):
    """Nothing compiled before counts, nor does what is compiled here later."""
    monkeypatch.setattr(checks, "_compiled", checks._compiled.__wrapped__)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_kernel_is_found(monkeypatch, tmp_path, mutation):
    right, wrong, check = MUTATIONS[mutation]
    folder = Path(cuda_table.__file__).parent
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.pyc"))
    found = 0
    for name in MODULES:
        file = tmp_path / Path(import_module(name).__file__).relative_to(folder)
        source = file.read_text()
        found += source.count(right)
        file.write_text(source.replace(right, wrong))
        module = ModuleType(name)
        module.__file__ = str(file)
        monkeypatch.setitem(sys.modules, name, module)
        package, _, last = name.rpartition(".")
        monkeypatch.setattr(sys.modules[package], last, module)
        exec(compile(file.read_text(), module.__file__, "exec"), module.__dict__)
    assert found == 1
    monkeypatch.setattr(cuda_compile, "kernels", module)
    with pytest.raises((AssertionError, Fault)):
        check()
