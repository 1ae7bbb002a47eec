"""`fastdrop.cuda` in Numba's simulator, compared with the CPU bit by bit; run by test_simulator.py,
with NUMBA_ENABLE_CUDASIM=1 in the environment. With FASTDROP_GPU=1 arrays are on the device that
Numba has: so dev/gpu/on_gpu.py runs it on a GPU.
"""

import gc
import os
import pickle
import sys
import weakref
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from cuda_compile import variants
from helpers.bitwise import assert_same_bits
from numba.core import config

import fastdrop as fd
from conftest import ALL_DTYPES, DTYPES, RATES
from fastdrop.backends.cpu import host_bits
from fastdrop.backends.cuda import launch, libraries
from fastdrop.backends.cuda import table as cuda_table
from fastdrop.backends.cuda.arrays import DeviceArray

if os.environ.get("FASTDROP_GPU"):
    from helpers.real_device import RealArray as FakeArray
    from helpers.real_device import RealLibrary as FakeLibrary
    from helpers.real_device import to_real as to_fake
else:
    from helpers.fake_device import FakeArray, FakeLibrary, to_fake

HOST_ONLY = pytest.mark.skipif("FASTDROP_GPU" in os.environ, reason="needs the host's memory")
VARIANTS = {(n, dtype, tuple(sorted(o.items()))) for n, dtype, o in variants(axes=7)}
SEED, CALL = 0xDEADBEEFCAFEF00D, 2**40 + 5
EACH_DTYPE = pytest.mark.parametrize("dtype", ALL_DTYPES, ids=lambda d: np.dtype(d).name)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """The simulator starts a Python thread for each; three make them take turns."""
    if not config.ENABLE_CUDASIM:
        return
    monkeypatch.setattr(launch, "THREADS", 3)
    monkeypatch.setattr(launch, "MAX_BLOCKS", 2)


@pytest.fixture(autouse=True)
def only_variants(monkeypatch):
    """Whatever is launched is one of the kernels that `cuda_compile.variants` lists."""
    kernel = launch._kernel

    def checked(target, name, dtype, options):
        dtype = cuda_table.dtype_of(name, dtype)
        assert (name, dtype, options) in VARIANTS
        return kernel(target, name, dtype, options)

    monkeypatch.setattr(launch, "_kernel", checked)


def rng():
    return fd.Rng(SEED, CALL)


def numbers(shape, dtype, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape) * 3
    with np.errstate(over="ignore"):
        x = x.astype(dtype)
    special = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-7, 6e4]
    flat = x.reshape(-1)
    if x.size > 40:
        flat[3 : 3 + len(special)] = special
        unsigned = flat.view(f"u{x.dtype.itemsize}")
        unsigned[20] = unsigned[3] | 5  # a NaN with a payload
        quiet = {2: 0x200, 4: 2**22, 8: 2**51}[x.dtype.itemsize]
        quiet = 0x40 if x.dtype.name == "bfloat16" else quiet
        unsigned[21:23] = unsigned[5] | 1, unsigned[6] | (quiet - 1)  # signaling ones
    return x


def both(op, *arrays, offset=0, **kwargs):
    """(y, ctx) on the device and on the CPU, of which y is compared."""
    there = [to_fake(a, offset) if isinstance(a, np.ndarray) else a for a in arrays]
    y, ctx = op(*there, rng=rng(), **kwargs)
    expected, ctx_cpu = op(*arrays, rng=rng(), **kwargs)
    assert isinstance(y, FakeArray)
    assert_same_bits(y.host, expected)
    return y, ctx, expected, ctx_cpu


def listed(grads):
    return grads if isinstance(grads, tuple) else (grads,)


def same(actual, expected):
    for a, b in zip(listed(actual), listed(expected), strict=True):
        assert isinstance(a, FakeArray)
        assert_same_bits(a.host, np.asarray(b))


def backward(ctx, ctx_cpu, dy):
    """Contexts of both sides, on both sides."""
    expected = ctx_cpu.backward(dy)
    same(ctx.backward(to_fake(dy)), expected)
    same(ctx_cpu.backward(to_fake(dy)), expected)
    for a, b in zip(listed(ctx.backward(dy)), listed(expected), strict=True):
        assert_same_bits(np.asarray(a), np.asarray(b))
    again = pickle.loads(pickle.dumps(ctx))
    same(again.backward(to_fake(dy)), expected)


@EACH_DTYPE
@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("save", ["bits", "seed"])
def test_dropout(dtype, p, save):
    x, dy = numbers(59, dtype), numbers(59, dtype, 1)
    _, ctx, _, ctx_cpu = both(fd.dropout, x, p, save=save)
    assert (ctx.seed, ctx.call, ctx.p, ctx.shape, ctx.nbytes) == (
        *(ctx_cpu.seed, ctx_cpu.call, ctx_cpu.p),
        *(ctx_cpu.shape, ctx_cpu.nbytes),
    )
    np.testing.assert_array_equal(ctx.mask(), ctx_cpu.mask())
    if dtype == np.float32 or save == "seed":
        backward(ctx, ctx_cpu, dy)
    else:
        same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


