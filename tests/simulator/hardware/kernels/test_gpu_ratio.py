"""Times of one GPU on another: nothing changes on the same one, each part goes with its ceiling."""

import numpy as np
import pytest

from hardware_profiles.calibration_parts import TilesProfile
from hardware_profiles.same_gpu import same_compute
from hardware_profiles.schema import load_gpu
from hardware_profiles.tables import Measurement
from simulator.hardware.kernels.families import batch_of_rows
from simulator.hardware.kernels.gpu_ratio import (
    Achieved,
    achieved_shares,
    bound_seconds,
    log_restatement,
    side_by_side,
)

H100, H200, H800 = (load_gpu(name) for name in ("h100_sxm", "h200_sxm", "h800_sxm"))
H20 = load_gpu("h20_sxm")
TILES = TilesProfile(narrowest=16, overhead=32, half_height_rows=256)
MEMORY = H200.hbm_bandwidth / H800.hbm_bandwidth


def row(kind, seconds=1e-3, **sizes):
    return Measurement(
        kind=kind,
        sizes=tuple(sorted(sizes.items())),
        dtype="bfloat16",
        sms=132,
        seconds=seconds,
        spread=None,
        source="made up",
        conditions=(("out_dtype", "bfloat16"), ("set", "made_up")),
    )


COPY = row("copy", rows=65536, columns=8192)
PRODUCT = row("gemm", m=8192, n=8192, k=8192)
THIN = row("gemm", m=1, n=8192, k=8192)


def ratio(one, seconds, *, source=H200, target=H800, share=1.0, sms=132.0):
    batch, achieved = batch_of_rows([one]), Achieved(memory=share, compute={})
    found = log_restatement(
        batch,
        np.array([seconds]),
        before=bound_seconds(batch, np.array([sms]), source, achieved, TILES),
        to=np.array([sms]),
        source=source,
        target=target,
        achieved=achieved,
        tiles=TILES,
    )
    return float(np.exp(found[0]))


def bound_by_memory(one):
    return float(batch_of_rows([one]).moved_bytes[0]) / H200.hbm_bandwidth


def test_gpus_of_one_chip_differ_in_memory_or_not_at_all():
    assert same_compute(H800, H800)
    assert same_compute(H100, H800)
    assert not same_compute(H200, H800)


@pytest.mark.parametrize("one", [COPY, PRODUCT, THIN])
def test_the_same_gpu_changes_nothing(one):
    assert ratio(one, 1e-3, target=H200) == pytest.approx(1.0)


def test_a_copy_goes_with_the_memory_and_a_slow_kernel_of_few_bytes_does_not():
    least = bound_by_memory(COPY)
    assert ratio(COPY, least) == pytest.approx(MEMORY)
    assert ratio(COPY, 2 * least) == pytest.approx((MEMORY + 1) / 2)
    assert ratio(COPY, 1000 * least) == pytest.approx(1.0, rel=1e-3)
    # A copy that reaches what copies reach is bound by memory, however far from the peak.
    assert ratio(COPY, least / 0.8, share=0.8) == pytest.approx(MEMORY)


def test_a_product_goes_with_its_roofline():
    least = bound_by_memory(THIN)
    assert ratio(PRODUCT, 1e-3) == pytest.approx(1.0)
    assert ratio(THIN, least) == pytest.approx(MEMORY)
    assert ratio(THIN, 2 * least) == pytest.approx((MEMORY + 1) / 2)


def test_the_gate_of_a_few_tokens_waits_and_does_not_go_with_the_peak():
    # 128 tokens on 256 experts: 2 x 16 tiles of 64 x 16, one per SM, 2 x 64 x 16 x 7,168 FLOPs
    # each: 1.959 us at the H200's 989 TFLOP/s over 132 SMs, 7.737 us at the H20's 148 over 78.
    gate = row("gemm", m=128, n=256, k=7168)
    on_h200 = 2 * 64 * 16 * 7168 / (989e12 / 132)
    on_h20 = 2 * 64 * 16 * 7168 / (148e12 / 78)
    assert (on_h200, on_h20) == pytest.approx((1.959e-6, 7.737e-6), rel=1e-3)
    # Of 20 us the rest is latency, and goes with the clock: 1,830 MHz there, 1,980 here.
    carried = 20e-6 * ratio(gate, 20e-6, target=H20, sms=78.0)
    assert carried == pytest.approx(on_h20 + (20e-6 - on_h200) * 1830 / 1980)
    assert ratio(gate, on_h200, target=H20, sms=78.0) == pytest.approx(3.949, rel=1e-3)


def test_at_half_the_clock_products_and_instructions_take_twice_as_long_and_bytes_do_not():
    slow = load_gpu("h200_sxm", {"sm_clock": "915 MHz"})
    assert ratio(PRODUCT, 1e-3, target=slow) == pytest.approx(2.0)
    least = bound_by_memory(COPY)
    assert ratio(COPY, least, target=slow) == pytest.approx(1.0)
    assert ratio(COPY, 2 * least, target=slow) == pytest.approx(1.5)
    assert ratio(THIN, 2 * bound_by_memory(THIN), target=slow) == pytest.approx(1.5)


def test_the_fastest_share_counts_kernels_beyond_the_cache():
    least = bound_by_memory(COPY)
    fast = row("copy", seconds=least / 0.9, rows=65536, columns=8192)
    cached = row("copy", seconds=1e-6, rows=64, columns=8192)
    # 8,192 rows, columns and depth: 1.0995 TFLOP in 2 ms are 0.5559 of 989 TFLOP/s.
    slow = row("gemm", seconds=2e-3, m=8192, n=8192, k=8192)
    achieved = achieved_shares([fast, COPY, cached, slow], H200)
    assert achieved.memory == pytest.approx(0.9)
    assert achieved.compute == pytest.approx({"bfloat16": 0.5559}, rel=1e-4)
    assert achieved.compute_share("fp8_e4m3") == achieved.compute["bfloat16"]
    nothing = achieved_shares([cached], H200)
    assert (nothing.memory, nothing.compute_share("bfloat16")) == (None, 1.0)


def test_gpus_side_by_side_have_columns_of_rates():
    slow = H800.model_copy(update={"sm_clock": 0.915e9, "peak_clock": 1.83e9})
    both = side_by_side([H800, slow])
    assert both.peak("bfloat16").tolist() == [[989e12], [494.5e12]]
    assert both.hbm_bandwidth.tolist() == [[3.35e12], [3.35e12]]
    assert same_compute(side_by_side([H800, H800]), H800)
    assert not same_compute(both, H800)
