"""Profiles of low-latency kernels from rows of one node, and errors of rows left out."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_rows import low_latency_row, low_latency_rows

from hardware_profiles.fields import to_profile
from hardware_profiles.low_latency_kernels import LowLatencyProfile
from hardware_profiles.schema import load_gpu
from simulator.calibration.low_latency_fit import (
    fit_low_latency,
    is_low_latency,
    low_latency_kernels,
)

GPU = load_gpu("gb200")
SIZES = {"dispatch": 7408, "combine": 14336}
"""Bytes of a copy of 7,168 values."""


def test_a_line_is_found_again_in_its_own_rows():
    fitted = fit_low_latency(low_latency_rows(), gpu=GPU)
    assert (fitted.tokens, fitted.top_k, fitted.experts, fitted.hidden) == (128, 8, 256, 7168)
    assert fitted.intercepts == pytest.approx({"dispatch": 16e-6, "combine": 18e-6}, rel=1e-12)
    # 16 us and 128 x 0.08 us, 18 us and 128 x 0.14 us.
    assert fitted.seconds == pytest.approx({"dispatch": 26.24e-6, "combine": 35.92e-6}, rel=1e-12)
    for errors in fitted.left_out.values():
        assert errors == pytest.approx(np.zeros(3), abs=1e-12)


def test_one_row_off_the_line_of_the_others_does_not_move_it():
    others = [row for row in low_latency_rows() if dict(row.sizes)["tokens"] != 32]
    slow = [replace(row, seconds=1.2 * row.seconds) for row in low_latency_rows(tokens=(32,))]
    fitted = fit_low_latency([*others, *slow], gpu=GPU)
    assert fitted.intercepts["dispatch"] == pytest.approx(16e-6, rel=1e-12)
    # Of 1, 32 and 64 tokens. Without the first the slow row's own line, of 20.953 us, is nearer to
    # both than the other's, also from the longest intercept: three of four copies of 128 x 8 go to
    # other GPUs, 7,408 bytes each at 900 GB/s. Without the last it is not.
    slow_start = 26.24 - 0.75 * 1024 * 7408 / 900e9 * 1e6
    at_one = slow_start + (26.24 - slow_start) / 128
    assert fitted.left_out["dispatch"] == pytest.approx(
        [np.log(16.08 / at_one), np.log(1.2), 0.0], abs=1e-9
    )


def test_rows_of_the_experts_nearest_to_the_base_model_are_taken_however_few():
    tokens = (1, 2, 4, 8, 16, 32, 64, 128)
    many = low_latency_rows(tokens=tokens, experts=384, dispatch=(20e-6, 0.1e-6))
    fitted = fit_low_latency([*many, *low_latency_rows(), *low_latency_rows(top_k=6)], gpu=GPU)
    assert (fitted.experts, fitted.top_k) == (256, 8)
    assert fitted.intercepts["dispatch"] == pytest.approx(16e-6, rel=1e-12)


def test_rows_of_few_tokens_between_nodes_beside_compute_or_of_no_copy_make_no_profile():
    assert fit_low_latency(low_latency_rows(tokens=(64, 128, 256)), gpu=GPU) is None
    assert fit_low_latency([r for r in low_latency_rows() if r.kind == "combine"], gpu=GPU) is None
    assert fit_low_latency(low_latency_rows(nodes="2"), gpu=GPU) is None
    assert fit_low_latency(low_latency_rows(beside="compute"), gpu=GPU) is None
    assert not is_low_latency(low_latency_row("dispatch", 1, 1e-6, layout="normal"))
    assert is_low_latency(low_latency_row("dispatch", 1, 1e-6))
    assert not is_low_latency(low_latency_row("dispatch", 1, 1e-6, top_k=0))


def test_an_intercept_leaves_copies_to_other_gpus_their_time_at_line_rate():
    # Rows that fall, as busy links or clocks make them: the last one's own line is the nearest.
    times = {1: 60e-6, 64: 58e-6, 128: 56e-6}
    rows = [
        low_latency_row(kind, tokens, seconds)
        for kind in ("dispatch", "combine")
        for tokens, seconds in times.items()
    ]
    fitted = fit_low_latency(rows, gpu=load_gpu("h200_sxm"))
    # 128 x 8 copies, seven of eight to other GPUs, of 7,408 and 14,336 bytes at 450 GB/s.
    most = {kind: 56e-6 - 896 * size / 450e9 for kind, size in SIZES.items()}
    assert fitted.intercepts == pytest.approx(most, rel=1e-12)
    raw = low_latency_kernels("mine", fitted)
    profile = to_profile(LowLatencyProfile, raw, where="mine.yaml")
    # The copies to the own GPU take no time on it.
    assert profile.fraction("combine", 8, "high") == pytest.approx(8 / 7, rel=1e-4)
    # Rows that no such link allows leave nothing.
    quick = [replace(row, seconds=row.seconds / 10) for row in rows]
    none = fit_low_latency(quick, gpu=load_gpu("h200_sxm"))
    assert none.intercepts == {"dispatch": 0.0, "combine": 0.0}


def test_gpus_per_node_of_a_gpu_that_no_shipped_cluster_has_are_stated():
    mine = load_gpu("gb200", {"name": "mine", "sms": 120})
    with pytest.raises(ValueError, match="has the GPU mine, so that GPUs per node are not known"):
        fit_low_latency(low_latency_rows(), gpu=mine)
    fitted = fit_low_latency(low_latency_rows(), gpu=mine, gpus_per_node=2)
    assert low_latency_kernels("mine", fitted)["rows"][0]["ranks"] == 2
    # Half of 128 x 8 copies of 7,408 and 14,336 bytes go to the other GPU, at 900 GB/s.
    assert fitted.longest == pytest.approx(
        {"dispatch": 26.24e-6 - 512 * 7408 / 900e9, "combine": 35.92e-6 - 512 * 14336 / 900e9},
        rel=1e-12,
    )
    of_a_rack = fit_low_latency(low_latency_rows(), gpu=GPU, gpus_per_node=72)
    assert of_a_rack.gpus_per_node == 72
    # Rows that make no profile ask for nothing.
    assert fit_low_latency(low_latency_rows(nodes="2"), gpu=mine) is None


def test_a_fitted_profile_can_be_read_back():
    raw = low_latency_kernels("mine", fit_low_latency(low_latency_rows(), gpu=GPU))
    profile = to_profile(LowLatencyProfile, raw, where="mine.yaml")
    assert (profile.name, profile.link, profile.link_bandwidth) == ("mine", "nvlink", 900e9)
    # A tray of a GB200 rack has four GPUs.
    (timed,) = profile.rows
    assert timed.ranks == 4
    assert [timed.dispatch, timed.combine] == pytest.approx([26.24e-6, 35.92e-6], rel=1e-12)
    assert profile.intercept("dispatch", 4) == pytest.approx(16e-6, rel=1e-12)
    # 128 x 8 copies of 7,408 bytes in 10.24 us, over 900 GB/s.
    share = 1024 * 7408 / 10.24e-6 / 900e9
    assert profile.fraction("dispatch", 72) == pytest.approx(share, rel=1e-9)
    # What the receiving half of the shipped profile leaves of it: 9 (6 to 20) us of 26.24.
    sent = profile.dispatch_send
    assert (sent.value, sent.low, sent.high) == pytest.approx((17.24e-6, 6.24e-6, 20.24e-6))
