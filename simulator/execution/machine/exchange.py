"""Dispatch and combine of a group as flows over its fabric, of ranks that get unequal rows.

Normal kernels, as DeepEP's: a token goes once to each node that it reaches, over the NIC of its GPU
to the GPU there of the same index, whose SMs forward it over NVLink to the experts' GPUs. NIC,
NVLink and copying SMs work on the same tokens, so that all of a rank's tokens to a node are a lane,
at the rate of the slowest of them, behind the time to fill the way with one chunk. Each channel
sends its tokens in order, and waits where the buffer of one of their nodes is full: lanes of a rank
are a stream. Channels of a rank are alike, and one lane stands for all of them. A combine turns
every arrow.

Bytes on the wire are counted so that on an idle fabric, between ranks that are alike, the flows
take what the transfer takes alone: links at the rates that kernels achieve, SMs at what they copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.low_latency_kernels import MoeOperation
from hardware_profiles.units import Bytes, BytesPerSecond, Seconds
from reference_model.trace import ALL_TO_ALL_KINDS, Operator
from simulator.execution.machine.ranks import GroupTransfer
from simulator.hardware.network.collectives import (
    Copies,
    TokenExchange,
    low_latency_flows,
)
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.fairness import Integers
from simulator.hardware.network.flows import Flows, make_flows
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.lanes import Lanes
from simulator.hardware.network.topology import Fabric
from simulator.hardware.network.transfers import Transfers
from simulator.scenario.events import ChannelInputs

Array = NDArray[np.float64]

KINDS = tuple(sorted(ALL_TO_ALL_KINDS))
"""Combine and dispatch; SMs copy the tokens of each at a rate of its own."""


def copy_rates(
    transfers: Transfers, operators: Sequence[Operator], *, sms: int, fabric: Fabric
) -> list[BytesPerSecond]:
    """Rate of a GPU's copying SMs for each of KINDS, in bytes as they count on NVLink.

    Args:
        sms: that copy; without any, copy engines do, as fast as links go.
    """
    rates = []
    for kind in KINDS:
        one = next((operator for operator in operators if operator.kind == kind), None)
        time = transfers.explain(one, sms=sms, overlapped=False, load=NO_LIMIT) if one else None
        nvlink = fabric.inputs.nvlink_bandwidth
        if time is None or not time.copy_s or nvlink is None:
            rates.append(np.inf)
        else:
            rates.append(nvlink * time.nvlink_s / time.copy_s)
    return rates


def expected_copies(tokens: float, reach: Reach, shares: Array) -> Copies:
    """Copies of tokens between the ranks of a group, as expected numbers.

    Args:
        tokens: of one rank.
        shares: [ranks], rows that a rank receives over their mean.
    """
    ranks = len(shares)
    to_rank = np.tile(tokens * reach.gpus / ranks * shares, (ranks, 1))
    starts = np.concatenate(([0], np.cumsum(reach.parts)[:-1]))
    of_node = np.add.reduceat(shares, starts) / np.array(reach.parts)
    to_node = np.tile(np.minimum(np.array(reach.reached) * of_node, 1.0) * tokens, (ranks, 1))
    return Copies(to_rank, to_node, to_rank, tokens=round(tokens))


def normal_transfer(
    transfers: Transfers,
    operator: Operator,
    *,
    sms: int,
    shares: Array,
    fabric: Fabric,
    first_gpu: int,
    channel: ChannelInputs,
) -> GroupTransfer:
    """One dispatch or combine by normal kernels.

    Args:
        transfers: of the job, whose time alone between ranks that are alike it takes.
        sms: communication SMs.
        shares: [ranks], rows that a rank receives over their mean.
        fabric: with copiers of copy_rates.
    """
    time = transfers.explain(operator, sms=sms, overlapped=False, load=NO_LIMIT)
    reach = transfers.reach
    tokens, token_bytes = operator["tokens"], transfers.token_bytes(operator)
    between = len(reach.parts) > 1
    channels = max(1, sms // transfers.sms_per_channel) if between else max(1, sms)
    # Tokens that a lane has between two nodes, of all channels.
    of_lane = max(tokens * reach.nodes / len(reach.parts), 1.0)
    chunks = max(of_lane / (channels * channel.chunk_tokens), 1.0)
    fill_s = min(time.nic_s, max(time.nvlink_s, time.copy_s)) / chunks if between else 0.0
    hops = max(time.nic_s, time.nvlink_s, time.copy_s)
    longer = (time.payload_s - fill_s) / hops if hops else 1.0
    copied, inputs = tokens * token_bytes, fabric.inputs
    flows, owner = lane_flows(
        expected_copies(tokens, reach, shares),
        fabric=fabric,
        first_gpu=first_gpu,
        token_bytes=token_bytes,
        kind=operator.kind,
        wire=(
            _stretch(time.nic_s, copied * reach.over_nics, inputs.nic_bandwidth) * longer,
            _stretch(time.nvlink_s, copied * reach.gpus, inputs.nvlink_bandwidth or np.inf)
            * longer,
        ),
        lead=channel.buffer_tokens * channels / of_lane,
    )
    return GroupTransfer(
        flows=flows,
        owner=owner,
        first_gpu=first_gpu,
        hbm_bytes=copied * payloads_over_hbm(reach) * shares,
        alone_s=time.payload_s,
        delay_s=time.notify_s,
        fill_s=fill_s,
    )


def lane_flows(
    copies: Copies,
    *,
    fabric: Fabric,
    first_gpu: int,
    token_bytes: Bytes,
    kind: str,
    wire: tuple[float, float],
    lead: float,
) -> tuple[Flows, Integers]:
    """Flows of all ranks by lane, and the rank whose tokens each carries.

    Args:
        wire: bytes on the wire per byte, over NICs and over NVLink.
        lead: share of a lane by which it may be ahead of the others of its rank.
    """
    ranks, nodes = copies.to_node.shape
    per_node, everyone = fabric.inputs.gpus_per_node, np.arange(ranks)
    owner, node = np.divmod(np.arange(ranks * nodes), nodes)
    # The GPU where a lane enters its node: of the owner's index, or the owner itself.
    entry = np.minimum(node * per_node + owner % per_node, ranks - 1)
    at_home = node == owner // per_node
    entry[at_home] = owner[at_home]
    rails = np.flatnonzero(~at_home)
    forwards = (everyone[:, None] * nodes + everyone // per_node).ravel()
    lane = np.concatenate([rails, forwards])
    source = first_gpu + np.concatenate([owner[rails], entry[forwards]])
    destination = first_gpu + np.concatenate([entry[rails], np.tile(everyone, ranks)])
    if kind == "combine":
        source, destination = destination, source
    copiers = KINDS.index(kind)
    also = np.stack(
        [fabric.copier(source, copiers, "out"), fabric.copier(destination, copiers, "in")], axis=1
    ).astype(np.int32)
    also[: len(rails)] = -1
    sizes = np.concatenate([copies.to_node.ravel()[rails], copies.to_rank.ravel()]) * token_bytes
    stretch = np.repeat(wire, [len(rails), len(forwards)])
    some = np.flatnonzero(sizes > 0)
    flows = make_flows(source[some], destination[some], sizes[some], wire=(sizes * stretch)[some])
    lane_bytes = np.maximum(copies.to_node.ravel() * token_bytes * wire[0], 1.0)
    flows.also, flows.lanes = also[some], Lanes(lane[some], owner, lane_bytes, lead)
    return flows, owner[lane[some]]


def payloads_over_hbm(reach: Reach) -> float:
    """Times that the payload of a token moves over the HBM of its group's GPUs, L2 holding none.

    Dispatch between nodes: read by its GPU; written for each node, read by the NIC and written by
    the other one where that is not its own, read by who forwards it. Then, and within one node:
    written for each GPU, read there and written to its place. Combine is the way back, and each sum
    reads what it adds: 3 times for each GPU, and what a node adds is written, sent, read again.
    """
    passed_on = 2.0 * reach.nodes + 2.0 * reach.over_nics if len(reach.parts) > 1 else 0.0
    return 1.0 + passed_on + 3.0 * reach.gpus


def low_latency_transfer(
    transfers: Transfers,
    operation: MoeOperation,
    seconds: Seconds,
    *,
    tokens: float,
    shares: Array,
    fabric: Fabric,
    token_bytes: Bytes,
    hbm_bytes: Bytes,
) -> GroupTransfer:
    """The wires of one dispatch or combine by low-latency kernels: a copy per token and expert
    straight to its GPU, between the cluster's first GPUs.

    Args:
        seconds: that they take alone, between ranks that are alike.
        tokens: copies that a rank sends.
        shares: [ranks], rows that a rank receives over their mean.
        hbm_bytes: that move over the HBM of a mean rank.
    """
    ranks, back = len(shares), operation == "combine"
    copies = np.tile(tokens / ranks * shares, (ranks, 1))
    exchange = TokenExchange(
        fabric=fabric,
        token_bytes=token_bytes,
        message_overhead=0.0,
        chunks=1.0,
        back=back,
    )
    everyone = np.arange(ranks)
    nics_inside = transfers.nics_inside and bool(fabric.planes)

    def flows_of(counts: Array) -> Flows:
        found = Copies(counts, counts, counts, tokens=round(tokens))
        return low_latency_flows(found, everyone, exchange, nics_inside=nics_inside)[0].flows

    even, flows = flows_of(np.full((ranks, ranks), tokens / ranks)), flows_of(copies)
    per_node, inputs = fabric.inputs.gpus_per_node, fabric.inputs
    beyond = even.source // per_node != even.destination // per_node
    over_nics = beyond | nics_inside
    first = even.source == even.source[0] if len(even) else beyond
    latency = inputs.cross_leaf_latency if over_nics.any() else inputs.nvlink_latency
    busiest = max(
        float(even.wire[first & over_nics].sum()) / inputs.nic_bandwidth,
        float(even.wire[first & ~over_nics].sum()) / (inputs.nvlink_bandwidth or np.inf),
    )
    stretch = max(seconds - latency, 0.0) / busiest if busiest else 1.0
    flows.wire = flows.wire * stretch
    return GroupTransfer(
        flows=flows,
        owner=flows.source,
        first_gpu=0,
        hbm_bytes=hbm_bytes * shares,
        alone_s=seconds,
        delay_s=0.0,
    )


def _stretch(seconds: Seconds, size: Bytes, rate: float) -> float:
    """Bytes on the wire per byte sent, so that `size` bytes take so long at a link's rate."""
    return seconds * rate / size if size and rate < np.inf else 1.0
