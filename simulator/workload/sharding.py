"""Say which part of the state of its parameters a GPU holds, by stage of ZeRO.

GPUs that hold the same parameters are copies of each other: all data-parallel ranks for what every
rank holds, those of other expert groups for experts, and in both cases the ranks of the other
direction of a pipeline that has two. Copies share out, by stage (arXiv 1910.02054, section 5):

    0   nothing
    1   master weights and moments
    2   and gradients: those of a micro-batch are reduced layer by layer and added up where they lie
    3   and parameters: gathered layer by layer, in forward and again in backward

A stage that shares gradients reduces them in every micro-batch, since adding up whole ones is what
it does without. Parameters that have no copy are held as without ZeRO, in every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from hardware_profiles.units import Bytes
from reference_model.formats import BITS
from simulator.scenario.files import by_name
from simulator.scenario.training import OptimizerTypes, TrainingJob
from simulator.workload.muon import Matrix, busiest, owned, values

BF16_BYTES = 2


def type_bytes(name: str) -> int:
    """Bytes of one value: 2 of "bfloat16"."""
    return BITS[name] // 8


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What an optimizer keeps between steps, which each step reads and writes once."""

    label: str
    """As texts name it."""
    moments: int
    """Values for each parameter, beside its master weight."""
    of_matrices: int | None = None
    """The same for each parameter of a matrix that it orthogonalises; None where it does not."""


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adamw": Optimizer("AdamW", moments=2),
    "muon": Optimizer("Muon", moments=2, of_matrices=1),
    # One momentum, and an update by its sign (arXiv 2302.06675, algorithm 2).
    "lion": Optimizer("Lion", moments=1),
}
"""Optimizers by the name that a scenario's training.optimizer gives."""


def check_optimizer(job: TrainingJob) -> None:
    """Raise ValueError for an optimizer that does not exist, or one of whole matrices where the job
    cuts them or keeps their state in CPU memory."""
    name = job.optimizer.name
    if by_name(OPTIMIZERS, name, "training.optimizer.name").of_matrices is None:
        return
    if job.optimizer.offload == "cpu":
        raise ValueError(
            f"training.optimizer.offload: cpu: products of optimizer.name {name} are simulated on "
            "GPUs only; allowed: none, or another optimizer"
        )
    if job.tensor_parallel * job.expert_tensor_parallel > 1:
        raise ValueError(
            f"training.optimizer.name: {name}: updates whole matrices, and tensor_parallel and "
            "expert_tensor_parallel cut them; allowed: both 1, or another optimizer"
        )
    if job.zero == 3:
        raise ValueError(
            f"training.zero: 3: cuts every matrix into shards, and optimizer.name {name} updates "
            "whole ones on their owners; allowed: zero from 0 to 2, or another optimizer"
        )


def master_and_moments_bytes(types: OptimizerTypes, *, orthogonalized: bool = False) -> int:
    """Bytes that the optimizer keeps for one parameter.

    Args:
        orthogonalized: whether it is of a matrix that the optimizer orthogonalises.
    """
    optimizer = OPTIMIZERS[types.name]
    of_matrices = optimizer.moments if optimizer.of_matrices is None else optimizer.of_matrices
    moments = of_matrices if orthogonalized else optimizer.moments
    return type_bytes(types.master) + moments * type_bytes(types.moments)


class HeldWeight(NamedTuple):
    """A weight, or the same one of several experts, as products read it."""

    dtype: str
    """Of the products."""
    groups: int
    """Experts that have one each; 1 of any other weight."""
    rows: int
    columns: int
    copies: int = 1
    """Working copies that products keep."""
    matrix: bool = True
    """Whether Muon orthogonalises it."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters on one GPU that have the same copies."""

    count: int = 0
    quantized: int = 0
    """Of them, those whose products are quantised; the others compute in BF16."""
    cast: int = 0
    """Values of their working copies."""
    cast_bytes: Bytes = 0.0
    """Of the same, scales included."""
    weights: tuple[tuple[HeldWeight, int], ...] = ()
    """Of them, those of which something else computes than the master: what products read, and
    tables that are looked up; sorted, with how many there are of each."""

    @property
    def working_bytes(self) -> Bytes:
        """What computes: working copies, and BF16 of the rest."""
        return self.cast_bytes + (self.count - self.quantized) * BF16_BYTES

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those that Muon orthogonalises."""
        return tuple(
            (weight.rows, weight.columns)
            for weight, count in self.weights
            if weight.matrix
            for _ in range(count * weight.groups)
        )

    def __add__(self, other: Parameters) -> Parameters:
        weights = dict(self.weights)
        for weight, count in other.weights:
            weights[weight] = weights.get(weight, 0) + count
        return Parameters(
            self.count + other.count,
            self.quantized + other.quantized,
            self.cast + other.cast,
            self.cast_bytes + other.cast_bytes,
            tuple(sorted(weights.items())),
        )


@dataclass(frozen=True, slots=True)
class Updated:
    """Parameters that one GPU's optimizer updates."""

    each: float
    """One by one, an even share; on average where copies share them out."""
    matrices: float
    """In matrices that it orthogonalises, on the GPU that owns most."""

    @property
    def count(self) -> float:
        return self.each + self.matrices


@dataclass(frozen=True, slots=True)
class HeldParameters:
    """Parameters of the layers on one GPU, by how they are shared."""

    replicated: Parameters = Parameters()
    """Every data-parallel rank holds them."""
    experts: Parameters = Parameters()
    """Of this GPU's routed experts."""
    duplicated: int = 0
    """Of the replicated ones, those that all GPUs hold that share a layer's others: each has the
    gradients of its own tokens, whose sum is theirs."""

    @property
    def every(self) -> Parameters:
        """Both."""
        return self.replicated + self.experts

    def __add__(self, other: HeldParameters) -> HeldParameters:
        return HeldParameters(
            self.replicated + other.replicated,
            self.experts + other.experts,
            self.duplicated + other.duplicated,
        )


