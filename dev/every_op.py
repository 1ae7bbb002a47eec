"""Every public op, forward and backward, in an environment that has NumPy alone."""

import sys

import numpy as np

import fastdrop as fd

x = np.random.default_rng(0).standard_normal((4, 6, 8, 8), np.float32)
rows = x.reshape(-1, 64)
W = rows[:, :16].T.copy()  # (inputs, outputs) with rows[:, :16]
inputs, ids = rows[:, :16].copy(), np.arange(12)

OPS = {
    "adversarial_dropout": lambda: fd.adversarial_dropout(rows, rows[::-1].copy(), rng=1),
    "alpha_dropout": lambda: fd.alpha_dropout(x, 0.3, rng=1),
    "bias_dropout_add": lambda: fd.bias_dropout_add(x, x[0, 0, 0], x, 0.3, rng=1),
    "bias_gelu_dropout": lambda: fd.bias_gelu_dropout(x, x[0, 0, 0], 0.3, rng=1),
    "bias_relu_dropout": lambda: fd.bias_relu_dropout(x, x[0, 0, 0], 0.3, rng=1),
    "concrete_dropout": lambda: fd.concrete_dropout(x, -1.0, rng=1),
    "drop_block": lambda: fd.drop_block(x, 0.3, 3, rng=1),
    "drop_path": lambda: fd.drop_path(x, 0.3, rng=1),
    "dropconnect": lambda: fd.dropconnect(inputs, W, None, 0.3, rng=1),
    "dropout": lambda: fd.dropout(x, 0.3, rng=1),
    "dropout_add": lambda: fd.dropout_add(x, x, 0.3, rng=1),
    "embedding_dropout": lambda: fd.embedding_dropout(rows, 0.3, ids=ids, rng=1),
    "feature_alpha_dropout": lambda: fd.feature_alpha_dropout(x, 0.3, rng=1),
    "gaussian_dropout": lambda: fd.gaussian_dropout(x, 0.3, rng=1),
    "gaussian_noise": lambda: fd.gaussian_noise(x, 0.3, rng=1),
    "locked_dropout": lambda: fd.locked_dropout(x[0], 0.3, rng=1),
    "relu_dropout": lambda: fd.relu_dropout(x, 0.3, rng=1),
    "softmax_dropout": lambda: fd.softmax_dropout(x, 0.3, causal=True, rng=1),
    "sparse_variational_linear": lambda: fd.sparse_variational_linear(
        inputs, W, np.full_like(W, -3), None, rng=1
    ),
    "spatial_dropout": lambda: fd.spatial_dropout(x, 0.3, rng=1),
    "targeted_dropout": lambda: fd.targeted_dropout(W, 0.3, 0.5, rng=1),
    "variational_dropout": lambda: fd.variational_dropout(x, -2.0, rng=1),
    "zoneout": lambda: fd.zoneout(x, -x, 0.3, rng=1),
}

NO_OPS = {
    *("concrete_regularizer", "cpu_features", "dropconnect_inference", "get_include"),
    *("get_num_threads", "keep_mask", "kl_divergence", "set_num_threads", "sparse_variational_kl"),
    *("squared_divergence", "targeted_prune", "variational_kl"),
}

for name, op in OPS.items():
    y, ctx = op()
    gradient = ctx.backward(np.ones_like(y))
    gradients = gradient if isinstance(gradient, tuple) else (gradient,)
    assert np.isfinite(y).all(), name
    assert all(np.isfinite(g).all() for g in gradients if g is not None), name
    again, _ = op()
    assert (again == y).all(), name

functions = {name for name in fd.__all__ if hasattr(getattr(fd, name), "__code__")}
assert functions - NO_OPS == set(OPS), f"forgotten: {functions - NO_OPS ^ set(OPS)}"
expected, _ = fd.reference.dropout(x, 0.3, 1, 0)
assert (fd.dropout(x, 0.3, rng=1)[0] == expected).all()
foreign = {"ml_dtypes", "numba", "torch", "scipy", "matplotlib"} & set(sys.modules)
assert not foreign, foreign
print(f"{len(OPS)} ops run, forward and backward, with NumPy alone")
