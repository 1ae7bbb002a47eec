"""The operations on arrays in a GPU's memory: CuPy, PyTorch, Numba, and what else has
``__cuda_array_interface__``.

The functions here have the signatures, the errors and the random stream of those of the same names
in `fastdrop`, which find their way here by themselves if x lives on the device: the same bits as on
a CPU, whatever the GPU and the grid. y is an array of x's kind and device. Kernels go to the stream
that is the caller's present one, and nothing waits for them. A context can be used for backward on
either side, whichever made it; what it holds is copied then.

Needs a driver, and cuda-core where kernels came with the package, else Numba, which compiles them
at their first use in a process, for about a second each: see `is_available` and `why_not`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import signature
from math import prod
from typing import Any

import numpy as np

from fastdrop import _core
from fastdrop._core import (
    ALPHA_DROPOUT,
    BIAS_DROPOUT_ADD,
    CONCRETE,
    DROPOUT,
    DROPOUT_ADD,
    NOISE_ADD,
    NOISE_SCALE,
    PARTS,
    RELU_DROPOUT,
    ZONEOUT,
)
from fastdrop.backends.cuda.arrays import (
    DeviceArray,
    DeviceBits,
    array,
    collapsed,
    contiguous,
    copy,
    default_kind,
    launch,
    output,
    overlap,
    sent,
    where,
    why_not,
)
from fastdrop.base import gate
from fastdrop.base.devices import on_device
from fastdrop.base.place import Block, c_strides
from fastdrop.ops import alpha, concrete, dropblock, fused, gaussian, shared, variational
from fastdrop.ops import dropconnect as connections
from fastdrop.ops import dropout as functional
from fastdrop.ops.dropblock import DropBlockContext
from fastdrop.ops.dropconnect import DropConnectContext
from fastdrop.ops.noise import Draw, compute_type
from fastdrop.ops.zoneout import ZoneoutContext, ZoneoutMeanContext
from fastdrop.ops.zoneout import zoneout as _zoneout
from fastdrop.rng import RngLike, draw_call

__all__ = [
    "alpha_dropout",
    "bias_dropout_add",
    "concrete_dropout",
    "drop_block",
    "drop_path",
    "dropconnect",
    "dropout",
    "dropout_add",
    "embedding_dropout",
    "feature_alpha_dropout",
    "gaussian_dropout",
    "gaussian_noise",
    "is_available",
    "keep_mask",
    "locked_dropout",
    "relu_dropout",
    "spatial_dropout",
    "variational_dropout",
    "why_not",
    "zoneout",
]

OPS = {
    DROPOUT: "dropout",
    DROPOUT_ADD: "dropout_add",
    BIAS_DROPOUT_ADD: "bias_dropout_add",
    RELU_DROPOUT: "relu_dropout",
    ALPHA_DROPOUT: "alpha_dropout",
    ZONEOUT: "zoneout",
}
NOISE_OPS = {NOISE_SCALE: "scale", NOISE_ADD: "add", CONCRETE: "concrete"}


def is_available() -> bool:
    """Whether kernels can run here; `why_not` tells what is missing."""
    return why_not() is None


def _on_device(op: Callable) -> Callable:
    """The op for device arrays only: nothing is copied over the bus unasked."""
    operand = next(iter(signature(op).parameters))

    @wraps(op)
    def checked(*args: Any, **kwargs: Any) -> Any:
        where()
        x = args[0] if args else kwargs.get(operand)
        if x is not None and not on_device(x):
            kind = f"{type(x).__module__}.{type(x).__qualname__}"
            raise TypeError(
                f"fastdrop.cuda.{op.__name__} takes CUDA arrays, got {kind}: call "
                f"fastdrop.{op.__name__} for arrays in the host's memory, or copy it to the device "
                "(cupy.asarray, torch.Tensor.cuda, numba.cuda.to_device)"
            )
        return op(*args, **kwargs)

    return checked


dropout = _on_device(functional.dropout)
dropout_add = _on_device(fused.dropout_add)
bias_dropout_add = _on_device(fused.bias_dropout_add)
relu_dropout = _on_device(fused.relu_dropout)
alpha_dropout = _on_device(alpha.alpha_dropout)
feature_alpha_dropout = _on_device(alpha.feature_alpha_dropout)
spatial_dropout = _on_device(shared.spatial_dropout)
locked_dropout = _on_device(shared.locked_dropout)
dropconnect = _on_device(connections.dropconnect)
drop_block = _on_device(dropblock.drop_block)
drop_path = _on_device(shared.drop_path)
embedding_dropout = _on_device(shared.embedding_dropout)
gaussian_dropout = _on_device(gaussian.gaussian_dropout)
gaussian_noise = _on_device(gaussian.gaussian_noise)
concrete_dropout = _on_device(concrete.concrete_dropout)
variational_dropout = _on_device(variational.variational_dropout)
zoneout = _on_device(_zoneout)


def keep_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    rng: RngLike,
    shared_axes: int | Sequence[int] = (),
    region: functional.Region | None = None,
    packed: bool = False,
) -> Any:
    """`fastdrop.keep_mask` as a Numba device array, or without Numba as an array that has
    ``__cuda_array_interface__`` (``cupy.asarray`` and ``torch.as_tensor`` take either without a
    copy) and ``copy_to_host``.
    """
    where()
    dims = gate.shape(shape)
    p = gate.rate(p)
    block = gate.block(dims, shared_axes, region)
    seed, call = draw_call(rng)
    like = DeviceArray(default_kind().empty(None, (1,), "float32", (4,)))
    bits = _spread(_draw(seed, call, p, block, like), dims, range(len(dims)), _steps(block), like)
    n = prod(dims)
    if packed:
        return bits.bits.array[: (n + 7) // 8]
    mask = like.new("bool", dims)
    if n:
        launch("unpack", like, (n + 15) // 16, {}, given=bits.bits, y=mask, n=n)
    return mask.array


def masked(
    op: int,
    x: Any,
    p: Any,
    rng: RngLike,
    training: bool,
    shared_axes: int | Sequence[int],
    region: functional.Region | None,
    out: Any,
    save: str,
    constants: Callable[[float], tuple[float, float, float]] | None,
) -> tuple[Any, functional.Context]:
    """`fastdrop.functional.masked` on the device."""
    where()
    x, p = array(x), gate.rate(p)
    out = output(x, out)
    block = gate.block(x.shape, shared_axes, region)
    seed, call = draw_call(rng) if training else (None, None)
    if not training or p == 0.0:
        y = _result(x, out)
        copy(_apart(x, y), y)
        return y.array, functional.Context(x.shape, 0.0, seed, call, None, None)
    scale, *rest = constants(p) if constants else (_core.scale_of(p),)
    draw = seed, call, p, block
    y, bits = _forward(op, x, None, None, out, draw, save == "bits", scale, *rest)
    return y.array, functional.Context(x.shape, p, seed, call, block, bits, scale)


def run_fused(
    op: int,
    kind: type[functional.Context],
    x: Any,
    residual: Any,
    bias: Any,
    p: float,
    rng: RngLike,
    training: bool,
    shared_axes: int | Sequence[int],
    region: functional.Region | None,
    out: Any,
    save: str,
) -> tuple[Any, Any]:
    """`fastdrop.fused._run` on the device."""
    where()
    x, p = array(x), gate.rate(p)
    if op != RELU_DROPOUT:
        residual = array(residual, "residual")
        gate.like(residual, "residual", x.shape, x.dtype)
        residual = contiguous(residual)
    if op == BIAS_DROPOUT_ADD:
        if not x.ndim:
            raise ValueError("x must have at least one axis, along which bias is added, got 0-d")
        bias = array(bias, "bias")
        gate.like(bias, "bias", x.shape[-1:], x.dtype)
        bias = contiguous(bias)
    block = gate.block(x.shape, shared_axes, region)
    out = output(x, out)
    x = contiguous(x)
    seed, call = draw_call(rng) if training else (None, None)
    rate = p if training else 0.0
    draw = seed or 0, call or 0, rate, block
    keep_bits = save == "bits" and rate > 0.0
    y, bits = _forward(op, x, residual, bias, out, draw, keep_bits, _core.scale_of(rate))
    held = None if op == RELU_DROPOUT else block  # its bits are its own, one an element
    return y.array, kind(x.shape, rate, seed, call, held, bits)


def lookup(
    weight: Any, p: float, ids: Any, rng: RngLike, training: bool
) -> tuple[Any, shared.EmbeddingContext]:
    """`fastdrop.embedding_dropout` with ids on the device."""
    where()
    weight = array(weight, "weight")
    if on_device(ids):
        ids = _numbers(sent(ids, weight), weight.shape[0]).array
    else:
        ids = shared.rows_of(ids, weight.shape)
    seed, call = draw_call(rng) if training else (None, None)
    ctx = shared.EmbeddingContext(weight.shape, p if training else 0.0, seed, call, ids)
    weight, own = contiguous(weight), sent(ids, weight)
    y = weight.new(shape=(*own.shape, *weight.shape[1:]))
    if y.size:
        launch(
            "dropout",
            weight,
            (y.size + 15) // 16,
            {"op": "dropout", "source": "rows", "shifted": False},
            x=weight,
            y=y,
            given=_kept_rows(ctx, weight),
            own=own,
            n=y.size,
            row=prod(weight.shape[1:]),
            words=weight.shape[0],
            scale=ctx.scale,
        )
    return y.array, ctx


def backward_embedding(ctx: shared.EmbeddingContext, dy: Any) -> Any:
    """`fastdrop.EmbeddingContext.backward` on the device."""
    where()
    dy = array(dy, "dy")
    gate.like(dy, "dy", (*ctx.ids.shape, *ctx.shape[1:]))
    dy, ids = contiguous(dy), sent(ctx.ids, dy)
    dweight, n, row = _zeros(dy.new(shape=ctx.shape)), ids.size, prod(ctx.shape[1:])
    if dy.size:
        launch(
            "add_rows",
            dy,
            dy.size,
            {},
            order=_sorted(ids),
            x=dy,
            given=_kept_rows(ctx, dy),
            y=dweight,
            n=n,
            row=row,
            words=ctx.shape[0],
            scale=ctx.scale,
        )
    return dweight.array


def _numbers(ids: DeviceArray, words: int) -> DeviceArray:
    """Integers on the device as int64 in C order; `words` where one is not below."""
    if ids.dtype.rstrip("0123456789") not in ("int", "uint"):
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    y = ids.new("int64")
    if ids.size:
        shape, strides = collapsed(ids.shape, ids.strides)
        launch(
            "ids",
            ids,
            ids.size,
            {"axes": len(shape)},
            x=ids,
            y=y,
            n=ids.size,
            width=8 * ids.itemsize,
            signed=ids.dtype[0] == "i",
            words=words,
            shape=shape,
            strides=tuple(s % 2**64 for s in strides),
        )
    return y


def _sorted(ids: DeviceArray) -> DeviceArray:
    """ids[i] * n + i of n ids, in ascending order."""
    from fastdrop.backends.cuda.kernels.rows import WAYS

    x, run = ids, 1
    while run == 1 or run < ids.size:
        y = ids.new()
        launch("sort", ids, ids.size, {}, x=x, y=y, n=ids.size, run=run)
        x, run = y, run * WAYS
    return x


def _kept_rows(ctx: shared.EmbeddingContext, like: DeviceArray) -> Any:
    """A keep bit for each row of the table; 0 if none is dropped."""
    if ctx.p == 0.0:
        return 0
    block = Block(ctx.shape[:1], (), None)
    return _draw(ctx.seed, ctx.call, ctx.p, block, like).bits


def _zeros(x: DeviceArray) -> DeviceArray:
    """x, in C order, filled with zeros."""
    return _scaled(x, 0.0, x)


def keep_blocks(ctx: DropBlockContext, x: Any) -> DeviceBits:
    """The keep bits of `fastdrop.drop_block`: each example begins with a 64-bit word."""
    like = DeviceArray(x)
    gamma, begins, k_height, k_width = ctx._seeds
    batch, maps, height, width = ctx._drawn
    size = maps * height * width
    row = -(-size // 64) * 64
    n = batch * row
    *_, rows, columns = begins.shape
    bits = _draw(ctx.seed, ctx.call, gamma, begins, like)
    for name, more in (
        ("place", {"rows": rows, "columns": columns, "height": height, "width": width}),
        ("widen", {"far": 1, "k": k_width}),
        ("widen", {"far": width, "k": k_height, "keep": 1}),
    ):
        before, bits = bits.bits, DeviceBits.empty(n, like)
        arguments = {"given": before, "saved": bits.bits, "n": n, "row": row, "size": size} | more
        launch(name, like, n // 16, {}, **arguments)
    return bits


def backward_blocks(ctx: DropBlockContext, dy: Any, out: Any) -> Any:
    """`fastdrop.DropBlockContext.backward` on the device."""
    where()
    dy = array(dy, "dy")
    gate.like(dy, "dy", ctx.shape)
    out = output(dy, out)
    if not ctx._drops:
        dx = _result(dy, out)
        copy(_apart(dy, dx), dx)
        return dx.array
    batch, maps, height, width = ctx._drawn
    size = maps * height * width
    row = -(-size // 64) * 64
    held = keep_blocks(ctx, dy.array) if ctx.bits is None else ctx.bits
    bits = DeviceBits.of(held, batch * row, dy)
    real = "float64" if dy.dtype == "float64" else "float32"
    sums, scales = dy.new("int64", (batch, PARTS)), dy.new(real, (batch,))
    launch("count", dy, batch * PARTS, {}, given=bits.bits, sums=sums, n=batch, row=row)
    launch("scale", scales, batch, {}, sums=sums, y=scales, n=batch, size=size)

    order = dy.order()
    if order[0]:  # the kernel takes examples that are behind each other
        order.remove(0)
        order.insert(0, 0)
    channels = height * width if ctx.per_channel else 0
    steps = [row, width, 1] if dy.ndim == 4 else [row, 1]
    steps.insert(dy.ndim - 1 if ctx.channels_last else 1, channels)
    each = _spread(bits, dy.shape, order, steps, dy)
    x = _dense(dy, order)
    fits = out is not None and x.has_strides(out.strides) and not _askew(x, out)
    dx = out if fits else x.new(order=order)
    launch(
        "dropout",
        x,
        (x.size + 15) // 16,
        {"op": "dropout", "source": "examples", "shifted": False},
        x=x,
        y=dx,
        given=each.bits,
        own=scales,
        n=x.size,
        row=x.size // batch,
    )
    if fits or (out is None and order == dy.order()):
        return dx.array
    out = _result(dy, out)
    copy(dx, out)
    return out.array


def floats(value: Any, name: str) -> DeviceArray:
    """float32 or float64 in C order."""
    where()
    value = array(value, name)
    if value.dtype not in ("float32", "float64"):
        raise TypeError(
            f"{name} must be float32 or float64, got {value.dtype}; convert it with .astype"
        )
    return contiguous(value)


class _Linear:
    """Operands of `fastdrop.dropconnect` on the device, and how its masks are drawn."""

    def __init__(self, ctx: DropConnectContext, like: DeviceArray) -> None:
        operands = ctx.x, ctx.weight, ctx.bias
        x, weight, bias = (a if a is None else contiguous(sent(a, like)) for a in operands)
        self.ctx, self.x, self.weight, self.bias = ctx, x, weight, bias
        self.batch, (self.inputs, self.outputs) = prod(x.shape[:-1]), weight.shape
        self.masked = bias if ctx.mask_bias else None
        self.scale, self.start, self.length, self.draw = 1.0, 0, 0, {}
        if isinstance(ctx, connections.PerExample):
            self.length = (self.inputs + (self.masked is not None)) * self.outputs
            self.scale, self.start = ctx.scale, ctx.first * self.length
            self.draw = {"keys": _keys(ctx.seed), "call": ctx.call, **_threshold(ctx.p)}

    def kept(self, parameter: DeviceArray, start: int = 0) -> DeviceArray:
        """With one mask for the batch: `dropout` of the weights, the bias, or a gradient."""
        ctx, n = self.ctx, parameter.size
        if not isinstance(ctx, connections.PerBatch):
            return parameter
        block = Block((n,), (), ((start,), (start + n,)))
        draw = ctx.seed, ctx.call, ctx.p, block
        return _forward(DROPOUT, parameter, None, None, None, draw, False, ctx.scale)[0]

    def add(self, x: Any, m: DeviceArray, y: DeviceArray, terms: int, **more: Any) -> None:
        """y[i, o] = scale * sum over `terms` j of kept m[j, o] * x[i, j], or of kept m[j, o]."""
        if y.size:
            rows = y.size // self.outputs
            arguments = {"columns": self.outputs, "scale": 1.0, "x": x or 0} | more
            threads = rows * -(-self.outputs // 16)
            launch("connect", y, threads, {}, m=m, y=y, rows=rows, terms=terms, **arguments)


def connect(ctx: DropConnectContext) -> Any:
    """y of `fastdrop.dropconnect` on the device."""
    c = _Linear(ctx, DeviceArray(ctx.x))
    y = c.x.new(shape=(*c.x.shape[:-1], c.outputs))
    if isinstance(ctx, connections.NothingKept):
        _zeros(y)
    else:
        bits = {"start": c.start, "bits_i": c.length, "bits_j": c.outputs, **c.draw}
        last = c.scale if c.masked is None else 1.0
        of_x = {"x_i": c.inputs, "x_j": 1, "scale": last}
        c.add(c.x, c.kept(c.weight), y, c.inputs, **of_x, **bits)
        if c.masked is not None:
            bits["start"] += c.weight.size
            c.add(None, c.kept(c.masked, c.weight.size), y, 1, more=1, scale=c.scale, **bits)
    if c.bias is not None and c.masked is None:
        c.add(None, c.bias, y, 1, more=1)
    return y.array


def backward_connect(ctx: DropConnectContext, dy: Any) -> tuple[Any, ...]:
    """`fastdrop.DropConnectContext.backward` on the device."""
    dy = floats(dy, "dy")
    c = _Linear(ctx, dy)
    gate.like(dy, "dy", (*ctx.shape[:-1], c.outputs), c.x.dtype)
    dx, dweight = c.x.new(), c.weight.new()
    dbias = None if c.bias is None else c.bias.new()
    if isinstance(ctx, connections.NothingKept):
        _zeros(dx)
        _zeros(dweight)
        if c.masked is not None:
            _zeros(dbias)
    else:
        if dx.size:
            launch(
                "connect_back",
                dy,
                dx.size,
                {},
                m=c.kept(c.weight),
                g=dy,
                y=dx,
                rows=c.batch,
                terms=c.inputs,
                columns=c.outputs,
                start=c.start,
                bits_i=c.length,
                scale=c.scale,
                **c.draw,
            )
        bits = {"start": c.start, "bits_j": c.length, "scale": c.scale, **c.draw}
        c.add(c.x, dy, dweight, c.batch, x_i=1, x_j=c.inputs, bits_i=c.outputs, **bits)
        dweight = c.kept(dweight)
        if c.masked is not None:
            bits["start"] += c.weight.size
            c.add(None, dy, dbias, c.batch, **bits)
            dbias = c.kept(dbias, c.weight.size)
    if c.bias is None:
        return dx.array, dweight.array
    if c.masked is None:
        c.add(None, dy, dbias, c.batch)
    return dx.array, dweight.array, dbias.array


def described(x: Any, out: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a device array; out is checked."""
    where()
    x = array(x)
    output(x, out)
    return x.shape, x.dtype


