"""Print a schedule as text, whole or around some of its actions."""

from collections.abc import Mapping

from simulator.workload.schedules.order import Schedule


def render_grid(schedule: Schedule) -> str:
    """One row per rank, one cell per action in order; the stages of the rank come first."""
    header, rows = _row_headers(schedule), schedule.actions
    width = max((len(str(action)) for row in rows for action in row), default=0)
    return "\n".join(
        f"{head} | {' '.join(str(action).ljust(width) for action in row).rstrip()}"
        for head, row in zip(header, rows, strict=True)
    )


def render_window(schedule: Schedule, marks: Mapping[int, int], *, reach: int) -> str:
    """The actions within `reach` of a marked one ({rank: index}), which is set in >>...<<.

    Ranks without a mark show the same columns as the first marked rank.
    """
    centre = next(iter(marks.values()), 0)
    lines = []
    for rank, (head, row) in enumerate(zip(_row_headers(schedule), schedule.actions, strict=True)):
        middle = min(marks.get(rank, centre), max(len(row) - 1, 0))
        first, end = max(middle - reach, 0), min(middle + reach + 1, len(row))
        cells = [
            f">>{row[i]}<<" if marks.get(rank) == i else str(row[i]) for i in range(first, end)
        ]
        before = f"({first} before) " if first else ""
        after = f" ({len(row) - end} after)" if end < len(row) else ""
        lines.append(f"{head} | {before}{' '.join(cells)}{after}")
    return "\n".join(lines)


def _row_headers(schedule: Schedule) -> list[str]:
    word = "half-stages" if schedule.name == "dualpipev" else "stages"
    held = [schedule.stages_of(rank) for rank in range(schedule.ranks)]
    texts = [
        f"rank {rank} ({word if len(stages) > 1 else 'stage'} "
        f"{', '.join(str(stage) for stage in _in_order_of_use(schedule, rank, stages))})"
        for rank, stages in enumerate(held)
    ]
    width = max(len(text) for text in texts)
    return [text.ljust(width) for text in texts]


def _in_order_of_use(schedule: Schedule, rank: int, stages: tuple[int, ...]) -> list[int]:
    """Stages of a rank, that of direction 0 first where there are two directions."""
    if schedule.directions == 1:
        return list(stages)
    return [placed.index(rank) for placed in schedule.placement]
