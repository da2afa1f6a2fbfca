"""Switch networks with numbered links, routes by arithmetic, and part counts.

One ``SwitchNetwork`` joins end ports (NICs) by switches. Its resources, the things that traffic
shares, are numbered from zero in this order: end ports into the network, end ports out of it,
directed links between switches, bundles. A bundle is a set of parallel links that adaptive routing
keeps evenly loaded, so that they act as one pipe with the sum of their capacities; that is the
fluid limit of packet spraying, and its assumption is stated in ``Routing``.

Routes are arithmetic on port numbers; nothing searches a graph here, because one shortest-path
search in a fabric of 16,384 end ports takes milliseconds and an all-to-all has millions of flows.

Fat-trees (Al-Fares et al., SIGCOMM 2008) are here, dragonfly and slim fly in ``direct_networks``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Integers: TypeAlias = npt.NDArray[np.integer[Any]]
Indices: TypeAlias = npt.NDArray[np.int32]

Routing = Literal["adaptive", "ecmp", "static"]
"""How a flow finds its way among equal paths.

adaptive: spread over all of them packet by packet; in fat-trees exactly evenly (bundles), in
dragonfly and slim fly flow by flow in turn. ecmp: a hash of the flow picks one, collisions
included. static: a table picks one by destination port, the same for every source.
"""

RouteChoice: TypeAlias = Callable[[Integers, Integers, Integers, Routing], Indices]
"""(source ports, destination ports, choices, routing) -> resources [flows, hops], -1 unused."""


@dataclass(frozen=True, slots=True)
class SwitchNetwork:
    """End ports joined by switches; all arrays are indexed by the numbers the module names."""

    family: str
    end_ports: int
    """Ports for NICs."""
    switches: int
    port_switch: Indices
    """[end_ports], switch that each end port hangs on."""
    link_source: Indices
    """[links], switch at the start of each directed link between switches."""
    link_target: Indices
    """[links]"""
    link_reverse: Indices
    """[links], the other direction of the same cable."""
    switch_names: tuple[str, ...]
    link_names: Callable[[int], str]
    """Directed link number -> its name, such as "leaf3/up5"."""
    router: RouteChoice = field(repr=False)
    hops: int
    """Most resources on one route, both end ports included."""
    bundle_start: Indices = field(default_factory=lambda: np.zeros(1, dtype=np.int32))
    """[bundles + 1], bounds of each bundle in ``bundle_links``; up before down."""
    bundle_links: Indices = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    """Directed link numbers of all bundles, one bundle after the other."""
    bundle_ports: Indices = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))
    """[bundles, 2], first and past-the-last end port that a bundle serves."""
    bundle_names: Callable[[int], str] = str

    @property
    def links(self) -> int:
        """Directed links between switches; a cable is two."""
        return len(self.link_source)

    @property
    def bundles(self) -> int:
        """Bundles, the last resources in the numbering."""
        return len(self.bundle_start) - 1

    @property
    def resources(self) -> int:
        """End ports twice, directed links and bundles."""
        return 2 * self.end_ports + self.links + self.bundles


@dataclass(frozen=True, slots=True)
class Counts:
    """What a switch network consists of, as Table 3 of the Insights paper counts it."""

    endpoints: int
    switches: int
    links: int
    """Cables between switches; the cables to NICs are not counted."""

    def times(self, planes: int) -> "Counts":
        """Return the counts of several equal planes together."""
        return Counts(self.endpoints * planes, self.switches * planes, self.links * planes)


def mix(values: npt.NDArray[np.int64 | np.uint64]) -> npt.NDArray[np.uint64]:
    """Scramble integers (the splitmix64 finaliser): a fixed, well-spread hash for ECMP."""
    x = values.astype(np.uint64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def flow_hash(
    source: Integers, destination: Integers, choice: Integers, salt: int
) -> npt.NDArray[np.uint64]:
    """Hash of a flow's addresses as a switch would take it; ``salt`` tells switches apart."""
    seed = np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
    keyed = mix(source + seed) + mix(destination.astype(np.uint64) ^ np.uint64(0x5851F42D4C957F2D))
    return mix(keyed + choice.astype(np.uint64) * np.uint64(0xD1342543DE82EF95))


