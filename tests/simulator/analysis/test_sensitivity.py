"""Elasticities of a step's time: those of whole runs, and what each input must become."""

from math import log

import pytest

from simulator.analysis.run import simulate
from simulator.analysis.sensitivity import elasticities, row_of
from simulator.analysis.sensitivity_inputs import ScaledInput, inputs_of
from simulator.scenario.files import load_scenario

IDEAL = ("skew=none",)
TRAINING = ("dualpipe_h800_2048", (*IDEAL, "training.global_batch_sequences=4096"))
DECODE = ("decode_ep144_day6", IDEAL)
PREFILL = ("prefill_ep32_report", IDEAL)


def _row(time_of, *, value=10, more_counts=False, target=0.1, least=0.0):
    """The row of an input of some value, of a job that takes time_of(value)."""
    kind = int if more_counts else float
    of = ScaledInput("it", "job", {"job.it": kind(value)}, least=least)
    return row_of(of, lambda changed: time_of(changed["job.it"]), time_of(value), target)


def test_a_rate_must_grow_until_its_share_of_the_time_has_shrunk_by_the_target():
    # 6 s + 40 / x: 10 s at 10, of which x decides 4: elasticity -0.4; 9 s where 40 / x is 3.
    row = _row(lambda x: 6 + 40 / x)

    assert row.elasticity == pytest.approx(-0.4, rel=1e-3)
    # 1% more saves 4 x (1 - 1 / 1.01) s of 10, 1% less costs 4 x (1 / 0.99 - 1).
    assert row.saves == pytest.approx(0.4 / 1.01)
    assert row.costs == pytest.approx(0.4 / 0.99)
    assert row.need.factor == pytest.approx(4 / 3, rel=1e-3)
    assert row.need.values == {"job.it": pytest.approx(40 / 3, rel=1e-3)}


def test_a_latency_must_shrink():
    # 6 s + 0.4 x: 9 s at 7.5.
    row = _row(lambda x: 6 + 0.4 * x)

    assert (row.elasticity, row.need.factor) == pytest.approx((0.4, 0.75), rel=1e-3)


def test_what_a_rate_cannot_save_is_bounded_by_its_elasticity():
    row = _row(lambda x: 6 + 40 / x, target=0.5)

    assert row.need is None
    assert row.at_most == row.saves == pytest.approx(0.4 / 1.01)


def test_what_stops_to_help_before_the_target_is_named_with_what_it_saves():
    # Another part of the step takes over at 9.5 s.
    row = _row(lambda x: max(9.5, 6 + 40 / x))

    assert (row.need, row.at_most) == (None, pytest.approx(0.05))


def test_a_slow_down_ends_at_one():
    # 5 s + 2.5 x at 2: 10 s; without any slow-down 7.5 s, so that 30% off cannot be.
    row = _row(lambda x: 5 + 2.5 * x, value=2, least=1.0, target=0.3)

    assert (row.need, row.at_most) == (None, pytest.approx(0.25))


@pytest.mark.parametrize(
    ("time_of", "factor"),
    [
        # 50 s + 500 / n: 90 s at 12.5, so at 13 of 10.
        (lambda n: 50 + 500 / n, 1.3),
        # 79.5 s + 2 n: 99.5 s now, 89.55 at 5.02, so at 5.
        (lambda n: 79.5 + 2 * n, 0.5),
    ],
)
def test_a_count_goes_in_whole_numbers(time_of, factor):
    assert _row(time_of, more_counts=True).need.factor == pytest.approx(factor)


def test_fewer_of_a_count_may_turn_worse():
    # Best at 8, 96 s, and worse than now from 5 on.
    row = _row(lambda n: 96 + (n - 8) ** 2, more_counts=True)

    assert (row.need, row.at_most) == (None, pytest.approx(0.04))


@pytest.mark.parametrize(
    ("name", "changes", "inputs"),
    [
        (*TRAINING, ("HBM bandwidth", "SMs", "gap between kernels")),
        (*DECODE, ("HBM bandwidth", "SM clock", "NIC bandwidth", "FP8 arithmetic")),
        (*PREFILL, ("NVLink bandwidth", "expert groups per token")),
    ],
    ids=["training", "decode", "prefill"],
)
def test_elasticities_are_the_finite_differences_of_whole_runs(name, changes, inputs):
    scenario = load_scenario(name, changes)
    found = elasticities(scenario, target=0.999, only=inputs)
    rows = {row.name: row for row in found.rows}
    known = {each.name: each for each in inputs_of(scenario)}

    def whole(values):
        metrics = simulate(
            load_scenario(name, [*changes, *(f"{p}={v}" for p, v in values.items())])
        ).quick_metrics
        return metrics["tpot_s"]["mean"] if name == DECODE[0] else metrics[found.metric]

    for which in inputs:
        of = known[which]
        ends = [of.at(1 - of.step), of.at(1 + of.step)]
        apart = log(of.factor_of(ends[1]) / of.factor_of(ends[0]))
        expected = log(whole(ends[1]) / whole(ends[0])) / apart
        assert rows[which].elasticity == pytest.approx(expected, rel=1e-9, abs=1e-12), which


@pytest.mark.slow
def test_elasticities_of_expected_answers_are_those_of_whole_runs_too():
    scenario = load_scenario(DECODE[0])
    rows = {
        row.name: row for row in elasticities(scenario, target=0.999, only=["NIC bandwidth"]).rows
    }
    seconds = [
        simulate(load_scenario(DECODE[0], [f"cluster.node.nic.bandwidth={rate} Gbit/s"]))
        .quick_metrics["tpot_s"]["mean"]
        for rate in (396.0, 404.0)
    ]  # fmt: skip
    expected = log(seconds[1] / seconds[0]) / log(404 / 396)
    assert rows["NIC bandwidth"].elasticity == pytest.approx(expected, rel=0.01)


def test_a_whole_run_at_what_an_input_needs_takes_the_target_off():
    scenario = load_scenario(*DECODE)
    (row,) = elasticities(scenario, target=0.1, only=["HBM bandwidth"]).rows

    changed = load_scenario(DECODE[0], [*IDEAL, *(f"{p}={v}" for p, v in row.need.values.items())])
    taken = simulate(changed).quick_metrics["tpot_s"]["mean"]
    # Told from a GPU that differs by nothing, whose times are restated.
    base = simulate(
        load_scenario(DECODE[0], [*IDEAL, "cluster.node.gpu.l2_capacity=52428800.1 B"])
    ).quick_metrics["tpot_s"]["mean"]
    assert taken / base == pytest.approx(0.9, abs=0.001)


def test_a_fleet_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"holds a fleet job; allowed: .*decode_ep144_day6"):
        elasticities(load_scenario("azure_code"), target=0.1)


def test_an_input_that_the_job_does_not_have_is_named_with_those_it_has():
    with pytest.raises(ValueError, match=r"--only: unknown name 'PCI'; did you mean PCIe band"):
        elasticities(load_scenario(*DECODE), target=0.1, only=["PCI"])


def test_a_target_is_a_share():
    with pytest.raises(ValueError, match=r"--target 10: allowed: above 0 and below 1"):
        elasticities(load_scenario(*DECODE), target=10)
