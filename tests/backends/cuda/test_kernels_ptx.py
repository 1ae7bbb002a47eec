"""The GPU kernels as compiled for each architecture, executed by the interpreter in
tests/helpers/ptx: every bit of every result is the CPU's."""

from functools import cache
from math import prod

import ml_dtypes
import numpy as np
import pytest
from helpers.bitwise import assert_same_bits
from helpers.ptx import Kernel, Memory

import fastdrop as fd
from fastdrop import _core, rng
from fastdrop._core import Draw
from fastdrop.backends.cpu import CPU
from fastdrop.base import gate
from fastdrop.base.dtypes import compute_type
from fastdrop.ops.alpha import affine

pytest.importorskip("numba_cuda", reason="pip install 'fastdrop[test-cuda]'")

from cuda_compile import compile_ptx

from fastdrop.backends.cuda.kernels.noise import NOISE_AXES
from fastdrop.backends.cuda.kernels.philox import round_keys

SLOW = pytest.mark.slow
CAPABILITIES = [pytest.param((8, 0), marks=SLOW), (9, 0), pytest.param((10, 0), marks=SLOW)]
DTYPES = ["float32", *(pytest.param(d, marks=SLOW) for d in ("float64", "bfloat16")), "float16"]
RATES = [0, 1e-9, 0.1, 0.2, 0.25, 0.5, 0.9, 1 - 1e-9, 1]
SIZES = [1, 15, 16, 17, 31, 32, 1000]  # 6,007 is in all other tests
SEED, CALL = 0x123456789ABCDEF0, 0xFEDCBA9876543210
gate.array(np.zeros(1, ml_dtypes.bfloat16))  # the kernels that tests call know its number then
GRID, BLOCK = 3, 32  # 6,007 elements are four turns of the loop, the last for some threads only


@cache
def _compiled(name, cc, dtype, options):
    made = compile_ptx(name, dtype, cc, **dict(options))
    return Kernel(made.ptx, made.entry), [parameter for parameter, _ in made.parameters]


def compiled(name, cc, dtype, **options):
    return _compiled(name, cc, dtype, tuple(sorted(options.items())))


def run(kernel, arrays, *, offset=0, **numbers):
    """One launch of what `compiled` gives; the arrays as it left them, by name.

    offset: in elements, how far from aligned addresses all but the packed bits begin.
    numbers: the other arguments, 0 where not given; a tuple for ``shape[0]``, ``shape[1]``, ....
    """
    kernel, names = kernel
    memory = Memory(1 << 21)
    addresses = {
        name: memory.put(a, 0 if name in ("given", "saved") else offset * a.itemsize)
        for name, a in arrays.items()
    }
    numbers["keys"] = round_keys(SEED)
    values = dict.fromkeys(names, 0) | {"call": CALL} | numbers | addresses
    for name, value in numbers.items():
        if isinstance(value, tuple):
            values |= {f"{name}[{k}]": v for k, v in enumerate(value)}
    kernel.launch(memory, GRID, BLOCK, *(values[name] for name in names))
    return {name: memory.get(a) for name, a in addresses.items()}


def rate(p):
    """Of a draw's kernel, the options and the parameters that depend on the rate."""
    threshold = round(p * 2.0**32)
    source = "bits" if threshold == 2**31 else "bytes"
    return source, {"t": threshold >> 24, "f": threshold & 0xFFFFFF}


def room(n):
    """For n packed bits."""
    return np.full(2 * -(-n // 16), 0xA5, np.uint8)


def some(dtype, n, seed=0, quiet=False):
    """Numbers of all sizes, zeros, infinities and NaN of any payload."""
    generator = np.random.default_rng(seed)
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    plain = generator.standard_normal(n).astype(kind)
    unsigned = f"u{kind.itemsize}"
    anything = generator.integers(0, 1 << 8 * kind.itemsize, n, np.uint64).astype(unsigned)
    if quiet:
        anything &= ~np.zeros((), unsigned) >> 2  # neither infinite nor NaN
    special = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan], kind).view(unsigned)
    special = np.append(special, special[3:5] + 1).astype(unsigned)  # the least of all NaN
    chosen = generator.choice(special[:3] if quiet else special, n)
    pick = generator.integers(0, 8, n)
    return np.where(pick == 0, anything, np.where(pick == 1, chosen, plain.view(unsigned))).view(
        kind
    )


