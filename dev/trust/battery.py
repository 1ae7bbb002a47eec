"""Statistical tests of masks and noise, with fixed seeds: python dev/trust/battery.py

Each test gives a p-value that is exact, or whose approximation is far better than the level; all of
them together are one family, which Holm's method holds to ALPHA. Exit status 1 if one is rejected.
"""

import argparse
import sys
from math import sqrt

import numpy as np
from scipy import special, stats

from fastdrop import _core, reference
from fastdrop._core import Draw, Place

ALPHA = 1e-6
LAGS = range(1, 65)
RATES = [
    *(1e-6, 1e-5, 1e-4, 1e-3, 1 / 256, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 1 / 3, 0.4),
    *(0.5, 0.5 + 2**-20, 0.6, 2 / 3, 0.75, 0.8, 0.9, 0.95, 0.99, 0.999, 1 - 1e-4, 1 - 1e-5),
    1 - 1e-6,
]


def two_sided(distribution, value):
    """p-value of a discrete statistic: exact if the distribution is."""
    return min(1.0, 2 * min(distribution.cdf(value), distribution.sf(value - 1)))


def normal(z):
    return 2 * stats.norm.sf(abs(z))


def chi_squared(observed, expected):
    """Of cells with known chances whose counts have a fixed sum."""
    return stats.chi2.sf(np.sum((observed - expected) ** 2 / expected), len(expected) - 1)


