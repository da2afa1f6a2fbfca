"""Inputs that a step's time is held against, scaled as a file would say them."""

import pytest

from simulator.analysis.sensitivity_inputs import ScaledInput, another_gpu, inputs_of
from simulator.scenario.files import load_scenario, with_changes


def _named(scenario):
    return {each.name: each for each in inputs_of(scenario)}


def test_a_value_keeps_its_unit():
    of = ScaledInput("NIC", "network", {"cluster.node.nic.bandwidth": "400 Gbit/s"})

    assert of.at(1.5) == {"cluster.node.nic.bandwidth": "600.0 Gbit/s"}
    assert of.factor_of(of.at(1.5)) == 1.5
    assert (of.text, of.step) == ("400 Gbit/s", 0.01)


def test_a_count_changes_by_about_three_percent_and_at_least_one():
    # 3% of 132 is 3.96, of 20 it is 0.6.
    sms, few = ScaledInput("SMs", "GPU", {"a": 132}), ScaledInput("SMs", "job", {"b": 20})

    assert (sms.at(1 + sms.step), few.at(1 - few.step)) == ({"a": 136}, {"b": 19})


def test_both_ends_of_an_interval_go_with_its_value_and_none_below_the_least():
    known = {"dispatch": {"value": 1.6, "low": 1.1, "high": 2.0, "source": "measured"}}
    of = ScaledInput("slow-down", "job", {"x": known}, least=1.0)

    assert of.at(0.5) == {
        "x": {"dispatch": {"value": 1.0, "low": 1.0, "high": 1.0, "source": "measured"}}
    }
    assert of.number == 1.6


def test_every_input_of_a_step_can_be_changed_as_a_set_of_a_run():
    for name in ("dualpipe_h800_2048", "decode_ep128_profile"):
        scenario = load_scenario(name)
        for each in inputs_of(scenario):
            changed = with_changes(scenario, each.at(1.0 + each.step))
            assert changed != scenario, each.name


def test_a_step_of_ideal_ranks_has_no_inputs_of_waiting():
    skewed, ideal = (
        _named(load_scenario("dualpipe_h800_2048", changes)) for changes in ((), ["skew=none"])
    )

    assert set(skewed) - set(ideal) == {
        "rate of the optimizer", "rows of the busiest rank", "spread of rows",
        "spread of clocks", "spread of attention work", "pauses of hosts", "length of a pause",
        "share of slow machines", "slow-down of slow machines",
    } & set(skewed)  # fmt: skip
    assert "spread of clocks" in skewed


def test_another_gpu_of_the_same_numbers_is_one_part_in_a_thousand_million_apart():
    scenario = load_scenario("dualpipe_h800_2048")

    changed = with_changes(scenario, another_gpu(scenario)).cluster.node.gpu
    assert changed.l2_capacity / scenario.cluster.node.gpu.l2_capacity - 1 == pytest.approx(1e-9)