def backward(ctx: functional.Context, dy: Any, out: Any = None) -> Any:
    """`fastdrop.Context.backward` on the device."""
    return _backward(ctx, dy, out).array


def _backward(ctx: functional.Context, dy: Any, out: Any = None, inverted: bool = False) -> Any:
    where()
    dy = array(dy, "dy")
    out = output(dy, out)
    if dy.shape != ctx.shape:
        raise ValueError(f"dy must have the shape of x, {ctx.shape}, got {dy.shape}")
    held = ctx._held
    if held is None and ctx.p == 0.0 and not inverted:
        y = _result(dy, out)
        copy(_apart(dy, y), y)
        return y
    block = ctx._block or Block(ctx.shape, (), None)
    draw = ctx.seed, ctx.call, ctx.p, block
    given = None if held is None else DeviceBits.of(held, block.size, dy)
    if inverted and given is None:
        given = _draw(*draw, dy)
    y, _ = _forward(
        DROPOUT, dy, None, None, out, draw, False, ctx.scale, given=given, inverted=inverted
    )
    return y


def backward_add(ctx: functional.Context, dy: Any, out: Any) -> tuple[Any, Any]:
    """(dx, dresidual), which is dy itself, or a copy if dx takes its place."""
    kept = array(dy, "dy")
    if out is not None and on_device(out) and overlap(kept, DeviceArray(out)):
        kept = kept.new(order=kept.order())
        copy(array(dy, "dy"), kept)
    return backward(ctx, dy, out), kept.array


