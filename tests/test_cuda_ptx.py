"""The GPU kernels as compiled for each architecture, executed by the interpreter in tests/ptx:
every bit of every result is the CPU's."""

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from bitwise import assert_same_bits
from ptx import Kernel, Memory

import fastdrop as fd
from fastdrop import rng
from fastdrop.alpha import affine

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

from fastdrop.cuda_compile import compile_ptx
from fastdrop.cuda_kernels import round_keys

CAPABILITIES = [(8, 0), (9, 0), (10, 0)]
DTYPES = ["float32", "float64", "float16", "bfloat16"]
RATES = [0, 1e-9, 0.1, 0.2, 0.25, 0.5, 0.9, 1 - 1e-9, 1]
SIZES = [1, 15, 16, 17, 31, 32, 1000]  # 6,007 is in all other tests
SEED, CALL = 0x123456789ABCDEF0, 0xFEDCBA9876543210
GRID, BLOCK = 3, 32  # 6,007 elements are four turns of the loop, the last for some threads only


@cache
def compiled(cc, dtype, **options):
    made = compile_ptx("dropout", dtype, cc, **options)
    return Kernel(made.ptx, made.entry), [name for name, _ in made.parameters]


def some(dtype, n, seed=0, quiet=False):
    """Numbers of all sizes, zeros, infinities and NaN of any payload."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    plain = generator.standard_normal(n).astype(kind)
    unsigned = f"u{kind.itemsize}"
    anything = generator.integers(0, 1 << 8 * kind.itemsize, n, np.uint64).astype(unsigned)
    if quiet:
        anything &= ~np.zeros((), unsigned) >> 2  # neither infinite nor NaN
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], kind)
    special = special[:2] if quiet else special
    chosen = generator.choice(special.view(unsigned), n)
    pick = generator.integers(0, 8, n)
    return np.where(pick == 0, anything, np.where(pick == 1, chosen, plain.view(unsigned))).view(
        kind
    )


def launch(cc, dtype, p, arrays, *, offset=0, start=0, given=None, saves=True, scale, **more):
    """y and the saved bits of one launch; arrays: x, residual, bias by name."""
    threshold = round(p * 2.0**32)
    source = "given" if given is not None else "bits" if threshold == 2**31 else "bytes"
    kernel, names = compiled(
        cc, dtype, op=more.pop("op", "dropout"), source=source, shifted=start % 16 != 0,
        save=saves, vector=offset == 0,
    )  # fmt: skip
    x = arrays["x"]
    memory = Memory(1 << 21)
    values = dict.fromkeys(names, 0)
    values |= {name: memory.put(a, offset * x.itemsize) for name, a in arrays.items()}
    y = values["y"] = memory.put(np.full(x.shape, 7, x.dtype), offset * x.itemsize)
    words = -(-x.size // 16)
    if given is not None:
        values["given"] = memory.put(np.resize(given, 2 * words))
    if saves:
        values["saved"] = memory.put(np.full(2 * words, 0xA5, np.uint8))
    values |= {f"keys[{k}]": int(key) for k, key in enumerate(round_keys(SEED))}
    values |= {"n": x.size, "row": arrays["bias"].size if "bias" in arrays else 1, "start": start}
    values |= {"call": CALL, "scale": scale} | more
    if given is None:
        values |= {"t": threshold >> 24, "f": threshold & 0xFFFFFF}
    kernel.launch(memory, GRID, BLOCK, *(values[name] for name in names))
    return memory.get(y), memory.get(values["saved"]) if saves else None


def packed(n, p, start=0):
    """The CPU's mask of these elements, and zeros up to a multiple of 16."""
    mask = fd.keep_mask(n, p, rng=fd.Rng(SEED, CALL), region=((start,), (start + n,)))
    return np.packbits(
        np.resize(np.append(mask, np.zeros(-n % 16, bool)), n + -n % 16), bitorder="little"
    )