def launch(cc, dtype, p, arrays, *, op="dropout", offset=0, start=0, saves=True, **numbers):
    """y and the saved bits of the kernel "dropout"; with `given` among the arrays, from bits."""
    source, threshold = rate(p)
    if "given" in arrays:
        source, threshold = "given", {}
    kernel = compiled("dropout", cc, dtype, op=op, source=source, shifted=start % 16 != 0)
    x = arrays["x"]
    arrays = {"y": np.full_like(x, 7)} | arrays | ({"saved": room(x.size)} if saves else {})
    row = arrays["bias"].size if "bias" in arrays else 1
    after = run(
        kernel, arrays, offset=offset, n=x.size, row=row, start=start, **threshold, **numbers
    )
    return after["y"], after.get("saved")


def packed(n, p, start=0):
    """The CPU's mask of these elements, and zeros up to a multiple of 16."""
    mask = fd.keep_mask(n, p, rng=fd.Rng(SEED, CALL), region=((start,), (start + n,)))
    return in_words(mask)


def in_words(mask):
    return np.packbits(np.append(mask, np.zeros(-mask.size % 16, bool)), bitorder="little")


@pytest.fixture(params=CAPABILITIES, ids=["sm_80", "sm_90", "sm_100"])
def cc(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def check_dropout(cc, dtype, n, p, x=None, **where):
    start = where.get("start", 0)
    if x is None:
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
    arrays = {"x": dy, "given": packed(n, 0.2)}
    dx, _ = launch(cc, dtype, 0.2, arrays, scale=ctx.scale, saves=False)
    assert_same_bits(dx, ctx.backward(dy))


def test_in_place(cc):
    x = some("float32", 6007)
    y, ctx = fd.dropout(x, 0.2, rng=fd.Rng(SEED, CALL))
    source, threshold = rate(0.2)
    options = {"op": "dropout", "source": source, "shifted": False}
    kernel, names = compiled("dropout", cc, "float32", **options)
    same = kernel, ["x" if name == "y" else name for name in names]
    arrays = {"x": x, "saved": room(x.size)}
    after = run(same, arrays, n=x.size, row=1, scale=ctx.scale, **threshold)
    assert_same_bits(after["x"], y)


def two_arrays(dtype, n):
    """Of two NaN either may go on in a sum: never two at one place."""
    x, residual = some(dtype, n), some(dtype, n, seed=1)
    with np.errstate(invalid="ignore"):  # signalling NaN
        residual[np.isnan(x)] = 1
    return x, residual


@pytest.mark.parametrize("row", [112, 54])
def test_bias(dtype, row):
    """With rows of 16 elements, where they begin in turns of the loop at all columns, and not."""
    x, residual = two_arrays(dtype, 6048)
    bias = some(dtype, row, seed=2, quiet=True)
    y, ctx = fd.bias_dropout_add(
        x.reshape(-1, row), bias, residual.reshape(-1, row), 0.2, rng=fd.Rng(SEED, CALL)
    )
    arrays = {"x": x, "residual": residual, "bias": bias}
    actual, saved = launch((9, 0), dtype, 0.2, arrays, scale=ctx.scale, op="bias_dropout_add")
    assert_same_bits(actual, y.reshape(-1))
    assert_same_bits(saved, packed(x.size, 0.2))


@pytest.mark.parametrize("op", ["bias_relu_dropout", "bias_gelu_dropout", "bias_gelu_backward"])
@pytest.mark.parametrize("row", [112, 54])
def test_bias_and_activation(dtype, row, op):
    x, dy = two_arrays(dtype, 6048)
    bias = some(dtype, row, seed=2, quiet=True)
    bias[: row // 2] = 0  # what x is there, is not lost
    draw, of_rows = fd.Rng(SEED, CALL), x.reshape(-1, row)
    arrays = {"x": x, "bias": bias}
    if op == "bias_relu_dropout":
        y, ctx = fd.bias_relu_dropout(of_rows, bias, 0.2, rng=draw)
    else:
        y, ctx = fd.bias_gelu_dropout(of_rows, bias, 0.2, rng=draw)
    if op == "bias_gelu_backward":
        arrays |= {"x": dy, "residual": x, "given": packed(x.size, 0.2)}
        y, _ = ctx.backward(dy.reshape(-1, row))
    actual, saved = launch((9, 0), dtype, 0.2, arrays, scale=ctx.scale, op=op)
    assert_same_bits(actual, y.reshape(-1))
    assert_same_bits(saved, in_words(ctx.mask()))


@SLOW
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_packing_before_sm_80(dtype):
    check_dropout((7, 5), dtype, 6007, 0.2)
    check_other_op((7, 5), dtype, "dropout_add")


@pytest.mark.parametrize("op", ["dropout_add", "relu_dropout", "alpha_dropout", "zoneout"])
def test_other_ops(dtype, op):
    check_other_op((9, 0), dtype, op)


def check_other_op(cc, dtype, op):
    p, n = 0.2, 6047
    x, residual = two_arrays(dtype, n)
    arrays, more = {"x": x}, {}
    draw = fd.Rng(SEED, CALL)
    if op == "dropout_add":
        arrays["residual"] = residual
        y, ctx = fd.dropout_add(x, residual, p, rng=draw)
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
        assert_same_bits(saved, in_words(ctx.mask()))
    else:
        assert_same_bits(saved, packed(n, p))


def two_ties():
    """A group of 16 elements, and a byte that two of its first 15 have."""
    groups = rng.words_at(SEED, CALL, rng.BYTES, np.arange(400, dtype=np.uint64)).view(np.uint8)
    groups = groups.reshape(-1, 16)[:, :15]
    return next((k, t) for k, g in enumerate(groups) for t in g.tolist() if (g == t).sum() > 1)


def test_two_ties_in_one_group(cc, dtype):
    at, tie = two_ties()
    for refined in (1e-6, 1 - 1e-6):  # nearly all are kept, nearly all are dropped
        check_dropout(cc, dtype, 16, (tie + refined) / 256, start=16 * at)


def test_every_instruction_is_executed(cc, dtype):
    """Of the kernels of both kinds of draw: with two ties in one thread's elements, and NaN."""
    at, tie = two_ties()
    numbers = some(dtype, 6007)
    with np.errstate(invalid="ignore"):  # signalling NaN
        nan = numbers[np.argsort(numbers == numbers, kind="stable")]  # these first
    for p in (0.5, 0.25, (tie + 1e-6) / 256, (tie + 1 - 1e-6) / 256):
        check_dropout(cc, dtype, 6007, p)
        for n in (15, 16):
            check_dropout(cc, dtype, n, p, start=16 * at, x=nan[:n])
    for source in ("bytes", "bits"):
        kernel, _ = compiled("dropout", cc, dtype, op="dropout", source=source, shifted=False)
        assert kernel.unexecuted() == []


@pytest.mark.parametrize("p", [0.2, 0.5])
@pytest.mark.parametrize("small", [True, False])
def test_keep_mask(cc, p, small):
    source, threshold = rate(p)
    for shape, shared, region in [
        ((6007,), (), None),
        ((31,), (), ((5,), (99,))),
        ((7, 9, 33), (), ((1, 2, 3), (9, 12, 40))),
        ((40, 21), (0,), None),
        ((5, 40, 3), (2,), None),
        ((5, 6, 40), (), ((3, 0, 0), (8, 6, 40))),
    ]:
        place = gate.place(shape, shared, region)
        axes = 0 if place.is_run else len(place.shape)
        kernel = compiled(
            "draw", cc, "float32", source=source, shifted=place.start % 16 != 0, axes=axes,
            small=small,
        )  # fmt: skip
        n = prod(place.shape)
        numbers = {"start": place.start, "shape": place.shape, "strides": place.strides}
        after = run(kernel, {"saved": room(n)}, n=n, **numbers, **threshold)
        mask = fd.keep_mask(shape, p, rng=fd.Rng(SEED, CALL), shared_axes=shared, region=region)
        for axis in shared:
            mask = mask.take([0], axis)
        assert_same_bits(after["saved"], in_words(mask))


@pytest.mark.parametrize("n", SIZES)
def test_bits_become_bytes(cc, n):
    given = packed(n, 0.2)
    arrays = {"given": given, "y": np.full(n, 7, np.uint8)}
    after = run(compiled("unpack", cc, "float32"), arrays, n=n)
    assert_same_bits(after["y"], np.unpackbits(given, count=n, bitorder="little"))


@pytest.mark.parametrize("small", [True, False])
def test_bits_of_a_shared_mask_are_spread(cc, small):
    for drawn, shape in [((40, 1), (40, 21)), ((1, 50), (21, 50)), ((3, 1, 50), (3, 7, 50))]:
        mask = fd.keep_mask(drawn, 0.2, rng=fd.Rng(SEED, CALL))
        steps = np.array([prod(drawn[d + 1 :]) for d in range(len(drawn))])
        steps = tuple(int(s) for s in np.where(np.array(drawn) == 1, 0, steps))
        kernel = compiled("spread", cc, "float32", axes=len(shape), small=small)
        arrays = {"given": in_words(mask), "saved": room(prod(shape))}
        after = run(kernel, arrays, n=prod(shape), shape=shape, strides=steps)
        assert_same_bits(after["saved"], in_words(np.broadcast_to(mask, shape)))


BLOCKS = 2, 3, 37, 41  # examples, maps, height, width


def masks_of_blocks(sides):
    """Where blocks begin, and the mask, as the kernels take and give them, with its context."""
    batch, maps, height, width = BLOCKS
    shape = batch, maps, height - sides[0] + 1, width - sides[1] + 1
    begins = np.random.default_rng(3).random(shape) < 0.02
    begins[:, 0, 0, 0] = begins[:, -1, -1, -1] = True
    seeds = in_words(~begins)
    keep = _core.drop_blocks(seeds.tobytes() + bytes(_core.BITS_PAD), BLOCKS, *sides)
    return begins, np.frombuffer(keep, np.uint8)[: -_core.BITS_PAD]


@pytest.mark.parametrize("sides", [(1, 1), (3, 7), (20, 39)])
def test_blocks(cc, sides):
    batch, maps, height, width = BLOCKS
    size = maps * height * width
    row = -(-size // 64) * 64
    begins, keep = masks_of_blocks(sides)
    sizes = {"n": batch * row, "row": row, "size": size}
    places = {"rows": begins.shape[2], "columns": begins.shape[3], "height": height, "width": width}
    bits = in_words(~begins)
    for name, more in (
        ("place", places),
        ("widen", {"far": 1, "k": sides[1]}),
        ("widen", {"far": width, "k": sides[0], "keep": 1}),
    ):
        arrays = {"given": bits, "saved": np.full_like(keep, 0xA5)}
        bits = run(compiled(name, cc, "float32"), arrays, **sizes, **more)["saved"]
    assert_same_bits(bits, keep)


@pytest.mark.parametrize("shape", [(3, 7, 6, 8), (4, 3, 5, 7)])
def test_examples_with_scales_of_their_own(dtype, shape):
    batch, size = shape[0], prod(shape[1:])
    x = some(dtype, batch * size).reshape(shape)
    y, ctx = fd.drop_block(x, 0.3, 2, rng=fd.Rng(SEED, CALL))
    mask = ctx.mask().reshape(batch, size)
    mask[1] = False  # nothing is left of one
    y[1] = 0
    words = np.zeros((batch, -(-size // 64) * 64), bool)
    words[:, :size] = mask
    row = words.shape[1]
    arrays = {"given": in_words(words), "sums": np.full((batch, _core.PARTS), 7)}
    sums = run(compiled("count", (9, 0), "float32"), arrays, n=batch, row=row)["sums"]
    np.testing.assert_array_equal(sums.sum(axis=1), mask.sum(axis=1))
    real = np.float64 if dtype == "float64" else np.float32
    arrays = {"sums": sums, "y": np.full(batch, 7, real)}
    scales = run(compiled("scale", (9, 0), real.__name__), arrays, n=batch, size=size)["y"]
    kept = mask.sum(axis=1)
    expected = np.divide(size, kept, out=np.zeros(batch), where=kept > 0)
    assert_same_bits(scales, expected.astype(real))
    kernel = compiled("dropout", (9, 0), dtype, op="dropout", source="examples", shifted=False)
    arrays = {"x": x, "y": np.full_like(y, 7), "own": scales, "given": in_words(mask)}
    assert_same_bits(run(kernel, arrays, n=x.size, row=size)["y"], y)


LINEAR = [(6, 20, 47), (7, 9, 64)]  # batch, inputs, outputs


def linear(size, dtype, first=3):
    """Operands without a bias, where their masks are, and what the CPU makes of them."""
    generator = np.random.default_rng(size)
    batch, inputs, outputs = size
    shapes = (batch, inputs), (inputs, outputs), (batch, outputs)
    x, weight, dy = (generator.standard_normal(shape).astype(dtype) for shape in shapes)

    def expected(p):
        draw = fd.Rng(SEED, CALL)
        y, ctx = fd.dropconnect(x, weight, None, p, rng=draw, first=first)
        return (y, *ctx.backward(dy)), {"scale": ctx.scale, **rate(p)[1]}

    return x, weight, dy, weight.size, first * weight.size, expected


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=SLOW)])
@pytest.mark.parametrize("size", LINEAR, ids=str)
def test_connect(cc, dtype, size):
    """y, and the weights' gradient, which is the same kernel."""
    batch, inputs, outputs = size
    x, weight, dy, length, start, expected = linear(size, dtype)
    kernel = compiled("connect", cc, dtype)
    for p in (0.3, 0.5):
        (y, _, dweight), numbers = expected(p)
        numbers |= {"columns": outputs, "start": start}
        arrays = {"x": x, "m": weight, "y": np.full_like(y, 7)}
        strides = {"bits_i": length, "bits_j": outputs, "x_i": inputs, "x_j": 1}
        after = run(kernel, arrays, rows=batch, terms=inputs, **strides, **numbers)
        assert_same_bits(after["y"], y)
        arrays = {"x": x, "m": dy, "y": np.full_like(weight, 7)}
        strides = {"bits_i": outputs, "bits_j": length, "x_i": 1, "x_j": inputs}
        after = run(kernel, arrays, offset=1, rows=inputs, terms=batch, **strides, **numbers)
        assert_same_bits(after["y"], dweight)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=SLOW)])
