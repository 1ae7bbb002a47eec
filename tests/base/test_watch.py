"""`fastdrop.debug`: a draw that is used for two arrays raises."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastdrop as fd
from fastdrop.backends.cpu import Cpu

X = np.random.default_rng(0).standard_normal((6, 4, 8, 8))
OTHER = X + 1
ROWS = X.reshape(-1, 64)
W = np.ones((64, 3))

OPS = {
    "adversarial_dropout": lambda x, **how: fd.adversarial_dropout(x, x + 1, p=0.3, **how),
    "alpha_dropout": fd.alpha_dropout,
    "bias_dropout_add": lambda x, **how: fd.bias_dropout_add(x, x[0, 0, 0], x, **how),
    "bias_gelu_dropout": lambda x, **how: fd.bias_gelu_dropout(x, x[0, 0, 0], **how),
    "bias_relu_dropout": lambda x, **how: fd.bias_relu_dropout(x, x[0, 0, 0], **how),
    "concrete_dropout": lambda x, **how: fd.concrete_dropout(x, 0.1, **how),
    "drop_block": lambda x, **how: fd.drop_block(x, 0.3, 3, **how),
    "drop_path": fd.drop_path,
    "dropconnect": lambda x, **how: fd.dropconnect(x.reshape(-1, 64), W, **how),
    "dropout": fd.dropout,
    "dropout_add": lambda x, **how: fd.dropout_add(x, x, **how),
    "embedding_dropout": fd.embedding_dropout,
    "embedding_dropout, ids": lambda x, **how: fd.embedding_dropout(x, ids=[1, 3], **how),
    "feature_alpha_dropout": fd.feature_alpha_dropout,
    "gaussian_dropout": fd.gaussian_dropout,
    "gaussian_noise": lambda x, **how: fd.gaussian_noise(x, 1.0, **how),
    "locked_dropout": fd.locked_dropout,
    "relu_dropout": fd.relu_dropout,
    "softmax_dropout": fd.softmax_dropout,
    "sparse_variational_linear": lambda x, **how: fd.sparse_variational_linear(
        x.reshape(-1, 64), W, W * 0, **how
    ),
    "spatial_dropout": fd.spatial_dropout,
    "targeted_dropout": fd.targeted_dropout,
    "variational_dropout": lambda x, **how: fd.variational_dropout(x, 0.0, **how),
    "zoneout": lambda x, **how: fd.zoneout(x, x, **how),
}
NOT_HERE = {"dropconnect_inference", "keep_mask"}  # have no array, or are to look at masks


def test_every_op_is_here():
    drawing = {
        name
        for name in fd.__all__
        if "rng" in getattr(getattr(getattr(fd, name), "__code__", None), "co_varnames", ())
    }
    assert drawing - NOT_HERE == {name.partition(",")[0] for name in OPS}


@pytest.mark.parametrize("name", OPS)
def test_another_array(name):
    op = OPS[name]
    with fd.debug():
        y, ctx = op(X, rng=1)
        again, _ = op(X.copy(), rng=1)  # recomputation
        assert np.array_equal(y, again)
        ctx.backward(np.ones_like(y))
        rng = fd.Rng(1)
        with pytest.raises(RuntimeError, match=r"the draw \(seed 1, call 0\) was used for another"):
            op(OTHER, rng=rng)
        assert rng.call == 0
        op(OTHER, rng=fd.Rng(1, 1))
        op(OTHER, rng=1, training=False)
    op(OTHER, rng=1)


@pytest.mark.parametrize("name", OPS)
def test_a_foreign_context(name):
    """Draws again what nobody drew, if it has to draw."""
    op = OPS[name]
    how = {"save": "seed"} if name in ("dropout", "drop_block", "zoneout", "dropout_add") else {}
    y, ctx = op(X, rng=1, **how)
    has_to_draw = name != "gaussian_noise" and (how or not isinstance(ctx.held, bytes))
    with fd.debug():
        if has_to_draw:
            with pytest.raises(RuntimeError, match="which no forward pass has drawn"):
                ctx.backward(np.ones_like(y))
        else:
            ctx.backward(np.ones_like(y))
    ctx.backward(np.ones_like(y))


def test_parts_of_one_array():
    whole = (6, 4, 8, 8)
    with fd.debug():
        fd.dropout(X, rng=1)
        for i in range(3):
            region = (2 * i, 0, 0, 0), whole
            _, ctx = fd.dropout(X[2 * i : 2 * i + 2], rng=1, region=region, save="seed")
            ctx.backward(X[:2])
        for at in ([0, 3], [4, 1], [2, 5]):
            fd.dropout(X[at], rng=2, rows=at)
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropout(OTHER[:2], rng=1, region=((0, 0, 0, 0), whole))
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropout(X[:2], rng=1, region=((0, 0, 0, 0), (9, 4, 8, 8)))
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropout(OTHER[[0, 3]], rng=2, rows=[0, 3])
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropout(X[..., :2], rng=2, rows=range(6))


def test_layers_with_one_seed():
    a, b = fd.layers.Dropout(0.5, rng=3), fd.layers.Dropout(0.5, rng=3)
    with fd.debug():
        y = a(X)
        with pytest.raises(RuntimeError, match="give each operation a call of its own"):
            b(y)
        a.backward(y)
        shared = fd.Rng(3, 5)
        a, b = fd.layers.Dropout(0.5, rng=shared), fd.layers.Dropout(0.5, rng=shared)
        b(a(X))


def test_where_a_mask_is_meant_for_several_arrays():
    with fd.debug():
        fd.dropout(X, rng=1)
        with fd.debug(False):
            fd.dropout(OTHER, rng=1)
        with fd.debug(), pytest.raises(RuntimeError):
            fd.dropout(OTHER, rng=1)
        with pytest.raises(RuntimeError):
            fd.dropout(OTHER, rng=1)


def test_threads_that_leave_in_another_order():
    a, b = fd.debug(), fd.debug()
    a.__enter__()
    b.__enter__()
    fd.dropout(X, rng=1)
    a.__exit__()
    with pytest.raises(RuntimeError, match="another array"):
        fd.dropout(OTHER, rng=1)
    b.__exit__()
    fd.dropout(OTHER, rng=1)


def test_a_call_that_failed_is_forgotten(monkeypatch):
    rng = fd.Rng(1)
    with fd.debug():
        with monkeypatch.context() as patched:
            patched.setattr(Cpu, "noise", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fd.gaussian_noise(X, 1.0, rng=rng)
        assert rng.call == 0
        fd.gaussian_noise(OTHER, 1.0, rng=rng)
        with pytest.raises(RuntimeError, match="another array"):
            fd.gaussian_noise(X, 1.0, rng=1)


def interrupted(*_):
    raise KeyboardInterrupt


def test_what_needs_no_draw():
    mask = X > 0
    with fd.debug():
        for x in (X, OTHER):
            _, ctx = fd.dropout(x, mask=mask)
            ctx.backward(x)
            _, ctx = fd.bias_dropout_add(x, x[0, 0, 0], x, training=False)
            ctx.backward(x)
        assert (fd.keep_mask(9, 0.5, rng=1) == fd.keep_mask(9, 0.5, rng=1)).all()
        _, ctx = fd.dropout(X.astype(complex), rng=1, save="seed")
        ctx.backward(X)
        assert pickle.loads(pickle.dumps(ctx)).backward(X) is not None


def test_what_nothing_random_decides():
    with fd.debug():
        for w in (ROWS, ROWS + 1):
            fd.targeted_prune(w, 0.5)
            fd.dropout(w, 0.0, rng=1)
            fd.relu_dropout(w, 0.0, rng=1)
            fd.adversarial_dropout(w, w, rng=1)


def test_where_entries_are_counts_too():
    sp = pytest.importorskip("scipy.sparse")
    a, b = (sp.csr_array((np.ones(2), ([0, 1], at)), shape=(2, 9)) for at in ([3, 4], [5, 6]))
    with fd.debug():
        fd.dropout(a, rng=1)
        fd.dropout(a.copy(), rng=1)
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropout(b, rng=1)
        fd.dropconnect(ROWS, W, rng=2)
        with pytest.raises(RuntimeError, match="another array"):
            fd.dropconnect(ROWS, W + 1, rng=2)


def test_the_environment_variable():
    program = (
        "import numpy as np, fastdrop as fd; fd.dropout(np.ones(9), rng=1);"
        "fd.dropout(np.zeros(9), rng=1)"
    )
    for value, raises in (("1", True), ("0", False), ("off", False), ("", False)):
        environment = os.environ | {"FASTDROP_DEBUG": value}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert (done.returncode != 0, "RuntimeError" in done.stderr) == (raises, raises), (
            done.stderr
        )
