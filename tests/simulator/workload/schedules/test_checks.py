"""The validator says what is wrong with a broken schedule; test_schedules runs it on good ones."""

import dataclasses

import pytest

from reference_model.pipeline_actions import Action, parse_action
from simulator.workload.schedules.bidirectional import dualpipev
from simulator.workload.schedules.checks import check_schedule
from simulator.workload.schedules.one_f_one_b import one_f_one_b
from simulator.workload.schedules.order import Schedule
from simulator.workload.schedules.zero_bubble import zb_h1


def _edited(schedule: Schedule, rank: int, actions: list[Action]) -> Schedule:
    rows = list(schedule.actions)
    rows[rank] = tuple(actions)
    return dataclasses.replace(schedule, actions=tuple(rows))


def _without(schedule: Schedule, rank: int, text: str) -> Schedule:
    return _edited(schedule, rank, [a for a in schedule.actions[rank] if str(a) != text])


def _replaced(schedule: Schedule, rank: int, old: str, new: str) -> Schedule:
    actions = [parse_action(new) if str(a) == old else a for a in schedule.actions[rank]]
    return _edited(schedule, rank, actions)


def _swapped(schedule: Schedule, rank: int, first: str, second: str) -> Schedule:
    exchange = {first: second, second: first}
    texts = [exchange.get(str(a), str(a)) for a in schedule.actions[rank]]
    return _edited(schedule, rank, [parse_action(text) for text in texts])


@pytest.mark.parametrize(
    ("broken", "message", "mark"),
    [
        (
            _without(one_f_one_b(2, 3), 1, "1F2"),
            "micro-batch 2 on stage 1 has no forward, must have one F",
            "1B2",
        ),
        (_without(one_f_one_b(2, 3), 1, "1B2"), "must have one backward", "1F2"),
        (_without(zb_h1(2, 3), 0, "0W2"), "has an I without its W, must have a B or both", "0I2"),
        (_without(zb_h1(2, 3), 0, "0I2"), "must have one backward", "0F2"),
        (
            _swapped(zb_h1(2, 3), 0, "0I1", "0W1"),
            "has its W before its I, must have it after",
            "0W1",
        ),
        (
            _swapped(one_f_one_b(2, 3), 1, "1F1", "1B1"),
            "1B1 on rank 1 can never start: it waits for 1F1 on rank 1",
            "1B1",
        ),
        (
            _replaced(one_f_one_b(2, 3), 0, "0F1", "0F0"),
            "0F0 is performed twice, must be once",
            "0F0",
        ),
        (_replaced(one_f_one_b(2, 3), 0, "0F1", "1F1"), "1F1 on rank 0 belongs to rank 1", "1F1"),
        (_replaced(one_f_one_b(2, 3), 0, "0F1", "0F9"), "micro-batches 0..2", "0F9"),
        (_replaced(dualpipev(1, 2), 0, "1F1&0B0", "1F1&0B1"), "two different", "1F1&0B1"),
        (_replaced(dualpipev(1, 2), 0, "1F1&0B0", "1F1&0F0"), "overlaps an F with a B", "1F1&0F0"),
    ],
)
def test_the_validator_names_what_is_wrong_and_marks_the_cell(
    broken: Schedule, message: str, mark: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        check_schedule(broken)
    assert f">>{mark}<<" in str(error.value)


def test_a_cycle_between_ranks_is_found() -> None:
    """Each rank would do first what the other has not yet sent."""
    placement = ((0, 1, 0),)
    rows = (("2F0", "0F0", "2B0", "0B0"), ("1F0", "1B0"))
    schedule = Schedule(
        "cycle", 1, placement, tuple(tuple(parse_action(t) for t in row) for row in rows)
    )
    with pytest.raises(
        ValueError, match="2F0 on rank 0 can never start: it waits for 1F0 on rank 1"
    ):
        check_schedule(schedule)