@pytest.mark.parametrize("size", [*LINEAR, (2, 2, 4160)], ids=str)
def test_connect_back(cc, dtype, size):
    batch, inputs, outputs = size
    x, weight, dy, length, start, expected = linear(size, dtype)
    kernel = compiled("connect_back", cc, dtype)
    for p, offset in ((0.3, 0), (0.5, 1))[: 1 if outputs > 4096 else 2]:
        (_, dx, _), numbers = expected(p)
        numbers |= {"columns": outputs, "start": start, "bits_i": length}
        arrays = {"m": weight, "g": dy, "y": np.full_like(x, 7)}
        after = run(kernel, arrays, offset=offset, rows=batch, terms=inputs, **numbers)
        assert_same_bits(after["y"], dx)


def test_a_bias_is_added_to_what_is_there(cc):
    y = some("float32", 5 * 47, quiet=True).reshape(5, 47)
    bias = some("float32", 47, 1, quiet=True)
    kernel = compiled("connect", cc, "float32")
    sizes = {"rows": 5, "terms": 1, "columns": 47, "more": 1}
    after = run(kernel, {"m": bias, "y": y}, scale=1.5, **sizes)
    with np.errstate(over="ignore"):
        assert_same_bits(after["y"], (y + bias) * np.float32(1.5))


