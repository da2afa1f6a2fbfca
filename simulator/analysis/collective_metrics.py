"""What the traffic of a collective job means, and how near published measurements it comes.

Times are seconds, sizes bytes, bandwidths bytes per second as nccl-tests count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hardware_profiles.schema import TransportProfile
from simulator.execution.collective import CollectiveResult, OperationResult, VariantResult
from simulator.scenario.collective import CollectiveJob, PublishedTransfer


def collective_metrics(
    result: CollectiveResult, job: CollectiveJob, *, links: int | None = None
) -> dict[str, Any]:
    """The figures of a collective by their JSON names; links are those of the last variant.

    Args:
        links: how many to keep, busiest first; all where None.
    """
    last = result.last
    main = [operation for operation in last.operations if operation.start_s >= 0]
    done = [operation.completion_s for operation in main]
    order = np.argsort(-last.links.utilisation, kind="stable")[:links]
    return {
        "completion_s": None if None in done else last.end_s,
        "bytes_total": sum(operation.bytes_total for operation in main),
        "bus_bandwidth_bytes_per_s": main[0].bus_bandwidth,
        "algorithm_bandwidth_bytes_per_s": main[0].algorithm_bandwidth,
        "stalled": last.stalled,
        "solves": last.solves,
        "merge_share": result.merge_share,
        "transport": result.transport.name,
        "transport_kind": _kind(result.transport),
        "rows": [
            _row(operation) for variant in result.variants for operation in variant.operations
        ],
        "published": _beside_published(job, result.variants),
        "links": [
            {
                "name": last.links.names[link],
                "bytes": float(last.links.bytes[link]),
                "utilisation": float(last.links.utilisation[link]),
            }
            for link in order.tolist()
        ],
        "wall_clock_s": result.wall_clock_s,
    }


def _kind(transport: TransportProfile) -> str:
    """What a transport's times rest on, in a word."""
    if transport.measured is not None:
        return "measured"
    return "calibrated" if transport.fitted_to else "stated"


def _row(operation: OperationResult) -> dict[str, Any]:
    return {
        "operation": operation.name,
        "algorithm": operation.algorithm,
        "topology": operation.topology,
        "routing": operation.routing,
        "gpus": operation.gpus,
        "groups": operation.groups,
        "group_gpus": operation.group_gpus,
        "size_bytes": operation.size_bytes,
        "completion_s": operation.completion_s,
        "mean_gpu_s": operation.mean_gpu_s,
        "bytes_total": operation.bytes_total,
        "algorithm_bandwidth_bytes_per_s": operation.algorithm_bandwidth,
        "bus_bandwidth_bytes_per_s": operation.bus_bandwidth,
        "nodes_per_token": operation.nodes_per_token,
        "gpus_per_token": operation.gpus_per_token,
        "nic_copies_saved": operation.nic_copies_saved,
        "sms": operation.sms,
        **_alone(operation),
    }


def _alone(operation: OperationResult) -> dict[str, Any]:
    """What the time of an operation alone rests on: rows of it, or links at the transport's
    rates."""
    found = operation.measured
    if found is None:
        return {"provenance": "links"}
    return {
        "provenance": found.provenance_names()[0],
        "alone_s": [found.low.item(), found.seconds.item(), found.high.item()],
    }


def _beside_published(
    job: CollectiveJob, variants: Sequence[VariantResult]
) -> list[dict[str, Any]]:
    rows = []
    for figure in job.published:
        found = _find(figure, variants, routing=figure.routing)
        if found is None:
            continue
        simulated: float | None
        if figure.time is not None:
            published, simulated, unit = figure.time, found.mean_gpu_s, "s"
        elif figure.bandwidth is not None:
            published, simulated, unit = figure.bandwidth, found.algorithm_bandwidth, "bytes/s"
        else:
            assert figure.relative_to_adaptive is not None
            published, simulated, unit = figure.relative_to_adaptive, None, "ratio"
            other = _find(figure, variants, routing="adaptive")
            if other and other.mean_gpu_s and found.mean_gpu_s:
                simulated = other.mean_gpu_s / found.mean_gpu_s
        routing = f" {figure.routing}" if figure.routing else ""
        rows.append(
            {
                "name": f"{figure.operation} {found.algorithm} {found.group_gpus} GPUs{routing}",
                "unit": unit,
                "published": published,
                "simulated": simulated,
                "error": None if simulated is None else simulated / published - 1,
                "kind": figure.kind,
                "source": figure.source,
            }
        )
    return rows


def _find(
    figure: PublishedTransfer, variants: Sequence[VariantResult], *, routing: str | None
) -> OperationResult | None:
    for variant in variants:
        for operation in variant.operations:
            if (
                operation.name == figure.operation
                and operation.gpus == figure.gpus
                and figure.group in (None, operation.group_gpus)
                and routing in (None, operation.routing)
            ):
                return operation
    return None
