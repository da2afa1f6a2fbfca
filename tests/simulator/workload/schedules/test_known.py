"""Every schedule goes through one validator, whatever its size."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_model.pipeline_actions import parse_action
from simulator.workload.schedules.checks import check_schedule
from simulator.workload.schedules.held import held_activations
from simulator.workload.schedules.known import SCHEDULES, WITH_VIRTUAL_STAGES, build_schedule
from simulator.workload.schedules.order import Schedule


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
        case "zb_h2" | "zbv":
            microbatches = 2 * ranks - 1 + more
        case "zb_h1" if virtual_stages != 1:
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


@pytest.mark.parametrize(
    ("name", "ranks", "microbatches", "message"),
    [
        ("1f1b", 0, 4, "ranks = 0, must be at least 1"),
        ("1f1b", 4, 0, "microbatches = 0, must be at least 1"),
        ("1f1b_overlapped", 4, 0, "microbatches = 0, must be at least 1"),
        ("gpipe", 4, 0, "microbatches = 0, must be at least 1"),
        ("interleaved", 4, 0, "microbatches = 0, must be at least 1"),
        ("interleaved_overlapped", 4, 0, "microbatches = 0, must be at least 1"),
        ("zb_h1", 8, 0, "microbatches = 0, must be at least 1"),
        ("zb_h2", 8, 14, "microbatches = 14, must be at least 2 x 8 ranks - 1 = 15"),
        ("zbv", 8, 14, "microbatches = 14, must be at least 2 x 8 ranks - 1 = 15"),
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
    assert build_schedule("zb_h1", 2, 4, virtual_stages=3).stages == 6
    with pytest.raises(ValueError, match="schedule zb_h2: virtual_stages = 2, must be left out; "):
        build_schedule("zb_h2", 2, 4, virtual_stages=2)
    with pytest.raises(ValueError, match="microbatches = 3, must be at least the 4 ranks"):
        build_schedule("zb_h1", 4, 3, virtual_stages=2)
    with pytest.raises(ValueError, match="virtual_stages = 0, must be at least 1"):
        build_schedule("interleaved", 2, 4, virtual_stages=0)