def some_rows(dtype, row, p):
    """A table, ids, its rows by them, their context, and the mask as a kernel takes it."""
    ids = np.random.default_rng(5).integers(0, 50, 301)
    weight = some(dtype, 50 * row).reshape(50, row)
    y, ctx = fd.embedding_dropout(weight, p, ids=ids, rng=fd.Rng(SEED, CALL))
    return weight, ids, y, ctx, {"given": in_words(ctx.kept())} if p else {}


@pytest.mark.parametrize("row", [48, 5])
@pytest.mark.parametrize("p", [0, 0.4])
def test_rows_of_a_table(dtype, row, p):
    weight, ids, y, ctx, given = some_rows(dtype, row, p)
    kernel = compiled("dropout", (9, 0), dtype, op="dropout", source="rows", shifted=False)
    arrays = {"x": weight, "y": np.full_like(y, 7), "own": ids} | given
    after = run(kernel, arrays, n=y.size, row=row, words=50, scale=ctx.scale)
    assert_same_bits(after["y"], y)


def test_order_of_ids():
    x = np.random.default_rng(5).integers(0, 9, 301)
    order = np.arange(x.size) + x * x.size
    for merged in (1, 16, 256):
        arrays = {"x": x, "y": np.full_like(x, 7)}
        x = run(compiled("sort", (9, 0), "float32"), arrays, n=x.size, run=merged)["y"]
    np.testing.assert_array_equal(x, np.sort(order))


