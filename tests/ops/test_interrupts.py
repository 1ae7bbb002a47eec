"""Interrupts at every bytecode of the package: nothing torn, nothing lost.

An op's call is interrupted once at each bytecode that it runs. Afterwards `out` is as it was or
whole, and the random call is taken if and only if there is a result: `out`, or one on its way back.
"""

import os
import sys
from functools import partial

import ml_dtypes
import numpy as np
import pytest
from helpers.layer_kinds import NAMES as LAYER_NAMES

import fastdrop as fd
from fastdrop import mc
from fastdrop.layers.layer import _takes_out

PACKAGE = os.path.dirname(fd.__file__) + os.sep
RETURNING = 8  # bytecodes at most between a result and the caller: each function returns it


class Interrupter:
    """Raises at one of the bytecodes that the package runs in this thread, counted from 0."""

    def __init__(self, at=None, error=KeyboardInterrupt):
        self.at, self.error, self.count = at, error, 0

    def __call__(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self.local

    def local(self, frame, event, argument):
        if event == "opcode":
            self.count += 1
            if self.count - 1 == self.at:
                raise self.error
        return self.local

    def run(self, call):
        """Whether the call ended."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            call()
        except self.error:
            return False
        finally:
            sys.settrace(before)
        return True


def points(make, step=1):
    """How many bytecodes a call runs, and those where it is to be interrupted."""
    for _ in range(2):  # what is done once in a process has been done then
        counter = Interrupter()
        assert counter.run(make()[0])
    assert counter.count > 8
    return counter.count, [*range(0, counter.count, step), *range(counter.count - 8, counter.count)]


def interrupted(make, check, step=1):
    """For each point: a new call from make(), interrupted there; check(state, bytecodes to come).

    make gives a call and whatever check looks at.
    """
    total, where = points(make, step)
    for k in where:
        call, state = make()
        interrupter = Interrupter(k)
        assert not interrupter.run(call)
        check(state, total - k)


X = np.random.default_rng(0).standard_normal((4, 6, 5, 7))
W = np.random.default_rng(1).standard_normal((7, 3))
IDS = np.array([[1, 3], [0, 3]])


def of(op, *shapes_of_more, **more):
    """An op on x, and on arrays beside it: x's own shape, its last axis', or what is given."""

    def call(x, **arguments):
        return op(x, *(f(x) for f in shapes_of_more), **more, **arguments)

    return call


same, row = (lambda x: x[::-1].copy()), (lambda x: x[0, 0, 0].copy())
weight, bias = (lambda x: W.astype(x.dtype)), (lambda x: W[0].astype(x.dtype))

# name: op(x, rng=..., training=...), whether it takes out, save, 16-bit types
OPS = {
    "adversarial_dropout": (of(fd.adversarial_dropout, same, delta=0.2, p=0.3), ""),
    "alpha_dropout": (of(fd.alpha_dropout), "out save"),
    "bias_dropout_add": (of(fd.bias_dropout_add, row, same), "out save"),
    "bias_gelu_dropout": (of(fd.bias_gelu_dropout, row), "out save"),
    "bias_relu_dropout": (of(fd.bias_relu_dropout, row), "out"),
    "concrete_dropout": (of(fd.concrete_dropout, logit=0.3), ""),
    "drop_block": (of(fd.drop_block, p=0.3, block_size=3), "out save"),
    "drop_path": (of(fd.drop_path), "out save"),
    "dropconnect": (of(fd.dropconnect, weight, bias), "wide"),
    "dropconnect, batch": (of(fd.dropconnect, weight, bias, mode="batch"), "wide"),
    "dropconnect, gaussian": (of(fd.dropconnect, weight, bias, mode="gaussian"), "wide"),
    "dropconnect, bias not masked": (of(fd.dropconnect, weight, bias, mask_bias=False), "wide"),
    "dropout": (of(fd.dropout), "out save"),
    "dropout, p = 0": (of(fd.dropout, p=0.0), "out save"),
    "dropout, shared": (of(fd.dropout, shared_axes=(0, 2)), "out save"),
    "dropout, region": (of(fd.dropout, region=((1, 0, 2, 0), (6, 6, 9, 7))), "out save"),
    "dropout, rows": (of(fd.dropout, rows=[5, 0, 5, 9]), "out save"),
    "dropout_add": (of(fd.dropout_add, same), "out save"),
    "embedding_dropout": (of(fd.embedding_dropout), ""),
    "embedding_dropout, ids": (of(fd.embedding_dropout, ids=IDS), ""),
    "feature_alpha_dropout": (of(fd.feature_alpha_dropout), "out save"),
    "gaussian_dropout": (of(fd.gaussian_dropout), "out"),
    "gaussian_dropout, shared": (of(fd.gaussian_dropout, shared_axes=1), "out"),
    "gaussian_dropout, rows": (of(fd.gaussian_dropout, rows=[5, 0, 5, 9]), "out"),
    "gaussian_noise": (of(fd.gaussian_noise, std=0.5), "out"),
    "locked_dropout": (of(fd.locked_dropout), "out save"),
    "relu_dropout": (of(fd.relu_dropout), "out"),
    "relu_dropout, shared": (of(fd.relu_dropout, shared_axes=(1,)), "out"),
    "softmax_dropout": (of(fd.softmax_dropout, causal=True), "out save"),
    "softmax_dropout, mask": (of(fd.softmax_dropout, axis=1, mask=X > 0), "out save"),
    "sparse_variational_linear": (of(fd.sparse_variational_linear, weight, weight, bias), "wide"),
    "spatial_dropout": (of(fd.spatial_dropout), "out save"),
    "targeted_dropout": (of(fd.targeted_dropout), ""),
    "variational_dropout": (of(fd.variational_dropout, row), ""),
    "variational_dropout, rows": (of(fd.variational_dropout, row, rows=[5, 0, 5, 9]), ""),
    "zoneout": (of(fd.zoneout, same), "save"),
}

LAYOUTS = {
    "C": lambda x: x,
    "transposed": lambda x: np.asfortranarray(x),
    "gaps": lambda x: np.repeat(x, 2, axis=3)[..., ::2],
    "backwards": lambda x: x[:, ::-1][:, ::-1][::-1],
}
# The road through Python depends on the layout and on what is saved; on the dtype hardly.
FULL = [
    pytest.param(*how, marks=() if how == (np.float32, "C", "bits") else pytest.mark.slow)
    for how in (
        (np.float32, "C", "bits"),
        (np.float32, "C", "seed"),
        (np.float32, "transposed", "bits"),
        (np.float32, "gaps", "seed"),
        (np.float64, "backwards", "bits"),
        (ml_dtypes.bfloat16, "C", "bits"),
    )
]


def test_every_op_is_here():
    without = {"dropconnect_inference", "keep_mask"}  # below
    drawing = {
        name
        for name in fd.__all__
        if "rng" in getattr(getattr(getattr(fd, name), "__code__", None), "co_varnames", ())
    }
    assert drawing - without == {name.partition(",")[0] for name in OPS}


def bits_of(*arrays):
    return [np.ascontiguousarray(a).tobytes() for a in arrays if a is not None]


def gradients(found):
    return found if isinstance(found, tuple) else (found,)


class Written:
    """An array to write to: as it was, or all that was to be written."""

    def __init__(self, like, fill=None):
        self.array = LAYOUTS["gaps"](np.zeros(like.shape, like.dtype)) if fill is None else fill
        if fill is None:
            self.array[...] = 7
        self.before = bits_of(self.array)

    @property
    def changed(self):
        return bits_of(self.array) != self.before

    def agrees(self, expected, done):
        """Whether it is whole if something is done, else as it was."""
        now, expected = bits_of(self.array), bits_of(expected)
        assert now in (self.before, expected), "torn"
        return expected == self.before or done == (now == expected)


def outs(x, takes):
    """Where y may go: nowhere, an array like x, one with gaps, x itself."""
    yield "none"
    if takes:
        yield from ("like x", "gaps", "x")


def target(kind, x):
    """(x, what to write to or None)"""
    x = x.copy(order="K") if kind == "x" else x
    if kind == "none":
        return x, None
    if kind == "gaps":
        return x, Written(x)
    return x, Written(x, x if kind == "x" else np.full_like(x, 7))


def taken_with_a_result(rng, written, expected, left):
    taken = rng.call - 5
    assert taken in (0, 1)
    if written is not None:
        assert written.agrees(expected, taken), "out and the call do not belong together"
    elif taken:
        assert left <= RETURNING, "a call is lost"


@pytest.mark.parametrize(("dtype", "layout", "save"), FULL)
@pytest.mark.parametrize("name", OPS)
def test_every_op(name, dtype, layout, save):
    op, takes = OPS[name]
    if "wide" in takes and np.dtype(dtype).itemsize < 4:
        dtype = np.float64
    x = LAYOUTS[layout](X.astype(dtype))
    how = {"save": save} if "save" in takes else {}
    for training in (True, False):
        expected, _ = op(x, rng=fd.Rng(3, 5), training=training, **how)
        for kind in outs(x, "out" in takes):

            def make(training=training, kind=kind):
                rng, (mine, written) = fd.Rng(3, 5), target(kind, x)
                out = {} if written is None else {"out": written.array}
                call = partial(op, mine, rng=rng, training=training, **out, **how)
                return call, (rng, written)

            def check(state, left, training=training, expected=expected):
                rng, written = state
                if training:
                    taken_with_a_result(rng, written, expected, left)
                else:
                    assert rng.call == 5
                    assert written is None or written.agrees(expected, written.changed)

            interrupted(make, check)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["dropout", "dropout, rows"])
def test_complex_numbers(name, layout):
    test_every_op(name, np.complex64, layout, "bits")
    test_every_backward(name, np.complex64, layout, "bits")


def test_sparse():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    x = scipy_sparse.csr_array(X[0, 0])

    def make():
        rng = fd.Rng(3, 5)
        return partial(fd.dropout, x, 0.5, rng=rng), rng

    interrupted(make, lambda rng, left: taken_with_a_result(rng, None, None, left))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_mask_that_is_given(layout):
    x, mask = LAYOUTS[layout](X), X > 0
    for op in (fd.dropout, fd.relu_dropout):
        expected, _ = op(x, mask=mask)

        def make(op=op):
            written = Written(x)
            return partial(op, x, mask=mask, out=written.array), written

        interrupted(make, lambda w, left, y=expected: w.agrees(y, w.changed))


@pytest.mark.parametrize(("dtype", "layout", "save"), FULL)
@pytest.mark.parametrize("name", OPS)
def test_every_backward(name, dtype, layout, save):
    op, takes = OPS[name]
    if "wide" in takes and np.dtype(dtype).itemsize < 4:
        dtype = np.float64
    how = {"save": save} if "save" in takes else {}
    for training in (True, False):
        y, ctx = op(X.astype(dtype), rng=1, training=training, **how)
        dy = np.asarray(np.random.default_rng(2).standard_normal(y.shape), y.dtype)
        dy = LAYOUTS[layout](dy) if dy.ndim == 4 else dy
        expected = gradients(ctx.backward(dy))[0]
        for kind in outs(dy, _takes_out(type(ctx))):

            def make(ctx=ctx, kind=kind, dy=dy):
                mine, written = target(kind, dy)
                out = () if written is None else (written.array,)
                return partial(ctx.backward, mine, *out), written

            def check(written, left, expected=expected):
                assert written is None or written.agrees(expected, written.changed)

            interrupted(make, check)


@pytest.mark.parametrize(
    "draws",
    [
        partial(fd.keep_mask, (4, 30), 0.3),
        partial(fd.keep_mask, (4, 30), 0.3, shared_axes=1, packed=True),
        lambda rng: fd.dropconnect_inference(X[0, 0], W, W[0], 0.3, np.tanh, 3, rng=rng),
        lambda rng: rng.spawn(3),
        lambda rng: mc.pass_rng(rng, 3),
        lambda rng: fd.layers.DropConnect(3, 4, rng=rng),
        lambda rng: fd.layers.SparseVariationalLinear(3, 4, rng=rng),
    ],
)
def test_what_draws_without_an_array(draws):
    def make():
        rng = fd.Rng(3, 5)
        return partial(draws, rng=rng), rng

    def check(rng, left):
        taken_with_a_result(rng, None, None, left)

    interrupted(make, check)


LAYERS = {
    "AdversarialDropout": (lambda rng: fd.layers.AdversarialDropout(0.2, 0.3, rng=rng), 1),
    "BiasDropoutAdd": (lambda rng: fd.layers.BiasDropoutAdd(rng=rng), 3),
    "BiasGeluDropout": (lambda rng: fd.layers.BiasGeluDropout(rng=rng), 2),
    "BiasReluDropout": (lambda rng: fd.layers.BiasReluDropout(rng=rng), 2),
    "DropoutAdd": (lambda rng: fd.layers.DropoutAdd(rng=rng), 2),
    "DropConnect": (lambda rng: fd.layers.DropConnect(7, 3, dtype=float, rng=rng), 1),
    "EmbeddingDropout": (lambda rng: fd.layers.EmbeddingDropout(X[0, 0], rng=rng), 0),
    "GaussianNoise": (lambda rng: fd.layers.GaussianNoise(0.5, rng=rng), 1),
    "SparseVariationalLinear": (
        lambda rng: fd.layers.SparseVariationalLinear(7, 3, dtype=float, rng=rng),
        1,
    ),
    "Zoneout": (lambda rng: fd.layers.Zoneout(rng=rng), 2),
}


def a_layer(name):
    make, inputs = LAYERS.get(name, (lambda rng: getattr(fd.layers, name)(rng=rng), 1))
    layer = make(fd.Rng(3, 5))
    layer.rng.state = {**layer.rng.state, "call": 5}
    row = [X[0, 0, 0]] if name.startswith("Bias") else []
    return layer, [X, *row, *[X] * (inputs - 1 - len(row))] if inputs else [IDS]


def all_of(layer):
    """What a call changes in a layer."""
    calls, base = layer._calls[layer.training], getattr(layer, "_base", {})
    return layer.step, len(calls.stack), layer.ctx is not None, len(base), calls.nbytes


def of_layer(name):
    op = getattr(getattr(fd.layers, name), "op", None)
    return "" if op is None else op.__name__


TO_OUT = [name for name in LAYER_NAMES if "out" in OPS.get(of_layer(name), ("", ""))[1]]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "with_out"), [(n, False) for n in LAYER_NAMES] + [(n, True) for n in TO_OUT]
)
def test_calls_of_layers(name, training, with_out):
    """All of a call, or nothing; written to `out`, the layer may know nothing of it."""
    layer, given = a_layer(name)
    before, expected = all_of(layer.train(training)), layer(*given)
    after = all_of(layer)

    def make():
        layer, _ = a_layer(name)
        layer.train(training)
        written = Written(expected) if with_out else None
        call = partial(layer, *given, **({"out": written.array} if with_out else {}))
        return call, (layer, written)

    def check(state, left):
        layer, written = state
        now, taken = all_of(layer), layer.rng.call - 5
        assert now in (before, after)
        if written is None:
            assert taken == (training and now == after), "a call is lost"
        else:
            assert written.agrees(expected, taken if training else written.changed)
            assert written.changed or now == before

    interrupted(make, check)


def back_to_out():
    """The layers whose backward pass takes out."""
    for name in LAYER_NAMES:
        layer, given = a_layer(name)
        layer(*given)
        if _takes_out(type(layer.ctx)):
            yield name


@pytest.mark.parametrize(
    ("name", "with_out"), [(n, False) for n in LAYER_NAMES] + [(n, True) for n in back_to_out()]
)
def test_backward_of_layers(name, with_out):
    """The call is undone with its gradients, or it is still there."""
    layer, given = a_layer(name)
    y = layer(*given)
    dy = np.asarray(np.random.default_rng(2).standard_normal(y.shape), y.dtype)
    expected = gradients(layer.backward(dy))[0]
    learned = bits_of(*(layer.gradients[key] for key in layer.learned))

    def make():
        layer, _ = a_layer(name)
        layer(*given)
        mine = dy.copy()
        written = Written(mine, mine) if with_out else None
        return partial(layer.backward, mine, *([mine] if with_out else [])), (layer, written)

    def check(state, left):
        layer, written = state
        undone = not layer._calls[True].stack
        if written is not None:
            assert written.agrees(expected, undone)
        if layer.learned:
            assert bool(layer.gradients) == undone
        if layer.gradients:
            assert bits_of(*(layer.gradients[key] for key in layer.learned)) == learned

    interrupted(make, check)


def test_a_call_that_fails_is_not_taken():
    """What the gate refuses, what there is no memory for, and what the caller's function raises."""
    rng, x = fd.Rng(3, 5), np.ones((3, 4), np.float32)

    def fails(_):
        raise ZeroDivisionError

    for error, call in {
        ValueError: lambda: fd.dropout(
            np.empty((0,), np.float32), rng=rng, region=((2**69,), (2**70,))
        ),
        MemoryError: lambda: fd.keep_mask(2**60, 0.5, rng=rng),
        TypeError: lambda: fd.dropout(x, rng=rng, out=[1]),
        ZeroDivisionError: lambda: fd.dropconnect_inference(
            x, x.T.copy(), None, 0.5, fails, rng=rng
        ),
    }.items():
        with pytest.raises(error):
            call()
        assert rng.call == 5
    layer = fd.layers.Dropout(lambda step: 2.0 if step else 0.5, rng=rng)
    layer(x)
    with pytest.raises(ValueError, match="p must be in"):
        layer(x)
    assert (rng.call, layer.step) == (6, 1)


def test_a_call_that_another_has_followed_is_not_given_back():
    """Or two would draw the same."""
    rng = fd.Rng(3, 5)

    def fails(u):
        fd.dropout(u, 0.5, rng=rng)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fd.dropconnect_inference(X[0, 0], W, None, 0.5, fails, rng=rng)
    assert rng.call == 7


def test_the_last_call_of_an_rng_is_given_back():
    rng = fd.Rng(3, 2**64 - 1)
    with pytest.raises(MemoryError):
        fd.keep_mask(2**60, 0.5, rng=rng)
    assert rng.call == 2**64 - 1
    fd.keep_mask(6, 0.5, rng=rng)
    assert rng.call == 2**64


def test_search_of_a_layer():
    gradient = X[::-1].copy()

    def make():
        layer, _ = a_layer("AdversarialDropout")
        layer(X)
        return partial(layer.search, gradient), layer

    def check(layer, left):
        stack = layer._calls[True].stack
        assert len(stack) in (1, 2)
        assert layer.ctx is stack[-1][0]
        assert (layer.step, layer.rng.call) == (1, 6)

    interrupted(make, check)


ACCUMULATORS = {
    "Moments": mc.Moments,
    "Regression": partial(mc.Regression, covariance=True),
    "Classification": mc.Classification,
}


def passes(kind, n):
    into = ACCUMULATORS[kind]()
    mc.predict(model, X[0], n, into, rng=fd.Rng(3, 5))
    return into


def model(x, rng):
    y = np.exp(fd.dropout(x, 0.5, rng=rng)[0])
    return y / y.sum(axis=-1, keepdims=True)


def results(into):
    names = "mean", "variance", "covariance", "expected_entropy", "counts"
    return bits_of(*(getattr(into, n) for n in names if hasattr(into, n))) if into.samples else []


@pytest.mark.parametrize("kind", ACCUMULATORS)
def test_predictions(kind):
    """A pass is taken in whole or not at all; the call is taken with the last, and as the passes go
    on where they stopped, all can be had by another prediction.
    """
    expected = [results(passes(kind, n)) if n else [] for n in range(4)]

    def make():
        rng, into = fd.Rng(3, 5), ACCUMULATORS[kind]()
        return partial(mc.predict, model, X[0], 3, into, rng=rng), (rng, into)

    def check(state, left):
        rng, into = state
        assert results(into) == expected[into.samples]
        taken_with_a_result(rng, None, None, left)
        if rng.call == 5 and into.samples < 3 and left % 10 == 0:
            mc.predict(model, X[0], 3 - into.samples, into, rng=rng)
            assert results(into) == expected[3]

    interrupted(make, check, 3)


def test_sampling():
    """Behind it, layers are as they were."""

    def make():
        layers = [a_layer(n)[0] for n in ("Dropout", "DropConnect", "AdversarialDropout")]
        for layer in layers:
            layer(X)
            layer.eval()
        before = [vars(layer).copy() for layer in layers]

        def call():
            with mc.sampling(layers, fd.Rng(3), consistent=False):
                for layer in layers:
                    layer(X)

        return call, (layers, before)

    def check(state, left):
        layers, before = state
        for layer, attributes in zip(layers, before, strict=True):
            assert vars(layer).keys() == attributes.keys()
            assert all(vars(layer)[key] is attributes[key] for key in attributes)

    interrupted(make, check)
