"""The figures fastdrop promises, each a ratio within one run: ``python bench/ratios.py``.

A ratio is the median of five runs; a run alternates the functions and takes the fastest burst of
each (see `fastdrop.timing`). "A copy" is the faster of np.copyto and np.multiply by 1. The bounds
are for two CPUs and a quiet machine, and for AVX2 where AVX-512 has none of its own: FASTDROP_ISA
chooses. "The kernel" is the call without its Python: gate, counter and context.
"""

import argparse
import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import ml_dtypes
import numpy as np
from tabulate import tabulate
from tqdm import tqdm

import fastdrop as fd
from fastdrop import _core
from fastdrop._core import DROPOUT, Draw, Place
from fastdrop.tools.bench import COPIES, headline, operations, pytorch
from fastdrop.tools.timing import fastest

QUICK = False  # one burst of each, which tells whether all runs


def ratio(functions, name, base):
    """Median over five runs of the time of `name` over that of the fastest in `base`."""
    runs = []
    for _ in range(1 if QUICK else 5):
        chosen = {k: functions[k] for k in (*base, name)}
        t = fastest(chosen, seconds=0.0, rounds=1) if QUICK else fastest(chosen, seconds=0.3)
        runs.append(t[name] / min(t[b] for b in base))
    return median(runs)


def on(threads, function):
    """The function on so many threads."""

    def run():
        fd.set_num_threads(threads)
        function()

    return run


def arrays(log2n, count, dtype=np.float32):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(2**log2n, np.float32).astype(dtype) for _ in range(count)]


def kernel(n, p):
    """A new mask on n elements, as each call of dropout draws one."""
    x, y = np.ones(n, np.float32), np.empty(n, np.float32)
    rng, place, constants = fd.Rng(1), Place((n,)), (1 / (1 - p), 0.0, 0.0)
    return lambda: _core.forward(
        DROPOUT, x, None, None, y, Draw(*rng.take(), p, place), True, constants
    )


def against_a_copy():
    wide = _core.get_isa() == "avx512"
    for p, name, bound in [
        (0.2, "forward", 1.9 if wide else 2.6),
        (0.2, "the kernel", 1.75 if wide else 2.4),
        (0.25, "the kernel", 1.5 if wide else 2.1),
        (0.5, "forward", 1.4),
        (0.5, "the kernel", 1.25),
        (0.2, "backward, bits", 1.05),
    ]:
        functions = {k: on(1, f) for k, f in operations(2**16, np.float32, p).items()}
        functions["the kernel"] = on(1, kernel(2**16, p))
        yield f"{name}, p = {p}, 64 Ki, 1 thread / a copy", bound, ratio(functions, name, COPIES)


def against_the_fastest_copy(threads):
    """64 Mi elements beside three copies on as many threads."""
    x, y = arrays(26, 2)
    parts = list(zip(np.array_split(x, threads), np.array_split(y, threads), strict=True))
    pool, rng = ThreadPoolExecutor(threads), fd.Rng(1)

    def by_stores(p, least):
        """At a rate that rounds to 0, dropout is a copy by the same stores."""
        before = _core.set_non_temporal_bytes(least)
        fd.dropout(x, p, rng=rng, out=y, save="seed")
        _core.set_non_temporal_bytes(before)

    functions = {
        "np.copyto": lambda: list(pool.map(lambda part: np.copyto(part[1], part[0]), parts)),
        "streamed": on(threads, lambda: by_stores(1e-12, 0)),
        "stored": on(threads, lambda: by_stores(1e-12, 2**62)),
    }
    base = list(functions)
    for p, bound in [(0.2, 1.1), (0.5, 1.1)]:
        functions["forward"] = on(threads, lambda p=p: fd.dropout(x, p, rng=rng, out=y))
        case = f"forward, p = {p}, 64 Mi, {threads} threads / the fastest copy on them"
        yield case, bound, ratio(functions, "forward", base)