@pytest.mark.parametrize("p", [0, 0.4])
def test_sums_of_rows(dtype, p):
    row = 5
    weight, ids, _, ctx, given = some_rows(dtype, row, p)
    dy = some(dtype, ids.size * row, 1, quiet=True).reshape(ids.size, row)
    with np.errstate(over="ignore"):
        expected = ctx.backward(dy)
    order = np.sort(ids * ids.size + np.arange(ids.size))
    arrays = {"order": order, "x": dy, "y": np.zeros_like(weight)} | given
    sizes = {"n": ids.size, "row": row, "words": 50}
    after = run(compiled("add_rows", (9, 0), dtype), arrays, scale=ctx.scale, **sizes)
    assert_same_bits(after["y"], expected)


LOGIT, TEMPERATURE = -1.25, 0.125


def noise_numbers(op, dtype):
    """The CPU's op and its constants, and the numbers that the kernel takes."""
    if op in ("scale", "add"):
        code = _core.NOISE_SCALE if op == "scale" else _core.NOISE_ADD
        return code, np.array(0.5, compute_type(dtype)), {"sigma": 0.5}
    p = 1 / (1 + np.exp(-LOGIT))
    relaxed = LOGIT, p, 1 / TEMPERATURE, 1 / (1 - p)
    names = "logit", "rate", "inverse", "scale"
    return _core.CONCRETE, relaxed, dict(zip(names, relaxed, strict=True))


