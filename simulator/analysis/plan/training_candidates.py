"""Every legal layout of a training job, and those of them that cannot fit memory.

Legal is what the simulator itself takes: the same functions decide. What does not depend on all
axes is asked once for many layouts, and the memory of all of them is worked out in columns. A
layout is left out for want of memory only where no split of the layers into stages can fit:
layer_room says how that is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np

from reference_model.trace import OperatorTrace, Split
from simulator.analysis.plan.layer_room import (
    fewest_on_the_fullest,
    state_of_layers,
)
from simulator.analysis.plan.schedule_facts import ScheduleFacts, schedule_facts, stages_each
from simulator.analysis.plan.training_layouts import TrainingLayout, recorded_recomputations
from simulator.execution.expert_reach import expert_reach
from simulator.execution.training import training_load
from simulator.execution.training_run import (
    MOST_CHUNKS,
    sequences_in_one_round,
    sharding_of,
    training_layout,
)
from simulator.hardware.network.groups import Reach
from simulator.scenario.files import Scenario
from simulator.scenario.training import TrainingJob
from simulator.workload.chunk import FORWARD, INPUT_GRAD, RECOMPUTE, OperatorsOf
from simulator.workload.context_parallel import operators_of_part
from simulator.workload.layout import ParallelLayout, StageLayers, model_layers
from simulator.workload.load import Load
from simulator.workload.memory import layer_parameters
from simulator.workload.recorded import TraceOf
from simulator.workload.sharding import HeldParameters, Sharding

UNSPLIT, UNEVEN, ORDER, STAGES, DEFERRED, UNRECORDED, MEMORY = (
    "GPUs do not divide what they share",
    "batch does not divide into micro-batches",
    "schedule does not take so many micro-batches or GPUs",
    "more stages than layers",
    "ZeRO 2 and 3 with deferred weight gradients",
    "layers not recorded with that recomputation or split",
    "does not fit memory, whatever the split of layers",
)
"""Kinds of what cannot be; the last is legal and does not fit."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What decides the operators of a layer on a GPU."""

    tp: int
    etp: int
    cp: int
    ep: int
    parts: tuple[int, ...]
    """GPUs of an expert-parallel group in each NVLink domain."""
    micro_batch: int
    recompute: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A legal layout with what its bound needs."""

    layout: TrainingLayout
    shape: LayerShape
    parallel: ParallelLayout = field(repr=False)
    facts: ScheduleFacts = field(repr=False)
    sharding: Sharding = field(repr=False)
    state: tuple[float, float] = field(repr=False)
    """`state_of_layers` of the usual ones"""
    fullest: int = 0
    """Of the usual layers, as many as the rank with most holds at least, to fit memory."""


@dataclass(frozen=True, slots=True)
class LikeShapes:
    """Shapes of layers whose operators differ in their sizes alone."""

    shapes: tuple[LayerShape, ...]
    trace: OperatorTrace
    load: Load
    """Every field an array [shapes]."""
    operators: OperatorsOf
    """Their sizes are arrays [shapes], or numbers where all have the same."""


@dataclass(frozen=True)
class LayerFacts:
    """Operators and memory of the layers of a scenario, each asked once."""

    scenario: Scenario
    trace_of: TraceOf
    _made: dict[object, Any] = field(default_factory=dict, repr=False)

    @cached_property
    def job(self) -> TrainingJob:
        return self.scenario.job_as(TrainingJob)

    @cached_property
    def layers(self) -> StageLayers:
        return model_layers(self.scenario.model)

    @cached_property
    def usual(self) -> tuple[str, int]:
        """The kind that most layers are of, and how many are."""
        return Counter(self.layers).most_common(1)[0]

    def trace(self, shape: LayerShape) -> OperatorTrace:
        """The recorded layers."""
        key = ("trace", shape.tp, shape.etp, shape.recompute)
        if key not in self._made:
            self._made[key] = self.trace_of(
                self.scenario.model,
                "train",
                self.job.recipe,
                Split(shape.tp, shape.etp),
                recompute=shape.recompute,
            )
        found: OperatorTrace = self._made[key]
        return found

    def reach(self, parts: tuple[int, ...]) -> Reach:
        """Where tokens go; as the step's run has it."""
        experts = self.scenario.model.n_routed_experts
        return expert_reach(
            np.arange(experts + self.job.experts.redundant) % experts,
            config=self.scenario.model,
            parts=parts,
            seed=self.scenario.file.seed,
        )

    def load(self, shape: LayerShape, parallel: ParallelLayout) -> Load:
        """What one GPU works on in a micro-batch."""
        key = ("load", shape.tp, shape.etp, shape.cp, shape.ep, shape.parts, shape.micro_batch)
        if key not in self._made:
            self._made[key] = training_load(
                _with_sizes(self.job, shape),
                parallel,
                self.scenario.model.num_experts_per_tok,
                self.reach(shape.parts).gpus,
            )
        found: Load = self._made[key]
        return found

    def stacked(self, shapes: Mapping[LayerShape, ParallelLayout]) -> list[LikeShapes]:
        """The operators of many shapes in columns."""
        alike: dict[tuple[object, ...], list[LayerShape]] = {}
        for shape in shapes:
            key = (shape.tp, shape.etp, shape.recompute, shape.cp)
            alike.setdefault(key, []).append(shape)
        found = []
        for own in alike.values():
            loads = [self.load(shape, shapes[shape]) for shape in own]
            columns: dict[str, Any] = {
                each.name: np.array([getattr(load, each.name) for load in loads])
                for each in fields(Load)
            }
            trace, load = self.trace(own[0]), Load(**columns)
            operators = operators_of_part(trace, load, own[0].cp)
            found.append(LikeShapes(tuple(own), trace, load, operators))
        return found

    def sharding(
        self, job: TrainingJob, parallel: ParallelLayout, facts: ScheduleFacts
    ) -> Sharding | None:
        """How copies share state; None where they cannot as the job says."""
        key = (
            "sharding", job.zero, parallel.dense_copies, parallel.expert_replicas, facts.works,
            facts.schedule.directions,
        )  # fmt: skip
        if key not in self._made:
            try:
                self._made[key] = sharding_of(job, parallel, facts.schedule)
            except ValueError:
                self._made[key] = None
        found: Sharding | None = self._made[key]
        return found

    def state(
        self, sharding: Sharding, shape: LayerShape, parallel: ParallelLayout
    ) -> tuple[float, float]:
        """`state_of_layers` of the usual ones on one GPU."""
        key = ("state", id(sharding), shape.tp, shape.etp, parallel.local_experts)
        if key not in self._made:
            held = self.held(shape, parallel)[self.usual[0]]
            self._made[key] = state_of_layers(sharding, held)
        found: tuple[float, float] = self._made[key]
        return found

    def held(self, shape: LayerShape, parallel: ParallelLayout) -> dict[str, HeldParameters]:
        """{layer kind: parameters on a GPU}"""
        key = ("held", shape.tp, shape.etp, parallel.local_experts)
        if key not in self._made:
            trace = self.trace(shape)
            operators = operators_of_part(trace, self.load(shape, parallel), shape.cp)
            self._made[key] = {
                kind: layer_parameters(
                    self.scenario.model,
                    kind,
                    operators(kind, FORWARD),
                    local_experts=parallel.local_experts,
                    split=trace.split,
                )
                for kind in dict.fromkeys(self.layers)
            }
        found: dict[str, HeldParameters] = self._made[key]
        return found

    def activations(
        self, shapes: Mapping[LayerShape, ParallelLayout]
    ) -> dict[LayerShape, tuple[float, float]]:
        """{shape: bytes that one of the usual layers saves of a micro-batch, and its workspace}, as
        `layer_memory` has them."""
        kind = self.usual[0]
        found: dict[LayerShape, tuple[float, float]] = {}
        for each in self.stacked(shapes):
            ones = np.ones(len(each.shapes))
            saved, again = (
                each.trace.saved_bytes(kind, phase, each.load.workload) * ones
                for phase in (FORWARD, RECOMPUTE)
            )
            largest = np.zeros(len(each.shapes))
            for phase in (FORWARD, INPUT_GRAD):
                for operator in each.operators(kind, phase):
                    largest = np.maximum(largest, operator.bytes_read + operator.bytes_written)
            workspace = largest + np.maximum(0, again - saved)
            both = zip(saved.tolist(), workspace.tolist(), strict=True)
            found.update(zip(each.shapes, both, strict=True))
        return found


