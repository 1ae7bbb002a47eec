"""Atheris over the public API: whatever comes in, a documented exception or a result that is right.

python dev/trust/fuzz.py [-runs=N] [-max_total_time=S] [libFuzzer's options]; needs atheris.
python dev/trust/fuzz.py --blind FIRST LAST makes the runs of these numbers from random bytes, a
number per run, whatever lines they reach: some ten times as many in the same time.
`one_call` is also what tests/ops/test_fuzz.py drives with Hypothesis.
"""

import contextlib
import inspect
import pickle
import sys
import warnings

import numpy as np

if __name__ == "__main__" and "--blind" not in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["fastdrop"]):
        import fastdrop as fd
else:
    import fastdrop as fd

# What the documentation names; a memory error is what a shape beyond all memory deserves.
DOCUMENTED = TypeError, ValueError, IndexError, MemoryError, OverflowError

OPS = [
    *("dropout", "alpha_dropout", "feature_alpha_dropout", "relu_dropout", "gaussian_dropout"),
    *("gaussian_noise", "spatial_dropout", "locked_dropout", "drop_path", "drop_block"),
    *("embedding_dropout", "targeted_dropout", "concrete_dropout", "variational_dropout"),
    *("dropout_add", "zoneout", "adversarial_dropout", "bias_dropout_add", "dropconnect"),
    *("bias_relu_dropout", "bias_gelu_dropout", "softmax_dropout"),
    *("sparse_variational_linear", "keep_mask", "concrete_regularizer", "variational_kl"),
    *("sparse_variational_kl", "targeted_prune", "dropconnect_inference"),
]
SIGNATURES = {name: inspect.signature(getattr(fd, name)).parameters for name in OPS}
DTYPES = "f4", "f8", "f2", "f4", "f8", ">f4", "i4", "c8", "O", "?", "U1"

NUMBERS = [0.5, 0.2, 0.0, 1.0, 0, 1, 1e-9, 1 - 1e-9, 1e300, 5e-324, -0.5, 2.0, 7, 3, -1, 2**20]
NUMBERS += [2**64, 2**70, float("nan"), float("inf"), np.float32(0.25), np.array(0.3), True, None]
NUMBERS += ["x", b"", 0.5j, (), (1,), [0.5], np.ones(2), object()]
MODES = "weight", "unit", "unit_weight", "example", "batch", "gaussian", "row"


class Choices:
    """Decisions from bytes; zeros when they are used up."""

    def __init__(self, data):
        self.data = iter(data)

    def byte(self):
        return next(self.data, 0)

    def below(self, n):
        return self.byte() % n

    def one_of(self, options):
        return options[self.below(len(options))]

    def shape(self):
        shape = tuple(self.one_of((0, 1, 2, 3, 5, 8, 17, 64)) for _ in range(self.below(5)))
        return shape if np.prod(shape) < 10_000 else shape[:2]

    def array(self, shape=None):
        """Any dtype and layout: permuted, strided, reversed, broadcast, misaligned, read-only."""
        shape = self.shape() if shape is None or self.below(8) == 0 else shape
        dtype = np.dtype(self.one_of(DTYPES) if self.below(4) == 0 else self.one_of(DTYPES[:3]))
        steps = [self.one_of((1, 1, 1, 2, -1, -3)) for _ in shape]
        base = tuple(n * abs(s) for n, s in zip(shape, steps, strict=True))
        if dtype.kind in "OU":
            x = np.zeros(base, dtype)
        else:
            shift, size = self.one_of((0, 0, 0, 1, 3)), int(np.prod(base)) * dtype.itemsize
            raw = np.frombuffer(bytearray(b"\x3f" * (size + shift)), np.uint8)
            x = raw[shift:].view(dtype).reshape(base)
        x = x[(..., *(slice(None, None, s) for s in steps))]
        turn = self.below(8)
        if turn == 1:
            x = x.T.copy().T
        elif turn == 2 and x.ndim:
            x = np.broadcast_to(x[:1], x.shape)
        elif turn == 3:
            x = x.view()
            x.flags.writeable = False
        elif turn == 4 and x.ndim < 3:
            return x.tolist()
        return x

    def number(self):
        return self.one_of(NUMBERS)

    def anything(self, x):
        """A value for any argument: often one of the right kind."""
        kind, shape = self.below(12), np.shape(x)
        if kind < 4:
            return self.number()
        if kind == 4:
            return tuple(self.below(5) - 2 for _ in range(self.below(4)))
        if kind == 5:
            return self.region(shape)
        if kind == 6:
            return self.one_of(("bits", "seed", *MODES))
        if kind == 7:
            return x
        if kind == 8:
            return np.array([self.below(9) for _ in range(self.below(9))])
        if kind == 9:
            return fd.Rng(self.byte(), self.byte())
        return self.array(shape)

    def region(self, shape):
        start = tuple(self.below(4) for _ in shape)
        whole = tuple(n + s + self.below(3) for n, s in zip(shape, start, strict=True))
        return start, whole if self.below(6) else (2**33, *whole[1:])

    def fitting(self, name, x):
        """A value that the argument of this name may have."""
        shape = np.shape(x)
        last = shape[-1:] or (1,)
        kind = x.dtype if isinstance(x, np.ndarray) and x.dtype.kind == "f" else np.float32
        if name in ("residual", "previous", "new", "gradient", "out"):
            return np.ones(shape, kind)
        if name in ("weight", "log_variance"):
            return np.ones((*last, 5), kind)
        if name == "bias":
            return np.ones(5 if self.below(2) else last, kind)
        if name == "log_alpha":
            return np.zeros(self.one_of(((), last, shape)), kind)
        if name in ("p", "delta", "targeted", "std", "temperature", "logit"):
            return self.one_of((0.5, 0.2, 0.0, 1.0, 0.999, 1e-9))
        if name in ("shared_axes", "axis", "time_axis"):
            return self.below(max(len(shape), 1)) if self.below(2) else ()
        if name == "region":
            return self.region(shape)
        if name == "rows":
            return [self.below(1000) for _ in range((shape or (1,))[0])]
        if name == "mask":
            return np.ones(shape, bool)
        if name == "at":
            return [self.below(9) for _ in range(self.below(9))]
        if name == "ids":
            return np.array(
                [self.below(max((shape or (1,))[0], 1)) for _ in range(self.below(9))], int
            )
        if name == "mode":
            return self.one_of(
                ("weight", "unit", "unit_weight", "example", "batch", "gaussian", "row")
            )
        if name == "activation":
            return np.tanh
        if name == "rng":
            return self.one_of(
                (1, fd.Rng(self.byte(), self.byte()), np.random.default_rng(1), None)
            )
        if name == "save":
            return self.one_of(("bits", "seed"))
        return self.one_of((True, False, 1, 2, 3))


