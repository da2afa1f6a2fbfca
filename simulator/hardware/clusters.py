"""From a cluster profile and a transport to a fabric: datasheet rates times achieved fractions."""

from hardware_profiles.schema import ClusterProfile, TransportProfile
from simulator.hardware.topology import Fabric, FabricInputs, build_fabric


def fabric_inputs(
    cluster: ClusterProfile, transport: TransportProfile, *, sms: int | None = None
) -> FabricInputs:
    """Return what the topology functions need, in SI units.

    ``sms`` are those of a communication kernel that copies over NVLink; where they move less than
    the links, they are the ceiling. PCIe is left out where it is wider than the NICs behind it,
    since nothing else of this model crosses it.
    """
    node, fabric = cluster.node, cluster.fabric
    nvlink = node.gpu.nvlink_bandwidth * transport.nvlink_efficiency
    if sms is not None:
        nvlink = min(nvlink, sms * transport.copy_bandwidth_per_sm)
    nic = node.nic.bandwidth * transport.nic_efficiency
    nics_of_gpu = node.nics / node.gpus
    pcie = node.gpu.pcie_bandwidth
    dragonfly = fabric.dragonfly
    return FabricInputs(
        nodes=cluster.nodes,
        gpus_per_node=node.gpus,
        nics_per_node=node.nics,
        nvlink_bandwidth=nvlink if node.gpus > 1 else None,
        nvlink_latency=node.nvlink_latency,
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
    cluster: ClusterProfile, transport: TransportProfile, *, sms: int | None = None
) -> Fabric:
    """Build a cluster's fabric. Raises ValueError where its figures do not make one."""
    return build_fabric(cluster.fabric.topology, fabric_inputs(cluster, transport, sms=sms))