@pytest.fixture(params=CAPABILITIES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
def cc(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def check_dropout(cc, dtype, n, p, **where):
    start = where.get("start", 0)
    x = some(dtype, n, quiet=p == 0)  # at rate 0 the CPU copies, and any NaN with it
    y, ctx = fd.dropout(x, p, rng=fd.Rng(SEED, CALL), region=((start,), (start + n,)))
    scale = ctx.scale
    actual, saved = launch(cc, dtype, p, {"x": x}, scale=scale, **where)
    assert_same_bits(actual, y)
    assert_same_bits(saved, packed(n, p, start))


@pytest.mark.parametrize("p", RATES, ids=lambda p: f"p={p:.9g}")
def test_forward_and_saved_mask(cc, dtype, p):
    check_dropout(cc, dtype, 6007, p)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_tails(cc, dtype, p):
    for n in SIZES:
        check_dropout(cc, dtype, n, p)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_misaligned_arrays(cc, dtype, p):
    for n in (31, 1000):
        check_dropout(cc, dtype, n, p, offset=1)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_a_region_that_begins_anywhere(cc, dtype, p):
    for start in (1, 7, 2**35 + 13, 48):
        check_dropout(cc, dtype, 1013, p, start=start)


@pytest.mark.parametrize("p", [0.2, 0.5, 1 - 1e-9])
def test_backward_from_the_seed(cc, dtype, p):
    x, dy = some(dtype, 6007), some(dtype, 6007, seed=1)
    _, ctx = fd.dropout(x, p, rng=fd.Rng(SEED, CALL), save="seed")
    dx, _ = launch(cc, dtype, p, {"x": dy}, scale=ctx.scale, saves=False)
    assert_same_bits(dx, ctx.backward(dy))


@pytest.mark.parametrize("n", [6007, 15])
def test_backward_from_bits(cc, dtype, n):
    x, dy = some(dtype, n), some(dtype, n, seed=1)
    _, ctx = fd.dropout(x, 0.2, rng=fd.Rng(SEED, CALL))
    dx, _ = launch(
        cc, dtype, 0.2, {"x": dy}, scale=ctx.scale, given=packed(n, 0.2), saves=False, t=0, f=0
    )
    assert_same_bits(dx, ctx.backward(dy))


def test_in_place(cc):
    x = some("float32", 6007)
    y, ctx = fd.dropout(x, 0.2, rng=fd.Rng(SEED, CALL))
    kernel, names = compiled(
        cc, "float32", op="dropout", source="bytes", shifted=False, save=False, vector=True
    )
    memory = Memory(1 << 21)
    address = memory.put(x)
    threshold = round(0.2 * 2**32)
    values = dict.fromkeys(names, 0) | {"x": address, "y": address, "n": x.size, "row": 1}
    values |= {f"keys[{k}]": int(key) for k, key in enumerate(round_keys(SEED))}
    values |= {"call": CALL, "t": threshold >> 24, "f": threshold & 0xFFFFFF, "scale": ctx.scale}
    kernel.launch(memory, GRID, BLOCK, *(values[name] for name in names))
    assert_same_bits(memory.get(address), y)


@pytest.mark.parametrize(
    "op", ["dropout_add", "bias_dropout_add", "relu_dropout", "alpha_dropout", "zoneout"]
)
def test_other_ops(dtype, op):
    cc, p, n = (9, 0), 0.2, 96 * 63
    x, residual = some(dtype, n), some(dtype, n, seed=1)
    residual[np.isnan(x)] = 1  # of two NaN either may go on
    arrays, more = {"x": x}, {}
    draw = fd.Rng(SEED, CALL)
    if op == "dropout_add":
        arrays["residual"] = residual
        y, ctx = fd.dropout_add(x, residual, p, rng=draw)
    elif op == "bias_dropout_add":
        arrays |= {"residual": residual, "bias": some(dtype, 96, seed=2, quiet=True)}
        y, ctx = (
            a.reshape(-1) if isinstance(a, np.ndarray) else a
            for a in fd.bias_dropout_add(
                x.reshape(-1, 96), arrays["bias"], residual.reshape(-1, 96), p, rng=draw
            )
        )
    elif op == "relu_dropout":
        y, ctx = fd.relu_dropout(x, p, rng=draw)
    elif op == "alpha_dropout":
        y, ctx = fd.alpha_dropout(x, p, rng=draw)
        _, more["shift"], more["dropped"] = affine(p)
    else:
        arrays["residual"] = residual
        y, ctx = fd.zoneout(residual, x, p, rng=draw)
    actual, saved = launch(cc, dtype, p, arrays, scale=ctx.scale, op=op, **more)
    assert_same_bits(actual, y)
    if op == "relu_dropout":
        assert_same_bits(saved, np.packbits(ctx.mask(), bitorder="little"))
    else:
        assert_same_bits(saved, packed(n, p))


def test_every_instruction_is_executed(cc, dtype):
    """Of the two kernels; the rates are such that there is a tie in the tail."""
    words = rng.words_at(SEED, CALL, rng.BYTES, np.array([4], np.uint64))  # elements 16 ... 19
    for p in (0.5, *((int(words[0] & 0xFF) + f) / 256 for f in (1e-6, 1 - 1e-6))):
        check_dropout(cc, dtype, 6007, p)
        check_dropout(cc, dtype, 17, p)
    for source in ("bytes", "bits"):
        options = {"op": "dropout", "shifted": False, "save": True, "vector": True}
        kernel, _ = compiled(cc, dtype, source=source, **options)
        assert kernel.unexecuted() == []
