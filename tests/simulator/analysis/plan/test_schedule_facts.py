"""What a short schedule says of a long one."""

import numpy as np
import pytest

from simulator.analysis.plan.schedule_facts import (
    HeldAtLeast,
    holders_of_first,
    least_of_layers,
    schedule_facts,
    stages_each,
)
from simulator.workload.schedules.held import held_activations
from simulator.workload.schedules.known import SCHEDULES, WITH_VIRTUAL_STAGES, build_schedule


def test_layers_on_two_stages_that_fill_in_turn_keep_the_mean_of_both():
    # Equal shares make 2 at both moments; any other shares make more at one of them.
    assert least_of_layers(np.array([[3, 1], [1, 3]])) == 2.0


def test_layers_of_one_stage_keep_what_it_holds():
    assert least_of_layers(np.array([[1], [4], [2]])) == 4.0


def test_twice_the_micro_batches_keep_twice_as_many_on_as_many_stages():
    kept = HeldAtLeast(stages=2, of_any=2.0, of_one_each=7.0, of_further=3.0)
    assert kept.times(2.0) == HeldAtLeast(stages=2, of_any=4.0, of_one_each=14.0, of_further=6.0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_long_schedule_keeps_no_less_and_has_the_pairs_that_a_short_one_tells(name, ranks):
    virtual = 2 if name in WITH_VIRTUAL_STAGES else None
    for microbatches in (2 * ranks, 2 * ranks + 2, 5 * ranks, 6 * ranks + 2):
        facts = schedule_facts(name, virtual, ranks, microbatches)
        whole = build_schedule(name, ranks, microbatches, virtual_stages=virtual)
        kept = {}
        for rank in range(ranks):
            held = held_activations(whole, rank)
            most = held.whole.sum(axis=1).max()
            kept[held.stages] = max(kept.get(held.stages, 0), most)
        assert [each.stages for each in facts.held] == [len(stages) for stages in kept]
        for each, most in zip(facts.held, kept.values(), strict=True):
            assert max(each.stages * each.of_any, each.of_one_each) <= most
        chunks = {}
        for row in whole.actions:
            for action in row:
                for work, stage, _ in action.chunks:
                    if work != "W":
                        of = chunks.setdefault((work == "F", stage), [0, 0])
                        of[action.overlapped is not None] += 1
        if "F&B" in facts.works:
            shares = [paired / (alone + paired) for alone, paired in chunks.values()]
            assert facts.pairs[0] <= min(shares) + 1e-12
            assert facts.pairs[1] >= max(shares) - 1e-12


def test_both_ends_of_dualpipe_hold_the_same_stages():
    assert holders_of_first("dualpipe", None, 8) == (0, 7)
    assert holders_of_first("1f1b", None, 8) == (0,)
    assert stages_each("dualpipev", None) == 2
    assert stages_each("interleaved", 4) == 4


def test_a_micro_batch_crosses_between_ranks_but_at_the_turn():
    assert schedule_facts("1f1b", None, 4, 8).crossings == 3
    assert schedule_facts("zbv", None, 4, 8).crossings == 6


def test_sizes_that_a_schedule_does_not_take_are_refused():
    with pytest.raises(ValueError, match="at least 2 x 4 ranks"):
        schedule_facts("dualpipe", None, 4, 6)