def one_call(data):
    """One operation with arguments made of these bytes, and what follows from its result."""
    choices = Choices(data)
    name = choices.one_of(OPS)
    x = choices.array()
    options = {"rng": 1} if "rng" in SIGNATURES[name] else {}
    for i, (argument, parameter) in enumerate(SIGNATURES[name].items()):
        needed = parameter.default is parameter.empty
        if not needed and choices.below(4):
            continue
        if i == 0:
            value = x if name != "keep_mask" else np.shape(x)
        else:
            value = choices.fitting(argument, x) if choices.below(12) else choices.anything(x)
        options[argument] = value
    if choices.below(64) == 0:
        options[choices.one_of(("nonsense", "p", "rng", "out"))] = choices.anything(x)
    if type(options.get("samples")) is int:
        options["samples"] = 3  # so many would be taken, one by one
    with contextlib.suppress(*DOCUMENTED), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of overflow: bytes make large numbers
        result = getattr(fd, name)(**options)
        if type(result) is tuple and len(result) == 2 and hasattr(result[1], "backward"):
            follow(choices, *result, name, options)


def follow(choices, y, ctx, name, options):
    """The backward pass, also of the context's pickle; dropout's masks against the reference."""
    x = options.get("x")
    if name == "dropout" and ctx.p and isinstance(x, np.ndarray) and x is not options.get("out"):
        place = (options.get(name) for name in ("region", "rows"))
        axes, mask = options.get("shared_axes", ()), options.get("mask")
        if mask is None:
            expected = fd.reference.dropout(x, ctx.p, ctx.seed, ctx.call, axes, *place)[0]
        else:
            expected = fd.reference.apply(x, ctx.mask(), ctx.p)
        np.testing.assert_array_equal(y, expected)
    if name == "bias_gelu_dropout" and ctx.p and x is not options.get("out"):
        given = ctx.x, ctx.mask(), ctx.p
        expected = fd.reference.fused(*given, bias=ctx.bias, with_gelu=True)
        np.testing.assert_array_equal(y, expected)
    dy = choices.array(np.shape(y)) if choices.below(2) else np.ascontiguousarray(y)
    loaded = pickle.loads(pickle.dumps(ctx))
    first, second = ctx.backward(dy), loaded.backward(dy)
    if isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)


def blind(first, last):
    """A run for each number from first to last - 1; the number tells how to see a failure again."""
    for i in range(first, last):
        random = np.random.default_rng(i)
        try:
            one_call(random.bytes(int(random.integers(1, 80))))
        except BaseException:
            print(f"run {i}, python dev/trust/fuzz.py --blind {i} {i + 1}:", flush=True)
            raise
        if (i + 1) % 100_000 == 0:
            print(f"{i + 1 - first} runs", flush=True)


def main():
    if "--blind" in sys.argv:
        return blind(*map(int, sys.argv[-2:]))
    atheris.Setup(sys.argv, one_call)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
