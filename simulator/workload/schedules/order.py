"""Pipeline schedules as data: the order of every rank's actions.

A schedule holds order only. When an action starts, and how long a rank waits before it, is what
the simulation finds out (simulator.execution.pipeline). Each family of schedules has a module of
its own beside this one, and `known` names them all.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    INPUT_BACKWARD,
    WEIGHT_GRADIENT,
    Action,
    Chunk,
)


@dataclass(frozen=True)
class Schedule:
    """The order of actions of every rank of one pipeline."""

    name: str
    microbatches: int
    """Micro-batches of one step, over all directions. With two directions the first half of the
    micro-batches takes direction 0 and the second half direction 1."""
    placement: tuple[tuple[int, ...], ...]
    """[direction, stage]: the rank that runs this stage for micro-batches of this direction."""
    actions: tuple[tuple[Action, ...], ...]
    """[rank]: actions in order."""

    @property
    def ranks(self) -> int:
        return len(self.actions)

    @property
    def stages(self) -> int:
        return len(self.placement[0])

    @property
    def directions(self) -> int:
        return len(self.placement)

    @cached_property
    def needs(self) -> list[list[tuple["Need", ...]]]:
        """`dependencies` of the schedule, worked out once."""
        return dependencies(self)

    @cached_property
    def run_order(self) -> "RunOrder":
        """`possible_order` of the schedule, worked out once: its times change, its order does
        not."""
        return possible_order(self)

    @cached_property
    def works(self) -> frozenset[str]:
        """The works of its actions."""
        return frozenset(action.work for row in self.actions for action in row)

    @cached_property
    def alike(self) -> "Alike":
        """Actions of a rank that differ in their micro-batches alone, worked out once."""
        places: dict[object, int] = {}
        firsts: list[tuple[int, Action]] = []
        of_actions: list[int] = []
        for rank, row in enumerate(self.actions):
            for action in row:
                chunks = tuple((chunk.work, chunk.stage) for chunk in action.chunks)
                key = (rank, action.overlapped is not None, chunks)
                if key not in places:
                    places[key] = len(firsts)
                    firsts.append((rank, action))
                of_actions.append(places[key])
        return Alike(tuple(firsts), tuple(of_actions))

    def direction_of(self, microbatch: int) -> int:
        """Direction in which a micro-batch passes the pipeline."""
        return microbatch * self.directions // self.microbatches

    def rank_of(self, chunk: Chunk) -> int:
        """Rank on which a chunk runs."""
        return self.placement[self.direction_of(chunk.microbatch)][chunk.stage]

    def stages_of(self, rank: int) -> tuple[int, ...]:
        """Stages whose parameters a rank holds, ascending."""
        return tuple(
            stage for stage in range(self.stages) if any(p[stage] == rank for p in self.placement)
        )


class Need(NamedTuple):
    """One thing an action waits for: the chunk (work, stage) inside an earlier action."""

    rank: int
    position: int
    """Position of the earlier action in the order of its rank."""
    work: str
    """F: activations. B: gradients, whether a B or an I makes them."""
    stage: int
    """Stage of the earlier chunk."""


def dependencies(schedule: Schedule) -> list[list[tuple[Need, ...]]]:
    """What each action waits for: [rank][index].

    F needs the F of the stage before, B and I their own F and the B or I of the stage after, W its
    I. Chunks that no rank performs are left out; checks.check_schedule reports them.
    """
    where: dict[tuple[str, int, int], Need] = {}
    for rank, actions in enumerate(schedule.actions):
        for index, action in enumerate(actions):
            for work, stage, microbatch in action.chunks:
                made = FULL_BACKWARD if work == INPUT_BACKWARD else work
                where[made, stage, microbatch] = Need(rank, index, made, stage)

    def needs(action: Action) -> Iterator[Need | None]:
        for work, stage, microbatch in action.chunks:
            if work == FORWARD_WORK:
                yield where.get((FORWARD_WORK, stage - 1, microbatch))
            elif work == WEIGHT_GRADIENT:
                yield where.get((FULL_BACKWARD, stage, microbatch))
            else:
                yield where.get((FORWARD_WORK, stage, microbatch))
                yield where.get((FULL_BACKWARD, stage + 1, microbatch))

    return [[tuple(filter(None, needs(action))) for action in row] for row in schedule.actions]


class Alike(NamedTuple):
    """Actions of a schedule that take the same time wherever nothing goes with the micro-batch."""

    firsts: tuple[tuple[int, Action], ...]
    """(rank, the first of those that are alike)"""
    places: tuple[int, ...]
    """Of every action, by rank and position: its place in `firsts`."""


class RunOrder(NamedTuple):
    """The actions of a schedule in an order in which each follows what it needs. An action's row is
    its place among those of all ranks, ordered by rank."""

    steps: tuple[tuple[int, int, tuple[tuple[int, int], ...], int], ...]
    """(row; rank; what it needs of other ranks, as (row, place in `sends` of what had been sent
    once it had come); place in `sends` of all that it sends itself). What it needs of its own rank
    has ended before the rank is free."""
    sends: tuple[tuple[int, tuple[int, ...]], ...]
    """(rank, ranks that it sends to, one after the other)"""
    blocked: Mapping[int, int]
    """{rank: position of the first action that can never run}"""


def possible_order(schedule: Schedule) -> RunOrder:
    """An order in which all actions can run, as far as they can."""
    needs = schedule.needs
    first = list(accumulate(map(len, needs), initial=0))
    queue, sent_before = _sends(needs)
    sends: dict[tuple[int, tuple[int, ...]], int] = {}
    steps = []
    position = [0] * schedule.ranks
    for rank, index in _in_turn(needs, position):
        of_others = tuple(
            [
                (
                    first[source] + at,
                    sends.setdefault((source, sent_before[source, at, rank, index]), len(sends)),
                )
                for source, at, _, _ in needs[rank][index]
                if source != rank
            ]
        )
        leaving = sends.setdefault((rank, queue.get((rank, index), ())), len(sends))
        steps.append((first[rank] + index, rank, of_others, leaving))
    blocked = {rank: at for rank, at in enumerate(position) if at < len(needs[rank])}
    return RunOrder(tuple(steps), tuple(sends), blocked)


_Queue = Mapping[tuple[int, int], tuple[int, ...]]
"""{(rank, position of an action): ranks that it sends to, one after the other}"""


def _sends(
    needs: list[list[tuple[Need, ...]]],
) -> tuple[_Queue, Mapping[tuple[int, int, int, int], tuple[int, ...]]]:
    """What every action sends; and {(rank and position of an action, those of one that needs it):
    ranks that it has sent to once the latter has what it needs}."""
    queue: dict[tuple[int, int], tuple[int, ...]] = defaultdict(tuple)
    sent_before: dict[tuple[int, int, int, int], tuple[int, ...]] = {}
    for rank, row in enumerate(needs):
        for index, wanted in enumerate(row):
            for source, at, _, _ in wanted:
                if source != rank:
                    sent = queue[source, at] = (*queue[source, at], rank)
                    sent_before[source, at, rank, index] = sent
    return queue, sent_before


def _in_turn(needs: list[list[tuple[Need, ...]]], position: list[int]) -> Iterator[tuple[int, int]]:
    """(rank, index) of actions, each after what it needs, until all are done or all are blocked.

    Args:
        position: [rank], zeros; counted up to the actions that have been done.
    """
    done: int | None = None
    while done != sum(position):
        done = sum(position)
        for rank, row in enumerate(needs):
            while position[rank] < len(row) and all(
                position[need.rank] > need.position for need in row[position[rank]]
            ):
                yield rank, position[rank]
                position[rank] += 1


def require_size(condition: bool, schedule: str, field: str, value: int, allowed: str) -> None:
    if not condition:
        raise ValueError(f"schedule {schedule}: {field} = {value}, must be {allowed}")
