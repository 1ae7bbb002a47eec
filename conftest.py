"""Plain ``pytest`` runs tests/ and times nothing, ``--benchmark-only`` exactly bench/."""

from pathlib import Path

ROOT = Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    other = "tests" if config.getoption("benchmark_only") else "bench"
    return True if collection_path == ROOT / other else None
