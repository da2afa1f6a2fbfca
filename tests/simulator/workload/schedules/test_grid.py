"""A schedule prints one row for each rank."""

from simulator.workload.schedules.bidirectional import dualpipe, dualpipev
from simulator.workload.schedules.grid import render_grid


def test_printed_grid_has_one_row_a_rank_and_one_cell_an_action() -> None:
    assert render_grid(dualpipev(2, 4)).splitlines() == [
        "rank 0 (half-stages 0, 3) | 0F0     0F1     0F2     3F0     3I0     3W0     3F1     "
        "0F3&3B1 3F2&0B0 3B2     3F3&0B1 3B3     0I2     0W2     0I3     0W3",
        "rank 1 (half-stages 1, 2) | 1F0     2F0     1F1     2F1     1F2     2B0     2F2&1B0 "
        "1F3&2B1 2F3&1B1 2B2     1B2     2I3     1I3     2W3     1W3",
    ]
    assert "rank 5 (stages 5, 2)" in render_grid(dualpipe(8, 20))
