"""Routes between GPUs: the resources that each flow crosses.

A send inside a node goes over NVLink. A send to another node leaves through the source GPU's NIC
and arrives at the destination GPU's NIC; where these sit in different planes it is first forwarded
inside the source node over NVLink, or refused (``FabricInputs.cross_plane``).

Failures. A route that meets a dead resource is drawn again among the equal paths of its plane, then
searched in what is left of the plane, then tried over the other NICs of the two nodes with
forwarding inside them. Under adaptive routing a bundle with dead links stays one pipe with the
capacity that is left; pairs of switches that it can no longer join get an explicit detour.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from hardware_profiles.units import parse_quantity
from simulator.hardware.network.switching import Indices, Integers, SwitchNetwork
from simulator.hardware.network.topology import Fabric

Mask: TypeAlias = npt.NDArray[np.bool_]

_REDRAWS = 8
"""Tries among equal paths before a search."""
_DETOUR_HOPS = 8
"""Columns for detours that are longer than a regular route."""
_CHUNK = 1 << 16
"""Flows routed at once: intermediate arrays stay in the cache."""


@dataclass(frozen=True, slots=True)
class Routes:
    """What ``route`` finds."""

    paths: Indices
    """[flows, hops], resources, -1 unused."""
    reachable: Mask
    """[flows], False where the fabric no longer joins source and destination."""


def route(
    fabric: Fabric,
    source: Integers,
    destination: Integers,
    *,
    choice: Integers | int = 0,
    rdma: bool = False,
    dead: Mask | None = None,
) -> Routes:
    """Route each flow from GPU ``source`` to GPU ``destination``, [flows] each.

    ``choice`` tells apart flows of one pair (queue pairs) for ECMP. ``rdma`` sends through NICs
    even inside a node where a plane joins the two, as DeepEP's pure-RDMA kernels do. ``dead`` is a
    mask [resources].

    A flow from a GPU to itself crosses its own NVLink port out and in: DeepEP's kernels copy the
    own share with the same instructions as the rest.

    Raises ValueError where a send crosses planes and ``cross_plane`` is "refuse".
    """
    inputs = fabric.inputs
    flows = len(source)
    if flows > _CHUNK:
        paths = np.full((flows, 0), -1, dtype=np.int32, order="F")
        reachable = np.empty(flows, dtype=bool)
        for at in range(0, flows, _CHUNK):
            here = slice(at, min(at + _CHUNK, flows))
            part = route(
                fabric,
                source[here],
                destination[here],
                choice=choice if np.ndim(choice) == 0 else np.asarray(choice)[here],
                rdma=rdma,
                dead=dead,
            )
            if part.paths.shape[1] > paths.shape[1]:
                paths = _widened(paths, part.paths.shape[1])
            paths[here, : part.paths.shape[1]] = part.paths
            paths[here, part.paths.shape[1] :] = -1
            reachable[here] = part.reachable
        return Routes(paths, reachable)
    pick = np.broadcast_to(np.asarray(choice, dtype=np.int64), (flows,))
    per_node = inputs.gpus_per_node
    inside = source // per_node == destination // per_node
    if rdma and fabric.planes and inputs.rdma_inside:
        # Planes do not meet: two GPUs of a node in different ones have only NVLink between them.
        plane = fabric.nic_plane[np.arange(per_node) * inputs.nics_per_node // per_node]
        apart = plane[source % per_node] != plane[destination % per_node]
        inside &= (source == destination) | apart
    if not fabric.planes and not inside.all():
        raise ValueError("fabric: no NICs, so nothing leaves the NVLink domain")
    width = 6 + max((plane.hops for plane in fabric.planes), default=0)
    paths = np.full((flows, width), -1, dtype=np.int32)
    reachable = np.ones(flows, dtype=bool)
    if inputs.nvlink_bandwidth is not None:
        paths[inside, 0] = fabric.nvlink(source[inside], "out")
        paths[inside, 1] = fabric.nvlink(destination[inside], "in")
        if dead is not None:
            reachable[inside] = ~dead[paths[inside, :2]].any(axis=1)
    elif np.any(inside & (source != destination)):
        raise ValueError("fabric: two GPUs of a node, but the node has no NVLink")
    outside = np.flatnonzero(~inside)
    if not len(outside):
        return Routes(paths[:, :2].copy(), reachable)
    if len(outside) == flows:
        return _route_between_nodes(fabric, source, destination, pick, dead)
    between = _route_between_nodes(
        fabric, source[outside], destination[outside], pick[outside], dead
    )
    if between.paths.shape[1] != width:
        wider = np.full((flows, between.paths.shape[1]), -1, dtype=np.int32)
        wider[:, :2] = paths[:, :2]
        paths = wider
    paths[outside] = between.paths
    reachable[outside] = between.reachable
    return Routes(paths, reachable)


def no_live_path(fabric: Fabric, source: int, destination: int) -> str:
    """What to say of two GPUs that the fabric no longer joins."""
    ends = (
        f"node{gpu // fabric.inputs.gpus_per_node}/gpu{gpu % fabric.inputs.gpus_per_node}"
        for gpu in (source, destination)
    )
    return f"no live path from {' to '.join(ends)}"


def _widened(paths: Indices, width: int) -> Indices:
    wider = np.empty((len(paths), width), dtype=np.int32, order="F")
    wider[:, : paths.shape[1]] = paths
    wider[:, paths.shape[1] :] = -1
    return wider


def stack_paths(paths: list[Indices]) -> Indices:
    """Put path arrays of different widths under each other, [all flows, widest]."""
    if len(paths) == 1:
        return paths[0]
    width = max(part.shape[1] for part in paths)
    stacked = np.full((sum(map(len, paths)), width), -1, dtype=np.int32, order="F")
    at = 0
    for part in paths:
        stacked[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    return stacked


def _route_between_nodes(
    fabric: Fabric, source: Integers, destination: Integers, choice: Integers, dead: Mask | None
) -> Routes:
    inputs = fabric.inputs
    per_node = inputs.gpus_per_node
    per_nic = per_node // inputs.nics_per_node
    own, peer = source % per_node // per_nic, destination % per_node // per_nic
    crosses = fabric.nic_plane[own] != fabric.nic_plane[peer]
    if crosses.any() and (inputs.cross_plane == "refuse" or inputs.nvlink_bandwidth is None):
        flow = int(np.argmax(crosses))
        raise ValueError(
            f"fabric: GPU {source[flow]} (plane {fabric.nic_plane[own[flow]]}) cannot send to GPU "
            f"{destination[flow]} (plane {fabric.nic_plane[peer[flow]]}): no plane joins them"
            + (
                " and cross_plane is 'refuse'"
                if inputs.nvlink_bandwidth is not None
                else " and the node has no NVLink to forward over"
            )
        )
    leave = np.where(crosses, peer, own)
    found = _through(
        fabric, source, destination, leave=leave, arrive=peer, choice=choice, dead=dead
    )
    if dead is None or found.reachable.all() or inputs.nvlink_bandwidth is None:
        return found
    alive = ~dead[
        np.array(
            [
                [fabric.nic_link(node, nic, "up") for nic in range(inputs.nics_per_node)]
                for node in range(inputs.nodes)
            ]
        )
    ]  # [nodes, nics]
    for attempt in range(inputs.nics_per_node):
        lost = np.flatnonzero(~found.reachable)
        if not len(lost):
            break
        # One of the NICs that both nodes still have; in turn over pairs of nodes, so that the load
        # spreads over the NICs of the sender as well as of the receiver.
        start, end = source[lost] // per_node, destination[lost] // per_node
        usable = alive[start] & alive[end]
        number = usable.sum(axis=1)
        turn = (start + end + own[lost] + choice[lost] + attempt) % np.maximum(number, 1)
        nic = np.argmax(usable & (np.cumsum(usable, axis=1) == turn[:, None] + 1), axis=1)
        again = _through(
            fabric,
            source[lost],
            destination[lost],
            leave=nic,
            arrive=nic,
            choice=choice[lost],
            dead=dead,
        )
        found.paths[lost] = again.paths
        found.reachable[lost] = again.reachable
    return found


def _through(
    fabric: Fabric,
    source: Integers,
    destination: Integers,
    *,
    leave: Integers,
    arrive: Integers,
    choice: Integers,
    dead: Mask | None,
) -> Routes:
    """Routes that leave the source node by NIC ``leave`` and enter the other by NIC ``arrive``."""
    inputs = fabric.inputs
    per_node, nics = inputs.gpus_per_node, inputs.nics_per_node
    per_nic = per_node // nics
    sender = _owner_of(leave, source, per_node, per_nic)
    receiver = _owner_of(arrive, destination, per_node, per_nic)
    extra = _DETOUR_HOPS if dead is not None else 0
    inner = max(plane.hops for plane in fabric.planes) + extra
    paths = np.full((len(source), inner + 6), -1, dtype=np.int32)
    reachable = np.ones(len(source), dtype=bool)
    if inputs.nvlink_bandwidth is not None:
        for column, start, end in ((0, source, sender), (inner + 4, receiver, destination)):
            hop = start != end
            paths[:, column] = np.where(hop, fabric.nvlink(start, "out"), -1)
            paths[:, column + 1] = np.where(hop, fabric.nvlink(end, "in"), -1)
    if inputs.pcie_bandwidth is not None:
        paths[:, 2] = fabric.pcie(sender, "out")
        paths[:, inner + 3] = fabric.pcie(receiver, "in")
    from_port = fabric.end_port[source // per_node, leave].astype(np.int64)
    to_port = fabric.end_port[destination // per_node, arrive].astype(np.int64)
    plane_of = fabric.nic_plane[leave]
    for plane, network in enumerate(fabric.planes):
        of_plane = np.flatnonzero(plane_of == plane) if len(fabric.planes) > 1 else slice(None)
        first, last = int(fabric.plane_start[plane]), int(fabric.plane_start[plane + 1])
        local, joined = _route_in_plane(
            network,
            from_port[of_plane],
            to_port[of_plane],
            choice[of_plane],
            routing=inputs.routing,
            dead=None if dead is None else dead[first:last],
        )
        local[local >= 0] += first
        paths[of_plane, 3 : 3 + local.shape[1]] = local
        reachable[of_plane] = joined
    if dead is not None:
        reachable &= ~np.where(paths >= 0, dead[paths], False).any(axis=1)
        return Routes(paths, reachable)
    return Routes(paths[:, ~(paths < 0).all(axis=0)] if len(paths) else paths, reachable)


def _owner_of(nic: Integers, gpu: Integers, per_node: int, per_nic: int) -> Integers:
    """The GPU itself where ``nic`` is its own, otherwise one of its node's GPUs that own it."""
    local = gpu % per_node
    if np.array_equal(local // per_nic, nic):
        return gpu
    owner = gpu - local + nic * per_nic + gpu % per_nic
    return np.where(local // per_nic == nic, gpu, owner)


def _route_in_plane(
    network: SwitchNetwork,
    source: Integers,
    destination: Integers,
    choice: Integers,
    *,
    routing: Literal["adaptive", "ecmp", "static"],
    dead: Mask | None,
) -> tuple[Indices, Mask]:
    paths = network.router(source, destination, choice, routing)
    reachable = np.ones(len(source), dtype=bool)
    if dead is None or not dead.any():
        return paths, reachable
    dead_end = np.append(dead, False)  # index -1, unused, is alive
    reachable = ~(dead[source] | dead[network.end_ports + destination])
    for attempt in range(1, _REDRAWS + 1):
        lost = np.flatnonzero(dead_end[paths].any(axis=1) & reachable)
        if not len(lost):
            break
        paths[lost] = network.router(
            source[lost], destination[lost], choice[lost] + attempt, routing
        )
    doubtful = dead_end[paths].any(axis=1)
    if network.bundles:
        thinned = _thinned_bundles(network, dead)
        first = len(dead) - network.bundles
        is_bundle = paths >= first
        doubtful |= (is_bundle & thinned[np.where(is_bundle, paths - first, 0)]).any(axis=1)
    lost = np.flatnonzero(doubtful & reachable)
    if not len(lost):
        return paths, reachable
    wider = np.full((len(source), network.hops + _DETOUR_HOPS), -1, dtype=np.int32)
    wider[:, : paths.shape[1]] = paths
    pairs = np.stack([network.port_switch[source[lost]], network.port_switch[destination[lost]]], 1)
    unique, which = np.unique(pairs, axis=0, return_inverse=True)
    for number, (start, links) in enumerate(
        zip(unique, _detours(network, unique, dead), strict=True)
    ):
        flows = lost[which.ravel() == number]
        regular = np.count_nonzero(paths[flows[0], 1:-1] >= 0)
        if links is None or len(links) > wider.shape[1] - 2:
            reachable[flows] = start[0] == start[1]
        elif dead_end[paths[flows[0]]].any() or len(links) > regular:
            wider[flows, 1:] = -1
            wider[flows, 1 : 1 + len(links)] = 2 * network.end_ports + links
            wider[flows, len(links) + 1] = network.end_ports + destination[flows]
    return wider, reachable


def _thinned_bundles(network: SwitchNetwork, dead: Mask) -> Mask:
    """Bundles [bundles] that have lost a link."""
    links = dead[2 * network.end_ports :][: network.links][network.bundle_links]
    lost = np.concatenate([[0], np.cumsum(links)])[network.bundle_start]
    return np.asarray(np.diff(lost) > 0)


def _detours(network: SwitchNetwork, pairs: Indices, dead: Mask) -> list[Integers | None]:
    """Shortest live way of each pair of switches as directed links, or None where cut."""
    import networkx as nx

    alive = np.flatnonzero(~dead[2 * network.end_ports :][: network.links])
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(network.switches))
    graph.add_edges_from(
        (int(network.link_source[link]), int(network.link_target[link]), {"link": int(link)})
        for link in alive
    )
    ways: dict[int, dict[int, list[int]]] = {}
    found: list[Integers | None] = []
    for start, end in pairs.tolist():
        if start not in ways:
            ways[start] = nx.single_source_shortest_path(graph, start)
        way = ways[start].get(end)
        found.append(
            None
            if way is None
            else np.array([graph[a][b]["link"] for a, b in pairwise(way)], dtype=int)
        )
    return found


# --- failures -------------------------------------------------------------------------------------

FailedPart = Literal["link", "nic", "switch", "plane", "node", "slow"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that breaks at a moment of simulated time."""

    kind: FailedPart
    name: str
    at: float
    """Seconds; 0 is before the run."""
    factor: float = 0.0
    """What is left of the bandwidth: 0 for a failure, below 1 for a slow link."""


def parse_failure(text: str) -> Failure:
    """Read KIND:NAME@TIME, such as "plane:3@2.0s", "switch:plane0/spine2" or, for a link that is
    only slow, "slow:node3/nic1/up=0.5@1ms". Without a time it is broken from the start.

    Raises ValueError, one line, for anything else.
    """
    where = f"failure {text!r}"
    kind, colon, rest = text.partition(":")
    if not colon or kind not in get_args(FailedPart):
        raise ValueError(
            f"{where}: write KIND:NAME@TIME with KIND one of {', '.join(get_args(FailedPart))}"
        )
    name, at, time = rest.partition("@")
    seconds = parse_quantity(time, "time", where) if at else 0.0
    if seconds < 0:
        raise ValueError(f"{where}: the time must not be negative")
    factor = 0.0
    if kind == "slow":
        name, equals, share = name.partition("=")
        try:
            factor = float(share)
        except ValueError:
            factor = -1.0
        if not equals or not 0 < factor < 1:
            raise ValueError(f"{where}: a slow link needs =FACTOR between 0 and 1, such as =0.5")
    return Failure(kind, name, seconds, factor)  # type: ignore[arg-type]


def struck_resources(fabric: Fabric, failure: Failure) -> Integers:
    """Return the links, without bundles, that a failure touches.

    A link fails in both directions, as its cable does. Raises ValueError for a name that the fabric
    does not have.
    """
    inputs = fabric.inputs
    match failure.kind:
        case "plane":
            plane = _number(failure, "", len(fabric.planes))
            start = fabric.plane_start[plane]
            network = fabric.planes[plane]
            return np.arange(start, start + 2 * network.end_ports + network.links)
        case "node":
            node = _number(failure, "node", inputs.nodes)
            gpus = np.arange(inputs.gpus_per_node) + node * inputs.gpus_per_node
            ports = [gpus + way * fabric.gpus for way in range(4)]
            nics = [_nic_links(fabric, node, nic) for nic in range(inputs.nics_per_node)]
            return np.concatenate([*ports, *nics]).astype(np.int64)
        case "nic":
            parts = failure.name.split("/")
            if len(parts) != 2:
                raise _unknown(failure, "write nodeN/nicM")
            node = _number(failure, "node", inputs.nodes, parts[0])
            return _nic_links(fabric, node, _number(failure, "nic", inputs.nics_per_node, parts[1]))
        case "switch":
            return _switch_links(fabric, failure)
        case "link" | "slow":
            return _named_link(fabric, failure)


def _nic_links(fabric: Fabric, node: int, nic: int) -> Integers:
    return np.array([fabric.nic_link(node, nic, "up"), fabric.nic_link(node, nic, "down")])


def _switch_links(fabric: Fabric, failure: Failure) -> Integers:
    place, _, name = failure.name.partition("/")
    plane = _number(failure, "plane", len(fabric.planes), place)
    network, start = fabric.planes[plane], int(fabric.plane_start[plane])
    if name not in network.switch_names:
        shown = f"{network.switch_names[0]} to {network.switch_names[-1]}"
        raise _unknown(failure, f"plane{plane} has switches {shown}")
    switch = network.switch_names.index(name)
    links = (network.link_source == switch) | (network.link_target == switch)
    ports = np.flatnonzero(network.port_switch == switch)
    return start + np.concatenate(
        [ports, network.end_ports + ports, 2 * network.end_ports + np.flatnonzero(links)]
    )


def _named_link(fabric: Fabric, failure: Failure) -> Integers:
    parts = failure.name.split("/")
    inputs = fabric.inputs
    if parts[0].startswith("node"):
        if len(parts) != 3:
            raise _unknown(failure, "write nodeN/nicM/up or nodeN/gpuM/nvlink_out")
        node = _number(failure, "node", inputs.nodes, parts[0])
        if parts[2] in ("up", "down"):
            return _nic_links(fabric, node, _number(failure, "nic", inputs.nics_per_node, parts[1]))
        gpu = _number(failure, "gpu", inputs.gpus_per_node, parts[1]) + node * inputs.gpus_per_node
        first = {"nvlink_out": 0, "nvlink_in": 0, "pcie_out": 2, "pcie_in": 2}.get(parts[2])
        if first is None:
            raise _unknown(failure, "ports of a GPU are nvlink_out, nvlink_in, pcie_out, pcie_in")
        return np.array([gpu + first * fabric.gpus, gpu + (first + 1) * fabric.gpus])
    plane = _number(failure, "plane", len(fabric.planes), parts[0])
    network, start = fabric.planes[plane], int(fabric.plane_start[plane])
    name = "/".join(parts[1:])
    for link in range(network.links):
        if network.link_names(link) == name:
            both = np.array([link, network.link_reverse[link]], dtype=np.int64)
            return start + 2 * network.end_ports + both
    shown = network.link_names(0) if network.links else "no links between switches"
    raise _unknown(failure, f"plane{plane} has links such as {shown}")


def _number(failure: Failure, prefix: str, size: int, text: str | None = None) -> int:
    text = failure.name if text is None else text
    digits = text.removeprefix(prefix)
    if not digits.isdigit() or int(digits) >= size:
        known = f"{prefix or failure.kind + ' '}0 to {prefix}{size - 1}" if size else "none"
        raise _unknown(failure, f"known: {known}")
    return int(digits)


def _unknown(failure: Failure, help_: str) -> ValueError:
    return ValueError(
        f"failure {failure.kind}:{failure.name}: the fabric has no such thing; {help_}"
    )
