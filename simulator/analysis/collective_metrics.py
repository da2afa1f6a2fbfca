"""What the traffic of a collective job means, and how near published measurements it comes.

Times are seconds, sizes bytes, bandwidths bytes per second as nccl-tests count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hardware_profiles.schema import TransportProfile
from simulator.analysis.published import beside_published
from simulator.execution.collective import CollectiveResult, OperationResult, VariantResult
from simulator.scenario.published import PublishedFigure


def collective_metrics(
    result: CollectiveResult, figures: Sequence[PublishedFigure], *, links: int | None = None
) -> dict[str, Any]:
    """The figures of a collective by their JSON names; links are those of the last variant.

    Args:
        figures: published ones of the scenario.
        links: how many to keep, busiest first; all where None.
    """
    last = result.last
    main = [operation for operation in last.operations if operation.start_s >= 0]
    done = [operation.completion_s for operation in main]
    order = np.argsort(-last.link_utilisation, kind="stable")[:links]
    rows = _rows(result.variants)
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
        "rows": rows,
        "published": beside_published(figures, {"rows": rows}),
        "links": [
            {
                "name": last.link_names[link],
                "bytes": float(last.link_bytes[link]),
                "utilisation": float(last.link_utilisation[link]),
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


def _rows(variants: Sequence[VariantResult]) -> list[dict[str, Any]]:
    """One row per operation of each variant; its bandwidth over that under adaptive routing is
    None where no variant with that routing is otherwise the same."""
    rows = [_row(variant, operation) for variant in variants for operation in variant.operations]
    same = ("operation", "algorithm", "topology", "gpus", "groups", "size_bytes")
    adaptive = {
        tuple(row[name] for name in same): row["mean_gpu_s"]
        for row in rows
        if row["routing"] == "adaptive"
    }
    for row in rows:
        seconds = adaptive.get(tuple(row[name] for name in same))
        known = seconds and row["mean_gpu_s"]
        row["bandwidth_over_adaptive"] = seconds / row["mean_gpu_s"] if known else None
    return rows


def _row(variant: VariantResult, operation: OperationResult) -> dict[str, Any]:
    fabric = variant.fabric
    return {
        "operation": operation.name,
        "algorithm": operation.algorithm,
        "topology": fabric.topology,
        "routing": fabric.inputs.routing,
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