def pick(
    routing: Routing,
    options: int | Integers,
    *,
    source: Integers,
    destination: Integers,
    choice: Integers,
    salt: int,
) -> Integers:
    """Choose one of ``options`` equal ways for each flow."""
    match routing:
        case "static":
            chosen = (destination + choice) % options
        case "ecmp":
            hashed = flow_hash(source, destination, choice, salt)
            chosen = (hashed % np.asarray(options).astype(np.uint64)).astype(np.int64)
        case "adaptive":
            # Sources and destinations in turn: the flows of one pair of switches are dealt out.
            chosen = (source + destination + choice) % options
    return np.asarray(chosen, dtype=np.int64)


# --- fat-trees ------------------------------------------------------------------------------------


def split_ports(switch_ports: int, oversubscription: float) -> tuple[int, int]:
    """Divide a leaf switch's ports into (down, up) so that down / up = ``oversubscription``.

    Raises ValueError where the ports cannot be divided so.
    """
    if switch_ports < 2:
        raise ValueError(f"switch_ports must be at least 2, got {switch_ports}")
    if not oversubscription >= 1:
        raise ValueError(
            f"oversubscription must be at least 1 (down over up), got {oversubscription:g}"
        )
    up = switch_ports / (1 + oversubscription)
    if abs(up - round(up)) > 1e-6:
        parity = "an odd number of ports" if switch_ports % 2 else "these ports"
        raise ValueError(
            f"switch_ports {switch_ports} with oversubscription {oversubscription:g} would need "
            f"{up:.2f} up-links a leaf: {parity} cannot be divided so"
        )
    return switch_ports - round(up), round(up)


def count_fat_tree_2(switch_ports: int, *, oversubscription: float = 1.0) -> Counts:
    """Counts of the largest two-layer fat-tree of these switches: k²/2 end ports at k ports."""
    down, up = split_ports(switch_ports, oversubscription)
    return Counts(switch_ports * down, switch_ports + up, switch_ports * up)


def count_fat_tree_3(switch_ports: int) -> Counts:
    """Counts of the full three-layer fat-tree: k³/4 end ports, 5k²/4 switches, k³/2 links."""
    half, _ = split_ports(switch_ports, 1.0)
    return Counts(switch_ports * half**2, 5 * half**2, 2 * switch_ports * half**2)


