"""Indices past 2^32, for real: float16 of 2^32 + 4097 elements in place, 8.6 GB.

python dev/trust/large.py [--elements N]
"""

import argparse

import numpy as np

import fastdrop as fd

PIECE = 1 << 24


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--elements", type=int, default=2**32 + 4097)
    n = parser.parse_args().elements
    x = np.ones(n, np.float16)
    for p, save in ((0.2, "seed"), (0.5, "bits")):
        y, ctx = fd.dropout(x, p, rng=fd.Rng(7), out=x, save=save)
        assert y is x
        check(x, p)
        x.fill(1)
        assert ctx.backward(x, out=x) is x
        check(x, p)
        x.fill(1)
        print(f"p={p}, save={save}: {n} elements forward and back as their regions", flush=True)


def check(y, p):
    """Each piece against the mask of its region, drawn by itself, and the ends by the reference."""
    n = len(y)
    scale = np.float16(np.float32(1 / (1 - p)))
    for start in range(0, n, PIECE):
        part = y[start : start + PIECE]
        region = (start,), (n,)
        mask = fd.keep_mask(part.shape, p, rng=fd.Rng(7), region=region)
        assert np.array_equal(part, mask * scale), f"{p}: elements from {start} on"
    for start in (0, 2**31 - 2048, 2**32 - 2048, n - 4096):
        if 0 <= start <= n - 4096:
            index = np.arange(start, start + 4096, dtype=np.uint64)
            kept = fd.reference.keep(index, p, 7, 0)
            assert np.array_equal(y[start : start + 4096], kept * scale), f"{p}: at {start}"


if __name__ == "__main__":
    main()