@pytest.mark.parametrize("n", [0, 1, 8, 15, 16, 17, 33, 96, 97])
@EACH_DTYPE
def test_tails(n, dtype):
    x = numbers(n, dtype)
    for p in (0.3, 0.5):
        _, ctx, _, ctx_cpu = both(fd.dropout, x, p)
        backward(ctx, ctx_cpu, x)
        packed = np.frombuffer(host_bits(ctx.held)[: ctx.nbytes], np.uint8)
        held = np.unpackbits(packed, bitorder="little")
        assert not held[n:].any()
    both(fd.relu_dropout, x, 0.3)


@EACH_DTYPE
@pytest.mark.parametrize("offset", [1, 3])
def test_misaligned(dtype, offset):
    x = numbers(70, dtype)
    _, ctx, _, ctx_cpu = both(fd.dropout, x, 0.3, offset=offset)
    same(ctx.backward(to_fake(x, offset)), ctx_cpu.backward(x))
    both(fd.dropout_add, x, x[::-1].copy(), 0.3, offset=offset)
    both(fd.gaussian_dropout, x, 0.3, offset=offset)
    out = to_fake(np.zeros(70, dtype), offset)
    y, _ = fd.dropout(to_fake(x), 0.3, rng=rng(), out=out)
    assert y is out
    same(y, fd.dropout(x, 0.3, rng=rng())[0])


@pytest.mark.parametrize("start", [1, 15, 16, 8, 2**40 + 3, 2**61 + 13])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_start(start, p):
    x = numbers(53, np.float32)
    region = (start,), (start + 100,)
    _, ctx, _, ctx_cpu = both(fd.dropout, x, p, region=region)
    backward(ctx, ctx_cpu, x)
    both(fd.gaussian_noise, x, 0.5, region=region)
    both(fd.concrete_dropout, x, 0.1, region=region)


LAYOUTS = {
    "C": lambda x: x,
    "F": lambda x: np.asfortranarray(x),
    "permuted": lambda x: x.transpose(1, 2, 0).copy().transpose(2, 0, 1),
    "sliced": lambda x: np.repeat(x, 2, 2)[:, :, ::2],
    "reversed": lambda x: x[::-1, :, ::-1].copy()[::-1, :, ::-1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [(), (1,), (0, 2), (0, 1, 2)])
def test_layouts(layout, axes):
    x = LAYOUTS[layout](numbers((3, 4, 6), np.float32))
    fake = FakeArray(x)
    places = [{"region": None}, {"region": ((2, 1, 3), (9, 8, 11))}]
    if 0 not in axes:
        places.append({"rows": [5, 0, 2**40]})
        places.append({"rows": [5, 0, 5], "region": ((0, 1, 3), (9, 8, 11))})
    for place in places:
        same_mask = {"shared_axes": axes, **place}
        y, ctx = fd.dropout(fake, 0.3, rng=rng(), **same_mask)
        expected, ctx_cpu = fd.dropout(x, 0.3, rng=rng(), **same_mask)
        assert_same_bits(y.host, expected)
        if layout != "reversed":
            assert y.host.strides == expected.strides
        assert ctx.nbytes == ctx_cpu.nbytes
        used = (ctx.draw.place.size + 7) // 8
        assert host_bits(ctx.held)[:used] == host_bits(ctx_cpu.held)[:used]
        same(ctx.backward(fake), ctx_cpu.backward(x))
        out = FakeArray(np.zeros((3, 6, 4), np.float32).transpose(0, 2, 1))
        assert fd.dropout(fake, 0.3, rng=rng(), out=out, save="seed", **same_mask)[0] is out
        assert_same_bits(out.host, expected)
    same_mask = {"shared_axes": axes, **places[-1]}
    there, _ = fd.dropout_add(fake, fake, 0.3, rng=rng(), **same_mask)
    assert_same_bits(there.host, fd.dropout_add(x, x, 0.3, rng=rng(), **same_mask)[0])
    there, _ = fd.gaussian_dropout(fake, 0.3, rng=rng(), **same_mask)
    assert_same_bits(there.host, fd.gaussian_dropout(x, 0.3, rng=rng(), **same_mask)[0])


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 16), (7, 33), (7, 3, 2, 5, 3)])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_rows(shape, p):
    x, ids = numbers(shape, np.float32), [3, 900, 0, 3, 17, 2**50, 4]
    _, ctx, _, ctx_cpu = both(fd.dropout, x, p, rows=ids)
    backward(ctx, ctx_cpu, x)
    both(fd.dropout, x, p, rows=ids, save="seed")
    both(fd.gaussian_noise, x, 0.5, rows=ids)
    both(fd.relu_dropout, x, p, rows=np.arange(7) + 5)


def test_a_mask_that_is_given():
    x, mask = numbers((9, 21), np.float32), numbers((9, 21), np.float32) > 0
    for given in (mask, np.packbits(mask, bitorder="little")):
        for op, more in ((fd.dropout, ()), (fd.dropout_add, (x,)), (fd.relu_dropout, ())):
            _, ctx, _, ctx_cpu = both(op, x, *more, 0.3, mask=given)
            backward(ctx, ctx_cpu, x)
    y, ctx = fd.dropout(FakeArray(np.asfortranarray(x)), 0.3, mask=mask)
    expected, ctx_cpu = fd.dropout(x, 0.3, mask=mask)
    assert_same_bits(y.host, expected)
    same(ctx.backward(FakeArray(x)), ctx_cpu.backward(x))