def draw_for(shape, region=None):
    return Draw(SEED, CALL, 0.0, gate.place(shape, (), region))


def where_noise_lies(place):
    """The numbers of a place that a kernel takes, and for how many axes it is."""
    if place.is_run:
        return {"start": place.start}, 0
    more = NOISE_AXES - len(place.shape)
    axes = {"shape": (1,) * more + place.shape, "strides": (0,) * more + place.strides}
    return {"start": place.start} | axes, NOISE_AXES


@pytest.mark.parametrize("op", ["scale", "add", "concrete", "gradient"])
def test_noise(dtype, op):
    cc = (9, 0)
    cases = [((6007,), None), ((2,), ((4,), (9,))), ((7, 9, 33), ((1, 2, 3), (9, 12, 40)))]
    for shape, region in cases:
        x, dy = (some(dtype, prod(shape), seed, quiet=True).reshape(shape) for seed in (0, 1))
        draw = draw_for(shape, region)
        code, constants, numbers = noise_numbers(op, dtype)
        if op == "gradient":
            _, expected = CPU.noise_gradients(code, x, dy, draw, constants, None)
        else:
            expected = CPU.noise(code, x, draw, constants)
        where, axes = where_noise_lies(draw.place)
        kernel = compiled("noise", cc, dtype, op=op, axes=axes, small=True)
        arrays = {"x": x, "g": dy, "y": np.full_like(expected, 7)}
        after = run(kernel, arrays, n=x.size, **numbers, **where)
        assert_same_bits(after["y"], expected)


