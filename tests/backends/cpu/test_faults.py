"""What may happen to a process: no memory, no threads, signals, forks, interpreters beside it."""

import os
import subprocess
import sys
import textwrap
import threading
from importlib.util import find_spec

import numpy as np
import pytest

import fastdrop as fd

INTERPRETERS = [m for m in ("_interpreters", "_xxsubinterpreters") if find_spec(m)]
HAS_LIMITS = os.path.exists("/proc/self/statm")


def run(code, *flags, **environment):
    """What this code prints, in a process of its own."""
    begin = "import os, resource, signal, threading, time, numpy as np, fastdrop as fd\n"
    result = subprocess.run(
        [sys.executable, *flags, "-c", begin + textwrap.dedent(code)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, result.stderr


LIMIT = """
def limit(more):
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    bytes_ = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, resource.RLIM_INFINITY))
x = np.ones(4_000_000, np.float32)
"""


@pytest.mark.skipif(not HAS_LIMITS, reason="needs Linux")
def test_no_thread_is_to_be_had():
    """One thread does it all; who wants to know is told once."""
    code = """
    import warnings
    y = np.empty_like(x)
    expected = fd.keep_mask(x.shape, 0.25, rng=1) / np.float32(0.75)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        fd.set_num_threads(3)  # not before: the pool has nobody yet
        limit(1 << 18)  # less than a thread's stack
        for _ in range(3):
            fd.dropout(x, 0.25, rng=1, out=y, save="seed")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(np.array_equal(y, expected), len(os.listdir("/proc/self/task")))
    print(*(f"{w.category.__name__}: {w.message}" for w in caught), sep=";")
    fd.dropout(x, 0.25, rng=1)
    print(len(os.listdir("/proc/self/task")))
    """
    out, _ = run(LIMIT + textwrap.dedent(code), FASTDROP_NUM_THREADS="1")
    equal, told, after = out.splitlines()
    assert equal == "True 1"
    assert told == (
        "RuntimeWarning: the system refused a thread; "
        "fastdrop goes on with fewer, set_num_threads sets how many"
    )
    assert after == "3"  # and they come when they can


@pytest.mark.skipif(not HAS_LIMITS, reason="needs Linux")
def test_no_thread_and_warnings_are_errors():
    """The call has done its work by then, so it does not fail: a hook is told."""
    code = """
    import warnings
    warnings.simplefilter("error")
    told = []
    sys.unraisablehook = lambda args: told.append(str(args.exc_value))
    rng, y = fd.Rng(1), np.empty_like(x)
    fd.set_num_threads(3)
    limit(1 << 18)
    for _ in range(3):
        fd.dropout(x, 0.25, rng=rng, out=y, save="seed")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print(rng.call, np.array_equal(y, fd.dropout(x, 0.25, rng=fd.Rng(1, 2))[0]))
    print(told)
    """
    begin = "import sys\n" + LIMIT
    out, _ = run(begin + textwrap.dedent(code), FASTDROP_NUM_THREADS="1")
    counted, told = out.splitlines()
    assert counted == "3 True"
    assert told.count("the system refused a thread") == 1


@pytest.mark.skipif(not HAS_LIMITS, reason="needs Linux")
def test_no_memory():
    """MemoryError, `out` is as it was, and no random call is taken."""
    code = """
    rng, out = fd.Rng(1), np.full_like(x, 7)
    limit(1 << 18)
    for call in (
        lambda: fd.dropout(x, 0.25, rng=rng),
        lambda: fd.keep_mask(x.shape, 0.25, rng=rng),
        lambda: fd.dropout(x[::-1], 0.25, rng=rng),
        lambda: fd.gaussian_dropout(x, 0.25, rng=rng),
        lambda: fd.drop_block(x.reshape(10, 1, 400, 1000), 0.25, rng=rng),
    ):
        try:
            call()
        except MemoryError:
            print("MemoryError")
    try:
        fd.dropout(x, 0.25, rng=rng, out=out)
        print("done")
    except MemoryError:
        print("MemoryError")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    print((out == 7).all(), rng.call)
    y, ctx = fd.dropout(x, 0.25, rng=1)
    print(np.array_equal(y, ctx.mask() / np.float32(0.75)))
    """
    # All that is large is the system's again when it is freed, or a later call may find some of it.
    out, _ = run(LIMIT + textwrap.dedent(code), MALLOC_MMAP_THRESHOLD_="65536")
    assert out == "MemoryError\n" * 6 + "True 0\nTrue\n"


def test_interrupt_during_a_long_call():
    """A call that has begun ends, so `out` is written whole and the random call is taken; then
    comes KeyboardInterrupt.
    """
    code = """
    x = np.ones(1 << 25, np.float32)
    out, expected = np.zeros_like(x), np.empty_like(x)
    fd.set_num_threads(2)
    main = threading.main_thread().ident
    fired = 0
    for delay in np.linspace(0.001, 0.02, 8):
        rng = fd.Rng(1)
        timer = threading.Timer(delay, signal.pthread_kill, (main, signal.SIGINT))
        try:
            timer.start()
            for _ in range(100):
                fd.dropout(x, 0.25, rng=rng, out=out, save="seed")
        except KeyboardInterrupt:
            fired += 1
        timer.join()
        if rng.call:
            fd.dropout(x, 0.25, rng=fd.Rng(1, rng.call - 1), out=expected, save="seed")
            assert np.array_equal(out, expected)
    print(fired)
    """
    assert run(code)[0] == "8\n"


def test_signals_go_to_the_program():
    """Threads of the pool block all: a handler runs in the main thread, and calls are not cut."""
    code = """
    seen = []
    signal.signal(signal.SIGALRM, lambda *_: seen.append(threading.current_thread()))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    fd.set_num_threads(3)
    x = np.ones(1 << 21, np.float32)
    expected, _ = fd.dropout(x, 0.25, rng=1)
    for _ in range(100):
        assert np.array_equal(fd.dropout(x, 0.25, rng=1)[0], expected)
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(len(seen) > 20, set(seen) == {threading.main_thread()})
    for task in os.listdir("/proc/self/task"):
        status = open(f"/proc/self/task/{task}/status").read()
        blocked = status[status.index("SigBlk:") :].split()[1]
        if int(task) != os.getpid():
            assert int(blocked, 16) >> (signal.SIGALRM - 1) & 1, blocked
    """
    assert run(code)[0] == "True True\n"


ROUND = """
x = np.ones(300_000, np.float32)
fd.set_num_threads(3)
expected = fd.dropout(x, 0.2, rng=3)[0]
same = lambda _=None: np.array_equal(fd.dropout(x, 0.2, rng=3)[0], expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_others_are_in_the_pool():
    code = """
    import warnings; warnings.simplefilter("ignore")
    going = True
    def work():
        while going:
            same()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads: thread.start()
    for _ in range(100):
        child = os.fork()
        if not child:
            signal.alarm(20)
            os._exit(0 if same() and same() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    going = False
    for thread in threads: thread.join()
    print(same())
    """
    assert run(ROUND + textwrap.dedent(code))[0] == "True\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_forked_processes_draw():
    """What has no seed of the caller's gets another in each; the rest is theirs to spawn."""
    out, _ = run("""
        import pickle
        rng, seeded, layer = fd.Rng(), fd.Rng(7), fd.layers.Dropout(0.5)
        here = rng.take()
        def of_child(draws):
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.write(writing, pickle.dumps(draws()))
                os._exit(0)
            os.waitpid(child, 0)
            return pickle.loads(os.read(reading, 1 << 16))
        def draws():
            layer(np.ones(9, "f"))
            return rng.take(), rng.take(), seeded.take(), (layer.ctx.seed, layer.ctx.call)
        children = [of_child(draws) for _ in range(3)] + [of_child(lambda: of_child(draws))]
        for first, second, of_seeded, of_layer in children:
            assert of_seeded == (7, 0)
            assert first[1] == of_layer[1] == 0 and second == (first[0], 1)
        assert len({seed for c in children for seed, _ in (c[0], c[3])} | {here[0]}) == 9
        assert rng.take() == (here[0], 1)
        print("different")
    """)
    assert out == "different\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_process_pools(method, tmp_path):
    """Workers of a pool, and a fork within each of them."""
    code = """
    import multiprocessing
    def work(i):
        if hasattr(os, "fork"):
            child = os.fork()
            if not child:
                os._exit(0 if same() else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        return same()
    if __name__ == "__main__":
        with multiprocessing.get_context("METHOD").Pool(2) as pool:
            print(all(pool.map(work, range(8), 1)))
    """
    begin = "import os, threading, numpy as np, fastdrop as fd\n"
    script = tmp_path / "script.py"
    code = textwrap.dedent(code).replace("METHOD", method)
    script.write_text(begin + ROUND + code)
    result = subprocess.run(
        [sys.executable, "-W", "ignore", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.stdout == "True\n", result.stderr


@pytest.mark.skipif(not INTERPRETERS, reason="no interpreters beside the first here")
def test_other_interpreters_are_refused(tmp_path):
    """The kernels' settings are the process's; so an interpreter beside the first gets an error.

    In a process of its own: PyTorch takes no backward pass where there were other interpreters.
    """
    code = f"""
    import {INTERPRETERS[0]} as interpreters
    interpreter = interpreters.create()
    try:
        interpreters.run_string(interpreter, '''if True:
            import sys, warnings
            sys.path[:] = {sys.path!r}
            warnings.simplefilter("ignore")
            try:
                import fastdrop
            except ImportError as error:
                open({str(tmp_path / "told")!r}, "w").write(str(error))
        ''')
    finally:
        interpreters.destroy(interpreter)
    print(fd.dropout(np.ones(10), 0.5, rng=1)[0].shape)
    """
    assert run(code)[0] == "(10,)\n"
    assert "one interpreter per process" in (tmp_path / "told").read_text()


def test_threads_on_one_rng():
    """Each call is drawn once, whichever thread gets it."""
    x = np.ones(2000, np.float32)
    rng, drawn = fd.Rng(5), []

    def work():
        for _ in range(200):
            y, ctx = fd.dropout(x, 0.5, rng=rng)
            drawn.append((ctx.call, y.tobytes()))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(call for call, _ in drawn) == list(range(1200))
    for call, y in drawn[::37]:
        assert fd.dropout(x, 0.5, rng=fd.Rng(5, call))[0].tobytes() == y


def test_threads_on_their_own_rngs():
    x = np.ones(100_000, np.float32)
    rngs = fd.Rng(5).spawn(4)
    expected = [
        [fd.dropout(x, 0.3, rng=fd.Rng(rng.seed, call))[0] for call in range(10)] for rng in rngs
    ]
    found = {}

    def work(i):
        found[i] = [fd.dropout(x, 0.3, rng=rngs[i])[0] for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(found[i], expected[i])