def drawn(n, p, seed, call):
    """What dropout drops, as bytes of packed bits, and the rate that the stream realises."""
    bits = np.frombuffer(_core.draw_bits(Draw(seed, call, p, Place((n,)))), np.uint8)
    return ~bits[: n // 8], reference.threshold(p) / 2**32


def test_bits(bits, q):
    """Yields (test, p-value) of packed bits that should be independent, each 1 with chance q."""
    n = 8 * len(bits)
    if q > 0.5:  # the rarer of the two values
        bits, q = ~bits, 1 - q
    words = np.ascontiguousarray(bits[: n // 64 * 8]).view("<u8")
    n = 64 * len(words)
    ones = int(np.bitwise_count(words).sum(dtype=np.int64))
    yield "rate", two_sided(stats.binom(n, q), ones)
    for lag in LAGS:
        yield f"lag {lag}", test_lag(words, n, q, ones, lag)
    yield from test_runs(words, n, q)
    # Enough of the rare value in each lane.
    lanes = int(min(256, 2 ** np.floor(np.log2(max(n * q / 50, 1)))))
    if lanes > 1:
        yield f"{lanes} lanes", test_lanes(words, n, q, lanes)


def test_lag(words, n, q, ones, lag):
    """Pairs of ones at this distance."""
    both = 0
    for i in range(0, len(words), 1 << 20):
        piece = words[i : i + (1 << 20) + 1]
        later = piece[1:] if lag == 64 else piece[:-1] >> lag | piece[1:] << 64 - lag
        both += int(np.bitwise_count(piece[:-1] & later).sum(dtype=np.int64))
    pairs = n - 64  # the last word is only ever the later one
    if q < 2e-3:  # rare pairs, nearly independent
        return two_sided(stats.poisson(pairs * q * q), both)
    first = ones - int(words[-1]).bit_count()
    head = np.unpackbits(words[:1].view(np.uint8), bitorder="little")[:lag].sum(dtype=int)
    tail = np.unpackbits(words[-1:].view(np.uint8), bitorder="little")[:lag].sum(dtype=int)
    later = first - head + tail
    # Its terms (a - q)(b - q) have no correlation with each other.
    return normal((both - q * (first + later) + pairs * q * q) / (sqrt(pairs) * q * (1 - q)))


def test_runs(words, n, q):
    """Lengths of runs of ones and of zeros: geometric."""
    expected = n * q * (1 - q)
    fixed = int(min(expected - 10 * sqrt(expected), 2e7))  # that many there are almost surely
    kinds = [Runs("zeros", q, fixed), Runs("ones", 1 - q, fixed)]
    begun = 0  # where the run that has not ended yet began
    for i in range(0, len(words), 1 << 18):
        # One element more, so that a change between two pieces is seen.
        piece = words[i : i + (1 << 18) + 1].view(np.uint8)
        piece = np.unpackbits(piece, bitorder="little")[: (64 << 18) + 1]
        changes = np.flatnonzero(piece[1:] != piece[:-1])
        lengths = np.diff(changes + 64 * i, prepend=begun)
        for value, kind in enumerate(kinds):
            kind.add(lengths[piece[changes] == value])
        if len(changes):
            begun = changes[-1] + 64 * i
        if not kinds[0].missing and not kinds[1].missing:
            break
    for kind in kinds:
        if len(kind.chances) > 1:
            yield f"runs of {kind.name}", chi_squared(kind.counts, kind.chances * fixed)


class Runs:
    """How many of the first `missing` runs have which length."""

    def __init__(self, name, end, missing):
        self.name, self.missing = name, missing
        cells = int(np.clip(missing // 20, 1, 64))
        self.edges = np.unique(stats.geom.ppf(np.arange(1, cells) / cells, end))
        while len(self.edges) and missing * stats.geom.sf(self.edges[-1], end) < 20:
            self.edges = self.edges[:-1]
        self.chances = np.diff([0, *stats.geom.cdf(self.edges, end), 1])
        self.counts = np.zeros(len(self.chances), np.int64)

    def add(self, lengths):
        lengths = lengths[: self.missing]
        self.missing -= len(lengths)
        at = np.searchsorted(self.edges, lengths)
        self.counts += np.bincount(at, minlength=len(self.counts))


def test_lanes(words, n, q, lanes):
    """Ones by position modulo `lanes`."""
    octets = max(lanes // 8, 1)
    rows = words.view(np.uint8)[: n // 8 // octets * octets].reshape(-1, octets)
    counts = np.zeros(8 * octets, np.int64)
    for i in range(0, len(rows), 1 << 20):
        bits = np.unpackbits(rows[i : i + (1 << 20)], axis=1, bitorder="little")
        counts += bits.sum(axis=0, dtype=np.int32)
    counts = counts.reshape(-1, lanes).sum(axis=0)
    each = len(rows) * 8 * octets / lanes
    return stats.chi2.sf(np.sum((counts - each * q) ** 2) / (each * q * (1 - q)), lanes)


def test_masks(n, rates):
    """Masks of one call each."""
    for call, p in enumerate(rates):
        bits, q = drawn(n, p, 0xFA57D809, call)
        for name, value in test_bits(bits, q):
            yield f"mask p={p:.9g} n={n:.0e} {name}", value


def test_refinement(n):
    """Decisions of ties alone: those of elements whose byte is k, where p = (k + q) / 256."""
    for k, q in ((0, 0.5), (51, 0.2), (126, 2**-10), (200, 0.9)):
        below, _ = drawn(n, k / 256, 77, k)
        up_to, _ = drawn(n, (k + 1) / 256, 77, k)
        between, realised = drawn(n, (k + q) / 256, 77, k)
        decisions = [
            np.unpackbits(between[at])[np.unpackbits((below ^ up_to)[at]) == 1]
            for at in (slice(i, i + (1 << 22)) for i in range(0, len(below), 1 << 22))
        ]
        bits = np.packbits(np.concatenate(decisions), bitorder="little")[:-1]
        for name, value in test_bits(bits, 256 * realised - k):
            yield f"refinement q={q:.4g} {name}", value


def test_pairs(rows, name):
    """All pairs of rows of independent variates with mean 0 and variance 1."""
    m, n = rows.shape
    z = (rows @ rows.T)[np.triu_indices(m, 1)].astype(float) / sqrt(n)
    # Squares of uncorrelated z have mean 1; by their variance, of the rows' fourth moment:
    fourth = float(np.mean(rows.astype(np.float64) ** 4))
    spread = sqrt(len(z) * (2 + (fourth**2 - 3) / n))
    yield f"{name}: all pairs", normal((np.sum(z * z) - len(z)) / spread)
    yield f"{name}: the worst pair", min(1.0, len(z) * normal(np.abs(z).max()))


def related(count):
    """Names of draws that a weak generator would confuse: by seed, by call."""
    bits = [1 << k for k in range(64)]
    yield "seeds 0, 1, 2, ...", [(s, 0) for s in range(count)]
    yield "calls 0, 1, 2, ...", [(1, c) for c in range(count)]
    yield "seeds one bit apart", [(s, 0) for s in (0, *bits)]
    yield "calls one bit apart", [(0, c) for c in (0, *bits)]
    yield "seed and call exchanged", [pair for s in bits[::4] for pair in ((s, 3), (3, s))]


def test_across(count, n):
    """Draws of different seeds and calls."""
    for which, names in related(count):
        for p in (0.5, 0.2, 0.7):
            q = reference.threshold(p) / 2**32
            rows = np.empty((len(names), n), np.float32)
            for row, (seed, call) in zip(rows, names, strict=True):
                row[:] = np.unpackbits(drawn(n, p, seed, call)[0], bitorder="little")
            rows -= q
            rows /= sqrt(q * (1 - q))
            yield from test_pairs(rows, f"{which}, p={p}")
        for kind, scale in ((_core.NORMAL, 1), (_core.LOGISTIC, np.pi / sqrt(3))):
            rows = np.stack([variates(kind, n, s, c) for s, c in names]) / np.float32(scale)
            yield from test_pairs(rows, f"{which}, {kinds[kind]}")


kinds = {_core.NORMAL: "normal", _core.LOGISTIC: "logistic"}


def variates(kind, n, seed, call, start=0):
    noise = np.empty(n, np.float32)
    place = Place((n,), (), ((start,), (start + n,)))
    _core.draw_noise(kind, Draw(seed, call, 0.0, place), noise)
    return noise


def test_noise(n):
    """Variates of one call: distribution, moments, tails, lags, lanes."""
    cells, piece = 4096, min(1 << 22, n // 64 * 64)
    for kind, word in kinds.items():
        cdf = special.ndtr if kind == _core.NORMAL else special.expit
        sd = 1 if kind == _core.NORMAL else np.pi / sqrt(3)
        moments = [1, 2, 3, 4]
        if kind == _core.NORMAL:
            even = {m: special.factorial2(m - 1) for m in (2, 4, 6, 8)}
        else:
            even = {
                m: 2 * special.factorial(m) * (1 - 2.0 ** (1 - m)) * special.zeta(m) / sd**m
                for m in (2, 4, 6, 8)
            }
        sums = np.zeros(4)
        counts = np.zeros(cells, np.int64)
        lanes, products = np.zeros(64), np.zeros(len(LAGS))
        tails = {3: 0, 4: 0, 5: 0}
        distances = []
        for i in range(0, n // piece):
            e = variates(kind, piece, 31, 41, i * piece).astype(np.float64) / sd
            u = cdf(e * sd)
            counts += np.bincount((u * cells).astype(np.int64), minlength=cells)
            sums += [np.sum(e**m) for m in moments]
            lanes += e.reshape(-1, 64).sum(axis=0)
            products += [e[:-lag] @ e[lag:] for lag in LAGS]
            for t in tails:
                tails[t] += np.count_nonzero(np.abs(e) > t)
            u.sort()
            distances.append(stats.kstwo.sf(ks_distance(u), piece))
        n = n // piece * piece
        yield f"{word} n={n:.0e} {cells} cells", chi_squared(counts, np.full(cells, n / cells))
        for m, total in zip(moments, sums, strict=True):
            mean = even.get(m, 0)
            variance = even[2 * m] - mean**2
            yield f"{word} moment {m}", normal((total - n * mean) / sqrt(n * variance))
        for lag, total in zip(LAGS, products, strict=True):
            pairs = (piece - lag) * (n // piece)
            yield f"{word} lag {lag}", normal(total / sqrt(pairs))
        yield f"{word} 64 lanes", stats.chi2.sf(np.sum(lanes**2) / (n / 64), 64)
        for t, found in tails.items():
            chance = 2 * (1 - cdf(np.float64(t * sd)))
            yield f"{word} beyond {t} sd", two_sided(stats.binom(n, chance), found)
        # Under the hypothesis p-values are uniform themselves.
        yield f"{word} Kolmogorov-Smirnov", stats.combine_pvalues(distances).pvalue


def ks_distance(u):
    i = np.arange(len(u))
    return max(np.max(u - i / len(u)), np.max((i + 1) / len(u) - u))


def holm(results, alpha=ALPHA):
    """Those of (name, p-value) that are rejected at this level of the whole family."""
    rejected = []
    for i, (name, value) in enumerate(sorted(results, key=lambda result: result[1])):
        if not value > alpha / (len(results) - i):
            rejected.append((name, value))
        else:
            break
    return rejected


def main():
    parts = {
        "masks": lambda n: test_masks(n, RATES),
        "refinement": test_refinement,
        "across": lambda n: test_across(1000, 1 << 16),
        "noise": lambda n: test_noise(n // 4),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=float, default=1e9, help="of each mask (1e9)")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--all", action="store_true", help="print every p-value")
    options = parser.parse_args()
    results = []
    for part in options.parts:
        for name, value in parts[part](int(options.draws)):
            results.append((name, value))
            if options.all:
                print(f"{value:.3e}  {name}", flush=True)
    print("the smallest p-values:")
    for name, value in sorted(results, key=lambda result: result[1])[:10]:
        print(f"{value:.3e}  {name}")
    rejected = holm(results)
    print(f"{len(results)} tests, {len(rejected)} rejected at family level {ALPHA}")
    return bool(rejected)


if __name__ == "__main__":
    sys.exit(main())
