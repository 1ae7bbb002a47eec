"""Training over blocks of rows in Ray: a block has the same mask whichever task computes it.

python docs/examples/ray_blocks.py

It needs ray, and runs on this machine. The driver names the draw of each step, by a seed and the
number of a call; each task draws the part of the whole mask where its block lies. So a task that
Ray runs again, because its worker was lost, gives the same, and so do blocks of other lengths.
"""

import numpy as np
import ray

import fastdrop as fd

ROWS, UNITS = 400, 64


def gradients(x, t, first, weights, step):
    """Of the squared error, summed over a block of rows that begins at row `first`."""
    W, v = weights
    region = (first, 0), (ROWS, UNITS)
    h, ctx = fd.relu_dropout(x @ W, 0.2, rng=fd.Rng(1234, step), region=region)
    error = h @ v - t
    return x.T @ ctx.backward(np.outer(error, v)), h.T @ error


def trained(sums):
    """Weights after 100 steps; `sums` gives the gradients of all rows."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(8, UNITS)) / 3, draw.normal(size=UNITS) / 8
    for step in range(100):
        weights = [w - 0.1 / ROWS * g for w, g in zip(weights, sums(weights, step), strict=True)]
    return weights


x = np.random.default_rng(1).normal(size=(ROWS, 8))
t = np.sin(x[:, 0])
ray.init(num_cpus=2, include_dashboard=False)
task = ray.remote(gradients)
blocks = [(ray.put(x[i : i + 150]), ray.put(t[i : i + 150]), i) for i in range(0, ROWS, 150)]


def over_ray(weights, step):
    parts = ray.get([task.remote(*block, weights, step) for block in blocks])
    return [sum(each) for each in zip(*parts, strict=True)]


W, v = trained(over_ray)
ray.shutdown()

alone = trained(lambda weights, step: gradients(x, t, 0, weights, step))
print("as in one process:", np.allclose(W, alone[0]) and np.allclose(v, alone[1]))
print("learned:", bool(np.mean((np.maximum(x @ W, 0) @ v - t) ** 2) < 0.25 * t.var()))
