"""What the network beyond a GPU's own NIC makes of an all-to-all: a cluster and its traffic in.

Achieved rates of an all-to-all are measured on a non-blocking fabric, where the NICs decide. On
another fabric links between switches may decide, or the NICs that are left after a failure. Every
pair of GPUs is routed as the fabric's simulation routes it, and the busiest link bounds the time:

    time >= bytes of a GPU x max over links of (load of a byte of each GPU / bandwidth)

All flows of an all-to-all are equal and start together, so max-min fair sharing meets the bound
where one kind of link is the bottleneck (a test holds it against the flow-level simulation). Links
between switches count at line rate, as in that simulation. The GPUs are the cluster's first, on
neighbouring ports; other jobs, and failures later than the start, are left out. SI units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.schema import ClusterProfile, load_transport
from hardware_profiles.units import BytesPerSecond, Seconds
from simulator.hardware.clusters import cluster_fabric
from simulator.hardware.routing import Mask, parse_failure, route, struck_resources
from simulator.hardware.topology import Fabric

Array = NDArray[np.float64]

Pattern = Literal["every_gpu", "rail"]
"""every_gpu: each GPU sends the same to every GPU, itself and its node included, through NICs
wherever a plane joins the two (low-latency kernels). rail: to the GPU of its own number in every
other node (normal kernels, which forward within the node)."""


@dataclass(frozen=True, slots=True)
class FabricLoad:
    """Limits on what a GPU sends, beside its own NIC."""

    nic_stretch: float
    """Time that the busiest NIC needs over the same without failures."""
    bandwidth: BytesPerSecond
    """What a GPU sends if only links beyond the NICs limited it."""
    latency: Seconds
    """Through NICs and switches, between the GPUs that are farthest apart."""


NO_LIMIT = FabricLoad(nic_stretch=1.0, bandwidth=math.inf, latency=0.0)
"""Traffic that no NIC carries."""


def all_to_all_load(cluster: ClusterProfile, *, gpus: int, pattern: Pattern) -> FabricLoad:
    """Limits of an all-to-all among the first `gpus` GPUs of a cluster.

    Raises ValueError where failures cut two of them off from each other.
    """
    per_node = cluster.node.gpus
    inside = gpus <= per_node if pattern == "rail" else gpus == 1
    if cluster.fabric.topology == "nvlink_domain" or inside:
        return NO_LIMIT
    fabric = cluster_fabric(cluster, load_transport("ideal"))
    left = _after_failures(cluster, fabric)
    busy, latency = _seconds_per_byte(fabric, left, gpus=gpus, pattern=pattern)
    nics = _nic_links(fabric)
    healthy = busy
    if left is not fabric.capacity:
        healthy, _ = _seconds_per_byte(fabric, fabric.capacity, gpus=gpus, pattern=pattern)
    beyond = float(busy[~nics].max(initial=0.0))
    alone = float(healthy[nics].max(initial=0.0))
    return FabricLoad(
        nic_stretch=float(busy[nics].max(initial=0.0)) / alone if alone else 1.0,
        bandwidth=1.0 / beyond if beyond else math.inf,
        latency=latency,
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
    fabric: Fabric, capacity: Array, *, gpus: int, pattern: Pattern
) -> tuple[Array, Seconds]:
    """Time of each resource for a byte that every GPU sends, [resources], and the longest latency
    through NICs and switches."""
    per_node = fabric.inputs.gpus_per_node
    source, destination = (
        side.ravel() for side in np.meshgrid(np.arange(gpus), np.arange(gpus), indexing="ij")
    )
    peers = source != destination
    if pattern == "rail":
        peers &= source % per_node == destination % per_node
    source, destination = source[peers], destination[peers]
    # Flows among which a GPU's byte is divided; its share to itself crosses no link.
    each = gpus if pattern == "every_gpu" else len(source) / gpus
    dead = capacity <= 0
    found = route(
        fabric,
        source,
        destination,
        rdma=pattern == "every_gpu",
        dead=dead if dead.any() else None,
    )
    if not found.reachable.all():
        lost = int(np.argmin(found.reachable))
        raise ValueError(
            f"cluster.failures: no live path from GPU {source[lost]} to GPU {destination[lost]}"
        )
    carried = np.zeros(fabric.resources + 1)
    latency = np.zeros(len(source))
    of_resource = np.append(fabric.latency, 0.0)
    of_resource[: fabric.plane_start[0]] = 0.0  # NVLink and PCIe
    for hop in found.paths.T:
        carried += np.bincount(hop % (fabric.resources + 1), minlength=fabric.resources + 1)
        latency += of_resource[hop]
    seconds = np.zeros(fabric.resources)
    used = carried[:-1] > 0
    seconds[used] = carried[:-1][used] / each / capacity[used]
    return seconds, float(latency.max(initial=0.0))
