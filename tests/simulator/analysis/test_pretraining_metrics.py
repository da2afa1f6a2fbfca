"""Figures of a whole training run, worked out by hand."""

from dataclasses import replace

import pytest

from simulator.analysis.pretraining_metrics import pretraining_metrics
from simulator.analysis.run import simulate
from simulator.scenario.files import load_scenario

STATED = (
    "pretraining.gpus=16384",
    "pretraining.phases=[{name: first, tokens: 1.6777216e+12, stated: {sequences: 2048, "
    "sequence_length: 8192, time: {value: 6 s, low: 6 s, high: 6 s, source: test}}}, "
    "{name: second, tokens: 1.6777216e+12, stated: {sequences: 2048, sequence_length: 8192, "
    "state: 4 TB, time: {value: 12 s, low: 12 s, high: 12 s, source: test}}}]",
    "pretraining.runs=5",
)


def test_a_run_that_never_fails_costs_its_steps() -> None:
    quiet = ("pretraining.failures={}", "pretraining.checkpoint=null")
    metrics = simulate(load_scenario("dense_16k_h100_incidents", [*STATED, *quiet])).metrics

    # 100,000 steps of 6 s and as many of 12 s, on 16,384 GPUs of 2 USD/h.
    assert metrics["days"] == pytest.approx(1.8e6 / 86400, rel=1e-12)
    assert metrics["gpu_hours"] == pytest.approx(500 * 16384, rel=1e-12)
    assert metrics["cost_usd"] == pytest.approx(1000 * 16384, rel=1e-12)
    assert metrics["tokens_per_day"] == pytest.approx(2 * 1.6777216e12 / (1.8e6 / 86400), rel=1e-12)
    assert metrics["goodput"] == 1.0
    assert metrics["interruptions_per_day"] == 0.0
    assert [row["days"] for row in metrics["phases"]] == pytest.approx(
        [0.6e6 / 86400, 1.2e6 / 86400], rel=1e-12
    )
    gpu_hours = [row["gpu_hours"] for row in metrics["phases"]]
    assert gpu_hours == pytest.approx([16384 * 500 / 3, 16384 * 1000 / 3], rel=1e-12)
    costs = [row["cost_usd"] for row in metrics["phases"]]
    assert costs == pytest.approx([16384 * 1000 / 3, 16384 * 2000 / 3], rel=1e-12)
    assert metrics["phases"][1]["gpu_hours_per_trillion_tokens"] == pytest.approx(
        1.2e6 / 3600 * 16384 / 1.6777216, rel=1e-12
    )
    assert metrics["interval_80"]["days"] == [metrics["days"]] * 2
    whole = {"days": 1.8e6 / 86400, "gpu_hours": 500 * 16384, "cost_usd": 1000 * 16384}
    assert metrics["ideal"] == pytest.approx(whole, rel=1e-12)
    assert metrics["without_failures"] == pytest.approx(whole, rel=1e-12)
    assert metrics["checkpoint"] is None
    assert "mfu_causal" not in metrics  # nothing says how much a stated step computes


def test_the_mfu_of_a_run_is_that_of_all_that_it_computes() -> None:
    quiet = ("pretraining.failures={}", "pretraining.checkpoint=null")
    run = simulate(load_scenario("dense_16k_h100_incidents", [*STATED, *quiet])).result
    peak = run.scenario.cluster.node.gpu.peak("bfloat16")
    # Steps of 6 and of 12 s, each of half the peak of 9 s.
    flops = 4.5 * 16384 * peak
    phases = [replace(phase, step=replace(phase.step, flops=flops)) for phase in run.phases]
    metrics = pretraining_metrics(replace(run, phases=phases))
    assert metrics["mfu_causal"] == pytest.approx(0.5, rel=1e-12)


def test_every_full_interval_of_training_ends_in_a_checkpoint() -> None:
    """1.8 million seconds of steps are 500 hours, the last of which ends with the run."""
    hourly = (
        "pretraining.checkpoint={interval: 1 h, size: 4 TB, write_bandwidth_per_node: 1 GB/s, "
        "overlapped: false}"
    )
    changes = (*STATED, "pretraining.failures={}", hourly)
    checkpoint = simulate(load_scenario("dense_16k_h100_incidents", changes)).metrics["checkpoint"]
    assert (checkpoint["interval_s"], checkpoint["count"]) == (3600.0, 499)


def test_causes_and_phases_sum_to_the_run() -> None:
    metrics = simulate(load_scenario("dense_16k_h100_incidents", [*STATED, "seed=3"])).metrics

    assert sum(metrics["days_by_cause"].values()) == pytest.approx(metrics["days"], rel=1e-12)
    assert sum(metrics["share_by_cause"].values()) == pytest.approx(1, rel=1e-12)
    assert sum(row["days"] for row in metrics["phases"]) == pytest.approx(
        metrics["days"], rel=1e-12
    )
    assert metrics["share_by_cause"]["training"] == pytest.approx(metrics["goodput"], rel=1e-12)
    assert metrics["days"] > metrics["without_failures"]["days"]
    low, high = metrics["interval_80"]["days"]
    assert low < metrics["days"] < high
