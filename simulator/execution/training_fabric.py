"""What the fabric makes of a training step's transfers: cluster, layout, schedule -> limits.

Every rank's expert-parallel group, pipeline peer and gradient ring is routed where ParallelLayout
puts it: GPU = (pipeline rank, data rank), nodes filled in order. So a group that straddles two
leaves, or owns the NIC that is broken, gets its own limits; ranks whose limits are equal stay
folded. Four kinds of transfers, of each kind all that run at the same stage of a step at once:

    dispatch, combine   each GPU to the GPU of its own number in the other nodes of its group, all
                        groups of the cluster at once
    pipeline sends      each GPU to the GPU of its own data rank on the rank before or after, all
                        ranks in one direction at once
    dense gradients,    a ring over the nodes of all ranks that hold the same stages, for each GPU
    parameters          of a node its own, all rings at once
    expert gradients,   the same over the nodes that hold the same experts
    parameters

Of the groups of one pipeline rank the worst figures count: replicas meet only at the gradients, and
the optimizer waits for the slowest of them. That is exact where one group is slower than the
others, and pessimistic where several are, in different replicas on different ranks.

Left out: transfers of different kinds share no link (all-to-all beside a pipeline send), a send and
one the other way do not share, and a ring keeps its order of nodes whatever fails. Groups inside a
node, and NVLink domains beyond one, are not routed: their NVLink and NICs count as in the profile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import ClusterProfile
from simulator.hardware.fabric_load import NO_LIMIT, FabricLoad, transfer_loads
from simulator.hardware.routing import parse_failure
from simulator.workload.layout import ParallelLayout
from simulator.workload.schedules import Schedule

Gpus = NDArray[np.int64]

_NODE_PORTS = ("nvlink", "pcie")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Flows:
    """Equal flows that run at once."""

    source: Gpus
    """[flows], GPU that sends."""
    destination: Gpus
    """[flows], GPU that receives."""
    rank: Gpus
    """[flows], pipeline rank of the sender."""


@dataclass(frozen=True, slots=True)
class StepLoads:
    """Limits of a training step's transfers, beside the NIC of a GPU."""

    all_to_all: tuple[FabricLoad, ...]
    """[rank], of dispatch and combine of its slowest expert-parallel group."""
    sends: Mapping[tuple[int, int], FabricLoad]
    """{(rank that sends, rank that receives): of its slowest pipeline send}"""
    dense: tuple[FabricLoad, ...]
    """[rank], of exchanging what every data-parallel rank holds."""
    experts: tuple[FabricLoad, ...]
    """[rank], of exchanging experts among their copies."""


def step_loads(cluster: ClusterProfile, layout: ParallelLayout, schedule: Schedule) -> StepLoads:
    """Limits of every transfer of a step.

    Raises:
        ValueError: failures that a step does not simulate, or that cut off one of its GPUs.
    """
    check_failures(cluster)
    all_to_all = _of_ranks(
        cluster,
        expert_flows(layout),
        ranks=schedule.ranks,
        divided=max(1, layout.expert_nodes - 1),
    )
    sends = {}
    for distance, flows in send_flows(layout, schedule).items():
        of_sender = _of_ranks(cluster, flows, ranks=schedule.ranks, divided=1)
        for rank in np.unique(flows.rank).tolist():
            sends[rank, rank + distance] = of_sender[rank]
    return StepLoads(
        all_to_all=tuple(_of_all_to_all(cluster, load) for load in all_to_all),
        sends=sends,
        dense=_of_rings(cluster, layout, schedule, stride=1),
        experts=_of_rings(cluster, layout, schedule, stride=layout.expert_nodes),
    )


def check_failures(cluster: ClusterProfile) -> None:
    """Refuse failures that a step would ignore."""
    for text in cluster.failures:
        failure = parse_failure(text)
        if cluster.fabric.topology == "nvlink_domain":
            raise ValueError(
                f"cluster.failures: {text}: failures of an NVLink domain are not simulated by a "
                "training step; allowed: none"
            )
        if failure.at > 0:
            raise ValueError(
                f"cluster.failures: {text}: a training step knows what is broken from the start "
                "only; allowed: without a time"
            )
        if failure.kind == "node":
            raise ValueError(
                f"cluster.failures: {text}: a training step needs every node; allowed: nic, plane, "
                "switch, link and slow"
            )
        if failure.name.rpartition("/")[2].startswith(_NODE_PORTS):
            raise ValueError(
                f"cluster.failures: {text}: a training step knows no failures inside a node; "
                "allowed: nic, plane, switch, and links of NICs and switches"
            )


