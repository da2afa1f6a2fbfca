"""Kernel times taken over from the H200: memory-bound ones slow with the memory, others stay."""

import pytest

from hardware_profiles.schema import load_gpu
from hardware_profiles.tables import Measurement, load_measurements, table_path
from simulator.calibration.shipping.h800_from_h200 import (
    KERNEL_SET,
    SOURCE_TABLES,
    TARGET_TABLE,
    copy_share,
    restate,
)

H200, H800 = load_gpu("h200_sxm"), load_gpu("h800_sxm")


def row(seconds, *, kind="copy", rows=4096, columns=16384, dtype="bfloat16", sms=132, **conditions):
    sizes = (("columns", columns), ("rows", rows))
    if kind == "gemm":
        sizes = (("k", 7168), ("m", rows), ("n", columns))
    stated = {"out_dtype": dtype, "set": "dsv3sim_library"} | conditions
    return Measurement(
        kind, sizes, dtype, sms, seconds, 0.01, "test", tuple(sorted(stated.items()))
    )


SHARE = 0.887
# Twelve times the L2 cache, at that share of the HBM rate.
FASTEST_COPY = row(
    2 * 2 * 16384 * 10240 / (SHARE * H200.hbm_bandwidth), rows=16384 * 4, columns=10240 // 4
)


def restated(*rows):
    fast = (FASTEST_COPY.kind, FASTEST_COPY.sizes)
    found = restate([FASTEST_COPY, *rows], source=H200, target=H800)
    return [row for row in found if (row.kind, row.sizes) != fast]


def test_the_copy_share_is_that_of_the_fastest_copy_beyond_the_cache():
    cached = row(1e-6, rows=128, columns=1024)
    assert copy_share([cached, FASTEST_COPY], H200) == pytest.approx(SHARE)
    with pytest.raises(ValueError, match="no row of a copy on h200_sxm"):
        copy_share([cached], H200)


def test_a_kernel_bound_by_memory_slows_with_it_and_a_tiny_one_stays():
    moved = 2 * 2 * 4096 * 16384
    bound = moved / (SHARE * H200.hbm_bandwidth)
    ratio = H200.hbm_bandwidth / H800.hbm_bandwidth
    (slow,) = restated(row(bound))
    assert slow.seconds == pytest.approx(bound * ratio, rel=1e-4)
    (tiny,) = restated(row(2e-6, rows=1, columns=64))
    assert tiny.seconds == pytest.approx(2e-6, rel=1e-3)
    assert slow.kernel_set == KERNEL_SET
    assert slow.condition("measured_on") == "h200_sxm"


def test_of_two_versions_the_faster_counts():
    (kept,) = restated(row(9e-5), row(8e-5, set="dsv3sim_triton"))
    (alone,) = restated(row(8e-5))
    assert kept.seconds == alone.seconds


def test_what_the_h800_table_has_in_inference_form_is_left_alone():
    assert restated(row(1e-5, kind="gemm", dtype="fp8_e4m3")) == []
    assert restated(row(1e-5, sms=112)) == []
    assert restated(row(1e-5, kind="gemm", accumulate="yes")) == []
    assert len(restated(row(1e-5, kind="gemm"))) == 1


@pytest.mark.skipif(
    not all(table_path(name).is_file() for name in SOURCE_TABLES),
    reason="an H200 table is not part of this checkout",
)
def test_the_shipped_table_is_what_the_command_writes():
    measured = [row for name in SOURCE_TABLES for row in load_measurements(table_path(name))]
    rows = restate(measured, source=H200, target=H800)
    # Tables are written in the order of their text.
    assert set(load_measurements(table_path(TARGET_TABLE))) == set(rows)
