"""Python threads without a GIL on one array, one Rng and the pool at once: under a free-threaded
CPython, for its thread sanitizer to look at.

python3.13t trust/free_threading.py
"""

import sys
import threading

import numpy as np

import fastdrop as fd

X = np.ones(300_000, np.float32)
ROUNDS = 15


def main():
    print(f"GIL: {sys._is_gil_enabled() if hasattr(sys, '_is_gil_enabled') else True}")
    fd.set_num_threads(3)
    expected = fd.dropout(X, 0.2, rng=3)[0]
    rng, calls, wrong = fd.Rng(5), [], []

    def work():
        for _ in range(ROUNDS):
            y, ctx = fd.dropout(X, 0.2, rng=3)
            if not np.array_equal(y, expected) or not np.array_equal(ctx.backward(X), expected):
                wrong.append(1)
            calls.append(fd.dropout(X[:1000], 0.2, rng=rng)[1].call)
            calls.append(fd.gaussian_dropout(X[:5000], 0.2, rng=rng)[1].call)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sorted(calls) == list(range(2 * 6 * ROUNDS))
    print(f"{len(calls)} calls, each once")


if __name__ == "__main__":
    main()
