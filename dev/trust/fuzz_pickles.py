"""Pickles of all that the package pickles, tampered with, loaded and used: none may crash.

python dev/trust/fuzz_pickles.py [--cases N] [--seed S] [--first I] [--workers W]
python dev/trust/fuzz_pickles.py --seed S --first I --cases 1    # one case again, its pickle shown

A pickle is taken as what it says: which callable, which arguments, which state, nested. Any
argument is replaced, callables of the package are exchanged, states are appended, also to objects
that others hold already (an array gets another shape when its context has been checked). What loads
is used. Seed and number of a case decide everything. `dev/trust/sanitize pickles` takes the same
options and sees reads of foreign memory, too.

Findings are a process that ends or hangs, SystemError, a context whose pickle gives another
gradient, and what `allowed` does not name. Exit status 1 if there is one.
"""

import argparse
import copyreg
import mmap
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import deque
from contextlib import suppress
from functools import partial
from itertools import count
from math import inf, prod

import numpy as np

import fastdrop as fd
from fastdrop import _core, layers, mc, schedules
from fastdrop._core import CallCounter, Draw, Place, Saved
from fastdrop.base import gate
from fastdrop.layers.layer import Calls, Layer
from fastdrop.ops.dropblock import Geometry
from fastdrop.rng import LayerRng

SECONDS = 60  # a case that takes longer hangs
ELEMENTS = 1 << 14  # what is claimed to be larger is not computed with
BYTES = 1 << 28  # no allocation is larger

# Values check all that sets them: what comes instead of a result when they are loaded or used.
# AttributeError: a state that is appended, as they do not change.
REFUSED = TypeError, ValueError, IndexError, OverflowError, MemoryError
LOAD = (*REFUSED, AttributeError, pickle.UnpicklingError)
LAYERS = [kind for name, kind in vars(layers).items() if name[0].isupper()]
VALUES = Saved, Place, Draw, CallCounter
# All else are plain Python objects, which take any state, and raise what then comes of it.
PLAIN = (Exception,)


def contexts():
    """Contexts of every op: dtypes, layouts, save modes, regions, shared axes."""
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 5)).astype(np.float32)
    rows, w = x.reshape(-1, 5), np.ones((5, 4), np.float32)
    region = (1, 2, 3, 4), (9, 9, 9, 99)
    masked = fd.dropout, fd.alpha_dropout, fd.relu_dropout, fd.spatial_dropout, fd.drop_path
    for op in (*masked, fd.feature_alpha_dropout, fd.locked_dropout):
        for dtype in (np.float32, np.float64, np.float16):
            yield op(x.astype(dtype), 0.3, rng=4)
        for save in ("bits", "seed"):
            kept = {} if op is fd.relu_dropout else {"save": save}
            yield op(x[:, ::-1].T, 0.5, rng=4, **kept)
            yield op(x, 0.5, rng=4, region=region, **kept)
        yield op(x, 0.3, rng=4, training=False)
    for save in ("bits", "seed"):
        yield fd.dropout(x, 0.5, rng=4, save=save, rows=[7, 0])
        yield fd.dropout(x, 0.5, rng=4, save=save, rows=[7, 8], shared_axes=(2,))
        yield fd.dropout(
            x + 1j, 0.5, rng=4, save=save, rows=[7, 0], region=((0, 1, 0, 0), (9,) * 4)
        )
        for axes in (0, (0, 2), (1, 3), (0, 1, 2, 3)):
            yield fd.dropout(x, 0.5, rng=4, save=save, shared_axes=axes, region=region)
        yield fd.dropout_add(x, x, 0.3, rng=4, save=save)
        yield fd.bias_dropout_add(x, x[0, 0, 0], x, 0.3, rng=4, save=save)
        yield fd.bias_gelu_dropout(x, x[0, 0, 0], 0.3, rng=4, save=save)
        yield fd.zoneout(x, -x, 0.3, rng=4, save=save)
        yield fd.softmax_dropout(x, 0.3, rng=4, save=save, causal=True)
        yield fd.softmax_dropout(x, 0.3, rng=4, save=save, axis=1, shared_axes=(0,))
        for last in (True, False):
            yield fd.drop_block(x, 0.3, 3, rng=4, save=save, channels_last=last, per_channel=last)
    for op in (fd.dropout, fd.relu_dropout):
        yield op(x, 0.5, mask=x > 0)
    for training in (True, False):
        yield fd.bias_relu_dropout(x, x[0, 0, 0], 0.3, rng=4, training=training)
        yield fd.bias_gelu_dropout(x, x[0, 0, 0], 0.3, rng=4, training=training)
    for p in (0.0, 1.0):
        yield fd.dropout(x, p, rng=4)
        yield fd.dropconnect(rows, w, None, p, rng=4)
    for mode in ("example", "batch", "gaussian"):
        for bias in (None, w[0]):
            yield fd.dropconnect(x, w, bias, 0.3, rng=4, mode=mode, first=3)
    yield fd.dropconnect(rows, w, w[0], 0.3, rng=4, mask_bias=False)
    yield fd.zoneout(x, -x, 0.3, training=False)
    yield fd.gaussian_dropout(x, 0.3, rng=4, shared_axes=(2,))
    yield fd.gaussian_noise(x, 0.3, rng=4, region=region)
    yield fd.gaussian_dropout(x, 0.3, rng=4, rows=[7, 0])
    yield fd.concrete_dropout(x, 0.3, rng=4, shared_axes=(0,))
    yield fd.concrete_dropout(x, 0.3, rng=4, training=False)
    for log_alpha in (-1.0, x[0, 0, 0], x):
        yield fd.variational_dropout(x, log_alpha, rng=4)
        yield fd.variational_dropout(x, log_alpha, rng=4, rows=[7, 0], shared_axes=(1,))
    yield fd.sparse_variational_linear(rows, w, w - 4, w[0], rng=4)
    yield fd.sparse_variational_linear(x, w, w - 4, rng=4, region=((1, 2, 3, 4), (9, 9, 9, 9)))
    yield fd.sparse_variational_linear(rows, w, w - 4, None, rng=4, training=False)
    yield fd.embedding_dropout(w, 0.3, ids=[1, 4, 1], rng=4)
    yield fd.adversarial_dropout(rows, rows, 0.1, 0.2, rng=4)
    yield fd.adversarial_dropout(x, x, 0.1, 0.2, rng=4, rows=[7, 0])
    for mode in ("weight", "unit", "unit_weight"):
        yield fd.targeted_dropout(w, mode=mode, rng=4)
    yield fd.targeted_dropout(w, rng=4, region=((0, 3), (5, 9)))


