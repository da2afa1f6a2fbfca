"""Count the activations that a schedule keeps on each rank."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key
from reference_model.pipeline_actions import FORWARD_WORK, INPUT_BACKWARD, WEIGHT_GRADIENT
from simulator.workload.schedules.order import Schedule


@dataclass(frozen=True, slots=True)
class HeldActivations:
    """Activations that one rank holds during each of its actions, counted in stage chunks."""

    stages: tuple[int, ...]
    """Stages of the rank, ascending: the columns of the two arrays."""
    whole: NDArray[np.int64]
    """[action, stage]: micro-batches whose input gradient is still to come or just running."""
    deferred: NDArray[np.int64]
    """[action, stage]: micro-batches that only a deferred weight gradient still needs."""


def held_activations(schedule: Schedule, rank: int) -> HeldActivations:
    """Count what a rank holds during each action: an F fills a chunk, a B or a W empties it.

    After an I a chunk counts as deferred. The bytes of the two kinds differ by stage and model.
    """
    return _held(object_key(schedule), rank)


@lru_cache(maxsize=256)
def _held(of_schedule: Keyed[Schedule], rank: int) -> HeldActivations:
    """Counted once for scenarios that share a schedule."""
    schedule = of_schedule.value
    stages = schedule.stages_of(rank)
    column = {stage: i for i, stage in enumerate(stages)}
    actions = schedule.actions[rank]
    # Row k of a change takes effect with action k; what an action frees is free from k + 1 on.
    whole = np.zeros((len(actions) + 1, len(stages)), dtype=np.int64)
    deferred = np.zeros_like(whole)
    for index, action in enumerate(actions):
        for work, stage, _ in action.chunks:
            if work == FORWARD_WORK:
                whole[index, column[stage]] += 1
            elif work == WEIGHT_GRADIENT:
                deferred[index + 1, column[stage]] -= 1
            else:
                whole[index + 1, column[stage]] -= 1
                if work == INPUT_BACKWARD:
                    deferred[index + 1, column[stage]] += 1
    return HeldActivations(stages, whole.cumsum(axis=0)[:-1], deferred.cumsum(axis=0)[:-1])


def peak_in_flight(schedule: Schedule) -> tuple[int, ...]:
    """Most stage chunks whose activations a rank holds at once, whole or deferred; one per rank."""
    held = (held_activations(schedule, rank) for rank in range(schedule.ranks))
    return tuple(int((h.whole + h.deferred).sum(axis=1).max(initial=0)) for h in held)
