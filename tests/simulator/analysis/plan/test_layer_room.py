"""Layers that cannot fit memory, however they are split."""

import numpy as np
import pytest

from simulator.analysis.plan.layer_room import (
    StateBytes,
    fewest_on_the_fullest,
    state_bytes,
    state_of_layers,
)
from simulator.analysis.plan.schedule_facts import schedule_facts
from simulator.scenario.training import OptimizerTypes
from simulator.workload.sharding import HeldParameters, Parameters, Sharding

STATE = StateBytes(each=np.array([10.0]), once=np.array([0.0]))


def fewest(facts, *, saved, workspace=0.0, **given):
    """Of one layout."""
    (found,) = fewest_on_the_fullest(
        facts, STATE, saved=np.array([saved]), workspace=np.array([workspace]), **given
    )
    return int(found)


@pytest.mark.parametrize(
    ("usual", "least"),
    [
        # 1F1B over two ranks keeps two micro-batches on the first: 10 + 2 x 5 bytes a layer, three
        # in 60 bytes; one on the second: 15 bytes, four.
        (2, 1),
        (6, 3),
        (7, 4),
        (8, -1),
    ],
)
def test_what_one_rank_has_no_room_for_another_holds(usual, least):
    facts = schedule_facts("1f1b", None, 2, 8)
    assert fewest(facts, usual=usual, others=2, capacity=60.0, saved=5.0) == least


def test_ranks_without_room_for_a_layer_are_as_few_as_other_layers():
    facts = schedule_facts("1f1b", None, 2, 8)
    room = {"usual": 1, "capacity": 15.0, "saved": 5.0}
    assert fewest(facts, others=0, **room) == -1
    assert fewest(facts, others=1, **room) == 1
    # A layer takes 10 + 2 x 5 bytes on the first rank, which holds none; the second holds one.
    assert fewest(facts, others=1, **(room | {"usual": 2})) == -1


def test_workspace_takes_its_room():
    facts = schedule_facts("1f1b", None, 2, 8)
    kept = {"usual": 6, "others": 2, "saved": 5.0, "workspace": 1.0}
    assert fewest(facts, capacity=60.0, **kept) == -1
    assert fewest(facts, capacity=61.0, **kept) == 3


def test_several_layouts_of_a_schedule_are_looked_at_at_once():
    facts = schedule_facts("1f1b", None, 2, 8)
    found = fewest_on_the_fullest(
        facts,
        StateBytes(np.array([10.0, 20.0]), np.zeros(2)),
        usual=4,
        others=2,
        capacity=60.0,
        saved=np.array([5.0, 5.0]),
        workspace=np.zeros(2),
    )
    # 20 and 15 bytes a layer leave room for three and four, 30 and 25 for two each.
    assert found.tolist() == [2, 2]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_state_of_layers_is_never_more_than_that_of_so_many(zero):
    sharding = Sharding(
        zero, OptimizerTypes(), 8, 2, gathers_ahead=True, reduces_beside=True, pairs=True
    )
    layer = HeldParameters(Parameters(1000, 600, 600, 650.0), Parameters(4000, 4000, 4000, 4100.0))
    state = state_of_layers(sharding, layer)
    for count in (1, 2, 3, 7):
        whole = state_bytes(sharding, layer, count)
        assert state.once + count * state.each <= whole + 1e-6
    assert state_bytes(sharding, layer, 7) - state_bytes(sharding, layer, 6) == pytest.approx(
        state.each
    )


def test_state_of_layers_is_their_weights_gradients_and_optimizer():
    sharding = Sharding(
        0, OptimizerTypes(), 8, 2, gathers_ahead=True, reduces_beside=True, pairs=True
    )
    layer = HeldParameters(Parameters(1000, 600, 600, 650.0), Parameters(4000, 4000, 4000, 4100.0))
    weights = 650 + 400 * 2 + 4100  # working copies with their scales, the rest in BF16
    gradients = 5000 * 4
    optimizer = 5000 * (4 + 2 * 2)  # master weights in FP32, two moments in BF16
    assert state_bytes(sharding, layer, 2) == 2 * (weights + gradients + optimizer)
