"""How long serving steps take: whole processes, start-up included, and a grid of points.

Limits that the project keeps to on one core: 2 s for one iteration of any deployment with --json,
20 s for 1,000 points of (batch, context). Run with: python -m pytest tests/benchmarks
--benchmark-only
"""

import subprocess
import sys

import pytest

from simulator.execution.serving_run import prepare_serving
from simulator.execution.serving_step import decode_step
from simulator.scenario.files import load_scenario
from simulator.workload.recorded import recorded_trace


@pytest.mark.parametrize(
    "name", ["decode_ep128_profile", "prefill_ep32_profile", "decode_ep320_report", "mtp_one_node"]
)
def test_time_of_one_iteration(name, benchmark, tmp_path):
    benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-m", "simulator.cli", "run", name, "--json"],),
        kwargs={"cwd": tmp_path, "check": True, "capture_output": True},
        rounds=3,
        warmup_rounds=1,
    )


def test_time_of_a_thousand_points(benchmark):
    scenario = load_scenario("decode_ep128_profile")

    def grid():
        model = prepare_serving(scenario, scenario.job, recorded_trace)
        for batch in range(4, 164, 4):
            for context in range(512, 13312, 512):
                decode_step(model, batch, context)

    benchmark.pedantic(grid, rounds=1)
