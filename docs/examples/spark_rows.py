"""Training over the partitions of Spark: a row has the same mask wherever it is computed.

python docs/examples/spark_rows.py

It needs pyspark and Java, and runs on this machine. The driver names the draw of each step, by a
seed and the number of a call; each partition draws the masks of its rows. Rows may be shuffled, as
their numbers go with them. `ray_blocks.py` does the same with blocks of rows in Ray.
"""

import numpy as np
from pyspark.sql import SparkSession

import fastdrop as fd


def gradients(x, t, ids, weights, step):
    """Of the squared error, summed over these rows."""
    W, v = weights
    z = np.maximum(x @ W, 0)
    h, ctx = fd.dropout(z, 0.2, rng=fd.Rng(1234, step), rows=ids)
    error = h @ v - t
    return x.T @ (ctx.backward(np.outer(error, v)) * (z > 0)), h.T @ error


def of_partition(weights, step):
    def run(rows):
        rows = list(rows)
        if rows:
            ids, x, t = (np.array(column) for column in zip(*rows, strict=True))
            yield gradients(x, t, ids, weights, step)

    return run


def trained(sums):
    """Weights after 100 steps; `sums` gives the gradients of all rows."""
    draw = np.random.default_rng(0)
    weights = draw.normal(size=(8, 64)) / 3, draw.normal(size=64) / 8
    for step in range(100):
        weights = [w - 0.1 / 400 * g for w, g in zip(weights, sums(weights, step), strict=True)]
    return weights


x = np.random.default_rng(1).normal(size=(400, 8))
t, ids = np.sin(x[:, 0]), np.arange(400)
with (
    SparkSession.builder.master("local[2]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.bindAddress", "127.0.0.1")
    .config("spark.driver.host", "127.0.0.1")
    .getOrCreate() as spark
):
    rows = spark.sparkContext.parallelize(list(zip(ids, x, t, strict=True)), 4)
    rows = rows.repartition(3).cache()  # shuffles them

    def over_spark(weights, step):
        parts = rows.mapPartitions(of_partition(weights, step)).collect()
        return [sum(each) for each in zip(*parts, strict=True)]

    W, v = trained(over_spark)

alone = trained(lambda weights, step: gradients(x, t, ids, weights, step))
print("as in one process:", np.allclose(W, alone[0]) and np.allclose(v, alone[1]))
print("learned:", bool(np.mean((np.maximum(x @ W, 0) @ v - t) ** 2) < 0.25 * t.var()))