def of_itself(threads):
    wide, *small = (
        operations(2**16, dtype, 0.2)["forward"]
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16)
    )
    for name, function in zip(("float16", "bfloat16"), small, strict=True):
        functions = {"float32": on(1, wide), name: on(1, function)}
        measured = ratio(functions, name, ["float32"])
        yield f"{name} / float32, forward, p = 0.2, 64 Ki", 1.1, measured
    forward = operations(2**20, np.float32, 0.2)["forward"]
    functions = {"one": on(1, forward), "all": on(threads, forward)}
    measured = ratio(functions, "all", ["one"])
    yield f"{threads} threads / 1, forward, p = 0.2, 1 Mi", 0.6, measured


def over_peers(threads):
    """How many times faster, the least over the sizes."""
    for name, bound in [("tuned NumPy, forward", 16), ("PyTorch", 50)]:
        times = []
        for log2n in (16, 20, 24):
            functions = operations(2**log2n, np.float32, 0.2)
            if name == "PyTorch":
                fd.set_num_threads(threads)
                try:
                    functions[name] = pytorch(*arrays(log2n, 2), 0.2)[0]
                except ImportError:
                    return
            functions["forward"] = on(threads, functions["forward"])
            times.append(ratio(functions, name, ["forward"]))
        case = f"{name.split(',')[0]} / forward, p = 0.2, 64 Ki ... 16 Mi, {threads} threads"
        yield case, f"at least {bound}", min(times)


def calls():
    rng = fd.Rng(1)
    product, copy = "np.multiply(x, s, out=y)", "np.copyto(y, x)"
    for n, name, base, bound in [
        (16, product, [product], 1.5),
        (4096, "a copy", [copy, product], 2.3),
    ]:
        x, y = np.ones(n, np.float32), np.empty(n, np.float32)
        functions = {
            product: lambda x=x, y=y: np.multiply(x, 1.25, out=y),
            copy: lambda x=x, y=y: np.copyto(y, x),
            "call": lambda x=x: fd.dropout(x, 0.2, rng=rng),
        }
        yield f"a call on {n:,} elements / {name}", bound, ratio(functions, "call", base)


def fused(threads):
    x, r, y = arrays(26, 3)
    rng = fd.Rng(1)
    functions = {
        "np.add": lambda: np.add(x, r, out=y),
        "dropout_add": on(threads, lambda: fd.dropout_add(x, r, 0.2, rng=rng, out=y)),
    }
    measured = ratio(functions, "dropout_add", ["np.add"])
    yield f"dropout_add, {threads} threads / np.add on 1, 64 Mi", 1.0, measured


