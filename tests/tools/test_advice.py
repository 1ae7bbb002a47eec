"""What `fastdrop info` says would make it faster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastdrop as fd
from fastdrop.tools import advice

X86 = ["avx512", "avx2", "sse2", "portable"]


@pytest.fixture(autouse=True)
def nothing_in_the_way(monkeypatch):
    """A machine on which there is nothing to do."""
    there = {
        "cpu_features": lambda: {"isa": "avx512", "available": X86},
        "BUILD": "GCC 12.2.0, for every Python",
        "get_num_threads": lambda: 4,
        "cpus": lambda: 4,
        "find_spec": lambda name: name,
        "find_library": lambda name: None,
    }
    for name, value in there.items():
        monkeypatch.setattr(advice, name, value)
    monkeypatch.delenv("FASTDROP_DEBUG", raising=False)


def test_nothing_to_do():
    assert list(advice.advice()) == []


def isa(chosen, *available):
    return lambda: {"isa": chosen, "available": [chosen, *available]}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cpu_features": lambda: {"isa": "sse2", "available": X86}}, "unset it for avx512"),
        ({"cpu_features": isa("sse2", "portable")}, "no AVX2"),
        ({"cpu_features": isa("portable")}, "kernels are portable"),
        ({"BUILD": "GCC 12.2.0 without optimisation, for"}, "build it again"),
        ({"get_num_threads": lambda: 1}, "1 of the 4 CPUs"),
        ({"get_num_threads": lambda: 9}, "9 threads share 4 CPUs"),
        ({"get_num_threads": lambda: 1, "cpus": lambda: 1}, "may use one CPU"),
        ({"find_spec": lambda name: name != "ml_dtypes"}, "pip install ml_dtypes"),
        ({"find_spec": lambda name: name != "threadpoolctl"}, "pip install threadpoolctl"),
        ({"find_library": lambda name: "libcuda.so.1"}, "its kernels cannot run: prebuilt"),
    ],
)
def test_each_thing_is_told(changed, words, monkeypatch):
    monkeypatch.setattr(advice.launch, "why_not", lambda: "prebuilt kernels: none; numba: none")
    for name, value in changed.items():
        monkeypatch.setattr(advice, name, value)
    (sentence,) = advice.advice()
    assert words in sentence


@pytest.mark.parametrize("chosen", ["avx512", "avx2", "neon"])
def test_vectors_are_fast_enough(chosen, monkeypatch):
    monkeypatch.setattr(advice, "cpu_features", isa(chosen, "portable"))
    assert list(advice.advice()) == []


def test_debugging(monkeypatch):
    monkeypatch.setenv("FASTDROP_DEBUG", "1")
    (sentence,) = advice.advice()
    assert sentence.startswith("FASTDROP_DEBUG")


def test_info_prints_it():
    settings = {"FASTDROP_ISA": "portable", "FASTDROP_NUM_THREADS": "1023"}
    done = subprocess.run(
        [sys.executable, "-m", "fastdrop", "info"],
        env={**os.environ, **settings, "PYTHONPATH": str(Path(fd.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    _, told = done.stdout.split("\nto be faster\n")
    assert "  - 1023 threads share " in told
    assert "portable" in told or fd.cpu_features()["available"] == ["portable"]
