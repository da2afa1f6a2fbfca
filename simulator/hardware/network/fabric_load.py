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
from simulator.hardware.network.clusters import cluster_fabric, gpus_per_domain
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
    per_domain = gpus_per_domain(cluster, group=gpus)
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
        experts_on: GPUs of an expert-parallel group, as ``gpus_per_domain`` takes it.

    Raises ValueError where failures cut a source off from its destination.
    """
    if not len(source):
        return ()
    fabric = cluster_fabric(cluster, load_transport("ideal"), group=experts_on)
    if not fabric.planes:
        return (NO_LIMIT,) * (int(group.max()) + 1)
    left = capacity_left(cluster, fabric)

    def crossed(capacity: Array) -> CrossedLinks:
        dead = capacity <= 0
        return crossed_links(fabric, source, destination, group=group, rdma=rdma, dead=dead)

    of_left = crossed(left)
    if not rdma:
        return crossed_loads(cluster, fabric, of_left, divided=divided)
    limits = _seconds_per_byte(fabric, left, of_left, divided=divided)
    healthy = limits[0]
    if left is not fabric.capacity:
        whole = crossed(fabric.capacity)
        healthy = _seconds_per_byte(fabric, fabric.capacity, whole, divided=divided)[0]
    return _loads(limits, healthy)


@dataclass(frozen=True, slots=True)
class CrossedLinks:
    """What groups of flows cross of a fabric, whatever the rates and latencies of its links."""

    carried: Array
    """[resources], flows over each."""
    crossed: Integers
    """[crossed], resources that each group crosses, group by group; -1 for none."""
    first: Integers
    """[groups], place of its first one."""
    paths: Integers
    """[paths, hops], resources of one flow of each group for each number of hops beyond NVLink and
    PCIe; -1 unused."""
    group: Integers
    """[paths], whose each is."""


def crossed_links(
    fabric: Fabric,
    source: Integers,
    destination: Integers,
    *,
    group: Integers,
    rdma: bool,
    dead: Mask,
) -> CrossedLinks:
    """Route groups of flows, of which there is at least one, through what is left of a fabric.

    Args:
        dead: [resources], what is broken; for the others, as of `transfer_loads`, which raises the
            same.
    """
    found = route(fabric, source, destination, rdma=rdma, dead=dead if dead.any() else None)
    if not found.reachable.all():
        lost = int(np.argmin(found.reachable))
        raise ValueError(
            f"cluster.failures: no live path from GPU {source[lost]} to GPU {destination[lost]}"
        )
    groups = int(group.max()) + 1
    carried = np.zeros(fabric.resources + 1)  # hop -1, unused, counts at the end
    crossed = np.zeros((groups, fabric.resources + 1), dtype=np.bool_)
    hops = np.zeros(len(source), dtype=np.intp)
    for hop in found.paths.T:
        carried += np.bincount(hop % (fabric.resources + 1), minlength=fabric.resources + 1)
        crossed[group, hop] = True
        hops += hop >= fabric.plane_start[0]
    of_group, resource = crossed.nonzero()
    # Flows of as many hops take as long: those of their two ends, and of the links between.
    alike = np.full((groups, int(hops.max()) + 1), -1)
    alike[group, hops] = np.arange(len(source))
    chosen = alike[alike >= 0]
    return CrossedLinks(
        carried=carried[:-1],
        crossed=resource,
        first=np.searchsorted(of_group, np.arange(groups)),
        paths=found.paths[chosen],
        group=group[chosen],
    )


def crossed_loads(
    cluster: ClusterProfile, fabric: Fabric, crossed: CrossedLinks, *, divided: int
) -> tuple[FabricLoad, ...]:
    """[groups], `transfer_loads` of flows that were routed; not of RDMA inside a node."""
    limits = _seconds_per_byte(fabric, capacity_left(cluster, fabric), crossed, divided=divided)
    # A GPU's bytes over its own share of a NIC; others may take the same NIC where flows of
    # different groups meet.
    return _loads(limits, np.full(limits.shape[1], 1.0 / cluster.node.nic_bandwidth_per_gpu))


def _loads(limits: Array, healthy: Array) -> tuple[FabricLoad, ...]:
    """[groups]

    Args:
        limits: [3, groups], as of `_seconds_per_byte`.
        healthy: [groups], the first of these without failures.
    """
    return tuple(
        FabricLoad(
            nic_stretch=busy / alone if busy else 1.0,
            bandwidth=1.0 / links if links else math.inf,
            latency=farthest,
        )
        for busy, links, farthest, alone in zip(*limits.tolist(), healthy.tolist(), strict=True)
    )


def capacity_left(cluster: ClusterProfile, fabric: Fabric) -> Array:
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
    fabric: Fabric, capacity: Array, crossed: CrossedLinks, *, divided: int
) -> Array:
    """For a byte that every GPU sends, [3, groups]: time of the busiest NIC on the way of a group's
    flows, of the busiest other link, and latency through NICs and switches."""
    used = crossed.carried > 0
    seconds = np.zeros(fabric.resources + 1)
    seconds[:-1][used] = crossed.carried[used] / divided / capacity[used]
    nics = np.append(_nic_links(fabric), False)[crossed.crossed]
    busy = seconds[crossed.crossed]
    delay = np.append(fabric.latency, 0.0)
    delay[: fabric.plane_start[0]] = 0.0  # NVLink and PCIe
    latency = np.zeros(len(crossed.paths))
    for hop in crossed.paths.T:
        latency += delay[hop]
    found = np.zeros((3, len(crossed.first)))
    found[0] = np.maximum.reduceat(np.where(nics, busy, 0.0), crossed.first)
    found[1] = np.maximum.reduceat(np.where(nics, 0.0, busy), crossed.first)
    np.maximum.at(found[2], crossed.group, latency)
    return found