def _with_sizes(job: TrainingJob, shape: LayerShape) -> TrainingJob:
    """The job with the sizes that operators of its layers rest on."""
    return job.model_copy(
        update={
            "micro_batch_sequences": shape.micro_batch,
            "tensor_parallel": shape.tp,
            "context_parallel": shape.cp,
            "expert_tensor_parallel": shape.etp,
            "ep": shape.ep,
        }
    )


def candidates(
    layers: LayerFacts, values: Mapping[str, Sequence[object]], lost: Counter[str]
) -> list[Candidate]:
    """Every layout that may run, of all combinations of the values of the axes.

    Args:
        values: as of `axis_values`.
        lost: counts the others by kind.
    """
    legal = list(_legal(layers, values, lost))
    # What its state leaves no room for needs no look at what is saved.
    nothing = dict.fromkeys((each.shape for each in legal), (0.0, 0.0))
    roomy = [
        each
        for each, fullest in zip(legal, _fullest(layers, legal, nothing), strict=True)
        if fullest >= 0
    ]
    activations = layers.activations({each.shape: each.parallel for each in roomy})
    found = [
        replace(each, fullest=fullest)
        for each, fullest in zip(roomy, _fullest(layers, roomy, activations), strict=True)
        if fullest >= 0
    ]
    lost[MEMORY] += len(legal) - len(found)
    return found


