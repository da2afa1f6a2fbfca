"""Upper bounds that NICs and links put on a set of transfers.

Achieved rates of an all-to-all are measured on a non-blocking fabric, where the NICs decide. On
another fabric links between switches may decide, or the NICs that are left after a failure. Every
pair of GPUs is routed as the fabric's simulation routes it, and the busiest link bounds the time:

    time >= bytes of a GPU x max over links of (load of a byte of each GPU / bandwidth)

All flows of an all-to-all are equal and start together, so max-min fair sharing meets the bound
where one kind of link is the bottleneck (a test holds it against the flow-level simulation). Links
between switches count at line rate, as in that simulation. Other jobs, and failures later than the
start, are left out. SI units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import ClusterProfile, load_transport
from hardware_profiles.units import BytesPerSecond, Seconds
from simulator.hardware.network.clusters import cluster_fabric, nvlink_domains
from simulator.hardware.network.routing import Mask, parse_failure, route, struck_resources
from simulator.hardware.network.switching import Integers
from simulator.hardware.network.topology import Fabric

Array = NDArray[np.float64]

Pattern = Literal["every_gpu", "other_domains", "rail"]
"""every_gpu: each GPU sends the same to every GPU, itself and its node included, through NICs
wherever a plane joins the two (low-latency kernels). other_domains: the same without the GPUs of
its own NVLink domain, which NVLink serves (low-latency kernels of the mixed form). rail: to the GPU
of its own number in every other NVLink domain (normal kernels, which forward within the domain)."""


@dataclass(frozen=True, slots=True)
class FabricLoad:
    """Limits on what a GPU sends, beside its own NIC."""

    nic_stretch: float
    """Time that the busiest NIC needs over what a GPU's own bytes need without failures."""
    bandwidth: BytesPerSecond
    """What a GPU sends if only links beyond the NICs limited it."""
    latency: Seconds
    """Through NICs and switches, between the GPUs that are farthest apart."""

    def rate(self, nic: BytesPerSecond) -> BytesPerSecond:
        """What a GPU sends whose NIC alone would take `nic`."""
        return min(nic / self.nic_stretch, self.bandwidth)


NO_LIMIT = FabricLoad(nic_stretch=1.0, bandwidth=math.inf, latency=0.0)
"""Traffic that no NIC carries."""


def all_to_all_load(cluster: ClusterProfile, *, gpus: int, pattern: Pattern) -> FabricLoad:
    """Limits of an all-to-all among the first `gpus` GPUs of a cluster, on neighbouring ports.

    Raises ValueError where failures cut two of them off from each other.
    """
    per_domain = nvlink_domains(cluster, group=gpus).gpus_each
    # RDMA kernels take NICs inside a node, but not inside an NVLink domain of several.
    over_nics_inside = pattern == "every_gpu" and cluster.fabric.nvlink_domain_nodes == 1
    if gpus <= (1 if over_nics_inside else per_domain):
        return NO_LIMIT
    every = np.arange(gpus)
    if pattern == "rail":
        source, destination = rail_pairs(every[None, :], per_domain=per_domain)
        divided = most_of_a_gpu(source, destination)
    else:
        source, destination = (side.ravel() for side in np.meshgrid(every, every, indexing="ij"))
        near = per_domain if pattern == "other_domains" else 1
        peers = source // near != destination // near
        source, destination = source[peers], destination[peers]
        divided = gpus  # A GPU's share to itself, or to its domain, crosses no NIC.
    return transfer_loads(
        cluster,
        source,
        destination,
        group=np.zeros(len(source), dtype=np.int64),
        divided=divided,
        rdma=pattern != "rail",
        experts_on=gpus,
    )[0]


def most_of_a_gpu(source: Integers, destination: Integers) -> int:
    """The most flows that one GPU sends or receives: an all-to-all over rails divides the bytes of
    a GPU among so many. Where a domain has fewer GPUs of a group than others, they receive most."""
    return max(int(np.bincount(ends).max(initial=0)) for ends in (source, destination))


