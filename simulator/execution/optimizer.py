"""What follows a step's last micro-batch, and which collectives of parameters and gradients do not.

By default gradients are reduced after the last micro-batch, the optimizer steps on its shard and
the parameters are gathered, one after the other and beside nothing. What overlaps moves into the
chunks (simulator.workload.state_tasks) and takes there what the timeline makes of it:

    stage of ZeRO     gradients reduced                  parameters gathered
    0, 1              overlapped: in the last backward   overlapped, from 1 on: in the first
                      of each stage, layer by layer      forward of each stage, of the next step
    2                 in every backward                  the same
    3                 in every backward                  in every forward and backward

Of a step's one reduction and one gather (stages 0 to 2) the pipeline feels only what slows the
chunk's kernels. What is left of the reduction when a rank's last kernels end goes on while other
ranks still work, and a gather begins when the step does: what sticks out of the pipeline counts as
the rank's reduce_s and gather_s. Both are lower bounds. Groups that reduce together end their last
backward at different times where two directions of a pipeline hold the same stages, and each rank's
reduction counts from its own; the gathers of several stages of a rank do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from reference_model.pipeline_actions import FORWARD_WORK, INPUT_BACKWARD, WEIGHT_GRADIENT, Action
from reference_model.trace import Operator
from simulator.execution.host_state import host_state, offloaded_update
from simulator.execution.training_fabric import StepLoads, collective_groups, copies_of
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.network.fabric_load import NO_LIMIT, FabricLoad
from simulator.hardware.network.groups import Domains
from simulator.hardware.network.transfers import Collective, Transfers
from simulator.hardware.prediction import Prediction
from simulator.workload.layout import ParallelLayout
from simulator.workload.muon import newton_schulz
from simulator.workload.schedules.order import Schedule
from simulator.workload.sharding import (
    BF16_BYTES,
    HeldParameters,
    Sharding,
    type_bytes,
)
from simulator.workload.state_tasks import (
    StateTasks,
    collective_of,
    is_state_collective,
)
from simulator.workload.update import update_operators, working_copies


@dataclass(frozen=True, slots=True)
class Rings:
    """Rings over the copies of a pipeline rank's parameters, and what the fabric makes of them."""

    dense: Domains
    """Copies of what every data-parallel rank holds."""
    experts: Domains
    """Copies of the experts at one place of a group."""
    dense_load: FabricLoad
    experts_load: FabricLoad
    tensor: Domains | None = None
    """GPUs that share its layers; None where none do."""

    @classmethod
    def of(
        cls, layout: ParallelLayout, loads: StepLoads, *, rank: int, holders: Sequence[int]
    ) -> Rings:
        """Those of one pipeline rank.

        Args:
            holders: pipeline ranks that hold the same stages, this one among them.
        """
        return cls(
            copies_of(layout, holders, experts=False),
            copies_of(layout, holders, experts=True),
            loads.dense[rank],
            loads.experts[rank],
            collective_groups(layout).get("tensor"),
        )

    def sum_of_duplicates(self, transfers: Transfers, size: Bytes) -> NDArray[np.float64]:
        """[value, low, high], seconds to sum the gradients of what all GPUs hold that share layers:
        a reduce-scatter and an all-gather, as a ring does it.

        Args:
            size: bytes of the gradients.
        """
        if self.tensor is None:
            return np.zeros(3)
        load = None if self.tensor.domains == 1 else NO_LIMIT
        halves = [
            transfers.collective(operation, size, form="ring", group=self.tensor, load=load)
            for operation in get_args(Collective)
        ]
        total: NDArray[np.float64] = np.sum(
            [np.concatenate([time.seconds, time.low, time.high]) for time in halves], axis=0
        )
        return total

    def seconds(
        self, transfers: Transfers, operation: Collective, size: Bytes, *, experts: bool
    ) -> Prediction:
        """Time of a collective over the copies: a ring of two levels.

        Args:
            size: bytes that the whole group holds once they are gathered.
        """
        return transfers.collective(
            operation,
            size,
            form="ring",
            group=self.experts if experts else self.dense,
            load=self.experts_load if experts else self.dense_load,
        )


