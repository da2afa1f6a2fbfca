"""GPipe runs every forward before any backward."""

from simulator.workload.schedules.gpipe import gpipe
from simulator.workload.schedules.grid import render_grid


def test_backwards_begin_when_every_forward_has_run():
    assert render_grid(gpipe(2, 3)).splitlines() == [
        "rank 0 (stage 0) | 0F0 0F1 0F2 0B0 0B1 0B2",
        "rank 1 (stage 1) | 1F0 1F1 1F2 1B0 1B1 1B2",
    ]
