"""Who predicts a kernel family."""

import numpy as np
import pytest
from cost_models import WITHOUT_TRACE, gemm, one, operator

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.hardware.costs import KernelCostModel, NotCalibrated
from simulator.hardware.kernels.families import calibration_measurements
from simulator.hardware.kernels.roofline import Ideal, batch_of


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
