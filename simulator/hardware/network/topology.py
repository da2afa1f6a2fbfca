"""Fabrics: the numbered resources of nodes, NICs and switches, with part counts and prices.

A ``Fabric`` is nodes of GPUs on NVLink, one or more NICs a node, and one ``SwitchNetwork`` a plane;
a node here is whatever NVLink joins, a server or a rack.
Everything that traffic shares is a numbered resource with a capacity (bytes/s, one direction) and a
latency (s): NVLink out and in of each GPU, PCIe out and in of each GPU, then the planes one after
the other in the numbering of ``switching``, and what ``with_copiers`` added. ``TOPOLOGIES`` names
the families; a new one is one function and one line there.

Latency. The two figures that are published, 64-byte latency under one leaf (one switch) and across
leaves (three switches), determine two hop latencies: a switch with one cable adds half their
difference, and what remains of the first is the two ends (NIC, PCIe, first cable). Longer routes
are sums of the same hops. Source of the figures: Insights into DeepSeek-V3 (arXiv 2505.09343),
Table 5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from hardware_profiles.suggestions import meant_or_known
from simulator.hardware.network import direct_networks, switching
from simulator.hardware.network.fairness import Floats
from simulator.hardware.network.switching import Counts, Indices, Integers, Routing, SwitchNetwork

if TYPE_CHECKING:
    import networkx as nx

CrossPlane = Literal["forward", "refuse"]
"""What happens to a send between GPUs whose NICs sit in different planes.

