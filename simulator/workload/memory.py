"""Bytes that training keeps on one GPU of each pipeline rank: a layout and a schedule in, sums out.

Weights are held once for computing (FP8 with a scale a 128 x 128 block for the matrices whose
products run in FP8, BF16 for the rest), gradients in FP32 for every parameter held, and the
optimizer's FP32 master weights and BF16 moments only for this rank's shard (ZeRO-1; Report,
sections 3.2 and 3.3.3). Activations are what the recorded model keeps after each phase, times the
micro-batches that the schedule has in flight. A forward or backward in progress also needs room for
its largest operator.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields

from hardware_profiles.units import Bytes, format_bytes
from reference_model.config import ModelConfig, parameter_counts
from reference_model.trace import TILE, Operator, OperatorTrace
from simulator.workload.layout import ParallelLayout, Stage
from simulator.workload.lowering import (
    FORWARD,
    INPUT_GRAD,
    WEIGHT_GRAD,
    Load,
    OperatorsOf,
    matrix_of,
)
from simulator.workload.schedules import Schedule, held_activations

FP8_BYTES, BF16_BYTES, FP32_BYTES = 1, 2, 4
MASTER_AND_MOMENTS_BYTES = FP32_BYTES + 2 * BF16_BYTES


class Infeasible(ValueError):
    """A layout that does not fit the memory of its GPUs."""


@dataclass(frozen=True, slots=True)
class HeldParameters:
    """Parameters of the layers on one GPU, by how they are shared and stored."""

    replicated_fp8: int
    """Every data-parallel rank holds them; their products run in FP8."""
    replicated_bf16: int
    """Every data-parallel rank holds them; embedding, head, norms, router, MTP projection."""
    expert_fp8: int
    """Routed experts of this GPU."""

    @property
    def replicated(self) -> int:
        return self.replicated_fp8 + self.replicated_bf16

    @property
    def total(self) -> int:
        return self.replicated + self.expert_fp8

    def __add__(self, other: HeldParameters) -> HeldParameters:
        return HeldParameters(
            self.replicated_fp8 + other.replicated_fp8,
            self.replicated_bf16 + other.replicated_bf16,
            self.expert_fp8 + other.expert_fp8,
        )


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes on one GPU of a pipeline rank at the worst moment of a step."""

    weights: Bytes
    gradients: Bytes
    optimizer: Bytes
    activations: Bytes
    workspace: Bytes
    reserved: Bytes

    @property
    def total(self) -> Bytes:
        return sum((getattr(self, field.name) for field in fields(self)), 0.0)


def layer_parameters(config: ModelConfig, kind: str, *, local_experts: int) -> HeldParameters:
    """What one layer of `kind` puts on a GPU that holds `local_experts` of its routed experts."""
    counts = parameter_counts(config)
    # The latents' norms are the only attention parameters outside a matrix product.
    latent_norms = (config.q_lora_rank or 0) + config.kv_lora_rank
    attention = counts.attention - latent_norms
    norms = latent_norms + counts.layer_norms
    moe = HeldParameters(
        attention + counts.shared_experts, norms + counts.router, local_experts * counts.expert
    )
    match kind:
        case "embedding":
            return HeldParameters(0, counts.embedding, 0)
        case "head":
            return HeldParameters(0, counts.head + counts.final_norm, 0)
        case "dense":
            return HeldParameters(attention + counts.dense_feed_forward, norms, 0)
        case "moe":
            return moe
        case _:
            # The module's own layer, and what it adds to one: projection and norms.
            return moe + HeldParameters(0, counts.mtp - counts.moe_layer, 0)


