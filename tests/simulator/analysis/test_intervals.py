"""Intervals hold their values, families move together, and one seed gives one interval."""

import numpy as np
import pytest

from simulator.analysis.intervals import (
    exchanged,
    serving_interval,
    training_intervals,
)
from simulator.analysis.run import simulate
from simulator.analysis.serving_metrics import serving_metrics
from simulator.analysis.training_metrics import training_metrics
from simulator.execution.training import OptimizerStep
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def run():
    return simulate(load_scenario("dualpipe_h800_2048")).result


def intervals(run, seed):
    return training_intervals(
        run.step,
        calibration=run.scenario.calibration,
        gap=run.job.gap,
        blocking=True,
        seed=seed,
    )


def test_one_seed_gives_one_interval_and_it_holds_the_value(run):
    first, again, other = intervals(run, 0), intervals(run, 0), intervals(run, 1)
    assert first == again
    assert first != other
    for name, value in (
        ("step_time_s", run.step.step_time_s),
        ("pair_time_s", run.step.pair.log.span_s),
    ):
        low, high = first[name]
        assert low < value < high
        assert high / low < 1.5


def test_rates_have_the_interval_of_the_step_and_all_can_be_left_out(run):
    metrics = training_metrics(run)
    low, high = metrics["interval_80"]["step_time_s"]
    step = metrics["step_time_s"]
    assert metrics["interval_80"]["tokens_per_day"] == pytest.approx(
        [metrics["tokens_per_day"] * step / high, metrics["tokens_per_day"] * step / low]
    )
    assert sum(metrics["error_share"]["pair_time_s"].values()) == pytest.approx(1)
    assert "interval_80" not in training_metrics(run, with_intervals=False)


def test_exchanges_of_parameters_are_drawn_between_their_own_ends():
    part = OptimizerStep(reduce_s=3.0, update_s=9.0, gather_s=1.0, exchange_ends_s=(2.0, 16.0))
    drawn = exchanged(part, np.array([0.0, 1.0, -1.0, 0.5]))
    assert drawn == pytest.approx([4.0, 16.0, 2.0, 8.0], rel=1e-12)
    alone = OptimizerStep(reduce_s=0.0, update_s=9.0, gather_s=0.0, exchange_ends_s=(0.0, 0.0))
    assert exchanged(alone, np.array([1.0, -1.0])).tolist() == [0.0, 0.0]


@pytest.fixture(scope="module")
def decode():
    return simulate(load_scenario("decode_ep128_profile")).result


def test_a_serving_step_has_a_seeded_interval_that_holds_it(decode):
    first, again, other = (serving_interval(decode.step, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert first[0] < decode.step.step_s < first[1]
    assert other == pytest.approx(first, rel=0.02)


def test_another_gpu_than_the_calibrations_widens_the_interval():
    runs = [
        simulate(load_scenario(name)).result.step
        for name in ("prefill_ep32_profile", "prefill_ep32_h100")
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


def test_what_transfers_achieve_is_part_of_a_steps_interval(run):
    calibration = run.scenario.calibration
    nic = calibration.transfers.nic.model_copy(update={"low": 0.2})
    unsure = calibration.model_copy(
        update={"transfers": calibration.transfers.model_copy(update={"nic": nic})}
    )
    found = [
        training_intervals(run.step, calibration=given, gap=run.job.gap, blocking=True, seed=0)
        for given in (calibration, unsure)
    ]
    assert found[1]["step_time_s"][1] > found[0]["step_time_s"][1] + 0.1
    assert found[1]["pair_time_s"] == found[0]["pair_time_s"]
