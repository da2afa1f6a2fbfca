"""1F1B, interleaved stages and pairs: their groups and their order."""

import pytest

from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.one_f_one_b import (
    interleaved,
    interleaved_overlapped,
    one_f_one_b,
    one_f_one_b_overlapped,
)


def test_interleaved_with_one_stage_on_each_rank_is_1f1b() -> None:
    assert interleaved(4, 6, virtual_stages=1).actions == one_f_one_b(4, 6).actions
    assert (
        interleaved_overlapped(4, 6, virtual_stages=1).actions
        == one_f_one_b_overlapped(4, 6).actions
    )


@pytest.mark.parametrize(
    ("ranks", "microbatches", "group"),
    # Of 120 groups of 16 would leave 8 over, of 17 one, of 18 twelve, of 19 six; of 20 none.
    [(16, 128, 16), (16, 120, 20), (16, 31, 31), (4, 11, 6), (2, 5, 3), (4, 3, 3)],
)
def test_groups_of_microbatches_are_the_smallest_without_a_last_one_below_the_ranks(
    ranks: int, microbatches: int, group: int
) -> None:
    first = [str(action) for action in interleaved(ranks, microbatches).actions[0]]
    assert first.index(f"{ranks}F0") == group


def test_micro_batches_left_over_form_a_smaller_last_group() -> None:
    """Two stages on each of two ranks, five micro-batches: groups of 3 and 2."""
    assert render_grid(interleaved(2, 5)).splitlines() == [
        "rank 0 (stages 0, 2) | 0F0 0F1 0F2 2F0 2F1 2F2 2B0 0F3 2B1 0F4 2B2 2F3 0B0 2F4 0B1 "
        "0B2 2B3 2B4 0B3 0B4",
        "rank 1 (stages 1, 3) | 1F0 1F1 1F2 3F0 3B0 3F1 3B1 3F2 3B2 1F3 1B0 1F4 1B1 3F3 1B2 "
        "3F4 3B3 3B4 1B3 1B4",
    ]


def test_a_pair_is_a_forward_under_the_backward_of_an_earlier_micro_batch() -> None:
    """The last rank is one forward ahead, each rank before it two more."""
    assert render_grid(one_f_one_b_overlapped(2, 5)).splitlines() == [
        "rank 0 (stage 0) | 0F0     0F1     0F2     0F3&0B0 0F4&0B1 0B2     0B3     0B4",
        "rank 1 (stage 1) | 1F0     1F1&1B0 1F2&1B1 1F3&1B2 1F4&1B3 1B4",
    ]
