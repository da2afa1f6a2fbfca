"""Choose which layers each pipeline stage holds, so that the step is as short as it can be.

The splits that keep ranks or stages even, and fit memory, are found from the cost of one layer:
what it adds to a chunk of its kind in each work of the schedule, by the kernel model, communication
and streams of the run itself. A pipeline of those sums sorts them. The first few then run with the
times of their own chunks, since what an overlapped pair hides depends on both of its chunks. Of
those that end first, or nearly so, the one with the most even stages is taken. Nothing is drawn or
tuned: a job has one split, that of ideal ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hardware_profiles.units import Bytes, Seconds
from reference_model.pipeline_actions import FORWARD_WORK, FULL_BACKWARD, OVERLAPPED, Action
from simulator.execution.pipeline import run_pipeline
from simulator.execution.training_chunks import ChunkKey, chunk_key
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.workload.layout import StageLayers, even_splits
from simulator.workload.schedules.order import Schedule

SHORTLIST = 8
"""Splits that run with the times of their own chunks."""

AT_ONCE = 2**21
"""Actions times splits that run in one pass, so that their times fit memory."""

NEARLY = 1.01
"""Ends that are no later than this times the first are as good: kernel times are not known to a
hundredth. Of such splits one is taken whose dearest stage is, to half a layer, the least dear."""

SpansOf = Callable[[Iterable[ChunkKey]], Mapping[ChunkKey, Seconds]]
"""Distinct chunks or pairs -> how long each takes."""

LayerCosts = Mapping[tuple[str, str], Seconds]
"""{(work, layer kind): of one layer}; F and B inside a pair are works of their own."""

StageSplit = tuple[StageLayers, ...]


def _works(action: Action) -> tuple[tuple[str, int], ...]:
    """Work and stage of each chunk of an action, F and B inside a pair as "F of F&B"."""
    paired = action.overlapped is not None
    return tuple((_inside(c.work) if paired else c.work, c.stage) for c in action.chunks)


def _inside(work: str) -> str:
    return f"{work} of {OVERLAPPED}"


@dataclass(frozen=True, slots=True)
class PipelineTimes:
    """When the pipeline of a split ends: by its own chunks, or by the sum of its layers' costs."""

    schedule: Schedule
    spans_of: SpansOf
    loads: Sequence[FabricLoad]
    """[rank], what the fabric makes of dispatch and combine there."""
    transfers_s: Mapping[tuple[int, int], Seconds]
    """{(rank that sends, rank that receives): of the activations of one micro-batch}"""
    blocking_sends: bool
    """Whether a rank waits for its sends before its next action."""
    staggered: bool
    """As of PipelineRun."""

    def of_own_chunks(self, splits: Sequence[StageSplit]) -> list[Seconds]:
        """End of the pipeline of every split, each distinct chunk run operator by operator."""
        keys = {
            (rank, action): [chunk_key(split, action, load=self.loads[rank]) for split in splits]
            for rank, action in self.schedule.alike.firsts
        }
        spans = self.spans_of(key for of_splits in keys.values() for key in of_splits)
        return self._ends(lambda *place: [spans[key] for key in keys[place]])

    def of_layers(self, splits: Sequence[StageSplit], costs: LayerCosts) -> list[Seconds]:
        """End of the pipeline of every split if a chunk takes what its layers cost."""
        known: dict[tuple[tuple[str, StageLayers], ...], Seconds] = {}

        def seconds(works: tuple[tuple[str, int], ...], split: StageSplit) -> Seconds:
            chunks = tuple((work, split[stage]) for work, stage in works)
            if chunks not in known:
                known[chunks] = sum(costs[work, kind] for work, layers in chunks for kind in layers)
            return known[chunks]

        def of_splits(rank: int, action: Action) -> list[Seconds]:
            works = _works(action)
            return [seconds(works, split) for split in splits]

        return self._ends(of_splits)

    def layer_costs(self, kinds: Sequence[str]) -> LayerCosts:
        """What a second layer of a kind adds to a chunk of one, in every work of the schedule.

        So dispatch and combine count for as long as nothing hides them. What a layer adds to a pair
        of like chunks is shared between forward and backward as the two would take alone. Where the
        fabric slows some ranks, the cost is that of the usual rank.
        """
        usual = Counter(self.loads).most_common(1)[0][0]

        def per_layer(work: str) -> dict[str, Seconds]:
            def key(layers: StageLayers) -> ChunkKey:
                forward = layers if work in (FORWARD_WORK, OVERLAPPED) else ()
                return ChunkKey(work, forward, () if work == FORWARD_WORK else layers, usual)

            spans = self.spans_of([key((kind,) * count) for kind in kinds for count in (1, 2)])
            return {
                kind: max(0.0, spans[key((kind, kind))] - spans[key((kind,))]) for kind in kinds
            }

        works = {action.work for _, action in self.schedule.alike.firsts}
        found = {work: per_layer(work) for work in sorted(works)}
        if OVERLAPPED in works:
            alone = {work: per_layer(work) for work in (FORWARD_WORK, FULL_BACKWARD)}
            both = {kind: sum(costs[kind] for costs in alone.values()) for kind in kinds}
            for work, costs in alone.items():
                found[_inside(work)] = {
                    kind: found[OVERLAPPED][kind] * costs[kind] / (both[kind] or 1.0)
                    for kind in kinds
                }
        return {(work, kind): cost for work, costs in found.items() for kind, cost in costs.items()}

    def _ends(self, seconds: Callable[[int, Action], Sequence[Seconds]]) -> list[Seconds]:
        """End of the pipeline of every split, whose actions take `seconds(rank, action)`: [split],
        asked once of those that are alike."""
        alike = self.schedule.alike
        different = np.array([seconds(*first) for first in alike.firsts])
        places = list(alike.places)
        at_once = max(1, AT_ONCE // max(1, len(places)))
        found: list[Seconds] = []
        for first in range(0, different.shape[1], at_once):
            run = run_pipeline(
                self.schedule,
                different[places, first : first + at_once],
                transfer_s=self.transfers_s,
                blocking_sends=self.blocking_sends,
                staggered=self.staggered,
            )
            found += run.makespans_s.tolist()
        return found


def choose_stages(
    layers: StageLayers,
    times: PipelineTimes,
    *,
    rank_bytes: Callable[[int, Sequence[StageLayers]], Bytes],
    capacity: Bytes,
) -> StageSplit:
    """The split of a model into the stages of a schedule whose pipeline ends first, or nearly so.

    Args:
        layers: every layer of the model in forward order.
        rank_bytes: (rank, layers of every stage) -> memory of a GPU of the rank.
        capacity: memory of a GPU. Where no split fits, the one that needs least is returned.

    Raises:
        ValueError: fewer layers than stages.
    """
    schedule = times.schedule
    costs = times.layer_costs(tuple(dict.fromkeys(layers)))
    in_a_step: Counter[str] = Counter()
    for place, number in Counter(schedule.alike.places).items():
        _, action = schedule.alike.firsts[place]
        for work, _ in _works(action):
            in_a_step[work] += number
    seconds = {
        kind: sum(number * costs[work, kind] for work, number in in_a_step.items())
        for kind in dict.fromkeys(layers)
    }
    stages_of = [schedule.stages_of(rank) for rank in range(schedule.ranks)]
    held = tuple(dict.fromkeys(stages_of))

    def needs(split: StageSplit) -> Bytes:
        return max(rank_bytes(rank, split) for rank in range(schedule.ranks))

    holders = [tuple(dict.fromkeys(ranks)) for ranks in zip(*schedule.placement, strict=True)]

    def has_room(stage: int, split: Sequence[StageLayers]) -> bool:
        return all(rank_bytes(rank, split) <= capacity for rank in holders[stage])

    def fastest(splits: Iterable[StageSplit]) -> list[StageSplit]:
        distinct = list(dict.fromkeys(splits))
        ends = dict(zip(distinct, times.of_layers(distinct, costs), strict=True))
        return sorted(distinct, key=ends.__getitem__)

    splits = fastest(even_splits(layers, held, seconds, lambda *_: True))
    shortlist = splits[:SHORTLIST]
    if max(map(needs, shortlist)) > capacity:
        splits += even_splits(layers, held, seconds, has_room)
        shortlist = fastest(split for split in splits if needs(split) <= capacity)[:SHORTLIST]
    if not shortlist:
        return min(splits, key=needs)
    ends = dict(zip(shortlist, times.of_own_chunks(shortlist), strict=True))
    nearly_first = [split for split in shortlist if ends[split] <= NEARLY * min(ends.values())]
    dearest = {
        split: max(sum(seconds[kind] for kind in stage) for stage in split)
        for split in nearly_first
    }
    usual_layer = seconds[Counter(layers).most_common(1)[0][0]]
    even = min(dearest.values()) + usual_layer / 2
    return min((split for split in nearly_first if dearest[split] <= even), key=ends.__getitem__)
