"""When the actions of a Schedule run, where the time of each is known beforehand.

Each rank performs its actions in order. An action starts as soon as the rank is free and everything
it needs has arrived; it cannot be interrupted, and what it produces leaves at its end. Axes after
that of the actions are samples, or other times for the same order, which all run in one pass.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import floor, inf, log10
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from reference_model.pipeline_actions import Action
from simulator.execution.timeline import Times
from simulator.workload.schedules.bubbles import IdealTimes
from simulator.workload.schedules.grid import render_window
from simulator.workload.schedules.order import RunOrder, Schedule


class Deadlock(RuntimeError):
    """Nothing can happen any more and work is left; the message shows where each rank stands."""


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """When every action of a schedule ran. Rows are ordered by rank, then by index."""

    schedule: Schedule
    rank: NDArray[np.int64]
    index: NDArray[np.int64]
    """Position in the order of the rank."""
    start_s: Times
    """[actions, *axes]"""
    end_s: Times
    """[actions, *axes]"""
    staggered: bool = False
    """Whether each rank begins its next step as soon as it has ended this one. A step then takes
    what its busiest rank takes from its own first action on: one step after another as they are
    here, each later by that time, is an order that all ranks can keep. Otherwise they begin every
    step together, at time 0."""

    @property
    def begin_s(self) -> Times:
        """[rank, *axes], when the step of each rank begins."""
        starts = self.start_s[self.index == 0]
        return starts if self.staggered else np.zeros_like(starts)

    @property
    def makespans_s(self) -> Times:
        """[*axes], from the begin of any rank's step to the end of its last action, at most."""
        ends = self.end_s[np.append(self.index[1:] == 0, True)]
        return np.asarray((ends - self.begin_s).max(axis=0, initial=0.0))

    @property
    def makespan_s(self) -> float:
        """The longest of the makespans."""
        return float(self.makespans_s.max(initial=0.0))

    @property
    def busy_s(self) -> Times:
        """[rank, *axes], seconds spent in actions."""
        return self._by_rank(self.end_s - self.start_s)

    @property
    def bubble_s(self) -> Times:
        """[rank, *axes], seconds of the makespan not spent in actions."""
        return self.makespans_s - self.busy_s

    @property
    def produced_s(self) -> Times:
        """[actions, *axes], when other ranks had produced all that an action needs of them; 0 where
        it needs nothing."""
        produced = np.zeros_like(self.end_s)
        for rows, needed in _needed(object_key(self.schedule.run_order)):
            produced[rows] = np.maximum(produced[rows], self.end_s[needed])
        return produced

    @property
    def waiting_for_sends_s(self) -> Times:
        """[rank, *axes], seconds of the bubble in which what the next action needs has been
        produced and sends, the rank's own that block it among them, are under way."""
        return self._by_rank(self.start_s - np.clip(self.produced_s, self._free_s, self.start_s))

    @property
    def waiting_for_ranks_s(self) -> Times:
        """[rank, *axes], seconds of the bubble in which other ranks have yet to produce what the
        next action needs, or have yet to end."""
        waits = self._by_rank(np.clip(self.produced_s, self._free_s, self.start_s) - self._free_s)
        last = np.append(self.index[1:] == 0, True)
        return np.asarray(waits + self.makespans_s - (self.end_s[last] - self.begin_s))

    @property
    def _free_s(self) -> Times:
        """[actions, *axes], end of the action before on the same rank, or when its step begins."""
        ends = np.concatenate((np.zeros_like(self.end_s[:1]), self.end_s[:-1]))
        ends[self.index == 0] = self.begin_s
        return ends

    def _by_rank(self, seconds: Times) -> Times:
        """[actions, *axes] -> [rank, *axes], sums."""
        sums = np.zeros((self.schedule.ranks, *self.end_s.shape[1:]))
        np.add.at(sums, self.rank, seconds)
        return sums

    def actions(self) -> list[Action]:
        """The action of each row."""
        return [action for row in self.schedule.actions for action in row]

    def columns(self) -> dict[str, Sequence[Any] | NDArray[Any]]:
        """The action log as columns, one row per action, ready for pandas.DataFrame.

        stage and microbatch are those of the only chunk or of the forward chunk of a pair;
        overlapped_stage and overlapped_microbatch those of its backward chunk, -1 where there is
        none.
        """
        actions = self.actions()
        second = [action.overlapped for action in actions]
        return {
            "rank": self.rank,
            "index": self.index,
            "label": [str(action) for action in actions],
            "work": [action.work for action in actions],
            "stage": np.array([action.chunk.stage for action in actions]),
            "microbatch": np.array([action.chunk.microbatch for action in actions]),
            "overlapped_stage": np.array([-1 if c is None else c.stage for c in second]),
            "overlapped_microbatch": np.array([-1 if c is None else c.microbatch for c in second]),
            "start_s": self.start_s,
            "end_s": self.end_s,
        }


