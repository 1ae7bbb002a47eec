"""What ptxas makes of the GPU kernels: wide accesses, no spills, few registers and instructions."""

from functools import cache

import pytest
from sass import ITEMSIZE, Case, assemble, cases, read, tool

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")
pytestmark = pytest.mark.skipif(
    not tool("nvdisasm"), reason="no nvdisasm: pip install 'fastdrop[test-cuda]'"
)

reading = cache(read)
ARRAYS_READ = {
    **{"dropout_add": 2, "bias_dropout_add": 3, "zoneout": 2, "bias_relu_dropout": 2},
    **{"bias_gelu_dropout": 2, "bias_gelu_dropout, backward": 3},
}
ALL = cases()
FEW = [
    c
    for c in ALL
    if c.title in ("dropout", "dropout, p = 1/2", "backward from bits")
    and c.dtype in ("float32", "float16")
]
GELU = [c for c in ALL if "gelu" in c.title]
# With 16 bits the bias, which begins anew anywhere, costs more than memory leaves time for.
BUSY = [c for c in ALL if c.title == "bias_relu_dropout" and ITEMSIZE[c.dtype] == 2]
COUNTED = [c for c in ALL if c.name == "dropout" and c not in GELU and c not in BUSY]


def label(case):
    return f"{case.title}-{case.dtype}" if hasattr(case, "title") else f"sm_{case}"


@pytest.mark.parametrize("case", FEW, ids=label)
def test_dropout(case):
    check(case, 90)


@pytest.mark.slow
@pytest.mark.parametrize("arch", [80, 100, 120], ids=label)
@pytest.mark.parametrize("case", ALL, ids=label)
def test_on_other_architectures(case, arch):
    check(case, arch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in ALL if c not in FEW], ids=label)
def test_other_kernels(case):
    check(case, 90)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["connect", "connect_back"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("arch", [80, 90, 100], ids=label)
def test_sums_stay_in_registers(name, dtype, arch):
    """16 or 32 of them, with those of a draw: computing is the limit, not memory."""
    r = reading(Case(name, name, dtype, (), 16, 0.0), arch)
    assert r.spilled == r.local == 0
    assert r.registers <= 128


def check(case, arch):
    r = reading(case, arch)
    assert r.spilled == 0
    assert r.local == 0
    more = "bias" in case.title or case.title in ("backward from bits", "dropout_add", "zoneout")
    few = 64 if case in GELU else 48 if more else 40
    assert r.registers <= few + 8 * (case.dtype == "float64")
    if case.name == "dropout":  # 16 elements, 16 bytes at a time
        assert r.stores == ITEMSIZE[case.dtype]
        assert r.loads == ITEMSIZE[case.dtype] * ARRAYS_READ.get(case.title, 1)


@pytest.mark.parametrize(
    "case",
    [c if c in FEW else pytest.param(c, marks=pytest.mark.slow) for c in COUNTED],
    ids=label,
)
def test_instructions_an_element(case):
    """Of a turn with a tie, in which no element goes alone."""
    r = reading(case, 90)
    assert r.usual <= 0.75 * case.slots
    assert r.shortest <= r.usual <= r.loop
    assert r.loop < case.slots  # memory is the limit


@pytest.mark.slow
@pytest.mark.parametrize("case", GELU, ids=label)
def test_instructions_of_gelu(case):
    """Of one exponential and one division, which are the limit with 16 bits. Ten to fifteen are
    for elements that threads exchange.
    """
    assert reading(case, 90).usual <= (150 if case.dtype == "float64" else 76)


@pytest.mark.slow
@pytest.mark.parametrize("case", BUSY, ids=label)
def test_instructions_with_a_bias(case):
    assert reading(case, 90).usual <= 33


def test_what_the_tests_look_for_is_found():
    """Spills and local memory, where there are some."""
    ptx = """
.version 8.8
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 x)
{
    .local .align 16 .b8 space[64];
    .reg .b64 %d<4>;
    .reg .b32 %r<4>;
    ld.param.u64 %d0, [x];
    ld.global.u32 %r0, [%d0];
    and.b32 %r0, %r0, 60;
    cvt.u64.u32 %d1, %r0;
    mov.u64 %d2, space;
    add.u64 %d2, %d2, %d1;
    st.local.u32 [%d2], %r0;
    ld.local.u32 %r1, [space+4];
    st.global.u32 [%d0], %r1;
    ret;
}
"""
    assert "64 bytes stack frame" in assemble(ptx, 90)[1]