def inputs_of(layer):
    """What a layer of this kind takes."""
    x = np.ones((2, 3, 5, 5), np.float32)
    if isinstance(layer, layers.EmbeddingDropout):
        return ([1, 3, 1],)
    if isinstance(layer, layers.LockedDropout | layers.TargetedDropout):
        return (x[0],)
    if isinstance(layer, layers.BiasDropoutAdd):
        return x, x[0, 0, 0], -x
    if isinstance(layer, layers.BiasReluDropout | layers.BiasGeluDropout):
        return x, x[0, 0, 0]
    return (x, -x) if isinstance(layer, layers.Zoneout | layers.DropoutAdd) else (x,)


def plain():
    """Layers, fresh and in use, schedules, accumulators, and what belongs to them."""
    kinds = [kind for kind in LAYERS if kind is not layers.Layer]
    sized = {
        layers.EmbeddingDropout: (np.ones((4, 3), np.float32),),
        layers.SparseVariationalLinear: (5, 4),
        layers.DropConnect: (5, 4),
        layers.GaussianNoise: (0.3,),
    }
    for kind in kinds:
        for rng in (fd.Rng(3), 3):
            layer = kind(*sized.get(kind, ()), rng=rng)
            yield layer
            if rng == 3:
                used = kind(*sized.get(kind, ()), rng=rng)
                used.backward(used(*inputs_of(used)))
                used(*inputs_of(used))
                yield used
    yield schedules.constant(0.3), schedules.curriculum(0.5, 1e-3), schedules.switch(0.5, 10)
    yield schedules.linear(0.1, 0.5, 10), schedules.steps((0.1, 0.5), (10,))
    yield schedules.early(0.1, 5, "linear"), schedules.Ramp(0.5, 100, 0.95)
    yield layers.Dropout(schedules.cosine(0.1, 0.5, 7), rng=1)
    for kind in (mc.Moments, mc.Regression, mc.Classification):
        accumulator = kind()
        yield accumulator
        accumulator = kind()
        for _ in range(2):
            accumulator.update(np.full((3, 4), 0.25))
        yield accumulator
    with suppress(ImportError):
        from fastdrop.adapters.dask import DaskContext

        yield DaskContext((4, 3), 0.3, 1, 2, (0,))


