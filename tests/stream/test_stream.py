"""The stream: known answers, the layout of keystreams, and rates."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd
from fastdrop import _core, reference, rng


def known_answers():
    """(rounds, counter, key, words) for each line of Random123's answers."""
    path = Path(__file__).parents[1] / "known_answers" / "philox4x32.txt"
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            rounds, *words = line.split()
            words = [int(word, 16) for word in words]
            yield int(rounds), words[:4], words[4:6], words[6:]


KNOWN = list(known_answers())


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), KNOWN)
def test_known_answers_reference(rounds, counter, key, words):
    assert rng.philox4x32(counter, key, rounds).tolist() == words


@pytest.mark.parametrize(("rounds", "counter", "key", "words"), KNOWN)
def test_known_answers_kernels(isa, rounds, counter, key, words):
    n = 67  # every lane, and a last step that is not full
    counters = np.tile(np.array(counter, np.uint32), (n, 1))
    out = np.zeros_like(counters)
    _core.philox4x32(counters, np.array(key, np.uint32), rounds, out)
    assert (out == words).all()


def test_kernels_philox_equals_reference(isa):
    counters = np.random.default_rng(1).integers(0, 2**32, (1001, 4), np.uint32)
    key = np.array([0xDEADBEEF, 0x01234567], np.uint32)
    out = np.zeros_like(counters)
    for rounds in (7, 10):
        _core.philox4x32(counters, key, rounds, out)
        np.testing.assert_array_equal(out, rng.philox4x32(counters, key, rounds))


def test_philox_broadcasts_and_takes_any_round_count():
    counters = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    keys = np.array([[1, 2], [3, 4], [5, 6]], np.uint32)
    out = rng.philox4x32(counters, keys, 3)
    assert out.shape == (2, 3, 4)
    assert out.dtype == np.uint32
    np.testing.assert_array_equal(out[1, 2], rng.philox4x32(counters[1, 2], keys[2], 3))
    np.testing.assert_array_equal(rng.philox4x32(counters, keys, 0), counters)


def test_keystream_is_little_endian_words_of_counted_blocks():
    seed, call = 0x0123456789ABCDEF, 0xFEDCBA9876543210
    stream = rng.keystream(seed, call, rng.BITS, 40)
    for b in range(3):
        counter = [b, rng.BITS << 28, 0x76543210, 0xFEDCBA98]
        words = rng.philox4x32(counter, [0x89ABCDEF, 0x01234567])
        expected = b"".join(int(w).to_bytes(4, "little") for w in words)
        assert stream[16 * b : 16 * b + 16].tobytes() == expected[: 40 - 16 * b]
    # Block numbers use the second counter word, too, below the domain.
    block = rng.blocks(seed, call, rng.BYTES, 5 << 32 | 7)
    np.testing.assert_array_equal(
        block, rng.philox4x32([7, 5, 0x76543210, 0xFEDCBA98], [0x89ABCDEF, 0x01234567])
    )


