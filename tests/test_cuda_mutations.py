"""Kernels that are wrong in one place: the executed PTX shows it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import test_cuda_ptx as checks
from ptx import Fault

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

from fastdrop import cuda_compile, cuda_kernels

CC = (9, 0)


def forward(dtype="float32", p=0.2, n=6007, **where):
    checks.check_dropout(CC, dtype, n, p, **where)


def keep_mask():
    checks.test_keep_mask(CC, 0.2, True)


# What is changed, into what, and the check that must fail.
MUTATIONS = {
    "no refinement": (
        "            keep = refined(keep, w0, w1, w2, w3, index, t, f, keys, call)\n",
        "            keep = keep\n",
        forward,
    ),
    "refinement by 23 bits": ("if U32(w >> U32(8)) < f:", "if U32(w >> U32(9)) < f:", forward),
    "one tie a group": (
        "ties = U32(ties ^ U32(U32(1) << bit))",
        "ties = U32(0)",
        lambda: checks.test_two_ties_in_one_group(CC, "float32"),
    ),
    "tie at the wrong element": (
        "U32(bit & U32(3)) << U32(2)) | U32(bit >> U32(3))",
        "U32(bit & U32(3)) << U32(2)) | U32(bit >> U32(4))",
        forward,
    ),
    "wrong shift in the mask": ("keep >> U32(14)", "keep >> U32(13)", forward),
    "wrong shift of the block number": (
        "block(U64(index >> U64(4)), bytes",
        "block(U64(index >> U64(5)), bytes",
        forward,
    ),
    "upper half of the index lost": (
        "U32(U32(number >> U64(32)) | domain)",
        "U32(domain)",
        lambda: forward(start=2**40),
    ),
    "one round key twice": ("keys[12], keys[13])", "keys[10], keys[13])", forward),
    "mask of the tail not cut": (
        "            k = U32(k & U32(U32(U32(1) << U32(m)) - U32(1)))\n            i = U64(group",
        "            i = U64(group",
        forward,
    ),
    "tail one element too long": (
        "m = U64(n & U64(15))",
        "m = U64(U64(n & U64(15)) + U64(1))",
        forward,
    ),
    "tail left out": ("if group == whole and m", "if group > U64(n) and m", forward),
    "one group too many": ("while group < whole:", "while group <= whole:", forward),
    "every second turn left out": (
        "group = U64(group + step())\n        m =",
        "group = U64(group + U64(step() + step()))\n        m =",
        forward,
    ),
    "two threads on one group": (
        "group = first()\n        whole",
        "group = U64(first() >> U64(1))\n        whole",
        forward,
    ),
    "store in the wrong place": (
        "put(U64(y + half), y1)",
        "put(U64(y + U64(8)), y1)",
        forward,
    ),
    "NaN loses its payload": (
        "return r if v == v else value(raw(bits(v) | quiet))",
        "return r",
        forward,
    ),
    "the least NaN of float16 not seen": (
        "U32(0x03FF03FF)",
        "U32(0x03FE03FE)",
        lambda: forward("float16"),
    ),
    "mask alone, tail not cut": (
        "k = U32(k & U32(U32(U32(1) << U32(n - i)) - U32(1)))",
        "k = k",
        keep_mask,
    ),
}


@pytest.fixture
def fresh(monkeypatch):
    """Nothing compiled before counts, nor does what is compiled here later."""
    monkeypatch.setattr(checks, "_compiled", checks._compiled.__wrapped__)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_kernel_is_found(monkeypatch, mutation):
    right, wrong, check = MUTATIONS[mutation]
    source = Path(cuda_kernels.__file__).read_text()
    assert source.count(right) == 1
    module = ModuleType(cuda_kernels.__name__)
    module.__file__ = cuda_kernels.__file__
    exec(compile(source.replace(right, wrong), "<mutation>", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, cuda_kernels.__name__, module)
    monkeypatch.setattr(cuda_compile, "kernels", module)
    with pytest.raises((AssertionError, Fault)):
        check()
