"""The memory that training takes on one GPU of each pipeline rank.

Weights are held once for computing, in the type of their product where that is quantised (MXFP8
twice, as its blocks lie along either dimension) and in BF16 for the rest, gradients for every
parameter held, and the optimizer's master weights and moments only for this rank's shard (Report,
sections 3.2 and 3.3.3), or what another stage of ZeRO makes of the three (sharding.py).
Activations are what the recorded model keeps after each phase, times the micro-batches that the
schedule has in flight. A forward or backward in progress also needs room for its largest operator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, format_bytes
from reference_model.config import ModelConfig
from reference_model.parameter_counts import parameter_counts
from reference_model.trace import WHOLE, Operator, OperatorTrace, Split, part_of
from simulator.workload.chunk import (
    FORWARD,
    INPUT_GRAD,
    RECOMPUTE,
    WEIGHT_GRAD,
    OperatorsOf,
    exchanged_kinds,
    matrix_of,
    units_of,
)
from simulator.workload.layout import StageLayers, kind_of, stage_texts
from simulator.workload.load import Load
from simulator.workload.recipes import weight_bytes_of
from simulator.workload.schedules.held import HeldActivations
from simulator.workload.schedules.order import Schedule
from simulator.workload.sharding import HeldParameters, HeldWeight, Parameters, Sharding

_COPIES = {"fp8_e4m3": 1, "mxfp8_e4m3": 2}
"""{type of quantised products: working copies of their weights}"""


class Infeasible(ValueError):
    """A layout that does not fit the memory of its GPUs.

    What would help takes longer to find than that it does not fit, and is looked for where somebody
    reads it.
    """

    def __init__(self, reason: str, advice: Callable[[], str] = str) -> None:
        super().__init__(reason)
        self.reason = reason
        self._advice = advice

    def __str__(self) -> str:
        return self.reason + self._advice()

    def __reduce__(self) -> tuple[type[Infeasible], tuple[str]]:
        return Infeasible, (str(self),)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Bytes on one GPU at the worst moment, beside a KV cache; None for what a job has not."""

    weights: Bytes
    gradients: Bytes | None = None
    optimizer: Bytes | None = None
    activations: Bytes | None = None
    all_to_all_buffers: Bytes | None = None
    expert_buffers: Bytes | None = None
    """Rooms of the masked grouped products, kept for the worst case (decode)."""
    workspace: Bytes
    """What the largest operator needs beside what is counted above and the KV cache."""
    reserved: Bytes

    @property
    def parts(self) -> dict[str, Bytes]:
        """{name: bytes} of what the job has."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def total(self) -> Bytes:
        return sum(self.parts.values(), 0.0)

    def __str__(self) -> str:
        ordered = sorted(self.parts.items(), key=lambda item: -item[1])
        return ", ".join(f"{name} {format_bytes(value)}" for name, value in ordered)


def layer_parameters(
    config: ModelConfig,
    kind: str,
    forward: Iterable[Operator],
    *,
    local_experts: int,
    split: Split = WHOLE,
) -> HeldParameters:
    """What one layer of `kind` puts on a GPU that holds `local_experts` of its routed experts.

    Args:
        forward: the operators of its forward, which say what is quantised.
        split: GPUs that share the layer, and the width of each expert.
    """
    operators = tuple(forward)
    expert = parameter_counts(config).expert // split.expert_tensor
    experts = Parameters()
    if kind_of(kind) in ("moe", "mtp"):
        experts = _stored(operators, local_experts * expert, "grouped_gemm")
    own, whole = (_outside_experts(config, kind, ranks) for ranks in (split.tensor, 1))
    # Each GPU has all of what is not split, and its part of the rest.
    ranks = split.tensor
    duplicated = (ranks * own - whole) // (ranks - 1) if ranks > 1 else 0
    if kind_of(kind) != "head":  # whose weight multi-token prediction shares
        operators = tuple(op for op in operators if not op.name.startswith("head."))
    of_weights = "embedding" if kind_of(kind) == "embedding" else "gemm"
    return HeldParameters(_stored(operators, own, of_weights), experts, duplicated)


def _outside_experts(config: ModelConfig, kind: str, ranks: int) -> int:
    """Parameters of one layer but its routed experts, on one of the GPUs that share it."""
    counts = parameter_counts(part_of(config, Split(ranks)))
    shared = parameter_counts(config).shared_experts // ranks
    moe = counts.attention + counts.layer_norms + counts.router + shared
    match kind_of(kind):
        case "embedding":
            return counts.embedding
        case "head":
            return counts.head + counts.final_norm
        case "dense":
            return counts.attention + counts.layer_norms + counts.dense_feed_forward
        case "moe":
            return moe
        case _:
            # The module's own layer, and what it adds to one: projection and norms.
            return moe + counts.mtp - counts.moe_layer


def _stored(operators: Iterable[Operator], count: int, kind: str) -> Parameters:
    """So many parameters, with what products of a kind keep of their weights."""
    own = [op for op in operators if op.kind == kind]
    weights = [(op.dtype, _weights(op)) for op in own if op.dtype in _COPIES]
    return Parameters(
        count,
        sum(values for _, values in weights),
        sum(_COPIES[dtype] * values for dtype, values in weights),
        sum(_COPIES[dtype] * values * weight_bytes_of(dtype) for dtype, values in weights),
        tuple(sorted(Counter(_weight(op, count) for op in own).items())),
    )


def _weight(operator: Operator, count: int) -> HeldWeight:
    """The weight of a product or lookup among so many parameters; those of experts turned, as
    reference_model.layers keeps them."""
    if operator.kind == "embedding":
        rows = count // operator["columns"]
        return HeldWeight(operator.dtype, 1, rows, operator["columns"], matrix=False)
    grouped = operator.kind == "grouped_gemm"
    return HeldWeight(
        operator.dtype,
        operator["groups"] if grouped else 1,
        operator["k" if grouped else "n"],
        operator["n" if grouped else "k"],
        copies=_COPIES.get(operator.dtype, 1),
        matrix=not operator.name.startswith("head."),
    )


def _weights(operator: Operator) -> int:
    """Elements of the weight that a matrix product multiplies by."""
    match operator.kind:
        case "gemm":
            return operator["n"] * operator["k"]
        case "grouped_gemm":
            return operator["groups"] * operator["n"] * operator["k"]
        case _:
            return 0


def held_kinds(stages: Sequence[StageLayers], held: Sequence[int]) -> list[str]:
    """All layers whose parameters the stages with the indices `held` put on a GPU."""
    return [*(kind for stage in held for kind in stages[stage]), *mtp_alone(stages, held)]


def mtp_alone(stages: Sequence[StageLayers], held: Sequence[int]) -> tuple[str, ...]:
    """Kinds that a GPU holds a copy of for multi-token prediction alone.

    It looks tokens up and predicts them too: a rank that holds it without the embedding or without
    the head keeps a copy of those.
    """
    kinds = {kind_of(layer) for stage in held for layer in stages[stage]}
    if "mtp" not in kinds:
        return ()
    return tuple(shared for shared in ("embedding", "head") if shared not in kinds)


def parameter_copies(schedule: Schedule) -> int:
    """Ranks of one pipeline that hold the same stages: 2 where two directions share the ranks."""
    return schedule.directions


def kept_bytes(operators: Sequence[Operator]) -> int:
    """Bytes kept for a matrix's weight gradient: what its operators read and none of them wrote.

    The GEMM reads the accumulator that it writes, and the transposed operands that earlier
    operators of the matrix wrote.
    """
    return sum(operator.bytes_read - operator.bytes_written for operator in operators)


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer of a kind asks of a GPU."""

    parameters: HeldParameters
    saved: Bytes
    """Activations of a micro-batch from the layer's forward to its backward."""
    deferred: Bytes
    """Those that deferred weight gradients still need after an input-only backward."""
    kept: Mapping[str, Bytes]
    """{matrix: of `deferred`, what its weight gradient alone needs}"""
    weight_flops: Mapping[str, float]
    """{matrix: FLOPs of its weight gradient}"""
    workspace: Bytes
    """What the largest operator of a forward or backward reads and writes, and what a layer that is
    recomputed whole keeps till the end of its backward."""


