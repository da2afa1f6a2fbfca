"""One scenario gives one result, byte by byte: in any process, with any threads, in any order."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from goldens import OF_THE_MACHINE
from invariants import figures_alone
from small_plans import PLAN_TRAINING

from simulator.analysis.run import simulated_metrics
from simulator.analysis.sweep import grid, run_sweep
from simulator.scenario.axes import Axis
from simulator.scenario.files import known_scenarios

TESTS = Path(__file__).parent
PROGRAM = """
import json, sys
from invariants import figures_alone, run_of
for name in sys.argv[1:]:
    print(json.dumps({name: figures_alone(run_of(name).metrics)}))
"""
RUNS = ((0, 1, 1), (123456, 2, -1), (1, 2, 1), (2, 4, -1), (3, 1, -1))
"""(PYTHONHASHSEED, threads of numerical libraries, direction in which the scenarios run)."""


def figures(names, seed, threads, direction):
    """The JSON of all scenarios, with 80% intervals, from a process of its own."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names[::direction]], capture_output=True, check=False,
        env=os.environ | {key: str(value) for key, value in counts.items()}
        | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return sorted(done.stdout.splitlines())


def check(names, runs):
    first, *others = (figures(names, *run) for run in runs)
    assert len(first) == len(names)
    for run, other in zip(runs[1:], others, strict=True):
        assert other == first, run


def test_two_runs_with_other_hashes_threads_and_orders_are_equal_byte_by_byte():
    # Many flows, on which products of vectors would be shared out among threads, in the last.
    names = ["all_to_all_64", "decode_ep8_h200", "dualpipe_h800_2048", "tpot_bound_ib"]
    check(names, RUNS[:2])


@pytest.mark.slow
def test_five_runs_of_every_scenario_are_equal_byte_by_byte():
    check(known_scenarios(), RUNS)


def test_rows_of_a_sweep_depend_on_neither_the_order_of_points_nor_the_number_of_processes():
    axis = Axis.parse("cluster.node.nic.bandwidth=200 Gbit/s,400 Gbit/s,800 Gbit/s")
    points = grid("all_to_all_64", (), [axis])
    one_way = run_sweep(points, "all_to_all_64", simulated_metrics)
    other_way = run_sweep(points[::-1], "all_to_all_64", simulated_metrics, jobs=2)[::-1]
    assert all(row.reason is None for row in one_way)
    assert figures_of(one_way) == figures_of(other_way)


def test_a_plan_depends_on_neither_hashes_nor_the_number_of_processes():
    shown = []
    for seed, jobs in ((0, 1), (123456, 2)):
        done = subprocess.run(
            [sys.executable, "-m", "simulator.cli", *PLAN_TRAINING, "--simulate", "3",
             "--jobs", str(jobs), "--json"],
            env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        shown.append(json.loads(done.stdout))
    first, other = (json.dumps(figures_alone(plan)) for plan in shown)
    assert first == other


def figures_of(rows):
    return [
        {path: repr(value) for path, value in row.metrics.items() if path not in OF_THE_MACHINE}
        for row in rows
    ]
