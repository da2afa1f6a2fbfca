"""How far a simulation has come."""

import pytest

from simulator.execution.progress import HowFar, unwatched, watch_part


def test_the_second_of_four_parts_that_is_half_done_makes_three_eighths_of_the_whole():
    seen = []
    watch_part(seen.append, 1, 4)(HowFar(0.5, 10, "requests", 60.0))
    assert seen == [HowFar(0.375, 10, "requests", 60.0)]


def test_parts_of_unknown_length_make_a_whole_of_unknown_length():
    seen = []
    watch_part(seen.append, 1, 4)(HowFar(None, 10, "requests"))
    assert seen == [HowFar(None, 10, "requests")]


def test_nobody_needs_to_watch():
    assert unwatched(HowFar(pytest.approx(1.0), 1, "runs")) is None
