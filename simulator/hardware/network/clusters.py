"""Build a cluster's fabric from its profile, and say which of its GPUs share an NVLink domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hardware_profiles.schema import ClusterProfile, TransportProfile
from simulator.hardware.network.topology import Fabric, FabricInputs, build_fabric


@dataclass(frozen=True, slots=True)
class NvlinkDomains:
    """How the GPUs of a job lie in NVLink domains: GPU g in domain g // gpus_each."""

    count: int
    gpus_each: int
    """GPUs of a domain that are used; the last domain may have fewer."""
    nodes: int
    """Nodes of the job."""
    node_gpus: int
    domain_nodes: int
    """Nodes that a full domain has."""

    @property
    def idle_nodes(self) -> int:
        """Whole nodes of each domain that no GPU of the job is on."""
        return self.domain_nodes - -(-self.gpus_each // self.node_gpus)

    def __str__(self) -> str:
        used = self.domain_nodes - self.idle_nodes
        return (
            f"{self.nodes} nodes in {self.count} NVLink domain{'s' * (self.count > 1)}: {used} of "
            f"the {self.domain_nodes} nodes of each, {self.idle_nodes} idle and not counted"
        )


def nvlink_domains(cluster: ClusterProfile, *, group: int = 1) -> NvlinkDomains:
    """Spread a cluster's GPUs over as many NVLink domains as they need.

    A group that fits a domain never straddles two; a larger one has the same number of GPUs in each
    of its domains. Groups are then spread evenly, so that a domain may have nodes to spare. Where
    NVLink ends at the node, nodes are filled in order and groups straddle them as they fall.

    Args:
        group: GPUs of an expert-parallel group.
    """
    per_node, joined = cluster.node.gpus, cluster.fabric.nvlink_domain_nodes
    size = joined * per_node
    if joined == 1:
        each = per_node
    elif group > size:
        domains = -(-group // size)
        while group % domains:
            domains += 1
        each = group // domains
    else:
        # Whole groups on whole nodes, where a domain has room for a unit of both.
        unit = math.lcm(group, per_node)
        unit = unit if unit <= size else group
        units = -(-cluster.gpus // unit)
        domains = -(-units // (size // unit))
        each = -(-units // domains) * unit
    return NvlinkDomains(
        count=-(-cluster.gpus // each),
        gpus_each=each,
        nodes=cluster.nodes,
        node_gpus=per_node,
        domain_nodes=joined,
    )


def first_gpus(cluster: ClusterProfile, groups: Sequence[int]) -> list[int]:
    """First GPU of each group where groups lie one after the other on a cluster.

    A group that fits an NVLink domain of several nodes never straddles two. The domains are those
    that the largest group asks for.

    Args:
        groups: GPUs of each group.

    Raises:
        ValueError: the cluster has fewer GPUs than they take.
    """
    each = nvlink_domains(cluster, group=max(groups, default=1)).gpus_each
    first, end = [], 0
    for group in groups:
        left = -end % each
        if cluster.fabric.nvlink_domain_nodes > 1 and left < group <= each:
            end += left
        first.append(end)
        end += group
    if end > cluster.gpus:
        idle = end - sum(groups)
        within = f" and leave {idle} idle so that none straddles NVLink domains" if idle else ""
        raise ValueError(
            f"fleet: the pools have {sum(groups)} GPUs{within}; allowed: at most the "
            f"{cluster.gpus} of cluster {cluster.name}"
        )
    return first


def fabric_inputs(
    cluster: ClusterProfile,
    transport: TransportProfile,
    *,
    sms: int | None = None,
    group: int = 1,
) -> FabricInputs:
    """Return what the topology functions need, in SI units; an NVLink domain is a node to them.

    ``sms`` are those of a communication kernel that copies over NVLink; where they move less than
    the links, they are the ceiling. PCIe is left out where it is wider than the NICs behind it,
    since nothing else of this model crosses it.

    Args:
        group: GPUs of an expert-parallel group, which decides how GPUs lie in NVLink domains.
    """
    node, fabric = cluster.node, cluster.fabric
    domains = nvlink_domains(cluster, group=group)
    nics = domains.gpus_each * node.nics / node.gpus
    if not nics.is_integer():
        raise ValueError(
            f"cluster {cluster.name}: {domains.gpus_each} GPUs of an NVLink domain have {nics:g} "
            f"NICs; allowed: expert-parallel groups that fill nodes of {node.gpus} GPUs"
        )
    nvlink = node.gpu.nvlink_bandwidth * transport.achieved.nvlink.value
    if sms is not None:
        per_sm = transport.copy_bandwidth_per_sm * node.gpu.clock_ratio
        nvlink = min(nvlink, sms * per_sm)
    nic = node.nic.bandwidth * transport.achieved.nic.value
    nics_of_gpu = node.nics / node.gpus
    pcie = node.gpu.pcie_bandwidth
    dragonfly = fabric.dragonfly
    return FabricInputs(
        nodes=domains.count,
        gpus_per_node=domains.gpus_each,
        nics_per_node=int(nics),
        nvlink_bandwidth=nvlink if domains.gpus_each > 1 else None,
        nvlink_latency=node.nvlink_latency,
        rdma_inside=fabric.nvlink_domain_nodes == 1,
        nic_bandwidth=nic,
        pcie_bandwidth=pcie if pcie < nic * max(nics_of_gpu, 1) else None,
        link_bandwidth=fabric.link_bandwidth or node.nic.bandwidth,
        same_leaf_latency=fabric.same_leaf_latency,
        cross_leaf_latency=fabric.cross_leaf_latency,
        switch_ports=fabric.switch_ports,
        oversubscription=fabric.oversubscription,
        planes=fabric.planes,
        groups=dragonfly.groups if dragonfly else 0,
        group_switches=dragonfly.group_switches if dragonfly else 0,
        switch_nics=dragonfly.switch_nics if dragonfly else 0,
        global_ports=dragonfly.global_ports if dragonfly else 0,
        order=fabric.slim_fly_order or 0,
        routing=fabric.routing,
        cross_plane=fabric.cross_plane,
    )


def cluster_fabric(
    cluster: ClusterProfile,
    transport: TransportProfile,
    *,
    sms: int | None = None,
    group: int = 1,
) -> Fabric:
    """Build a cluster's fabric; arguments as of ``fabric_inputs``.

    Raises ValueError where its figures do not make one.
    """
    inputs = fabric_inputs(cluster, transport, sms=sms, group=group)
    if cluster.fabric.topology == "multi_rail_fat_tree" and not inputs.rdma_inside:
        raise ValueError(
            "topology multi_rail_fat_tree: rails of NVLink domains of several nodes are not "
            "modelled; allowed: multi_plane_fat_tree, a plane for each NIC of a node, or fat_tree_2"
        )
    return build_fabric(cluster.fabric.topology, inputs)
