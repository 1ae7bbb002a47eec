"""64 KiB of stack are enough for every op, forward and backward, on every instruction set.

A stack that is too small ends the process, so each test has its own. 48 KiB are enough, too.
"""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastdrop import _core

DEV = Path(__file__).parents[3] / "dev"
KIB = 64

# Every op on a thread of that stack; then those with much to keep there, on arrays large enough for
# several threads: dtypes, strided, permuted, with shared axes.
PROGRAM = """
import sys, threading
import numpy as np
sys.path.insert(0, sys.argv[1])
import every_op
import fastdrop as fd

def back(result):
    y, ctx = result
    ctx.backward(np.ones(y.shape, y.dtype))

def all_ops():
    for op in every_op.OPS.values():
        back(op())
    for threads in (1, 4):
        fd.set_num_threads(threads)
        for dtype in (np.float32, np.float64, np.float16):
            x = np.ones((40, 60, 100), dtype)
            for layout in (x, x[:, ::-1], x[..., ::2], x.T, np.broadcast_to(x[:1], x.shape)):
                for axes in ((), (1,), (0, 2)):
                    y, ctx = fd.dropout(layout, 0.3, rng=1, shared_axes=axes)
                    ctx.backward(layout)
                    ctx.backward(layout, out=np.empty((*y.shape, 2), dtype)[..., 0])
                back(fd.dropout(layout, 0.3, rng=1, save="seed"))
                back(fd.dropout(layout, 0.3, rng=1, rows=np.arange(len(layout))[::-1]))
                back(fd.gaussian_dropout(layout, 0.3, rng=1))
                back(fd.concrete_dropout(layout, -1.0, rng=1, shared_axes=0))
                back(fd.variational_dropout(layout, -np.ones(layout.shape[-1]), rng=1))
                back(fd.drop_block(layout, 0.3, 3, rng=1))
                back(fd.softmax_dropout(layout, 0.3, causal=True, rng=1))
            if dtype != np.float16:
                for columns in (33, 5000):
                    x = np.ones((70, 64), dtype)
                    W = np.ones((64, columns), dtype)
                    back(fd.dropconnect(x, W, W[0], 0.3, rng=1))
    done.append(True)

done = []
threading.stack_size(int(sys.argv[2]) << 10)
thread = threading.Thread(target=all_ops)
thread.start()
thread.join()
assert done
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stack may have to be larger")
@pytest.mark.parametrize("isa", _core.available_isas())
def test_every_op(isa):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, DEV, str(KIB)],
        env={"PYTHONPATH": ":".join(sys.path), "FASTDROP_ISA": isa, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_thread_has_no_less():
    """What the test above asks for is what a program can ask for, and what it gets."""
    before = threading.stack_size(KIB << 10)
    assert threading.stack_size(before) == KIB << 10
