"""What a user's mypy says of the public API: nothing of right uses, an error for each wrong one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop

pytest.importorskip("mypy")

RIGHT = """
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt

import fastdrop as fd
from fastdrop import layers, mc, schedules

Array = npt.NDArray[Any]

x = np.ones((4, 8), np.float32)
w = np.ones((8, 3), np.float32)
rng = fd.Rng(1)
other: fd.Rng = fd.Rng(*rng.peek()).spawn(2)[0]
other.state = {**rng.state, "call": 7}

y, ctx = fd.dropout(x, 0.2, rng=rng, shared_axes=(0,), region=((0, 0), (8, 8)), save="seed")
assert_type(y, Array)
assert_type(ctx, fd.Context)
assert_type(ctx.seed, int | None)
dx: Array = ctx.backward(y, out=y)
kept: npt.NDArray[np.bool_] = ctx.mask()
fd.dropout([[1.0, 2.0]], rng=np.random.default_rng(0), training=False, out=y)

y, added = fd.dropout_add(x, x, 0.1, rng=3)
dx, dresidual = added.backward(y)
y, blocks = fd.drop_block(np.ones((2, 3, 8, 8)), 0.1, block_size=3, rng=rng)
size: int = blocks.block_size
y, zoned = fd.zoneout(x, x, 0.1, rng=rng)
dprevious, dnew = zoned.backward(y)
y, connected = fd.dropconnect(x, w, None, 0.5, rng=rng, mode="batch")
gradients: tuple[Array, ...] = connected.backward(y)
y, varied = fd.variational_dropout(x, np.zeros(8), rng=rng)
variance: Array = varied.log_alpha
y, fitted = fd.sparse_variational_linear(x, w, w, rng=rng)
assert_type(fd.sparse_variational_kl(w, w), tuple[float, Array, Array])
value, dlogits = fd.kl_divergence(y, y)
features: dict[str, Any] = fd.cpu_features()
mask: Array = fd.keep_mask((4, 8), 0.5, rng=fd.Rng(), packed=True)

rate: schedules.Schedule = schedules.linear(0.0, 0.5, 100)
drop = layers.Dropout(rate, rng=1, save="seed")
assert_type(drop, layers.Dropout)
assert_type(drop(x), Array)
dx = drop.train().backward(x)
drop.p, drop.save = 0.3, "bits"
whole: float = drop.eval().rate() + drop.step
cell = layers.Zoneout(0.1, rng=rng)
state: Array = cell(x, x)
dense = layers.DropConnect(8, 3, 0.5, rng=rng)
dense.weight -= 0.1 * dense.gradients["weight"]
table = layers.EmbeddingDropout(w, 0.1)(np.arange(8))


def model(x: Array, rng: fd.Rng) -> Array:
    with mc.sampling([drop, dense], rng, consistent=True):
        return dense(drop(x))


assert_type(mc.predict(model, x, 10), mc.Regression)
into = mc.Classification()
assert_type(mc.predict(model, x, 10, into, rng=7), mc.Classification)
assert_type(into.mutual_information, npt.NDArray[np.float64])
"""

GIVEN = """
import numpy as np

import fastdrop as fd

x = np.ones((4, 8), np.float32)
y, ctx = fd.dropout(x)
"""

WRONG = """
fd.dropout(x, p="x")
fd.dropout(x, save=3)
fd.dropout(x, 0.5, 7)
fd.dropout(x, rng="a")
fd.Rng("a")
ctx.backwards(y)
ctx.scale = 2.0
ctx.seed + 1
fd.drop_block(x, block_size="big")
fd.layers.DropConnect(8, "3")
fd.schedules.linear(0.0, 0.5)
fd.mc.predict(x, x, 10)
fd.mc.predict(lambda x, rng: x, x, 10).counts
fd.keep_mask((4, 8), 0.5)
"""


def errors(program: str, folder: Path) -> dict[int, str]:
    """What mypy finds in a program, by lines."""
    path = folder / "program.py"
    path.write_text(program)
    root = Path(fastdrop.__file__).parents[1]
    source = {} if root.name == "site-packages" else {"MYPYPATH": str(root)}
    options = "--strict", "--config-file=", "--follow-imports=silent", "--cache-dir", folder.parent
    result = subprocess.run(
        [sys.executable, "-m", "mypy", *options, path],
        env={**os.environ, **source},
        capture_output=True,
        text=True,
    )
    found = re.findall(r"program\.py:(\d+): error: (.*)", result.stdout)
    assert result.returncode == bool(found), result.stdout + result.stderr
    return {int(line): message for line, message in found}


def test_right_uses(tmp_path):
    assert errors(RIGHT, tmp_path) == {}


def test_wrong_uses(tmp_path):
    first = len(GIVEN.splitlines()) + 1
    wrong = WRONG.strip().splitlines()
    found = errors(GIVEN + "\n".join(wrong), tmp_path)
    assert found.keys() == set(range(first, first + len(wrong))), found
