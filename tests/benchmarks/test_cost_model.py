"""A million operators are predicted in about a second of one core."""

import time

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernel_families import calibration_measurements

OPERATORS = 1_000_000
SHAPES = np.array([(1536, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168)])


@pytest.mark.parametrize(
    ("calibration", "cluster"), [("h800_sxm", "h800_2048"), ("h200_sxm", "h200_8")]
)
def test_a_million_gemms_take_about_a_second(calibration, cluster):
    profile = load_calibration(calibration)
    model = KernelCostModel(
        cluster=load_cluster(cluster), calibration=profile, expert_parallel_ranks=8
    ).fit(calibration_measurements(profile))
    rng = np.random.default_rng(0)
    chosen = SHAPES[rng.integers(0, len(SHAPES), OPERATORS)]
    sizes = {"m": rng.integers(1, 65536, OPERATORS), "n": chosen[:, 0], "k": chosen[:, 1]}

    def predict(count):
        return model.predict_sizes(
            "gemm",
            {name: values[:count] for name, values in sizes.items()},
            dtype="fp8_e4m3",
            out_dtype="bfloat16",
            sms=132,
            overlapped=False,
        )

    predict(10)
    started = time.process_time()
    prediction = predict(OPERATORS)
    took = time.process_time() - started
    assert (prediction.seconds > 0).all()
    # Twice the goal: other processes share the caches of a machine that tests run on.
    assert took < 2.0