def test_many_axes_and_none():
    x = numbers((2, 3, 2, 3, 2, 3, 2), np.float32)
    _, ctx, _, ctx_cpu = both(fd.dropout, x, 0.4, shared_axes=(1, 3, 5))
    backward(ctx, ctx_cpu, x)
    for x in (np.array(2.5), np.zeros((0, 3)), np.zeros((3, 0, 2), np.float16)):
        _, ctx, _, ctx_cpu = both(fd.dropout, x, 0.4)
        backward(ctx, ctx_cpu, x)
        both(fd.gaussian_noise, x, 0.4)


@EACH_DTYPE
@pytest.mark.parametrize("p", [0, 0.3, 1])
def test_fused(dtype, p):
    x, residual, dy = (numbers((3, 32), dtype, k) for k in range(3))
    _, ctx, _, ctx_cpu = both(fd.bias_dropout_add, x, numbers(32, dtype, 5), residual, p)
    backward(ctx, ctx_cpu, dy)
    _, ctx, _, ctx_cpu = both(fd.dropout_add, x, residual, p)
    backward(ctx, ctx_cpu, dy)
    _, ctx, _, ctx_cpu = both(fd.relu_dropout, x, p)
    backward(ctx, ctx_cpu, dy)
    _, ctx, _, ctx_cpu = both(fd.relu_dropout, x, p, shared_axes=0)
    backward(ctx, ctx_cpu, dy)
    for op in (fd.bias_relu_dropout, fd.bias_gelu_dropout):
        for where in ({}, {"shared_axes": 0}, {"training": False}):
            _, ctx, _, ctx_cpu = both(op, x, numbers(32, dtype, 5), p, **where)
            backward(ctx, ctx_cpu, dy)
    _, ctx, _, ctx_cpu = both(fd.alpha_dropout, x, p)
    backward(ctx, ctx_cpu, dy)


def test_bias_of_any_length():
    for row in (1, 5, 17, 48):
        x, residual, bias = numbers((9, row), np.float32), *2 * [np.ones(row, np.float32)]
        residual = np.broadcast_to(residual, x.shape).copy()
        for op in (fd.bias_relu_dropout, fd.bias_gelu_dropout):
            _, ctx, _, ctx_cpu = both(op, x, bias, 0.3)
            backward(ctx, ctx_cpu, residual)
        _, ctx, _, ctx_cpu = both(fd.bias_dropout_add, x, bias, residual, 0.3)
        backward(ctx, ctx_cpu, x)


@EACH_DTYPE
@pytest.mark.parametrize("expectation", [True, False])
def test_zoneout(dtype, expectation):
    previous, new, dy = (numbers((9, 11), dtype, k) for k in range(3))
    for p in (0, 0.3, 1):
        _, ctx, _, ctx_cpu = both(fd.zoneout, previous, new, p, expectation=expectation)
        backward(ctx, ctx_cpu, dy)
        # The mean in NumPy gives bfloat16 NaN no payload.
        with np.errstate(invalid="ignore"):
            a, b, c = (np.where(np.isfinite(v), v, dtype(4)) for v in (previous, new, dy))
        kwargs = {"training": False, "expectation": expectation}
        _, ctx, _, ctx_cpu = both(fd.zoneout, a, b, p, **kwargs)
        backward(ctx, ctx_cpu, c)


def test_shared_draws():
    x = numbers((3, 4, 5, 2), np.float32)
    for op, kwargs in (
        (fd.spatial_dropout, {}),
        (fd.spatial_dropout, {"channels_last": True}),
        (fd.feature_alpha_dropout, {}),
        (fd.locked_dropout, {}),
        (fd.embedding_dropout, {}),
        (fd.drop_path, {}),
        (fd.drop_path, {"mode": "batch", "scale_by_keep": False}),
    ):
        _, ctx, _, ctx_cpu = both(op, x, 0.4, **kwargs)
        backward(ctx, ctx_cpu, x)


@EACH_DTYPE
@pytest.mark.parametrize("shape", [(2, 3, 7, 9), (3, 4, 1, 16), (2, 5, 21), (1, 2, 9, 8)])
def test_drop_block(dtype, shape):
    x, dy = numbers(shape, dtype), numbers(shape, dtype, 1)
    region = (7, *[0] * len(shape[1:])), (20, *shape[1:])
    for p, size, kwargs in (
        (0.2, 3, {}),
        (0.3, 1, {"channels_last": True, "save": "seed"}),
        (0.2, 5, {"per_channel": False, "region": region}),
        (0.1, 20, {"per_channel": False, "channels_last": True}),
        (1, 2, {"save": "seed"}),
        (0, 2, {}),
        (0.3, 2, {"training": False}),
    ):
        _, ctx, _, ctx_cpu = both(fd.drop_block, x, p, size, **kwargs)
        names = "shape", "p", "seed", "call", "nbytes", "block_size", "first"
        assert [getattr(ctx, n) for n in names] == [getattr(ctx_cpu, n) for n in names]
        np.testing.assert_array_equal(ctx.mask(), ctx_cpu.mask())
        np.testing.assert_array_equal(ctx.scales, ctx_cpu.scales)
        if ctx.held is not None:
            assert host_bits(ctx.held)[: ctx.nbytes] == ctx_cpu.held[: ctx.nbytes]
        if dtype == np.float32:
            backward(ctx, ctx_cpu, dy)
        else:
            same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


BLOCK_LAYOUTS = {
    "C": lambda x: x,
    "channels last": lambda x: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2),
    "batch last": lambda x: x.transpose(1, 2, 3, 0).copy().transpose(3, 0, 1, 2),
    "sliced": lambda x: np.repeat(x, 2, 3)[..., ::2],
}


