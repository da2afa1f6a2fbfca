"""One GPU's kernels predicted from another's."""

import dataclasses

import pytest
from made_up_rows import BASE

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.calibration.restated_errors import restated_errors
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements, operator_of


def test_a_restatement_uses_no_row_of_the_predicted_gpu():
    cluster, calibration = load_cluster("h800_2048"), load_calibration("h200_sxm_reference")
    rows = [r for r in calibration_measurements(BASE) if r.kind == "attention_forward"]
    slower = [dataclasses.replace(r, seconds=2 * r.seconds) for r in rows]
    errors, doubled = (
        restated_errors(table, calibration=calibration, cluster=cluster) for table in (rows, slower)
    )
    for one, two in zip(errors, doubled, strict=True):
        assert 1 + two.median == pytest.approx((1 + one.median) / 2)
    with pytest.raises(ValueError, match="of h800_sxm itself"):
        restated_errors(rows, calibration=BASE, cluster=cluster)


def test_rows_that_a_calibration_leaves_out_are_judged_under_their_own_condition():
    # how the pair predicted without its trace differs from it, kernel by kernel
    calibration = load_calibration("h800_without_trace")
    cluster = load_cluster("h800_2048")
    table = calibration_measurements(BASE)
    errors = restated_errors(table, calibration=calibration, cluster=cluster)
    assert {error.kernel_set for error in errors} == {"deepseek_training"}
    (forward,) = (error for error in errors if error.family.startswith("attention_forward"))
    op = operator_of(next(r for r in table if r.kind == "attention_forward" and r.sms == 112))
    model = KernelCostModel(cluster=cluster, calibration=calibration, expert_parallel_ranks=8).fit(
        calibration_measurements(calibration)
    )
    predicted = model.predict([op], sms=112, overlapped=True).seconds[0]
    assert forward.predicted_s / forward.measured_s == pytest.approx(1 + forward.median)
    assert forward.measured_s * (1 + forward.median) == pytest.approx(4 * predicted)
