"""How long fleets take as whole processes, start-up included.

Limits that the project keeps to on one core: 10 s for the 19,366 requests of the Azure conversation
trace (here its stand-in, as many requests), 5 minutes and 2 GB for a million synthetic ones. Run
with: python -m pytest tests/benchmarks/test_fleet.py --benchmark-only
"""

import resource
import subprocess
import sys

import pytest

LIMITS = {"azure_conversation": 10.0, "synthetic_1m": 300.0}
MEMORY_BYTES = 2 * 10**9


@pytest.mark.parametrize("scenario", LIMITS)
def test_time_and_memory_of(scenario, benchmark, tmp_path):
    if not benchmark.enabled:
        pytest.skip("takes minutes; runs with --benchmark-only")
    benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-m", "simulator.cli", "run", scenario, "--json"],),
        kwargs={"cwd": tmp_path, "check": True, "capture_output": True},
        rounds=1,
    )
    assert benchmark.stats.stats.max < LIMITS[scenario]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert peak < MEMORY_BYTES
