"""Results never depend on the number of threads; forks and busy pools do no harm."""

import functools
import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd
from fastdrop import _core, reference

N = 500_003  # several chunks of 65,536, and a rest


@pytest.fixture(autouse=True)
def restore():
    before = fd.get_num_threads()
    yield
    fd.set_num_threads(before)


@pytest.fixture(params=[False, True], ids=["stores", "non-temporal"])
def non_temporal(request):
    """With and without writing past the caches."""
    before = _core.set_non_temporal_bytes(0 if request.param else 2**62)
    yield request.param
    _core.set_non_temporal_bytes(before)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_any_number_of_threads(isa, any_dtype, non_temporal, p):
    x = np.random.default_rng(0).standard_normal(N).astype(any_dtype)
    expected, mask = reference.dropout(x, p, 3, 0)
    for threads in (1, 2, 3, 7):
        fd.set_num_threads(threads)
        for save in ("bits", "seed"):
            y, ctx = fd.dropout(x, p, rng=3, save=save)
            assert_same_bits(y, expected)
            assert_same_bits(ctx.backward(x), expected)
        np.testing.assert_array_equal(ctx.mask(), mask)


def test_every_alignment(isa, non_temporal):
    fd.set_num_threads(2)
    raw = np.zeros(4 * 140_000, np.uint8)
    x = np.random.default_rng(0).standard_normal(139_000, np.float32)
    expected, _ = reference.dropout(x, 0.2, 3, 0)
    for shift in range(0, 72):
        out = raw[shift : shift + 4 * 139_000].view(np.float32)
        fd.dropout(x, 0.2, rng=3, out=out)
        assert_same_bits(out.copy(), expected)
        assert not raw[:shift].any()
        assert not raw[shift + 4 * 139_000 :].any()


@functools.cache
def mask_of(shape, axes):
    """The reference's mask: the same for every instruction set."""
    return reference.keep(reference.element_index(shape, axes), 0.3, 1, 0)


def test_layouts_and_shared_axes(isa, non_temporal):
    x = np.random.default_rng(0).standard_normal((60, 90, 70), np.float32)
    for v in (x.T, x[::-1], x[:, ::2], np.asfortranarray(x), x.transpose(1, 0, 2)):
        for axes in ((), (0,), (1,), (2,), (0, 2)):
            expected = reference.apply(v, mask_of(v.shape, axes), 0.3)
            for threads in (1, 3):
                fd.set_num_threads(threads)
                y, ctx = fd.dropout(v, 0.3, rng=1, shared_axes=axes)
                assert_same_bits(np.ascontiguousarray(y), expected)
                assert_same_bits(np.ascontiguousarray(ctx.backward(v)), expected)


def test_region(isa):
    region = (3, 5, 7), (100, 300, 120)
    x = np.ones((60, 90, 70), np.float32)
    expected, _ = reference.dropout(x, 0.3, 1, 0, (), region)
    for threads in (1, 3):
        fd.set_num_threads(threads)
        assert_same_bits(fd.dropout(x, 0.3, rng=1, region=region)[0], expected)


@pytest.mark.parametrize("op", ["dropout_add", "relu_dropout"])
def test_fused(isa, any_dtype, non_temporal, op):
    x = np.random.default_rng(0).standard_normal(N).astype(any_dtype)
    mask = reference.keep(np.arange(N), 0.3, 3, 0)
    if op == "dropout_add":
        given, expected = (x, x[::-1].copy()), reference.fused(x, mask, 0.3, residual=x[::-1])
    else:
        given, expected = (x,), reference.fused(x, mask, 0.3, relu=True)
    for threads in (1, 3):
        fd.set_num_threads(threads)
        y, ctx = getattr(fd, op)(*given, 0.3, rng=3)
        assert_same_bits(y, expected)
        ctx.backward(x)


def test_bias_over_many_rows(non_temporal):
    x = np.random.default_rng(0).standard_normal((700, 513), np.float32)
    bias = x[0].copy()
    mask = reference.keep(reference.element_index(x.shape), 0.3, 3, 0)
    expected = reference.fused(x, mask, 0.3, bias=bias, residual=x)
    for threads in (1, 3):
        fd.set_num_threads(threads)
        assert_same_bits(fd.bias_dropout_add(x, bias, x, 0.3, rng=3)[0], expected)


