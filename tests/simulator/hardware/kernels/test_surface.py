"""The efficiency of a kernel family over its sizes."""

import numpy as np
import pytest

from reference_model.trace import Operator
from simulator.hardware.kernels.roofline import Ideal, batch_of
from simulator.hardware.kernels.surface import KernelSurface


def gemm(m: int) -> Operator:
    return Operator(
        name="gemm", kind="gemm", phase="forward", segment="", dtype="fp8_e4m3",
        out_dtype="bfloat16", sizes=(("k", 7168), ("m", m), ("n", 4096)),
        recompute=False, accumulate=False,
    )  # fmt: skip


def test_a_kernel_at_half_its_peak_stays_there_between_and_beyond_its_rows():
    rows = [128, 256, 512, 1024, 2048]
    peak = np.array([m * 1e-8 for m in rows])
    surface = KernelSurface(
        batch_of([gemm(m) for m in rows]),
        np.full(5, 132.0),
        ideal=Ideal(peak, peak / 10, 0.0),
        log_seconds=np.log(2 * peak),
        stiffness=(0.01, 0.1),
    )
    asked = [64, 768, 8192]
    at_peak = np.array([m * 1e-8 for m in asked])
    found = surface.predict(
        batch_of([gemm(m) for m in asked]), np.full(3, 132.0), Ideal(at_peak, at_peak / 10, 0.0)
    )
    assert np.exp(found) == pytest.approx(2 * at_peak, rel=1e-6)
    assert surface.leave_one_out == pytest.approx(np.zeros(5), abs=1e-6)
