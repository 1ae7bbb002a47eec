"""The kernels inside Numba's compiled code."""

import doctest
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.bitwise import assert_same_bits

import fastdrop as fd

numba = pytest.importorskip("numba")
from fastdrop.adapters import numba as fn  # noqa: E402

DTYPES = [np.float32, np.float64]


@numba.njit(nogil=True)
def step(x, dy, p, seed, call):
    y = np.empty_like(x)
    bits = fn.draw(x.size, p, seed, call)
    bits[:] = 0
    fn.forward(x, y, bits, p, seed, call)
    dx = np.empty_like(dy)
    fn.backward(dy, dx, bits, p)
    return fn.dropout(x, p, seed, call), y, bits, dx, fn.dropout(dy, p, seed, call)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
def test_the_same_bits_as_numpy(dtype, p):
    x = np.random.default_rng(0).standard_normal((7, 1001)).astype(dtype)
    dy = x[::-1].copy()
    expected, ctx = fd.dropout(x, p, rng=fd.Rng(2**64 - 1, 3))
    seed = np.uint64(2**64 - 1)
    y, same, bits, dx, redrawn = step(x, dy, p, seed, 3)
    assert_same_bits(y, expected)
    assert_same_bits(same, expected)
    assert_same_bits(dx, ctx.backward(dy))
    assert_same_bits(redrawn, dx)
    packed = fd.keep_mask(x.shape, p, rng=fd.Rng(2**64 - 1, 3), packed=True)
    assert_same_bits(bits[:-8], packed)
    assert_same_bits(fn.draw(x.size, p, seed, 3)[:-8], packed)


def test_parts_and_layouts():
    x = np.random.default_rng(0).standard_normal((40, 100))
    expected, _ = fd.dropout(x, 0.3, rng=5)
    assert_same_bits(fn.dropout(x[10:], 0.3, 5, 0, 1000), expected[10:])
    assert_same_bits(fn.dropout(np.asfortranarray(x), 0.3, 5, 0), expected)
    assert_same_bits(fn.dropout(x[::2, ::3], 0.3, 5, 0), fd.dropout(x[::2, ::3], 0.3, rng=5)[0])
    fn.forward(x, x, fn.draw(x.size, 0.3, 5, 0), 0.3, 5, 0)  # in place
    assert_same_bits(x, expected)


BLOCKS = {
    "shared": {"shared_axes": (1,)},
    "one shared": {"shared_axes": -1},
    "two shared": {"shared_axes": (0, -1)},
    "region": {"region": ((1, 2, 3), (9, 10, 12))},
    "rows": {"region": ((1, 0, 0), (9, 7, 8))},
    "both": {"region": ((1, 2, 3), (9, 10, 12)), "shared_axes": (1,)},
}


@pytest.mark.parametrize("dtype", [*DTYPES, np.float16])
def test_regions_and_shared_axes(dtype):
    x = np.random.default_rng(0).standard_normal((6, 7, 8)).astype(dtype)
    given = x.view(np.uint16) if dtype is np.float16 else x  # as Numba has no float16
    for more in [{}, *BLOCKS.values()]:
        expected, _ = fd.dropout(x, 0.3, rng=fd.Rng(5, 6), **more)
        assert_same_bits(fn.dropout(given, 0.3, 5, 6, **more).view(dtype), expected)


@numba.njit
def block(x, i, j):
    return fn.dropout(x[i : i + 7, j : j + 9], 0.3, 4, 0, 0, ((i, j), x.shape), (1,))


def test_a_region_inside_compiled_code():
    x = np.random.default_rng(0).standard_normal((40, 60))
    expected, _ = fd.dropout(x, 0.3, rng=4, shared_axes=1)
    for i, j in ((0, 0), (5, 11), (33, 51)):
        assert_same_bits(block(x, i, j), expected[i : i + 7, j : j + 9])


def test_wrong_regions_and_axes():
    x = np.ones((3, 4))
    cases = [
        ({"region": ((0, 0), (3, 3))}, ValueError, "region must contain x"),
        ({"region": ((-1, 0), (3, 4))}, ValueError, "region must contain x"),
        ({"region": ((0,), (3,))}, ValueError, "region must have as many axes as x has"),
        ({"region": 5}, numba.TypingError, "region must be"),
        ({"region": ((0.5, 0), (3, 4))}, numba.TypingError, "region must be"),
        ({"shared_axes": (2,)}, ValueError, "shared_axes must be axes of x"),
        ({"shared_axes": (0, -2)}, ValueError, "shared_axes must name each axis once"),
        ({"shared_axes": (0.5,)}, numba.TypingError, "shared_axes must be a tuple of ints"),
        ({"shared_axes": 0.5}, numba.TypingError, "shared_axes must be an int or a tuple of ints"),
        ({"shared_axes": 2}, ValueError, "shared_axes must be axes of x"),
        ({"start": 3, "shared_axes": (1,)}, ValueError, "start must be 0"),
    ]
    for more, error, words in cases:
        with pytest.raises(error, match=words):
            fn.dropout(x, 0.3, 4, 0, **more)


@pytest.mark.slow  # compiles
def test_example():
    failed, attempted = doctest.testmod(fn)
    assert attempted > 5
    assert not failed


