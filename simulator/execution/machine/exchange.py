"""Dispatch and combine of a group as flows over its fabric, of ranks that get unequal rows.

The flows are those of a collective in normal form: a copy per token and node over the rail, then
NVLink to the experts' GPUs, both side by side. Bytes on the wire are counted so that on an idle
fabric, between ranks that are alike, the flows take what the transfer takes alone: links at the
rates that kernels achieve, and NVLink at what the communication SMs can copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.low_latency_kernels import MoeOperation
from hardware_profiles.units import Bytes, Seconds
from reference_model.trace import Operator
from simulator.execution.machine.ranks import GroupTransfer
from simulator.hardware.network.collectives import (
    Copies,
    Messages,
    TokenExchange,
    forwarded_flows,
    low_latency_flows,
)
from simulator.hardware.network.fabric_load import NO_LIMIT
from simulator.hardware.network.flows import Flows
from simulator.hardware.network.groups import Reach
from simulator.hardware.network.topology import Fabric
from simulator.hardware.network.transfers import Transfers

Array = NDArray[np.float64]


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
) -> GroupTransfer:
    """One dispatch or combine by normal kernels.

    Args:
        transfers: of the job, whose time alone between ranks that are alike it takes.
        sms: communication SMs.
        shares: [ranks], rows that a rank receives over their mean.
    """
    time = transfers.explain(operator, sms=sms, overlapped=False, load=NO_LIMIT)
    tokens, token_bytes = operator["tokens"], transfers.token_bytes(operator)
    reach = transfers.reach
    ranks = len(shares)
    exchange = TokenExchange(
        fabric=fabric,
        token_bytes=token_bytes,
        messages=Messages(0.0, fabric.inputs.nic_bandwidth),
        chunks=1.0,
        back=operator.kind == "combine",
    )
    gpus = first_gpu + np.arange(ranks)
    (phase,) = forwarded_flows(expected_copies(tokens, reach, shares), gpus, exchange)
    alone = max(time.nic_s, time.nvlink_s)
    longer = 1.0 if time.kernel_s is None or not alone else time.kernel_s / alone
    copied = tokens * token_bytes
    flows = phase.flows
    per_node = fabric.inputs.gpus_per_node
    over_nics = flows.source // per_node != flows.destination // per_node
    wire = np.where(
        over_nics,
        _stretch(time.nic_s, copied * reach.over_nics, fabric.inputs.nic_bandwidth),
        _stretch(time.nvlink_s, copied * reach.gpus, fabric.inputs.nvlink_bandwidth or np.inf),
    )
    return GroupTransfer(
        flows=Flows(
            flows.source,
            flows.destination,
            flows.size,
            flows.multiplicity,
            flows.size * wire * longer,
            flows.choice,
        ),
        first_gpu=first_gpu,
        hbm_bytes=(operator.bytes_read + operator.bytes_written) * shares,
        alone_s=alone * longer,
        delay_s=time.notify_s,
    )


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
        messages=Messages(0.0, fabric.inputs.nic_bandwidth),
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
        first_gpu=0,
        hbm_bytes=hbm_bytes * shares,
        alone_s=seconds,
        delay_s=0.0,
    )


def _stretch(seconds: Seconds, size: Bytes, rate: float) -> float:
    """Bytes on the wire per byte sent, so that `size` bytes take so long at a link's rate."""
    return seconds * rate / size if size and rate < np.inf else 1.0
