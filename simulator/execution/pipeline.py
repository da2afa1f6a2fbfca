"""Run a Schedule in simulated time: order, durations and transfer times in, an action log out.

Each rank is one long-lived simpy process that performs its actions in order. An action starts as
soon as the rank is free and everything it needs has arrived; it cannot be interrupted, and what it
produces leaves at its end. Times are seconds.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.workload.schedules import (
    Action,
    IdealTimes,
    Need,
    Schedule,
    dependencies,
    render_window,
)

Performance = Generator[simpy.Event, Any, None]
"""What an action does: a simpy process that ends when the action does."""


class Deadlock(RuntimeError):
    """Nothing can happen any more and work is left; the message shows where each rank stands."""


class Transfer(NamedTuple):
    """Activations or gradients of one micro-batch that pass from one rank to another."""

    work: str
    """F: activations, to the next stage. B: gradients of them, to the stage before."""
    stage: int
    """Stage that sends."""
    source: int
    """Rank that sends."""
    destination: int
    """Rank that receives."""


@dataclass(frozen=True, slots=True)
class PipelineRun:
    """When every action of a schedule ran. Rows are ordered by rank, then by index."""

    schedule: Schedule
    rank: NDArray[np.int64]
    index: NDArray[np.int64]
    """Position in the order of the rank."""
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]

    @property
    def makespan_s(self) -> float:
        """From time 0 to the end of the last action of any rank."""
        return float(self.end_s.max(initial=0.0))

    @property
    def busy_s(self) -> NDArray[np.float64]:
        """[rank], seconds spent in actions."""
        busy = np.zeros(self.schedule.ranks)
        np.add.at(busy, self.rank, self.end_s - self.start_s)
        return busy

    @property
    def bubble_s(self) -> NDArray[np.float64]:
        """[rank], seconds of the makespan not spent in actions."""
        return self.makespan_s - self.busy_s

    def actions(self) -> list[Action]:
        """The action of each row."""
        return [action for row in self.schedule.actions for action in row]

    def columns(self) -> dict[str, Sequence[Any] | NDArray[Any]]:
        """The action log as columns, one row an action, ready for pandas.DataFrame.

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
    *,
    duration: Callable[[int, Action], float],
    transfer: Callable[[Transfer], float],
    blocking_sends: bool,
) -> PipelineRun:
    """Perform a schedule whose actions last a known time.

    duration(rank, action): seconds, asked once for each action when it starts. The rest is as in
    `perform_pipeline`. Raises ValueError for a negative or undefined time as well.
    """

    def last(env: simpy.Environment, rank: int, index: int) -> Performance:
        action = schedule.actions[rank][index]
        yield env.timeout(_checked(duration(rank, action), f"{action} on rank {rank}"))

    return perform_pipeline(
        schedule, perform=last, transfer=transfer, blocking_sends=blocking_sends
    )


def perform_pipeline(
    schedule: Schedule,
    *,
    perform: Callable[[simpy.Environment, int, int], Performance],
    transfer: Callable[[Transfer], float],
    blocking_sends: bool,
) -> PipelineRun:
    """Perform a schedule.

    perform(env, rank, index): what action `index` of a rank does in simulated time, started once
    when the action starts. transfer(transfer): seconds from the end of the producing action until
    the consumer has the data, asked once for each distinct transfer between two ranks; what a rank
    sends at the end of one action leaves one after the other. blocking_sends: a rank waits for its
    sends before its next action, as the published DualPipe code does; otherwise sends run beside
    the next action.

    Raises ValueError for a negative or undefined transfer time, Deadlock where the order cannot be
    finished.
    """
    needs = dependencies(schedule)
    pending = [[len(need) for need in row] for row in needs]
    consumers = _consumers(schedule, needs, transfer)
    starts = [[0.0] * len(row) for row in needs]
    ends = [[0.0] * len(row) for row in needs]
    position = [0] * schedule.ranks
    env = simpy.Environment()
    wake: list[simpy.Event | None] = [None] * schedule.ranks

    def arrive(rank: int, index: int) -> None:
        pending[rank][index] -= 1
        event = wake[rank]
        if event is not None and position[rank] == index and pending[rank][index] == 0:
            wake[rank] = None
            event.succeed()

    def send(rank: int, index: int, delay: float) -> None:
        event = env.timeout(delay)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: arrive(rank, index))

    def run_rank(rank: int) -> Generator[simpy.Event, None, None]:
        for index in range(len(schedule.actions[rank])):
            position[rank] = index
            if pending[rank][index] > 0:
                event = wake[rank] = env.event()
                yield event
            starts[rank][index] = env.now
            yield from perform(env, rank, index)
            ends[rank][index] = env.now
            sending = 0.0
            for consumer, consumer_index, delay in consumers[rank][index]:
                if delay > 0.0:
                    sending += delay
                    send(consumer, consumer_index, sending)
                else:
                    arrive(consumer, consumer_index)
            if blocking_sends and sending > 0.0:
                yield env.timeout(sending)
        position[rank] = len(schedule.actions[rank])

    for rank in range(schedule.ranks):
        env.process(run_rank(rank))
    env.run()
    blocked = {r: i for r, i in enumerate(position) if i < len(schedule.actions[r])}
    if blocked:
        raise Deadlock(_deadlock_message(schedule, blocked, needs, position, env.now))
    counts = [len(row) for row in needs]
    return PipelineRun(
        schedule=schedule,
        rank=np.repeat(np.arange(schedule.ranks), counts),
        index=np.concatenate([np.arange(count) for count in counts]),
        start_s=np.concatenate([np.array(row) for row in starts]),
        end_s=np.concatenate([np.array(row) for row in ends]),
    )