def backward_bias(ctx: functional.Context, dy: Any, out: Any) -> tuple[Any, Any, Any]:
    """(dx, dbias, dresidual); dbias has the additions of the CPU in their order."""
    dx, dresidual = backward_add(ctx, dy, out)
    flat = contiguous(DeviceArray(dx))
    row = ctx.shape[-1]
    return dx, _summed(flat, row, "rows", False).array, dresidual


def backward_zoneout(ctx: functional.Context, dy: Any) -> tuple[Any, Any]:
    """(dprevious, dnew)."""
    return _backward(ctx, dy, inverted=True).array, _backward(ctx, dy).array


def run_zoneout(
    previous: Any,
    new: Any,
    p: Any,
    rng: RngLike,
    training: bool,
    expectation: bool,
    region: functional.Region | None,
    save: str,
) -> tuple[Any, Any]:
    """`fastdrop.zoneout` on the device."""
    where()
    previous, new = array(previous, "previous"), array(new, "new")
    gate.like(new, "new", previous.shape, previous.dtype)
    p = gate.rate(p)
    block = gate.block(new.shape, (), region)
    if not training:
        p = p if expectation else 0.0
        y = _mean(contiguous(previous), contiguous(new), p)
        return y.array, ZoneoutMeanContext(new.shape, p)
    draw = (*draw_call(rng), p, block)
    previous, new = contiguous(previous), contiguous(new)
    y, bits = _forward(ZONEOUT, new, previous, None, None, draw, save == "bits", 1.0)
    return y.array, ZoneoutContext(new.shape, p, *draw[:2], block, bits, 1.0)