def roots():
    """Everything, and whether it is one of the values that check all."""
    yield from ((ctx, True) for _, ctx in contexts())
    place = gate.place((2, 3), (0,), ((1, 2), (9, 9)))
    yield from ((value, True) for value in (place, Place((4,)), Draw(1, 2, 0.3, place)))
    yield from ((value, True) for value in (fd.Rng(1, 2), fd.Rng(), LayerRng(3, 2**64)))
    yield from ((thing, False) for thing in plain())


CALLABLES = [Place, Draw, CallCounter, Saved, _core.saved, fd.Rng, LayerRng, Calls, Geometry]
CALLABLES += [schedules.Schedule, schedules.Ramp, schedules._linear, schedules._steps]
CALLABLES += [schedules.linear, mc.Moments, mc.Regression, mc.Classification, copyreg.__newobj__]
CALLABLES += [*LAYERS, layers.state, layers.load_state]


class Node:
    """A part of a pickle: a value as it is, a container of parts, or a call and what follows it.

    Leaves do not change, so trees share them.
    """

    def __init__(self, kind, parts=(), value=None):
        self.kind, self.parts, self.value, self.data = kind, list(parts), value, None

    def copy(self):
        if self.kind == "leaf":
            return self
        return Node(self.kind, [part.copy() for part in self.parts])

    def places(self):
        """Where all parts are, as (whole, index)."""
        found, wholes = [], [self]
        for whole in wholes:
            found += [(whole, i) for i in range(len(whole.parts))]
            wholes += [part for part in whole.parts if part.parts]
        return found

    def leaf_data(self):
        if self.data is None:
            self.data = pickle.dumps(self.value, 2, fix_imports=False)[2:-1]
        return self.data


TAKEN_APART = deque, partial, count


def leaf(value):
    return Node("leaf", value=value)


def parsed(value):
    """What the pickle of a value says."""
    if type(value) in (tuple, list):
        return Node(type(value).__name__, map(parsed, value))
    if type(value) is dict:
        return Node("dict", (parsed(v) for item in value.items() for v in item))
    own = type(value).__module__.startswith("fastdrop") and not isinstance(value, type)
    if not (own or type(value) in TAKEN_APART) or hasattr(value, "__code__"):
        return leaf(value)
    function, arguments, *more = (*value.__reduce_ex__(4), None, None)[:4]
    state, items = more
    parts = [leaf(function), Node("tuple", map(parsed, arguments))]
    if state is not None or items is not None:
        parts.append(parsed(state))
    if items is not None:
        parts.append(Node("list", map(parsed, items)))
    return Node("call", parts)


def written(node, to, memo):
    """A node as opcodes; `parts` of a call: callable, arguments, state if any, items if any."""
    if node.kind == "leaf":
        to.append(node.leaf_data())
    elif node.kind == "call":
        function, arguments, *more = node.parts
        written(function, to, memo)
        written(arguments, to, memo)
        to.append(pickle.REDUCE)
        if len(more) > 1:
            to.append(pickle.MARK)
            for part in more[1].parts:
                written(part, to, memo)
            to.append(pickle.APPENDS)
        for state in (*more[:1], *more[2:]):
            if state.kind != "leaf" or state.value is not None:
                written(state, to, memo)
                to.append(pickle.BUILD)
    else:
        to.append(pickle.MARK)
        for part in node.parts:
            written(part, to, memo)
        to.append({"tuple": pickle.TUPLE, "list": pickle.LIST, "dict": pickle.DICT}[node.kind])
    if id(node) in memo:
        to.append(pickle.LONG_BINPUT + memo[id(node)])


def bytes_of(tree, late):
    """A tree, and the states that its parts get when all of it has been made."""
    memo = {id(node): struct.pack("<I", 1000 + i) for i, (node, _) in enumerate(late)}
    to = [pickle.PROTO + b"\x04"]  # numbers below 1000 are the leaves' own
    written(tree, to, memo)
    for node, state in late:
        to.append(pickle.LONG_BINGET + memo[id(node)])
        written(state, to, memo)
        to.append(pickle.BUILD + pickle.POP)
    return b"".join([*to, pickle.STOP])