@dataclass(frozen=True, slots=True)
class ChunkState:
    """Collectives of parameters and gradients of a chunk, and the rings that carry them."""

    tasks: StateTasks
    rings: Rings
    once: tuple[bool, bool] = (False, False)
    """Whether its gather, and its reduction, is the one of the whole step. Then what comes before
    the chunk's first kernel runs before the pipeline needs the chunk, and what follows its last
    kernel delays no other rank."""


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """What follows the last micro-batch on one pipeline rank, in order."""

    reduce_s: Seconds
    """Reduce-scatter of the gradients over all copies of the parameters, or their all-reduce; none
    where chunks hold it. And the sum of those that GPUs have in common that share layers."""
    update: Prediction
    """Times of gradient norm, update of this rank's shard, clearing of the gradients and working
    copies of the weights."""
    gather_s: Seconds
    """All-gather of the BF16 parameters; none where chunks hold it."""
    exchange_ends_s: tuple[Seconds, Seconds]
    """Ends of the 80% interval of both exchanges together."""
    products: Prediction | None = None
    """Times of the products with which the busiest owner orthogonalises its matrices, if any."""
    on_cpu_s: tuple[Seconds, Seconds] | None = None
    """Copies over PCIe and the update on the CPU, where it is there."""

    @property
    def update_s(self) -> Seconds:
        """All of `update`."""
        return float(self.update.seconds.sum())

    @property
    def orthogonalize_s(self) -> Seconds:
        """All those products."""
        return 0.0 if self.products is None else float(self.products.seconds.sum())

    @property
    def total_s(self) -> Seconds:
        """All of it, one after the other."""
        on_cpu_s = sum(self.on_cpu_s or ())
        return self.reduce_s + self.orthogonalize_s + self.update_s + on_cpu_s + self.gather_s


def exchanges_in_chunks(sharding: Sharding, overlapped: tuple[bool, bool]) -> bool:
    """Whether chunks hold any collective of parameters or gradients."""
    if max(sharding.copies, sharding.expert_copies) == 1:
        return False
    return sharding.zero >= 2 or overlapped[0] or (overlapped[1] and sharding.zero == 1)


def state_of_actions(
    schedule: Schedule,
    sharding: Sharding,
    *,
    overlapped: tuple[bool, bool],
    with_mtp: Sequence[tuple[str, ...]],
    rings: Sequence[Rings],
) -> list[list[ChunkState | None]]:
    """[rank][action], the collectives of parameters and gradients inside it; None for none.

    Args:
        overlapped: whether gradients are reduced, and parameters gathered, beside compute.
        with_mtp: [rank], kinds that it holds for multi-token prediction alone.
        rings: [rank]
    """
    if not exchanges_in_chunks(sharding, overlapped):
        return [[None] * len(actions) for actions in schedule.actions]
    reduces_last, gathers_first = overlapped[0], overlapped[1] and sharding.zero > 0
    found: list[list[ChunkState | None]] = []
    for actions, alone, of_rank in zip(schedule.actions, with_mtp, rings, strict=True):
        first_forward: dict[int, int] = {}
        last_weights: dict[int, int] = {}
        for place, action in enumerate(actions):
            for chunk in action.chunks:
                if chunk.work == FORWARD_WORK:
                    first_forward.setdefault(chunk.stage, place)
                elif chunk.work != INPUT_BACKWARD:
                    last_weights[chunk.stage] = place
        row: list[ChunkState | None] = []
        known: dict[tuple[bool, bool, bool], ChunkState | None] = {}
        for place, action in enumerate(actions):
            forward, backward = _stages_of(action)
            gathers_forward = forward is not None and (
                sharding.zero == 3 or (gathers_first and first_forward[forward] == place)
            )
            gathers_backward = (
                sharding.zero == 3 and backward is not None and action.chunk.work != WEIGHT_GRADIENT
            )
            reduces = (
                backward is not None
                and action.chunk.work != INPUT_BACKWARD
                and (sharding.zero >= 2 or (reduces_last and last_weights[backward] == place))
            )
            wanted = gathers_forward, gathers_backward, reduces
            if wanted not in known:
                tasks = StateTasks(
                    *wanted, ahead=overlapped[1], beside=overlapped[0], with_mtp=alone
                )
                once = gathers_forward and sharding.zero < 3, reduces and sharding.zero < 2
                known[wanted] = ChunkState(tasks, of_rank, once) if any(wanted) else None
            row.append(known[wanted])
        found.append(row)
    return found


def _stages_of(action: Action) -> tuple[int | None, int | None]:
    """Stages of an action's forward and of its backward chunk."""
    forward = backward = None
    for chunk in action.chunks:
        if chunk.work == FORWARD_WORK:
            forward = chunk.stage
        else:
            backward = chunk.stage
    return forward, backward