def backward_zoneout_mean(ctx: functional.Context, dy: Any) -> tuple[Any, Any]:
    """(dprevious, dnew)."""
    where()
    dy = array(dy, "dy")
    gate.like(dy, "dy", ctx.shape)
    dy = contiguous(dy)
    return _scaled(dy, ctx.p).array, _scaled(dy, 1.0 - ctx.p).array


def _scaled(x: DeviceArray, weight: float, y: DeviceArray | None = None) -> DeviceArray:
    """y = weight * x for arrays in C order; zeros without a weight."""
    y = y or x.new()
    if x.size:
        options = {"op": "dropout", "source": "same", "shifted": False}
        keep = 0xFFFF if weight else 0
        given = {"x": x, "y": y, "n": x.size, "row": 1, "t": keep}
        launch("dropout", x, (x.size + 15) // 16, options, scale=weight, **given)
    return y


def _mean(previous: DeviceArray, new: DeviceArray, p: float) -> DeviceArray:
    """p * previous + (1 - p) * new, where only what has a weight counts; both in C order."""
    y = new.new()
    if p in (0.0, 1.0):
        copy(previous if p else new, y)
    elif new.size:
        options = {"op": "mean", "source": "same", "shifted": False}
        given = {"x": new, "residual": previous, "y": y, "n": new.size, "row": 1, "t": 0xFFFF}
        launch("dropout", new, (new.size + 15) // 16, options, scale=1.0 - p, shift=p, **given)
    return y


def run_noise(draw: Draw | None, x: Any, out: Any) -> Any:
    """`fastdrop.noise.forward` on the device."""
    where()
    x = array(x)
    out = output(x, out)
    if draw is None:
        y = _result(x, out)
        copy(_apart(x, y), y)
        return y.array
    x = contiguous(x)
    y = x.new() if out is None or not out.has_strides(x.strides) or _askew(x, out) else out
    _noise(NOISE_OPS[draw.op], draw, x, None, y)
    if out is not None and y is not out:
        copy(y, out)
        y = out
    return y.array


def backward_variational(ctx: variational.VariationalContext, dy: Any) -> tuple[Any, Any]:
    """(dx, dlog_alpha)."""
    where()
    dy = array(dy, "dy")
    x, log_alpha = contiguous(sent(ctx.x, dy)), ctx.log_alpha
    gate.like(dy, "dy", x.shape, x.dtype)
    dy = contiguous(dy)
    dx, dlog_alpha = dy.new(), x.new(log_alpha.dtype.name, log_alpha.shape)
    if ctx.draw is None:
        copy(dy, dx)
        return dx.array, _zeros(dlog_alpha).array
    slopes = x.new("float64" if x.dtype == "float64" else "float32")
    _noise("scale", ctx.draw, dy, None, dx)
    _noise("slope", ctx.draw, x, dy, slopes)
    if log_alpha.shape != x.shape:
        group = max(log_alpha.size, 1)
        row = group if group > 1 else 512
        slopes = _summed(slopes, row, "tiles", group == 1, "float64")
    if log_alpha.size:
        weights = np.where(log_alpha > 0, -1.0, np.float64(0.5) * ctx.draw.sigma)
        launch(
            "weighted",
            dlog_alpha,
            log_alpha.size,
            {},
            weights=sent(np.ascontiguousarray(weights), dy),
            x=slopes,
            y=dlog_alpha,
            n=log_alpha.size,
            wide=slopes.dtype == "float64",
        )
    return dx.array, dlog_alpha.array


def backward_concrete(ctx: concrete.ConcreteContext, dy: Any) -> tuple[Any, Any]:
    """(dx, dlogit), a 0-d float64 array."""
    where()
    dy = array(dy, "dy")
    x = contiguous(sent(ctx.x, dy))
    gate.like(dy, "dy", x.shape, x.dtype)
    dy = contiguous(dy)
    dx = dy.new()
    if ctx.draw is None:
        copy(dy, dx)
        return dx.array, _summed(x.new("float64", (0,)), 512, "tiles", True).array
    terms = x.new("float64" if x.dtype == "float64" else "float32")
    _noise("concrete", ctx.draw, dy, None, dx)
    _noise("gradient", ctx.draw, x, dy, terms)
    return dx.array, _summed(terms, 512, "tiles", True).array


def _result(x: DeviceArray, out: DeviceArray | None) -> DeviceArray:
    """out, or a new array in x's memory order."""
    return x.new(order=x.order()) if out is None else out


def _askew(x: DeviceArray, y: DeviceArray) -> bool:
    """Whether they share memory, but not element by element."""
    return (x.address != y.address or not x.has_strides(y.strides)) and overlap(x, y)


def _dense(x: DeviceArray, order: Sequence[int]) -> DeviceArray:
    """x without gaps, its axes in this order; a copy if it is not."""
    if x.has_strides(x.dense(order)):
        return x
    y = x.new(order=order)
    copy(x, y)
    return y


def _apart(x: DeviceArray, y: DeviceArray) -> DeviceArray:
    """x, or a copy of it if writing to y would change it too early."""
    if not _askew(x, y):
        return x
    z = x.new(order=x.order())
    copy(x, z)
    return z


def _threshold(p: float) -> dict[str, int]:
    T = round(p * 2.0**32)
    return {"t": T >> 24, "f": T & 0xFFFFFF}


def _source(p: float) -> str:
    return "bits" if round(p * 2.0**32) == 2**31 else "bytes"


def _keys(seed: int) -> tuple:
    from fastdrop.backends.cuda.kernels.philox import round_keys

    return round_keys(seed)


def _draw(seed: int, call: int, p: float, block: Block, like: DeviceArray) -> DeviceBits:
    """The packed mask of a block of the mask array."""
    n = block.size
    bits = DeviceBits.empty(n, like)
    if not n:
        return bits
    shape, strides = collapsed(block.shape, block.strides)
    run = shape == (n,) and (n == 1 or strides == (1,))
    options = {
        "source": _source(p),
        "shifted": run and block.start % 16 != 0,
        "axes": 0 if run else len(shape),
        "small": run or n < 2**32,
    }
    launch(
        "draw",
        like,
        (n + 15) // 16,
        options,
        saved=bits.bits,
        n=n,
        start=block.start,
        shape=() if run else shape,
        strides=() if run else strides,
        keys=_keys(seed),
        call=call,
        **_threshold(p),
    )
    return bits


def _steps(block: Block) -> list[int]:
    """How far apart, in the packed mask of a block, neighbours along each axis are."""
    return [0 if n == 1 else s for n, s in zip(block.shape, c_strides(block.shape), strict=True)]


def _spread(
    bits: DeviceBits, lengths: tuple, order: Sequence[int], steps: Sequence[int], like: DeviceArray
) -> DeviceBits:
    """A packed mask as one bit for each element of x, in the order of its memory."""
    shape, strides = collapsed([lengths[d] for d in order], [steps[d] for d in order])
    n = prod(lengths)
    if not n or (shape == (n,) and (n == 1 or strides == (1,))):
        return bits
    each = DeviceBits.empty(n, like)
    launch(
        "spread",
        like,
        (n + 15) // 16,
        {"axes": len(shape), "small": n < 2**32},
        given=bits.bits,
        saved=each.bits,
        n=n,
        shape=shape,
        strides=strides,
    )
    return each


def _forward(
    op: int,
    x: DeviceArray,
    residual: DeviceArray | None,
    bias: DeviceArray | None,
    out: DeviceArray | None,
    draw: tuple[int, int, float, Block],
    save: bool,
    scale: float,
    shift: float = 0.0,
    dropped: float = 0.0,
    *,
    given: DeviceBits | None = None,
    inverted: bool = False,
) -> tuple[DeviceArray, DeviceBits | None]:
    """One of the ops, and the packed mask if `save`. Operands beside x are in C order, as x is
    then. given: the mask of the block instead of a draw; inverted: its complement.
    """
    seed, call, p, block = draw
    order = x.order()
    x = _dense(x, order)
    others = [a for a in (residual, bias) if a is not None]
    fits = out is not None and x.has_strides(out.strides) and not _askew(x, out)
    fits = fits and not any(_askew(a, out) for a in others)
    y = out if fits else x.new(order=order)
    n = x.size
    in_c_order = x.has_strides(x.dense())
    relu = op == RELU_DROPOUT
    bits = None
    if given is None and not (in_c_order and block.is_run):
        given = _draw(seed, call, p, block, x)
        bits = given if save and not relu else None
    each = None if given is None else _spread(given, x.shape, order, _steps(block), x)
    saved = None
    if relu or (save and given is None):
        saved = bits = DeviceBits.empty(n, x)
    row = 1 if bias is None else max(bias.size, 1)
    options = {
        "op": OPS[op],
        "source": _source(p) if each is None else "given",
        "shifted": each is None and block.start % 16 != 0,
    }
    cut = _threshold(p) if each is None else {"t": 0xFFFF if inverted else 0}
    if n:
        launch(
            "dropout",
            x,
            (n + 15) // 16,
            options,
            x=x,
            residual=residual or 0,
            bias=bias or 0,
            y=y,
            given=each.bits if each else 0,
            saved=saved.bits if saved else 0,
            n=n,
            row=row,
            start=block.start,
            keys=_keys(seed) if each is None else (),
            call=call if each is None else 0,
            scale=scale,
            shift=shift,
            dropped=dropped,
            **cut,
        )
    if out is not None and y is not out:
        copy(y, out)
        y = out
    return y, bits


def _noise(op: str, draw: Draw, x: DeviceArray, g: DeviceArray | None, y: DeviceArray) -> None:
    """A noise op on arrays in C order."""
    from fastdrop.backends.cuda.kernels.noise import NOISE_AXES

    block, n = draw.block, x.size
    if not n:
        return
    sigma, sigmas = draw.sigma, 0
    if sigma is not None and sigma.ndim:
        real = compute_type(x.dtype)
        sigmas, op = sent(np.ascontiguousarray(sigma, real), x), "scales" if op == "scale" else op
    run = block.is_run and block.start % 4 == 0
    drawn = [0 if m == 1 else s for m, s in zip(block.shape, block.strides, strict=True)]
    shape, strides = collapsed(x.shape, drawn)
    more = NOISE_AXES - len(shape)
    shape, strides = (1,) * more + shape, (0,) * more + strides
    logit, p, inverse, scale = draw.relaxed or (0.0, 0.0, 0.0, 0.0)
    launch(
        "noise",
        x,
        (n + 3) // 4 if run else n,
        {
            "op": op,
            "axes": 0 if run else len(shape),
            "small": run or n < 2**32,
        },
        x=x,
        g=g or 0,
        y=y,
        sigmas=sigmas,
        n=n,
        row=sigma.size if sigmas else 1,
        start=block.start,
        shape=() if run else shape,
        strides=() if run else strides,
        keys=_keys(draw.seed),
        call=draw.call,
        sigma=0.0 if sigma is None or sigmas else float(sigma),
        logit=logit,
        rate=p,
        inverse=inverse,
        scale=scale,
    )


def _summed(
    x: DeviceArray, row: int, by: str, single: bool, dtype: str | None = None
) -> DeviceArray:
    """Sums of x's columns, of `row` elements' distance, in x's dtype; or, single, of all."""
    result = x.new("float64", ()) if single else x.new(dtype, (row,))
    sums = x.new("float64", (PARTS, row))
    if row:
        launch("sums", x, PARTS * row, {"by": by}, x=x, sums=sums, n=x.size, row=row)
        threads = 1 if single else row
        launch("total", result, threads, {"single": single}, sums=sums, y=result, row=row)
    return result