SIZES = [0, 1, 2, 3, 7, 8, 64, 65, 2**31, 2**32, 2**40, 2**61, 2**62, 2**63, 2**64]
INTS = [*SIZES, *(n - 1 for n in SIZES), *(-n for n in SIZES), 2**70, 10**30]
ANY = [None, True, False, "x", "", "bits", "seed", b"", b"ab", (), (1,), [], {}, [0.5], 0.5, 2.0]
ANY += [-0.0, 1.0, 5e-324, 1e300, float("nan"), float("inf"), -1.5, 1j, object, int, 0.3]
ANY += [(1,) * 65, (1,) * 3000, (2**62,), (2**31, 2**31), (2**62, 2**62), (0, 2**62, 2**62), (-1,)]
ANY += [((0,), (2**62,)), ((0, 0), (9, 9)), ((), ()), (0, 0), np.float32(0.5), np.int64(3)]
ANY += [frozenset([1]), slice(3), range(5), bytearray(b"\xff" * 40), np.dtype("f4")]
DTYPES = "f4", "f8", "f2", "i4", "i8", "u1", "?", "c8", "O", ">f4", "U3", "m8[s]", "i4,f4"


def array(r, like=None):
    """An array of another shape, dtype or layout than one that is there."""
    shape = tuple(r.choice((0, 1, 2, 3, 5, 6, 64)) for _ in range(r.randrange(5)))
    dtype = np.dtype(r.choice(DTYPES))
    if like is not None:
        shape = like.shape if r.random() < 0.5 else shape
        dtype = like.dtype if r.random() < 0.6 else dtype
        if r.random() < 0.3 and like.ndim:
            shape = (*shape[:-1], like.shape[-1] + r.choice((-1, 1, 100)))
            shape = tuple(max(0, n) for n in shape)
    x = np.zeros(shape if prod(shape) <= ELEMENTS else shape[:2], dtype)
    turn = r.randrange(6)
    if turn == 0:
        return x.T
    if turn == 1 and x.ndim:
        return np.broadcast_to(x[:1], x.shape)
    if turn == 2:
        x.flags.writeable = False
    return x[..., ::-1] if turn == 3 and x.ndim else x