def layer_memory(
    config: ModelConfig,
    trace: OperatorTrace,
    operators: OperatorsOf,
    load: Load,
    kinds: Iterable[str],
) -> dict[str, LayerMemory]:
    """{layer kind: what one such layer asks of a GPU}"""

    def of_kind(kind: str) -> LayerMemory:
        matrices = _by_matrix(operators(kind, WEIGHT_GRAD))
        kept = {name: kept_bytes(group) for name, group in matrices.items()}
        # GPUs that share sequences keep operands of all their tokens for some matrices.
        own = trace.operators(kind, WEIGHT_GRAD, load.workload)
        beyond = sum(kept.values()) - kept_bytes(own)
        saved = trace.saved_bytes(kind, FORWARD, load.workload)
        again = trace.saved_bytes(kind, RECOMPUTE, load.workload)
        return LayerMemory(
            parameters=layer_parameters(
                config,
                kind,
                operators(kind, FORWARD),
                local_experts=load.local_experts,
                split=trace.split,
            ),
            saved=saved,
            deferred=trace.saved_bytes(kind, INPUT_GRAD, load.workload) + beyond,
            kept=kept,
            weight_flops={
                matrix: sum(o.flops for o in group) for matrix, group in matrices.items()
            },
            workspace=max(
                operator.bytes_read + operator.bytes_written
                for phase in (FORWARD, INPUT_GRAD)
                for operator in operators(kind, phase)
            )
            + max(0, again - saved),
        )

    return {kind: of_kind(kind) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Memory of a pipeline rank as a function of its layers and of what it defers."""

    layers: Mapping[str, LayerMemory]
    schedule: Schedule
    in_flight: Sequence[HeldActivations]
    """[rank], the micro-batches whose activations the schedule keeps."""
    sharding: Sharding
    reserved: Bytes
    _known: dict[tuple[object, ...], _StageMemory] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _totals: dict[tuple[object, ...], Bytes] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def ranks(self, stages: Sequence[StageLayers], immediate: Collection[str]) -> list[GpuMemory]:
        """Memory of every pipeline rank, in rank order; see `rank`."""
        return [self.rank(rank, stages, immediate) for rank in range(self.schedule.ranks)]

    def matrices(self) -> dict[str, LayerMemory]:
        """Every matrix that has a weight gradient, with a layer that has it."""
        return {matrix: layer for layer in self.layers.values() for matrix in layer.kept}

    def fitting(self, stages: Sequence[StageLayers], capacity: Bytes) -> tuple[str, ...]:
        """The fewest matrices that let every rank fit when all ranks compute their weight gradients
        at once.

        Those that keep most bytes per FLOP come first. All of them, where even that does not fit.
        """
        density = {
            matrix: layer.kept[matrix] / layer.weight_flops[matrix]
            for matrix, layer in self.matrices().items()
            if layer.weight_flops[matrix]
        }
        candidates = sorted(density, key=density.__getitem__, reverse=True)
        for count in range(len(candidates)):
            ranks = self.ranks(stages, candidates[:count])
            if max(rank.total for rank in ranks) <= capacity:
                return tuple(candidates[:count])
        return tuple(candidates)

    def held(self, rank: int, stages: Sequence[StageLayers]) -> HeldParameters:
        """Parameters on a GPU of one pipeline rank."""
        return self._sum(held_kinds(stages, self.in_flight[rank].stages))

    def _sum(self, kinds: Iterable[str]) -> HeldParameters:
        return sum((self.layers[kind].parameters for kind in kinds), HeldParameters())

    def rank(
        self, rank: int, stages: Sequence[StageLayers], immediate: Collection[str]
    ) -> GpuMemory:
        """Memory of a GPU of one pipeline rank.

        Args:
            stages: layers of every stage.
            immediate: matrices whose weight gradient an input-only backward does not defer.
        """
        in_flight = self.in_flight[rank]
        alone = mtp_alone(stages, in_flight.stages)
        each = [self._of_stage(stages[stage], alone, immediate) for stage in in_flight.stages]
        held = sum((part.held for part in each), HeldParameters()) + self._sum(alone)
        exchanged = [part.exchanged for part in each]
        return GpuMemory(
            weights=self.sharding.weight_bytes(held, exchanged),
            gradients=self.sharding.gradient_bytes(held, exchanged),
            optimizer=self.sharding.optimizer_bytes(held),
            activations=float(self.activations(rank, stages, immediate).max(initial=0)),
            workspace=max((part.workspace for part in each), default=0),
            reserved=self.reserved,
        )

    def total(self, rank: int, stages: Sequence[StageLayers], immediate: Collection[str]) -> Bytes:
        """All that `rank` says of a GPU, worked out once for the same layers of a rank: a search
        for stages asks for thousands of splits."""
        own = tuple(stages[stage] for stage in self.in_flight[rank].stages)
        key = rank, own, tuple(immediate)
        if key not in self._totals:
            self._totals[key] = self.rank(rank, stages, immediate).total
        return self._totals[key]

    def activations(
        self, rank: int, stages: Sequence[StageLayers], immediate: Collection[str]
    ) -> NDArray[np.float64]:
        """[action], bytes that a GPU of one pipeline rank keeps for backward during each action."""
        in_flight = self.in_flight[rank]
        alone = mtp_alone(stages, in_flight.stages)
        each = [self._of_stage(stages[stage], alone, immediate) for stage in in_flight.stages]
        whole, left = [float(part.saved) for part in each], [float(part.left) for part in each]
        kept: NDArray[np.float64] = in_flight.whole @ whole + in_flight.deferred @ left
        return kept

    def _of_stage(
        self, stage: StageLayers, alone: tuple[str, ...], immediate: Collection[str]
    ) -> _StageMemory:
        """What the layers of one stage ask for, worked out once: a search for stages asks for
        thousands of splits into few different ones."""
        key = stage, alone, tuple(immediate)
        if key not in self._known:
            layers = [self.layers[kind] for kind in stage]
            self._known[key] = _StageMemory(
                held=self._sum(stage),
                exchanged=[self._sum(exchanged_kinds(unit, alone)) for unit in units_of(stage)],
                saved=sum(layer.saved for layer in layers),
                left=sum(_left(layer, immediate) for layer in layers),
                workspace=max((layer.workspace for layer in layers), default=0),
            )
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _StageMemory:
    """What the layers of one stage ask of a GPU."""

    held: HeldParameters
    exchanged: list[HeldParameters]
    """[slots], parameters that are exchanged together."""
    saved: Bytes
    """Activations of a micro-batch till its backward."""
    left: Bytes
    """Those that deferred weight gradients still need."""
    workspace: Bytes


def _left(layer: LayerMemory, immediate: Collection[str]) -> Bytes:
    """What deferred weight gradients still need after an input-only backward."""
    return layer.deferred - sum(layer.kept.get(matrix, 0) for matrix in immediate)


def _by_matrix(operators: Sequence[Operator]) -> dict[str, list[Operator]]:
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(matrix_of(operator), []).append(operator)
    return groups


def check_fits(
    ranks: Sequence[GpuMemory], stages: Sequence[StageLayers], capacity: Bytes, *, chosen: bool
) -> None:
    """Raise Infeasible, saying which rank exceeds the memory by how much, what fills it, and what
    would help.

    Args:
        chosen: whether the stages are those that need least of all that were tried.
    """
    rank, worst = max(enumerate(ranks), key=lambda pair: pair[1].total)
    if worst.total > capacity:
        raise Infeasible(
            f"pipeline rank {rank} needs {format_bytes(worst.total)} per GPU, "
            f"{format_bytes(worst.total - capacity)} more than its {format_bytes(capacity)}: "
            f"{worst}; "
            + (
                f"of the splits of layers tried, {', '.join(stage_texts(stages))} needs least"
                if chosen
                else "training.stages=default looks for a split that fits"
            )
            + "; more ranks in training.pp, training.ep or training.tensor_parallel hold fewer "
            "parameters each, shorter micro-batches fewer activations"
        )