def _fullest(
    layers: LayerFacts,
    legal: Sequence[Candidate],
    activations: Mapping[LayerShape, tuple[float, float]],
) -> list[int]:
    """`fewest_on_the_fullest` of each.

    Args:
        activations: as of `LayerFacts.activations`.
    """
    job, (_, usual) = layers.job, layers.usual
    capacity = layers.scenario.cluster.node.gpu.hbm_capacity - job.memory.reserved
    same: dict[int, list[int]] = {}
    for place, each in enumerate(legal):
        same.setdefault(id(each.facts), []).append(place)
    found = np.zeros(len(legal), dtype=np.int64)
    for places in same.values():
        own = [legal[place] for place in places]
        state = np.array([one.state for one in own])
        kept = np.array([activations[one.shape] for one in own])
        found[places] = fewest_on_the_fullest(
            own[0].facts,
            each=state[:, 0],
            once=state[:, 1],
            usual=usual,
            others=len(layers.layers) - usual,
            capacity=capacity,
            saved=kept[:, 0],
            workspace=kept[:, 1],
        )
    return found.tolist()


def _legal(
    layers: LayerFacts, values: Mapping[str, Sequence[object]], lost: Counter[str]
) -> Iterator[Candidate]:
    scenario, job = layers.scenario, layers.job
    inner = ("micro_batch", "schedule", "zero", "recompute")
    every = int(np.prod([len(values[name]) for name in inner]))
    for tp, etp in product(values["tp"], values["etp"]):
        at_hand = recorded_recomputations(scenario, Split(_int(tp), _int(etp)))
        recorded = [str(choice) for choice in values["recompute"] if choice in at_hand]
        for pp, ep, cp in product(values["pp"], values["ep"], values["cp"]):
            own = job.model_copy(
                update={
                    "pp": pp,
                    "ep": ep,
                    "tensor_parallel": tp,
                    "expert_tensor_parallel": etp,
                    "context_parallel": cp,
                }
            )
            try:
                parallel = training_layout(scenario, own)
            except ValueError:
                lost[UNSPLIT] += every
                continue
            missing = len(values["recompute"]) - len(recorded)
            lost[UNRECORDED] += every // len(values["recompute"]) * missing
            if recorded:
                yield from _of_gpus(layers, own, parallel, values, recorded, lost)


def _of_gpus(
    layers: LayerFacts,
    job: TrainingJob,
    parallel: ParallelLayout,
    values: Mapping[str, Sequence[object]],
    recorded: Sequence[str],
    lost: Counter[str],
) -> Iterator[Candidate]:
    """The layouts of one way to share out the GPUs."""
    parts = parallel.expert_parts
    stages = [(name, virtual, stages_each(name, virtual)) for name, virtual in _pairs(values)]
    of_one = len(values["zero"]) * len(recorded)
    wished = {zero: job.model_copy(update={"zero": zero}) for zero in map(_int, values["zero"])}
    for micro_batch in map(_int, values["micro_batch"]):
        sized = job.model_copy(update={"micro_batch_sequences": micro_batch})
        try:
            in_one_round = sequences_in_one_round(sized, parallel)
        except ValueError:
            lost[UNEVEN] += of_one * len(stages)
            continue
        microbatches = job.global_batch_sequences // in_one_round
        shapes = tuple(
            LayerShape(
                parallel.tp, parallel.etp, parallel.cp, parallel.ep, parts, micro_batch, recompute
            )
            for recompute in recorded
        )
        for name, virtual, each in stages:
            if job.pp * each > len(layers.layers):
                lost[STAGES] += of_one
                continue
            if job.pp * (virtual or 1) * microbatches > MOST_CHUNKS:
                lost[ORDER] += of_one
                continue
            try:
                facts = schedule_facts(name, virtual, job.pp, microbatches)
            except ValueError:
                lost[ORDER] += of_one
                continue
            for zero, wish in wished.items():
                sharding = layers.sharding(wish, parallel, facts)
                if sharding is None:
                    lost[DEFERRED] += len(recorded)
                    continue
                state = layers.state(sharding, shapes[0], parallel)
                for shape in shapes:
                    layout = TrainingLayout(
                        job.pp, parallel.ep, parallel.tp, parallel.etp, parallel.cp,
                        micro_batch, name, virtual, zero, shape.recompute,
                    )  # fmt: skip
                    yield Candidate(layout, shape, parallel, facts, sharding, state)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _pairs(values: Mapping[str, Iterable[object]]) -> Iterator[tuple[str, int | None]]:
    for value in values["schedule"]:
        assert isinstance(value, tuple)
        yield value