@pytest.mark.parametrize("layout", BLOCK_LAYOUTS)
@pytest.mark.parametrize("per_channel", [True, False])
def test_drop_block_layouts(layout, per_channel):
    x = BLOCK_LAYOUTS[layout](numbers((3, 4, 5, 6), np.float32))
    kwargs = {"block_size": 2, "per_channel": per_channel}
    y, ctx = fd.drop_block(FakeArray(x), 0.3, rng=rng(), **kwargs)
    expected, ctx_cpu = fd.drop_block(x, 0.3, rng=rng(), **kwargs)
    assert_same_bits(y.host, expected)
    assert y.host.strides == expected.strides
    same(ctx.backward(FakeArray(x)), ctx_cpu.backward(x))
    for other in BLOCK_LAYOUTS.values():
        out = FakeArray(other(np.zeros_like(x)))
        assert fd.drop_block(FakeArray(x), 0.3, rng=rng(), out=out, **kwargs)[0] is out
        assert_same_bits(out.host, expected)
    fake = to_fake(x)
    assert fd.drop_block(fake, 0.3, rng=rng(), out=fake, **kwargs)[0] is fake
    assert_same_bits(fake.host, expected)


def test_drop_block_of_nothing_and_errors():
    for shape in ((0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)):
        _, ctx, _, ctx_cpu = both(fd.drop_block, np.zeros(shape, np.float32), 0.3, 2)
        backward(ctx, ctx_cpu, np.zeros(shape, np.float32))
    x, call = to_fake(np.ones((2, 3, 4, 4), np.float32)), fd.Rng(1)
    with pytest.raises(ValueError, match="x must have a batch axis"):
        fd.drop_block(to_fake(np.ones(3)), rng=call)
    with pytest.raises(ValueError, match="region must hold all of axis 1"):
        fd.drop_block(x, rng=call, region=((0, 1, 0, 0), (2, 4, 4, 4)))
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        fd.drop_block(x, 0.1, 0, rng=call)
    with pytest.raises(ValueError, match="out must have shape"):
        fd.drop_block(x, 0.1, out=to_fake(np.ones(3, np.float32)), rng=call)
    with pytest.raises(TypeError, match="out must be a CUDA array"):
        fd.drop_block(x, 0.1, out=np.ones((2, 3, 4, 4), np.float32), rng=call)
    with pytest.raises(ValueError, match="save must be one of"):
        fd.drop_block(x, 0.1, save="all", rng=call)
    assert call.call == 0
    with pytest.raises(ValueError, match="dy must have shape"):
        fd.drop_block(x, rng=1)[1].backward(to_fake(np.ones(3, np.float32)))


LINEAR = [(2, 3, 5), (3, 2, 32), (2, 4, 47), (2, 0, 3), (0, 3, 4), (2, 3, 0)]


