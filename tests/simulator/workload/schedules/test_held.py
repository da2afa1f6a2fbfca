"""Activations that ranks hold are those of the papers."""

import numpy as np

from simulator.workload.schedules.bidirectional import dualpipe, dualpipev
from simulator.workload.schedules.gpipe import gpipe
from simulator.workload.schedules.held import held_activations, peak_in_flight
from simulator.workload.schedules.one_f_one_b import (
    interleaved,
    interleaved_overlapped,
    one_f_one_b,
    one_f_one_b_overlapped,
)
from simulator.workload.schedules.zero_bubble import zb_h1, zb_h2, zbv


def test_most_activations_in_flight_are_those_of_the_papers() -> None:
    """1F1B and ZB1P: PP; DualPipe: PP + 1 (arXiv 2412.19437, table 2)."""
    assert peak_in_flight(one_f_one_b(8, 20)) == (8, 7, 6, 5, 4, 3, 2, 1)
    assert peak_in_flight(zb_h1(8, 20)) == (8,) * 8
    # 2 x 8 - 1; ZBV 2 x 8 half-stages, as many bytes as 1F1B on its first rank.
    assert peak_in_flight(zb_h2(8, 20)) == (15,) * 8
    assert peak_in_flight(zbv(8, 20)) == (16,) * 8
    assert peak_in_flight(gpipe(8, 20)) == (20,) * 8
    # Forwards ahead, and the one that runs: 2 (ranks - 1 - rank) + (stages - 1) group, and 1 more
    # in pairs.
    assert peak_in_flight(interleaved(4, 8, virtual_stages=3)) == (15, 13, 11, 9)
    assert peak_in_flight(interleaved_overlapped(4, 8, virtual_stages=3)) == (16, 14, 12, 10)
    assert peak_in_flight(one_f_one_b_overlapped(4, 8)) == (8, 6, 4, 2)
    assert peak_in_flight(dualpipe(8, 20)) == (9,) * 8
    assert peak_in_flight(dualpipev(4, 20)) == (9,) * 4


def test_held_activations_count_each_stage_and_what_is_deferred() -> None:
    held = held_activations(zb_h1(2, 3), 1)  # F I F I W F I W W
    assert held.stages == (1,)
    np.testing.assert_array_equal(held.whole[:, 0], [1, 1, 1, 1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(held.deferred[:, 0], [0, 0, 1, 1, 2, 1, 1, 2, 1])