def test_masks_drawn_in_pieces(monkeypatch):
    """Without bits to keep, the mask of a strided array never exists as a whole."""
    before = _core.set_piece(1 << 10)
    try:
        x = np.random.default_rng(0).standard_normal((13, 50, 70), np.float32)
        for v in (x.T, x[:, ::2], x):
            for axes in ((), (0,), (1,)):
                expected = reference.apply(v, mask_of(v.shape, axes), 0.3)
                y, ctx = fd.dropout(v, 0.3, rng=1, shared_axes=axes, save="seed")
                assert_same_bits(np.ascontiguousarray(y), expected)
                assert_same_bits(np.ascontiguousarray(ctx.backward(v)), expected)
    finally:
        _core.set_piece(before)


def test_several_python_threads_at_once():
    fd.set_num_threads(2)
    x = np.random.default_rng(0).standard_normal(300_000, np.float32)
    expected, _ = reference.dropout(x, 0.2, 3, 0)
    failures = []

    def work():
        for _ in range(30):
            if not np.array_equal(fd.dropout(x, 0.2, rng=3)[0], expected):
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def threads_of(code, **environment):
    code = f"import fastdrop as fd, numpy as np, threading, os\n{code}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip(), result.stderr


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs such a Python")
def test_import_leaves_the_gil_off():
    assert threads_of("import sys; print(sys._is_gil_enabled())", PYTHON_GIL="") == ("False", "")


def test_all_that_threads_may_share():
    script = Path(__file__).parents[3] / "dev" / "trust" / "free_threading.py"
    result = subprocess.run(
        [sys.executable, script, "1"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "each once" in result.stdout


def test_default_is_the_cpus_of_the_process():
    wanted = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads_of("print(fd.get_num_threads())", FASTDROP_NUM_THREADS="")[0] == str(wanted)


def test_environment_variable():
    assert threads_of("print(fd.get_num_threads())", FASTDROP_NUM_THREADS="5")[0] == "5"
    for bad in ("0", "x", "-1", "99999"):
        shown, error = threads_of("print(fd.get_num_threads())", FASTDROP_NUM_THREADS=bad)
        assert not shown
        assert f"FASTDROP_NUM_THREADS must be in 1 ... 1024, got '{bad}'" in error


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs Linux")
def test_no_thread_before_the_first_large_call():
    code = """
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
fd.set_num_threads(3)
fd.dropout(np.ones(60_000, np.float32), 0.2, rng=1)
small = count()
fd.dropout(np.ones(600_000, np.float32), 0.2, rng=1)
print(small - before, count() - before)
"""
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    assert threads_of(code, **single)[0] == "0 2"


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs CPUs"
)
def test_workers_stay_off_the_callers_cpu():
    """Or they would wait behind it while another library's threads spin on the other CPUs."""
    code = """
import time
first, second = sorted(os.sched_getaffinity(0))[:2]
threads = lambda: {int(name) for name in os.listdir("/proc/self/task")}
before = threads()
fd.set_num_threads(2)

def allowed(call_from):
    os.sched_setaffinity(0, {call_from})
    for _ in range(2):  # the worker may come too late to the first
        fd.dropout(np.ones(600_000, np.float32), 0.2, rng=1)
        time.sleep(0.05)
    (worker,) = threads() - before
    return worker, os.sched_getaffinity(worker)

fd.dropout(np.ones(600_000, np.float32), 0.2, rng=1)
worker, at = allowed(first)
assert first not in at and second in at, (first, at)
at = allowed(second)[1]
assert second not in at and first in at, (second, at)
os.sched_setaffinity(worker, {second})  # what others say counts, and one CPU is not taken away
assert allowed(first)[1] == allowed(second)[1] == {second}
print("as told")
"""
    single = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    assert threads_of(code, **single) == ("as told", "")


def test_set_num_threads():
    fd.set_num_threads(4)
    assert fd.get_num_threads() == 4
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"n must be at least 1, got {bad}"):
            fd.set_num_threads(bad)
    with pytest.raises(ValueError, match=r"n must be in 1 ... 1024, got 1025"):
        fd.set_num_threads(1025)
    with pytest.raises(TypeError, match=r"n must be an int, got 1\.5"):
        fd.set_num_threads(1.5)
    assert fd.get_num_threads() == 4