def linear(batch, inputs, outputs, dtype):
    """x, weight, bias, dy."""
    generator = np.random.default_rng([batch, inputs, outputs])
    shapes = (1, batch, inputs), (inputs, outputs), (outputs,), (1, batch, outputs)
    return (generator.standard_normal(shape).astype(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", LINEAR, ids=str)
def test_dropconnect(dtype, size):
    x, weight, bias, dy = linear(*size, dtype)
    for p, kwargs in (
        (0.3, {"first": 7}),
        (0.5, {"mask_bias": False}),
        (0.3, {"bias": None}),
        (1, {"mask_bias": False}),
        (1, {}),
    ):
        operands = x, weight, kwargs.pop("bias", bias)
        _, ctx, _, ctx_cpu = both(fd.dropconnect, *operands, p, **kwargs)
        names = "shape", "p", "seed", "call", "nbytes", "scale", "mask_bias", "first"
        assert [getattr(ctx, n) for n in names] == [getattr(ctx_cpu, n) for n in names]
        if kwargs.get("mask_bias", True):
            backward(ctx, ctx_cpu, dy)
        else:  # the CPU's dbias is a sum of NumPy's
            close(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


def close(actual, expected):
    for a, b in zip(listed(actual), listed(expected), strict=True):
        rtol = 64 * np.finfo(b.dtype).eps
        np.testing.assert_allclose(a.host, b, rtol=rtol, atol=rtol * 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropconnect_with_one_mask_or_none(dtype):
    """What is left to BLAS on the CPU has another order of additions."""
    x, weight, bias, dy = linear(3, 5, 20, dtype)
    there = [to_fake(a) for a in (x, weight, bias)]
    for p, kwargs in (
        (0.3, {"mode": "batch"}),
        (0.3, {"mode": "batch", "mask_bias": False}),
        (0, {}),
        (0.3, {"training": False}),
        (0.3, {"training": False, "mode": "gaussian", "mask_bias": False}),
    ):
        for bias_here, bias_there in ((bias, there[2]), (None, None)):
            expected, ctx_cpu = fd.dropconnect(x, weight, bias_here, p, rng=rng(), **kwargs)
            y, ctx = fd.dropconnect(*there[:2], bias_there, p, rng=rng(), **kwargs)
            close(y, expected)
            close(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))
            close(ctx_cpu.backward(to_fake(dy)), ctx_cpu.backward(dy))


def test_dropconnect_misaligned_and_in_any_layout():
    x, weight, bias, dy = linear(3, 4, 32, np.float32)
    expected, ctx_cpu = fd.dropconnect(x, weight, bias, 0.3, rng=rng())
    for change in (lambda a: to_fake(a, 1), lambda a: FakeArray(np.asfortranarray(a))):
        y, ctx = fd.dropconnect(*map(change, (x, weight, bias)), 0.3, rng=rng())
        same(y, expected)
        same(ctx.backward(change(dy)), ctx_cpu.backward(dy))


def test_dropconnect_errors():
    x, w, call = to_fake(np.ones((2, 3))), to_fake(np.ones((3, 4))), fd.Rng(1)
    for arguments, kind, words in (
        ((x, np.ones((3, 4))), TypeError, "weight must be a CUDA array"),
        ((np.ones((2, 3)), w), TypeError, "weight is a CUDA array"),
        ((x, x), ValueError, r"weight must have shape \(3, outputs\)"),
        ((x, to_fake(np.ones((3, 4), np.float32))), TypeError, "weight must have dtype float64"),
        ((x, w, w), ValueError, "bias must have shape"),
        ((x, w, None, 2), ValueError, r"p must be in \[0, 1\]"),
        ((to_fake(np.ones((2, 3), np.float16)), w), TypeError, "x must be float32 or float64"),
        ((to_fake(np.ones(())), w), ValueError, "x must have at least one axis"),
    ):
        with pytest.raises(kind, match=words):
            fd.dropconnect(*arguments, rng=call)
    with pytest.raises(TypeError, match="x is a CUDA array, for which"):
        fd.dropconnect(x, w, rng=call, mode="gaussian")
    assert call.call == 0
    with pytest.raises(ValueError, match="dy must have shape"):
        fd.dropconnect(x, w)[1].backward(x)


@EACH_DTYPE
@pytest.mark.parametrize("row", [(5,), (2, 16)])
def test_embedding(dtype, row):
    weight = numbers((7, *row), dtype)
    ids = np.random.default_rng(2).integers(0, 7, (3, 7))
    dy = np.nan_to_num(numbers((*ids.shape, *row), dtype, 1), posinf=1, neginf=1)
    for p, training in ((0.4, True), (1, True), (0, True), (0.4, False)):
        kwargs = {"training": training}
        _, ctx, expected, ctx_cpu = both(fd.embedding_dropout, weight, p, ids=ids, **kwargs)
        names = "shape", "p", "seed", "call", "nbytes", "scale"
        assert [getattr(ctx, n) for n in names] == [getattr(ctx_cpu, n) for n in names]
        same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))
        y, there = fd.embedding_dropout(
            to_fake(weight), p, ids=to_fake(ids.astype(np.int32)), rng=rng(), **kwargs
        )
        same(y, expected)
        if dtype == np.float32:
            backward(ctx, ctx_cpu, dy)
            backward(there, ctx_cpu, dy)
        np.testing.assert_array_equal(there.kept(), ctx_cpu.kept())


@pytest.mark.parametrize("kind", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"])
def test_ids_of_every_kind(kind):
    weight = numbers((9, 3), np.float32)
    ids = np.random.default_rng(1).integers(0, 9, (2, 3, 20)).astype(kind)
    for view in (ids, ids[:, ::-1, 1::2], ids.T, ids[:, :, :0], ids[0, 1, 5, ...]):
        y, ctx = fd.embedding_dropout(to_fake(weight), 0.3, ids=FakeArray(view), rng=rng())
        expected, ctx_cpu = fd.embedding_dropout(weight, 0.3, ids=view, rng=rng())
        assert_same_bits(y.host, expected)
        same(ctx.backward(to_fake(expected)), ctx_cpu.backward(expected))


def test_ids_that_are_not_in_the_table():
    """On the host they are an error; on the device y is NaN, and they have no gradient."""
    weight = numbers((4, 32), np.float32)[:, ::2]
    x, kept = to_fake(weight.copy()), np.array([1, 3, 1], np.int64)
    for kind in (np.int8, np.int64):
        ids = np.array([1, -1, 3, 4, 100, 1], kind)
        for p in (0, 0.3):
            y, ctx = fd.embedding_dropout(x, p, ids=to_fake(ids), rng=rng())
            expected, ctx_cpu = fd.embedding_dropout(weight, p, ids=kept, rng=rng())
            assert np.isnan(y.host[[1, 3, 4]]).all()
            assert_same_bits(y.host[[0, 2, 5]], expected)
            dy = numbers(y.host.shape, np.float32, 1)
            dy[~(abs(dy) < 100)] = 1
            same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy[[0, 2, 5]]))
            with pytest.raises(IndexError, match=r"ids must be in 0 \.\.\. 3, got 1 \.\.\. 4"):
                ctx.backward(dy)
    with pytest.raises(IndexError, match=r"ids must be in 0 \.\.\. 3, got -1 \.\.\. 100"):
        fd.embedding_dropout(x, 0.3, ids=ids)
    with pytest.raises(TypeError, match="ids must be integers, got float32"):
        fd.embedding_dropout(x, 0.3, ids=to_fake(np.ones(3, np.float32)))
    with pytest.raises(TypeError, match="ids is a CUDA array"):
        fd.embedding_dropout(weight, 0.3, ids=to_fake(kept))
    with pytest.raises(ValueError, match=r"dy must have shape \(6, 16\)"):
        ctx.backward(x)


