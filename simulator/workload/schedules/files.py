"""Read a schedule from a file, in the form in which `dsv3sim show schedule` prints one.

One line for each rank, in order: "rank 0 (stage 0) | 0F0 0F1 0B0 ...". What stands in brackets is
for the reader; blank lines and lines that begin with # are passed over. Where the micro-batches of
the first half and those of the second pass other ranks, the pipeline has two directions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path

from hardware_profiles.whole_files import read_text
from reference_model.pipeline_actions import Action, parse_action
from simulator.workload.schedules.checks import check_schedule
from simulator.workload.schedules.order import Schedule

_ROW = re.compile(r"\s*rank\s+(\d+)\s*(?:\([^)]*\))?\s*\|(.*)")


def is_schedule_file(name: str) -> bool:
    """Whether the name of a schedule is a path: names have neither a slash nor a dot."""
    return "/" in name or "." in name


def read_schedule(path: Path) -> Schedule:
    """Read a schedule and check it.

    Raises:
        ValueError: one line with the file, the line in it, what is wrong and what is allowed.
    """
    try:
        lines = read_text(path, where=str(path)).splitlines()
    except ValueError as error:
        raise ValueError(
            f"{error}; allowed: a schedule as `dsv3sim show schedule` prints it"
        ) from None
    rows: list[tuple[Action, ...]] = []
    line_of: list[int] = []
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            rows.append(_row(line, rank=len(rows), where=f"{path}, line {number}"))
            line_of.append(number)
    if not rows:
        raise ValueError(f"{path}: has no rank; allowed: lines such as 'rank 0 | 0F0 0B0'")
    schedule = Schedule(
        name=path.stem,
        microbatches=1 + max(c.microbatch for row in rows for a in row for c in a.chunks),
        placement=_placement(rows, [f"{path}, line {number}" for number in line_of]),
        actions=tuple(rows),
    )
    try:
        check_schedule(schedule)
    except ValueError as error:
        problem = str(error).splitlines()[0].removeprefix(f"schedule {schedule.name}: ")
        of_rank = re.search(r"on rank (\d+)", problem)
        line = f", line {line_of[int(of_rank[1])]}" if of_rank else ""
        raise ValueError(f"{path}{line}: {problem}") from None
    return schedule


def _row(line: str, *, rank: int, where: str) -> tuple[Action, ...]:
    """The actions of one rank."""
    found = _ROW.fullmatch(line)
    if found is None:
        raise ValueError(f"{where}: {line.strip()!r}; allowed: 'rank {rank} | 0F0 0B0 ...'")
    if int(found[1]) != rank:
        raise ValueError(f"{where}: rank {found[1]}; allowed: rank {rank}, ranks in order from 0")
    if not found[2].strip():
        raise ValueError(f"{where}: rank {rank} has no action; allowed: at least one")
    try:
        return tuple(parse_action(text) for text in found[2].split())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _placement(rows: Iterable[tuple[Action, ...]], where: list[str]) -> tuple[tuple[int, ...], ...]:
    """[direction, stage]: the rank that runs a stage; one direction where all micro-batches agree.

    Raises:
        ValueError: a stage that no rank runs, or that two ranks run for micro-batches of one half.
    """
    chunks = [
        (rank, chunk) for rank, row in enumerate(rows) for action in row for chunk in action.chunks
    ]
    path = where[0].rpartition(", line")[0]
    stages = _from_zero({chunk.stage for _, chunk in chunks}, "stage", path)
    microbatches = _from_zero({chunk.microbatch for _, chunk in chunks}, "micro-batch", path)
    for directions in (1, 2):
        placed: dict[tuple[int, int], int] = {}
        clash = None
        for rank, chunk in chunks:
            direction = chunk.microbatch * directions // microbatches
            if placed.setdefault((direction, chunk.stage), rank) != rank:
                clash = clash or (
                    f"{where[rank]}: {chunk} runs on rank {rank}, others of stage {chunk.stage} on "
                    f"rank {placed[direction, chunk.stage]}; allowed: one rank for each stage, or "
                    "one for either half of the micro-batches"
                )
        if clash is None:
            break
    if clash is not None:
        raise ValueError(clash)
    unplaced = {(d, stage) for d in range(directions) for stage in range(stages)} - placed.keys()
    if unplaced:
        direction, stage = min(unplaced)
        half = ("first", "second")[direction]
        raise ValueError(f"{path}: no micro-batch of the {half} half passes stage {stage}")
    return tuple(
        tuple(placed[direction, stage] for stage in range(stages))
        for direction in range(directions)
    )


def _from_zero(numbers: Collection[int], what: str, path: str) -> int:
    """How many there are, where they are 0, 1, 2 and so on."""
    missing = next(number for number in count() if number not in numbers)
    if missing < len(numbers):
        raise ValueError(
            f"{path}: no action of {what} {missing}, though of {max(numbers)}; allowed: numbers "
            "from 0 on"
        )
    return missing
