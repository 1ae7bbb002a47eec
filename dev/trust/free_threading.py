"""Python threads at once on all that they may share: one `Rng`, one array, contexts, the settings,
the pool. For a free-threaded CPython and its thread sanitizer: `dev/trust/sanitize free-threading`.

python3.13t dev/trust/free_threading.py [rounds]
"""

import pickle
import sys
import sysconfig
import threading
from contextlib import suppress

import numpy as np

import fastdrop as fd
from fastdrop import _core, layers

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

THREADS = 6
TAKES = 3000  # of call numbers: of 300, the sanitizer missed a race that was put in

rng = np.random.default_rng(0)
X = rng.standard_normal(150_000, np.float32)  # enough for the pool
ROWS = X.reshape(-1, 50)
MAPS = X.reshape(6, 4, 50, 125)
WEIGHT = rng.standard_normal((50, 70), np.float32)
IDS = rng.integers(0, len(ROWS), 2_000)

OPS = {
    "dropout": lambda rng: fd.dropout(X, 0.2, rng=rng),
    "dropout, seed": lambda rng: fd.dropout(X, 0.2, rng=rng, save="seed"),
    "dropout, p = 1/2": lambda rng: fd.dropout(X.astype(np.float16), 0.5, rng=rng),
    "dropout, strided": lambda rng: fd.dropout(ROWS.T[::-1], 0.3, rng=rng),
    "dropout, strided, seed": lambda rng: fd.dropout(ROWS.T, 0.3, rng=rng, save="seed"),
    "dropout_add": lambda rng: fd.dropout_add(X, X[::-1], 0.2, rng=rng),
    "bias_dropout_add": lambda rng: fd.bias_dropout_add(ROWS, ROWS[0], ROWS, 0.2, rng=rng),
    "relu_dropout": lambda rng: fd.relu_dropout(X, 0.2, rng=rng),
    "bias_relu_dropout": lambda rng: fd.bias_relu_dropout(ROWS, ROWS[0], 0.2, rng=rng),
    "bias_gelu_dropout": lambda rng: fd.bias_gelu_dropout(ROWS, ROWS[0], 0.2, rng=rng),
    "alpha_dropout": lambda rng: fd.alpha_dropout(X, 0.2, rng=rng),
    "zoneout": lambda rng: fd.zoneout(X, -X, 0.2, rng=rng),
    "softmax_dropout": lambda rng: fd.softmax_dropout(ROWS, 0.2, causal=True, rng=rng),
    "spatial_dropout": lambda rng: fd.spatial_dropout(MAPS, 0.2, rng=rng),
    "embedding_dropout": lambda rng: fd.embedding_dropout(ROWS, 0.2, ids=IDS, rng=rng),
    "drop_block": lambda rng: fd.drop_block(MAPS, 0.2, 5, rng=rng),
    "dropconnect": lambda rng: fd.dropconnect(ROWS[:300], WEIGHT, WEIGHT[0], 0.3, rng=rng),
    "gaussian_dropout": lambda rng: fd.gaussian_dropout(X, 0.2, rng=rng),
    "gaussian_noise": lambda rng: fd.gaussian_noise(X, 0.2, rng=rng),
    "concrete_dropout": lambda rng: fd.concrete_dropout(X, -1.0, rng=rng),
    "variational_dropout": lambda rng: fd.variational_dropout(ROWS, np.full(50, -2.0), rng=rng),
}
LAYERS = layers.Dropout, layers.GaussianDropout, layers.AlphaDropout


def digest(*arrays):
    """Bytes to compare: everything is the same to the bit, or wrong."""
    return [None if a is None else np.asarray(a).tobytes() for a in arrays]


def gradients(ctx, y):
    found = ctx.backward(np.ones_like(y))
    return found if isinstance(found, tuple) else (found,)


def both(op):
    y, ctx = op(3)
    return digest(y, *gradients(ctx, y))


def of_layers():
    """Layers belong to one thread each; their draws are their own."""
    found = []
    for kind in LAYERS:
        layer = kind(0.2, rng=7)
        for _ in range(2):
            found += digest(layer(X), layer.backward(X))
    return found