def against_their_parts(threads):
    """Forward and backward of fused ops, in arrays that are there, over those of what they fuse."""
    rng = fd.Rng(1)

    def there_and_back(op, dy, dx, *operands, out):
        _, ctx = op(*operands, 0.2, rng=rng, out=out)
        return ctx.backward(dy, dx)

    for count in sorted({1, threads}):
        for shape in [(32, 64), (128, 256), (1024, 256), (1024, 1024), (4096, 768), (65536, 8)]:
            n = math.prod(shape)
            x, r, dy, dx, y = (a[:n].reshape(shape) for a in arrays(22, 5))
            bias = x[0].copy()

            def bias_parts(x=x, r=r, dy=dy, dx=dx, y=y, bias=bias):
                np.add(x, bias, out=y)
                there_and_back(fd.dropout_add, dy, dx, y, r, out=y)
                dx.sum(0)

            def relu_parts(x=x, dy=dy, dx=dx, y=y):
                np.maximum(x, 0, out=y)
                there_and_back(fd.dropout, dy, dx, y, out=y)
                np.multiply(dx, y > 0, out=dx)

            def add_parts(x=x, r=r, dy=dy, dx=dx, y=y):
                _, ctx = fd.dropout(x, 0.2, rng=rng, out=y)
                np.add(y, r, out=y)
                ctx.backward(dy, dx)

            def bias_relu_parts(x=x, dy=dy, dx=dx, y=y, bias=bias, relu=relu_parts):
                np.add(x, bias, out=y)
                relu(y)
                dx.sum(0)

            def bias_gelu_parts(x=x, dy=dy, dx=dx, y=y, bias=bias):
                u = np.add(x, bias, out=y)
                t = np.tanh(0.7978845608 * (u + 0.044715 * (u * u * u)))
                _, ctx = fd.dropout(0.5 * u * (1 + t), 0.2, rng=rng)
                slope = 0.5 * (1 + t) + 0.5 * u * (1 - t * t) * (0.7978845608 + 0.1070322 * (u * u))
                np.multiply(ctx.backward(dy), slope, out=dx)
                dx.sum(0)

            for op, operands, parts in [
                (fd.bias_dropout_add, (x, bias, r), bias_parts),
                (fd.bias_relu_dropout, (x, bias), bias_relu_parts),
                (fd.bias_gelu_dropout, (x, bias), bias_gelu_parts),
                (fd.relu_dropout, (x,), relu_parts),
                (fd.dropout_add, (x, r), add_parts),
            ]:
                own = partial(there_and_back, op, dy, dx, *operands, out=y)
                functions = {"own": on(count, own), "parts": on(count, parts)}
                name = f"{op.__name__} / its parts, {shape}, {count} threads"
                yield name, 0.9, ratio(functions, "own", ["parts"])

    fd.set_num_threads(1)
    x, dy, dx, y = (a.reshape(1024, 512) for a in arrays(19, 4))
    bias = x[0].copy()
    functions = {
        "relu": lambda: there_and_back(fd.relu_dropout, dy, dx, x, out=y),
        "bias": lambda: there_and_back(fd.bias_relu_dropout, dy, dx, x, bias, out=y),
    }
    name = "bias_relu_dropout / relu_dropout, (1024, 512), 1 thread"
    yield name, 1.3, ratio(functions, "bias", ["relu"])


def softmax_against_its_parts(threads):
    """Forward and backward of attention's weights, in an array that is there."""
    rng = fd.Rng(1)
    for count in sorted({1, threads}):
        for shape in [(16, 4, 128, 128), (4096, 16, 16), (2, 2, 512, 512), (1, 1, 2048, 2048)]:
            n = math.prod(shape)
            x, dy, dx, y = (a[:n].reshape(shape) for a in arrays(22, 4))
            future = np.triu(np.ones(shape[-2:], bool), 1)

            def own(x=x, dy=dy, dx=dx, y=y):
                _, ctx = fd.softmax_dropout(x, 0.2, scale=0.1, causal=True, rng=rng, out=y)
                return ctx.backward(dy, dx)

            def parts(x=x, dy=dy, dx=dx, y=y, future=future):
                weights = np.multiply(x, np.float32(0.1))
                weights[..., future] = -np.inf
                weights -= weights.max(-1, keepdims=True)
                np.exp(weights, out=weights)
                weights /= weights.sum(-1, keepdims=True)
                _, ctx = fd.dropout(weights, 0.2, rng=rng, out=y)
                g = ctx.backward(dy, dx)
                g -= (g * weights).sum(-1, keepdims=True)
                g *= weights
                g *= np.float32(0.1)

            functions = {"own": on(count, own), "parts": on(count, parts)}
            name = f"softmax_dropout / its parts, {shape}, {count} threads"
            yield name, 0.9, ratio(functions, "own", ["parts"])


