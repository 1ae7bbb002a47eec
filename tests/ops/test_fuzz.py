"""What dev/trust/fuzz.py does for hours, for seconds: random arguments for every operation."""

import inspect

import fuzz
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
