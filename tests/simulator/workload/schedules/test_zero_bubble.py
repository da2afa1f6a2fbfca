"""Schedules that defer weight gradients, cell by cell."""

from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.zero_bubble import zb_h1, zb_h2, zbv


def test_zb_h1_defers_as_many_weight_gradients_as_ranks_come_before():
    """Rank 1 of two defers one, so that it too holds two micro-batches."""
    assert render_grid(zb_h1(2, 3)).splitlines() == [
        "rank 0 (stage 0) | 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2",
        "rank 1 (stage 1) | 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2",
    ]


def test_zb_h2_runs_twice_as_far_ahead_and_defers_twice_as_many():
    assert render_grid(zb_h2(2, 3)).splitlines() == [
        "rank 0 (stage 0) | 0F0 0F1 0F2 0I0 0W0 0I1 0W1 0I2 0W2",
        "rank 1 (stage 1) | 1F0 1I0 1F1 1I1 1F2 1I2 1W0 1W1 1W2",
    ]


def test_zbv_passes_the_last_rank_twice_in_a_row():
    """Half-stages 0 and 3 on rank 0, 1 and 2 on rank 1, which ends with what rank 0 left over."""
    assert render_grid(zbv(2, 3)).splitlines() == [
        "rank 0 (stages 0, 3) | 0F0 0F1 0F2 3F0 3I0 3W0 3F1 3I1 3W1 0I0 0W0 3F2 3I2 3W2 0I1 0W1 "
        "0I2 0W2",
        "rank 1 (stages 1, 2) | 1F0 2F0 1F1 2F1 2I0 2W0 1F2 1I0 1W0 2F2 2I1 2W1 1I1 2I2 1I2 1W1 "
        "2W2 1W2",
    ]
