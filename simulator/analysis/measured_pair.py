"""A simulated pair beside one that was measured, composed of its operators' measured times.

`python -m reference_model pair` writes the rows: whole pairs, and every operator in the pair, alone
and with the other stream beside it all the time. From them a pair follows by its order, in three
ways: every task takes what it takes alone; the streams slow each other while both run; and, which
predicts nothing but shows what the order itself misses, every task takes what it took in the pair.
In the first two a transfer ends on all ranks when the last is through, of those whose operators the
table has, and the pair is replayed as it was when it was measured.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hardware_profiles.tables import Measurement
from hardware_profiles.units import Seconds
from simulator.execution.timeline import Log, Times, replay_side_by_side, run
from simulator.workload.task_graph import TaskGraph

PAIR = "pair"


@dataclass(frozen=True, slots=True)
class MeasuredPair:
    """One rank's pair, measured and composed."""

    rank: int
    seconds: Seconds
    exposed_s: Seconds
    """Of it, communication that nothing hid."""
    alone: Log
    """Every operator as long as alone."""
    side_by_side: Log | None
    """Both streams slow each other; None where that was not measured."""
    as_paired: Log
    """Every operator as long as in the pair."""


def measured_pairs(
    graph: TaskGraph, rows: Iterable[Measurement], *, tokens: int, communication_sms: int
) -> list[MeasuredPair]:
    """The pairs of a table that have these tokens and SMs, of each rank whose operators it has.

    Raises:
        ValueError: there is none, or the table lacks an operator of the graph.
    """
    sizes = (("communication_sms", communication_sms), ("tokens", tokens))
    wholes: dict[int, Measurement] = {}
    others: dict[str, None] = {}
    operators: dict[int, dict[tuple[str, str, str], Measurement]] = {}
    for row in rows:
        rank = int(row.condition("rank", "0"))
        if row.kind == PAIR and row.sizes == sizes:
            wholes[rank] = row
        elif row.kind == PAIR:
            others[", ".join(f"{name}={value}" for name, value in row.sizes)] = None
        elif all(row.condition(name) == str(value) for name, value in sizes):
            key = (row.condition("stream"), row.condition("phase"), row.condition("operator"))
            operators.setdefault(rank, {})[key] = row
    if not wholes:
        raise ValueError(
            f"no pair with communication_sms={communication_sms}, tokens={tokens} was measured; "
            f"allowed: {'; '.join(others) or 'a table with rows of kind pair'}"
        )
    timed = {rank: whole for rank, whole in sorted(wholes.items()) if rank in operators}
    keys = [
        (str(task.stream), operator.phase, operator.name)
        for task, operator in zip(graph.tasks, graph.task_operators(), strict=True)
    ]
    for rank in timed:
        missing = [key for key in keys if key not in operators[rank]]
        if missing:
            raise ValueError(
                f"rank {rank}, {dict(sizes)}: no row of operator {missing[0][2]} "
                f"({missing[0][1]}, {missing[0][0]} stream)"
            )

    def times(condition: str) -> Times:
        return np.array(
            [
                [float(operators[rank][key].condition(condition, "nan")) for key in keys]
                for rank in timed
            ]
        )

    # The gap before an operator is part of its measured time.
    alone_s, beside_s = times("alone_s"), times("beside_s")
    alone = replay_side_by_side(graph, alone_s=alone_s, beside_s=alone_s)
    side_by_side: list[Log] | None = None
    if not np.isnan(beside_s).any():
        side_by_side = replay_side_by_side(graph, alone_s=alone_s, beside_s=beside_s)
    return [
        MeasuredPair(
            rank,
            whole.seconds,
            float(whole.condition("exposed_s")),
            alone=alone[place],
            side_by_side=None if side_by_side is None else side_by_side[place],
            as_paired=run(graph, np.array([operators[rank][key].seconds for key in keys]), 0.0),
        )
        for place, (rank, whole) in enumerate(timed.items())
    ]