def test_many_ids():
    """More than are sorted in two passes."""
    weight, dy = np.ones((5, 1), np.float16), numbers((300, 1), np.float16, 1)
    dy[~(abs(dy) < 100)] = 1
    ids = np.random.default_rng(3).integers(0, 5, 300)
    _, ctx, _, ctx_cpu = both(fd.embedding_dropout, weight, 0.3, ids=ids)
    same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


@EACH_DTYPE
def test_noise(dtype):
    x, dy = numbers((5, 21), dtype), numbers((5, 21), dtype, 1)
    for op, value in ((fd.gaussian_dropout, 0.3), (fd.gaussian_noise, 1.5)):
        _, ctx, _, ctx_cpu = both(op, x, value)
        same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))
        both(op, x, value, training=False)
    x = np.nan_to_num(x, posinf=1, neginf=1)
    for temperature in (0.1, 1e-3):  # the other one leaves the range of exp
        _, ctx, _, ctx_cpu = both(fd.concrete_dropout, x, -1.2, temperature)
    both(fd.concrete_dropout, x, -1.2, training=False)
    if dtype == np.float32:
        expected = ctx_cpu.backward(x)
        same(ctx.backward(to_fake(x)), expected)
        for a, b in zip(ctx.backward(x), expected, strict=True):
            assert_same_bits(a, b)


@EACH_DTYPE
@pytest.mark.parametrize("per", [0, 1, 2])
def test_variational(dtype, per):
    """One variance for all, for each neuron, for each element."""
    x, dy = numbers((7, 21), dtype), numbers((7, 21), dtype, 1)
    shape = ((), (21,), (7, 21))[per]
    generator = np.random.default_rng(4)
    for kind in (np.float64, np.float16) if dtype == np.float32 else (np.float64,):
        log_alpha = generator.normal(-1, 1.5, shape).astype(kind)
        _, ctx, _, ctx_cpu = both(fd.variational_dropout, x, log_alpha=log_alpha)
        assert (ctx.shape, ctx.seed, ctx.call) == (ctx_cpu.shape, ctx_cpu.seed, ctx_cpu.call)
        np.testing.assert_array_equal(ctx.p, ctx_cpu.p)
        assert (log_alpha > 0).any() or not per
        plain = [generator.standard_normal(x.shape).astype(dtype) for _ in range(2)]
        _, ctx, _, ctx_cpu = both(fd.variational_dropout, plain[0], log_alpha=log_alpha)
        if kind == np.float16 and per:  # the sum of all takes an interpreter of PTX long
            backward(ctx, ctx_cpu, plain[1])
        else:
            same(ctx.backward(to_fake(plain[1])), ctx_cpu.backward(plain[1]))
        _, ctx, _, ctx_cpu = both(fd.variational_dropout, x, log_alpha=log_alpha, training=False)
        same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


@pytest.mark.parametrize("per", [0, 1, 3])
@pytest.mark.parametrize(
    "place",
    [
        {"shared_axes": 1},
        {"region": ((2, 1, 3), (9, 8, 11))},
        {"region": ((1, 0, 0), (9, 4, 6))},  # a run
        {"rows": [5, 0, 5]},
    ],
    ids=str,
)
def test_variational_places(place, per):
    x, dy = numbers((3, 4, 6), np.float32), numbers((3, 4, 6), np.float32, 1)
    log_alpha = np.random.default_rng(4).normal(-1, 1, x.shape[3 - per :])
    _, ctx, _, ctx_cpu = both(fd.variational_dropout, x, log_alpha=log_alpha, **place)
    same(ctx.backward(to_fake(dy)), ctx_cpu.backward(dy))


def test_bytes_held_of_an_array_that_does_not_tell():
    x = to_fake(np.ones((4, 5), np.float32))
    assert not hasattr(x, "nbytes")
    for ctx in (fd.concrete_dropout(x, -1.0)[1], fd.variational_dropout(x, -1.0)[1]):
        assert ctx.nbytes == 80
        assert "nbytes=80" in repr(ctx)


def test_variational_of_nothing_and_errors():
    for shape in ((0, 3), (3, 0)):
        for own in (shape[1:], shape) if shape[0] else ((), shape[1:]):
            x = np.zeros(shape, np.float32)
            _, ctx, _, ctx_cpu = both(fd.variational_dropout, x, log_alpha=np.zeros(own))
            same(ctx.backward(to_fake(x)), ctx_cpu.backward(x))
    x, call = to_fake(np.ones((4, 5), np.float32)), fd.Rng(1)
    with pytest.raises(TypeError, match="log_alpha is a CUDA array"):
        fd.variational_dropout(x, x, rng=call)
    with pytest.raises(ValueError, match="log_alpha must have shape"):
        fd.variational_dropout(x, np.ones(4), rng=call)
    with pytest.raises(ValueError, match="log_alpha must not be NaN"):
        fd.variational_dropout(x, np.nan, rng=call)
    assert call.call == 0
    with pytest.raises(ValueError, match="dy must have shape"):
        fd.variational_dropout(x, -1.0)[1].backward(to_fake(np.ones(3, np.float32)))