def fat_tree_2(
    end_ports: int, *, switch_ports: int, oversubscription: float = 1.0
) -> SwitchNetwork:
    """Two-layer fat-tree with room for ``end_ports`` NICs, ``down`` of them on each leaf.

    A smaller tree than the largest keeps full leaves and has fewer spines, several parallel
    up-links going to each. Raises ValueError for more ports than the switches allow.
    """
    down, up = split_ports(switch_ports, oversubscription)
    largest = switch_ports * down
    if not 1 <= end_ports <= largest:
        raise ValueError(
            f"{end_ports} end ports do not fit a two-layer fat-tree of {switch_ports}-port "
            f"switches: at most {largest}"
        )
    leaves = -(-end_ports // down)
    # Up-link u of every leaf goes to the same spine, so spines divide the up-links of a leaf.
    needed = -(-leaves * up // switch_ports)
    spines = next(s for s in range(needed, up + 1) if up % s == 0) if leaves > 1 else 0
    ups = up if spines else 0
    leaf = np.repeat(np.arange(leaves), ups)
    spine = leaves + np.tile(np.arange(ups) * spines // max(ups, 1), leaves)
    links = leaves * ups
    ports = np.minimum(np.arange(leaves + 1) * down, end_ports)
    served = np.stack([ports[:-1], ports[1:]], axis=1)

    def link_name(link: int) -> str:
        way, rest = ("up", link) if link < links else ("down", link - links)
        return f"leaf{rest // ups}/{way}{rest % ups}"

    def bundle_name(bundle: int) -> str:
        return f"leaf{bundle % leaves}/{'up' if bundle < leaves else 'down'}"

    return SwitchNetwork(
        family="fat_tree_2",
        end_ports=end_ports,
        switches=leaves + spines,
        port_switch=(np.arange(end_ports) // down).astype(np.int32),
        link_source=np.concatenate([leaf, spine]).astype(np.int32),
        link_target=np.concatenate([spine, leaf]).astype(np.int32),
        link_reverse=np.roll(np.arange(2 * links), links).astype(np.int32),
        switch_names=(*(f"leaf{i}" for i in range(leaves)), *(f"spine{i}" for i in range(spines))),
        link_names=link_name,
        bundle_start=(np.arange(2 * leaves + 1) * ups).astype(np.int32),
        bundle_links=np.arange(2 * links, dtype=np.int32),
        bundle_ports=np.concatenate([served, served]).astype(np.int32),
        bundle_names=bundle_name,
        router=partial(
            _route_fat_tree_2,
            end_ports=end_ports,
            down=down,
            up=ups,
            leaves=leaves,
            spines=spines,
        ),
        hops=4,
    )


def _route_fat_tree_2(
    source: Integers,
    destination: Integers,
    choice: Integers,
    routing: Routing,
    *,
    end_ports: int,
    down: int,
    up: int,
    leaves: int,
    spines: int,
) -> Indices:
    path = np.full((len(source), 4), -1, dtype=np.int32)
    path[:, 0] = source
    path[:, 3] = end_ports + destination
    if not spines:
        return path
    from_leaf, to_leaf = source // down, destination // down
    crosses = from_leaf != to_leaf
    links = 2 * end_ports
    half = leaves * up
    if routing == "adaptive":
        upward = links + 2 * half + from_leaf
        downward = links + 2 * half + leaves + to_leaf
    else:
        ways = {"source": source, "destination": destination, "choice": choice}
        u = pick(routing, up, **ways, salt=1)
        upward = links + from_leaf * up + u
        if routing == "ecmp":
            # The spine hashes again over its parallel links to the destination's leaf.
            parallel = up // spines
            u = u // parallel * parallel + pick(routing, parallel, **ways, salt=2)
        downward = links + half + to_leaf * up + u
    path[:, 1] = np.where(crosses, upward, -1)
    path[:, 2] = np.where(crosses, downward, -1)
    return path


def fat_tree_3(end_ports: int, *, switch_ports: int) -> SwitchNetwork:
    """Three-layer non-blocking fat-tree: pods of k/2 leaves and k/2 middle switches, and cores.

    Built from whole pods, as many as ``end_ports`` need; the core layer is complete. Raises
    ValueError for more end ports than k³/4.
    """
    half, _ = split_ports(switch_ports, 1.0)
    largest = switch_ports * half**2
    if not 1 <= end_ports <= largest:
        raise ValueError(
            f"{end_ports} end ports do not fit a three-layer fat-tree of {switch_ports}-port "
            f"switches: at most {largest}"
        )
    pods = -(-end_ports // half**2)
    leaves = pods * half
    cores = half**2 if pods > 1 else 0
    # Leaf l, up-link a -> middle a of its pod; middle (pod, a), up-link c -> core a * half + c.
    leaf = np.repeat(np.arange(leaves), half)
    middle_of_leaf = leaves + leaf // half * half + np.tile(np.arange(half), leaves)
    lower = leaves * half
    upper = pods * cores
    middle = leaves + np.repeat(np.arange(pods * half), half)[:upper]
    core = 2 * leaves + np.tile(np.arange(cores), pods)
    names = (
        *(f"pod{i // half}/leaf{i % half}" for i in range(leaves)),
        *(f"pod{i // half}/middle{i % half}" for i in range(leaves)),
        *(f"core{i}" for i in range(cores)),
    )
    bounds = [0, lower, lower + upper, lower + 2 * upper, 2 * (lower + upper)]

    def link_name(link: int) -> str:
        part = int(np.searchsorted(bounds, link, side="right")) - 1
        rest = link - bounds[part]
        end = f"{names[(leaves if part in (1, 2) else 0) + rest // half]}"
        return f"{end}/{'up' if part < 2 else 'down'}{rest % half}"

    # One bundle a leaf and way, and one a pod and way for all links to the cores.
    widths = np.repeat([half, half**2, half**2, half], [leaves, pods, pods, leaves])
    if not cores:
        widths = np.repeat([half, 0, 0, half], [leaves, pods, pods, leaves])
    leaf_ports = np.minimum(np.arange(leaves + 1) * half, end_ports)
    pod_ports = np.minimum(np.arange(pods + 1) * half**2, end_ports)
    served = [np.stack([p[:-1], p[1:]], axis=1) for p in (leaf_ports, pod_ports)]

    def bundle_name(bundle: int) -> str:
        way = "up" if bundle < leaves + pods else "down"
        place = bundle if bundle < leaves + pods else 2 * (leaves + pods) - 1 - bundle
        if way == "up":
            return f"{names[place]}/up" if place < leaves else f"pod{place - leaves}/up"
        first = bundle - leaves - pods
        return f"pod{first}/down" if first < pods else f"{names[first - pods]}/down"

    return SwitchNetwork(
        family="fat_tree_3",
        end_ports=end_ports,
        switches=2 * leaves + cores,
        port_switch=(np.arange(end_ports) // half).astype(np.int32),
        link_source=np.concatenate([leaf, middle, core, middle_of_leaf]).astype(np.int32),
        link_target=np.concatenate([middle_of_leaf, core, middle, leaf]).astype(np.int32),
        link_reverse=np.concatenate(
            [
                np.arange(bounds[3], bounds[4]),
                np.arange(bounds[2], bounds[3]),
                np.arange(bounds[1], bounds[2]),
                np.arange(bounds[0], bounds[1]),
            ]
        ).astype(np.int32),
        switch_names=names,
        link_names=link_name,
        bundle_start=np.concatenate([[0], np.cumsum(widths)]).astype(np.int32),
        bundle_links=np.arange(2 * (lower + upper), dtype=np.int32),
        bundle_ports=np.concatenate([served[0], served[1], served[1], served[0]]).astype(np.int32),
        bundle_names=bundle_name,
        router=partial(
            _route_fat_tree_3,
            end_ports=end_ports,
            half=half,
            pods=pods,
            lower=lower,
            upper=upper,
        ),
        hops=6,
    )


def _route_fat_tree_3(
    source: Integers,
    destination: Integers,
    choice: Integers,
    routing: Routing,
    *,
    end_ports: int,
    half: int,
    pods: int,
    lower: int,
    upper: int,
) -> Indices:
    leaves = pods * half
    path = np.full((len(source), 6), -1, dtype=np.int32)
    path[:, 0] = source
    path[:, 5] = end_ports + destination
    from_leaf, to_leaf = source // half, destination // half
    from_pod, to_pod = source // half**2, destination // half**2
    links = 2 * end_ports
    if routing == "adaptive":
        first = links + 2 * (lower + upper)
        hops = (
            first + from_leaf,
            first + leaves + from_pod,
            first + leaves + pods + to_pod,
            first + leaves + 2 * pods + to_leaf,
        )
    else:
        ways = {"source": source, "destination": destination, "choice": choice}
        a = pick(routing, half, **ways, salt=1)
        # A table spreads destinations over the cores by the next digit of their number.
        by_leaf = {
            **ways,
            "destination": destination // half if routing == "static" else destination,
        }
        c = pick(routing, half, **by_leaf, salt=2)
        hops = (
            links + from_leaf * half + a,
            links + lower + (from_pod * half + a) * half + c,
            links + lower + upper + (to_pod * half + a) * half + c,
            links + lower + 2 * upper + to_leaf * half + a,
        )
    crosses_leaf, crosses_pod = from_leaf != to_leaf, from_pod != to_pod
    for column, (resource, used) in enumerate(
        zip(hops, (crosses_leaf, crosses_pod, crosses_pod, crosses_leaf), strict=True), start=1
    ):
        path[:, column] = np.where(used, resource, -1)
    return path