def with_state_collectives(
    times: Prediction,
    operators: Sequence[Operator],
    states: Sequence[ChunkState | None],
    transfers: Transfers,
) -> Prediction:
    """The times with those of collectives of parameters and gradients, which are no kernels.

    Args:
        states: [operators], of the chunk that each is of.
    """
    known: dict[tuple[Operator, Rings], Prediction] = {}
    found: dict[int, Prediction] = {}
    for place, (operator, state) in enumerate(zip(operators, states, strict=True)):
        if state is None or not is_state_collective(operator):
            continue
        key = operator, state.rings
        if key not in known:
            name, experts = collective_of(operator)
            operation = next(each for each in get_args(Collective) if each == name)
            known[key] = state.rings.seconds(
                transfers, operation, float(operator.bytes_written), experts=experts
            )
        found[place] = known[key]
    return times.with_others(found) if found else times


def with_exposed(
    step: OptimizerStep, exposed: Sequence[tuple[Seconds, Seconds, Prediction]]
) -> OptimizerStep:
    """The optimizer step with what the pipeline leaves exposed of the collectives in its chunks.

    Args:
        exposed: (reduction, gather, collectives) of each chunk that holds the step's own.
    """
    if not exposed:
        return step
    reduce_s = max(reduction for reduction, _, _ in exposed)
    gather_s = max(gather for _, gather, _ in exposed)
    low, high = step.exchange_ends_s
    _, _, times = max(exposed, key=lambda each: each[0] + each[1])
    whole = float(times.seconds.sum())
    return replace(
        step,
        reduce_s=step.reduce_s + reduce_s,
        gather_s=step.gather_s + gather_s,
        exchange_ends_s=(
            low + (reduce_s + gather_s) * float(times.low.sum()) / whole,
            high + (reduce_s + gather_s) * float(times.high.sum()) / whole,
        ),
    )


def optimizer_step(
    held: HeldParameters,
    sharding: Sharding,
    *,
    overlapped: tuple[bool, bool],
    rings: Rings,
    transfers: Transfers,
    costs: KernelCostModel,
) -> OptimizerStep:
    """Time of the optimizer step on one rank, without what its chunks already hold.

    Norm, update and new working copies are operators that kernel times price like any other
    (simulator.workload.update), one after the other; what chunks gather they copy as well. An
    optimizer of matrices orthogonalises its own in between. One that is offloaded leaves the GPU
    the norm, the clearing and the copies.

    Args:
        overlapped: whether gradients are reduced, and parameters gathered, beside compute.
    """

    def over_copies(operation: Collective, bytes_each: Bytes) -> NDArray[np.float64]:
        """[value, low, high], seconds of one exchange of all parameters."""
        found = [
            rings.seconds(transfers, operation, part.count * bytes_each, experts=experts)
            for part, experts in ((held.replicated, False), (held.experts, True))
        ]
        each = [np.concatenate([time.seconds, time.low, time.high]) for time in found]
        total: NDArray[np.float64] = np.sum(each, axis=0)
        return total

    types, zero = sharding.types, sharding.zero
    gradient = type_bytes(types.gradients)
    gathered_in_chunks = zero == 3 or (zero > 0 and overlapped[1])
    offloaded = types.offload == "cpu"
    # No BF16 stands between a master weight and its copy but where the parameter came from others.
    whole = "bfloat16" if offloaded else types.master
    update = [
        *update_operators(held, sharding),
        *working_copies(sharding.alone(held).weights, source=whole),
        *(
            []
            if gathered_in_chunks
            else working_copies(sharding.shared(held).weights, source="bfloat16")
        ),
    ]
    matrices = sharding.orthogonalized(held)
    iterations = types.iterations
    products = [o for matrix in matrices for o in newton_schulz(matrix, iterations=iterations)]
    sms = transfers.cluster.node.gpu.sms
    reduced, gathered = np.zeros(3), np.zeros(3)
    if zero < 2 and not overlapped[0]:
        reduced = over_copies("reduce_scatter", gradient)
        if not zero:
            reduced = reduced + over_copies("all_gather", gradient)
    # Summed where they have been added up: over a step, and in shards where these are all there is.
    shards = sharding.copies if zero >= 2 else 1
    reduced = reduced + rings.sum_of_duplicates(transfers, held.duplicated / shards * gradient)
    if zero and not gathered_in_chunks:
        gathered = over_copies("all_gather", BF16_BYTES)
    _, low, high = (reduced + gathered).tolist()
    return OptimizerStep(
        reduce_s=float(reduced[0]),
        update=costs.predict(update, sms=sms, overlapped=False),
        gather_s=float(gathered[0]),
        exchange_ends_s=(low, high),
        products=costs.predict(products, sms=sms, overlapped=False) if products else None,
        on_cpu_s=offloaded_update(host_state(held, sharding, ema="none"), transfers.cluster)
        if offloaded
        else None,
    )
