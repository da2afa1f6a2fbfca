"""Check that a schedule is complete, placed, ordered and free of deadlock."""

from collections import deque
from collections.abc import Mapping

from reference_model.pipeline_actions import (
    FORWARD_WORK,
    FULL_BACKWARD,
    OVERLAPPED,
    WORKS,
    Action,
    Chunk,
)
from simulator.workload.schedules.grid import render_window
from simulator.workload.schedules.order import Need, Schedule


def check_schedule(schedule: Schedule) -> None:
    """Check that a schedule is complete, placed, ordered and free of deadlock.

    Every micro-batch passes each stage once forward and once backward (B, or I and later W), on the
    rank of its direction; a pair is F and B of different micro-batches; a dry run performs all.
    Raises ValueError: one line on what is wrong, then the actions around the failing cell.
    """
    seen: dict[Chunk, tuple[int, int]] = {}
    for rank, actions in enumerate(schedule.actions):
        for index, action in enumerate(actions):
            problem = _local_problem(schedule, rank, action) or next(
                (
                    f"{chunk} is performed twice, must be once"
                    for chunk in action.chunks
                    if chunk in seen
                ),
                None,
            )
            if problem is not None:
                raise ValueError(_with_grid(schedule, problem, {rank: index}))
            seen.update(dict.fromkeys(action.chunks, (rank, index)))
    for microbatch in range(schedule.microbatches):
        for stage in range(schedule.stages):
            _check_passes(schedule, seen, stage, microbatch)
    blocked = _dry_run(schedule)
    if blocked:
        # Ranks that wait for each other in a circle hold up the others.
        rank, passed = next(iter(blocked)), set[int]()
        while rank not in passed:
            passed.add(rank)
            rank = blocked[rank][1].rank
        index, need = blocked[rank]
        problem = (
            f"{schedule.actions[rank][index]} on rank {rank} can never start: it waits for "
            f"{schedule.actions[need.rank][need.position]} on rank {need.rank}, which must come "
            "before it"
        )
        marks = {rank: index for rank, (index, _) in blocked.items()}
        raise ValueError(_with_grid(schedule, problem, marks))


def _local_problem(schedule: Schedule, rank: int, action: Action) -> str | None:
    """What is wrong with one action taken alone."""
    for chunk in action.chunks:
        if chunk.work not in WORKS or chunk.work == OVERLAPPED:
            return f"{action} on rank {rank}: work {chunk.work!r} must be F, B, I or W"
        inside = (
            0 <= chunk.stage < schedule.stages and 0 <= chunk.microbatch < schedule.microbatches
        )
        if not inside:
            return (
                f"{action} on rank {rank}: stages are 0..{schedule.stages - 1}, "
                f"micro-batches 0..{schedule.microbatches - 1}"
            )
        if schedule.rank_of(chunk) != rank:
            return f"{chunk} on rank {rank} belongs to rank {schedule.rank_of(chunk)}"
    if action.overlapped is not None:
        if (action.chunk.work, action.overlapped.work) != (FORWARD_WORK, FULL_BACKWARD):
            return f"{action} on rank {rank}: a pair overlaps an F with a B"
        if action.chunk.microbatch == action.overlapped.microbatch:
            return f"{action} on rank {rank}: a pair needs two different micro-batches"
    return None


def _check_passes(
    schedule: Schedule, seen: Mapping[Chunk, tuple[int, int]], stage: int, microbatch: int
) -> None:
    """Raise ValueError unless a micro-batch passes a stage once forward and once backward."""
    f, b, i, w = (seen.get(Chunk(work, stage, microbatch)) for work in "FBIW")
    rank = schedule.rank_of(Chunk(FORWARD_WORK, stage, microbatch))
    what = f"micro-batch {microbatch} on stage {stage}"
    problem, mark = None, f or b or i or w
    if f is None:
        problem = f"{what} has no forward, must have one F"
    elif (b is None) == (i is None):
        problem = f"{what} must have one backward, a B or an I with its W"
    elif (i is None) != (w is None):
        alone = "an I without its W" if w is None else "a W without its I"
        problem = f"{what} has {alone}, must have a B or both"
        mark = i or w
    elif i is not None and w is not None and w < i:
        problem, mark = f"{what} has its W before its I, must have it after", w
    if problem is not None:
        marks = {rank: 0} if mark is None else dict([mark])
        raise ValueError(_with_grid(schedule, problem, marks))


def _dry_run(schedule: Schedule) -> dict[int, tuple[int, Need]]:
    """Perform the actions in any order that respects dependencies.

    Where that stops: {rank: (index of the action that cannot start, what it waits for)}.
    """
    needs = schedule.needs
    done = [0] * schedule.ranks
    waiting: list[list[int]] = [[] for _ in range(schedule.ranks)]
    runnable = deque(range(schedule.ranks))
    while runnable:
        rank = runnable.popleft()
        before = done[rank]
        while done[rank] < len(needs[rank]):
            missing = next((n for n in needs[rank][done[rank]] if done[n.rank] <= n.position), None)
            if missing is not None:
                waiting[missing.rank].append(rank)
                break
            done[rank] += 1
        if done[rank] > before:
            # Ranks that waited for this one look again, and wait again if it is still too early.
            runnable.extend(waiting[rank])
            waiting[rank] = []
    stopped = {rank: index for rank, index in enumerate(done) if index < len(needs[rank])}
    return {
        rank: (index, next(n for n in needs[rank][index] if done[n.rank] <= n.position))
        for rank, index in stopped.items()
    }


def _with_grid(schedule: Schedule, problem: str, marks: Mapping[int, int]) -> str:
    return f"schedule {schedule.name}: {problem}\n{render_window(schedule, marks, reach=6)}"
