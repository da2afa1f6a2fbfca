"""Kernel times beside an all-to-all and on fewer SMs."""

import pytest
from cost_models import COSTS, MICROSECOND, WITHOUT_TRACE, fitted, gemm, one, operator

from hardware_profiles.schema import load_calibration
from simulator.hardware.network.fabric_load import NO_LIMIT


def test_a_measured_row_of_a_pair_is_slowed_for_the_share_that_it_was_beside_an_all_to_all():
    # q_a_proj took 103.5 us, 0.439 of it beside an all-to-all that slowed it by 1.045.
    changes = {"overlap.gemm.value": 1.15, "overlap.gemm.high": 1.2, "restated_from": []}
    slower = fitted(calibration=load_calibration("h800_sxm", changes))
    op = gemm(4096, 1536, 7168)
    expected = 103.5 * (1 + 0.15 * 0.439) / (1 + 0.045 * 0.439)
    assert one(slower, op, sms=112, overlapped=True)[0] == pytest.approx(expected * MICROSECOND)
    assert one(slower, op, sms=112, overlapped=True)[1] == "interpolated"
    alone = one(COSTS, op, sms=112, overlapped=False)[0]
    assert one(slower, op, sms=112, overlapped=False)[0] == pytest.approx(alone)


def test_persistent_gemms_go_by_waves_not_by_the_share_of_sms():
    # o_proj at 4,096 tokens: 1,792 tiles are 16 waves on 112 SMs and 14 on 132
    o_proj = gemm(4096, 7168, 16384)
    few, _ = one(WITHOUT_TRACE, o_proj, sms=112, overlapped=False)
    many, _ = one(WITHOUT_TRACE, o_proj, sms=132, overlapped=False)
    assert few / many == pytest.approx(16 / 14, rel=0.03)
    # 128 tiles of full width fit one wave on 132 SMs and on 128
    one_wave = gemm(2048, 1024, 7168)
    assert one(WITHOUT_TRACE, one_wave, sms=128, overlapped=False) == one(
        WITHOUT_TRACE, one_wave, sms=132, overlapped=False
    )


def test_a_kernel_of_the_pair_is_not_slowed_again_and_alone_loses_its_share_of_the_slowdown():
    # shared gate_up ran with an all-to-all in flight all the time: 259 us, 1.045 times slower
    op = gemm(4096, 4096, 7168)
    beside, _ = one(COSTS, op, sms=112, overlapped=True)
    alone, _ = one(COSTS, op, sms=112, overlapped=False)
    assert beside == pytest.approx(259 * MICROSECOND)
    assert beside / alone == pytest.approx(1.045, rel=1e-6)
    # the weight gradient of o_proj never ran beside one
    w_o = gemm(7168, 16384, 4096, out_dtype="float32", accumulate=True)
    assert one(COSTS, w_o, sms=112, overlapped=False) == (
        pytest.approx(1499 * MICROSECOND),
        "measured",
    )


def test_a_cast_squeezed_onto_the_communication_sms_is_several_times_slower():
    cast = operator("quantize", dtype="bfloat16", out_dtype="fp8_e4m3", rows=4096, columns=7168)
    squeezed, provenance = one(COSTS, cast, sms=20, overlapped=True)
    assert squeezed == pytest.approx(355 * MICROSECOND, rel=0.01)  # published trace, mean of 3
    assert provenance == "measured"
    assert squeezed > 4 * one(COSTS, cast, sms=112, overlapped=True)[0]


def test_conditions_may_differ_from_operator_to_operator():
    op = gemm(4096, 7168, 16384)
    prediction = COSTS.predict([op, op], sms=[112, 132], overlapped=[True, False], load=NO_LIMIT)
    assert prediction.seconds[0] == one(COSTS, op, sms=112, overlapped=True)[0]
    assert prediction.seconds[1] == one(COSTS, op, sms=132, overlapped=False)[0]