def rail_pairs(
    groups: NDArray[np.int64], *, per_domain: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Send from each GPU to that of its own number in every other NVLink domain of its group, as
    (sources, destinations); where a domain holds fewer GPUs of the group, they take turns.

    Args:
        groups: [groups, GPUs], in ascending order each.
        per_domain: GPUs of a domain.
    """
    place = np.arange(groups.shape[1])
    source, destination = [groups[:0, 0]], [groups[:0, 0]]
    domains = groups // per_domain
    domains -= domains[:, :1]
    shapes, shape_of = np.unique(domains, axis=0, return_inverse=True)
    for number, shape in enumerate(shapes):
        alike = groups[shape_of.ravel() == number]
        parts = np.split(place, np.flatnonzero(np.diff(shape)) + 1)
        for here in parts:
            for there in parts:
                if here is not there:
                    source.append(alike[:, here].ravel())
                    turn = np.arange(len(here)) % len(there)
                    destination.append(alike[:, there[turn]].ravel())
    return np.concatenate(source), np.concatenate(destination)


def transfer_loads(
    cluster: ClusterProfile,
    source: Integers,
    destination: Integers,
    *,
    group: Integers,
    divided: int,
    rdma: bool,
    experts_on: int,
) -> tuple[FabricLoad, ...]:
    """Limits of groups of equal flows between GPUs, all groups at once; one for each group.

    Args:
        source: GPU that sends, [flows].
        destination: GPU that receives, [flows].
        group: number of a flow's group from 0 on without holes, [flows].
        divided: flows among which a byte of a GPU is divided.
        rdma: through NICs even inside a node, where a plane joins the two.
        experts_on: GPUs of an expert-parallel group, as ``nvlink_domains`` takes it.

    Raises ValueError where failures cut a source off from its destination.
    """
    if not len(source):
        return ()
    groups = int(group.max()) + 1
    fabric = cluster_fabric(cluster, load_transport("ideal"), group=experts_on)
    if not fabric.planes:
        return (NO_LIMIT,) * groups
    left = _after_failures(cluster, fabric)

    def largest(capacity: Array) -> Array:
        """[3, groups], of `_seconds_per_byte`."""
        found = np.zeros((3, groups))
        of_flows = _seconds_per_byte(
            fabric, capacity, source, destination, divided=divided, rdma=rdma
        )
        for most, of_flow in zip(found, of_flows, strict=True):
            np.maximum.at(most, group, of_flow)
        return found

    nic, beyond, latency = largest(left)
    healthy = nic
    if not rdma:
        # A GPU's bytes over its own share of a NIC; others may take the same NIC where flows of
        # different groups meet.
        healthy = np.full(groups, 1.0 / cluster.node.nic_bandwidth_per_gpu)
    elif left is not fabric.capacity:
        healthy, _, _ = largest(fabric.capacity)
    return tuple(
        FabricLoad(
            nic_stretch=busy / alone if busy else 1.0,
            bandwidth=1.0 / links if links else math.inf,
            latency=farthest,
        )
        for busy, alone, links, farthest in zip(
            nic.tolist(), healthy.tolist(), beyond.tolist(), latency.tolist(), strict=True
        )
    )


def _after_failures(cluster: ClusterProfile, fabric: Fabric) -> Array:
    """[resources], bytes/s that are left by what is broken from the start."""
    struck = [failure for failure in map(parse_failure, cluster.failures) if failure.at <= 0]
    if not struck:
        return fabric.capacity
    factor = np.ones(fabric.resources)
    for failure in struck:
        factor[struck_resources(fabric, failure)] *= failure.factor
    alive = factor > 0
    left = np.multiply(fabric.capacity, factor, where=alive, out=np.zeros(fabric.resources))
    return fabric.bundle_capacity(left)


def _nic_links(fabric: Fabric) -> Mask:
    """[resources], whether it joins a NIC to its leaf switch."""
    mask = np.zeros(fabric.resources, dtype=bool)
    for start, plane in zip(fabric.plane_start, fabric.planes, strict=False):
        mask[start : start + 2 * plane.end_ports] = True
    return mask


def _seconds_per_byte(
    fabric: Fabric,
    capacity: Array,
    source: Integers,
    destination: Integers,
    *,
    divided: int,
    rdma: bool,
) -> Array:
    """For a byte that every GPU sends, [3, flows]: time of the busiest NIC on the way of a flow, of
    the busiest other link, and latency through NICs and switches."""
    dead = capacity <= 0
    found = route(fabric, source, destination, rdma=rdma, dead=dead if dead.any() else None)
    if not found.reachable.all():
        lost = int(np.argmin(found.reachable))
        raise ValueError(
            f"cluster.failures: no live path from GPU {source[lost]} to GPU {destination[lost]}"
        )
    carried = np.zeros(fabric.resources + 1)  # hop -1, unused, counts at the end
    for hop in found.paths.T:
        carried += np.bincount(hop % (fabric.resources + 1), minlength=fabric.resources + 1)
    used = carried[:-1] > 0
    seconds = np.zeros(fabric.resources + 1)
    seconds[:-1][used] = carried[:-1][used] / divided / capacity[used]
    nics = np.append(_nic_links(fabric), False)
    of_nic, of_link = np.where(nics, seconds, 0.0), np.where(nics, 0.0, seconds)
    delay = np.append(fabric.latency, 0.0)
    delay[: fabric.plane_start[0]] = 0.0  # NVLink and PCIe
    of_flows = np.zeros((3, len(source)))
    nic, link, latency = of_flows
    for hop in found.paths.T:
        np.maximum(nic, of_nic[hop], out=nic)
        np.maximum(link, of_link[hop], out=link)
        latency += delay[hop]
    return of_flows
