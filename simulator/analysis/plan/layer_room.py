"""Which layouts cannot fit memory, however the layers are split into stages."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes
from simulator.analysis.plan.schedule_facts import ScheduleFacts
from simulator.workload.sharding import HeldParameters, Sharding

Sizes = NDArray[np.float64]


def state_of_layers(sharding: Sharding, layer: HeldParameters) -> tuple[Bytes, Bytes]:
    """Weights, gradients and optimizer state of equal layers, at least: what each of them adds, and
    what there is once where there is any.

    What is on its way is that of one layer, or of two neighbours from the second on.

    Args:
        layer: parameters of one on a GPU.
    """
    one, two, three = (state_bytes(sharding, layer, count) for count in (1, 2, 3))
    each = three - two
    return each, one - each


def fewest_on_the_fullest(
    facts: ScheduleFacts,
    *,
    each: Sizes,
    once: Sizes,
    usual: int,
    others: int,
    capacity: Bytes,
    saved: Sizes,
    workspace: Sizes,
) -> NDArray[np.int64]:
    """How many of the usual layers of a model the rank with most of them holds at least, in any
    split that fits; -1 where none does. [layouts] that share a schedule.

    A rank holds at most as many as leave its memory room, and what some have no room for others
    hold; where all together hold fewer than the model has, no split fits. A rank without room for
    one on every stage leaves a stage to other layers, of which a model has few. Embedding, head and
    the like would only need more.

    Args:
        each, once: state of equal layers, as of `state_of_layers`; [layouts].
        usual: how many the model has.
        others: how many other layers it has.
        capacity: memory of a GPU but what is reserved.
        saved: activations of one layer and micro-batch, [layouts].
        workspace: of its largest operator, [layouts].
    """
    stages, of_any, of_one_each, of_further = (
        np.array([getattr(kept, name) for kept in facts.held], dtype=np.float64)[:, None]
        for name in ("stages", "of_any", "of_one_each", "of_further")
    )
    room = capacity - workspace - once

    def fit(layers: Sizes) -> NDArray[np.bool_]:
        """[ranks, layouts], whether so many layers have room on a rank, one on every stage."""
        kept = np.maximum(layers * of_any, of_one_each + (layers - stages) * of_further)
        room_left: NDArray[np.bool_] = layers * each + kept * saved <= room
        return room_left

    fits = fit(np.broadcast_to(stages, np.broadcast_shapes(stages.shape, np.shape(room))))
    with np.errstate(divide="ignore", invalid="ignore"):
        any_stage = room / (each + of_any * saved)
        one_each = (room - (of_one_each - stages * of_further) * saved) / (
            each + of_further * saved
        )
        squeezed_most = np.maximum(0.0, np.floor_divide(room, each + of_any * saved))
    # Lines in the number of layers, rounded: the next number and this one are looked at.
    most = np.clip(np.floor(np.minimum(any_stage, one_each)), 0, usual)
    most = most + fit(most + 1)
    most = most - ~fit(most)
    most = np.where(fits, np.maximum(np.minimum(most, usual), stages), squeezed_most)
    squeezed = (~fits).sum(axis=0)
    fewer = np.arange(usual)[:, None, None]
    too_few = np.minimum(most[None], fewer).sum(axis=1) < usual
    return np.where(
        (squeezed > others) | (most.sum(axis=0) < usual), -1, too_few.sum(axis=0, dtype=np.intp)
    )


def state_bytes(sharding: Sharding, layer: HeldParameters, count: int) -> Bytes:
    """Weights, gradients and optimizer state of so many equal layers on a GPU."""
    held = sum((layer for _ in range(count)), HeldParameters())
    stages = [[layer] * count]
    return (
        sharding.weight_bytes(held, stages)
        + sharding.gradient_bytes(held, stages)
        + sharding.optimizer_bytes(held)
    )
