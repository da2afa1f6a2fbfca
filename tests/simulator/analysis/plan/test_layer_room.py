"""Layers that cannot fit memory, however they are split."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.analysis.plan.layer_room import (
    fewest_on_the_fullest,
    state_bytes,
    state_of_layers,
)
from simulator.analysis.plan.schedule_facts import HeldAtLeast, schedule_facts
from simulator.scenario.training import OptimizerTypes
from simulator.workload.sharding import HeldParameters, Parameters, Sharding


def fewest(facts, *, saved, workspace=0.0, once=0.0, **given):
    """Of one layout, with 10 bytes of state for each layer."""
    room = {"each": 10.0, "once": once, "saved": saved, "workspace": workspace}
    (found,) = fewest_on_the_fullest(
        facts, **{name: np.array([size]) for name, size in room.items()}, **given
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


def test_workspace_and_state_that_is_there_once_take_their_room():
    facts = schedule_facts("1f1b", None, 2, 8)
    kept = {"usual": 6, "others": 2, "saved": 5.0, "workspace": 1.0, "once": 2.0}
    assert fewest(facts, capacity=62.0, **kept) == -1
    assert fewest(facts, capacity=63.0, **kept) == 3


def test_several_layouts_of_a_schedule_are_looked_at_at_once():
    facts = schedule_facts("1f1b", None, 2, 8)
    found = fewest_on_the_fullest(
        facts,
        each=np.array([10.0, 20.0]),
        once=np.zeros(2),
        usual=4,
        others=2,
        capacity=60.0,
        saved=np.array([5.0, 5.0]),
        workspace=np.zeros(2),
    )
    # 20 and 15 bytes a layer leave room for three and four, 30 and 25 for two each.
    assert found.tolist() == [2, 2]


def of_alike(kept, *, usual, each, saved, room, ranks=1):
    """Of a pipeline whose ranks all keep so much."""
    facts = replace(schedule_facts("1f1b", None, ranks, 8), held=(kept,) * ranks)
    (found,) = fewest_on_the_fullest(
        facts,
        each=np.array([each]),
        once=np.zeros(1),
        usual=usual,
        others=0,
        capacity=room,
        saved=np.array([saved]),
        workspace=np.zeros(1),
    )
    return int(found)


def test_many_layers_keep_what_the_least_kept_of_them_keeps():
    # Ten layers keep 10 x 2 micro-batches, more than 5 + 8 x 1: 10 x 10 + 20 x 5 bytes are 200.
    kept = HeldAtLeast(stages=2, of_any=2.0, of_one_each=5.0, of_further=1.0)
    assert of_alike(kept, usual=10, each=10.0, saved=5.0, room=200.0) == 10
    assert of_alike(kept, usual=11, each=10.0, saved=5.0, room=200.0) == -1


def test_layers_beyond_one_on_every_stage_keep_what_further_ones_keep():
    # Six layers on three stages keep 30 + 3 x 2 micro-batches: 6 x 10 + 36 x 50 bytes are 1,860.
    kept = HeldAtLeast(stages=3, of_any=3.0, of_one_each=30.0, of_further=2.0)
    assert of_alike(kept, usual=6, each=10.0, saved=50.0, room=1860.0) == 6
    assert of_alike(kept, usual=7, each=10.0, saved=50.0, room=1860.0) == -1
    assert of_alike(kept, usual=12, each=10.0, saved=50.0, room=1860.0, ranks=2) == 6
    assert of_alike(kept, usual=13, each=10.0, saved=50.0, room=1860.0, ranks=2) == -1


def test_a_layer_more_or_less_by_rounding_is_seen():
    kept = HeldAtLeast(stages=1, of_any=1.0, of_one_each=1.0, of_further=1.0)
    # 5 x 0.1 + 5 x 0.2 are 1.5, though 1.5 / (0.1 + 0.2) is 4.999...
    assert of_alike(kept, usual=5, each=0.1, saved=0.2, room=1.5) == 5
    assert of_alike(kept, usual=6, each=0.1, saved=0.2, room=1.5) == -1
    # 3 x 0.1 + 3 x 0.4 are 1.5000000000000002, though 1.5 / (0.1 + 0.4) is 3.
    assert of_alike(kept, usual=4, each=0.1, saved=0.4, room=1.5, ranks=2) == 2
    assert of_alike(kept, usual=3, each=0.1, saved=0.4, room=1.5) == -1


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_state_of_layers_is_never_more_than_that_of_so_many(zero):
    sharding = Sharding(
        zero, OptimizerTypes(), 8, 2, gathers_ahead=True, reduces_beside=True, pairs=True
    )
    layer = HeldParameters(Parameters(1000, 600, 600, 650.0), Parameters(4000, 4000, 4000, 4100.0))
    each, once = state_of_layers(sharding, layer)
    for count in (1, 2, 3, 7):
        whole = state_bytes(sharding, layer, count)
        assert once + count * each <= whole + 1e-6
    assert state_bytes(sharding, layer, 7) - state_bytes(sharding, layer, 6) == pytest.approx(each)


def test_state_of_layers_is_their_weights_gradients_and_optimizer():
    sharding = Sharding(
        0, OptimizerTypes(), 8, 2, gathers_ahead=True, reduces_beside=True, pairs=True
    )
    layer = HeldParameters(Parameters(1000, 600, 600, 650.0), Parameters(4000, 4000, 4000, 4100.0))
    weights = 650 + 400 * 2 + 4100  # working copies with their scales, the rest in BF16
    gradients = 5000 * 4
    optimizer = 5000 * (4 + 2 * 2)  # master weights in FP32, two moments in BF16
    assert state_bytes(sharding, layer, 2) == 2 * (weights + gradients + optimizer)
