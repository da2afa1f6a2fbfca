"""The search for the fastest layout."""

import pytest
from small_plans import CHANGES, FIXED, SCENARIO

from simulator.analysis.plan.training import (
    PARTS,
    layout_metrics,
    plan_training,
    step_parts,
    training_plan_json,
    training_recommendation,
)
from simulator.analysis.sweep import read_rows
from simulator.scenario.files import load_scenario


@pytest.fixture(scope="module")
def plan():
    return plan_training(SCENARIO, CHANGES, fixed=FIXED, simulate=4)


def test_those_of_least_bound_are_simulated_and_the_fastest_is_best(plan):
    assert sorted(each.place for each in plan.simulated) == [0, 1, 2, 3]
    steps = [each.step_s for each in plan.ran]
    assert steps == sorted(steps)
    assert plan.best is plan.simulated[0]
    assert all(each.bound_s <= each.step_s for each in plan.ran)


def test_every_layout_but_the_best_is_a_loser_of_one_kind(plan):
    assert sum(plan.losers.values()) + 1 == 224
    assert plan.losers["simulated, slower"] == 3
    assert plan.losers["bound above the fastest simulated step"] == plan.pruned


def test_the_sentence_names_the_layout_and_what_limits_it(plan):
    sentence = training_recommendation(plan)
    assert sentence.startswith(f"Take {plan.best.layout}: an ideal step of ")
    assert sentence.count("\n") == 0
    assert any(part in sentence for part in PARTS[1:])


def test_json_holds_ranks_front_and_counts(plan):
    shown = training_plan_json(plan)
    assert (shown["bounded"], shown["simulated"], shown["gpus"]) == (134, 4, 16)
    assert [row["rank"] for row in shown["rows"]] == [1, 2, 3, 4]
    assert shown["front"][0] == str(plan.best.layout)
    assert shown["own"] is None


def test_rows_that_are_known_are_taken_over(plan, tmp_path):
    kept = tmp_path / "rows.jsonl"
    first = plan_training(SCENARIO, CHANGES, fixed=FIXED, simulate=2, kept=kept)
    known = read_rows(kept)
    assert len(known) == 2
    ran = []
    again = plan_training(SCENARIO, CHANGES, fixed=FIXED, simulate=2, known=known, done=ran.append)
    assert [each.step_s for each in again.ran] == [each.step_s for each in first.ran]
    assert {row.digest for row in ran} == set(known)


def test_parts_of_a_step_are_the_mean_of_its_ranks():
    rank = {
        "forward_s": 1.0, "backward_s": 2.0, "weight_s": 0.0, "overlapped_s": 3.0,
        "exposed_communication_s": 0.5, "waiting_for_ranks_s": 1.0, "waiting_for_host_s": 0.25,
        "waiting_for_sends_s": 0.75, "optimizer_s": 2.0,
    }  # fmt: skip
    other = rank | {"forward_s": 3.0, "waiting_for_ranks_s": 0.0}
    assert step_parts([rank, other]) == {
        "kernels": 6.5,
        "exposed all-to-all": 0.5,
        "waiting for ranks": 0.75,
        "sends": 0.75,
        "optimizer": 2.0,
    }


def test_a_job_that_no_layout_fits_is_refused_with_what_is_in_the_way():
    with pytest.raises(ValueError, match="no layout of 224 may run") as refused:
        plan_training(SCENARIO, [*CHANGES, "cluster.node.gpu.hbm_capacity=4 GiB"], fixed=FIXED)
    assert "does not fit memory" in str(refused.value)


def test_a_layout_that_fits_with_equal_rows_alone_is_none_to_take():
    # Equal rows need 4,313,164,877 bytes, the fullest GPU of bias_balanced ones 71,369 bytes more.
    layout = [*CHANGES, "training.pp=2", "training.ep=8", "training.stages=default"]
    between = load_scenario(SCENARIO, [*layout, "cluster.node.gpu.hbm_capacity=4313200000 B"])
    with pytest.raises(ValueError, match="rows that the fullest GPU usually gets") as refused:
        layout_metrics(between)
    assert "it needs 4.017 GiB, 35.4 KiB more than its 4.017 GiB" in str(refused.value)
    equal = load_scenario(
        SCENARIO,
        [*layout, "cluster.node.gpu.hbm_capacity=4313200000 B", "training.skew=none"],
    )
    assert layout_metrics(equal)["peak_memory_bytes"] == 4_313_164_877
    enough = load_scenario(SCENARIO, [*layout, "cluster.node.gpu.hbm_capacity=4313300000 B"])
    assert layout_metrics(enough)["step_time_s"] == layout_metrics(equal)["step_time_s"]