class Shared:
    """What all threads use, and what came of it."""

    def __init__(self):
        self.expected = {name: both(op) for name, op in OPS.items()}
        self.layers = of_layers()
        self.contexts = {}
        for name, op in OPS.items():
            y, ctx = op(3)
            self.contexts[name] = ctx, y, digest(*gradients(ctx, y))
        self.mask = self.contexts["dropout"][0].mask()
        self.rng, self.generator = fd.Rng(5), np.random.default_rng(5)
        self.calls, self.children, self.seeds, self.wrong = [], [], [], []

    def see(self, what, right):
        if not right:
            self.wrong.append(what)

    def ops(self, i):
        for name, op in OPS.items():
            self.see(name, both(op) == self.expected[name])
        self.see("keep_mask", np.array_equal(fd.keep_mask(X.shape, 0.2, rng=3), self.mask))

    def one_rng(self, i):
        self.calls += [fd.dropout(X[:100], 0.2, rng=self.rng)[1].call for _ in range(20)]
        self.calls += [op(self.rng)[1].call for op in OPS.values()]
        before = self.rng.call
        self.children += [child.seed for child in self.rng.spawn(3)]
        after = pickle.loads(pickle.dumps(self.rng))
        self.see("rng", after.seed == 5 and before < after.call <= self.rng.state["call"])
        self.seeds.append(fd.dropout(X[:9], 0.5, rng=self.generator)[1].seed)

    def one_number(self, i):
        """Nothing between the calls: what else threads do tells the sanitizer who came first."""
        take = self.rng.take
        self.calls += [take()[1] for _ in range(TAKES)]

    def one_state(self, i):
        """Never the seed of one state and the call of another."""
        for k in range(TAKES // 10):
            n = TAKES * i + k
            self.other.state = {"stream_version": 1, "seed": n, "call": n}
            seed, call = self.other.peek()
            self.see("state", call - seed in range(THREADS + 1))
            self.other.take()

    def one_context(self, i):
        for name, (ctx, y, expected) in self.contexts.items():
            self.see(f"{name}: backward", digest(*gradients(ctx, y)) == expected)
            copy = pickle.loads(pickle.dumps(ctx))
            self.see(f"{name}: pickle", digest(*gradients(copy, y)) == expected)
            repr(ctx)
        for name in ("dropout", "dropout, seed"):
            self.see("mask", np.array_equal(self.contexts[name][0].mask(), self.mask))

    def own_layers(self, i):
        self.see("layers", of_layers() == self.layers)

    def settings(self, i):
        """Results do not depend on them, whoever changes them when."""
        for k, isa in enumerate(_core.available_isas()):
            fd.set_num_threads(1 + (i + k) % 4)
            _core.set_isa(isa)
            _core.set_non_temporal_bytes(2**62 if k % 2 else 0)
            _core.set_piece(1 << (10 + i))
            self.see("threads", 1 <= fd.get_num_threads() <= 4)
            self.see("isa", fd.cpu_features()["isa"] in _core.available_isas())
            self.see("dropout", both(OPS["dropout"]) == self.expected["dropout"])
        _core.set_isa(_core.available_isas()[0])

    def errors(self, i):
        """Tracebacks of compiled code, too, are made once for all threads."""
        for _ in range(5):
            with suppress(ValueError):
                fd.dropout(X, 2.0, rng=self.rng)
                self.see("p = 2", False)
            with suppress(ValueError):
                _core.set_isa("none")
                self.see("isa", False)
            with suppress(TypeError, OverflowError):
                _core.CallCounter(-1, 0)
                self.see("seed", False)

    def first_bfloat16(self, i):
        """The number of a dtype that NumPy does not know is noted by whoever meets it first."""
        if bfloat16:
            y, ctx = fd.dropout(X[:70_000].astype(bfloat16), 0.2, rng=3)
            self.see("bfloat16", np.array_equal(y != 0, self.mask[:70_000] & (X[:70_000] != 0)))
            gradients(ctx, y)

    def work(self, i, rounds):
        kinds = [self.ops, self.one_rng, self.one_context, self.own_layers, self.settings]
        kinds += [self.errors]
        try:
            for together in (self.first_bfloat16, self.one_number, self.one_state):
                self.start.wait()
                together(i)
            for k in range(rounds):
                for j in range(len(kinds)):  # each thread in another order
                    kinds[(i + j + k) % len(kinds)](i)
        except Exception as error:
            self.wrong.append(repr(error))
            raise

    def run(self, rounds):
        self.start = threading.Barrier(THREADS)
        self.other = fd.Rng(0)
        threads = [threading.Thread(target=self.work, args=(i, rounds)) for i in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main(rounds=2):
    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    # Importing a module that is not ready would have switched it on.
    assert not (has_gil and sysconfig.get_config_var("Py_GIL_DISABLED"))
    fd.set_num_threads(3)
    shared = Shared()
    shared.run(rounds)
    assert not shared.wrong, sorted(set(shared.wrong))
    calls = sorted(shared.calls)
    spawned = THREADS * rounds
    assert len(set(calls)) == len(calls)  # never the same
    assert shared.rng.call == len(calls) + spawned  # none left out: the others went to `spawn`
    assert len(set(shared.children)) == 3 * spawned
    assert len(set(shared.seeds)) == spawned
    print(f"GIL: {has_gil}; {len(OPS)} ops in {THREADS} threads, {len(calls)} calls, each once")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
