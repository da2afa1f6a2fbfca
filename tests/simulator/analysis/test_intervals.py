"""Intervals hold their values, families move together, and one seed gives one interval."""

import pytest

from simulator.analysis.intervals import serving_interval
from simulator.analysis.run import simulate
from simulator.analysis.serving_metrics import serving_metrics
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def decode():
    return simulate(load_scenario("decode_ep128_profile", ["skew=none"])).result


def test_a_serving_step_has_a_seeded_interval_that_holds_it(decode):
    first, again, other = (serving_interval(decode.step, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[0] < decode.step.step_s < first[1]
    assert other == pytest.approx(first, rel=0.02)


def test_another_gpu_than_the_calibrations_widens_the_interval():
    runs = [
        simulate(load_scenario("prefill_ep32_profile", ["skew=none", *changes])).result.step
        for changes in ([], ["cluster.node.gpu=h100_sxm"])
    ]
    ends = [serving_interval(step, seed=0) for step in runs]
    widths = [(high - low) / step.step_s for step, (low, high) in zip(runs, ends, strict=True)]
    assert widths[1] > widths[0] + 0.05


def test_what_follows_from_a_serving_step_has_its_interval_and_all_can_be_left_out(decode):
    metrics = serving_metrics(decode)
    found = metrics["interval_80"]
    step, node = metrics["step_time_s"], metrics["output_tokens_per_second_per_node"]
    low, high = found["step_time_s"]
    assert found["tpot_s"] == [low, high]
    assert found["output_tokens_per_second_per_node"] == pytest.approx(
        [node * step / high, node * step / low]
    )
    assert "interval_80" not in serving_metrics(decode, with_intervals=False)