def run_pipeline(
    schedule: Schedule,
    seconds: Times,
    *,
    transfer_s: Mapping[tuple[int, int], float | Times],
    blocking_sends: bool,
    staggered: bool = False,
) -> PipelineRun:
    """Perform a schedule.

    Args:
        seconds: [actions, *axes], ordered by rank, then by position in the order of the rank.
        transfer_s: {(rank that sends, rank that receives): from the end of an action until another
            rank has what it produced}, one number or [*axes] each. What a rank sends at the end of
            one action leaves one after the other.
        blocking_sends: a rank waits for its sends before its next action, as the published DualPipe
            code does; otherwise sends run beside the next action.
        staggered: as of PipelineRun.

    Raises:
        ValueError: a negative or undefined time.
        Deadlock: the order cannot be finished.
    """
    _check_durations(schedule, seconds)
    axes, order = seconds.shape[1:], schedule.run_order
    # Plain numbers are compared many times faster than arrays of no dimension.
    plain = not axes
    zero: Any = 0.0 if plain else np.zeros(axes)
    took: Sequence[Any] = seconds.tolist() if plain else list(seconds)
    # Of the shape of the times, which sums of two arrays are faster for than of one and a number.
    delays = [zero + _sending(rank, others, transfer_s) for rank, others in order.sends]
    blocks = [blocking_sends and len(others) > 0 for _, others in order.sends]
    free = [zero] * schedule.ranks
    starts: list[Any] = [zero] * len(took)
    ends: list[Any] = list(starts)
    for row, rank, needs, leaving in order.steps:
        start = free[rank]
        for source, sent in needs:
            arrived = ends[source] + delays[sent]
            if not plain:
                start = np.maximum(start, arrived)
            elif arrived > start:
                start = arrived
        starts[row] = start
        ends[row] = end = start + took[row]
        free[rank] = end + delays[leaving] if blocks[leaving] else end
    if order.blocked:
        now = max(float(np.max(end)) for end in ends)
        raise Deadlock(_deadlock_message(schedule, order.blocked, now))
    start_s, end_s = (np.array(times).reshape(len(took), *axes) for times in (starts, ends))
    counts = [len(row) for row in schedule.actions]
    return PipelineRun(
        schedule=schedule,
        rank=np.repeat(np.arange(schedule.ranks), counts),
        index=np.concatenate([np.arange(count) for count in counts]),
        start_s=start_s,
        end_s=end_s,
        staggered=staggered,
    )


