"""Time at peak: waves of tiles over the SMs, or bytes, whichever takes longer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.calibration_parts import TilesProfile
from hardware_profiles.schema import load_gpu
from reference_model.trace import Operator
from simulator.hardware.kernels.roofline import DEEPGEMM_TILES, batch_of, waves_and_bytes

H800 = load_gpu("h800_sxm")
PER_SM = H800.peak_compute["fp8_e4m3"] / H800.sms
WIDE = TilesProfile(narrowest=128, overhead=0, half_height_rows=0)


def operator(kind="gemm", **sizes):
    return Operator(
        name=kind,
        kind=kind,
        phase="forward",
        segment="",
        dtype="fp8_e4m3",
        out_dtype="bfloat16",
        sizes=tuple(sorted(sizes.items())),
        recompute=False,
        accumulate=False,
    )


def waves(op, tiles, sms=132):
    found, _ = waves_and_bytes(batch_of([op]), np.array([float(sms)]), H800, tiles)
    return float(found[0])


def test_full_tiles_go_by_waves():
    # o_proj: 32 x 56 tiles of 128 x 128 are 16 waves on 112 SMs and 14 on 132
    o_proj = operator(m=4096, n=7168, k=16384)
    tile = 2 * 128 * 128 * 16384 / PER_SM
    assert waves(o_proj, WIDE, 112) == pytest.approx(16 * tile)
    assert waves(o_proj, WIDE, 132) == pytest.approx(14 * tile)


def test_narrow_tiles_fill_sms_that_wide_ones_leave_empty():
    # 12 x 32 wide tiles on 112 SMs are 4 waves of 128 columns; 112 columns take 4 waves as well
    q_a = operator(m=4096, n=1536, k=7168)
    free = TilesProfile(narrowest=16, overhead=0, half_height_rows=0)
    assert waves(q_a, free, 112) < waves(q_a, WIDE, 112)


def test_half_height_tiles_halve_the_work_of_few_rows_where_a_kernel_has_them():
    few = operator(m=64, n=7168, k=2048)
    assert waves(few, DEEPGEMM_TILES) < waves(few, WIDE)
    assert waves(operator(m=1, n=7168, k=2048), WIDE) == waves(few, WIDE)


def test_an_overhead_of_tiles_makes_each_cost_more():
    op = operator(m=4096, n=4096, k=7168)
    costly = WIDE.model_copy(update={"overhead": 32})
    assert waves(op, costly) == pytest.approx(waves(op, WIDE) * 160 / 128)


def test_weights_of_experts_without_a_row_are_not_read():
    few, many = (
        operator("masked_grouped_gemm", rows=rows, groups=32, n=4096, k=7168) for rows in (8, 32)
    )
    _, moved = waves_and_bytes(batch_of([few, many]), np.full(2, 132.0), H800, WIDE)
    assert moved[0] / moved[1] == pytest.approx(8 / 32, rel=0.01)


@given(m=st.integers(1, 20000), more=st.integers(0, 5000), sms=st.integers(2, 132))
def test_more_rows_or_fewer_sms_are_never_less_work(m, more, sms):
    n, k = 7168, 2048
    for tiles in (WIDE, DEEPGEMM_TILES):
        one = waves(operator(m=m, n=n, k=k), tiles, sms)
        assert waves(operator(m=m + more, n=n, k=k), tiles, sms) >= one * (1 - 1e-12)
        assert waves(operator(m=m, n=n, k=k), tiles, sms - 1) >= one * (1 - 1e-12)
