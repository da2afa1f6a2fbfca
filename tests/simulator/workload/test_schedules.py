"""Every schedule goes through one validator; counts and layouts are those of the papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload.schedule_checks import check_schedule
from simulator.workload.schedules import (
    SCHEDULES,
    WITH_VIRTUAL_STAGES,
    Action,
    Chunk,
    Schedule,
    build_schedule,
    dualpipe,
    dualpipev,
    held_activations,
    interleaved,
    interleaved_overlapped,
    one_f_one_b,
    one_f_one_b_overlapped,
    parse_action,
    peak_in_flight,
    render_grid,
    zb1p,
)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    """Any schedule of any allowed size up to 12 ranks."""
    name = draw(st.sampled_from(sorted(SCHEDULES)))
    ranks = draw(st.integers(1, 12))
    more = draw(st.integers(0, 40))
    virtual_stages = draw(st.integers(1, 5)) if name in WITH_VIRTUAL_STAGES else None
    match name:
        case "dualpipe":
            ranks += ranks % 2
            microbatches = 2 * ranks + 2 * more
        case "dualpipev":
            microbatches = 2 * ranks + more
        case "interleaved" | "interleaved_overlapped" | "zb1p":
            microbatches = ranks + more
        case _:
            microbatches = 1 + more
    return build_schedule(name, ranks, microbatches, virtual_stages=virtual_stages)


@settings(max_examples=120, deadline=None)
@given(schedules())
def test_every_schedule_is_complete_ordered_and_free_of_deadlock(schedule: Schedule) -> None:
    check_schedule(schedule)


@settings(max_examples=20, deadline=None)
@given(schedules())
def test_text_form_of_every_action_reads_back(schedule: Schedule) -> None:
    for row in schedule.actions:
        assert [parse_action(str(action)) for action in row] == list(row)


@settings(max_examples=20, deadline=None)
@given(schedules())
def test_a_rank_holds_no_activations_after_its_last_action(schedule: Schedule) -> None:
    for rank, row in enumerate(schedule.actions):
        held = held_activations(schedule, rank)
        assert held.whole.min() >= 0
        assert held.deferred.min() >= 0
        # During the last action one chunk is left, which that action empties.
        assert (held.whole + held.deferred)[-1].sum() == len(row[-1].chunks)


@pytest.mark.parametrize("text", ["", "0F", "F1", "0X1", "0F1&", "0F1&1B0&2B0", "-1F0"])
def test_text_that_is_no_action_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="must be stage, one of F, B, I, W"):
        parse_action(text)


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches", "message"),
    [
        ("1f1b", 0, 4, "ranks = 0, must be at least 1"),
        ("1f1b", 4, 0, "microbatches = 0, must be at least 1"),
        ("1f1b_overlapped", 4, 0, "microbatches = 0, must be at least 1"),
        ("interleaved", 4, 3, "microbatches = 3, must be at least the 4 ranks"),
        ("interleaved_overlapped", 4, 3, "microbatches = 3, must be at least the 4 ranks"),
        ("zb1p", 8, 7, "microbatches = 7, must be at least the 8 ranks"),
        ("dualpipe", 7, 20, "ranks = 7, must be even and at least 2"),
        ("dualpipe", 8, 21, "microbatches = 21, must be even and at least 2 x 8 ranks = 16"),
        ("dualpipe", 8, 14, "microbatches = 14, must be even and at least 2 x 8 ranks = 16"),
        ("dualpipev", 8, 15, "microbatches = 15, must be at least 2 x 8 ranks = 16"),
    ],
)
def test_a_size_that_a_schedule_cannot_take_is_one_clear_line(
    name: str, ranks: int, microbatches: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SCHEDULES[name](ranks, microbatches)
    assert str(error.value).startswith(f"schedule {name}: ")
    assert "\n" not in str(error.value)


def test_only_interleaved_schedules_take_a_number_of_virtual_stages() -> None:
    assert build_schedule("interleaved", 2, 4, virtual_stages=None).stages == 4
    assert build_schedule("interleaved_overlapped", 2, 4, virtual_stages=5).stages == 10
    with pytest.raises(ValueError, match="schedule zb1p: virtual_stages = 2, must be left out; "):
        build_schedule("zb1p", 2, 4, virtual_stages=2)
    with pytest.raises(ValueError, match="virtual_stages = 0, must be at least 1"):
        build_schedule("interleaved", 2, 4, virtual_stages=0)


def test_interleaved_with_one_stage_on_each_rank_is_1f1b() -> None:
    assert interleaved(4, 6, virtual_stages=1).actions == one_f_one_b(4, 6).actions
    assert (
        interleaved_overlapped(4, 6, virtual_stages=1).actions
        == one_f_one_b_overlapped(4, 6).actions
    )


@pytest.mark.parametrize(
    ("ranks", "microbatches", "group"),
    # Of 120 groups of 16 would leave 8 over, of 17 one, of 18 twelve, of 19 six; of 20 none.
    [(16, 128, 16), (16, 120, 20), (16, 31, 31), (4, 11, 6), (2, 5, 3)],
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


def test_dualpipe_has_the_chunk_counts_of_the_published_code() -> None:
    """16 ranks, 120 micro-batches, h = distance from the end: F 23-h, I 15-h, full B 8 or 9,
    W 15-h, F&B 97+h; at the turning point one pair runs as F and B instead."""
    schedule = dualpipe(16, 120)
    for rank, expected in {
        0: (23, 15, 8, 15, 97),
        15: (23, 15, 8, 15, 97),
        7: (17, 8, 9, 8, 103),
    }.items():
        works = [action.work for action in schedule.actions[rank]]
        assert tuple(works.count(work) for work in ("F", "I", "B", "W", "F&B")) == expected


def test_dualpipe_holds_a_stage_and_its_mirror_and_dualpipev_two_half_stages() -> None:
    assert [dualpipe(8, 16).stages_of(rank) for rank in range(8)] == [
        (min(r, 7 - r), max(r, 7 - r)) for r in range(8)
    ]
    assert [dualpipev(4, 8).stages_of(rank) for rank in range(4)] == [(r, 7 - r) for r in range(4)]
    assert dualpipev(4, 8).stages == 8
    assert interleaved(4, 8, virtual_stages=3).stages_of(1) == (1, 5, 9)


def test_dualpipe_ranks_mirror_each_other_with_the_directions_exchanged() -> None:
    schedule = dualpipe(8, 20)
    for rank in range(4):
        mirrored = [
            Action(*(c._replace(microbatch=(c.microbatch + 10) % 20) for c in action.chunks))
            for action in schedule.actions[rank]
        ]
        assert mirrored == list(schedule.actions[7 - rank])


def test_dualpipe_and_dualpipev_share_one_order() -> None:
    """A rank of DualPipe and one of DualPipeV of half the ranks do the same works in a row."""
    for rank in range(4):
        works = [
            [action.work for action in schedule.actions[rank]]
            for schedule in (dualpipe(8, 40), dualpipev(4, 20))
        ]
        assert works[0] == works[1]


def test_most_activations_in_flight_are_those_of_the_papers() -> None:
    """1F1B and ZB1P: PP; DualPipe: PP + 1 (arXiv 2412.19437, table 2)."""
    assert peak_in_flight(one_f_one_b(8, 20)) == (8, 7, 6, 5, 4, 3, 2, 1)
    assert peak_in_flight(zb1p(8, 20)) == (8,) * 8
    # Forwards ahead, and the one that runs: 2 (ranks - 1 - rank) + (stages - 1) group, and 1 more
    # in pairs.
    assert peak_in_flight(interleaved(4, 8, virtual_stages=3)) == (15, 13, 11, 9)
    assert peak_in_flight(interleaved_overlapped(4, 8, virtual_stages=3)) == (16, 14, 12, 10)
    assert peak_in_flight(one_f_one_b_overlapped(4, 8)) == (8, 6, 4, 2)
    assert peak_in_flight(dualpipe(8, 20)) == (9,) * 8
    assert peak_in_flight(dualpipev(4, 20)) == (9,) * 4


def test_held_activations_count_each_stage_and_what_is_deferred() -> None:
    held = held_activations(zb1p(2, 3), 1)  # F I F I W F I W W
    assert held.stages == (1,)
    np.testing.assert_array_equal(held.whole[:, 0], [1, 1, 1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(held.deferred[:, 0], [0, 0, 1, 1, 2, 1, 1, 2, 1])


def test_printed_grid_has_one_row_a_rank_and_one_cell_an_action() -> None:
    assert render_grid(dualpipev(2, 4)).splitlines() == [
        "rank 0 (half-stages 0, 3) | 0F0     0F1     0F2     3F0     3I0     3W0     3F1     "
        "0F3&3B1 3F2&0B0 3B2     3F3&0B1 3B3     0I2     0W2     0I3     0W3",
        "rank 1 (half-stages 1, 2) | 1F0     2F0     1F1     2F1     1F2     2B0     2F2&1B0 "
        "1F3&2B1 2F3&1B1 2B2     1B2     2I3     1I3     2W3     1W3",
    ]
    assert "rank 5 (stages 5, 2)" in render_grid(dualpipe(8, 20))


def test_chunks_of_the_two_directions_run_on_mirrored_ranks() -> None:
    schedule = dualpipe(4, 8)
    assert schedule.rank_of(Chunk("F", 1, 3)) == 1
    assert schedule.rank_of(Chunk("F", 1, 4)) == 2
