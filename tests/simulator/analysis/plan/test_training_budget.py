"""What a budget pays for."""

import pytest
from small_plans import CHANGES, FIXED, SCENARIO

from hardware_profiles.schema import load_cluster
from simulator.analysis.plan.training import plan_training
from simulator.analysis.plan.training_budget import (
    Budget,
    BudgetPlan,
    budget_json,
    budget_sentence,
    numbers_of_nodes,
    plan_with_budget,
)

HOUR = 3600.0


@pytest.fixture(scope="module")
def cluster():
    return load_cluster("h800_2048")


@pytest.fixture(scope="module")
def plans():
    """{nodes: the plan of so many}, of 8 GPUs of 2 USD/h each."""
    return {
        nodes: plan_training(
            SCENARIO,
            [*CHANGES, f"cluster.nodes={nodes}", "cluster.gpu_price=2 USD/h"],
            fixed=FIXED | {"pp": [1], "zero": [1]},
            simulate=2,
        )
        for nodes in (2, 1)
    }


def test_a_rent_and_a_sum_are_read_with_their_units():
    assert Budget.parse("3600 USD/h", None) == Budget(1.0, None, None)
    assert Budget.parse("6 MUSD", 14.8e12) == Budget(None, 6e6, 14.8e12)


@pytest.mark.parametrize(
    ("text", "tokens", "said"),
    [
        ("6 MUSD", None, "--budget 6 MUSD: a sum is for so many tokens, and --tokens is missing"),
        ("0 USD/h", None, "--budget 0 USD/h: allowed: more than 0"),
        ("6 MUSD", -1.0, "--tokens -1.0: allowed: more than 0"),
        ("6", 1e12, "--budget: '6' has no unit"),
    ],
)
def test_what_is_no_budget_is_refused(text, tokens, said):
    with pytest.raises(ValueError, match=said):
        Budget.parse(text, tokens)


def test_a_rent_pays_for_powers_of_two_of_nodes_and_three_times_those(cluster):
    node = cluster.gpu_price * 8
    assert numbers_of_nodes(Budget(100 * node, None, None), cluster, 4096)[:3] == [96, 64, 48]
    assert numbers_of_nodes(Budget(1.5 * node, None, None), cluster, 4096) == [1]
    # No more GPUs than the 48 sequences of a step.
    assert numbers_of_nodes(Budget(100 * node, None, None), cluster, 48) == [6, 4, 3, 2, 1]
    assert numbers_of_nodes(Budget(None, 1e6, 1e12), cluster, 48) == [6, 4, 3, 2, 1]
    with pytest.raises(ValueError, match="pays for no node of 8 h800_sxm; allowed: at least"):
        numbers_of_nodes(Budget(node / 2, None, None), cluster, 4096)


def test_a_sum_is_searched_from_most_gpus_down_until_one_is_within_it(plans):
    steps = {nodes: plan.best.step_s for nodes, plan in plans.items()}
    # A step of 32 sequences of 256 tokens on 16 GPUs costs 32 USD/h x its time.
    tokens = 32 * 256 * 1000.0
    costs = {nodes: 1000 * steps[nodes] * nodes * 16 / HOUR for nodes in plans}
    assert costs[1] < costs[2]
    asked = []

    def search(nodes):
        asked.append(nodes)
        return plans[nodes]

    rich = plan_with_budget(Budget(None, costs[2] * 1.001, tokens), [2, 1], search)
    assert asked == [2]
    assert (rich.best.gpus, rich.best.usd) == (16, pytest.approx(costs[2]))
    poor = plan_with_budget(Budget(None, costs[1] * 1.001, tokens), [2, 1], search)
    assert (poor.best.gpus, poor.best.run_s) == (8, pytest.approx(1000 * steps[1]))
    assert poor.plan is plans[1]
    with pytest.raises(ValueError, match="pays for none of these GPUs; the cheapest is PP1 EP"):
        plan_with_budget(Budget(None, costs[1] / 2, tokens), [2, 1], search)


def test_fewer_gpus_that_hold_no_layout_end_the_search(plans):
    def search(nodes):
        if nodes == 1:
            raise ValueError("no layout of 224 may run")
        return plans[nodes]

    rent = Budget(16 * 2 / HOUR, None, None)
    assert [
        plan.scenario.cluster.gpus for plan in plan_with_budget(rent, [2, 1], search).plans
    ] == [16]
    with pytest.raises(ValueError, match="no layout of 224 may run"):
        plan_with_budget(rent, [1], search)


def test_the_front_is_of_time_memory_and_gpus_and_the_sentence_says_what_is_bought(plans):
    found = BudgetPlan(Budget(16 * 2 / HOUR, None, None), tuple(plans.values()))
    assert found.best.gpus == 16
    front = found.front
    assert front[0] == found.best
    assert {each.gpus for each in front} == {8, 16}
    shown = budget_json(found)
    assert shown["gpus_tried"] == [16, 8]
    assert shown["usd_per_hour"] == pytest.approx(32.0)
    assert shown["front"][0]["usd_per_hour"] == pytest.approx(32.0)
    assert budget_sentence(found.best).startswith(
        "The budget buys 16 GPUs at 32 USD/h: an ideal step of "
    )
