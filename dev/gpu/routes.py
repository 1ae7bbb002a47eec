"""Kernels built ahead against kernels compiled here: a step of on_gpu.py, which says how to run it.

With the route that FASTDROP_CUDA names: dropout forward and backward, its bits compared with the
CPU's; then, in JSON, how long the first call takes, and a launch. --rehearse: what executes kernels
that were built ahead is the tests' interpreter of PTX.
"""

import json
import os
import sys
from time import perf_counter

import numpy as np

import fastdrop as fd
from fastdrop.backends.cuda import launch, libraries

SIZES = 1, 17, 5000
CALLS = 200


def main() -> None:
    route = os.environ["FASTDROP_CUDA"]
    rehearsed = "--rehearse" in sys.argv
    if rehearsed and route == "prebuilt":
        import pytest
        from helpers.fake_cuda_core import Core, HostMemory

        Core(HostMemory()).install(pytest.MonkeyPatch())
    if reason := launch.routes()[route]:
        sys.exit(f"{route} kernels: {reason}")
    kind = libraries.KINDS["fastdrop" if route == "prebuilt" else "numba"]
    begin, first = perf_counter(), None
    for n in SIZES:
        x = np.random.default_rng(n).standard_normal(n, np.float32)
        y, ctx = fd.dropout(kind.send(None, x), 0.3, rng=fd.Rng(5, 7))
        dx = ctx.backward(y)
        found = [kind.fetch(a) for a in (y, dx)]
        first = first or perf_counter() - begin
        expected, here = fd.dropout(x, 0.3, rng=fd.Rng(5, 7))
        for a, b in zip(found, (expected, here.backward(expected)), strict=True):
            if a.tobytes() != b.tobytes():
                sys.exit(f"{route} kernels: {n} elements differ from the CPU's")
    x = kind.send(None, np.ones(4096, np.float32))
    out, rng, calls = (
        kind.send(None, np.ones(4096, np.float32)),
        fd.Rng(1),
        2 if rehearsed else CALLS,
    )
    begin = perf_counter()
    for _ in range(calls):
        fd.dropout(x, 0.3, rng=rng, out=out, save="seed")
    launched = (perf_counter() - begin) / calls
    kind.fetch(out)
    print(json.dumps({"route": route, "first_call_s": first, "launch_us": launched * 1e6}))


if __name__ == "__main__":
    main()
