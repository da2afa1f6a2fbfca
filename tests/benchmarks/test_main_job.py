"""How long the main job takes as a whole process, start-up included.

Limits that the project keeps to on one core: 5 s with --json, 10 s with every output, 0.3 s for
--help, 0.6 s of ideal ranks with kernel times in the user's cache, and 40 ms for a further point of
a sweep over a gap, whose kernels are known.
Run with: python -m pytest tests/benchmarks --benchmark-only
"""

import itertools
import subprocess
import sys

import pytest

from simulator.analysis.run import metrics_of

ARGUMENTS = {
    "help": ["--help"],
    "ideal ranks": ["run", "dualpipe_h800_2048", "--ideal", "--json"],
    "json": ["run", "dualpipe_h800_2048", "--json"],
    "every output": ["run", "dualpipe_h800_2048"],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_time_of(name, benchmark, tmp_path):
    benchmark.pedantic(
        subprocess.run,
        args=([sys.executable, "-m", "simulator.cli", *ARGUMENTS[name]],),
        kwargs={"cwd": tmp_path, "check": True, "capture_output": True},
        rounds=5,
        warmup_rounds=1,
    )


def test_time_of_a_further_point(benchmark):
    gaps = itertools.count(200)

    def point():
        value = f"{next(gaps)} ns"
        gap = f"{{value: {value}, low: {value}, high: {value}, source: made up}}"
        return metrics_of("dualpipe_h800_2048", ["skew=none", f"training.gap={gap}"])

    benchmark.pedantic(point, rounds=20, warmup_rounds=1)
