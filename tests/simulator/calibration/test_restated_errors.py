"""One GPU's kernels predicted from another's."""

import dataclasses
import math

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from hardware_profiles.tables import Measurement
from simulator.calibration.restated_errors import restated_errors
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements, operator_of

BASE = load_calibration("h800_sxm")


def row(m, n, k, seconds, kernel_set="made_up"):
    return Measurement(
        kind="gemm",
        sizes=(("k", k), ("m", m), ("n", n)),
        dtype="fp8_e4m3",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up",
        conditions=(("out_dtype", "bfloat16"), ("set", kernel_set)),
    )


def made_up(*, noise=0.0, seed=0, kernel_set="made_up", slower=1.0):
    """A kernel that reaches 60 % of the peak beyond a launch of 5 us."""
    rng = np.random.default_rng(seed)
    return [
        row(
            m, n, k,
            slower * (5e-6 + 2 * m * n * k / (0.6 * 1979e12)) * math.exp(noise * rng.normal()),
            kernel_set,
        )
        for m in (256, 512, 1024, 2048, 4096, 8192, 16384)
        for n in (1536, 4096, 7168, 24576)
        for k in (2048, 7168)
    ]  # fmt: skip


def test_a_restatement_uses_no_row_of_the_predicted_gpu():
    cluster, calibration = load_cluster("h800_2048"), load_calibration("h200_sxm")
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
