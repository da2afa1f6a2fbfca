"""Schedules that defer weight gradients, cell by cell."""

from simulator.workload.schedules.grid import render_grid
from simulator.workload.schedules.zero_bubble import zb1p


def test_zb1p_defers_as_many_weight_gradients_as_ranks_come_before():
    """Rank 1 of two defers one, so that it too holds two micro-batches."""
    assert render_grid(zb1p(2, 3)).splitlines() == [
        "rank 0 (stage 0) | 0F0 0F1 0I0 0W0 0F2 0I1 0W1 0I2 0W2",
        "rank 1 (stage 1) | 1F0 1I0 1F1 1I1 1W0 1F2 1I2 1W1 1W2",
    ]