def test_decision_table_element_by_element():
    """The table of the stream's definition, written with Python integers."""
    seed, call, n = 99, 7, 5000
    keystream = {
        d: rng.keystream(seed, call, d, size).tobytes()
        for d, size in [(rng.BYTES, n), (rng.REFINEMENT, 4 * n), (rng.BITS, n // 8)]
    }
    for p in (0.1, 0.5, 0.7, 1e-9, 1e-3):
        T = round(p * 2**32)
        kept = reference.keep(np.arange(n, dtype=np.uint64), p, seed, call)
        for i in range(n):
            if T == 2**31:
                dropped = not keystream[rng.BITS][i // 8] >> i % 8 & 1
            else:
                byte = keystream[rng.BYTES][i]
                w = int.from_bytes(keystream[rng.REFINEMENT][4 * i : 4 * i + 4], "little")
                dropped = byte < T >> 24 or (byte == T >> 24 and w >> 8 < T & 0xFFFFFF)
            assert kept[i] == (not dropped)
            if i > 300 and p in (1e-9, 0.7):
                break


@pytest.mark.parametrize(
    ("p", "T"),
    [
        (0.0, 0),
        (2.0**-33, 0),  # half to even
        (3 * 2.0**-33, 2),
        (0.2, 858993459),
        (0.5, 2**31),
        (1 - 1e-9, 2**32 - 4),
        (1 - 2.0**-33, 2**32),
        (1.0, 2**32),
    ],
)
def test_threshold(isa, p, T):
    assert reference.threshold(p) == T
    if T in (0, 2**31, 2**32):  # the kernels' own rounding shows where the route changes
        kept = fd.keep_mask(4096, p, rng=3)
        assert kept.all() if T == 0 else not kept.all()
        assert kept.any() == (T < 2**32)


def test_realised_rate_is_within_2_to_the_minus_33(isa):
    """An element has a number of 32 bits and is kept if T, as kernels round it, is not above."""
    for p in np.random.default_rng(0).uniform(size=1000):
        assert abs(Fraction(reference.threshold(p), 2**32) - Fraction(p)) <= Fraction(1, 2**33)
    n = 400
    index = np.arange(n, dtype=np.uint64)
    high = rng.keystream(9, 4, rng.BYTES, n).astype(np.uint64) << np.uint64(24)
    number = high | rng.words_at(9, 4, rng.REFINEMENT, index) >> np.uint64(8)
    for i, v in enumerate(number.tolist()):
        if v in (2**31 - 1, 2**31):
            continue  # at p = 1/2 it owns another bit
        for T, dropped in ((v, False), (v + 0.49, False), (v + 0.51, True), (v + 1, True)):
            mask = fd.keep_mask(i + 1, T / 2**32, rng=fd.Rng(9, 4))
            assert mask[i] != dropped, (i, T)


def test_stream_is_frozen():
    """Masks of version 1, as bytes: a saved (seed, call) must mean the same for ever."""
    assert fd.STREAM_VERSION == 1
    frozen = {
        0.2: "fafffdfcf7dffff9ef3f77dfbeffbefdbffdefbe",
        0.5: "697a1a4328432dc2b42f562b710fff66693bb3b2",
        1e-3: "ffffffffffffffffffffffffffffffffffffffff",
    }
    for p, expected in frozen.items():
        rng_ = fd.Rng(0xDECADE, 2**40)
        assert fd.keep_mask(160, p, rng=rng_, packed=True).tobytes().hex() == expected


@pytest.mark.parametrize("p", [0.2, 0.5, 0.25])
@pytest.mark.parametrize("boundary", [2**31, 2**32, 2**36, 2**39, 2**40, 2**60])
def test_indices_past_32_bits(isa, p, boundary):
    """Block numbers cross 2**32 at element 2**36 (bytes), 2**34 (refinement), 2**39 (bits)."""
    start, n = boundary - 3001, 6000
    mask = fd.keep_mask(n, p, rng=fd.Rng(5, 9), region=((start,), (2**62,)))
    index = np.arange(start, start + n, dtype=np.uint64)
    np.testing.assert_array_equal(mask, reference.keep(index, p, 5, 9))


def test_refinement_past_32_bits(isa):
    start = 2**34 - 4000
    mask = fd.keep_mask(8000, 0.3, rng=1, region=((start,), (2**40,)))
    index = np.arange(start, start + 8000, dtype=np.uint64)
    np.testing.assert_array_equal(mask, reference.keep(index, 0.3, 1, 0))


def test_all_ties(isa):
    """Rates below 1/256 and the refinement itself: each tie decided, at any density."""
    for p in (1e-3, 1 / 256, 255.5 / 256, 0.5 + 1e-9):
        mask = fd.keep_mask(20_001, p, rng=fd.Rng(8))
        index = np.arange(20_001, dtype=np.uint64)
        np.testing.assert_array_equal(mask, reference.keep(index, p, 8, 0))


@pytest.mark.parametrize("p", [1e-3, 0.1, 0.2, 1 / 3, 0.5, 0.9, 0.999])
def test_keep_rate(isa, p):
    """Realised rate within six standard deviations of p."""
    n = 2_000_000
    dropped = n - int(fd.keep_mask(n, p, rng=fd.Rng(2024)).sum())
    assert abs(dropped - n * p) < 6 * np.sqrt(n * p * (1 - p))


def test_seeds_and_calls_are_independent():
    n = 200_000
    masks = [fd.keep_mask(n, 0.5, rng=fd.Rng(s, c)) for s in (0, 1, 2**63) for c in (0, 1, 2**32)]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert abs(np.mean(a == b) - 0.5) < 6 * 0.5 / np.sqrt(n)