def held_parameters(
    config: ModelConfig, stages: Sequence[Stage], held: Sequence[int], *, local_experts: int
) -> HeldParameters:
    """What the stages with the indices `held` put on one GPU.

    Multi-token prediction looks tokens up too: a rank that holds it without the embedding keeps a
    copy of the embedding.
    """
    kinds = [kind for stage in held for kind in stages[stage]]
    if "mtp" in kinds and "embedding" not in kinds:
        kinds.append("embedding")
    total = HeldParameters(0, 0, 0)
    for kind in kinds:
        total += layer_parameters(config, kind, local_experts=local_experts)
    return total


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
class MemoryModel:
    """Memory of every pipeline rank as a function of which weight gradients are put off."""

    schedule: Schedule
    stages: Sequence[Stage]
    config: ModelConfig
    layout: ParallelLayout
    trace: OperatorTrace
    operators: OperatorsOf
    load: Load
    reserved: Bytes

    def ranks(self, at_once: Collection[str]) -> list[RankMemory]:
        """Memory of every pipeline rank, in rank order.

        Args:
            at_once: matrices whose weight gradient an input-only backward does not put off.
        """
        return [self._rank(rank, at_once) for rank in range(self.schedule.ranks)]

    def matrices(self) -> dict[str, list[Operator]]:
        """Every matrix of the model's layers, with the operators of its weight gradient."""
        groups: dict[str, list[Operator]] = {}
        for kind in dict.fromkeys(kind for stage in self.stages for kind in stage):
            for matrix, operators in _by_matrix(self.operators(kind, WEIGHT_GRAD)).items():
                groups.setdefault(matrix, operators)
        return groups

    def fitting(self, capacity: Bytes) -> tuple[str, ...]:
        """As few matrices as let every rank fit when all ranks compute their weight gradients at
        once.

        Those that keep most bytes per FLOP come first. All of them, where even that does not fit.
        """
        groups = self.matrices()
        candidates = [matrix for matrix, group in groups.items() if sum(o.flops for o in group)]
        candidates.sort(
            key=lambda matrix: kept_bytes(groups[matrix]) / sum(o.flops for o in groups[matrix]),
            reverse=True,
        )
        for count in range(len(candidates) + 1):
            if max(rank.total for rank in self.ranks(candidates[:count])) <= capacity:
                return tuple(candidates[:count])
        return tuple(candidates)

    def _rank(self, rank: int, at_once: Collection[str]) -> RankMemory:
        in_flight = held_activations(self.schedule, rank)
        whole = [self._saved(stage, FORWARD) for stage in in_flight.stages]
        delayed = [self._put_off(stage, at_once) for stage in in_flight.stages]
        held = held_parameters(
            self.config,
            self.stages,
            in_flight.stages,
            local_experts=self.layout.local_experts,
        )
        copies = parameter_copies(self.schedule)
        shards = self.layout.dp * copies
        expert_shards = self.layout.expert_replicas * copies
        return RankMemory(
            weights=(held.replicated_fp8 + held.expert_fp8) * (FP8_BYTES + FP32_BYTES / TILE**2)
            + held.replicated_bf16 * BF16_BYTES,
            gradients=held.total * FP32_BYTES,
            optimizer=(held.replicated / shards + held.expert_fp8 / expert_shards)
            * MASTER_AND_MOMENTS_BYTES,
            activations=float(
                (in_flight.whole @ whole + in_flight.put_off @ delayed).max(initial=0)
            ),
            workspace=max(
                operator.bytes_read + operator.bytes_written
                for kind in {kind for stage in in_flight.stages for kind in self.stages[stage]}
                for phase in (FORWARD, INPUT_GRAD)
                for operator in self.operators(kind, phase)
            ),
            reserved=self.reserved,
        )

    def _saved(self, stage: int, phase: str) -> int:
        return sum(
            self.trace.saved_bytes(kind, phase, **asdict(self.load)) for kind in self.stages[stage]
        )

    def _put_off(self, stage: int, at_once: Collection[str]) -> int:
        """What the weight gradients that are put off still need after an input-only backward."""
        released = sum(
            kept_bytes(operators)
            for kind in self.stages[stage]
            for matrix, operators in _by_matrix(self.operators(kind, WEIGHT_GRAD)).items()
            if matrix in at_once
        )
        return self._saved(stage, INPUT_GRAD) - released


def _by_matrix(operators: Sequence[Operator]) -> dict[str, list[Operator]]:
    groups: dict[str, list[Operator]] = {}
    for operator in operators:
        groups.setdefault(matrix_of(operator), []).append(operator)
    return groups


def check_fits(ranks: Sequence[RankMemory], capacity: Bytes) -> None:
    """Raise Infeasible, saying which rank exceeds the memory by how much, and what fills it."""
    rank, worst = max(enumerate(ranks), key=lambda pair: pair[1].total)
    if worst.total > capacity:
        parts = ", ".join(
            f"{name} {format_bytes(value)}"
            for name, value in sorted(asdict(worst).items(), key=lambda item: -item[1])
        )
        raise Infeasible(
            f"pipeline rank {rank} needs {format_bytes(worst.total)} a GPU, "
            f"{worst.total - capacity:.0f} bytes ({format_bytes(worst.total - capacity)}) "
            f"more than its {format_bytes(capacity)}: {parts}"
        )