@dataclass(frozen=True, slots=True)
class Sharding:
    """How copies share their parameters' state, and how long a layer's whole one is there."""

    zero: int
    """Stage of ZeRO, 0 to 3."""
    types: OptimizerTypes
    copies: int
    """GPUs that hold what every data-parallel rank holds."""
    expert_copies: int
    """GPUs that hold the same experts."""
    gathers_ahead: bool
    """Whether a layer's parameters are gathered while the layer before computes."""
    reduces_beside: bool
    """Whether a layer's gradients are reduced while the next one computes."""
    pairs: bool
    """Whether a forward and a backward chunk run side by side."""

    def shared(self, held: HeldParameters) -> Parameters:
        """Parameters that other GPUs hold as well."""
        return self.part(held, shared=True).every

    def alone(self, held: HeldParameters) -> Parameters:
        """Parameters that no other GPU holds."""
        return self.part(held, shared=False).every

    def part(self, held: HeldParameters, *, shared: bool) -> HeldParameters:
        """Those parameters that other GPUs hold as well, or those that none does."""
        replicated, experts = (
            part if (copies > 1) == shared else Parameters() for part, copies in self._parts(held)
        )
        return HeldParameters(replicated, experts)

    def shard(self, held: HeldParameters) -> Updated:
        """Parameters that one GPU has to itself once copies share them out."""
        each, matrices = 0.0, 0.0
        for part, copies in self._parts(held):
            owners = owned(part.matrices, copies) if self.orthogonalizes else []
            matrices += max((values(own) for own in owners), default=0)
            each += (part.count - sum(map(values, owners))) / copies
        return Updated(each, matrices)

    def updated(self, held: HeldParameters) -> Updated:
        """Parameters that one GPU's optimizer updates."""
        if self.zero:
            return self.shard(held)
        matrices = values(held.every.matrices) if self.orthogonalizes else 0
        return Updated(float(held.every.count - matrices), float(matrices))

    def orthogonalized(self, held: HeldParameters) -> list[Matrix]:
        """Matrices that the busiest GPU's optimizer orthogonalises: of a GPU that owns most work of
        what all ranks hold, and of experts."""
        if not self.orthogonalizes:
            return []
        if not self.zero:
            return list(held.every.matrices)
        return [
            matrix
            for part, copies in self._parts(held)
            for matrix in busiest(owned(part.matrices, copies))
        ]

    @property
    def orthogonalizes(self) -> bool:
        """Whether the optimizer works on whole matrices."""
        return OPTIMIZERS[self.types.name].of_matrices is not None

    def _parts(self, held: HeldParameters) -> tuple[tuple[Parameters, int], ...]:
        return (held.replicated, self.copies), (held.experts, self.expert_copies)

    def optimizer_bytes(self, held: HeldParameters) -> Bytes:
        """Master weights and moments in the GPU's memory."""
        return 0.0 if self.types.offload == "cpu" else self.state_bytes(held)

    def state_bytes(self, held: HeldParameters) -> Bytes:
        """Master weights and moments, wherever they lie."""
        updated = self.updated(held)
        return updated.each * master_and_moments_bytes(
            self.types
        ) + updated.matrices * master_and_moments_bytes(self.types, orthogonalized=True)

    def gradient_bytes(
        self, held: HeldParameters, stages: Sequence[Sequence[HeldParameters]]
    ) -> Bytes:
        """Gradients as added up, and whole ones of layers on their way.

        Args:
            stages: [stages][layers], what each layer that is exchanged at once holds.
        """
        each = type_bytes(self.types.gradients)
        if self.zero < 2:
            return held.every.count * each
        whole = [[self.shared(layer).count * each for layer in stage] for stage in stages]
        return self.shard(held).count * each + _most_at_once(whole, whole, both=self.reduces_beside)

    def weight_bytes(
        self, held: HeldParameters, stages: Sequence[Sequence[HeldParameters]]
    ) -> Bytes:
        """Parameters that compute; of shared ones in stage 3 a shard in BF16, the gathered layers,
        and working copies of the layer that computes. Arguments as of `gradient_bytes`."""
        if self.zero < 3:
            return held.every.working_bytes
        shared = [[self.shared(layer) for layer in stage] for stage in stages]
        gathered = [[float(part.count * BF16_BYTES) for part in stage] for stage in shared]
        computing = [
            [part.count * BF16_BYTES + part.cast_bytes for part in stage] for stage in shared
        ]
        sharded = self.shard(held).count - self.alone(held).count
        once = _most_at_once(computing, gathered, both=self.gathers_ahead)
        return (
            self.alone(held).working_bytes + sharded * BF16_BYTES + once * (2 if self.pairs else 1)
        )


def _most_at_once(
    first: Sequence[Sequence[Bytes]], second: Sequence[Sequence[Bytes]], *, both: bool
) -> Bytes:
    """The most that a layer takes, with that of its neighbour on either side where `both`.

    Args:
        first: [stages][layers], of the layer itself.
        second: the same, of a neighbour.
    """
    most = max((each for stage in first for each in stage), default=0.0)
    if not both:
        return most
    pairs = [
        found
        for own, other in zip(first, second, strict=True)
        for (own_a, other_a), (own_b, other_b) in pairwise(zip(own, other, strict=True))
        for found in (own_a + other_b, own_b + other_a)
    ]
    return max([most, *pairs])
