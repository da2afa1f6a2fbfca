"""What follows a step's last micro-batch: reduce gradients, update a shard, gather parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from reference_model.trace import Operator
from simulator.execution.training_fabric import copies_of
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.network.fabric_load import FabricLoad
from simulator.hardware.network.transfers import Collective, Transfers
from simulator.scenario.training import OptimizerTypes
from simulator.workload.chunk import WEIGHT_GRAD
from simulator.workload.layout import ParallelLayout
from simulator.workload.memory import (
    BF16_BYTES,
    HeldParameters,
    master_and_moments_bytes,
    type_bytes,
)


@dataclass(frozen=True, slots=True)
class OptimizerStep:
    """What follows the last micro-batch on one pipeline rank, in order."""

    reduce_s: Seconds
    """Reduce-scatter of the gradients over all copies of the parameters."""
    update_s: Seconds
    """Gradient norm, update of this rank's shard, and clearing the gradients: HBM traffic."""
    gather_s: Seconds
    """All-gather of the BF16 parameters."""
    exchange_ends_s: tuple[Seconds, Seconds]
    """Ends of the 80 % interval of both exchanges together."""

    @property
    def total_s(self) -> Seconds:
        """All three, one after the other."""
        return self.reduce_s + self.update_s + self.gather_s


def optimizer_step(
    held: HeldParameters,
    types: OptimizerTypes,
    *,
    layout: ParallelLayout,
    holders: Sequence[int],
    dense: FabricLoad,
    experts: FabricLoad,
    transfers: Transfers,
    costs: KernelCostModel,
) -> OptimizerStep:
    """Time of the ZeRO-1 optimizer step on one rank.

    Reduce-scatter and all-gather are rings of two levels. Replicated parameters have all
    data-parallel ranks as copies, experts only those of other expert groups; both times the ranks
    of the pipeline that hold the same stages.

    The update reads gradient, master weight and moments, writes all but the gradient, and writes
    the BF16 parameter; before it the norm reads the shard's gradients, after it all gradients are
    cleared, and the gathered matrices cast to the copies that compute. That traffic runs at the
    rate which element-wise additions achieve.

    Args:
        holders: pipeline ranks that hold the same stages, this one among them.
        dense: what the fabric makes of the rings over replicated parameters.
        experts: the same of the rings over experts.
    """
    replicas = layout.dp * len(holders)
    expert_replicas = layout.expert_replicas * len(holders)
    of_dense = copies_of(layout, holders, experts=False)
    of_experts = copies_of(layout, holders, experts=True)

    def rings(operation: Collective, bytes_each: Bytes) -> NDArray[np.float64]:
        """[value, low, high], seconds of one exchange of all parameters."""
        parts = ((held.replicated, of_dense, dense), (held.experts, of_experts, experts))
        found = [
            transfers.collective(
                operation, parameters * bytes_each, form="ring", group=group, load=load
            )
            for parameters, group, load in parts
        ]
        each = [np.concatenate([time.seconds, time.low, time.high]) for time in found]
        total: NDArray[np.float64] = np.sum(each, axis=0)
        return total

    shard = held.replicated / replicas + held.experts / expert_replicas
    gradient, state = type_bytes(types.gradients), master_and_moments_bytes(types)
    norm = gradient
    updating = gradient + 2 * state + BF16_BYTES
    cast = held.quantized * BF16_BYTES + held.cast  # a byte each, scales left out
    traffic = shard * (norm + updating) + held.total * gradient + cast
    update = costs.predict(
        [_addition(traffic)], sms=transfers.cluster.node.gpu.sms, overlapped=False
    )
    reduced, gathered = rings("reduce_scatter", gradient), rings("all_gather", BF16_BYTES)
    _, low, high = (reduced + gathered).tolist()
    return OptimizerStep(
        reduce_s=float(reduced[0]),
        update_s=float(update.seconds[0]),
        gather_s=float(gathered[0]),
        exchange_ends_s=(low, high),
    )


def _addition(traffic: Bytes) -> Operator:
    """An element-wise addition that reads and writes `traffic` bytes."""
    columns = 1024
    rows = max(1, round(traffic / (3 * BF16_BYTES * columns)))
    return Operator(
        name="optimizer.update",
        kind="add",
        phase=WEIGHT_GRAD,
        segment="optimizer",
        dtype="bfloat16",
        out_dtype="bfloat16",
        sizes=(("columns", columns), ("rows", rows)),
        recompute=False,
        accumulate=False,
    )
