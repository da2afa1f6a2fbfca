"""Which operator a measurement timed."""

import dataclasses

import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from hardware_profiles.tables import Measurement
from reference_model.trace import Operator
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements

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


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("gem", (("m", 1),), "kind: 'gem' is unknown"),
        ("gemm", (("m", 1),), "sizes: gemm needs k, m, n; found m"),
    ],
)
def test_a_row_that_is_no_operator_is_an_error(kind, sizes, message):
    row = Measurement(kind, sizes, "fp8_e4m3", 132, 1e-6, None, "s", (("set", "infersim"),))
    with pytest.raises(ValueError, match=message):
        fitted(rows=[row])


def bfloat16(op):
    return dataclasses.replace(op, dtype="bfloat16")
