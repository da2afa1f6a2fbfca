"""Fit a transport's efficiencies to published dispatch and combine figures.

One set of physical inputs for all rows: what a NIC and NVLink deliver of their line rate, and how
many tokens a channel hands on at once. The least mean squared relative error over a grid decides.
Rows marked "predicted" in the scenarios are left out. What a kernel costs to start is known: of
low-latency ones from rows of few tokens (`low_latency` of the transport), of normal ones as the
transport states it, since rows of a millisecond and more cannot tell.

A row's time is start + max(a / nic, b / nvlink) + chunk share x min(a / nic, b / nvlink), where a
and b are what the simulation takes over NICs and over NVLink alone at line rate (uneven counts and
latencies included); only the grid search uses this formula, the error that is reported afterwards
comes from full runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardware_profiles.estimates import Estimate
from hardware_profiles.schema import TransportProfile, load_transport
from simulator.execution.collective import OperationResult, run_variants
from simulator.execution.traffic import form_of, low_latency_start
from simulator.hardware.network.collectives import EXCHANGES
from simulator.hardware.network.transfers import LINE_RATE
from simulator.scenario.collective import CollectiveJob
from simulator.scenario.files import Scenario, load_scenario
from simulator.scenario.published import PublishedFigure

FITTED_SCENARIOS = ("deepep_normal", "deepep_low_latency")

_SLOW = 0.1
"""Efficiency of the link that is to be the only limit, while the other one is at line rate."""

_CLOSE = 1.2
"""Root mean square over the least one that still counts as close."""


@dataclass(frozen=True, slots=True)
class FittedFigure:
    """One published figure with the two times that it is made of."""

    name: str
    published: float
    """Seconds"""
    nic_seconds: float
    nvlink_seconds: float
    start: float
    """Seconds"""
    chunk_share: float
    """Part of a channel's tokens that one token of ``chunk_tokens`` is."""


@dataclass(frozen=True, slots=True)
class TransportFit:
    """The best point of the grid."""

    nic_efficiency: float
    nvlink_efficiency: float
    nic_range: tuple[float, float]
    nvlink_range: tuple[float, float]
    """Least and most on the grid with which the root mean square stays close to its least."""
    chunk_tokens: int
    largest: float
    """Of the relative errors."""
    rows: tuple[FittedFigure, ...]


def fit_transport(base: str, *, scenarios: Sequence[str] = FITTED_SCENARIOS) -> TransportFit:
    """Fit the efficiencies and chunk of transport ``base`` to the scenarios' figures."""
    transport = load_transport(base)
    rows: list[FittedFigure] = []
    for name in scenarios:
        rows += _rows(load_scenario(name), transport)
    return search(rows)


def search(rows: Sequence[FittedFigure]) -> TransportFit:
    """Return the grid point of least mean squared relative error over ``rows``."""
    nic = np.linspace(0.80, 0.95, 31)
    nvlink = np.linspace(0.70, 0.90, 21)
    chunk = np.arange(4, 65, 4)
    axes = np.meshgrid(nic, nvlink, chunk, indexing="ij")
    errors = np.stack([_seconds(row, *axes) / row.published - 1 for row in rows])
    square = (errors**2).mean(axis=0)
    lowest = int(square.argmin())
    best = np.unravel_index(lowest, square.shape)
    close = square <= square.min() * _CLOSE**2
    near_nic, near_nvlink = nic[close.any(axis=(1, 2))], nvlink[close.any(axis=(0, 2))]
    return TransportFit(
        nic_efficiency=float(nic[best[0]]),
        nvlink_efficiency=float(nvlink[best[1]]),
        nic_range=(float(near_nic[0]), float(near_nic[-1])),
        nvlink_range=(float(near_nvlink[0]), float(near_nvlink[-1])),
        chunk_tokens=int(chunk[best[2]]),
        largest=float(np.abs(errors.reshape(len(rows), -1)[:, lowest]).max()),
        rows=tuple(rows),
    )


def _seconds(
    row: FittedFigure,
    nic: np.ndarray,
    nvlink: np.ndarray,
    chunk: np.ndarray,
) -> np.ndarray:
    over_nic, over_nvlink = row.nic_seconds / nic, row.nvlink_seconds / nvlink
    fill = np.minimum(over_nic, over_nvlink) * np.minimum(chunk * row.chunk_share, 1)
    return np.asarray(row.start + np.maximum(over_nic, over_nvlink) + fill)


def _rows(scenario: Scenario, transport: TransportProfile) -> list[FittedFigure]:
    job, cluster = scenario.job_as(CollectiveJob), scenario.cluster
    bare = {"start": 0.0, "low_latency": None, "chunk_tokens": 1, "sms_per_channel": 1}
    # Both slow links keep the other far from being a limit; the time at line rate follows.
    slow = Estimate(value=_SLOW, low=_SLOW, high=_SLOW, source="to be the only limit")
    only_nic, only_nvlink = (
        transport.model_copy(update={**bare, "achieved": LINE_RATE.model_copy(update={link: slow})})
        for link in ("nic", "nvlink")
    )
    normal = EXCHANGES[form_of(job.operation)].forwards
    nic = _by_size(run_variants(scenario, only_nic))
    nvlink = _by_size(run_variants(scenario, only_nvlink)) if normal else {}
    moe, sms = job.operation.moe, job.operation.sms or 0
    assert moe is not None
    channels = max(sms // transport.sms_per_channel, 1)
    rows = []
    for figure in scenario.file.published:
        if figure.kind != "calibrated":
            continue
        operation, gpus = str(figure.of["operation"]), int(figure.of["gpus"])
        key = (operation, gpus)
        one_node = normal and gpus <= cluster.node.gpus
        rows.append(
            FittedFigure(
                name=figure.name,
                published=_published_seconds(figure, nic[key]),
                nic_seconds=0.0 if one_node else (nic[key].mean_gpu_s or 0.0) * _SLOW,
                nvlink_seconds=(nvlink[key].mean_gpu_s or 0.0) * _SLOW if normal else 0.0,
                start=transport.start
                if normal
                else low_latency_start(transport, operation, ranks=gpus, over_nics=True),
                chunk_share=channels / moe.tokens if normal else 0.0,
            )
        )
    return rows


def _by_size(variants: Sequence[list[OperationResult]]) -> dict[tuple[str, int], OperationResult]:
    return {(op.name, op.group_gpus): op for operations in variants for op in operations}


def _published_seconds(figure: PublishedFigure, operation: OperationResult) -> float:
    if figure.metric == "rows.mean_gpu_s":
        return figure.si_value
    return operation.size_bytes / figure.si_value