def dropconnect(threads):
    """How many times faster than masks for single examples in NumPy: 128 of them, 512 x 512."""
    batch, size = 128, 512
    masks_shape = batch, size, size
    x, dy = (a.reshape(batch, size) for a in arrays(16, 2))
    weight = arrays(18, 1)[0].reshape(size, size)
    generator, rng = np.random.Generator(np.random.SFC64(0)), fd.Rng(1)
    for p in (0.5, 0.2):
        masks = fd.keep_mask(masks_shape, p, rng=0)
        floats = masks.astype(np.float32)

        def drawn(p=p):
            masks = generator.random(masks_shape, dtype=np.float32) >= p
            return np.einsum("bik,bi->bk", masks * weight, x)

        forward = {
            "product": lambda m=masks: np.einsum("bik,bi->bk", m * weight, x),
            "three": lambda m=floats: np.einsum("bik,ik,bi->bk", m, weight, x),
        }
        backward = {
            "product": lambda m=masks: (
                np.einsum("bik,bk->bi", m * weight, dy),
                np.einsum("bik,bi,bk->ik", m, x, dy),
            ),
            "three": lambda m=floats: (
                np.einsum("bik,ik,bk->bi", m, weight, dy),
                np.einsum("bik,bi,bk->ik", m, x, dy),
            ),
        }
        for t in (1, threads):
            own = on(t, lambda p=p: fd.dropconnect(x, weight, p=p, rng=rng))
            _, ctx = fd.dropconnect(x, weight, p=p, rng=rng)
            back = on(t, lambda ctx=ctx: ctx.backward(dy))
            case = f"DropConnect, p = {p}, 128 x 512 x 512, {t} thread{'s'[: t > 1]}"
            measured = ratio({"numpy": drawn, "own": own}, "numpy", ["own"])
            yield f"NumPy's masks and einsum / {case}", "at least 10", measured
            measured = 1 / ratio({**forward, "own": own}, "own", list(forward))
            yield f"einsum over stored masks / {case}", "at least 3", measured
            measured = 1 / ratio({**backward, "own": back}, "own", list(backward))
            yield f"einsums over stored masks / {case}, backward", "at least 3", measured


def variants():
    """1 Mi elements on one thread; y is allocated, since NumPy's expressions do that."""
    p, rng, generator = 0.2, fd.Rng(1), np.random.default_rng(0)
    (x,) = arrays(20, 1)
    ids = generator.integers(0, 4096, 4096)

    def case(op, shape, **options):
        return lambda: op(x.reshape(shape), p, rng=rng, **options)

    last = {"channels_last": True}
    functions = {
        "dropout": case(fd.dropout, -1),
        "spatial_dropout of (16, 64, 32, 32)": case(fd.spatial_dropout, (16, 64, 32, 32)),
        "the same, channels last": case(fd.spatial_dropout, (16, 32, 32, 64), **last),
        "locked_dropout of (32, 64, 512)": case(fd.locked_dropout, (32, 64, 512)),
        "embedding_dropout of (4096, 256)": case(fd.embedding_dropout, (4096, 256)),
        "the same, 4096 ids": case(fd.embedding_dropout, (4096, 256), ids=ids),
        "drop_path of (64, 16384)": case(fd.drop_path, (64, 16384)),
        "alpha_dropout": case(fd.alpha_dropout, -1),
    }
    functions = {name: on(1, function) for name, function in functions.items()}
    for name in list(functions)[1:]:
        bound = 1.3 if name == "alpha_dropout" else 1.2
        yield f"{name} / dropout, p = {p}, 1 Mi", bound, ratio(functions, name, ["dropout"])

    sigma, logit, temperature = math.sqrt(p / (1 - p)), math.log(p / (1 - p)), 0.1

    def concrete():
        u = generator.random(x.shape, np.float32)
        z = (np.log(u + 1e-7) - np.log(1 - u + 1e-7) + logit) * (-1 / temperature)
        return x / (1 + np.exp(-z)) / (1 - p)  # 1 - sigmoid(a) is sigmoid(-a)

    def gaussian():
        return x * (1 + sigma * generator.standard_normal(x.shape, np.float32))

    for op, value, numpy in [
        (fd.gaussian_dropout, p, gaussian),
        (fd.concrete_dropout, logit, concrete),
    ]:
        functions = {"NumPy": numpy, "op": on(1, lambda op=op, v=value: op(x, v, rng=rng))}
        yield f"{op.__name__} / NumPy, p = {p}, 1 Mi", 0.25, ratio(functions, "op", ["NumPy"])