forward: inside the source node over NVLink to the GPU that owns a NIC of the destination's plane
(what NCCL calls PXN). refuse: an error.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricInputs:
    """Everything that a topology function needs; SI units, bandwidths per direction."""

    nodes: int
    gpus_per_node: int
    nics_per_node: int
    """0: no NICs, the NVLink domain is the whole fabric."""
    nvlink_bandwidth: float | None
    """Bytes/s of one GPU after protocol efficiency; None: no NVLink."""
    nvlink_latency: float
    """Seconds between two GPUs of a node, end to end."""
    rdma_inside: bool = True
    """Whether RDMA kernels take NICs even between GPUs of a node, where a plane joins the two."""
    nic_bandwidth: float
    """Bytes/s of one NIC after protocol efficiency."""
    pcie_bandwidth: float | None
    """Bytes/s between a GPU and its NICs; None: not a limit."""
    link_bandwidth: float
    """Bytes/s of one cable between switches."""
    same_leaf_latency: float
    cross_leaf_latency: float
    switch_ports: int = 64
    oversubscription: float = 1.0
    """Ports down over ports up of a leaf switch."""
    planes: int = 1
    groups: int = 0
    group_switches: int = 0
    switch_nics: int = 0
    global_ports: int = 0
    """Dragonfly: groups, switches in a group, NICs and global ports on a switch."""
    order: int = 0
    """Slim fly: the order q."""
    routing: Routing = "adaptive"
    cross_plane: CrossPlane = "forward"

    def __post_init__(self) -> None:
        for name in ("nodes", "gpus_per_node", "planes"):
            if getattr(self, name) < 1:
                raise ValueError(f"fabric: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("nvlink_bandwidth", "nic_bandwidth", "pcie_bandwidth", "link_bandwidth"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"fabric: {name} must be above 0 bytes/s, got {value:g}")
        if self.nics_per_node and self.gpus_per_node % self.nics_per_node:
            gpus, (each, rest) = self.gpus_per_node, divmod(self.nics_per_node, self.gpus_per_node)
            fits = ", ".join(str(number) for number in range(1, gpus + 1) if gpus % number == 0)
            as_one = f"; {each} NICs of a GPU are one of {each} times the rate"
            raise ValueError(
                f"fabric: {self.nics_per_node} NICs do not divide {gpus} GPUs of a node evenly; "
                f"allowed: {fits}{'' if rest else as_one}"
            )

    @property
    def nics(self) -> int:
        """NICs of the whole fabric."""
        return self.nodes * self.nics_per_node


def without_rates(inputs: FabricInputs) -> FabricInputs:
    """What decides the ways through a fabric, whatever its rates and latencies."""
    return replace(
        inputs,
        nvlink_bandwidth=None if inputs.nvlink_bandwidth is None else 1.0,
        nvlink_latency=0.0,
        nic_bandwidth=1.0,
        pcie_bandwidth=None if inputs.pcie_bandwidth is None else 1.0,
        link_bandwidth=1.0,
        same_leaf_latency=0.0,
        cross_leaf_latency=0.0,
    )


@dataclass(frozen=True, slots=True)
class Fabric:
    """A built fabric; ``resource`` numbers are defined by the module."""

    topology: str
    inputs: FabricInputs
    planes: tuple[SwitchNetwork, ...]
    nic_plane: Indices
    """[nics_per_node], plane of each NIC of a node."""
    end_port: Indices
    """[nodes, nics_per_node], end port of each NIC inside its plane."""
    plane_start: Integers
    """[planes + 1], first resource of each plane."""
    capacity: Floats = field(repr=False)
    """[resources], bytes/s."""
    latency: Floats = field(repr=False)
    """[resources], seconds."""

    @property
    def gpus(self) -> int:
        """GPUs of the whole fabric."""
        return self.inputs.nodes * self.inputs.gpus_per_node

    @property
    def resources(self) -> int:
        """All resources, bundles included."""
        return len(self.capacity)

    def nvlink(self, gpu: Integers, way: Literal["out", "in"]) -> Integers:
        """Resource of each GPU's NVLink port."""
        return gpu + (0 if way == "out" else self.gpus)

    def pcie(self, gpu: Integers, way: Literal["out", "in"]) -> Integers:
        """Resource of each GPU's PCIe link to its NIC."""
        return gpu + (2 if way == "out" else 3) * self.gpus

    def with_copiers(self, rates: Sequence[float]) -> "Fabric":
        """The same, and SMs of every GPU that copy tokens, as more resources.

        Args:
            rates: bytes/s of each kind of copies, out to NVLink and in from it alike.
        """
        more = np.repeat(np.asarray(rates, dtype=float), 2 * self.gpus)
        return replace(
            self,
            capacity=np.concatenate([self.capacity, more]),
            latency=np.concatenate([self.latency, np.zeros(len(more))]),
        )

    def copier(self, gpu: Integers, kind: int, way: Literal["out", "in"]) -> Integers:
        """Resource of the SMs of each GPU that make one kind of copies."""
        return int(self.plane_start[-1]) + gpu + (2 * kind + (way == "in")) * self.gpus

    def nic_link(self, node: int, nic: int, way: Literal["up", "down"]) -> int:
        """Resource between a NIC and its leaf switch."""
        plane = int(self.nic_plane[nic])
        port = int(self.end_port[node, nic])
        return (
            int(self.plane_start[plane])
            + port
            + (0 if way == "up" else self.planes[plane].end_ports)
        )

    def is_bundle(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Mask [resources] of the bundles."""
        mask = np.zeros(self.resources, dtype=bool)
        for plane, network in enumerate(self.planes):
            end = self.plane_start[plane + 1]
            mask[end - network.bundles : end] = True
        return mask

    def resource_name(self, resource: int) -> str:
        """Name of a link or bundle, such as "node3/nic1/up" or "plane2/leaf0/up5"."""
        inputs = self.inputs
        if resource < self.plane_start[0]:
            kind, gpu = divmod(resource, self.gpus)
            port = ("nvlink_out", "nvlink_in", "pcie_out", "pcie_in")[kind]
            return f"node{gpu // inputs.gpus_per_node}/gpu{gpu % inputs.gpus_per_node}/{port}"
        if resource >= self.plane_start[-1]:
            way, gpu = divmod(resource - int(self.plane_start[-1]), self.gpus)
            port = ("copies_out", "copies_in")[way % 2]
            return f"node{gpu // inputs.gpus_per_node}/gpu{gpu % inputs.gpus_per_node}/{port}"
        plane = int(np.searchsorted(self.plane_start, resource, side="right")) - 1
        network = self.planes[plane]
        local = resource - int(self.plane_start[plane])
        if local < 2 * network.end_ports:
            way, port_number = divmod(local, network.end_ports)
            nics = np.flatnonzero(self.nic_plane == plane)
            node, nic = np.argwhere(self.end_port[:, nics] == port_number)[0]
            return f"node{node}/nic{nics[nic]}/{('up', 'down')[way]}"
        local -= 2 * network.end_ports
        if local < network.links:
            return f"plane{plane}/{network.link_names(local)}"
        return f"plane{plane}/{network.bundle_names(local - network.links)}"

    def resource_names(self, resources: Integers) -> list[str]:
        """Names of many resources; NIC links are looked up all at once."""
        owners = (
            {
                (int(self.nic_plane[nic]), int(port)): (node, nic)
                for nic in range(self.inputs.nics_per_node)
                for node, port in enumerate(self.end_port[:, nic])
            }
            if len(resources) > 1
            else {}
        )
        names = []
        for resource in resources.tolist():
            plane = int(np.searchsorted(self.plane_start, resource, side="right")) - 1
            local = resource - int(self.plane_start[max(plane, 0)])
            if (
                0 <= plane < len(self.planes)
                and owners
                and local < 2 * self.planes[plane].end_ports
            ):
                way, port = divmod(local, self.planes[plane].end_ports)
                node, nic = owners[plane, port]
                names.append(f"node{node}/nic{nic}/{('up', 'down')[way]}")
            else:
                names.append(self.resource_name(resource))
        return names

    def spread_over_links(self, carried: Floats, capacity: Floats) -> Floats:
        """Move what bundles carried to their links, in proportion to capacity; [resources]."""
        spread = np.where(self.is_bundle(), 0.0, carried)
        for plane, network in enumerate(self.planes):
            if not network.bundles:
                continue
            first_link = int(self.plane_start[plane]) + 2 * network.end_ports
            first_bundle = first_link + network.links
            for bundle in np.flatnonzero(carried[first_bundle : self.plane_start[plane + 1]]):
                start, end = network.bundle_start[bundle], network.bundle_start[bundle + 1]
                links = first_link + network.bundle_links[start:end]
                share = capacity[links] / capacity[links].sum()
                spread[links] += carried[first_bundle + bundle] * share
        return spread

    def bundle_capacity(self, capacity: Floats) -> Floats:
        """Return ``capacity`` with every bundle's set to the sum over its links."""
        result = capacity.copy()
        for plane, network in enumerate(self.planes):
            if not network.bundles:
                continue
            first_link = int(self.plane_start[plane]) + 2 * network.end_ports
            members = capacity[first_link + network.bundle_links]
            totals = np.concatenate([[0.0], np.cumsum(members)])[network.bundle_start]
            result[first_link + network.links : self.plane_start[plane + 1]] = np.diff(totals)
        return result

    def can_bind(self, capacity: Floats) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Mask [resources], False for bundles at least as wide as the NICs they serve.

        Whatever enters or leaves a bundle also crosses those NICs' links, so such a bundle never
        limits a flow and a solver may leave it out.
        """
        binds = np.ones(self.resources, dtype=bool)
        for plane, network in enumerate(self.planes):
            start, end = self.plane_start[plane], self.plane_start[plane + 1]
            ports = network.end_ports
            up, down = (
                np.concatenate([[0.0], np.cumsum(capacity[start + way * ports :][:ports])])
                for way in (0, 1)
            )
            first, last = network.bundle_ports[:, 0], network.bundle_ports[:, 1]
            half = network.bundles // 2  # bundles up come before bundles down
            served = np.where(
                np.arange(network.bundles) < half, up[last] - up[first], down[last] - down[first]
            )
            binds[end - network.bundles : end] = capacity[end - network.bundles : end] < served * (
                1 - 1e-12
            )
        return binds


def hop_latencies(same_leaf: float, cross_leaf: float) -> tuple[float, float]:
    """Return (one end, one switch with one cable), seconds, from the two published latencies.

    Raises ValueError where three switches would be faster than one, or the ends negative.
    """
    hop = (cross_leaf - same_leaf) / 2
    end = (same_leaf - hop) / 2
    if hop < 0 or end < 0:
        raise ValueError(
            f"fabric: latencies {same_leaf:g} s under one leaf and {cross_leaf:g} s across leaves "
            "need cross between same and three times same"
        )
    return end, hop


# --- the families ---------------------------------------------------------------------------------


def nvlink_domain(inputs: FabricInputs) -> Fabric:
    """One NVLink switch domain over all nodes and nothing else."""
    one = replace(
        inputs, nodes=1, gpus_per_node=inputs.nodes * inputs.gpus_per_node, nics_per_node=0
    )
    return _fabric("nvlink_domain", one, [], np.zeros((1, 0)))


def multi_plane_fat_tree(inputs: FabricInputs) -> Fabric:
    """MPFT: NIC i of every node in plane i modulo planes, each plane a two-layer fat-tree.

    Eight planes of 64-port switches reach 16,384 GPUs (Insights, section 5.1).
    """
    if inputs.nics_per_node % inputs.planes:
        raise ValueError(
            f"multi_plane_fat_tree: {inputs.planes} planes do not divide {inputs.nics_per_node} "
            "NICs of a node evenly"
        )
    per_plane = inputs.nics_per_node // inputs.planes
    network = switching.fat_tree_2(
        inputs.nodes * per_plane,
        switch_ports=inputs.switch_ports,
        oversubscription=inputs.oversubscription,
    )
    nic = np.arange(inputs.nics_per_node)
    ports = np.arange(inputs.nodes)[:, None] * per_plane + nic // inputs.planes
    return _fabric(
        "multi_plane_fat_tree", inputs, [network] * inputs.planes, ports, nic % inputs.planes
    )


def multi_rail_fat_tree(inputs: FabricInputs) -> Fabric:
    """MRFT: one two-layer fat-tree whose leaves each serve NICs of one index (a rail) only."""
    down, _ = switching.split_ports(inputs.switch_ports, inputs.oversubscription)
    rail_ports = -(-inputs.nodes // down) * down
    network = switching.fat_tree_2(
        rail_ports * inputs.nics_per_node,
        switch_ports=inputs.switch_ports,
        oversubscription=inputs.oversubscription,
    )
    ports = np.arange(inputs.nodes)[:, None] + rail_ports * np.arange(inputs.nics_per_node)
    return _fabric("multi_rail_fat_tree", inputs, [network], ports)


def two_layer_fat_tree(inputs: FabricInputs) -> Fabric:
    """FT2: one two-layer fat-tree, the NICs of a node side by side on a leaf."""
    network = switching.fat_tree_2(
        inputs.nics,
        switch_ports=inputs.switch_ports,
        oversubscription=inputs.oversubscription,
    )
    return _fabric("fat_tree_2", inputs, [network], _in_order(inputs))


def three_layer_fat_tree(inputs: FabricInputs) -> Fabric:
    """FT3: one three-layer non-blocking fat-tree."""
    network = switching.fat_tree_3(inputs.nics, switch_ports=inputs.switch_ports)
    return _fabric("fat_tree_3", inputs, [network], _in_order(inputs))


def dragonfly(inputs: FabricInputs) -> Fabric:
    """DF: groups of fully joined switches, groups joined by global cables; minimal routes."""
    used = inputs.switch_nics + inputs.group_switches - 1 + inputs.global_ports
    if used > inputs.switch_ports:
        raise ValueError(
            f"dragonfly: {inputs.switch_nics} NICs, {inputs.group_switches - 1} neighbours and "
            f"{inputs.global_ports} global ports are {used} ports, but switches have "
            f"{inputs.switch_ports}"
        )
    network = direct_networks.dragonfly_network(
        inputs.nics,
        groups=inputs.groups,
        group_switches=inputs.group_switches,
        ports=inputs.switch_nics,
        global_ports=inputs.global_ports,
    )
    return _fabric("dragonfly", inputs, [network], _in_order(inputs))


def slim_fly(inputs: FabricInputs) -> Fabric:
    """SF: switches in a McKay-Miller-Siran graph of diameter two; minimal routes."""
    network = direct_networks.slim_fly_network(inputs.nics, q=inputs.order)
    return _fabric("slim_fly", inputs, [network], _in_order(inputs))


TOPOLOGIES: Mapping[str, Callable[[FabricInputs], Fabric]] = {
    "multi_plane_fat_tree": multi_plane_fat_tree,
    "multi_rail_fat_tree": multi_rail_fat_tree,
    "fat_tree_2": two_layer_fat_tree,
    "fat_tree_3": three_layer_fat_tree,
    "dragonfly": dragonfly,
    "slim_fly": slim_fly,
    "nvlink_domain": nvlink_domain,
}
"""Every topology by name."""


@lru_cache(maxsize=2)
def build_fabric(topology: str, inputs: FabricInputs) -> Fabric:
    """Build the named topology. Raises ValueError for an unknown name or impossible figures."""
    if topology not in TOPOLOGIES:
        raise ValueError(f"unknown topology {topology!r}; {meant_or_known(topology, TOPOLOGIES)}")
    if topology != "nvlink_domain" and inputs.nics_per_node < 1:
        raise ValueError(f"topology {topology} needs at least one NIC a node")
    if inputs.planes > 1 and topology != "multi_plane_fat_tree":
        raise ValueError(
            f"topology {topology} has one plane; {inputs.planes} planes need multi_plane_fat_tree"
        )
    return TOPOLOGIES[topology](inputs)


def _in_order(inputs: FabricInputs) -> Integers:
    return np.arange(inputs.nics).reshape(inputs.nodes, inputs.nics_per_node)


def _fabric(
    topology: str,
    inputs: FabricInputs,
    planes: list[SwitchNetwork],
    end_port: Integers | Floats,
    nic_plane: Integers | None = None,
) -> Fabric:
    end, hop = hop_latencies(inputs.same_leaf_latency, inputs.cross_leaf_latency)
    gpus = inputs.nodes * inputs.gpus_per_node
    starts = np.cumsum([4 * gpus, *(plane.resources for plane in planes)])
    capacity = np.empty(starts[-1])
    latency = np.empty(starts[-1])
    capacity[: 2 * gpus] = np.inf if inputs.nvlink_bandwidth is None else inputs.nvlink_bandwidth
    capacity[2 * gpus : 4 * gpus] = (
        np.inf if inputs.pcie_bandwidth is None else inputs.pcie_bandwidth
    )
    latency[: 2 * gpus] = inputs.nvlink_latency / 2
    latency[2 * gpus : 4 * gpus] = 0.0  # PCIe is inside the latency of the ends
    for start, plane in zip(starts, planes, strict=False):
        ports = plane.end_ports
        capacity[start : start + 2 * ports] = inputs.nic_bandwidth
        capacity[start + 2 * ports : start + plane.resources] = inputs.link_bandwidth
        latency[start : start + ports] = end
        latency[start + ports : start + 2 * ports] = hop + end
        latency[start + 2 * ports : start + plane.resources] = hop
    fabric = Fabric(
        topology=topology,
        inputs=inputs,
        planes=tuple(planes),
        nic_plane=np.asarray(
            np.zeros(inputs.nics_per_node) if nic_plane is None else nic_plane, dtype=np.int32
        ),
        end_port=np.asarray(end_port, dtype=np.int32),
        plane_start=starts,
        capacity=capacity,
        latency=latency,
    )
    capacity[:] = fabric.bundle_capacity(capacity)
    return fabric


# --- counts and price -----------------------------------------------------------------------------


def count_fabric(topology: str, inputs: FabricInputs) -> Counts:
    """Counts by formula of the full-size fabric that these switches build.

    Full size, as Table 3 of the Insights paper: a fat-tree of k-port switches at its most end
    ports, whatever ``inputs.nodes`` says. Also counts a slim fly whose graph does not exist.
    """
    ports = inputs.switch_ports
    match topology:
        case "multi_plane_fat_tree":
            one = switching.count_fat_tree_2(ports, oversubscription=inputs.oversubscription)
            return one.times(inputs.planes)
        case "multi_rail_fat_tree" | "fat_tree_2":
            return switching.count_fat_tree_2(ports, oversubscription=inputs.oversubscription)
        case "fat_tree_3":
            return switching.count_fat_tree_3(ports)
        case "dragonfly":
            return direct_networks.count_dragonfly(
                groups=inputs.groups,
                group_switches=inputs.group_switches,
                ports=inputs.switch_nics,
                global_ports=inputs.global_ports,
            )
        case "slim_fly":
            return direct_networks.count_slim_fly(inputs.order)
        case "nvlink_domain":
            return Counts(inputs.nodes * inputs.gpus_per_node, 0, 0)
    raise ValueError(f"unknown topology {topology!r}; {meant_or_known(topology, TOPOLOGIES)}")


def count_built(fabric: Fabric) -> Counts:
    """Counts of a built fabric: its NIC ports, the switches and the cables between them."""
    return Counts(
        sum(plane.end_ports for plane in fabric.planes),
        sum(plane.switches for plane in fabric.planes),
        sum(plane.links for plane in fabric.planes) // 2,
    )


def price(counts: Counts, *, switch_price: float, link_price: float) -> float:
    """Dollars for switches and the cables between them, the method of Table 3."""
    return counts.switches * switch_price + counts.links * link_price


def to_graph(fabric: Fabric) -> "nx.MultiGraph[str]":
    """Return the fabric as an undirected networkx multigraph of named GPUs, NICs and switches.

    Edges carry ``bandwidth`` (bytes/s) and ``kind``: nvlink, pcie, nic or switch. The NVSwitch of a
    node is one vertex.
    """
    import networkx as nx

    inputs = fabric.inputs
    graph: nx.MultiGraph[str] = nx.MultiGraph(topology=fabric.topology)
    gpus_per_nic = inputs.gpus_per_node // max(inputs.nics_per_node, 1)
    switches = [
        [f"plane{plane}/{name}" for name in network.switch_names]
        for plane, network in enumerate(fabric.planes)
    ]
    for node in range(inputs.nodes):
        gpus = [f"node{node}/gpu{gpu}" for gpu in range(inputs.gpus_per_node)]
        if inputs.nvlink_bandwidth is not None:
            graph.add_edges_from(
                ((gpu, f"node{node}/nvswitch") for gpu in gpus),
                kind="nvlink",
                bandwidth=inputs.nvlink_bandwidth,
            )
        for nic in range(inputs.nics_per_node):
            name = f"node{node}/nic{nic}"
            plane = int(fabric.nic_plane[nic])
            leaf = fabric.planes[plane].port_switch[fabric.end_port[node, nic]]
            graph.add_edge(name, switches[plane][leaf], kind="nic", bandwidth=inputs.nic_bandwidth)
            graph.add_edges_from(
                ((gpu, name) for gpu in gpus[nic * gpus_per_nic : (nic + 1) * gpus_per_nic]),
                kind="pcie",
                bandwidth=inputs.pcie_bandwidth,
            )
    for names, network in zip(switches, fabric.planes, strict=True):
        graph.add_nodes_from(names)
        once = np.flatnonzero(np.arange(network.links) < network.link_reverse)
        graph.add_edges_from(
            (
                (names[a], names[b])
                for a, b in zip(
                    network.link_source[once].tolist(),
                    network.link_target[once].tolist(),
                    strict=True,
                )
            ),
            kind="switch",
            bandwidth=inputs.link_bandwidth,
        )
    return graph
