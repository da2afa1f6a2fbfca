"""Errors of one GPU's kernel times predicted from another GPU's measurements.

The rows of GPU B take no part in the prediction: neither a fit nor a factor comes from them. They
only say how wrong it is, by kernel family and range of size. Of a calibration of GPU B itself the
rows of kernel sets that it leaves out are judged, such as a training trace that is to be predicted
from other sources: a table of which kernels make that prediction too long or too short.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardware_profiles.same_gpu import same_gpu
from hardware_profiles.schema import CalibrationProfile, ClusterProfile, load_gpu
from hardware_profiles.tables import Measurement
from reference_model.trace import ALL_TO_ALL_KINDS
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements, operator_of

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
class RestatedError:
    """Errors of one family and kernel set in one range of size."""

    family: str
    kernel_set: str
    range: str
    rows: int
    median: float
    """Median of predicted / measured - 1, signed."""
    p10: float
    p90: float
    inside: int
    """Rows within the predicted 80% interval."""
    measured_s: float
    predicted_s: float
    """Of all launches behind the rows together."""


def restated_errors(
    rows: Sequence[Measurement], *, calibration: CalibrationProfile, cluster: ClusterProfile
) -> list[RestatedError]:
    """Predict rows of the cluster's GPU from a calibration of another one.

    Raises ValueError where the calibration rests on all of the rows.
    """
    target = cluster.node.gpu.name
    rows = [row for row in rows if row.kind not in ALL_TO_ALL_KINDS]
    if calibration.measurements and same_gpu(load_gpu(calibration.gpu), cluster.node.gpu):
        judged = [row for row in rows if row.kernel_set not in calibration.kernel_sets]
        if not judged:
            raise ValueError(
                f"calibration {calibration.name} rests on these rows of {target} itself; allowed: "
                "one of another GPU, or one that leaves some of their kernel sets out"
            )
    else:
        judged = [row for row in rows if not _beside_all_to_all(row)]
    if not judged:
        raise ValueError("no row of a compute kernel that ran alone")
    model = KernelCostModel(
        cluster=cluster, calibration=calibration, expert_parallel_ranks=cluster.node.gpus
    ).fit(calibration_measurements(calibration))
    prediction = model.predict(
        [operator_of(row) for row in judged],
        sms=[row.sms for row in judged],
        overlapped=[_beside_all_to_all(row) for row in judged],
    )
    measured = np.array([row.seconds for row in judged])
    launches = np.array([row.repeats for row in judged])
    error = prediction.seconds / measured - 1
    inside = (prediction.low <= measured) & (measured <= prediction.high)
    groups: dict[tuple[str, str, int], list[int]] = defaultdict(list)
    for place, row in enumerate(judged):
        size = dict(row.sizes).get(_SIZE.get(row.kind, ""))
        kind = f"{row.kind} {row.dtype} -> {row.out_dtype}"
        number = -1 if size is None else sum(size >= cut for cut in RANGES)
        groups[kind, row.kernel_set, number].append(place)
    return [
        RestatedError(
            family=family,
            kernel_set=kernel_set,
            range=_range(number),
            rows=len(places),
            median=float(np.median(error[places])),
            p10=float(np.quantile(error[places], 0.1)),
            p90=float(np.quantile(error[places], 0.9)),
            inside=int(inside[places].sum()),
            measured_s=float((launches * measured)[places].sum()),
            predicted_s=float((launches * prediction.seconds)[places].sum()),
        )
        for (family, kernel_set, number), places in sorted(groups.items())
    ]


def _beside_all_to_all(row: Measurement) -> bool:
    return row.pair or row.beside_compute


def _range(number: int) -> str:
    if number < 0:
        return "all"
    if number == 0:
        return f"below {RANGES[0]:,}"
    if number == len(RANGES):
        return f"{RANGES[-1]:,} and more"
    return f"{RANGES[number - 1]:,} to {RANGES[number] - 1:,}"