@pytest.mark.parametrize(
    ("shape", "region"),
    [((1001, 6), None), ((6006,), None), ((7, 9, 33), ((1, 2, 3), (9, 12, 40)))],
    ids=str,
)
def test_noise_with_a_deviation_each(dtype, shape, region):
    x, dy = (some(dtype, prod(shape), seed, quiet=True).reshape(shape) for seed in (0, 1))
    sigma = np.random.default_rng(2).random(shape[-1])
    sigma = sigma.astype(compute_type(dtype))
    of = _core.NOISE_SCALE, x
    draw = draw_for(shape, region)
    expected = CPU.noise(*of, draw, sigma)
    _, slopes = CPU.noise_gradients(*of, dy, draw, sigma, None)
    where, axes = where_noise_lies(draw.place)
    for op, wanted, more in (("scales", expected, {"sigmas": sigma}), ("slope", slopes, {"g": dy})):
        kernel = compiled("noise", (9, 0), dtype, op=op, axes=axes, small=True)
        arrays = {"x": x, "y": np.full_like(wanted, 7)} | more
        after = run(kernel, arrays, n=x.size, row=sigma.size, **where)
        assert_same_bits(after["y"], wanted)


def test_weighted(dtype):
    """Rounded to x's type, and then to that of y; nothing where a weight is negative."""
    generator = np.random.default_rng(2)
    weights = generator.random(1000, np.float32).astype(np.float64)
    for real in (np.float32, np.float64):
        x = generator.standard_normal(1000).astype(real)
        x[5:9] = 1e-45, 1e30, -1e-42, np.inf
        kind = some(dtype, 1).dtype
        with np.errstate(over="ignore", under="ignore"):
            expected = (weights.astype(real) * x).astype(kind)
        clipped = generator.random(1000) < 0.1
        expected[clipped] = 0
        arrays = {"weights": np.where(clipped, -1.0, weights), "x": x, "y": expected + kind.type(1)}
        kernel = compiled("weighted", (9, 0), dtype)
        after = run(kernel, arrays, n=x.size, wide=real == np.float64)
        assert_same_bits(after["y"], expected)


@pytest.mark.parametrize("rows", [1, 41, 600])
def test_sums_of_columns(dtype, rows):
    cc, row = (9, 0), 24
    dy = some(dtype, rows * row, quiet=True)
    zeros = np.zeros_like(dy)
    _, ctx = fd.bias_dropout_add(
        zeros.reshape(-1, row), zeros[:row], zeros.reshape(-1, row), 0.0, rng=1
    )
    _, expected, _ = ctx.backward(dy.reshape(-1, row))
    sums = np.zeros((_core.PARTS, row))
    after = run(compiled("sums", cc, dtype, by="rows"), {"x": dy, "sums": sums}, n=dy.size, row=row)
    arrays = {"sums": after["sums"], "y": np.full_like(expected, 7)}
    after = run(compiled("total", cc, dtype, single=False), arrays, row=row)
    assert_same_bits(after["y"], expected)


@pytest.mark.slow  # one thread adds all
def test_sum_of_all():
    cc, dtype, n = (9, 0), "float32", 9001
    x, dy = (some(dtype, n, seed, quiet=True) for seed in (0, 1))
    code, constants, _ = noise_numbers("gradient", dtype)
    of = code, x, dy, draw_for((n,)), constants
    _, terms = CPU.noise_gradients(*of, None)
    _, expected = CPU.noise_gradients(*of, 1)
    arrays = {"x": terms, "sums": np.zeros((_core.PARTS, 512))}
    after = run(compiled("sums", cc, dtype, by="tiles"), arrays, n=n, row=512)
    arrays = {"sums": after["sums"], "y": np.full(1, 7.0)}
    after = run(compiled("total", cc, dtype, single=True), arrays, row=512)
    assert_same_bits(after["y"], np.array([expected]))
