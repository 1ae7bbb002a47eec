"""Masks of a tensor of 2^40 elements on 4,096 ranks, of which a sample is drawn here.

Whole shards are drawn, as their ranks would, and compared with the definition of the stream at
random points and at their corners. Then other numbers of ranks take over: whoever has one of the
points now draws the row around it. Run it with ``python -m fastdrop.studies.scale``; SCALE.md says
what it is about.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from math import prod, sqrt

import numpy as np
import numpy.typing as npt

import fastdrop as fd

WHOLE = 2**12, 2**14, 2**14  # sequences, positions, features
GRID = 16, 16, 16  # ranks along each
OTHER_GRIDS = (10, 15, 20), (17, 17, 17), (1, 1, 1), (4096, 1, 1)

Shape = tuple[int, ...]
Points = npt.NDArray[np.int64]  # one a row


def shard(rank: int, grid: Shape) -> tuple[Shape, Shape]:
    """Start and shape of what a rank has: lengths that do not divide differ by one."""
    place = np.unravel_index(rank, grid)
    start = tuple(int(n * k // g) for n, k, g in zip(WHOLE, place, grid, strict=True))
    stop = tuple(int(n * (k + 1) // g) for n, k, g in zip(WHOLE, place, grid, strict=True))
    return start, tuple(b - a for a, b in zip(start, stop, strict=True))


def owner(point: npt.NDArray[np.int64], grid: Shape) -> int:
    """The rank that has an element."""
    starts = [[n * k // g for k in range(g)] for n, g in zip(WHOLE, grid, strict=True)]
    place = [np.searchsorted(s, i, "right") - 1 for s, i in zip(starts, point, strict=True)]
    return int(np.ravel_multi_index(place, grid))


def draw(start: Shape, shape: Shape, p: float, rng: fd.Rng) -> npt.NDArray[np.uint8]:
    """The kernels' mask of a block, one bit an element."""
    return fd.keep_mask(
        shape, p, rng=fd.Rng(rng.seed, rng.call), region=(start, WHOLE), packed=True
    )


def kept(bits: npt.NDArray[np.uint8], points: Points, shape: Shape) -> npt.NDArray[np.bool_]:
    """Bits of a packed mask, at points of its block."""
    i = np.ravel_multi_index(points.T, shape)
    return (bits[i >> 3] >> (i & 7) & 1).astype(bool)


def defined(points: Points, p: float, rng: fd.Rng) -> npt.NDArray[np.bool_]:
    """What the stream's definition says of points of the whole."""
    return fd.reference.keep(np.ravel_multi_index(points.T, WHOLE), p, rng.seed, rng.call)


def choose(shape: Shape, n: int, generator: np.random.Generator) -> Points:
    """n points of a block, and its corners."""
    corners = list(product(*((0, length - 1) for length in shape)))
    return np.concatenate([corners, generator.integers(0, shape, (n, len(shape)))])


def simulate(shards: int, n: int, p: float, rng: fd.Rng) -> int:
    """Print what is drawn and compared; how many elements were not as defined."""
    generator = np.random.default_rng(rng.seed)
    ranks = [0, prod(GRID) - 1, *generator.integers(0, prod(GRID), max(0, shards - 2))][:shards]
    print(f"{' x '.join(map(str, WHOLE))} = {prod(WHOLE)} elements, p = {p}, {rng}\n")
    print(f"{prod(GRID)} ranks, {' x '.join(map(str, GRID))}; sigma: of the number dropped\n")
    print("rank  start                   elements   dropped  sigma  points  differ  seconds")
    everywhere, wrong = [], 0
    for rank in map(int, ranks):
        start, shape = shard(rank, GRID)
        began = time.perf_counter()
        bits = draw(start, shape, p, rng)
        seconds = time.perf_counter() - began
        points = choose(shape, n, generator)
        differ = int((kept(bits, points, shape) != defined(points + start, p, rng)).sum())
        size = prod(shape)
        dropped = size - int(np.bitwise_count(bits).sum())
        sigma = (dropped - p * size) / sqrt(p * (1 - p) * size)
        print(
            f"{rank:4}  {start!s:21}  {size:9}  {dropped / size:.6f}  {sigma:+5.2f}"
            f"  {len(points):6}  {differ:6}  {seconds:7.2f}"
        )
        everywhere.append((points + start)[:: max(1, len(points) // 16)])
        wrong += differ
    points = np.concatenate(everywhere)
    expected = defined(points, p, rng)
    print(f"\n{len(points)} of the points, drawn by the ranks that have them when there are\n")
    for grid in OTHER_GRIDS:
        differ = 0
        for point, right in zip(points, expected, strict=True):
            start, shape = shard(owner(point, grid), grid)
            row, length = (*map(int, point[:-1]), start[-1]), (1, 1, shape[-1])
            bits = draw(row, length, p, rng)
            differ += int(kept(bits, (point - row)[None], length)[0] != right)
        print(f"{prod(grid):4}, {' x '.join(map(str, grid))}: {differ} differ")
        wrong += differ
    return wrong


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m fastdrop.studies.scale",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shards", type=int, default=8, help="how many are drawn (default: 8)")
    parser.add_argument("--points", type=int, default=10_000, help="in each (default: 10000)")
    parser.add_argument("--rate", type=float, default=0.2, help="(default: 0.2)")
    parser.add_argument("--seed", type=int, default=1234, help="of a layer (default: 1234)")
    parser.add_argument("--step", type=int, default=10**9, help="its call (default: 10^9)")
    args = parser.parse_args(argv)
    if not (0.0 < args.rate < 1.0 and args.shards > 0 and args.points >= 0):
        parser.error("--rate must be between 0 and 1, --shards at least 1, --points not negative")
    if wrong := simulate(args.shards, args.points, args.rate, fd.Rng(args.seed, args.step)):
        sys.exit(f"\n{wrong} elements differ from the definition")
    print("\nall as defined")


if __name__ == "__main__":
    main()