def expert_flows(layout: ParallelLayout) -> Flows:
    """Dispatch of every expert-parallel group: each GPU to that of its own number in every other
    node of its group. None where a group lies inside a node."""
    groups = _nodes(layout).reshape(-1, layout.expert_nodes, layout.gpus_per_node)
    source, destination = np.nonzero(~np.eye(layout.expert_nodes, dtype=np.bool_))
    return _flows(layout, groups[:, source].ravel(), groups[:, destination].ravel())


def send_flows(layout: ParallelLayout, schedule: Schedule) -> dict[int, Flows]:
    """Pipeline sends that run at once, {ranks further on: flows}: each GPU to that of its own data
    rank where the next stage, or the one before, of one of the directions lies."""
    neighbours = {
        pair
        for placement in schedule.placement
        for earlier, later in pairwise(placement)
        for pair in ((earlier, later), (later, earlier))
        if earlier != later
    }
    by_distance: dict[int, list[tuple[int, int]]] = {}
    for start, end in sorted(neighbours):
        by_distance.setdefault(end - start, []).append((start, end))
    of_rank = _nodes(layout).reshape(layout.pp, -1)
    return {
        distance: _flows(
            layout,
            of_rank[[start for start, _ in pairs]].ravel(),
            of_rank[[end for _, end in pairs]].ravel(),
        )
        for distance, pairs in by_distance.items()
    }


def ring_flows(layout: ParallelLayout, schedule: Schedule, *, stride: int) -> Flows:
    """Rings over all nodes that hold the same parameters: each GPU to that of its own number in the
    next node of its ring.

    Args:
        stride: nodes of a rank that hold different parts of the parameters, 1 where all are alike.
    """
    nodes = _nodes(layout)
    sources, destinations = [], []
    for ranks in _holders(schedule):
        # [places in the ring, rings, GPUs of a node]
        ring = nodes[ranks].reshape(-1, stride, layout.gpus_per_node)
        if len(ring) > 1:
            sources.append(ring.ravel())
            destinations.append(np.roll(ring, -1, axis=0).ravel())
    none = np.zeros(0, dtype=np.int64)
    return _flows(layout, np.concatenate([none, *sources]), np.concatenate([none, *destinations]))


def _holders(schedule: Schedule) -> list[list[int]]:
    """Pipeline ranks that hold the same stages, together."""
    ranks_of: dict[tuple[int, ...], list[int]] = {}
    for rank in range(schedule.ranks):
        ranks_of.setdefault(schedule.stages_of(rank), []).append(rank)
    return list(ranks_of.values())


def _nodes(layout: ParallelLayout) -> Gpus:
    """[pipeline ranks, nodes of a rank, GPUs of a node], the GPU."""
    return np.arange(layout.gpus).reshape(layout.pp, -1, layout.gpus_per_node)


def _flows(layout: ParallelLayout, source: Gpus, destination: Gpus) -> Flows:
    return Flows(source, destination, source // layout.dp)


def _of_ranks(
    cluster: ClusterProfile, flows: Flows, *, ranks: int, divided: int
) -> tuple[FabricLoad, ...]:
    """[rank], limits of the flows that it sends; no limit for a rank that sends none."""
    loads = [NO_LIMIT] * ranks
    senders, group = np.unique(flows.rank, return_inverse=True)
    found = transfer_loads(
        cluster, flows.source, flows.destination, group=group, divided=divided, rdma=False
    )
    for rank, load in zip(senders.tolist(), found, strict=True):
        loads[rank] = load
    return tuple(loads)


def _of_rings(
    cluster: ClusterProfile, layout: ParallelLayout, schedule: Schedule, *, stride: int
) -> tuple[FabricLoad, ...]:
    """[rank], limits of its rings: their slowest hop, on whichever rank, sets the pace of all."""
    flows = ring_flows(layout, schedule, stride=stride)
    of_sender = _of_ranks(cluster, flows, ranks=schedule.ranks, divided=1)
    loads = list(of_sender)
    for ranks in _holders(schedule):
        hops = [of_sender[rank] for rank in ranks]
        slowest = FabricLoad(
            nic_stretch=max(load.nic_stretch for load in hops),
            bandwidth=min(load.bandwidth for load in hops),
            latency=max(load.latency for load in hops),
        )
        for rank in ranks:
            loads[rank] = slowest
    return tuple(loads)


def _of_all_to_all(cluster: ClusterProfile, load: FabricLoad) -> FabricLoad:
    """What dispatch and combine can feel of a limit, so that ranks that feel the same stay folded:
    no bandwidth beyond the NIC's, and no latency, which their notify time holds."""
    # Sums over links may round to a little less than the NIC's rate.
    limits = load.bandwidth < cluster.node.nic_bandwidth_per_gpu * (1 - _ROUNDING)
    return FabricLoad(
        nic_stretch=load.nic_stretch,
        bandwidth=load.bandwidth if limits else NO_LIMIT.bandwidth,
        latency=NO_LIMIT.latency,
    )
