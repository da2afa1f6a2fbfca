"""Times of one GPU on another: nothing changes on the same one, each part goes with its ceiling."""

import numpy as np
import pytest

from hardware_profiles.schema import load_calibration, load_gpu
from hardware_profiles.tables import Measurement
from simulator.hardware.gpu_transfer import fastest_share, log_transfer, same_compute
from simulator.hardware.kernel_families import batch_of_rows

H100, H200, H800 = (load_gpu(name) for name in ("h100_sxm", "h200_sxm", "h800_sxm"))
TILES = load_calibration("h200_sxm").tiles
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


def ratio(one, seconds, *, source=H200, target=H800, share=1.0):
    found = log_transfer(
        batch_of_rows([one]),
        np.array([132.0]),
        np.array([seconds]),
        source=source,
        target=target,
        achieved_share=share,
        floor=0.0,
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
    assert ratio(PRODUCT, 1e-3) == pytest.approx(1.0)
    assert ratio(THIN, 1e-3) == pytest.approx(MEMORY)


def test_the_fastest_share_counts_kernels_beyond_the_cache_without_tensor_cores():
    least = bound_by_memory(COPY)
    fast = row("copy", seconds=least / 0.9, rows=65536, columns=8192)
    cached = row("copy", seconds=1e-6, rows=64, columns=8192)
    assert fastest_share([fast, COPY, cached, PRODUCT], H200) == pytest.approx(0.9)
    assert fastest_share([cached, PRODUCT], H200) is None
