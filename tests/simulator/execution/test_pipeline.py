"""Transfers, deadlocks and the drawing of a pipeline run."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_model.pipeline_actions import Action, parse_action
from simulator.execution.pipeline import (
    Deadlock,
    PipelineRun,
    draw_to_scale,
    run_ideal,
    run_pipeline,
)
from simulator.workload.schedules.bidirectional import dualpipev
from simulator.workload.schedules.bubbles import IdealTimes
from simulator.workload.schedules.known import SCHEDULES
from simulator.workload.schedules.one_f_one_b import one_f_one_b
from simulator.workload.schedules.order import Schedule

EQUAL = IdealTimes(forward=1, input_backward=1, weight_gradient=1, overlapped=3)


def each(schedule: Schedule, duration: Callable[[int, Action], float | np.ndarray]) -> np.ndarray:
    """Durations of the actions of a schedule, in order."""
    return np.array(
        [duration(rank, action) for rank, row in enumerate(schedule.actions) for action in row]
    )


def _intervals_by_rank(run: PipelineRun) -> list[np.ndarray]:
    return [
        np.stack([run.start_s[run.rank == r], run.end_s[run.rank == r]], axis=1)
        for r in range(run.schedule.ranks)
    ]


@pytest.mark.parametrize("name", SCHEDULES)
def test_actions_of_a_rank_follow_each_other_and_data_arrives_before_it_is_used(name: str) -> None:
    times, hop = IdealTimes(1.0, 1.3, 0.7, 2.4), 0.25
    schedule = SCHEDULES[name](4, 12)
    run = run_pipeline(
        schedule,
        each(schedule, lambda rank, action: times.of(action) * (1 + 0.1 * rank)),
        transfer_s=defaultdict(lambda: hop),
        blocking_sends=False,
    )
    for spans in _intervals_by_rank(run):
        assert (spans[1:, 0] >= spans[:-1, 1] - 1e-12).all()
    # Forward of a stage starts a hop after that of the stage before has ended.
    end = {}
    for action, stop in zip(run.actions(), run.end_s, strict=True):
        end.update(dict.fromkeys(action.chunks, stop))
    for action, rank, start in zip(run.actions(), run.rank, run.start_s, strict=True):
        chunk = action.chunk
        if chunk.work == "F" and chunk.stage > 0:
            before = chunk._replace(stage=chunk.stage - 1)
            distance = hop if run.schedule.rank_of(before) != rank else 0.0
            assert start >= end[before] + distance - 1e-12


def test_a_transfer_delays_only_its_receiver_unless_sends_block() -> None:
    """Two ranks, one micro-batch, F = B = 2, hop 1: forward 2, hop, forward and backward 4, hop,
    backward 2. With two micro-batches, blocking sends also hold the sender back."""
    times = IdealTimes(2, 1, 1, 0)

    def run(microbatches: int, blocking: bool) -> PipelineRun:
        schedule = one_f_one_b(2, microbatches)
        return run_pipeline(
            schedule,
            each(schedule, lambda _, action: times.of(action)),
            transfer_s={(0, 1): 1.0, (1, 0): 1.0},
            blocking_sends=blocking,
        )

    assert run(1, False).makespan_s == 2 + 1 + 4 + 1 + 2
    asynchronous, blocking = run(2, False), run(2, True)
    assert asynchronous.start_s[:2].tolist() == [0.0, 2.0]
    assert blocking.start_s[:2].tolist() == [0.0, 3.0]


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), st.integers(0, 2**32 - 1))
def test_makespan_is_at_least_every_bound_and_at_most_the_serial_time(name: str, seed: int) -> None:
    schedule = SCHEDULES[name](4, 8)
    rng = np.random.default_rng(seed)
    drawn = [rng.uniform(0.1, 2.0, len(row)) for row in schedule.actions]
    run = run_pipeline(
        schedule, np.concatenate(drawn), transfer_s=defaultdict(float), blocking_sends=False
    )
    assert run.busy_s == pytest.approx([row.sum() for row in drawn])
    assert max(run.busy_s) <= run.makespan_s + 1e-9 <= run.busy_s.sum() + 2e-9
    assert run.bubble_s.min() >= -1e-9


def test_a_schedule_that_cannot_finish_is_a_deadlock_that_marks_each_blocked_rank() -> None:
    schedule = one_f_one_b(2, 3)
    texts = ["1F0", "1B1", "1F1", "1B0", "1F2", "1B2"]
    broken = dataclasses.replace(
        schedule, actions=(schedule.actions[0], tuple(parse_action(text) for text in texts))
    )
    with pytest.raises(Deadlock) as error:
        run_ideal(broken, EQUAL)
    message = str(error.value)
    assert message.startswith("schedule 1f1b: 2 of 2 ranks are blocked at 2 s")
    assert "rank 1: 1B1 waits for 1F1 on rank 1" in message
    assert ">>0B0<<" in message
    assert ">>1B1<<" in message


def test_a_deadlock_shows_four_actions_on_either_side_of_a_blocked_one() -> None:
    """Rank 1 asks for the fifth forward before the fourth; each rank has done what comes before."""
    schedule = one_f_one_b(2, 8)
    texts = [f"1{work}{batch}" for batch in range(8) for work in "FB"]
    texts[6], texts[7] = texts[7], texts[6]
    broken = dataclasses.replace(
        schedule, actions=(schedule.actions[0], tuple(parse_action(text) for text in texts))
    )
    with pytest.raises(Deadlock) as error:
        run_ideal(broken, EQUAL)
    assert str(error.value).splitlines()[-1] == (
        "rank 1 (stage 1) | (2 before) 1F1 1B1 1F2 1B2 >>1B3<< 1F3 1F4 1B4 1F5 (5 after)"
    )


@pytest.mark.parametrize(("blocking", "ends"), [(False, [10.0, 19.0]), (True, [10.5, 19.5])])
def test_one_pass_gives_the_makespan_of_many_durations_at_once(blocking, ends) -> None:
    """Two ranks, two micro-batches, F = 1 and B = 2, or twice as long; sends of 0.5.

    Rank 1 beside: F0 1.5-2.5, B0 2.5-4.5, F1 4.5-5.5, B1 5.5-7.5, so B1 on rank 0 at 8-10. Where
    rank 1 waits for its sends, F1 starts at 5 and all after it half a second later.
    """
    schedule = one_f_one_b(2, 2)
    long = {"F": np.array([1.0, 2.0]), "B": np.array([2.0, 4.0])}
    found = run_pipeline(
        schedule,
        each(schedule, lambda _, action: long[action.work]),
        transfer_s={(0, 1): 0.5, (1, 0): np.array([0.5, 0.5])},
        blocking_sends=blocking,
    )
    assert found.makespans_s.tolist() == ends
    assert found.makespan_s == ends[1]
    # Every rank works 2 F and 2 B.
    assert found.busy_s.tolist() == [[6.0, 12.0]] * 2
    assert found.bubble_s.tolist() == [[ends[0] - 6.0, ends[1] - 12.0]] * 2


@pytest.mark.parametrize(("staggered", "step"), [(False, 3.5), (True, 2.0)])
def test_ranks_that_begin_as_they_can_take_what_the_busiest_does(staggered, step) -> None:
    """F of 1 on rank 0, sent in 0.5, then F of 2 on rank 1: from 1.5 to 3.5."""
    forwards = (parse_action("0F0"),), (parse_action("1F0"),)
    found = run_pipeline(
        Schedule("forwards", 1, placement=((0, 1),), actions=forwards),
        np.array([[1.0, 2.0], [2.0, 4.0]]),
        transfer_s={(0, 1): np.array([0.5, 1.0])},
        blocking_sends=False,
        staggered=staggered,
    )
    assert found.makespans_s.tolist() == [step, 2 * step]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_an_impossible_duration_names_its_action(seconds: float) -> None:
    with pytest.raises(ValueError, match="0F0 on rank 0: duration"):
        run_pipeline(
            one_f_one_b(1, 1),
            np.array([seconds, 1.0]),
            transfer_s={},
            blocking_sends=False,
        )


def test_an_impossible_duration_in_one_of_many_passes_names_its_action() -> None:
    with pytest.raises(ValueError, match=r"^0B0 on rank 0: duration = -1\.0 s, must be finite"):
        run_pipeline(
            one_f_one_b(2, 1),
            np.array([[1.0, 2.0], [3.0, -1.0], [1.0, np.nan], [2.0, 2.0]]),
            transfer_s=defaultdict(float),
            blocking_sends=False,
        )


def test_an_impossible_transfer_names_its_ranks() -> None:
    with pytest.raises(ValueError, match="transfer from rank 0 to rank 1: duration = -1"):
        run_pipeline(
            one_f_one_b(2, 1),
            np.ones(4),
            transfer_s={(0, 1): -1.0, (1, 0): 1.0},
            blocking_sends=False,
        )


def test_every_action_has_one_duration() -> None:
    with pytest.raises(ValueError, match="1f1b: 3 durations for 4 actions"):
        run_pipeline(one_f_one_b(2, 1), np.ones(3), transfer_s={}, blocking_sends=False)


def test_log_columns_hold_both_chunks_of_a_pair() -> None:
    run = run_ideal(dualpipev(1, 2), EQUAL)
    columns = run.columns()
    assert {len(column) for column in columns.values()} == {len(run.rank)}
    row = list(columns["label"]).index("1F1&0B0")
    assert [columns[name][row] for name in ("work", "stage", "microbatch")] == ["F&B", 1, 1]
    assert columns["overlapped_stage"][row] == 0
    assert columns["overlapped_microbatch"][row] == 0
    assert columns["overlapped_stage"][0] == -1


def test_drawing_is_to_scale_with_idle_time_as_dots() -> None:
    assert draw_to_scale(run_ideal(one_f_one_b(2, 2), EQUAL)).splitlines() == [
        "rank 0 |F0 |F1 ........|B0     ....|B1     |",
        "rank 1 ....|F0 |B0     |F1 |B1     ........|",
        "time   ^0                  ^5",
    ]


def test_ranks_stand_in_one_column_and_marks_at_their_times() -> None:
    """Twelve ranks of 1F1B, one micro-batch: F is one unit of 4 columns, B two; 36 units in all."""
    *rows, axis = draw_to_scale(run_ideal(one_f_one_b(12, 1), EQUAL)).splitlines()
    assert rows[0] == f"rank  0 |F0 {'.' * 4 * 33}|B0     |"
    assert rows[11] == f"rank 11 {'.' * 4 * 11}|F0 |B0     {'.' * 4 * 22}|"
    marks = {len("rank 11 ") + 4 * time: f"^{time}" for time in range(0, 36, 5)}
    assert {found.start(): found[0] for found in re.finditer(r"\^\d+", axis)} == marks


@pytest.mark.parametrize(("ranks", "first"), [(10, "rank 0 |F0"), (11, "rank  0 |F0")])
def test_ranks_take_as_many_columns_as_the_last_of_them(ranks: int, first: str) -> None:
    rows = draw_to_scale(run_ideal(one_f_one_b(ranks, 1), EQUAL)).splitlines()
    assert rows[0].startswith(first)
    assert rows[ranks - 1].startswith(f"rank {ranks - 1} .")


@pytest.mark.parametrize(
    ("unit", "marks"),
    [
        # Four columns are a unit: 20 of them are 5, 12.5 and so 20, or 0.0125 and so 0.02.
        (1.0, ["^0", "^5", "^10"]),
        (2.5, ["^0", "^20"]),
        (0.0025, ["^0", "^0.02"]),
        # 6 and so 10, 0.8 and so 1, and 1.
        (1.2, ["^0", "^10"]),
        (0.16, ["^0", "^1"]),
        (0.2, ["^0", "^1", "^2"]),
        (1e15, ["^0", "^5e+15", "^1e+16"]),
    ],
)
def test_times_are_marked_every_twenty_columns_or_more(unit: float, marks: list[str]) -> None:
    """Two ranks of 1F1B, three micro-batches: 12 units."""
    times = IdealTimes(forward=unit, input_backward=unit, weight_gradient=unit, overlapped=0)
    axis = draw_to_scale(run_ideal(one_f_one_b(2, 3), times)).splitlines()[-1]
    assert axis.split()[1:] == marks


def test_a_run_that_takes_no_time_is_drawn_without_columns() -> None:
    none = IdealTimes(forward=0, input_backward=0, weight_gradient=0, overlapped=0)
    drawn = draw_to_scale(run_ideal(one_f_one_b(2, 1), none))
    assert drawn.splitlines() == ["rank 0 |", "rank 1 |", "time   ^0"]


def test_ranks_that_begin_as_they_can_wait_for_the_one_whose_step_is_longest() -> None:
    """F of 1 and B of 0.25, sends of 0.5. Rank 0 runs from 0 to 1 and from 3.25 to 3.5, what it
    waits for being produced at 2.75; rank 1 from 1.5 to 2.75, then waits until 3.5 have passed."""
    schedule = one_f_one_b(2, 1)
    run = run_pipeline(
        schedule,
        np.array([1.0, 0.25, 1.0, 0.25]),
        transfer_s={(0, 1): 0.5, (1, 0): 0.5},
        blocking_sends=False,
        staggered=True,
    )
    assert (run.begin_s.tolist(), run.makespan_s) == ([0.0, 1.5], 3.5)
    assert run.bubble_s.tolist() == [2.25, 2.25]
    assert run.waiting_for_ranks_s.tolist() == [1.75, 2.25]
    assert run.waiting_for_sends_s.tolist() == [0.5, 0.0]


def test_drawing_keeps_every_label_whole_and_tells_half_stages_apart() -> None:
    run = run_ideal(dualpipev(2, 4), IdealTimes(0.06, 0.08, 0.03, 0.129))
    rows = draw_to_scale(run).splitlines()
    for rank, row in enumerate(run.schedule.actions):
        cells = [cell.strip(" .") for cell in rows[rank].removeprefix(f"rank {rank} ").split("|")]
        assert [cell for cell in cells if cell] == [str(action) for action in row]


@pytest.mark.parametrize(
    ("blocking", "bubbles", "sends"),
    [
        # Rank 1 starts at 1.5, half a second after rank 0 has produced what it needs. Rank 0 waits
        # from 2 to 5, of which until 4.5 for rank 1, and from 7 to 8, of which until 7.5.
        (False, [4.0, 4.0], [1.0, 0.5]),
        # Half a second more each: rank 0 sends before its second F, rank 1 before its second.
        (True, [4.5, 4.5], [1.5, 1.0]),
    ],
)
def test_a_rank_waits_for_others_until_they_have_produced_and_then_for_sends(
    blocking: bool, bubbles: list[float], sends: list[float]
) -> None:
    schedule = one_f_one_b(2, 2)
    seconds = [1.0 if action.work == "F" else 2.0 for row in schedule.actions for action in row]
    run = run_pipeline(
        schedule,
        np.array(seconds),
        transfer_s={(0, 1): 0.5, (1, 0): 0.5},
        blocking_sends=blocking,
    )
    assert run.bubble_s.tolist() == bubbles
    assert run.waiting_for_sends_s.tolist() == sends
    assert run.waiting_for_ranks_s.tolist() == [b - s for b, s in zip(bubbles, sends, strict=True)]
    samples = run_pipeline(
        schedule,
        np.stack((seconds, 2 * np.array(seconds)), axis=1),
        transfer_s={(0, 1): np.array([0.5, 1.0]), (1, 0): np.array([0.5, 1.0])},
        blocking_sends=blocking,
    )
    assert samples.waiting_for_sends_s.tolist() == [[s, 2 * s] for s in sends]
