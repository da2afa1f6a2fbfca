"""Steps of the phases of a whole training run, and what it is planned with."""

import math

import numpy as np
import pytest

from simulator.analysis.pretraining import simulate_pretraining
from simulator.execution.pretraining import optimal_interval
from simulator.scenario.files import load_scenario

DENSE = "dense_16k_h100_incidents"
QUIET = ("pretraining.failures={}", "pretraining.checkpoint=null", "pretraining.runs=3")


def test_without_failures_and_checkpoints_the_run_is_steps_times_step_time() -> None:
    # 11e12 tokens in steps of 2,048 x 8,192.
    phases = (
        "pretraining.phases=[{name: all, tokens: 11.0e+12, stated: {sequences: 2048, "
        "sequence_length: 8192, time: {value: 6.5 s, low: 6.5 s, high: 6.5 s, source: test}}}]"
    )
    run = simulate_pretraining(load_scenario(DENSE, [phases, *QUIET]))

    steps = math.ceil(11.0e12 / (2048 * 8192))
    assert [log.wall_s for log in run.logs] == [float(np.cumsum([6.5] * steps)[-1])] * 3


def test_a_checkpoint_takes_its_size_over_what_all_nodes_write() -> None:
    run = simulate_pretraining(load_scenario(DENSE, ["pretraining.runs=1"]))

    # 4.9 TB over 2,048 nodes of 0.98 GB/s; 16,384 GPUs fail every 79.2e3 ... 452e3 GPU-hours.
    seconds = 4.9e12 / (2048 * 0.98e9)
    rate = sum(16384 / hours / 3600 for hours in (79.2e3, 433e3, 462e3, 379e3, 452e3))
    assert run.plan.stall_s == pytest.approx(seconds, rel=1e-12)
    assert run.plan.reload_s == pytest.approx(seconds, rel=1e-12)
    assert run.plan.write_s == 0.0
    interval = optimal_interval(seconds, 1 / rate)
    assert run.plan.ends_s[0] == pytest.approx(math.ceil(interval / 6.5) * 6.5, rel=1e-12)
    assert run.plan.kinds["gpu"].rate(16384) == pytest.approx(16384 / 79.2e3 / 3600, rel=1e-12)


def test_an_overlapped_checkpoint_stops_training_for_the_copy_alone() -> None:
    run = simulate_pretraining(
        load_scenario(
            DENSE,
            [
                "pretraining.runs=1",
                "pretraining.checkpoint.overlapped=true",
                "pretraining.checkpoint.copy_bandwidth_per_gpu=20 GB/s",
            ],
        )
    )

    assert run.plan.stall_s == pytest.approx(4.9e12 / (16384 * 20e9), rel=1e-12)
    assert run.plan.write_s == pytest.approx(4.9e12 / (2048 * 0.98e9), rel=1e-12)


def test_the_same_seed_gives_the_same_runs_and_another_others() -> None:
    short = ["pretraining.runs=2"]
    one, two = (simulate_pretraining(load_scenario(DENSE, short)) for _ in range(2))
    other = simulate_pretraining(load_scenario(DENSE, [*short, "seed=1"]))

    assert [log.seconds for log in one.logs] == [log.seconds for log in two.logs]
    assert one.logs[0].seconds != other.logs[0].seconds


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["pretraining.checkpoint.interval=2 s"],
            "pretraining.checkpoint.interval: 2 s is not allowed: writing 4.457 TiB takes 2.441 s; "
            "a longer interval, or more write_bandwidth_per_node",
        ),
        (
            ["pretraining.spares.nodes=2048"],
            "pretraining.spares.nodes: 2048 is not allowed: fewer than the 2048 nodes of the run",
        ),
        (
            ["pretraining.phases=[{name: a, tokens: 1.0e+12, scenario: dualpipe_h800_2048}]"],
            "pretraining.gpus: 16384 is not allowed: phase 'a' is simulated on all 2048 GPUs of "
            "the cluster; set cluster.nodes, or state the step",
        ),
        (
            [
                "pretraining.gpus=null",
                "pretraining.phases=[{name: a, tokens: 1.0e+12, scenario: decode_ep8_h200}]",
            ],
            "phases.0.scenario: decode_ep8_h200 holds a serving_step job; allowed: training",
        ),
    ],
)
def test_what_cannot_run_is_refused_with_a_way_out(changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match="pretraining") as refused:
        simulate_pretraining(load_scenario(DENSE, changes))

    assert message in str(refused.value)
