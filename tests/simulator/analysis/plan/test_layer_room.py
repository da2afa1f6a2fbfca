"""Layers that cannot fit memory, however they are split."""

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

STATE = StateBytes(each=10.0, once=0.0)


@pytest.mark.parametrize(
    ("usual", "fewest"),
    [
        # 1F1B over two ranks keeps two micro-batches on the first: 10 + 2 x 5 bytes a layer, three
        # in 60 bytes; one on the second: 15 bytes, four.
        (2, 1),
        (6, 3),
        (7, 4),
        (8, None),
    ],
)
def test_what_one_rank_has_no_room_for_another_holds(usual, fewest):
    facts = schedule_facts("1f1b", None, 2, 8)
    assert (
        fewest_on_the_fullest(facts, STATE, usual=usual, others=2, capacity=60.0, saved=5.0)
        == fewest
    )


def test_ranks_without_room_for_a_layer_are_as_few_as_other_layers():
    facts = schedule_facts("1f1b", None, 2, 8)
    room = {"usual": 1, "capacity": 15.0, "saved": 5.0}
    assert fewest_on_the_fullest(facts, STATE, others=0, **room) is None
    assert fewest_on_the_fullest(facts, STATE, others=1, **room) == 1
    # A layer takes 10 + 2 x 5 bytes on the first rank, which holds none; the second holds one.
    assert fewest_on_the_fullest(facts, STATE, others=1, **(room | {"usual": 2})) is None


def test_workspace_takes_its_room():
    facts = schedule_facts("1f1b", None, 2, 8)
    kept = {"usual": 6, "others": 2, "saved": 5.0, "workspace": 1.0}
    assert fewest_on_the_fullest(facts, STATE, capacity=60.0, **kept) is None
    assert fewest_on_the_fullest(facts, STATE, capacity=61.0, **kept) == 3


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
