"""Dispatch and combine of a group as flows over its fabric, of ranks that get unequal rows.

The flows are those of a collective in normal form: a copy per token and node over the rail, then
NVLink to the experts' GPUs, both side by side. Bytes on the wire are counted so that on an idle
fabric, between ranks that are alike, the flows take what the transfer takes alone: links at the
rates that kernels achieve, and NVLink at what the communication SMs can copy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.units import Bytes, Seconds
from reference_model.trace import Operator
from simulator.execution.machine.ranks import GroupTransfer
from simulator.hardware.network.collectives import (
    Copies,
    Messages,
    TokenExchange,
    forwarded_flows,
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


def _stretch(seconds: Seconds, size: Bytes, rate: float) -> float:
    """Bytes on the wire per byte sent, so that `size` bytes take so long at a link's rate."""
    return seconds * rate / size if size and rate < np.inf else 1.0
