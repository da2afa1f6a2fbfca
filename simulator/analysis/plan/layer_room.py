"""Which layouts cannot fit memory, however the layers are split into stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hardware_profiles.units import Bytes
from simulator.analysis.plan.schedule_facts import HeldAtLeast, ScheduleFacts
from simulator.workload.sharding import HeldParameters, Sharding


@dataclass(frozen=True, slots=True)
class StateBytes:
    """State of equal layers on a GPU: `each` for every layer, and `once` where there is any."""

    each: Bytes
    once: Bytes


def state_of_layers(sharding: Sharding, layer: HeldParameters) -> StateBytes:
    """Weights, gradients and optimizer state of equal layers, at least.

    What is on its way is that of one layer, or of two neighbours from the second on.

    Args:
        layer: parameters of one on a GPU.
    """
    one, two, three = (state_bytes(sharding, layer, count) for count in (1, 2, 3))
    each = three - two
    return StateBytes(each, one - each)


def fewest_on_the_fullest(
    facts: ScheduleFacts,
    state: StateBytes,
    *,
    usual: int,
    others: int,
    capacity: Bytes,
    saved: Bytes = 0.0,
    workspace: Bytes = 0.0,
) -> int | None:
    """How many of the usual layers of a model the rank with most of them holds at least, in any
    split that fits; None where none does.

    A rank holds at most as many as leave its memory room, and what some have no room for others
    hold; where all together hold fewer than the model has, no split fits. A rank without room for
    one on every stage leaves a stage to other layers, of which a model has few. Embedding, head and
    the like would only need more.

    Args:
        usual: how many the model has.
        others: how many other layers it has.
        capacity: memory of a GPU but what is reserved.
        saved: activations of one layer and micro-batch.
        workspace: of its largest operator.
    """
    room = capacity - workspace - state.once

    def fits(kept: HeldAtLeast, layers: int) -> bool:
        return layers * state.each + kept.of(layers) * saved <= room

    most = []
    for kept in facts.held:
        if fits(kept, kept.stages):
            most.append(_most(partial(fits, kept), kept.stages, usual))
        else:
            most.append(max(0, int(room // (state.each + kept.of_any * saved))))
    squeezed = sum(not fits(kept, kept.stages) for kept in facts.held)
    if squeezed > others or sum(most) < usual:
        return None
    return next(n for n in range(usual + 1) if sum(min(each, n) for each in most) >= usual)


def _most(fits: Callable[[int], bool], least: int, most: int) -> int:
    """The most that fit, of those from `least`, which fits, to `most`."""
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(middle) else (least, middle - 1)
    return least


def state_bytes(sharding: Sharding, layer: HeldParameters, count: int) -> Bytes:
    """Weights, gradients and optimizer state of so many equal layers on a GPU."""
    held = sum((layer for _ in range(count)), HeldParameters())
    stages = [[layer] * count]
    return (
        sharding.weight_bytes(held, stages)
        + sharding.gradient_bytes(held, stages)
        + sharding.optimizer_bytes(held)
    )
