"""A hundred thousand operators are predicted in at most four seconds of one core.

Run with: python -m pytest tests/benchmarks --benchmark-only. Without benchmarks the same runs on
few operators, once.
"""

import time

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernels.families import calibration_measurements

OPERATORS, FEW = 100_000, 5_000
LIMIT_S = 4.0
SHAPES = np.array([(1536, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168)])


@pytest.mark.parametrize(
    ("calibration", "cluster"), [("h800_sxm", "h800_2048"), ("h200_sxm_reference", "h200_8")]
)
def test_time_of_a_hundred_thousand_gemms(benchmark, calibration, cluster):
    profile = load_calibration(calibration)
    model = KernelCostModel(
        cluster=load_cluster(cluster), calibration=profile, expert_parallel_ranks=8
    ).fit(calibration_measurements(profile))
    count = OPERATORS if benchmark.enabled else FEW
    rng = np.random.default_rng(0)
    chosen = SHAPES[rng.integers(0, len(SHAPES), count)]
    sizes = {"m": rng.integers(1, 65536, count), "n": chosen[:, 0], "k": chosen[:, 1]}
    cpu_s = []

    def predict():
        started = time.process_time()
        prediction = model.predict_sizes(
            "gemm", sizes, dtype="fp8_e4m3", out_dtype="bfloat16", sms=132, overlapped=False
        )
        cpu_s.append(time.process_time() - started)
        return prediction

    prediction = benchmark.pedantic(predict, rounds=3, warmup_rounds=1)
    assert (prediction.seconds > 0).all()
    # The least of several: other processes share the caches of a machine that tests run on.
    benchmark.extra_info["least_cpu_s"] = min(cpu_s)
    assert min(cpu_s) < LIMIT_S
