"""Attention: rows bound from below what is more work, so that no size costs less than a smaller."""

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_cluster
from reference_model.trace import Operator
from simulator.hardware.costs import KernelCostModel
from simulator.hardware.kernel_families import calibration_measurements
from simulator.hardware.roofline import batch_of
from simulator.hardware.work_floor import WorkFloor

SEQUENCES = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512])
CONTEXTS = np.array([1024, 1536, 2048, 3000, 4096, 8192, 16384, 32768, 65536])
ROUNDING = 1e-9
FEW, LARGEST_DIP = 3, 0.03
"""Below so many sequences no row lies at the context itself, and a dip of less remains."""


def decode(sequences, kv_length):
    sizes = {
        "sequences": sequences, "kv_length": kv_length, "query_length": 1,
        "heads": 128, "latent_dim": 512, "rope_dim": 64,
    }  # fmt: skip
    return Operator(
        name="attention.core",
        kind="mla_decode",
        phase="forward",
        segment="attention",
        dtype="bfloat16",
        out_dtype="bfloat16",
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=False,
    )


def floor_of(*rows, sms=132.0):
    operators = [decode(sequences, length) for sequences, length, _ in rows]
    seconds = np.log([seconds for *_, seconds in rows])
    return WorkFloor(batch_of(operators), np.full(len(rows), sms), seconds)


def raised(floor, sequences, kv_length, seconds, *, sms=132.0):
    batch = batch_of([decode(sequences, kv_length)])
    return float(np.exp(floor.raise_to(np.log([seconds]), batch, np.array([sms]))[0]))


def test_more_of_any_size_takes_at_least_the_longest_smaller_row():
    floor = floor_of((1, 1024, 20.0), (16, 1024, 25.0), (1, 4096, 22.0))
    assert raised(floor, 8, 1024, 10.0) == pytest.approx(20)
    assert raised(floor, 8, 8192, 10.0) == pytest.approx(22)
    assert raised(floor, 16, 8192, 10.0) == pytest.approx(25)


def test_a_longer_time_stays():
    assert raised(floor_of((1, 1024, 20.0)), 8, 2048, 30.0) == pytest.approx(30)


def test_a_row_says_nothing_of_less_work_or_of_more_sms():
    floor = floor_of((16, 4096, 50.0))
    assert raised(floor, 8, 8192, 10.0) == pytest.approx(10)
    assert raised(floor, 16, 2048, 10.0) == pytest.approx(10)
    assert raised(floor, 16, 4096, 10.0, sms=148.0) == pytest.approx(10)
    assert raised(floor, 16, 4096, 10.0, sms=108.0) == pytest.approx(50)


@pytest.mark.parametrize(
    ("calibration", "cluster"),
    [("h800_decode", "h800_2048"), ("h800_sxm", "h800_2048"), ("h200_sxm", "h200_8")],
)
def test_attention_of_more_sequences_or_longer_contexts_takes_no_less(calibration, cluster):
    profile = load_calibration(calibration)
    costs = KernelCostModel(
        cluster=load_cluster(cluster), calibration=profile, expert_parallel_ranks=8
    ).fit(calibration_measurements(profile))
    operators = [decode(int(s), int(length)) for s in SEQUENCES for length in CONTEXTS]
    seconds = costs.predict(operators, sms=132, overlapped=False).seconds
    grid = seconds.reshape(len(SEQUENCES), len(CONTEXTS))
    assert (np.diff(grid, axis=1) >= -ROUNDING * grid[:, 1:]).all()
    few = SEQUENCES[:-1] < FEW
    dips = -np.diff(grid, axis=0) / grid[1:]
    assert (dips[~few] <= ROUNDING).all()
    assert dips[few].max() < LARGEST_DIP