def makespans(
    schedule: Schedule,
    durations: Sequence[Sequence[NDArray[np.float64]]],
    *,
    transfer_s: Mapping[tuple[int, int], float | NDArray[np.float64]],
    blocking: bool,
) -> NDArray[np.float64]:
    """Makespan of a schedule for many sets of durations at once, [samples].

    The times are those of `perform_pipeline`, action by action in one pass.

    Args:
        durations: [rank][action] arrays [samples].
        transfer_s: {(rank that sends, rank that receives): one number, or [samples]}.
        blocking: whether a rank waits for its sends before its next action.

    Raises:
        Deadlock: the order cannot be finished.
    """
    needs = dependencies(schedule)
    # What a rank sends at the end of one action leaves one after the other.
    queue: dict[tuple[int, int], tuple[int, ...]] = defaultdict(tuple)
    before: dict[tuple[int, int, int, int], tuple[int, ...]] = {}
    for rank, row in enumerate(needs):
        for index, wanted in enumerate(row):
            for need in wanted:
                if need.rank != rank:
                    queue[need.rank, need.position] += (rank,)
                    sent = queue[need.rank, need.position]
                    before[need.rank, need.position, rank, index] = sent

    @cache
    def sending(source: int, destinations: tuple[int, ...]) -> NDArray[np.float64] | float:
        total: NDArray[np.float64] | float = 0.0
        for destination in destinations:
            total = total + transfer_s[source, destination]
        return total

    ends: dict[tuple[int, int], NDArray[np.float64]] = {}
    free: list[NDArray[np.float64] | float] = [0.0] * schedule.ranks
    latest: NDArray[np.float64] | float = 0.0
    for rank, index in _in_some_order(schedule, needs):
        start = free[rank]
        for need in needs[rank][index]:
            ready = ends[need.rank, need.position]
            if need.rank != rank:
                sent = before[need.rank, need.position, rank, index]
                ready = ready + sending(need.rank, sent)
            start = np.maximum(start, ready)
        end = start + durations[rank][index]
        ends[rank, index] = end
        free[rank] = end + sending(rank, queue[rank, index]) if blocking else end
        latest = np.maximum(latest, end)
    return np.asarray(latest, dtype=np.float64)


def _in_some_order(
    schedule: Schedule, needs: list[list[tuple[Need, ...]]]
) -> Iterator[tuple[int, int]]:
    """(rank, index) of every action, each after what it needs."""
    position = [0] * schedule.ranks
    while True:
        before = list(position)
        for rank, row in enumerate(needs):
            while position[rank] < len(row) and all(
                position[need.rank] > need.position for need in row[position[rank]]
            ):
                yield rank, position[rank]
                position[rank] += 1
        if position == before:
            break
    blocked = {r: i for r, i in enumerate(position) if i < len(needs[r])}
    if blocked:
        raise Deadlock(_deadlock_message(schedule, blocked, needs, position, 0.0))


def run_ideal(schedule: Schedule, times: IdealTimes) -> PipelineRun:
    """Perform a schedule with the same times on every rank and transfers that take no time."""
    return run_pipeline(
        schedule,
        duration=lambda _, action: times.of(action),
        transfer=lambda _: 0.0,
        blocking_sends=False,
    )


def draw_to_scale(run: PipelineRun) -> str:
    """Draw a run as text, one row a rank: each action from | to the next |, idle time as dots.

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
    columns = round(run.makespan_s * scale)
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
    """Marks about every 20 columns, labelled in the unit of the times."""
    steps = (m * 10.0**e for e in range(-12, 13) for m in (1, 2, 5))
    step = next((s for s in steps if s * scale >= 20), makespan or 1.0)
    line = [" "] * (columns + 12)
    for k in range(int(makespan / step) + 1):
        text = f"^{k * step:g}"
        first = round(k * step * scale)
        line[first : first + len(text)] = text
    return "".join(line).rstrip()


def _consumers(
    schedule: Schedule, needs: list[list[tuple[Need, ...]]], transfer: Callable[[Transfer], float]
) -> list[list[list[tuple[int, int, float]]]]:
    """[rank][index] -> (rank, index, transfer seconds) of the actions that wait for this one."""
    seconds: dict[Transfer, float] = {}
    consumers: list[list[list[tuple[int, int, float]]]] = [[[] for _ in row] for row in needs]
    for rank, row in enumerate(needs):
        for index, wanted in enumerate(row):
            for need in wanted:
                delay = 0.0
                if need.rank != rank:
                    sent = Transfer(need.work, need.stage, need.rank, rank)
                    if sent not in seconds:
                        seconds[sent] = _checked(transfer(sent), str(sent))
                    delay = seconds[sent]
                consumers[need.rank][need.position].append((rank, index, delay))
    return consumers


def _checked(seconds: float, what: str) -> float:
    if not 0.0 <= seconds < float("inf"):
        raise ValueError(f"{what}: duration = {seconds} s, must be finite and not negative")
    return seconds


def _deadlock_message(
    schedule: Schedule,
    blocked: dict[int, int],
    needs: list[list[tuple[Need, ...]]],
    position: list[int],
    now: float,
) -> str:
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
