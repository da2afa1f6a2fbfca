"""What memory and time of a pipeline schedule rest on, whatever the layers of its stages are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reference_model.pipeline_actions import FORWARD_WORK, OVERLAPPED, WEIGHT_GRADIENT
from simulator.workload.schedules.held import held_activations
from simulator.workload.schedules.known import build_schedule
from simulator.workload.schedules.order import Schedule


@dataclass(frozen=True, slots=True)
class HeldAtLeast:
    """Micro-batches whose activations a rank keeps at its fullest moment, at least."""

    stages: int
    """Of the rank."""
    of_any: float
    """For each layer, whichever of its stages it lies on."""
    of_one_each: float
    """For one layer on every stage, together."""
    of_further: float
    """For each layer beyond these, at that moment."""

    def times(self, factor: float) -> HeldAtLeast:
        """What so many times as many micro-batches hold."""
        return HeldAtLeast(
            self.stages,
            factor * self.of_any,
            factor * self.of_one_each,
            factor * self.of_further,
        )


@dataclass(frozen=True, slots=True)
class ScheduleFacts:
    """What memory and time of a schedule rest on, whatever its layers are.

    Beyond twice as many micro-batches as ranks, each further one adds the same actions to every
    rank, so that a short schedule says it of a long one.
    """

    schedule: Schedule = field(repr=False)
    """The short one."""
    microbatches: int
    """Of the long one."""
    held: tuple[HeldAtLeast, ...]
    """Of the ranks that hold the same stages, those that keep most."""
    pairs: tuple[float, float]
    """Least and largest share of a stage's chunks that run in overlapped pairs."""
    works: frozenset[str]
    holders: tuple[int, ...]
    """Ranks that hold the stages of the first rank."""
    crossings: int
    """Times that a micro-batch passes from one rank to another, forward."""


@cache
def stages_each(name: str, virtual_stages: int | None) -> int:
    """Stages on each GPU of a pipeline with a schedule."""
    schedule = build_schedule(name, 2, 8, virtual_stages=virtual_stages)
    return schedule.stages // schedule.ranks


@cache
def schedule_facts(
    name: str, virtual_stages: int | None, ranks: int, microbatches: int
) -> ScheduleFacts:
    """Facts of a schedule, from a short one of the same kind.

    Raises:
        ValueError: sizes that it does not take.
    """
    # An odd number of micro-batches stays odd. In groups of stages the smallest groups keep least.
    short = min(microbatches, 2 * ranks + (microbatches % 2 if virtual_stages is None else 0))
    uneven = virtual_stages not in (None, 1) and microbatches % ranks > 0
    if uneven and microbatches <= 8 * ranks:
        short = microbatches
    schedule, held, lone, works = _of_short_schedule(name, virtual_stages, ranks, short)
    grows = microbatches / short if name == "gpipe" else 1.0
    pairs = 0.0, 0.0
    if OVERLAPPED in works:
        each = microbatches / schedule.directions
        pairs = 1.0 - max(lone) / each, 1.0 - min(lone) / each
        if uneven and short < microbatches:
            pairs = 0.0, pairs[1]
    return ScheduleFacts(
        schedule,
        microbatches,
        tuple(kept.times(grows) for kept in held),
        pairs,
        works,
        holders_of_first(name, virtual_stages, ranks),
        sum(here != there for here, there in pairwise(schedule.placement[0])),
    )


@cache
def holders_of_first(name: str, virtual_stages: int | None, ranks: int) -> tuple[int, ...]:
    """Ranks that hold the same stages as the first, itself among them."""
    placement = build_schedule(name, ranks, 2 * ranks, virtual_stages=virtual_stages).placement
    of_first = [stage for placed in placement for stage, rank in enumerate(placed) if rank == 0]
    return tuple(sorted({placed[stage] for placed in placement for stage in of_first}))


@cache
def _of_short_schedule(
    name: str, virtual_stages: int | None, ranks: int, microbatches: int
) -> tuple[Schedule, tuple[HeldAtLeast, ...], frozenset[int], frozenset[str]]:
    """A schedule, what its ranks keep, how many forwards or backwards of a stage run outside
    pairs, of any stage, and its works."""
    schedule = build_schedule(name, ranks, microbatches, virtual_stages=virtual_stages)
    kept: dict[tuple[int, ...], HeldAtLeast] = {}
    lone: set[int] = set()
    for rank, row in enumerate(schedule.actions):
        held = held_activations(schedule, rank)
        at_once = held.whole.sum(axis=1)
        fullest = held.whole[int(np.argmax(at_once))]
        own = HeldAtLeast(
            len(held.stages),
            least_of_layers(held.whole),
            float(fullest.sum()),
            float(fullest.min()),
        )
        former = kept.get(held.stages)
        if former is None or own.of_one_each > former.of_one_each:
            kept[held.stages] = own
        alone = Counter(
            (chunk.work == FORWARD_WORK, chunk.stage)
            for action in row
            if action.overlapped is None
            for chunk in action.chunks
            if chunk.work != WEIGHT_GRADIENT
        )
        lone |= {alone[forward, stage] for stage in held.stages for forward in (True, False)}
    works = frozenset(action.work for row in schedule.actions for action in row)
    return schedule, tuple(kept.values()), frozenset(lone), works


def least_of_layers(held: NDArray[np.int64]) -> float:
    """The most that is held at once of a layer, at least, if layers lie on the stages as they may.

    Layers in any shares f of the stages make max over actions of held @ f. Any weights q of the
    actions, q @ held, bound that from below by the least of its entries, whatever f is; q that is
    near the best is found by playing both sides against each other.

    Args:
        held: [actions, stages], micro-batches.
    """
    if held.shape[1] == 1:
        return float(held.max(initial=0))
    rows = np.unique(held, axis=0)
    beaten = (rows[:, None] <= rows[None]).all(axis=2).sum(axis=1) > 1
    rows = rows[~beaten]
    played = np.zeros(len(rows))
    shares = np.ones(rows.shape[1])
    best = 0.0
    for _ in range(50):
        played[int(np.argmax(rows @ shares))] += 1
        answer = played @ rows
        shares[int(np.argmin(answer))] += 1
        best = max(best, float(answer.min() / played.sum()))
    return best