def test_out():
    x, residual = numbers((7, 9), np.float32), np.ones((7, 9), np.float32)
    expected = fd.dropout(x, 0.3, rng=rng())[0]
    fake = to_fake(x)
    assert fd.dropout(fake, 0.3, rng=rng(), out=fake)[0] is fake
    assert_same_bits(fake.host, expected)
    fake = to_fake(np.concatenate([x.ravel(), x.ravel()]))
    ahead, behind = fake.part(0, 63), fake.part(5, 68)
    fd.dropout(ahead, 0.3, rng=rng(), out=behind)  # they overlap askew
    assert_same_bits(behind.host, expected.ravel())
    fake = to_fake(residual)
    fd.dropout_add(to_fake(x), fake, 0.3, rng=rng(), out=fake)
    assert_same_bits(fake.host, fd.dropout_add(x, residual, 0.3, rng=rng())[0])
    dy = to_fake(residual)
    _, ctx = fd.dropout_add(to_fake(x), to_fake(residual), 0.3, rng=rng())
    dx, dresidual = ctx.backward(dy, out=dy)
    assert dx is dy
    assert_same_bits(dresidual.host, residual)
    assert_same_bits(dx.host, fd.dropout_add(x, residual, 0.3, rng=rng())[1].backward(residual)[0])


def test_calls_are_taken_as_on_the_cpu():
    r, x = fd.Rng(1), to_fake(np.ones(3))
    for p in (0.0, 0.3, 1.0):
        fd.dropout(x, p, rng=r)
        fd.relu_dropout(x, p, rng=r)
    fd.gaussian_noise(x, 0.0, rng=r)
    fd.zoneout(x, x, rng=r)
    assert r.call == 8
    fd.dropout(x, 0.3, rng=r, training=False)
    fd.zoneout(x, x, rng=r, training=False)
    assert r.call == 8


def test_nothing_is_fetched(monkeypatch):
    def fetch(self, x):
        raise AssertionError("fetched")

    monkeypatch.setattr(FakeLibrary, "fetch", fetch)
    x = to_fake(np.ones((8, 9), np.float32))
    fd.dropout(x, 0.3, rng=1)[1].backward(x)
    fd.dropout(x, 0.3, rng=1, shared_axes=0)[1].backward(x)
    fd.bias_dropout_add(x, to_fake(np.ones(9, np.float32)), x, 0.3, rng=1)[1].backward(x)
    fd.concrete_dropout(x, 0.3, rng=1)[1].backward(x)
    fd.zoneout(x, x, 0.3, rng=1)[1].backward(x)
    images = to_fake(np.ones((2, 3, 8, 8), np.float32))
    fd.drop_block(images, 0.3, 2, rng=1)[1].backward(images)
    fd.dropconnect(x, to_fake(np.ones((9, 3), np.float32)), rng=1)[1].backward(
        to_fake(np.ones((8, 3), np.float32))
    )
    fd.variational_dropout(x, np.zeros(9), rng=1)[1].backward(x)
    ids = to_fake(np.arange(8))
    fd.embedding_dropout(x, 0.3, ids=ids, rng=1)[1].backward(x)


@HOST_ONLY
def test_launches(monkeypatch):
    """Grid, block and stream of a launch."""
    seen = []

    class Recorder:
        def __getitem__(self, configuration):
            seen.append(configuration)
            return lambda *arguments: None

    from numba import cuda

    monkeypatch.setattr(launch, "THREADS", 128)
    monkeypatch.setattr(launch, "MAX_BLOCKS", 8192)
    monkeypatch.setattr(launch, "where", lambda: "cuda")
    monkeypatch.setattr(launch, "_kernel", lambda *key: Recorder())
    monkeypatch.setattr(cuda, "external_stream", lambda handle: ("stream", handle), raising=False)
    for n, blocks in ((1, 1), (16 * 128, 1), (16 * 128 + 1, 2), (16 * 128 * 9000, 8192)):
        fd.dropout(FakeArray(np.empty(n, np.float16), stream=77), 0.3, rng=1)
        assert seen.pop() == (blocks, 128, ("stream", 77))
    fd.dropout(FakeArray(np.empty(3, np.float16)), 0.3, rng=1)
    assert seen.pop() == (1, 128, 0)
    x, w = (FakeArray(np.empty(n, np.float32), stream=77) for n in ((2, 3, 8, 8), (8, 4)))
    seen.clear()
    fd.drop_block(x, 0.3, 2, rng=1)[1].backward(x)
    fd.embedding_dropout(w, 0.3, ids=[1, 2], rng=1)[1].backward(
        FakeArray(np.empty((2, 4), np.float32), stream=77)
    )
    y = FakeArray(np.empty((2, 3, 8, 4), np.float32), stream=77)
    for mode in ("example", "batch"):
        fd.dropconnect(x, w, rng=1, mode=mode)[1].backward(y)
    fd.dropconnect(x, w, p=1, rng=1)[1].backward(y)
    fd.variational_dropout(x, np.zeros(8), rng=1)[1].backward(x)
    assert len(seen) > 30
    assert {stream for *_, stream in seen} == {("stream", 77)}


def test_whole_blocks_of_threads(monkeypatch):
    monkeypatch.setattr(launch, "THREADS", 128)
    monkeypatch.setattr(launch, "MAX_BLOCKS", 8192)
    both(fd.dropout, numbers(16 * 130 + 3, np.float32), 0.2)


