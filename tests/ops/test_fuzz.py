"""What dev/trust/fuzz.py and fuzz_pickles.py do for hours, for seconds."""

import inspect

import fuzz
import fuzz_pickles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdrop as fd


@given(st.binary(min_size=20, max_size=80))
@settings(max_examples=300)
def test_random_arguments(data):
    fuzz.one_call(data)


def test_random_bytes():
    """Without Hypothesis, which takes most of the time."""
    for data in np.random.default_rng(0).bytes(60 * 2000).hex(" ", 60).split():
        fuzz.one_call(bytes.fromhex(data))


def test_every_operation_is_there():
    ops = {name for name in fd.__all__ if inspect.isfunction(getattr(fd, name))}
    plain = {"cpu_features", "get_include", "get_num_threads", "set_num_threads"}
    assert ops - plain - set(fuzz.OPS) == {"kl_divergence", "squared_divergence"}


def test_a_crash_would_be_seen(monkeypatch):
    monkeypatch.setattr(fd, "dropout", lambda *args, **options: 1 / 0)
    data = bytes([fuzz.OPS.index("dropout")])
    with pytest.raises(ZeroDivisionError):
        fuzz.one_call(data)


def test_pickles():
    assert fuzz_pickles.manage(seed=0, first=0, cases=2000, workers=1) == 0


def test_a_crash_of_a_worker_would_be_seen(monkeypatch, capfd):
    monkeypatch.setattr(fuzz_pickles.sys, "executable", "false")
    assert fuzz_pickles.manage(seed=0, first=7, cases=2, workers=1) == 2
    assert "--seed 0 --first 8 --cases 1" in capfd.readouterr().out


def test_what_a_pickle_must_not_raise_would_be_seen(monkeypatch):
    cases = fuzz_pickles.Cases(0)
    number = next(i for i in range(100) if cases.run(i))
    monkeypatch.setattr(fuzz_pickles, "use", lambda r, thing: exec("raise SystemError"))
    with pytest.raises(SystemError):
        cases.run(number)
