"""Build a cluster's fabric from its profile, and say which of its GPUs share an NVLink domain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hardware_profiles.schema import ClusterProfile, TransportProfile
from simulator.hardware.network.topology import Fabric, FabricInputs, build_fabric


def gpus_per_domain(cluster: ClusterProfile, *, group: int = 1) -> int:
    """GPUs of an NVLink domain that are used, where a cluster's GPUs are spread over as many
    domains as they need: GPU g lies in domain g // that many, and the last domain may have fewer.

    A group that fits a domain never straddles two; a larger one has the same number of GPUs in each
    of its domains. Groups are then spread evenly, so that a domain may have nodes to spare. Where
    NVLink ends at the node, nodes are filled in order and groups straddle them as they fall.

    Args:
        group: GPUs of an expert-parallel group.
    """
    per_node, joined = cluster.node.gpus, cluster.fabric.nvlink_domain_nodes
    size = joined * per_node
    if joined == 1:
        return per_node
    if group > size:
        domains = -(-group // size)
        while group % domains:
            domains += 1
        return group // domains
    # Whole groups on whole nodes, where a domain has room for a unit of both.
    unit = math.lcm(group, per_node)
    unit = unit if unit <= size else group
    units = -(-cluster.gpus // unit)
    domains = -(-units // (size // unit))
    return -(-units // domains) * unit


def idle_nodes_text(cluster: ClusterProfile, *, group: int) -> str | None:
    """Says how many whole nodes of each NVLink domain no GPU of a job is on; None where all of them
    are used.

    Args:
        group: GPUs of an expert-parallel group.
    """
    each, nodes = gpus_per_domain(cluster, group=group), cluster.fabric.nvlink_domain_nodes
    used, domains = -(-each // cluster.node.gpus), -(-cluster.gpus // each)
    if used == nodes:
        return None
    return (
        f"{cluster.nodes} nodes in {domains} NVLink domain{'s' * (domains > 1)}: {used} of the "
        f"{nodes} nodes of each, {nodes - used} idle and not counted"
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
    each = gpus_per_domain(cluster, group=max(groups, default=1))
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
    each = gpus_per_domain(cluster, group=group)
    nics = each * node.nics / node.gpus
    if not nics.is_integer():
        raise ValueError(
            f"cluster {cluster.name}: {each} GPUs of an NVLink domain have {nics:g} "
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
        nodes=-(-cluster.gpus // each),
        gpus_per_node=each,
        nics_per_node=int(nics),
        nvlink_bandwidth=nvlink if each > 1 else None,
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