@pytest.mark.parametrize("axes", [(), 0, (0, 1)])
def test_keep_mask(axes):
    for p in (0, 0.3, 0.5, 1):
        for region in (None, ((3, 2), (10, 30))):
            kwargs = {"shared_axes": axes, "region": region}
            expected = fd.keep_mask((5, 21), p, rng=rng(), **kwargs)
            mask = fd.cuda.keep_mask((5, 21), p, rng=rng(), **kwargs).copy_to_host()
            assert mask.dtype == np.bool_
            np.testing.assert_array_equal(mask, expected)
            packed = fd.cuda.keep_mask((5, 21), p, rng=rng(), packed=True, **kwargs).copy_to_host()
            np.testing.assert_array_equal(packed, np.packbits(expected, bitorder="little"))


def test_errors():
    x = to_fake(np.ones(4, np.float32))
    with pytest.raises(
        TypeError, match=r"takes CUDA arrays, got numpy.ndarray: call fastdrop.drop"
    ):
        fd.cuda.dropout(np.ones(4), 0.3)
    with pytest.raises(TypeError, match="residual must be a CUDA array"):
        fd.dropout_add(x, np.ones(4, np.float32), 0.3)
    with pytest.raises(TypeError, match="out must be a CUDA array"):
        fd.dropout(x, 0.3, out=np.ones(4, np.float32))
    with pytest.raises(TypeError, match="out must be a NumPy array"):
        fd.dropout(np.ones(4, np.float32), 0.3, out=x)
    with pytest.raises(ValueError, match=r"out must have shape \(4,\), got \(5,\)"):
        fd.dropout(x, 0.3, out=to_fake(np.ones(5, np.float32)))
    with pytest.raises(TypeError, match="out must have dtype float32, got float64"):
        fd.dropout(x, 0.3, out=to_fake(np.ones(4)))
    frozen = np.ones(4, np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        fd.dropout(x, 0.3, out=FakeArray(frozen))
    with pytest.raises(TypeError, match=r"x must be float16, .* got int64"):
        fd.dropout(to_fake(np.ones(4, np.int64)), 0.3)
    with pytest.raises(TypeError, match=r"x must be float16, .* got .f4; convert it with .astype"):
        fd.dropout(FakeArray(np.ones(4, np.dtype(np.float32).newbyteorder())), 0.3)
    with pytest.raises(TypeError, match=r"x must be .* got complex64; copy it to the host"):
        fd.dropout(to_fake(np.ones(4, np.complex64)), 0.3)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        fd.dropout(x, 1.5)
    with pytest.raises(ValueError, match="save must be one of"):
        fd.dropout(x, 0.5, save="all")
    with pytest.raises(ValueError, match=r"dy must have the shape of x, \(4,\), got \(3,\)"):
        fd.dropout(x, 0.3)[1].backward(to_fake(np.ones(3, np.float32)))
    with pytest.raises(TypeError, match="residual must have dtype float32 as x has, got float64"):
        fd.dropout_add(x, to_fake(np.ones(4)), 0.3)
    call = fd.Rng(1)
    with pytest.raises(ValueError, match="region"):
        fd.dropout(x, 0.3, rng=call, region=((0,), (3,)))
    assert call.call == 0


def test_operations_without_kernels():
    x = to_fake(np.ones((4, 4), np.float32))
    for op in (
        lambda: fd.targeted_dropout(x, 0.3),
        lambda: fd.targeted_prune(x, 0.3),
        lambda: fd.adversarial_dropout(x, x, 0.05, 0.3),
        lambda: fd.sparse_variational_linear(x, x, x),
    ):
        with pytest.raises(TypeError, match=r"is a CUDA array, .* has no kernels"):
            op()


@HOST_ONLY
def test_dlpack(monkeypatch):
    """An array that has __dlpack__ alone is seen by CuPy and comes back as what it was."""

    class Other:
        def __init__(self, fake):
            self.fake = fake
            self.at_first = fake.host.copy()

        def __dlpack_device__(self):
            return 2, 0

        def __array_namespace__(self):
            return SimpleNamespace(from_dlpack=Other)

    class CuPyArray(FakeArray):
        device = nullcontext()

    cupy = ModuleType("cupy")
    cupy.from_dlpack = lambda other: CuPyArray(getattr(other, "fake", other).host)
    cupy.cuda = SimpleNamespace(alloc=lambda n: bytearray(n))
    cupy.ndarray = lambda *layout: to_fake(np.ndarray(*layout[:3]))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(libraries.DLPack, "stream", lambda self, x: 0)
    x = numbers(50, np.float32)
    y, ctx = fd.dropout(Other(to_fake(x)), 0.3, rng=rng())
    assert isinstance(y, Other)
    expected, ctx_cpu = fd.dropout(x, 0.3, rng=rng())
    assert_same_bits(y.fake.host, expected)
    assert_same_bits(y.at_first, expected)  # it came to be behind the kernel in CuPy's stream
    assert_same_bits(ctx.backward(y).at_first, ctx_cpu.backward(expected))


@pytest.mark.parametrize("op", [fd.dropout, fd.relu_dropout, fd.drop_block])
def test_a_context_holds_bits_alone(op):
    x = to_fake(np.ones((2, 3, 8, 8), np.float32))
    _, ctx = op(x, 0.3, rng=rng())
    seen = weakref.ref(x)
    del x
    gc.collect()
    assert seen() is None
    assert ctx.mask().shape == (2, 3, 8, 8)


def test_available():
    assert fd.cuda.is_available()
    assert fd.cuda.why_not() is None


def test_bfloat16_is_seen_by_its_dtype():
    x = to_fake(np.ones(4, ml_dtypes.bfloat16))
    assert DeviceArray(x).dtype == "bfloat16"
