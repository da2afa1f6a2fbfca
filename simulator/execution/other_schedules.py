"""Name the schedules that fit, for a job whose own does not take its micro-batches or memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hardware_profiles.units import Bytes
from simulator.workload.layout import StageLayers, each_even_split
from simulator.workload.memory import MemoryModel
from simulator.workload.schedules.known import SCHEDULES, build_schedule
from simulator.workload.schedules.order import Schedule


def fitting_schedules(
    layers: StageLayers,
    *,
    ranks: int,
    microbatches: int,
    model_of: Callable[[Schedule], MemoryModel],
    capacity: Bytes,
) -> list[str]:
    """Schedules that take so many micro-batches on so many ranks and leave every GPU room, with as
    many stages as they have by default and some split of the layers.

    Args:
        layers: every layer of the model in forward order.
        model_of: the memory of a job with another schedule.
        capacity: memory of a GPU.
    """

    def fits(name: str) -> bool:
        try:
            schedule = build_schedule(name, ranks, microbatches, virtual_stages=None)
            return _has_room(layers, model_of(schedule), capacity)
        except ValueError:  # Sizes that it does not take, or more stages than layers.
            return False

    return [name for name in SCHEDULES if fits(name)]


def _has_room(layers: StageLayers, model: MemoryModel, capacity: Bytes) -> bool:
    """Whether any even split fits with every weight gradient computed at once."""
    schedule, immediate = model.schedule, tuple(model.matrices())

    def has_room(rank: int, split: Sequence[StageLayers]) -> bool:
        return model.total(rank, split, immediate) <= capacity

    def room(stage: int, split: Sequence[StageLayers]) -> bool:
        return all(has_room(rank, split) for rank in {each[stage] for each in schedule.placement})

    ranks = range(schedule.ranks)
    held = tuple(dict.fromkeys(map(schedule.stages_of, ranks)))
    saved = {kind: float(layer.saved) for kind, layer in model.layers.items()}
    # Stages that none of the usual layers went to, the head's alone, have not been asked yet.
    splits = each_even_split(layers, held, saved, room)
    return any(all(has_room(rank, split) for rank in ranks) for split in splits)