def hostile(r, node, donors):
    """What a part is replaced by: near what it was, of another pickle, or anything."""
    was = node.value
    turn = r.random()
    if turn < 0.25:
        return r.choice(donors).copy()
    if turn < 0.6 and node.kind == "leaf":
        if type(was) is int:
            return leaf(r.choice((was + 1, was - 1, was * 2, -was, was + 2**32, float(was))))
        if type(was) is float:
            return leaf(r.choice((-was, was + 1, was / 2, 1.0, 0.0, float("nan"))))
        if type(was) is bytes:
            other = [was[:-1], was + b"\xff", was[: len(was) // 2], was * 2, b"\xff" * len(was)]
            return leaf(r.choice((*other, bytearray(was), list(was))))
        if isinstance(was, np.ndarray):
            return leaf(array(r, was))
        if isinstance(was, type):
            return leaf(r.choice(CALLABLES))
    if turn < 0.7:
        return leaf(array(r))
    if turn < 0.8:
        return leaf(tuple(r.choice(INTS) for _ in range(r.randrange(6))))
    if turn < 0.85:
        return leaf(r.randbytes(r.choice((0, 1, 8, 9, 20, 27, 28, 29, 200))))
    return leaf(r.choice(INTS) if turn < 0.92 else r.choice(ANY))


NAMES = "held", "shape", "draw", "scale", "x", "weight", "place", "seed", "p", "strides", "state"
NAMES += "rng", "_calls", "training", "log_alpha", "sigma", "first", "contexts", "__class__", "of"


def state(r, node, donors):
    """What is appended to a call or to an array."""
    if isinstance(node.value, np.ndarray):
        return leaf(array(r, node.value).copy().__reduce_ex__(2)[2])
    pairs = [(r.choice(NAMES), hostile(r, leaf(None), donors)) for _ in range(r.randrange(4))]
    named = Node("dict", [part for name, value in pairs for part in (leaf(name), value)])
    turn = r.randrange(4)
    if turn == 0:
        return Node("tuple", [leaf(None), named])
    return Node("tuple", [named, named.copy()]) if turn == 1 else named


def tampered(r, trees, donors):
    """A tree changed in one place or more: (tree, late states)."""
    tree, late = Node("tuple", [r.choice(trees).copy()]), []
    for _ in range(1 + int(r.expovariate(1.0))):
        places = tree.places()
        whole, i = r.choice(places)
        node, turn = whole.parts[i], r.random()
        if turn < 0.15:
            calls = [w.parts[k] for w, k in places if w.parts[k].kind == "call"]
            if calls:
                r.choice(calls).parts[0] = leaf(r.choice(CALLABLES))
        elif turn < 0.3:
            parts = [w.parts[k] for w, k in places]
            able = [p for p in parts if p.kind == "call" or isinstance(p.value, np.ndarray)]
            if able:
                target = r.choice(able)
                late.append((target, state(r, target, donors)))
        elif turn < 0.4 and node.kind in ("tuple", "list"):
            k = r.randrange(len(node.parts) + 1)
            node.parts[k : k + r.randrange(2)] = [hostile(r, leaf(None), donors)][: r.randrange(2)]
        else:
            whole.parts[i] = hostile(r, node, donors)
    if late:
        left = [w.parts[k] for w, k in tree.places()]
        changing = {id(part) for part in left} - iterated(left)
        late = [pair for pair in late if id(pair[0]) in changing]
    return tree.parts[0], late


def iterated(parts):
    """Arrays of which a deque holds views: NumPy itself frees their memory under these, when a
    state comes late.
    """
    calls = (part.parts for part in parts if part.kind == "call")
    return {id(a) for kind, arguments, *_ in calls if kind.value is deque for a in arguments.parts}


def use(r, thing, depth=0):
    """All that a caller could do with what has been loaded."""
    kinds = (Saved, use_context), (Place, use_place), (Draw, use_draw), (CallCounter, use_rng)
    kinds += ((Layer, use_layer), (mc.Moments, use_accumulator), (Calls, use_calls))
    for kind, how in kinds:
        if isinstance(thing, kind):
            attempt(REFUSED if isinstance(thing, VALUES) else PLAIN, repr, thing)
            return how(r, thing)
    if isinstance(thing, schedules.Schedule | schedules.Ramp):
        for step in (0, 5, 10**6):
            attempt(PLAIN, thing, step)
        attempt(PLAIN, repr, thing)
    elif hasattr(thing, "backward") and type(thing).__name__ == "DaskContext":
        attempt(PLAIN, lambda: thing.backward(np.ones((4, 3), np.float32)).compute())
    elif isinstance(thing, tuple | list | deque) and depth < 3:
        for part in list(thing)[:6]:
            use(r, part, depth + 1)
    return None


class Finding(Exception):
    """What must not be."""


def attempt(allowed, function, *arguments):
    """What comes of it, None if it is refused as it may be."""
    try:
        return function(*arguments)
    except (Finding, SystemError):
        raise
    except allowed:
        return None


def claimed(ctx):
    """How many elements a context says there are; infinitely many if nobody can tell."""
    shapes = [ctx.shape] if ctx.draw is None else [ctx.shape, ctx.draw.place.of]
    if not all(type(shape) is tuple and all(type(n) is int for n in shape) for shape in shapes):
        return inf
    return max(prod(shape) for shape in shapes)


def gradient_like(r, ctx, dtype):
    """dy of the shape that a context says y has, in some layout."""
    shape = tuple(ctx.shape)
    if isinstance(weight := getattr(ctx, "weight", None), np.ndarray) and weight.ndim:
        shape = (*shape[:-1], weight.shape[-1])
    elif isinstance(ctx.held, np.ndarray) and ctx.held.dtype.kind == "i":
        shape = (*ctx.held.shape, *shape[1:])
    turn = r.randrange(5)
    if turn == 0 and shape:
        return np.ones((*shape[:-1], shape[-1] * 2), dtype)[..., ::2]
    if turn == 1:
        return np.ones(shape[::-1], dtype).T
    if turn == 2:
        return np.broadcast_to(dtype(1), shape)
    return np.ones(shape, dtype)


def same(a, b):
    a, b = (v if type(v) is tuple else (v,) for v in (a, b))
    return len(a) == len(b) and all(
        u is v or np.array_equal(u, v, equal_nan=True) for u, v in zip(a, b, strict=True)
    )


def use_context(r, ctx):
    # Without the constructor's checks, as `_core.saved` makes one, slots may be empty.
    made = type(ctx) is not Saved and all(
        hasattr(ctx, name) for base in type(ctx).__mro__ for name in vars(base).get("__slots__", ())
    )
    allowed = REFUSED if made and ctx.shape is not None else PLAIN
    for name in ("nbytes", "p", "seed", "call", "ids", "scales", "changed", "first"):
        if claimed(ctx) <= ELEMENTS:
            attempt((*allowed, AttributeError), getattr, ctx, name)
    again = attempt(PLAIN, lambda: pickle.loads(pickle.dumps(ctx)))
    if claimed(ctx) > ELEMENTS:
        return
    for name in ("mask", "kept"):
        if hasattr(ctx, name):
            attempt(allowed, getattr(ctx, name))
    if not hasattr(ctx, "backward"):
        return
    own = getattr(getattr(ctx, "x", None), "dtype", np.dtype("f4")).type
    for dtype in {own, r.choice((np.float32, np.float64, np.float16))}:
        dy = attempt(PLAIN, gradient_like, r, ctx, dtype)
        if dy is None or dy.size > ELEMENTS:
            continue
        dx = attempt(allowed, ctx.backward, dy)
        attempt(allowed, ctx.backward, dy, np.empty(dy.shape, dy.dtype))
        attempt(allowed, ctx.backward, np.ones(r.choice(((), (3,), (2, 3, 5, 6))), dtype))
        if dx is not None and again is not None and not same(dx, again.backward(dy)):
            raise Finding(f"{ctx!r}: another gradient from its pickle")


def use_place(r, place):
    for name in ("strides", "shape", "of", "shared_axes", "region", "start", "is_run"):
        getattr(place, name)
    if pickle.loads(pickle.dumps(place)).strides != place.strides:
        raise Finding(f"{place!r}: another place from its pickle")
    use_draw(r, Draw(1, 2, r.random(), place))


def use_draw(r, draw):
    place = draw.place
    if place.size > ELEMENTS:
        return
    if draw.given:  # needs bits to do anything
        x = attempt(REFUSED, np.ones, place.of, np.float32)
        attempt(REFUSED, _core.backward, x, None, draw, None, 1.0)
        attempt(REFUSED, _core.backward, x, None, draw, bytes(place.size // 8 + 16), 1.0)
        return
    bits = _core.draw_bits(draw)
    if (size := prod(place.of)) <= ELEMENTS:
        x = attempt(REFUSED, np.ones, place.of, np.float32)
        if x is not None and size:
            _core.forward(_core.DROPOUT, x, None, None, None, draw, True, (1.0, 0.0, 0.0))
            _core.backward(x, None, draw, bits, 1.0)
            x = x.T.copy().T
            _core.backward(x, None, draw, bits if r.random() < 0.5 else None, 1.0)
    if not place.shape or place.shape[-1] == 1 or place.strides[-1] == 1:
        _core.draw_noise(_core.NORMAL, draw, np.empty(place.size, np.float32))


def use_rng(r, rng):
    attempt(REFUSED, rng.peek)
    attempt(REFUSED, rng.take)
    attempt(REFUSED, fd.dropout, np.ones(5), 0.5)
    attempt(REFUSED, lambda: fd.dropout(np.ones(5), 0.5, rng=rng))
    if isinstance(rng, fd.Rng):
        attempt(REFUSED, rng.spawn, 2)
        attempt(REFUSED, lambda: setattr(rng, "state", rng.state))
        attempt((*REFUSED, AttributeError), rng.__copy__)  # of one that had no __init__
        attempt(REFUSED, lambda: pickle.loads(pickle.dumps(rng)))


def use_layer(r, layer):
    for p in vars(layer).get("p", 0), vars(layer).get("step", 0):
        if isinstance(p, int) and abs(p) > 2**64:
            return
    inputs = inputs_of(layer)
    for _ in range(2):
        y = attempt(PLAIN, lambda: layer(*inputs))
        attempt(PLAIN, lambda y=y: layer.backward(inputs[0] if y is None else y))
        attempt(PLAIN, layer.eval)
    attempt(PLAIN, layer.backward, np.ones((2, 3, 5, 5)))
    attempt(PLAIN, lambda: layer.ctx)
    attempt(PLAIN, lambda: pickle.loads(pickle.dumps(layer)))
    attempt(PLAIN, layer.__copy__)


def use_calls(r, calls):
    attempt(PLAIN, lambda: calls.nbytes)
    attempt(PLAIN, calls.trim)
    attempt(PLAIN, lambda: calls.stack.append(calls.entry(fd.dropout(np.ones(3), rng=1)[1])))


def use_accumulator(r, thing):
    attempt(PLAIN, thing.update, np.full((3, 4), 0.25))
    for name in ("mean", "variance", "covariance", "entropy", "mutual_information", "samples"):
        attempt(PLAIN, getattr, thing, name)


class Cases:
    """Cases by number."""

    def __init__(self, seed):
        self.seed = seed
        found = [(parsed(thing), strict) for thing, strict in roots()]
        self.trees = [[tree for tree, s in found if s is strict] for strict in (True, False)]
        self.donors = [
            whole.parts[i]
            for tree, _ in found
            for whole, i in Node("tuple", [tree]).places()
            if whole.parts[i].kind != "leaf"
        ]
        for tree, _ in found:  # what is not tampered with loads
            pickle.loads(bytes_of(tree, []))

    def pickled(self, number):
        """(random numbers, pickle, what may be raised when it is loaded)."""
        r = random.Random(f"{self.seed} {number}")
        values = r.random() < 0.75
        tree, late = tampered(r, self.trees[0 if values else 1], self.donors)
        return r, bytes_of(tree, late), LOAD if values else PLAIN

    def run(self, number):
        """Whether it was loaded. Raises what must not be."""
        r, data, allowed = self.pickled(number)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            try:
                thing = pickle.loads(data)
            except SystemError:
                raise
            except allowed:
                return False
            except PLAIN:
                if any(name in data for name in (b"fastdrop.layers", b"fastdrop.mc", b"schedules")):
                    return False  # a plain object was made on the way
                raise
            use(r, thing)
            return True


def work(seed, first, last, path):
    """A worker: the case it is at stands in a file, for when it crashes."""
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 4 * BYTES,) * 2)
    fd.set_num_threads(1)
    cases, loaded, wrong = Cases(seed), 0, 0
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 24) as at:
        for number in range(first, last):
            struct.pack_into("<QQQ", at, 0, number, loaded, wrong)
            signal.alarm(SECONDS)
            try:
                loaded += cases.run(number)
            except BaseException as error:
                wrong += 1
                print(f"FINDING {again(seed, number)}\n{type(error).__name__}: {error}", flush=True)
                traceback.print_exc(limit=-3)
            struct.pack_into("<QQQ", at, 0, number + 1, loaded, wrong)


def again(seed, number):
    command = f"python dev/trust/fuzz_pickles.py --seed {seed} --first {number} --cases 1"
    return f"case {number}: {command}"


def manage(seed, first, cases, workers):
    """Workers, each started again behind a case that ended it; how many findings."""
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1")
    limits = (
        f"quarantine_size_mb=32:allocator_may_return_null=1:max_allocation_size_mb={BYTES >> 20}"
    )
    environment["ASAN_OPTIONS"] = f"{os.environ.get('ASAN_OPTIONS', 'detect_leaks=0')}:{limits}"
    with tempfile.TemporaryDirectory() as folder:

        def start(begin, end):
            path = os.path.join(folder, str(begin))
            with open(path, "wb") as file:
                file.write(struct.pack("<QQQ", begin, 0, 0))
            command = [sys.executable, __file__, "--worker", path, f"--seed={seed}"]
            command += [f"--first={begin}", f"--cases={end - begin}"]
            return subprocess.Popen(command, env=environment), path, end

        cuts = [first + cases * i // workers for i in range(workers + 1)]
        running = [start(cuts[i], cuts[i + 1]) for i in range(workers) if cuts[i] < cuts[i + 1]]
        loaded = findings = 0
        while running:
            process, path, end = running.pop(0)
            code = process.wait()
            with open(path, "rb") as file:
                at, good, wrong = struct.unpack("<QQQ", file.read())
            loaded, findings = loaded + good, findings + wrong
            if code:
                findings += 1
                print(f"FINDING the process ended with {code}, {again(seed, at)}", flush=True)
                if at + 1 < end:
                    running.append(start(at + 1, end))
    print(f"{cases} cases of seed {seed}, {loaded} loaded, {findings} findings")
    return findings


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000, help="how many (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all cases (%(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (%(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(given.seed, given.first, given.first + given.cases, given.worker)
    cases = Cases(given.seed)  # which also shows that a worker can begin
    if given.cases == 1:
        for opcode, argument, _ in pickletools.genops(cases.pickled(given.first)[1]):
            print(opcode.name, "" if argument is None else repr(argument)[:200])
    return 1 if manage(given.seed, given.first, given.cases, given.workers) else 0


if __name__ == "__main__":
    sys.exit(main())
