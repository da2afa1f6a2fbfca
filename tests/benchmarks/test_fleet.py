"""How long fleets take as whole processes, start-up included.

Limits that the project keeps to on one core: 10 s for the 19,366 requests of the Azure conversation
trace (here its stand-in, as many requests), 5 minutes and 2 GB for a million synthetic ones. CPU
time, so that a busy machine does not count. Run with: python -m pytest
tests/benchmarks/test_fleet.py --benchmark-only
"""

import resource
import subprocess
import sys

import pytest

LIMITS = {"azure_conversation": 10.0, "synthetic_1m": 300.0}
MEMORY_BYTES = 2 * 10**9


def cpu_seconds() -> float:
    """CPU time of all processes that were started from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("scenario", LIMITS)
def test_time_and_memory_of(scenario, benchmark, tmp_path, monkeypatch):
    if not benchmark.enabled:
        pytest.skip("takes minutes; runs with --benchmark-only")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    before = cpu_seconds()
    benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-m", "simulator.cli", "run", scenario, "--out", "run"],),
        kwargs={"cwd": tmp_path, "check": True, "capture_output": True},
        rounds=1,
    )
    took = cpu_seconds() - before
    benchmark.extra_info["cpu_seconds"] = took
    assert took < LIMITS[scenario]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < MEMORY_BYTES