def test_in_threads_without_the_gil():
    """Threads that hold nothing get what one gets alone, more than one kernel's work at a time."""
    x = np.ones(300_000)
    results = {}
    threads = [
        threading.Thread(target=lambda k=k: results.update({k: step(x, x, 0.3, k, 0)[0]}))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(6):
        assert_same_bits(results[k], fd.dropout(x, 0.3, rng=k)[0])


@pytest.mark.slow
def test_in_a_parallel_loop():
    @numba.njit(parallel=True)
    def rows(x, p, seed):
        y = np.empty_like(x)
        for i in numba.prange(len(x)):
            y[i] = fn.dropout(x[i], p, seed, 0, i * x.shape[1])
        return y

    x = np.random.default_rng(0).standard_normal((50, 333))
    assert_same_bits(rows(x, 0.3, 5), fd.dropout(x, 0.3, rng=5)[0])


def test_wrong_arguments():
    x, bits = np.ones(100), np.empty(100, np.uint8)
    for p in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
            fn.dropout(x, p, 1, 0)
        with pytest.raises(ValueError, match=r"p must be in \[0, 1\]"):
            fn.draw(5, p, 1, 0)
    with pytest.raises(ValueError, match="n must be in 0"):
        fn.draw(-1, 0.5, 1, 0)
    with pytest.raises(ValueError, match="one shape"):
        fn.forward(x, x[1:], bits, 0.5, 1, 0)
    with pytest.raises(ValueError, match="C-contiguous"):
        fn.forward(x[::2], x[:50], bits, 0.5, 1, 0)
    for wrong in (bits[:20], np.empty(100), bits[::2]):
        with pytest.raises(ValueError, match="bits must be"):
            fn.forward(x, x, wrong, 0.5, 1, 0)
    with pytest.raises(ValueError, match="bits must be"):
        fn.backward(x, x, bits[:20], 0.5)
    for wrong in (np.ones(100, int), np.ones(100, np.complex64)):
        with pytest.raises(numba.TypingError, match="x must be an array of float32 or float64"):
            fn.dropout(wrong, 0.5, 1, 0)
    with pytest.raises(numba.TypingError, match="both float32 or both float64"):
        fn.forward(x, np.empty(100, np.float32), bits, 0.5, 1, 0)


@pytest.mark.parametrize("name", ["seed", "call", "start"])
def test_numbers_are_checked_as_those_of_an_rng(name):
    x, y, bits = np.ones(100), np.empty(100), np.empty(100, np.uint8)
    calls = (fn.dropout, (x, 0.5)), (fn.forward, (x, y, bits, 0.5)), (fn.draw, (100, 0.5))
    for function, given in calls:
        good = {"seed": 1, "call": 2, "start": 3}
        function(*given, *good.values())
        with pytest.raises(ValueError, match=rf"{name} must be in 0 \.\.\. 2\*\*64 - 1, got a neg"):
            function(*given, *{**good, name: -5}.values())
        for wrong in (5.7, True, 1j, "1"):
            with pytest.raises(numba.TypingError, match=f"{name} must be an int, got"):
                function(*given, *{**good, name: wrong}.values())
    y = fn.dropout(x, 0.5, np.uint64(2**64 - 1), np.uint64(2**63))
    assert_same_bits(y, fd.dropout(x, 0.5, rng=fd.Rng(2**64 - 1, 2**63))[0])


def test_0d_stays_0d():
    for seed in range(8):
        y = fn.dropout(np.array(3.0), 0.5, seed, 0)
        assert_same_bits(y, fd.dropout(np.array(3.0), 0.5, rng=seed)[0])
    for scalar in (3.0, 3, [1.0]):
        with pytest.raises(numba.TypingError, match="x must be an array of float32 or float64"):
            fn.dropout(scalar, 0.5, 1, 0)


def test_read_only_arrays():
    """They can be read; writing to them is refused when code is compiled."""
    x, bits = np.ones(100), np.zeros(100, np.uint8)
    fixed = np.frombuffer(x.tobytes())
    assert_same_bits(fn.dropout(fixed, 0.5, 1, 0), fd.dropout(x, 0.5, rng=1)[0])
    with pytest.raises(numba.TypingError, match="read-only"):
        fn.forward(x, fixed, bits, 0.5, 1, 0)
    with pytest.raises(numba.TypingError, match="read-only"):
        fn.backward(x, fixed, bits, 0.5)
    assert (fixed == 1).all()


PROGRAM = """
import numpy as np
import fastdrop as fd
from numba import njit
from fastdrop.adapters.numba import dropout

@njit(cache=True)
def twice(x, seed):
    return dropout(dropout(x, 0.5, seed, 0), 0.5, seed, 1)

x = np.ones(1000)
y, _ = fd.dropout(fd.dropout(x, 0.5, rng=5)[0], 0.5, rng=fd.Rng(5, 1))
assert (twice(x, 5) == y).all()
print(sum(twice.stats.cache_hits.values()))
"""


@pytest.mark.slow
def test_cached_code_works_in_another_process(tmp_path):
    """Where the kernels have other addresses."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py")]
    hits = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in "12"
    ]
    assert hits == ["0\n", "1\n"]
