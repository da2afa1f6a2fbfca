"""Collective operations as phases of concurrent flows.

A ``Phase`` is flows that start together, after a delay; the phases of an operation follow each
other. Whatever is pipelined in chunks (rings, trees, forwarding over NVLink) is one phase whose
flows run side by side, with the time to fill the pipeline as its delay: the fluid limit of many
chunks. Bytes are exact.

Groups are arrays [groups, size] of GPU numbers; every group does the same at the same time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from simulator.hardware.network.fairness import Floats, Integers
from simulator.hardware.network.flows import Flows, make_flows
from simulator.hardware.network.topology import Fabric

MOST_RANKS = 8192
"""Of a group that exchanges experts; copies for each pair of them take 0.5 GiB a count."""


@dataclass(slots=True)
class Phase:
    """Flows that start together, and the seconds before they do."""

    name: str
    flows: Flows
    delay: float = 0.0


def pairs(groups: Integers) -> tuple[Integers, Integers]:
    """Every ordered pair of two different members of each group, as (sources, destinations)."""
    groups = np.asarray(groups, dtype=np.int32)
    size = groups.shape[1]
    # Row i of the table holds the other members, those after i first: i+1, i+2, ..., i-1.
    turn = np.arange(size, dtype=np.int32)[:, None] + np.arange(1, size, dtype=np.int32)
    turn -= np.where(turn >= size, size, 0).astype(np.int32)
    source = np.repeat(groups.ravel(), size - 1)
    destination = groups[:, turn].reshape(-1) if size > 1 else np.zeros(0, dtype=np.int32)
    return source, destination


def all_to_all(groups: Integers, size: Floats | float, *, fabric: Fabric) -> list[Phase]:
    """Every GPU sends ``size`` bytes (scalar, or one for each of ``pairs``) to each other one, on
    any fabric."""
    source, destination = pairs(groups)
    return [Phase("all_to_all", make_flows(source, destination, size))]


def rail_all_to_all(groups: Integers, size: Floats | float, *, fabric: Fabric) -> list[Phase]:
    """All-to-all that crosses the network only between GPUs of one index (NCCL's PXN).

    What is meant for another index goes over NVLink first, to the GPU of the source node that has
    the destination's index; both steps run pipelined. Needs whole nodes and equal sizes.
    """
    if not isinstance(size, float | int):
        raise ValueError("all_to_all over rails has equal sizes; use algorithm direct")
    per_node = fabric.inputs.gpus_per_node
    count, members = groups.shape
    nodes = members // per_node
    whole = groups.reshape(count, -1, per_node) if members % per_node == 0 else None
    if whole is None or (whole // per_node != whole[:, :, :1] // per_node).any():
        raise ValueError(
            f"all_to_all over rails needs groups of whole nodes; {members} GPUs are not "
            f"{per_node} of each node"
        )
    inside = pairs(whole.reshape(-1, per_node))
    # Own share of the destination GPU, and what it then sends on to the other nodes' same index.
    over_nvlink = size * nodes
    rails = pairs(whole.swapaxes(1, 2).reshape(-1, nodes))
    source = np.concatenate([inside[0], rails[0]])
    destination = np.concatenate([inside[1], rails[1]])
    sizes = np.repeat([over_nvlink, size * per_node], [len(inside[0]), len(rails[0])])
    delay = fabric.inputs.nvlink_latency if nodes > 1 and per_node > 1 else 0.0
    return [Phase("all_to_all", make_flows(source, destination, sizes), delay)]


def rings(groups: Integers, *, fabric: Fabric) -> tuple[Integers, int]:
    """Ring orders of each group, [rings, size] of all groups, and how many rings a group has.

    A group of whole nodes has one ring a NIC. Ring k walks the first node from index k on, the next
    one backwards from where it came in, and so on, so that each crossing joins GPUs of one index.
    """
    per_node, nics = fabric.inputs.gpus_per_node, max(fabric.inputs.nics_per_node, 1)
    count, size = groups.shape
    whole = groups.reshape(count, -1, per_node) if size % per_node == 0 else None
    if per_node == 1 or whole is None or (whole // per_node != whole[:, :, :1] // per_node).any():
        return groups, 1
    orders = []
    for ring in range(nics if whole.shape[1] > 1 else 1):
        walk = (np.arange(per_node) + ring * per_node // nics) % per_node
        nodes = [whole[:, n, walk if n % 2 == 0 else walk[::-1]] for n in range(whole.shape[1])]
        orders.append(np.stack(nodes, axis=1).reshape(count, size))
    return np.concatenate(orders), len(orders)


def ring_steps(
    groups: Integers, size: float, *, fabric: Fabric, steps: int, step: float, name: str
) -> list[Phase]:
    """Each GPU passes ``steps`` shares, each 1/GPUs of ``size`` bytes, on around its rings.

    ``step`` is what one hand-over costs besides the bytes (s); all but the last are the delay, the
    last one's latency is that of the flow.
    """
    orders, number = rings(groups, fabric=fabric)
    following = np.roll(orders, -1, axis=1)
    share = size / groups.shape[1] / number
    flows = make_flows(orders.ravel(), following.ravel(), share * steps)
    return [Phase(name, flows, max(steps - 1, 0) * step)]


def all_gather(
    groups: Integers, size: float, *, fabric: Fabric, algorithm: str, step: float
) -> list[Phase]:
    """Every GPU ends up with all shares of ``size`` bytes in all."""
    members = groups.shape[1]
    if algorithm == "direct":
        source, destination = pairs(groups)
        return [Phase("all_gather", make_flows(source, destination, size / members))]
    return ring_steps(groups, size, fabric=fabric, steps=members - 1, step=step, name="all_gather")


def reduce_scatter(
    groups: Integers, size: float, *, fabric: Fabric, algorithm: str, step: float
) -> list[Phase]:
    """Every GPU ends up with the sum of one share; the mirror image of ``all_gather``."""
    phases = all_gather(groups, size, fabric=fabric, algorithm=algorithm, step=step)
    for phase in phases:
        phase.name = "reduce_scatter"
    return phases


def all_reduce(
    groups: Integers, size: float, *, fabric: Fabric, algorithm: str, step: float
) -> list[Phase]:
    """Every GPU ends up with the sum of all vectors of ``size`` bytes.

    ring: reduce-scatter and all-gather around the same rings. tree: two binary trees, each for half
    of the vector, up and down at once (Sanders, Speck and Träff). hierarchical: reduce-scatter in
    each node, all-reduce between GPUs of one index, all-gather in each node.
    """
    members = groups.shape[1]
    if algorithm == "ring":
        return ring_steps(
            groups, size, fabric=fabric, steps=2 * (members - 1), step=step, name="all_reduce"
        )
    if algorithm == "tree":
        child, parent = _two_trees(groups)
        depth = 2 * max(int(np.ceil(np.log2(max(members, 2)))), 1)
        flows = make_flows(
            np.concatenate([child, parent]), np.concatenate([parent, child]), size / 2
        )
        return [Phase("all_reduce", flows, (depth - 1) * step)]
    per_node = fabric.inputs.gpus_per_node
    count = groups.shape[0]
    if members % per_node or per_node in (1, members):
        raise ValueError(
            f"hierarchical all_reduce needs groups of several whole nodes of {per_node} GPUs, "
            f"got {members} GPUs"
        )
    inside = groups.reshape(-1, per_node)
    across = groups.reshape(count, -1, per_node).swapaxes(1, 2).reshape(-1, members // per_node)
    return [
        *reduce_scatter(inside, size, fabric=fabric, algorithm="direct", step=step),
        *all_reduce(across, size / per_node, fabric=fabric, algorithm="ring", step=step),
        *all_gather(inside, size, fabric=fabric, algorithm="direct", step=step),
    ]


def broadcast(
    groups: Integers, size: float, *, fabric: Fabric, algorithm: str, step: float
) -> list[Phase]:
    """The first GPU of each group sends ``size`` bytes to all others, in a pipeline."""
    members = groups.shape[1]
    if algorithm == "ring":
        orders, number = rings(groups, fabric=fabric)
        root = np.repeat(groups[None, :, 0], number, axis=0).ravel()
        # Every ring starts at the root, wherever it stands in the ring's order.
        first = np.argmax(orders == root[:, None], axis=1)
        turned = orders[
            np.arange(len(orders))[:, None], (np.arange(members) + first[:, None]) % members
        ]
        flows = make_flows(turned[:, :-1].ravel(), turned[:, 1:].ravel(), size / number)
        return [Phase("broadcast", flows, max(members - 2, 0) * step)]
    position = np.arange(1, members)
    parent, child = groups[:, (position - 1) // 2], groups[:, position]
    depth = max(int(np.ceil(np.log2(max(members, 2)))), 1)
    flows = make_flows(parent.ravel(), child.ravel(), size)
    return [Phase("broadcast", flows, (depth - 1) * step)]


def send(source: Integers, destination: Integers, size: Floats | float) -> list[Phase]:
    """Each source sends ``size`` bytes to its destination: pipeline stages, or a KV cache."""
    return [Phase("send", make_flows(source, destination, size))]


def _two_trees(groups: Integers) -> tuple[Integers, Integers]:
    """(child, parent) of both binary trees: the second is the first with all positions shifted."""
    position = np.arange(1, groups.shape[1])
    children, parents = [], []
    for shift in (0, 1):
        turned = np.roll(groups[:, :: -1 if shift else 1], shift, axis=1)
        children.append(turned[:, position].ravel())
        parents.append(turned[:, (position - 1) // 2].ravel())
    return np.concatenate(children), np.concatenate(parents)


@dataclass(frozen=True, slots=True)
class Copies:
    """How many token copies go where, in one expert-parallel group; ranks are 0, 1, ..."""

    to_rank: Floats
    """[ranks, ranks], tokens of the first that have an expert on the second."""
    to_node: Floats
    """[ranks, nodes], tokens of the rank that have an expert in the node."""
    to_expert: Floats
    """[ranks, ranks], (token, expert) pairs: tokens with two experts on a rank count twice."""
    tokens: int
    """Tokens of one rank."""

    @property
    def nodes_per_token(self) -> float:
        """Average number of distinct nodes that a token reaches, the own one included."""
        return float(self.to_node.sum() / (self.tokens * len(self.to_node)))

    @property
    def ranks_per_token(self) -> float:
        """Average number of distinct GPUs that a token reaches, the own one included."""
        return float(self.to_rank.sum() / (self.tokens * len(self.to_rank)))

    def nic_copies_saved(self, ranks_per_node: int) -> float:
        """Share of copies over NICs that one copy per node saves against one per expert."""
        rank = np.arange(len(self.to_rank))
        away = rank[:, None] // ranks_per_node != rank // ranks_per_node
        per_expert = self.to_expert[away].sum()
        own = self.to_node[rank, rank // ranks_per_node].sum()
        return float(1 - (self.to_node.sum() - own) / per_expert) if per_expert else 0.0


def count_copies(
    experts: Sequence[Integers], *, expert_rank: Integers, ranks_per_node: int
) -> Copies:
    """Count copies from the experts [tokens, top_k] that each rank's tokens go to.

    ``expert_rank`` [experts] is the placement: the rank that holds each expert.
    """
    ranks = len(experts)
    _check_ranks(ranks)
    nodes = -(-ranks // ranks_per_node)
    to_rank = np.zeros((ranks, ranks))
    to_node = np.zeros((ranks, nodes))
    to_expert = np.zeros((ranks, ranks))
    for rank, chosen in enumerate(experts):
        places = np.sort(expert_rank[chosen], axis=1)
        to_expert[rank] = np.bincount(places.ravel(), minlength=ranks)
        to_rank[rank] = np.bincount(_distinct(places), minlength=ranks)
        to_node[rank] = np.bincount(_distinct(places // ranks_per_node), minlength=nodes)
    return Copies(to_rank, to_node, to_expert, tokens=len(experts[0]))


def balanced_copies(ranks: int, *, tokens: int, copies: int, ranks_per_node: int) -> Copies:
    """Copies divided evenly over the other ranks, one rank at most once a token."""
    _check_ranks(ranks)
    even = np.full((ranks, ranks), tokens * copies / max(ranks - 1, 1))
    np.fill_diagonal(even, 0.0)
    nodes = -(-ranks // ranks_per_node)
    by_node = np.add.reduceat(even, np.arange(nodes) * ranks_per_node, axis=1)
    return Copies(even, np.minimum(by_node, tokens), even, tokens=tokens)


def _check_ranks(ranks: int) -> None:
    if ranks > MOST_RANKS:
        raise ValueError(
            f"an exchange of experts among {ranks} GPUs counts copies for each pair of them, "
            f"{ranks**2 * 8 / 2**30:.0f} GiB; allowed: groups of at most {MOST_RANKS} GPUs"
        )


def _distinct(sorted_rows: Integers) -> Integers:
    first = np.ones(sorted_rows.shape, dtype=bool)
    first[:, 1:] = sorted_rows[:, 1:] != sorted_rows[:, :-1]
    return np.asarray(sorted_rows[first], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class TokenExchange:
    """One dispatch or combine: what a copy weighs, and what the kernels that send it work with."""

    fabric: Fabric
    token_bytes: float
    message_overhead: float
    """Seconds that a NIC needs for a message of no bytes; its inverse is the message rate."""
    chunks: float
    """Parts that a forwarded exchange is pipelined in."""
    back: bool
    """Combine: partial sums come back the way the tokens went."""

    @property
    def name(self) -> str:
        """Name of its phase."""
        return "combine" if self.back else "dispatch"

    def wire(self, size: Floats) -> Floats:
        """Bytes that a NIC could have sent in the time it needs for ``size``, a message a token."""
        floor = self.message_overhead * self.fabric.inputs.nic_bandwidth
        return size * max(1.0, floor / self.token_bytes) if self.token_bytes > 0 else size


def forwarded_flows(copies: Copies, gpus: Integers, exchange: TokenExchange) -> list[Phase]:
    """Normal form: one copy per token and node over the rail, then NVLink to the experts' GPUs.

    A token goes once to each node that has one of its experts, to the GPU there of the source's own
    index, and from there over NVLink once to each GPU that has one; the own node is served by the
    source itself, and a GPU's own share counts as an NVLink copy, because the kernel makes it with
    the same instructions. A combine turns every arrow. The two steps run side by side in parts;
    filling that pipeline delays the whole by the shorter step over the number of parts.

    ``gpus`` [ranks] are the GPUs of the group, whole nodes in order.
    """
    fabric, token_bytes = exchange.fabric, exchange.token_bytes
    per_node = fabric.inputs.gpus_per_node
    ranks = len(gpus)
    nodes = -(-ranks // per_node)
    rank = np.arange(ranks)
    local, home = rank % per_node, rank // per_node
    # Forwarder f serves its node's GPUs with the tokens of all ranks that share its index.
    index = np.eye(per_node)[local]  # [ranks, index]
    by_index = index.T @ copies.to_rank  # [index, ranks]
    forwarder = (home[None, :] * per_node + np.arange(per_node)[:, None]).ravel()
    receiver = np.broadcast_to(rank, (per_node, ranks)).ravel()
    over_rail = copies.to_node.copy()
    over_rail[rank, home] = 0.0
    sender = np.repeat(rank, nodes)
    entry = np.arange(nodes)[None, :] * per_node + local[:, None]
    exists = (forwarder < ranks) & (by_index.ravel() > 0)
    source = np.concatenate([sender, forwarder[exists]])
    destination = np.concatenate([np.minimum(entry.ravel(), ranks - 1), receiver[exists]])
    tokens = np.concatenate([over_rail.ravel(), by_index.ravel()[exists]])
    if exchange.back:
        source, destination = destination, source
    flows = make_flows(gpus[source], gpus[destination], tokens * token_bytes)
    rail_time = over_rail.sum(axis=1).max() * token_bytes / fabric.inputs.nic_bandwidth
    copy_time = (
        copies.to_rank.sum(axis=0).max() * token_bytes / (fabric.inputs.nvlink_bandwidth or np.inf)
    )
    fill = min(rail_time, copy_time) / max(exchange.chunks, 1.0)
    return [Phase(exchange.name, flows, float(fill))]


def low_latency_flows(
    copies: Copies, gpus: Integers, exchange: TokenExchange, *, nics_inside: bool
) -> list[Phase]:
    """Low-latency form: one RDMA message per token and expert straight to its GPU, on no SM.

    With ``nics_inside`` NICs serve a node as well, where it has any; else NVLink does. A GPU's own
    share is a local copy and crosses no link.
    """
    ranks = len(gpus)
    source, destination = (a.ravel() for a in np.indices((ranks, ranks)))
    if exchange.back:
        source, destination = destination, source
    size = copies.to_expert.ravel() * exchange.token_bytes
    size = np.where(source == destination, 0.0, size)
    flows = make_flows(
        gpus[source],
        gpus[destination],
        size,
        wire=exchange.wire(size),
        rdma=nics_inside and bool(exchange.fabric.planes),
    )
    return [Phase(exchange.name, flows)]


@dataclass(frozen=True, slots=True)
class ExchangeForm:
    """How dispatch and combine send the copies of tokens."""

    flows: Callable[[Copies, Integers, TokenExchange], list[Phase]]
    forwards: bool
    """Kernels on communication SMs send a copy to each node of whole ones, which forwards it; a
    bandwidth counts those copies. Else every copy goes straight to its expert, on no SM."""
    nics_inside: bool
    """Whether copies within a node go through NICs."""


EXCHANGES: Mapping[str, ExchangeForm] = {
    "normal": ExchangeForm(forwarded_flows, forwards=True, nics_inside=False),
    "low_latency": ExchangeForm(
        partial(low_latency_flows, nics_inside=True), forwards=False, nics_inside=True
    ),
    "low_latency_mixed": ExchangeForm(
        partial(low_latency_flows, nics_inside=False), forwards=False, nics_inside=False
    ),
}
"""Forms of dispatch and combine, the default first."""

ALL_TO_ALLS: Mapping[str, Callable[..., list[Phase]]] = {
    "direct": all_to_all,
    "rail": rail_all_to_all,
}
"""Forms of an all-to-all, the default first: (groups, bytes of each pair, fabric=) -> phases."""

COLLECTIVES: Mapping[str, Mapping[str, Callable[..., list[Phase]]]] = {
    operation.__name__: {form: partial(operation, algorithm=form) for form in forms}
    for operation, forms in (
        (all_gather, ("ring", "direct")),
        (reduce_scatter, ("ring", "direct")),
        (all_reduce, ("ring", "tree", "hierarchical")),
        (broadcast, ("tree", "ring")),
    )
}
"""Forms of the other operations, the default first: (groups, bytes, fabric=, step=) -> phases."""
