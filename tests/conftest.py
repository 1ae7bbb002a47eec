import os
import signal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import fastdrop as fd
from fastdrop import _core

# A shared machine may be slow at any time; that is not a failure.
slow = [HealthCheck.too_slow]
settings.register_profile(
    "fastdrop", parent=settings.default, deadline=None, suppress_health_check=slow
)
settings.load_profile("fastdrop")


def pytest_configure(config):
    """Sets up what modules, and the programs they start, share."""
    # Programs that a shell starts in the background ignore interrupts, and so do theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(config, "cache"):  # What was compiled for GPUs serves later runs, too.
        os.environ.setdefault("FASTDROP_CACHE", str(config.cache.mkdir("ptx")))


RATES = [0, 1e-9, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9, 1 - 1e-9, 1]
DTYPES = [np.float32, np.float64]
ALL_DTYPES = [*DTYPES, np.float16, ml_dtypes.bfloat16]


@pytest.fixture(params=_core.available_isas())
def isa(request):
    """Each kernel table that this machine can run, in turn."""
    before = _core.get_isa()
    _core.set_isa(request.param)
    yield request.param
    _core.set_isa(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    """One thread, then two."""
    before = fd.get_num_threads()
    fd.set_num_threads(request.param)
    yield request.param
    fd.set_num_threads(before)


@pytest.fixture(params=DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def dtype(request):
    return request.param


@pytest.fixture(params=ALL_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def any_dtype(request):
    """16-bit types, too."""
    return request.param


@pytest.fixture(params=RATES, ids=lambda p: f"p={p:.9g}")
def p(request):
    return request.param
