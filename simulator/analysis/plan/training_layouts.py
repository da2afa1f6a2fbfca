"""Every layout of a training job that is legal, and those of them that cannot fit memory.

Legal is what the simulator itself takes: the same functions decide. What does not depend on all
axes is asked once for many layouts. A layout is left out for want of memory only where no split of
the layers into stages can fit: layer_room says how that is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np

from hardware_profiles.units import Bytes
from reference_model.trace import RECOMPUTATIONS, OperatorTrace, Split
from simulator.analysis.plan.layer_room import (
    StateBytes,
    fewest_on_the_fullest,
    state_of_layers,
)
from simulator.analysis.plan.schedule_facts import ScheduleFacts, schedule_facts, stages_each
from simulator.execution.expert_reach import expert_reach
from simulator.execution.training import training_load
from simulator.execution.training_run import (
    MOST_CHUNKS,
    sequences_in_one_round,
    sharding_of,
    training_layout,
)
from simulator.hardware.network.clusters import nvlink_domains
from simulator.hardware.network.groups import Reach
from simulator.scenario.files import Scenario
from simulator.scenario.training import TrainingJob
from simulator.workload.chunk import FORWARD as FORWARD_PHASE
from simulator.workload.chunk import OperatorsOf
from simulator.workload.context_parallel import operators_of_part
from simulator.workload.layout import ParallelLayout, Stage, model_layers
from simulator.workload.load import Load
from simulator.workload.memory import LayerMemory, layer_memory, layer_parameters
from simulator.workload.recorded import TraceOf, is_recorded
from simulator.workload.schedules.known import SCHEDULES, WITH_VIRTUAL_STAGES
from simulator.workload.sharding import HeldParameters, Sharding

ValueT = TypeVar("ValueT")

AXES: Mapping[str, str] = {
    "pp": "pp",
    "ep": "ep",
    "tp": "tensor_parallel",
    "etp": "expert_tensor_parallel",
    "cp": "context_parallel",
    "micro_batch": "micro_batch_sequences",
    "schedule": "schedule",
    "zero": "zero",
    "recompute": "recompute",
}
"""{axis of the search: field of a training job}. What is not among them keeps the value of the
scenario: nothing measured says how a step responds to it, as to the SMs of communication."""

VIRTUAL_STAGES = (2, 4)
"""Stages on each GPU with which interleaved schedules are tried; zb_h1 with one as well."""

MOST_SEQUENCES = 8
"""Of a micro-batch that is tried."""

LEAST_PIECE = 4096
"""Tokens of a sequence that a GPU keeps at least where GPUs share sequences, of what is tried: what
they exchange in every layer is for sequences that one GPU cannot hold."""

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

ILLEGAL = (UNSPLIT, UNEVEN, ORDER, STAGES, DEFERRED, UNRECORDED)


@dataclass(frozen=True, slots=True)
class TrainingLayout:
    """One point of the search."""

    pp: int
    ep: int
    tp: int
    etp: int
    cp: int
    micro_batch: int
    schedule: str
    virtual_stages: int | None
    """Stages on each GPU; None for those that the schedule has."""
    zero: int
    recompute: str

    @property
    def settings(self) -> dict[str, object]:
        """{path of a scenario: value}"""
        found: dict[str, object] = {
            f"training.{field}": getattr(self, axis) for axis, field in AXES.items()
        }
        virtual = "default" if self.virtual_stages is None else self.virtual_stages
        return found | {"training.virtual_stages": virtual}

    def __str__(self) -> str:
        """ "PP16 EP64 dualpipe", with what else is not as usual."""
        sizes = {"TP": self.tp, "ETP": self.etp, "CP": self.cp}
        shared = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        stages = "" if self.virtual_stages is None else f" x{self.virtual_stages}"
        others = [f"micro-batch {self.micro_batch}", f"ZeRO-{self.zero}"]
        if self.recompute != "published":
            others.append(f"recompute {self.recompute}")
        return " ".join(
            [f"PP{self.pp}", f"EP{self.ep}", *shared, f"{self.schedule}{stages}", *others]
        )


def layout_of_job(job: TrainingJob) -> TrainingLayout:
    """The layout that a job has."""
    virtual = None if job.virtual_stages == "default" else job.virtual_stages
    values = {axis: getattr(job, name) for axis, name in AXES.items()}
    return TrainingLayout(**values, virtual_stages=virtual)


def axis_values(
    scenario: Scenario, fixed: Mapping[str, Sequence[object]]
) -> dict[str, tuple[object, ...]]:
    """{axis: values that are tried}, schedules as (name, virtual stages).

    GPUs that share layers or sequences exchange them within every layer, and are looked for among
    the GPUs that NVLink joins.

    Args:
        fixed: {axis: values in the place of the usual ones}.

    Raises:
        ValueError: an axis that there is not.
    """
    unknown = [axis for axis in fixed if axis not in AXES]
    if unknown:
        raise ValueError(
            f"--fix {unknown[0]}: no axis of the search; allowed: {', '.join(AXES)}, each with "
            "values, such as --fix pp=8,16"
        )
    job, model, gpus = scenario.job_as(TrainingJob), scenario.model, scenario.cluster.gpus
    layers = len(model_layers(model))
    joined = nvlink_domains(scenario.cluster, group=gpus).gpus_each
    near = _divisors(gpus, most=min(joined, gpus))
    powers = tuple(2**n for n in range(MOST_SEQUENCES.bit_length()))
    usual: dict[str, tuple[object, ...]] = {
        "pp": _divisors(gpus, most=layers),
        "ep": tuple(n for n in _divisors(gpus, most=gpus) if model.n_routed_experts % n == 0),
        "tp": near,
        "etp": tuple(
            n for n in near if n == 1 or any(_recorded(scenario, Split(m, n)) for m in near)
        ),
        "cp": tuple(n for n in near if n == 1 or job.sequence_length >= n * LEAST_PIECE),
        "micro_batch": tuple(n for n in powers if n <= job.global_batch_sequences),
        "schedule": tuple(SCHEDULES),
        "zero": (0, 1, 2, 3),
        "recompute": RECOMPUTATIONS,
    }
    found = usual | {axis: tuple(values) for axis, values in fixed.items()}
    found["schedule"] = tuple(
        (name, stages) for name in found["schedule"] for stages in _stages_tried(str(name))
    )
    return found


def _recorded(scenario: Scenario, split: Split) -> list[str]:
    """Recomputations with which layers that GPUs share so are recorded."""
    folder = None if scenario.file.traces is None else Path(scenario.file.traces)
    recipe = scenario.job_as(TrainingJob).recipe
    return [
        choice
        for choice in RECOMPUTATIONS
        if is_recorded(scenario.model, "train", recipe, split, choice, folder=folder)
    ]


def _stages_tried(name: str) -> tuple[int | None, ...]:
    if name not in WITH_VIRTUAL_STAGES:
        return (None,)
    return (None, *VIRTUAL_STAGES) if name == "zb_h1" else VIRTUAL_STAGES


def _divisors(number: int, *, most: int) -> tuple[int, ...]:
    return tuple(n for n in range(1, min(number, most) + 1) if number % n == 0)


# -- layouts ---------------------------------------------------------------------------------------


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
    fullest: int
    """Of the usual layers, as many as the rank with most holds at least, to fit memory."""


@dataclass(frozen=True)
class LayerFacts:
    """Operators and memory of the layers of a scenario, each asked once."""

    scenario: Scenario
    trace_of: TraceOf
    _made: dict[object, object] = field(default_factory=dict, repr=False)

    @cached_property
    def job(self) -> TrainingJob:
        return self.scenario.job_as(TrainingJob)

    @cached_property
    def layers(self) -> Stage:
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
        found = self._made[key]
        assert isinstance(found, OperatorTrace)
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
        return training_load(
            with_sizes(self.job, shape),
            parallel,
            self.scenario.model.num_experts_per_tok,
            self.reach(shape.parts).gpus,
        )

    def operators(self, shape: LayerShape, parallel: ParallelLayout) -> OperatorsOf:
        """Operators of the layers on one GPU."""
        return operators_of_part(self.trace(shape), self.load(shape, parallel), shape.cp)

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
        found = self._made[key]
        assert found is None or isinstance(found, Sharding)
        return found

    def state(self, sharding: Sharding, shape: LayerShape, parallel: ParallelLayout) -> StateBytes:
        """Of the usual layers on one GPU."""
        key = ("state", id(sharding), shape.tp, shape.etp, parallel.local_experts)
        if key not in self._made:
            self._made[key] = state_of_layers(sharding, self.parameters(shape, parallel))
        found = self._made[key]
        assert isinstance(found, StateBytes)
        return found

    def parameters(self, shape: LayerShape, parallel: ParallelLayout) -> HeldParameters:
        """Of one of the usual layers on one GPU."""
        key = ("parameters", shape.tp, shape.etp, parallel.local_experts)
        if key not in self._made:
            kind = self.usual[0]
            self._made[key] = layer_parameters(
                self.scenario.model,
                kind,
                self.operators(shape, parallel)(kind, FORWARD_PHASE),
                local_experts=parallel.local_experts,
                split=self.trace(shape).split,
            )
        found = self._made[key]
        assert isinstance(found, HeldParameters)
        return found

    def memory(self, shape: LayerShape, parallel: ParallelLayout) -> LayerMemory:
        """Of one of the usual layers on one GPU."""
        key = ("memory", shape)
        if key not in self._made:
            kind = self.usual[0]
            self._made[key] = layer_memory(
                self.scenario.model,
                self.trace(shape),
                self.operators(shape, parallel),
                self.load(shape, parallel),
                [kind],
            )[kind]
        found = self._made[key]
        assert isinstance(found, LayerMemory)
        return found


def with_sizes(job: TrainingJob, shape: LayerShape) -> TrainingJob:
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
) -> Iterator[Candidate]:
    """Every layout that may run, of all combinations of the values of the axes.

    Args:
        values: as of `axis_values`.
        lost: counts the others by kind, ILLEGAL or MEMORY, as they are met.
    """
    scenario, job = layers.scenario, layers.job
    capacity = scenario.cluster.node.gpu.hbm_capacity - job.memory.reserved
    kind, usual = layers.usual
    del kind
    inner = ("micro_batch", "schedule", "zero", "recompute")
    every = int(np.prod([len(values[name]) for name in inner]))
    for tp, etp in product(values["tp"], values["etp"]):
        at_hand = _recorded(scenario, Split(_int(tp), _int(etp)))
        recorded = [choice for choice in values["recompute"] if choice in at_hand]
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
                yield from _of_gpus(
                    layers, own, parallel, values, recorded, lost, capacity=capacity, usual=usual
                )


def _of_gpus(
    layers: LayerFacts,
    job: TrainingJob,
    parallel: ParallelLayout,
    values: Mapping[str, Sequence[object]],
    recorded: Sequence[object],
    lost: Counter[str],
    *,
    capacity: Bytes,
    usual: int,
) -> Iterator[Candidate]:
    """The layouts of one way to share out the GPUs."""
    parts = parallel.expert_parts
    deepest = len(layers.layers)
    others = deepest - usual
    for micro_batch in values["micro_batch"]:
        sized = job.model_copy(update={"micro_batch_sequences": micro_batch})
        of_one = len(values["zero"]) * len(recorded)
        try:
            in_one_round = sequences_in_one_round(sized, parallel)
        except ValueError:
            lost[UNEVEN] += of_one * len(values["schedule"])
            continue
        microbatches = job.global_batch_sequences // in_one_round
        shapes = [
            LayerShape(
                parallel.tp, parallel.etp, parallel.cp, parallel.ep, parts,
                _int(micro_batch), str(recompute),
            )
            for recompute in recorded
        ]  # fmt: skip
        for name, virtual in _pairs(values["schedule"]):
            if job.pp * stages_each(name, virtual) > deepest:
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
            for zero in values["zero"]:
                wished = sized.model_copy(update={"zero": zero, "schedule": name})
                sharding = layers.sharding(wished, parallel, facts)
                if sharding is None:
                    lost[DEFERRED] += len(recorded)
                    continue
                state = layers.state(sharding, shapes[0], parallel)
                possible = fewest_on_the_fullest(
                    facts, state, usual=usual, others=others, capacity=capacity
                )
                if possible is None:
                    lost[MEMORY] += len(recorded)
                    continue
                for shape in shapes:
                    memory = layers.memory(shape, parallel)
                    fullest = fewest_on_the_fullest(
                        facts,
                        state,
                        usual=usual,
                        others=others,
                        capacity=capacity,
                        saved=memory.saved,
                        workspace=memory.workspace,
                    )
                    if fullest is None:
                        lost[MEMORY] += 1
                        continue
                    layout = TrainingLayout(
                        job.pp, job.ep, parallel.tp, parallel.etp, parallel.cp,
                        _int(micro_batch), name, virtual, _int(zero), shape.recompute,
                    )  # fmt: skip
                    yield Candidate(layout, shape, parallel, facts, sharding, fullest)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def _pairs(values: Sequence[object]) -> Iterator[tuple[str, int | None]]:
    for value in values:
        assert isinstance(value, tuple)
        yield value
