"""The limits that the fabric puts on a training step's transfers.

Every rank's expert-parallel group, pipeline peer and gradient ring is routed where ParallelLayout
puts it, NVLink domains (nodes, or racks) filled in order. What
stays inside a domain goes over NVLink and takes no NIC. A group that straddles two leaves, or owns
the NIC that is broken, gets its own limits; ranks whose limits are equal stay folded. Four kinds of
transfers, of each kind all that run at the same stage of a step at once:

    dispatch, combine   each GPU to the GPU of its own number in the other domains of its group, all
                        groups of the cluster at once
    pipeline sends      each GPU to the GPU of its own place on the rank before or after, all
                        ranks in one direction at once
    dense gradients,    a ring over the domains of all ranks that hold the same stages, for each
    parameters          GPU of a domain its own, all rings at once
    expert gradients,   the same over the domains that hold the same experts
    parameters

Of the groups of one pipeline rank the worst figures count: replicas meet only at the gradients, and
the optimizer waits for the slowest of them. That is exact where one group is slower than the
others, and pessimistic where several are, in different replicas on different ranks.

Groups that share layers or sequences take their links' own rates (`collective_groups`): nothing of
theirs is routed, and no failure slows them.

Left out: transfers of different kinds share no link (all-to-all beside a pipeline send), a send and
one the other way do not share, and a ring keeps its order of domains whatever fails. What NVLink
joins is not routed: its rate counts as in the profile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.by_content import Keyed, object_key, profile_key
from hardware_profiles.schema import ClusterProfile, load_transport
from simulator.hardware.network.clusters import cluster_fabric
from simulator.hardware.network.fabric_load import (
    NO_LIMIT,
    CrossedLinks,
    FabricLoad,
    capacity_left,
    crossed_links,
    crossed_loads,
    most_of_a_gpu,
    rail_pairs,
)
from simulator.hardware.network.groups import Domains
from simulator.hardware.network.routing import Mask, parse_failure
from simulator.hardware.network.topology import Fabric, without_rates
from simulator.workload.layout import ParallelLayout
from simulator.workload.schedules.order import Schedule

Gpus = NDArray[np.int64]

_NODE_PORTS = ("nvlink", "pcie")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class EqualFlows:
    """Equal flows that run at once."""

    source: Gpus
    """[flows], GPU that sends."""
    destination: Gpus
    """[flows], GPU that receives."""
    rank: Gpus
    """[flows], pipeline rank of the sender."""
    divided: int = 1
    """Flows among which a byte of a GPU is divided."""

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """Ascending, ranks that send any."""
        return tuple(np.unique(self.rank).tolist())

    def beyond(self, per_domain: int) -> EqualFlows:
        """Those that leave an NVLink domain of so many GPUs."""
        leaves = self.source // per_domain != self.destination // per_domain
        return EqualFlows(self.source[leaves], self.destination[leaves], self.rank[leaves])


@dataclass(frozen=True, slots=True)
class StepLoads:
    """Limits of a training step's transfers, beside the NIC of a GPU."""

    all_to_all: tuple[FabricLoad, ...]
    """[rank], of dispatch and combine of its slowest expert-parallel group."""
    sends: Mapping[tuple[int, int], FabricLoad | None]
    """{(rank that sends, rank that receives): of its slowest pipeline send; None where all of them
    stay inside NVLink domains}"""
    dense: tuple[FabricLoad, ...]
    """[rank], of exchanging what every data-parallel rank holds."""
    experts: tuple[FabricLoad, ...]
    """[rank], of exchanging experts among their copies."""


def step_loads(cluster: ClusterProfile, layout: ParallelLayout, schedule: Schedule) -> StepLoads:
    """Limits of every transfer of a step.

    Raises:
        ValueError: failures that a step does not simulate, or that cut off one of its GPUs.
    """
    return _step_loads(
        profile_key(cluster, without=NOT_OF_LINKS), layout, Keyed(schedule.placement, schedule)
    )


NOT_OF_LINKS = {
    "gpu_price": True,
    "node": {
        "gpu": dict.fromkeys(
            ("peak_compute", "hbm_capacity", "hbm_bandwidth", "l2_capacity", "power"), True
        )
    },
}
"""Fields of a cluster that no link rests on."""


