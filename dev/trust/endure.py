"""10^7 calls, every second one through an error path: memory must not grow by 1 MB.

python dev/trust/endure.py [--calls 1e7]
"""

import argparse
import itertools
import sys
from contextlib import suppress

import numpy as np

import fastdrop as fd

X = np.ones((4, 3, 8, 8), np.float32)
OUT = np.empty_like(X)
W = np.ones((8, 5), np.float32)
READ_ONLY = X.view()
READ_ONLY.flags.writeable = False
RNG = fd.Rng(1)

GOOD = [
    lambda: fd.dropout(X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.dropout(X, 0.2, rng=RNG, save="seed", out=OUT)[1].backward(X, out=OUT),
    lambda: fd.dropout(X.T, 0.2, rng=RNG, shared_axes=(1,))[1].backward(X.T),
    lambda: fd.dropout(X, 0.5, rng=RNG, region=((0, 1, 2, 3), (9, 9, 99, 99)))[1].mask(),
    lambda: fd.keep_mask(X.shape, 0.2, rng=RNG, packed=True),
    lambda: fd.dropout_add(X, X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.bias_dropout_add(X, W[:, 0].copy(), X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.relu_dropout(X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.bias_relu_dropout(X, W[:, 0].copy(), 0.2, rng=RNG)[1].backward(X),
    lambda: fd.bias_gelu_dropout(X, W[:, 0].copy(), 0.2, rng=RNG)[1].backward(X),
    lambda: fd.softmax_dropout(X, 0.2, rng=RNG, causal=True)[1].backward(X),
    lambda: fd.alpha_dropout(X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.zoneout(X, X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.gaussian_dropout(X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.concrete_dropout(X, 0.2, rng=RNG)[1].backward(X),
    lambda: fd.drop_block(X, 0.2, 3, rng=RNG)[1].backward(X),
    lambda: fd.dropconnect(X, W, None, 0.2, rng=RNG)[1].__reduce__(),
    lambda: fd.embedding_dropout(W, 0.2, ids=[1, 2, 1], rng=RNG)[0],
]
BAD = [
    lambda: fd.dropout(X, 1.5, rng=RNG),
    lambda: fd.dropout(X, "no", rng=RNG),
    lambda: fd.dropout(X, 0.2, rng="no"),
    lambda: fd.dropout(X, 0.2, rng=RNG, out=READ_ONLY),
    lambda: fd.dropout(X, 0.2, rng=RNG, out=W),
    lambda: fd.dropout(X.view(np.int32), 0.2, rng=RNG),
    lambda: fd.dropout(X, 0.2, rng=RNG, shared_axes=(9,)),
    lambda: fd.dropout(X, 0.2, rng=RNG, region=((0,), (9,))),
    lambda: fd.dropout(X, 0.2, rng=RNG)[1].backward(W),
    lambda: fd.keep_mask((-1,), 0.2, rng=RNG),
    lambda: fd.keep_mask((2**40, 2**40), 0.2, rng=RNG),
    lambda: fd.bias_dropout_add(X, W, X, 0.2, rng=RNG),
    lambda: fd.drop_block(W, 0.2, rng=RNG),
    lambda: fd.dropconnect(X, W.T, None, 0.2, rng=RNG),
    lambda: fd.embedding_dropout(W, 0.2, ids=[99], rng=RNG),
]
EXPECTED = TypeError, ValueError, IndexError, OverflowError, MemoryError


def resident():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1])


def run(calls):
    good, bad = itertools.cycle(GOOD), itertools.cycle(BAD)
    for _ in range(calls // 2):
        next(good)()
        with suppress(*EXPECTED):
            next(bad)()
            raise AssertionError("a bad call was taken")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=float, default=1e7)
    calls = int(parser.parse_args().calls)
    run(20_000)
    before = resident()
    for part in range(1, 11):
        run(calls // 10)
        print(f"{part * calls // 10} calls: {resident() - before:+d} kB", flush=True)
    return resident() - before >= 1000


if __name__ == "__main__":
    sys.exit(main())
