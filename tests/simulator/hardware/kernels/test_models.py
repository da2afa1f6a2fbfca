"""Who predicts a kernel family."""

import dataclasses

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from reference_model.trace import Operator
from simulator.hardware.costs import KernelCostModel, NotCalibrated
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.kernels.roofline import Ideal, batch_of
from simulator.hardware.network.fabric_load import NO_LIMIT

CALIBRATION = load_calibration("h800_sxm", {"restated_from": []})
"""Its own rows only; what it takes over from an H200 is tested below."""
ROWS = calibration_measurements(CALIBRATION)


def fitted(overrides=None, *, ranks=64, calibration=CALIBRATION, rows=ROWS):
    cluster = load_cluster("h800_2048", overrides)
    return KernelCostModel(
        cluster=cluster, calibration=calibration, expert_parallel_ranks=ranks
    ).fit(rows)


def operator(kind, *, dtype="fp8_e4m3", out_dtype="bfloat16", accumulate=False, **sizes):
    return Operator(
        name=kind,
        kind=kind,
        phase="forward",
        segment="mlp",
        dtype=dtype,
        out_dtype=out_dtype,
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=accumulate,
    )


def gemm(m, n, k, **types):
    return operator("gemm", m=m, n=n, k=k, **types)


def one(costs, op, *, sms, overlapped):
    prediction = costs.predict([op], sms=sms, overlapped=overlapped, load=NO_LIMIT)
    return float(prediction.seconds[0]), str(prediction.provenance[0])


WITHOUT_TRACE = fitted(
    calibration=load_calibration("h800_sxm", {"kernel_sets": ["infersim"], "restated_from": []}),
    rows=[row for row in ROWS if row.kind == "gemm"],
)


def test_a_class_without_any_row_is_not_guessed():
    cast = operator("quantize", dtype="bfloat16", out_dtype="fp8_e4m3", rows=4096, columns=7168)
    with pytest.raises(NotCalibrated, match="memory-bound"):
        WITHOUT_TRACE.predict([cast], sms=132, overlapped=False)


def test_a_surface_fitted_alone_serves_the_overlapped_condition_too():
    # One factor lies between the two conditions of a table without rows of a pair.
    calibration = load_calibration("h800_without_trace")
    costs = KernelCostModel(
        cluster=load_cluster("h800_2048"), calibration=calibration, expert_parallel_ranks=64
    ).fit(calibration_measurements(calibration))
    family = ("gemm", "fp8_e4m3", "bfloat16", False)
    alone, beside = costs.families_[False, family], costs.families_[True, family]
    factor = calibration.overlap.gemm.value
    assert beside._log_factor == pytest.approx(np.log(factor), abs=1e-9)
    op = gemm(5000, 7168, 2048)
    assert one(costs, op, sms=132, overlapped=True)[0] == pytest.approx(
        factor * one(costs, op, sms=132, overlapped=False)[0]
    )
    ideal = Ideal(np.ones(1), np.ones(1), 0.0)
    own = beside.fitted.predict(batch_of([op]), np.array([132.0]), ideal)
    shared = alone.fitted.predict(batch_of([op]), np.array([132.0]), ideal)
    assert own - shared == pytest.approx(np.log(factor), abs=1e-4)


def bfloat16(op):
    return dataclasses.replace(op, dtype="bfloat16")