@lru_cache(maxsize=64)
def _step_loads(
    of_cluster: Keyed[ClusterProfile], layout: ParallelLayout, placed: Keyed[Schedule]
) -> StepLoads:
    """`step_loads`, of which the placement of stages is all that counts of a schedule."""
    cluster, schedule = of_cluster.value, placed.value
    check_failures(cluster)
    dispatch, sent, dense, experts = _flows_of_a_step(layout, placed)
    all_to_all = _of_ranks(cluster, dispatch, layout)
    sends: dict[tuple[int, int], FabricLoad | None] = {}
    for distance, (whole, beyond) in sent.items():
        of_sender = _of_ranks(cluster, beyond, layout)
        for rank in whole.ranks:
            leaves = rank in beyond.ranks
            sends[rank, rank + distance] = of_sender[rank] if leaves else None
    return StepLoads(
        all_to_all=tuple(_of_all_to_all(cluster, load) for load in all_to_all),
        sends=sends,
        dense=_of_rings(cluster, layout, schedule, dense),
        experts=_of_rings(cluster, layout, schedule, experts),
    )


@lru_cache(maxsize=64)
def _flows_of_a_step(
    layout: ParallelLayout, placed: Keyed[Schedule]
) -> tuple[EqualFlows, Mapping[int, tuple[EqualFlows, EqualFlows]], EqualFlows, EqualFlows]:
    """Of dispatch, of sends by distance, all and those that leave domains, of dense rings and of
    experts', on whatever links."""
    schedule = placed.value
    return (
        expert_flows(layout),
        {
            distance: (flows, flows.beyond(layout.gpus_per_domain))
            for distance, flows in send_flows(layout, schedule).items()
        },
        ring_flows(layout, schedule, experts=False),
        ring_flows(layout, schedule, experts=True),
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


def expert_flows(layout: ParallelLayout) -> EqualFlows:
    """Dispatch of every expert-parallel group: each GPU to that of its own number in every other
    domain of its group. None where a group lies inside a domain."""
    source, destination = rail_pairs(layout.groups_of("expert"), per_domain=layout.gpus_per_domain)
    divided = most_of_a_gpu(source, destination)
    return replace(_flows(layout, source, destination), divided=divided)


def send_flows(layout: ParallelLayout, schedule: Schedule) -> dict[int, EqualFlows]:
    """Pipeline sends that run at once, {ranks further on: flows}: each GPU to that of its own
    place where the next stage, or the one before, of one of the directions lies."""
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
    of_rank = layout.dense_grid.reshape(layout.pp, -1)
    return {
        distance: _flows(
            layout,
            of_rank[[start for start, _ in pairs]].ravel(),
            of_rank[[end for _, end in pairs]].ravel(),
        )
        for distance, pairs in by_distance.items()
    }


def copies_of(layout: ParallelLayout, holders: Sequence[int], *, experts: bool) -> Domains:
    """How copies lie in domains, at the worst place of a group that shares parameters out.

    Args:
        holders: pipeline ranks that hold the same stages.
        experts: copies of the experts at one place of a group; else of what every rank holds.
    """
    return _copies_of(layout, tuple(holders), experts)


@lru_cache(maxsize=1024)
def _copies_of(layout: ParallelLayout, holders: tuple[int, ...], experts: bool) -> Domains:
    return _spread(
        [[len(part) for part in parts] for parts in _by_domain(layout, holders, experts=experts)]
    )


def collective_groups(layout: ParallelLayout) -> dict[str, Domains]:
    """{axis: how its GPUs lie in domains}, of the axes whose GPUs share layers or sequences."""
    sizes = {"tensor": layout.tp, "expert_tensor": layout.etp, "context": layout.cp}
    return {axis: _spread([layout.parts_of(axis)]) for axis, size in sizes.items() if size > 1}


def _spread(parts: Sequence[Sequence[int]]) -> Domains:
    """How groups with so many GPUs in each of their domains lie, at the worst."""
    return Domains(
        domains=max(map(len, parts)), fewest=min(map(min, parts)), most=max(map(max, parts))
    )


def ring_flows(layout: ParallelLayout, schedule: Schedule, *, experts: bool) -> EqualFlows:
    """Rings over all domains that hold the same parameters: each GPU to that of its own number in
    the next domain of its ring. A domain with fewer copies than others has as many rings.

    Args:
        experts: rings over copies of experts; else over those of what every rank holds.
    """
    none = np.zeros(0, dtype=np.int64)
    sources, destinations = [none], [none]
    for ranks in holders_of(schedule):
        for parts in _by_domain(layout, ranks, experts=experts):
            if len(parts) > 1:
                rings = min(map(len, parts))
                hops = [part[:rings] for part in parts]
                sources += hops
                destinations += [*hops[1:], hops[0]]
    return _flows(layout, np.concatenate(sources), np.concatenate(destinations))


def _by_domain(
    layout: ParallelLayout, holders: Sequence[int], *, experts: bool
) -> list[list[Gpus]]:
    """GPUs that hold the same parameters, split by domain; for every place of a group that shares
    experts out, or that shares layers."""
    grid = layout.expert_grid if experts else layout.dense_grid
    shared = layout.ep * layout.etp if experts else layout.tp
    held = np.sort(grid[sorted(holders)].reshape(-1, shared), axis=0)
    ends = np.diff(held // layout.gpus_per_domain, axis=0)
    found = []
    for of_place, leaves in zip(held.T, ends.T, strict=True):
        edges = (0, *(leaves.nonzero()[0] + 1).tolist(), len(of_place))
        found.append([of_place[start:end] for start, end in pairwise(edges)])
    return found


def holders_of(schedule: Schedule) -> list[list[int]]:
    """Pipeline ranks that hold the same stages, together."""
    ranks_of: dict[tuple[int, ...], list[int]] = {}
    for rank in range(schedule.ranks):
        ranks_of.setdefault(schedule.stages_of(rank), []).append(rank)
    return list(ranks_of.values())


def _flows(layout: ParallelLayout, source: Gpus, destination: Gpus) -> EqualFlows:
    rank_of = np.empty(layout.gpus, dtype=np.int64)
    rank_of[layout.dense_grid.reshape(layout.pp, -1)] = np.arange(layout.pp)[:, None]
    return EqualFlows(source, destination, rank_of[source])


def _of_ranks(
    cluster: ClusterProfile, flows: EqualFlows, layout: ParallelLayout
) -> tuple[FabricLoad, ...]:
    """[rank], limits of the flows that it sends; no limit for a rank that sends none."""
    loads = [NO_LIMIT] * layout.pp
    if not flows.ranks:
        return tuple(loads)
    fabric = cluster_fabric(cluster, load_transport("ideal"), group=layout.group)
    if not fabric.planes:
        return tuple(loads)
    dead = capacity_left(cluster, fabric) <= 0
    where = (fabric.topology, without_rates(fabric.inputs), dead.tobytes())
    crossed = _crossed(Keyed(where, (fabric, dead)), object_key(flows))
    found = crossed_loads(cluster, fabric, crossed, divided=flows.divided)
    for rank, load in zip(flows.ranks, found, strict=True):
        loads[rank] = load
    return tuple(loads)


@lru_cache(maxsize=64)
def _crossed(where: Keyed[tuple[Fabric, Mask]], flows: Keyed[EqualFlows]) -> CrossedLinks:
    """What flows cross of a fabric of which so much is broken, whatever its rates; in groups, one
    for each rank that sends."""
    (fabric, dead), equal = where.value, flows.value
    group = np.searchsorted(equal.ranks, equal.rank)
    return crossed_links(
        fabric, equal.source, equal.destination, group=group, rdma=False, dead=dead
    )


def _of_rings(
    cluster: ClusterProfile, layout: ParallelLayout, schedule: Schedule, flows: EqualFlows
) -> tuple[FabricLoad, ...]:
    """[rank], limits of its rings: their slowest hop, on whichever rank, sets the pace of all."""
    of_sender = _of_ranks(cluster, flows, layout)
    loads = list(of_sender)
    for ranks in holders_of(schedule):
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