def compositions():
    """What is made of NumPy's functions, beside those of its parts that no kernel could leave out:
    products of matrices, the partition that finds a threshold, and passes over memory as fast as
    dropout. One thread of ours; BLAS has its own."""
    fd.set_num_threads(1)
    rng, generator = fd.Rng(1), np.random.default_rng(0)
    x, dy = (a.reshape(128, 512) for a in arrays(16, 2))
    weight = arrays(18, 1)[0].reshape(512, 512)
    log_variance = np.full_like(weight, -8)
    square = weight * weight

    def forward_products():
        return x @ weight, (x * x) @ square

    def backward_products():
        return dy @ weight.T, dy @ square.T, x.T @ dy, (x * x).T @ dy

    for name, op in {
        "sparse variational": lambda: fd.sparse_variational_linear(
            x, weight, log_variance, rng=rng
        ),
        "DropConnect, gaussian": lambda: fd.dropconnect(x, weight, p=0.5, rng=rng, mode="gaussian"),
    }.items():
        _, ctx = op()
        functions = {"own": op, "floor": forward_products}
        yield f"{name}, forward / its two products", 2.0, ratio(functions, "own", ["floor"])
        functions = {"own": lambda ctx=ctx: ctx.backward(dy), "floor": backward_products}
        yield f"{name}, backward / its four products", 2.0, ratio(functions, "own", ["floor"])

    big, other = arrays(20, 2)
    functions = {
        "own": lambda: fd.zoneout(big, other, 0.1, training=False),
        "floor": lambda: fd.dropout_add(big, other, 0.1, training=False),
    }
    yield "zoneout's expectation / dropout_add", 2.0, ratio(functions, "own", ["floor"])

    table = big.reshape(1024, 1024)
    gradient = other.reshape(1024, 1024)

    def targets():
        np.partition(np.abs(table), 512, axis=1)
        fd.dropout(table, 0.5, rng=rng)

    def flips():
        np.partition(np.abs(table * gradient), 972, axis=1)
        fd.dropout(table, 0.5, rng=rng)

    functions = {"own": lambda: fd.targeted_dropout(table, 0.5, 0.5, rng=rng), "floor": targets}
    yield "targeted_dropout / partition and dropout", 2.0, ratio(functions, "own", ["floor"])
    functions = {
        "own": lambda: fd.adversarial_dropout(table, gradient, 0.05, 0.5, rng=rng),
        "floor": flips,
    }
    yield "adversarial_dropout / partition and dropout", 2.0, ratio(functions, "own", ["floor"])

    logits = generator.standard_normal((1024, 1024))
    moments = fd.mc.Moments()
    buffers = np.zeros_like(logits), np.zeros_like(logits)
    functions = {
        "own": lambda: moments.update(logits),
        "floor": lambda: [np.add(buffer, logits, out=buffer) for buffer in buffers],
    }
    yield "mc.Moments / two sums", 2.0, ratio(functions, "own", ["floor"])


def main():
    threads = fd.get_num_threads()
    groups = {
        "copy": against_a_copy,
        "large": lambda: against_the_fastest_copy(threads),
        "itself": lambda: of_itself(threads),
        "peers": lambda: over_peers(threads),
        "calls": calls,
        "fused": lambda: fused(threads),
        "parts": lambda: against_their_parts(threads),
        "softmax": lambda: softmax_against_its_parts(threads),
        "dropconnect": lambda: dropconnect(threads),
        "variants": variants,
        "compositions": compositions,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(groups)}; all")
    parser.add_argument("--quick", action="store_true", help="only see whether all of it runs")
    options = parser.parse_args()
    global QUICK
    QUICK = options.quick
    chosen = options.groups or groups
    rows = [row for name in tqdm(chosen) for row in groups[name]()]
    print(headline())
    print(
        tabulate(rows, ["ratio, float32", "at most", "measured"], floatfmt=".2f", tablefmt="github")
    )


if __name__ == "__main__":
    main()
