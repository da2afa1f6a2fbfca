"""How long the main job takes as a whole process, start-up included.

Limits that the project keeps to on one core: 5 s with --json, 10 s with every output, 0.3 s for
--help. Run with: python -m pytest tests/benchmarks --benchmark-only
"""

import subprocess
import sys

import pytest

ARGUMENTS = {
    "help": ["--help"],
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