@lru_cache(maxsize=16)
def _needed(order: Keyed[RunOrder]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(rows of actions, rows of what each needs of another rank): of the first that each needs, of
    the second, and so on."""
    found: list[list[tuple[int, int]]] = []
    for row, _, needs, _ in order.value.steps:
        found += [[] for _ in needs[len(found) :]]
        for pairs, (source, _) in zip(found, needs, strict=False):
            pairs.append((row, source))
    columns = (np.array(pairs, dtype=np.intp).T for pairs in found)
    return [(rows, sources) for rows, sources in columns]


def _sending(
    source: int, destinations: tuple[int, ...], transfer_s: Mapping[tuple[int, int], float | Times]
) -> float | Times:
    """How long a rank takes to send to others, one after the other."""
    total: float | Times = 0.0
    for destination in destinations:
        took = transfer_s[source, destination]
        _check(took, f"transfer from rank {source} to rank {destination}")
        total = total + took
    return total


def run_ideal(schedule: Schedule, times: IdealTimes, *, staggered: bool = False) -> PipelineRun:
    """Perform a schedule with the same times on every rank and transfers that take no time.

    Args:
        staggered: as of PipelineRun.
    """
    return run_pipeline(
        schedule,
        np.array([float(times.of(action)) for row in schedule.actions for action in row]),
        transfer_s=defaultdict(float),
        blocking_sends=False,
        staggered=staggered,
    )


def draw_to_scale(run: PipelineRun) -> str:
    """Draw a run as text, one row per rank: each action from | to the next |, idle time as dots.

    The scale gives each action room for its text. The stage is left out where rank and
    micro-batch tell it. The last line is the time axis.
    """
    schedule = run.schedule
    stage_is_told = schedule.ranks == schedule.stages
    texts = [_short_text(action) if stage_is_told else str(action) for action in run.actions()]
    lengths = run.end_s - run.start_s
    scale = max(
        ((len(text) + 2) / length for text, length in zip(texts, lengths, strict=True) if length),
        default=1.0,
    )
    columns = round(run.end_s.max(initial=0.0) * scale)
    rows = [["."] * columns for _ in range(run.schedule.ranks)]
    spans = zip(run.rank, run.start_s * scale, run.end_s * scale, texts, strict=True)
    for rank, start, end, text in spans:
        first, width = round(start), round(end) - round(start)
        rows[rank][first : first + width] = f"|{text}".ljust(width)[:width]
    head = len(str(run.schedule.ranks - 1))
    lines = [f"rank {rank:{head}d} {''.join(row)}|" for rank, row in enumerate(rows)]
    return "\n".join([*lines, f"{'time':{head + 6}s}{_axis(run.makespan_s, scale, columns)}"])


def _short_text(action: Action) -> str:
    return "&".join(f"{chunk.work}{chunk.microbatch}" for chunk in action.chunks)


def _axis(makespan: float, scale: float, columns: int) -> str:
    """Marks every 20 columns or more, at times of one, two or five and zeros."""
    unit = 10.0 ** floor(log10(20 / scale))
    step = next(times * unit for times in (1, 2, 5, 10) if times * unit * scale >= 20)
    line = [" "] * columns
    for k in range(int(makespan / step) + 1):
        text = f"^{k * step:g}"
        first = round(k * step * scale)
        line[first : first + len(text)] = text
    return "".join(line).rstrip()


def _check_durations(schedule: Schedule, seconds: Times) -> None:
    count = sum(map(len, schedule.actions))
    if len(seconds) != count:
        raise ValueError(f"{schedule.name}: {len(seconds)} durations for {count} actions")
    possible = _possible(seconds)
    if not possible.all():
        wrong = int(np.argwhere(~possible)[0, 0])
        actions = [(rank, action) for rank, row in enumerate(schedule.actions) for action in row]
        rank, action = actions[wrong]
        _check(seconds[wrong], f"{action} on rank {rank}")


def _possible(seconds: Times) -> NDArray[np.bool_]:
    return np.isfinite(seconds) & (seconds >= 0.0)


def _check(seconds: float | Times, what: str) -> None:
    if isinstance(seconds, float) and 0.0 <= seconds < inf:
        return
    times = np.asarray(seconds)
    wrong = times[~_possible(times)]
    if len(wrong):
        raise ValueError(f"{what}: duration = {wrong[0]} s, must be finite and not negative")


def _deadlock_message(
    schedule: Schedule,
    blocked: Mapping[int, int],
    now: float,
) -> str:
    needs = schedule.needs
    position = [blocked.get(rank, len(row)) for rank, row in enumerate(needs)]
    lines = []
    for rank, index in blocked.items():
        missing = [
            f"{schedule.actions[need.rank][need.position]} on rank {need.rank}"
            for need in needs[rank][index]
            if position[need.rank] <= need.position
        ]
        blocked_action = schedule.actions[rank][index]
        lines.append(f"  rank {rank}: {blocked_action} waits for {', '.join(missing)}")
    return "\n".join(
        [
            f"schedule {schedule.name}: {len(blocked)} of {schedule.ranks} ranks are blocked "
            f"at {now:.6g} s",
            *lines,
            render_window(schedule, blocked, reach=4),
        ]
    )
