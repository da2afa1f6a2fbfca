"""Judge predictions of one GPU from another's measurements: measured rows in, signed errors out.

The rows of GPU B take no part in the prediction: neither a fit nor a factor comes from them. They
only say how wrong it is, by kernel family and range of size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardware_profiles.schema import CalibrationProfile, ClusterProfile
from hardware_profiles.tables import Measurement
from simulator.hardware.all_to_all import ALL_TO_ALL_KINDS
from simulator.hardware.costs import KernelCostModel, calibration_measurements, operator_of

RANGES = (64, 512, 2048)
"""Rows (m, sequences, query length) at which the ranges of the report are cut."""
_SIZE = {
    "gemm": "m",
    "grouped_gemm": "rows",
    "masked_grouped_gemm": "rows",
    "grouped_gemm_weight_grad": "rows",
    "attention_forward": "query_length",
    "attention_backward": "query_length",
    "mla_decode": "sequences",
}


@dataclass(frozen=True, slots=True)
class TransferError:
    """Errors of one family and kernel set in one range of size."""

    family: str
    kernel_set: str
    range: str
    rows: int
    median: float
    """Median of predicted / measured - 1, signed."""
    p10: float
    p90: float
    absolute: float
    """Median of its absolute value."""
    inside: int
    """Rows within the predicted 80 % interval."""


def transfer_errors(
    rows: Sequence[Measurement], *, calibration: CalibrationProfile, cluster: ClusterProfile
) -> list[TransferError]:
    """Predict rows of the cluster's GPU from a calibration of another one.

    Raises ValueError where the calibration rests on rows of the same GPU.
    """
    target = cluster.node.gpu.name
    if calibration.gpu == target and calibration.measurements:
        raise ValueError(
            f"calibration {calibration.name} rests on rows of {target} itself; allowed: one of "
            "another GPU"
        )
    model = KernelCostModel(
        cluster=cluster, calibration=calibration, expert_parallel_ranks=cluster.node.gpus
    ).fit(calibration_measurements(calibration))
    judged = [
        row
        for row in rows
        if row.kind not in ALL_TO_ALL_KINDS
        and row.condition("pair") != "yes"
        and row.condition("beside") != "compute"
    ]
    if not judged:
        raise ValueError("no row of a compute kernel that ran alone")
    prediction = model.predict(
        [operator_of(row) for row in judged], sms=[row.sms for row in judged], overlapped=False
    )
    measured = np.array([row.seconds for row in judged])
    error = prediction.seconds / measured - 1
    inside = (prediction.low <= measured) & (measured <= prediction.high)
    groups: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(judged):
        size = dict(row.sizes).get(_SIZE.get(row.kind, ""), 0)
        kind = f"{row.kind} {row.dtype} -> {row.out_dtype}"
        groups[kind, row.kernel_set, sum(size >= cut for cut in RANGES)].append(place)
    return [
        TransferError(
            family=family,
            kernel_set=kernel_set,
            range=_range(number),
            rows=len(places),
            median=float(np.median(error[places])),
            p10=float(np.quantile(error[places], 0.1)),
            p90=float(np.quantile(error[places], 0.9)),
            absolute=float(np.median(np.abs(error[places]))),
            inside=int(inside[places].sum()),
        )
        for (family, kernel_set, number), places in sorted(groups.items())
    ]


def _range(number: int) -> str:
    if number == 0:
        return f"below {RANGES[0]:,}"
    if number == len(RANGES):
        return f"{RANGES[-1]:,} and more"
    return f"{RANGES[number - 1]:,} to {RANGES[number] - 1:,}"
